"""Tests for proxyd.equipment."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.accounts.accounts import Accounts
from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config
from proxyd.equipment import Equipment, Replacements, most_connections, pseudonym
from proxyd.errors import ErrorType, ProxyError
from proxyd.ledger.access_log import AccessLog, AccessLogError
from proxyd.ledger.formats import encode_json
from proxyd.ledger.record import AccessRecord
from proxyd.net.resolver import CachingResolver
from proxyd.net.system_resolver import SystemResolver
from proxyd.request import Destination, Door, IPAddress, Request
from proxyd.testing import LabReactor, RecordList, ScriptedDialer, StaticResolver

T = TypeVar("T")

ALICE = "alice:$2b$04$ZtohShRF77OBDVMfAPRqD.XtIu2hqLreYgPsVkozy/hYAZJ8ZNXKG\n"
OWN = Replacements()
REST = """
[listener:http]
endpoint = tcp:8080
accept = forward
[rule:all]
action = allow
destinations = *
"""
RECORD = AccessRecord(0.0, "1", "http", "forward", "192.0.2.7", 50000)
REQUEST = Request(
    "http", Door.FORWARD, ip_address("192.0.2.7"), 50000, None, "GET", Destination.parse("www.example.com", 80)
)


def configured(settings: str = "", users: str = "") -> Config:
    """A configuration with these options in ``[proxyd]`` and in ``[users]``."""
    return Config.from_string(f"[proxyd]\n{settings}\n" + (f"[users]\n{users}\n" if users else "") + REST)


class EquipmentTests(TestCase):
    """What a proxy is furnished with, as the reactor that it runs in has threads and sockets."""

    timeout = 20

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.users = self.directory / "users"
        self.users.write_text(ALICE)

    def equip(self, config: Config, replacements: Replacements = OWN) -> Equipment:
        """The equipment of a proxy, in use."""
        equipment = Equipment(reactor, replacements)
        self.addCleanup(equipment.stop)
        equipment.adopt(equipment.prepare(config))
        return equipment

    def reload(self, equipment: Equipment, config: Config) -> None:
        """Go over to another configuration."""
        equipment.adopt(equipment.prepare(config))

    # -- the resolver -------------------------------------------------------------------------------------------------

    def silent_server(self) -> int:
        """The port of a DNS server that never replies."""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(server.close)
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])

    def asking(self, equipment: Equipment) -> Deferred[Sequence[IPAddress]]:
        """A question that nobody answers."""
        question = equipment.egress.resolver.resolve("www.example.com")
        assert isinstance(question, Deferred)
        return question

    def test_resolver_kept(self) -> None:
        """Where nothing is said about the resolver that is new, it stays, with all that it remembers."""
        server = f"resolver = 127.0.0.1:{self.silent_server()}\n"
        equipment = self.equip(configured(server))
        before, question = equipment.egress.resolver, self.asking(equipment)
        self.reload(equipment, configured(server + "connect_timeout = 3s"))
        self.assertIs(equipment.egress.resolver, before)
        self.assertNoResult(question)
        equipment.drop(equipment.prepare(configured(server)))
        self.assertNoResult(question)
        question.addErrback(lambda failure: failure.trap(ProxyError))  # at the end of the test

    def test_resolver_exchanged(self) -> None:
        """Another resolver takes over; whoever waits for the old one is told."""
        server = f"resolver = 127.0.0.1:{self.silent_server()}\n"
        equipment = self.equip(configured(server))
        question = self.asking(equipment)
        self.reload(equipment, configured(server + "resolver_timeout = 3s"))
        self.assertIs(self.failureResultOf(question, ProxyError).value.error, ErrorType.DNS_ERROR)
        self.reload(equipment, configured())
        self.assertIsInstance(equipment.egress.resolver, CachingResolver)

    # -- accounts -----------------------------------------------------------------------------------------------------

    def test_accounts_kept(self) -> None:
        """Accounts stay, with the verdicts that they remember, while their file and cache time do."""
        file = f"file = {self.users}\n"
        equipment = self.equip(configured(users=file))
        before = equipment.egress.accounts
        self.assertIsInstance(before, Accounts)
        self.reload(equipment, configured("connect_timeout = 3s", file + "realm = elsewhere"))
        self.assertIs(equipment.egress.accounts, before)
        self.assertEqual(equipment.egress.realm, "elsewhere")
        equipment.drop(equipment.prepare(configured(users=file)))
        self.assertWorks(before)

    def assertWorks(self, accounts: Accounts | None) -> None:
        """Passwords are checked."""
        assert accounts is not None
        checking = accounts.authenticate(b"alice", b"wrong", "basic")
        assert isinstance(checking, Deferred)
        checking.addErrback(lambda failure: failure.trap(ProxyError))  # at the end of the test

    def assertStopped(self, accounts: Accounts | None) -> None:
        """No passwords are checked any more."""
        assert accounts is not None
        self.assertRaises(ProxyError, accounts.authenticate, b"alice", b"wrong", "basic")

    def test_accounts_exchanged(self) -> None:
        """Other accounts take over, and the old ones are stopped; so are those that no configuration needs."""
        equipment = self.equip(configured(users=f"file = {self.users}"))
        first = equipment.egress.accounts
        self.reload(equipment, configured(users=f"file = {self.users}\ncache_time = 3s"))
        second = equipment.egress.accounts
        self.assertStopped(first)
        self.assertWorks(second)
        self.reload(equipment, configured())
        self.assertStopped(second)
        self.assertIsNone(equipment.egress.accounts)
        self.assertEqual(equipment.egress.realm, "proxyd")

    def test_accounts_dropped(self) -> None:
        """Accounts that were prepared in vain are stopped, and those in use go on."""
        equipment = self.equip(configured(users=f"file = {self.users}"))
        prepared = equipment.prepare(configured(users=f"file = {self.users}\ncache_time = 3s"))
        self.assertWorks(prepared.accounts)
        equipment.drop(prepared)
        self.assertStopped(prepared.accounts)
        self.assertWorks(equipment.egress.accounts)

    def test_unusable_users(self) -> None:
        """A users file that cannot be used is an error, and nothing has changed."""
        equipment = self.equip(configured())
        self.users.write_text("alice:plain\n")
        self.assertRaises(AccountsError, equipment.prepare, configured(users=f"file = {self.users}"))
        self.assertIsNone(equipment.egress.accounts)

    # -- the access log -----------------------------------------------------------------------------------------------

    async def written(self, *names: str) -> list[int]:
        """The number of lines in each of these files, once there is something in the last."""
        paths = [self.directory / name for name in names]
        while not paths[-1].exists() or not paths[-1].stat().st_size:
            await deferLater(reactor, 0.01)
        return [len(path.read_bytes().splitlines()) for path in paths]

    async def test_log(self) -> None:
        """The access log is written as configured, in both formats at once if that is wanted."""
        both = f"access_log_json = {self.directory}/json\naccess_log_squid = {self.directory}/squid"
        equipment = self.equip(configured(both))
        equipment.egress.access_log.record(RECORD)
        await equipment.stop()
        self.assertEqual(await self.written("json", "squid"), [1, 1])

    async def test_log_kept(self) -> None:
        """A log about which nothing new is said stays open."""
        settings = f"access_log_json = {self.directory}/json\naccess_log_flush = 0\n"
        equipment = self.equip(configured(settings))
        before = equipment.egress.access_log
        self.reload(equipment, configured(settings + "connect_timeout = 3s"))
        equipment.drop(equipment.prepare(configured(settings)))
        self.assertIs(equipment.egress.access_log, before)
        before.record(RECORD)
        self.assertEqual(await self.written("json"), [1])

    def test_dialer_exchanged(self) -> None:
        """Connections to origins read half of what may be held, as the configuration has it now."""
        equipment = self.equip(configured("buffer_size = 64k"))
        self.assertEqual(equipment.egress.dialer.bulk_read, 32768)
        self.reload(equipment, configured("buffer_size = 1M"))
        self.assertEqual(equipment.egress.dialer.bulk_read, 131072)

    async def test_log_exchanged(self) -> None:
        """Another log takes over; what was recorded before is written where it belongs."""
        flush = "access_log_flush = 10s\n"
        equipment = self.equip(configured(f"access_log_json = {self.directory}/old\n" + flush))
        equipment.egress.access_log.record(RECORD)
        self.reload(equipment, configured(f"access_log_json = {self.directory}/new\n" + flush))
        equipment.egress.access_log.record(RECORD)
        await equipment.stop()
        self.assertEqual(await self.written("old", "new"), [1, 1])

    def test_unusable_log(self) -> None:
        """A log that cannot be opened is an error: what it comes with is not started, what is there goes on."""
        equipment = self.equip(configured(users=f"file = {self.users}"))
        before = equipment.egress.access_log
        config = configured(f"access_log_json = {self.directory}", f"file = {self.users}\ncache_time = 3s")
        self.assertRaises(AccessLogError, equipment.prepare, config)
        self.assertIs(equipment.egress.access_log, before)
        self.assertWorks(equipment.egress.accounts)

    async def test_reopened(self) -> None:
        """A log that was rotated is opened again."""
        equipment = self.equip(configured(f"access_log_json = {self.directory}/json\naccess_log_flush = 0"))
        equipment.egress.access_log.record(RECORD)
        await self.written("json")
        (self.directory / "json").rename(self.directory / "json.1")
        equipment.reopen_logs()
        equipment.egress.access_log.record(RECORD)
        self.assertEqual(await self.written("json.1", "json"), [1, 1])

    # -- an embedder's parts ------------------------------------------------------------------------------------------

    async def test_replacements(self) -> None:
        """What an embedder brings is used whatever the configuration says, and is not ours to stop."""
        log = AccessLog(reactor, [(str(self.directory / "json"), encode_json)], flush=0, buffer=100000)
        log.start()
        self.addCleanup(log.stop)
        resolver = CachingResolver(reactor, SystemResolver(reactor, timeout=5, ttl=5), negative_ttl=5)
        dialer = ScriptedDialer(LabReactor())
        equipment = self.equip(configured(), Replacements(log, dialer, resolver))
        self.reload(equipment, configured(f"resolver = 127.0.0.1\naccess_log_json = {self.directory}/other"))
        egress = equipment.egress
        self.assertEqual((egress.access_log, egress.dialer, egress.resolver), (log, dialer, resolver))
        await equipment.stop()
        log.record(RECORD)
        self.assertEqual(await self.written("json"), [1])
        self.assertFalse((self.directory / "other").exists())

    async def test_other_threads(self) -> None:
        """Passwords are checked where an embedder wants them to be."""
        works: list[Callable[[], object]] = []

        def defer(work: Callable[[], T], /) -> Deferred[T]:
            works.append(work)
            return maybeDeferred(work)

        equipment = self.equip(configured(users=f"file = {self.users}"), Replacements(defer_to_pool=defer))
        assert equipment.egress.accounts is not None
        self.assertIsNone(await equipment.egress.accounts.authenticate(b"alice", b"wrong", "basic"))  # type: ignore[misc]
        self.assertEqual(len(works), 1)

    def test_own_addresses(self) -> None:
        """The kernel tells which addresses are our own, unless an embedder does."""
        loopback, public = ip_address("127.0.0.1"), ip_address("93.184.216.34")
        by_kernel = self.equip(configured()).egress.policy
        self.assertIsNone(by_kernel.decide(REQUEST, public).error)
        self.assertIs(by_kernel.decide(REQUEST, loopback).error, ErrorType.DESTINATION_IP_PROHIBITED)
        told = self.equip(configured(), Replacements(is_own=lambda address, port: port == 80)).egress.policy
        self.assertIs(told.decide(REQUEST, public).error, ErrorType.DESTINATION_IP_PROHIBITED)


class SettingsTests(SynchronousTestCase):
    """What follows from settings alone."""

    def setUp(self) -> None:
        self.reactor = LabReactor()
        self.equipment = Equipment(self.reactor, Replacements(RecordList(), resolver=StaticResolver()))
        self.addCleanup(self.stop)

    def stop(self) -> None:
        """Stop, which leaves nothing to be done."""
        self.successResultOf(Deferred.fromCoroutine(self.equipment.stop()))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def adopt(self, settings: str = "") -> None:
        """Go over to these settings."""
        self.equipment.adopt(self.equipment.prepare(configured(settings)))

    def test_limits(self) -> None:
        """The limits on clients are those of the configuration in use."""
        self.adopt("max_connections = 100\nmax_connections_per_client = 10")
        crowd = self.equipment.crowd
        self.assertEqual((crowd.most, crowd.most_per_client), (100, 10))
        self.adopt("max_connections = 200\nmax_connections_per_client = 0")
        self.assertEqual((crowd.most, crowd.most_per_client), (200, 0))

    def test_limit_on_descriptors(self) -> None:
        """Without a limit on connections the limit on descriptors is one: two for each client, some for the rest."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
        self.adopt()
        self.assertEqual(self.equipment.crowd.most, 448)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
        self.assertEqual(most_connections(), 1)

    def test_pool(self) -> None:
        """Idle connections are kept for as long, and as many, as the configuration says; 0 seconds are none."""
        self.adopt("upstream_idle_timeout = 7s\nupstream_idle_connections = 9")
        pool = self.equipment.egress.pool
        self.assertEqual((pool.idle_timeout, pool.size), (7, 9))
        self.adopt("upstream_idle_timeout = 0")
        self.assertEqual(pool.size, 0)

    def test_via(self) -> None:
        """In Via stands what is configured, or a name that is the same after a restart and tells no host's name."""
        self.adopt()
        self.assertEqual(self.equipment.egress.via, pseudonym())
        self.assertRegex(pseudonym(), r"\Aproxyd-[0-9a-f]{8}\Z")
        self.assertNotIn(socket.gethostname(), pseudonym())
        self.adopt("via = gate-1")
        self.assertEqual(self.equipment.egress.via, "gate-1")

    def test_foreign_reactor(self) -> None:
        """In a reactor that cannot watch sockets nothing is left to the kernel."""
        self.assertEqual((self.equipment.readiness, self.equipment.splicer), (None, None))

    def test_other_log(self) -> None:
        """A log that is not ours is not ours to open again; before there is one nothing happens either."""
        self.equipment.reopen_logs()
        self.adopt()
        self.equipment.reopen_logs()

    def test_identity(self) -> None:
        """Everything behind the doors is one object for as long as the proxy runs, whatever is exchanged in it."""
        self.adopt()
        egress = self.equipment.egress
        self.adopt("connect_timeout = 3s")
        self.assertIs(self.equipment.egress, egress)
        self.assertEqual(egress.settings.connect_timeout, 3)
        self.assertTrue(egress.policy.decide(REQUEST).allow)
