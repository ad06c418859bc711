"""Tests for proxyd.entrance."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.certificates import SelfSigned
from proxyd.config import Config
from proxyd.entrance import COMPLAIN_AGAIN, MOST_TURNED, Entrance
from proxyd.equipment import Equipment, Replacements
from proxyd.net.deadlines import Deadline, Deadlines
from proxyd.net.readiness import Readiness, Watch
from proxyd.net.transport import Stream
from proxyd.testing import Ending, Faults, Lab, Peer, RecordList, StaticResolver
from tests.loopback import connect

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nProxy-Status: proxyd; error=connection_limit_reached\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
CONFIG = """
[proxyd]
max_connections = {most}
max_connections_per_client = {most_per_client}

[listener:http]
endpoint = tcp:8080
accept = forward connect

[listener:socks]
endpoint = tcp:1080
accept = socks5

[listener:all]
endpoint = tcp:9000
accept = forward connect socks5
detect = yes

[listener:tls]
endpoint = ssl:8443:privateKey={directory}/proxyd-key.pem:certKey={directory}/proxyd-cert.pem
accept = forward connect

[listener:local]
endpoint = unix:/run/proxyd.sock
accept = forward connect

[listener:balanced]
endpoint = haproxy:tcp:9001
accept = forward connect
"""
RULE = """
[rule:all]
action = allow
destinations = *
"""


class EntranceTests(SynchronousTestCase):
    """Clients come in as long as there is room."""

    def start(self, most: int = 0, most_per_client: int = 0) -> Lab:
        """A lab with these limits."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        SelfSigned.make(["proxy.example.com"], datetime.datetime.now(datetime.UTC)).write(directory)
        lab = Lab(CONFIG.format(most=most, most_per_client=most_per_client, directory=directory) + RULE)
        self.addCleanup(lab.stop)
        return lab

    def check_turned(self, client: Peer, answer: bytes = b"") -> None:
        """The client was not let in: that is said, or not, and no more will be."""
        self.assertEqual((client.received(), client.ending), (answer, Ending.FIN))

    def check_in(self, client: Peer) -> None:
        """The client may stay."""
        self.assertEqual((client.received(), client.ending), (b"", Ending.OPEN))

    def test_limit(self) -> None:
        """So many clients are let in, all listeners together; one more is turned away until another leaves."""
        lab = self.start(most=2)
        first, second = lab.connect("http"), lab.connect("socks", "192.0.2.8")
        self.check_turned(lab.connect("http", "192.0.2.9"), BUSY)
        self.check_in(first)
        self.check_in(second)
        second.close()
        self.check_in(lab.connect("http", "192.0.2.9"))

    def test_limit_per_client(self) -> None:
        """So many clients of one address are let in; those of others do not suffer from it."""
        lab = self.start(most_per_client=1)
        first = lab.connect("http")
        self.check_turned(lab.connect("http"), BUSY)
        self.check_in(lab.connect("http", "192.0.2.8"))
        first.reset()
        self.check_in(lab.connect("http"))

    def test_mapped_address(self) -> None:
        """A client that comes by IPv4 to an IPv6 socket is one with its IPv4 self."""
        lab = self.start(most_per_client=1)
        self.check_in(lab.connect("http", "192.0.2.7"))
        self.check_turned(lab.connect("http", "::ffff:192.0.2.7"), BUSY)

    def test_no_limit(self) -> None:
        """Without limits of their own clients are counted against the limit on descriptors alone."""
        lab = self.start()
        self.assertEqual({lab.connect("http").ending for _ in range(50)}, {Ending.OPEN})

    def test_busy(self) -> None:
        """The 503 arrives though the client goes on sending, and the connection ends soon."""
        lab = self.start(most_per_client=1)
        lab.connect("http")
        client = lab.connect("http", faults=Faults(delay=0.1))
        client.send(b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
        lab.advance(0.1)
        self.check_turned(client, BUSY)
        client.half_close()
        lab.advance(1)
        self.assertRaises(BrokenPipeError, client.send, b"more")
        lab.records.expect()

    def test_not_plain_http(self) -> None:
        """Who may speak SOCKS5 or TLS is just closed: nobody knows what would be understood."""
        lab = self.start(most_per_client=1)
        lab.connect("http")
        for listener in ("socks", "all", "tls"):
            self.check_turned(lab.connect(listener))

    def test_storm(self) -> None:
        """When too many are being told, the others are just closed."""
        lab = self.start(most_per_client=1)
        lab.connect("http")
        told = [lab.connect("http") for _ in range(MOST_TURNED)]
        self.check_turned(told[-1], BUSY)
        self.check_turned(lab.connect("http"))
        told[0].close()
        self.check_turned(lab.connect("http"), BUSY)

    def test_unix(self) -> None:
        """Clients on a Unix socket have no address to be counted by, but count."""
        lab = self.start(most=2, most_per_client=1)
        self.check_in(lab.connect("local"))
        self.check_in(lab.connect("local"))
        self.check_turned(lab.connect("local"), BUSY)

    def test_balancer(self) -> None:
        """Behind a balancer the address is the balancer's, whose clients are not one client."""
        lab = self.start(most_per_client=1)
        self.check_in(lab.connect("balanced"))
        self.check_in(lab.connect("balanced"))

    def test_complaints(self) -> None:
        """Refused clients are told in the log, but not each of them."""
        lab = self.start(most_per_client=1)
        lab.connect("http")
        with capturedLogs() as events:
            lab.connect("http")
            lab.connect("http")
            lab.advance(COMPLAIN_AGAIN)
            lab.connect("http")
        told = [(event["own"], event["refused"]) for event in events if "refused" in event]
        self.assertEqual(told, [(1, 1), (1, 3)])

    def test_dismissed(self) -> None:
        """When the proxy stops, clients that wait are closed, also in a TLS handshake, and inside TLS."""
        lab = self.start()
        waiting = [lab.connect("http"), lab.connect("tls"), lab.connect("tls"), lab.connect("all")]
        waiting[2].start_tls()
        lab.result_of(lab.proxy.stopService())
        self.assertEqual([client.ending for client in waiting], [Ending.FIN] * 4)
        self.assertLess(lab.reactor.seconds(), 1)

    def test_last_words(self) -> None:
        """Those who are just being told their last words may read them first, also inside TLS."""
        lab = self.start()
        refused = [lab.connect("http"), lab.connect("tls")]
        refused[1].start_tls()
        for client in refused:
            client.send(b"nonsense\r\n\r\n")
        stopping = lab.proxy.stopService()
        lab.advance(0.5)
        for client in refused:
            self.assertTrue(client.received().startswith(b"HTTP/1.1 400 Bad Request\r\n"))
            self.assertNoResult(stopping)
            client.close()
            lab.advance(0.5)
        self.successResultOf(stopping)
        lab.records.expect({"status": 400}, {"status": 400})


class FailingDeadlines(Deadlines):
    """Deadlines of which none can be set, so that no door can be made."""

    def after(self, seconds: float, call: Callable[[], object]) -> Deadline:
        raise ZeroDivisionError


class FullReadiness(Readiness):
    """An epoll set with room for one socket."""

    def change(self, watch: Watch, mask: int) -> None:
        if watch.mask < 0 and self._watches:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().change(watch, mask)


class AcceptTests(TestCase):
    """Clients on real sockets."""

    timeout = 20

    def setUp(self) -> None:
        self.records = RecordList()
        self.config = Config.from_string(CONFIG.split("[listener:tls]")[0].format(most=1, most_per_client=0) + RULE)
        self.equipment = Equipment(reactor, Replacements(self.records, resolver=StaticResolver()))
        self.equipment.adopt(self.equipment.prepare(self.config))
        self.addCleanup(self.equipment.stop)

    def listen(self, kernel: bool, listen: Any, *arguments: Any, **options: Any) -> IListeningPort:
        """A port that real clients can connect to; with or without an epoll set of our own."""
        readiness = self.equipment.readiness if kernel else None
        entrance = Entrance(self.config.listeners[0], self.equipment.egress, self.equipment.crowd, readiness, None)
        port = listen(*arguments, factory=entrance, **options)
        self.addCleanup(port.stopListening)
        entrance.accept_streams(port)
        self.addCleanup(entrance.stop_accepting)
        self.addCleanup(entrance.stop_accepting)
        return port

    async def ask(self, port: IListeningPort) -> object:
        """Ask for what cannot be resolved; the transport of the client's connection in the proxy."""
        client = await connect(port.getHost())
        client.transport.write(b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
        self.assertIn(b"502 Bad Gateway", await client.until(b"\r\n\r\n"))
        [visitor] = self.equipment.crowd.present
        transport = visitor.transport
        client.transport.loseConnection()
        while self.equipment.crowd.present:
            await deferLater(reactor, 0.01)
        return transport

    async def test_stream(self) -> None:
        """A client's socket becomes a `Stream`, which sends at once and notices dead peers."""
        port = self.listen(True, reactor.listenTCP, 0, interface="127.0.0.1")
        client = await connect(port.getHost())
        client.transport.write(b"GET ")
        while not self.equipment.crowd.present:
            await deferLater(reactor, 0)
        [visitor] = self.equipment.crowd.present
        options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        self.assertIsInstance(visitor.transport, Stream)
        self.assertTrue(all(visitor.transport.socket.getsockopt(*option) for option in options))
        local = client.transport.getHost()
        client.transport.write(b"nonsense\r\n\r\n")
        await client.closed
        self.records.expect({"client": "127.0.0.1", "client_port": local.port, "status": 400})

    async def test_bulk_read(self) -> None:
        """What it reads at once is half of what may be held for a flow."""
        egress = self.equipment.egress
        egress.settings = dataclasses.replace(egress.settings, buffer_size=65536)
        transport = await self.ask(self.listen(True, reactor.listenTCP, 0, interface="127.0.0.1"))
        assert isinstance(transport, Stream)
        self.assertEqual(transport.bulk_read, 32768)

    async def test_unix(self) -> None:
        """So does one on a Unix socket, whose client has no address."""
        path = self.mktemp()
        transport = await self.ask(self.listen(True, reactor.listenUNIX, path))
        self.assertIsInstance(transport, Stream)
        self.records.expect({"client": "", "client_port": 0})

    async def test_foreign_reactor(self) -> None:
        """Without an epoll set of our own Twisted's transports do."""
        transport = await self.ask(self.listen(False, reactor.listenTCP, 0, interface="127.0.0.1"))
        self.assertNotIsInstance(transport, Stream)
        self.records.expect({"client": "127.0.0.1", "error": "dns_error"})

    async def test_busy(self) -> None:
        """A client that was not let in can read why, whatever it has sent before."""
        port = self.listen(True, reactor.listenTCP, 0, interface="127.0.0.1")
        first = await connect(port.getHost())
        self.addCleanup(first.transport.abortConnection)
        second = await connect(port.getHost())
        second.transport.write(b"POST http://a.example/ HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(100000))
        self.assertEqual(await second.closed, BUSY)

    async def check_counted_out(self, port: IListeningPort, error: type[Exception]) -> None:
        """A client whose accept fails is closed and counted out, and that is logged once."""
        client = await connect(port.getHost())
        await client.closed
        self.assertEqual(self.equipment.crowd.present, set())
        self.assertEqual(len(self.flushLoggedErrors(error)), 1)

    async def test_failing(self) -> None:
        """If the code that lets a client in fails, the client is closed; there is room for the next one."""
        deadlines = self.equipment.egress.deadlines
        for kernel in (True, False):
            port = self.listen(kernel, reactor.listenTCP, 0, interface="127.0.0.1")
            self.equipment.egress.deadlines = FailingDeadlines(reactor)
            await self.check_counted_out(port, ZeroDivisionError)
            self.equipment.egress.deadlines = deadlines
            await self.ask(port)

    async def test_no_room_in_the_epoll_set(self) -> None:
        """So it is with a client that the kernel does not let us watch, accepted or turned away."""
        roomy, self.equipment.readiness = self.equipment.readiness, FullReadiness(reactor)
        assert roomy is not None
        self.addCleanup(roomy.stop)
        port = self.listen(True, reactor.listenTCP, 0, interface="127.0.0.1")
        await self.check_counted_out(port, OSError)
        self.equipment.crowd.most = 0
        await self.check_counted_out(port, OSError)
        self.assertEqual(self.equipment.crowd.turned, set())
