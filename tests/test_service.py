"""Tests for proxyd.service."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config
from proxyd.ledger.access_log import AccessLogError
from proxyd.listening import ListenError
from proxyd.service import LAST_WORDS, Proxy, ReloadReport
from proxyd.testing import Ending, Faults, Lab, LabReactor, Origin, Peer, Reach, RecordList, StaticResolver
from proxyd.testing.transport import WINDOW
from tests.loopback import Talk, connect

CONFIG = """
[proxyd]
drain_timeout = 30s

[listener:http]
endpoint = tcp:8080
accept = forward connect

[rule:web]
action = allow
destinations = .example.com
"""
GET = b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
CONNECT = b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (4 * WINDOW, b"x" * (4 * WINDOW))
OPEN = b"HTTP/1.1 200 Connection Established\r\n\r\n"
TUNNEL = {"status": 200, "destination": "www.example.com:443", "address": "93.184.216.1:443"}


class LabTestCase(SynchronousTestCase):
    """A proxy in memory."""

    def setUp(self) -> None:
        self.lab = Lab(CONFIG)
        self.addCleanup(self.lab.stop)
        self.records = self.lab.records

    def tunnel(self) -> tuple[Peer, Origin]:
        """A client with a tunnel to an origin."""
        origin = self.lab.origin("www.example.com", 443)
        client = self.lab.connect("http")
        client.send(CONNECT)
        self.assertEqual(client.received(), OPEN)
        return client, origin


class StartTests(SynchronousTestCase):
    """A proxy starts, or says why it cannot."""

    def setUp(self) -> None:
        self.reactor = LabReactor()

    def proxy(self, config: str = CONFIG) -> Proxy:
        """A proxy that has not been started."""
        resolver = StaticResolver()
        return Proxy(self.reactor, Config.from_string(config), access_log=RecordList(), resolver=resolver)

    def stop(self, proxy: Proxy) -> None:
        """Stop, which leaves nothing."""
        stopped = proxy.stopService()
        self.reactor.advance(1)
        self.successResultOf(stopped)
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """The reactor has neither ports nor calls of the proxy."""
        self.reactor.settle()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.reactor.listenTCP(8080, Factory()).stopListening()
        self.reactor.settle()

    def test_service(self) -> None:
        """A proxy is a service, which can be one among others."""
        self.assertTrue(IService.providedBy(self.proxy()))

    def test_listen(self) -> None:
        """Listening gives the address of each listener, as often as it is asked for."""
        proxy = self.proxy()
        expected = {"http": IPv4Address("TCP", "0.0.0.0", 8080)}
        self.assertEqual(self.successResultOf(proxy.listen()), expected)
        self.assertEqual(self.successResultOf(proxy.listen()), expected)
        self.stop(proxy)

    def test_start(self) -> None:
        """Started as a service it listens already in the privileged start."""
        proxy = self.proxy()
        proxy.privilegedStartService()
        self.assertRaises(Exception, self.reactor.listenTCP, 8080, Factory())  # noqa: B017 - CannotListenError
        proxy.startService()
        self.assertTrue(proxy.running)
        self.stop(proxy)
        self.assertFalse(proxy.running)

    def test_start_alone(self) -> None:
        """Without a privileged start it listens in the other one, and after listening either is harmless."""
        proxy = self.proxy()
        proxy.startService()
        self.assertIn("http", self.successResultOf(proxy.listen()))
        self.stop(proxy)

    def test_cannot_listen(self) -> None:
        """What keeps a listener from being opened is the failure, and nothing stays open; the next try may work."""
        taken = self.reactor.listenTCP(8081, Factory())
        config = CONFIG + "[listener:more]\nendpoint = tcp:8081\naccept = connect\n"
        proxy = self.proxy(config)
        failed = proxy.listen()
        self.reactor.settle()
        message = 'listener "more": cannot listen on tcp:8081: [Errno 98] Address already in use'
        self.assertEqual(str(self.failureResultOf(failed, ListenError).value), message)
        self.check_nothing_left()
        taken.stopListening()
        self.assertEqual(list(self.successResultOf(proxy.listen())), ["http", "more"])
        self.stop(proxy)

    def test_cannot_start(self) -> None:
        """As a service it raises that, in either start, and does not run."""
        self.reactor.listenTCP(8081, Factory())
        proxy = self.proxy(CONFIG + "[listener:more]\nendpoint = tcp:8081\naccept = connect\n")
        for start in (proxy.privilegedStartService, proxy.startService):
            self.assertRaises(ListenError, start)
            self.assertFalse(proxy.running)
            self.check_nothing_left()

    def test_unusable_users(self) -> None:
        """So it is with a users file that is of no use."""
        users = Path(self.mktemp()).absolute()
        users.write_text("alice:plain\n")
        self.failureResultOf(self.proxy(CONFIG + f"[users]\nfile = {users}\n").listen(), AccountsError)
        self.check_nothing_left()

    def test_unusable_log(self) -> None:
        """And with an access log that cannot be opened."""
        config = Config.from_string(CONFIG.replace("drain_timeout = 30s", f"access_log_json = {Path.cwd()}"))
        self.failureResultOf(Proxy(self.reactor, config).listen(), AccessLogError)
        self.check_nothing_left()

    def test_never_started(self) -> None:
        """A proxy that was never started can be stopped; it has no flows and no logs."""
        proxy = self.proxy()
        proxy.reopen_logs()
        self.assertEqual(list(proxy.flows), [])
        self.assertIsNone(self.successResultOf(proxy.stopService()))

    def test_started_again(self) -> None:
        """A proxy that was stopped can be started again."""
        proxy = self.proxy()
        for _ in range(2):
            proxy.startService()
            self.stop(proxy)


class StopTests(LabTestCase):
    """A proxy stops: nobody comes in, and those inside may finish."""

    def stop(self) -> Deferred[None]:
        """Begin to stop."""
        stopping = self.lab.proxy.stopService()
        self.lab.reactor.settle()
        return stopping

    def test_idle(self) -> None:
        """Without flows it is stopped in no time; clients that wait are closed."""
        client = self.lab.connect("http")
        stopping = self.stop()
        self.lab.advance(0.1)
        self.successResultOf(stopping)
        self.assertIs(client.ending, Ending.FIN)
        self.assertRaises(ConnectionRefusedError, self.lab.connect, "http")

    def test_twice(self) -> None:
        """Who stops it a second time waits for the same end."""
        self.tunnel()
        stoppings = self.stop(), self.stop()
        self.lab.advance(29)
        self.assertNoResult(stoppings[0])
        self.assertNoResult(stoppings[1])
        self.lab.advance(LAST_WORDS + 2)
        self.successResultOf(stoppings[0])
        self.successResultOf(stoppings[1])

    def test_drained(self) -> None:
        """A tunnel lasts until it ends by itself, and then the proxy has stopped."""
        client, origin = self.tunnel()
        stopping = self.stop()
        self.assertRaises(ConnectionRefusedError, self.lab.connect, "http")
        self.lab.advance(20)
        client.send(b"still here")
        self.assertEqual(origin.received(), b"still here")
        client.close()
        origin.close()
        self.lab.advance(0.2)
        self.successResultOf(stopping)
        self.records.expect(TUNNEL | {"error": None, "bytes_from_client": 10})

    def test_deadline(self) -> None:
        """A tunnel that does not end is cut at the deadline, on both sides, and recorded as ours."""
        client, origin = self.tunnel()
        stopping = self.stop()
        self.lab.advance(31)
        self.successResultOf(stopping)
        self.assertEqual((client.ending, origin.connection.ending), (Ending.RESET, Ending.RESET))
        expected = {"error": "connection_terminated", "detail": "proxyd is stopping", "closed_by": "proxy"}
        self.records.expect(TUNNEL | expected)

    def test_no_drain(self) -> None:
        """With a drain timeout of 0 everything is cut at once."""
        self.lab.reload(CONFIG.replace("30s", "0"))
        client, _ = self.tunnel()
        stopping = self.stop()
        self.lab.advance(0.1)
        self.successResultOf(stopping)
        self.assertIs(client.ending, Ending.RESET)

    def test_request_under_way(self) -> None:
        """A request that waits for its answer at the deadline is answered by us."""
        self.lab.origin("www.example.com", 80)
        client = self.lab.connect("http")
        client.send(GET)
        stopping = self.stop()
        self.lab.advance(30.5)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 502 Bad Gateway\r\n"))
        client.close()
        self.lab.advance(LAST_WORDS)
        self.successResultOf(stopping)
        self.records.expect({"status": 502, "error": "connection_terminated", "closed_by": "proxy"})

    def test_dialing(self) -> None:
        """So is one that is still being connected, and nothing is left of the attempt."""
        self.lab.reload(CONFIG.replace("30s", "1s"))
        self.lab.origin("www.example.com", 443).reach = Reach.SILENT
        client = self.lab.connect("http")
        client.send(CONNECT)
        stopping = self.stop()
        self.lab.advance(1 + LAST_WORDS + 1)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 502 Bad Gateway\r\n"))
        self.successResultOf(stopping)
        self.records.expect({"status": 502, "error": "connection_terminated", "closed_by": "proxy"})

    def test_request_while_stopping(self) -> None:
        """A client that is connected may still ask, and is told that this was the last time."""
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        self.lab.origin("www.example.com", 80, answer=answer)
        waiting = self.lab.connect("http")
        self.tunnel()
        stopping = self.stop()
        waiting.send(GET)
        answer = waiting.received()
        self.assertIn(b"\r\nConnection: close\r\n", answer)
        self.assertTrue(answer.endswith(b"\r\n\r\nhi"))
        self.assertIs(waiting.ending, Ending.FIN)
        self.assertNoResult(stopping)

    def test_slow_reader(self) -> None:
        """A client that takes its answer slowly gets all of it, though its flow has ended."""
        self.lab.origin("www.example.com", 80, answer=LARGE)
        client = self.lab.connect("http")
        client.pause()
        client.send(GET)
        self.lab.advance(1)
        stopping = self.stop()
        self.lab.advance(1)
        self.assertNoResult(stopping)
        client.resume()
        self.assertTrue(client.received().endswith(b"x" * (4 * WINDOW)))
        self.lab.advance(1)
        self.successResultOf(stopping)

    def test_absent_reader(self) -> None:
        """A client that never takes it does not hold up the end for long."""
        self.lab.reload(CONFIG.replace("30s", "1s"))
        self.lab.origin("www.example.com", 80, answer=LARGE)
        client = self.lab.connect("http")
        client.pause()
        client.send(GET)
        stopping = self.stop()
        self.lab.advance(1 + LAST_WORDS + 1)
        self.successResultOf(stopping)
        self.assertIs(client.ending, Ending.RESET)

    def test_turned_away(self) -> None:
        """Nor does one that was just not let in, and does not go."""
        self.lab.reload(CONFIG.replace("drain_timeout = 30s", "max_connections = 1"))
        first, second = self.lab.connect("http"), self.lab.connect("http")
        stopping = self.stop()
        self.lab.advance(0.2)
        self.successResultOf(stopping)
        self.assertEqual((first.ending, second.ending), (Ending.FIN, Ending.RESET))


class ReloadTests(LabTestCase):
    """A proxy goes over to another configuration while it runs."""

    other = CONFIG.replace(".example.com", ".example.net")
    moved = CONFIG.replace("8080", "8081")

    def reload(self, config: str) -> ReloadReport:
        """Go over to another configuration."""
        return self.lab.reload(config)

    def check_unchanged(self) -> None:
        """Clients find the listener at its old place, and the old policy."""
        self.lab.connect("http").send(GET)
        self.assertEqual((self.records[-1].decision, self.records[-1].rule), ("allow", "web"))

    def test_policy(self) -> None:
        """New requests meet the new policy, also on connections that were there before."""
        client = self.lab.connect("http")
        self.assertEqual(self.reload(self.other), ReloadReport((), (), (), ()))
        client.send(GET)
        self.records.expect({"decision": "deny", "status": 403})

    def test_live_flows(self) -> None:
        """Live flows go on; those that could not begin any more are told."""
        client, origin = self.tunnel()
        [flow] = self.lab.flows
        self.assertEqual(self.reload(CONFIG).no_longer_allowed, ())
        self.assertEqual(self.reload(self.other).no_longer_allowed, (flow,))
        client.send(b"I go on")
        self.assertEqual(origin.received(), b"I go on")

    def test_listeners(self) -> None:
        """Listeners are added, removed and changed, and the report names them."""
        more = "[listener:{}]\nendpoint = tcp:{}\naccept = connect\n"
        self.reload(CONFIG + more.format("a", 1) + more.format("b", 2))
        report = self.reload(CONFIG + more.format("b", 3) + more.format("c", 4))
        self.assertEqual((report.added, report.removed, report.changed), (("c",), ("a",), ("b",)))
        self.assertEqual([address.port for address in self.lab.addresses.values()], [8080, 3, 4])  # type: ignore[attr-defined]

    def test_moved_listener(self) -> None:
        """A listener that moves takes new clients at the new place; those it has stay."""
        client, origin = self.tunnel()
        old = self.lab.addresses["http"]
        self.assertEqual(self.reload(self.moved).changed, ("http",))
        self.assertRaises(ConnectionRefusedError, self.lab.reactor.connect, Peer(self.lab.reactor), old, old)
        self.check_unchanged()
        client.send(b"I go on")
        self.assertEqual(origin.received(), b"I go on")

    def test_limits(self) -> None:
        """New limits hold for new clients."""
        clients = [self.lab.connect("http") for _ in range(2)]
        self.reload(CONFIG.replace("drain_timeout = 30s", "max_connections = 1"))
        self.assertEqual([client.ending for client in clients], [Ending.OPEN] * 2)
        self.assertTrue(self.lab.connect("http").received().startswith(b"HTTP/1.1 503 Service Unavailable\r\n"))

    def test_one_cannot_be_opened(self) -> None:
        """If the second of two new listeners cannot be opened, everything is as before."""
        self.lab.reactor.listenTCP(8099, Factory())
        more = "[listener:{}]\nendpoint = tcp:{}\naccept = connect\n"
        config = self.other.replace("8080", "8081") + more.format("b", 8082) + more.format("c", 8099)
        error = self.assertRaises(ListenError, self.reload, config)
        self.assertIn('listener "c"', str(error))
        self.check_unchanged()
        for port in (8081, 8082):
            self.lab.reactor.listenTCP(port, Factory())

    def test_unusable_users(self) -> None:
        """Nor has anything changed when a users file is of no use."""
        users = Path(self.mktemp()).absolute()
        users.write_text("alice:plain\n")
        self.assertRaises(AccountsError, self.reload, self.other + f"[users]\nfile = {users}\n")
        self.check_unchanged()

    def test_accounts(self) -> None:
        """Accounts come and go with the configuration."""
        users = Path(self.mktemp()).absolute()
        users.write_text("alice:$2b$04$ZtohShRF77OBDVMfAPRqD.XtIu2hqLreYgPsVkozy/hYAZJ8ZNXKG\n")
        with_users = CONFIG + f"users = alice\n[users]\nfile = {users}\nrealm = logs\n"
        client = self.lab.connect("http")
        self.reload(with_users)
        client.send(GET)
        self.assertIn(b'\r\nProxy-Authenticate: Basic realm="logs"', client.received())
        self.reload(CONFIG)
        client.send(GET)
        self.records.expect({"status": 407, "decision": "challenge"}, {"status": 502, "error": "dns_error"})

    def test_not_running(self) -> None:
        """Only a proxy that listens can be reloaded."""
        config = Config.from_string(CONFIG)
        self.assertRaises(RuntimeError, Proxy(self.lab.reactor, config).reload, config)

    def test_stopping(self) -> None:
        """One that stops does not open listeners again."""
        self.tunnel()
        self.lab.proxy.stopService()
        self.assertRaises(RuntimeError, self.lab.proxy.reload, Config.from_string(self.moved))

    def test_reload_while_dialing(self) -> None:
        """A flow that is still being connected is decided on by the new policy when it is."""
        origin = self.lab.origin("www.example.com", 443)
        origin.connect_delay = 1
        client = self.lab.connect("http")
        client.send(CONNECT)
        self.reload(self.other)
        self.lab.advance(1)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 403 Forbidden\r\n"))
        self.assertIs(origin.connection.ending, Ending.RESET)
        self.records.expect({"status": 403, "error": "http_request_denied", "address": None})


class Echo(Protocol):
    """An origin that says what it hears."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


REAL = """
[proxyd]
access_log_json = {log}
access_log_flush = 0
{settings}
[listener:http]
endpoint = tcp:0:interface=127.0.0.1
accept = forward connect
[rule:here]
action = allow
destinations = localhost 127.0.0.1
ports = *
special_addresses = yes
"""


class SocketTests(TestCase):
    """A proxy with everything of its own: sockets, threads, files."""

    timeout = 30

    def setUp(self) -> None:
        self.log = Path(self.mktemp()).absolute()
        origin = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
        self.addCleanup(origin.stopListening)
        self.port = origin.getHost().port

    async def start(self, settings: str = "") -> None:
        """Start the proxy."""
        self.proxy = Proxy(reactor, Config.from_string(REAL.format(log=self.log, settings=settings)))
        self.addCleanup(self.proxy.stopService)
        self.address = (await self.proxy.listen())["http"]

    async def tunnel(self, host: str = "127.0.0.1") -> Talk:
        """A tunnel to the origin, which has answered."""
        client = await connect(self.address)
        self.addCleanup(client.transport.abortConnection)
        client.transport.write(f"CONNECT {host}:{self.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await client.until(OPEN)
        await self.check_works(client)
        return client

    async def check_works(self, tunnel: Talk) -> None:
        """What is sent comes back."""
        tunnel.received = b""
        tunnel.transport.write(b"ping")
        await tunnel.until(b"ping")

    def descriptors(self) -> set[str]:
        """What is open in this process."""
        with os.scandir("/proc/self/fd") as entries:
            return {os.readlink(entry.path) for entry in entries if os.path.lexists(entry.path)}

    def records(self) -> list[dict[str, Any]]:
        """What the access log says."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def test_from_start_to_stop(self) -> None:
        """A tunnel is resolved, dialled, relayed and recorded; when the proxy has stopped, no descriptor is left."""
        await deferLater(reactor, 0)  # the reactor itself opens some when it begins to run
        before = self.descriptors()
        await self.start()
        client = await self.tunnel("localhost")
        client.transport.loseConnection()
        await client.closed
        await self.proxy.stopService()
        [record] = self.records()
        expected = {"destination": f"localhost:{self.port}", "rule": "here", "status": 200, "closed_by": "client"}
        self.assertEqual({name: record[name] for name in expected}, expected)
        self.assertEqual(self.descriptors() - before, set())

    async def test_deadline(self) -> None:
        """A tunnel that is left at the deadline is cut, and its record is in the log when the proxy has stopped."""
        await self.start("drain_timeout = 0")
        client = await self.tunnel()
        await self.proxy.stopService()
        await client.closed
        self.assertEqual([record["error"] for record in self.records()], ["connection_terminated"])

    async def test_reopened_log(self) -> None:
        """A log that was rotated is opened again."""
        await self.start()
        rotated = self.log.with_suffix(".1")
        self.log.rename(rotated)
        self.proxy.reopen_logs()
        client = await self.tunnel()
        client.transport.loseConnection()
        await client.closed
        await self.proxy.stopService()
        self.assertEqual((len(self.records()), rotated.read_text()), (1, ""))

    async def test_inherited(self) -> None:
        """A listener may have its socket from elsewhere, once: when it is started again it opens one of its own."""
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = Config.from_string(REAL.format(log=self.log, settings=""))
        self.proxy = Proxy(reactor, config, inherited={"http": listening.detach()})
        self.addCleanup(self.proxy.stopService)
        self.address = (await self.proxy.listen())["http"]
        self.assertEqual(self.address, IPv4Address("TCP", "127.0.0.1", port))
        client = await self.tunnel()
        client.transport.abortConnection()
        await self.proxy.stopService()
        self.address = (await self.proxy.listen())["http"]
        await self.tunnel()

    async def test_no_descriptors(self) -> None:
        """When descriptors run out new clients are turned away and requests get 503; live tunnels do not notice."""
        await self.start("upstream_idle_connections = 0")
        tunnel = await self.tunnel()
        waiting = await connect(self.address)
        self.addCleanup(waiting.transport.abortConnection)
        newcomer = socket.socket()
        self.addCleanup(newcomer.close)
        await deferLater(reactor, 0.05)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 32, limits[1]))
        hoard = self.hoard()
        try:
            newcomer.connect(("127.0.0.1", self.address.port))  # type: ignore[attr-defined]
            newcomer.setblocking(False)
            waiting.transport.write(f"GET http://127.0.0.1:{self.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self.assertIn(b"503 Service Unavailable", await waiting.until(b"connection_limit_reached"))
            self.assertEqual(await self.read(newcomer), b"")
            await self.check_works(tunnel)
        finally:
            while hoard:
                os.close(hoard.pop())
        await self.tunnel()

    def hoard(self) -> list[int]:
        """All descriptors that there are."""
        hoard: list[int] = []
        try:
            while True:
                hoard.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return hoard

    async def read(self, sock: socket.socket) -> bytes:
        """What comes first on a socket; nothing, if it is closed."""
        while True:
            try:
                return sock.recv(100)
            except BlockingIOError:
                await deferLater(reactor, 0.01)
            except ConnectionResetError:
                return b""


class FaultTests(LabTestCase):
    """What is wrong with others is not the service's problem."""

    def test_client_that_breaks_off(self) -> None:
        """A client that breaks off while the proxy stops is one less to wait for."""
        self.lab.origin("www.example.com", 443)
        client = self.lab.connect("http", faults=Faults(reset_at=len(CONNECT) + 1))
        client.send(CONNECT)
        stopping = self.lab.proxy.stopService()
        client.send(b"xyz")
        self.lab.advance(0.2)
        self.successResultOf(stopping)
        self.records.expect(TUNNEL | {"error": "client_disconnected", "closed_by": "client"})
