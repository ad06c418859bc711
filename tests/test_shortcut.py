"""Tests for ``proxyd.frontends.shortcut``: long bodies between real sockets, moved by the kernel, in one thread.

Tunnels that begin with an Upgrade are here too, as they are between the same sockets.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client
from proxyd.frontends.arrival import arrive
from proxyd.frontends.shortcut import SPLICE_FROM, take_shortcut
from proxyd.net.connection import Connection
from proxyd.net.linger import GONE
from proxyd.net.readiness import Readiness
from proxyd.net.splice import Pipe, Pipes, Splicer
from proxyd.net.splice_relay import SpliceRelay
from proxyd.net.transport import Stream
from proxyd.request import IPAddress
from proxyd.wire.body import Body
from proxyd.wire.framing import Framing
from tests.doors import GET, OK, DoorCase, Memory
from tests.test_http import answers
from tests.test_response import SAID_SWITCHING, SWITCHING, UPGRADE

MEGABYTE = bytes(range(256)) * 4096
UPLOAD = b"POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\nContent-Length: 1048576\r\n"
DOWNLOAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n"


@implementer(IReactorFDSet)
class Descriptors(Clock):
    """A reactor that watches nothing: the test looks at the sockets itself."""

    def addReader(self, reader: Any) -> None:
        """The readiness wants to be called."""

    def removeReader(self, reader: Any) -> None:
        """No more."""

    addWriter = addReader
    removeWriter = removeReader

    def removeAll(self) -> list[Any]:
        """There are none."""
        return []

    getReaders = removeAll
    getWriters = removeAll


class Far:
    """The other end of a connection: a plain socket that sends and reads when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.reading = True
        self.ended = self.broken = False
        self._heard = b""
        self._to_say = b""

    def says(self, data: bytes) -> None:
        """Send, as fast as the other side takes it."""
        self._to_say += data

    def closes(self) -> None:
        """Send FIN."""
        self.socket.shutdown(socket.SHUT_WR)

    def resets(self) -> None:
        """Break the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    @property
    def heard(self) -> bytes:
        """What it has got since it was asked last."""
        heard, self._heard = self._heard, b""
        return heard

    def work(self) -> None:
        """Send and read what can be."""
        if self.socket.fileno() < 0:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                while self._to_say:
                    self._to_say = self._to_say[self.socket.send(self._to_say[:65536]) :]
            with contextlib.suppress(BlockingIOError):
                while self.reading and (data := self.socket.recv(65536)):
                    self._heard += data
                self.ended = self.reading
        except OSError:
            self.broken = True


class NoPipes(Pipes):
    """What is left when descriptors have run out."""

    def take(self) -> Pipe:
        """There is none."""
        raise OSError(errno.EMFILE, "Too many open files")


class CountedPipes(Pipes):
    """Says how often one was wanted."""

    taken = 0

    def take(self) -> Pipe:
        """One more."""
        self.taken += 1
        return super().take()


class ShortcutCase(DoorCase):
    """Clients and origins on loopback."""

    clock: Descriptors

    def make_clock(self) -> Clock:
        return Descriptors()

    def setUp(self) -> None:
        if not Splicer.available() or not Readiness.available(Descriptors()):
            self.skipTest("the kernel cannot splice")
        super().setUp()
        self.readiness = Readiness(self.clock)
        self.addCleanup(self.readiness.stop)
        self.egress.splicer = Splicer(self.clock, self.readiness)
        self.addCleanup(self.egress.splicer.stop)
        self.egress.dialer = self  # type: ignore[assignment]
        self.ends: list[Far] = []

    def pair(self, connection: Connection) -> Far:
        """Connect it to somebody."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            far = socket.create_connection(server.getsockname())
            near, _ = server.accept()
        near.setblocking(False)
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.addCleanup(far.close)
        Stream(near, connection, self.clock, self.readiness).begin()
        self.ends.append(Far(far))
        return self.ends[-1]

    def dial(
        self, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], Connection], timeout: float
    ) -> Deferred[tuple[Connection, IPAddress]]:
        """The dialer of these tests."""
        connection = protocol()
        self.upstream = self.pair(connection)
        return succeed((connection, addresses[0]))

    def client(self) -> Far:
        """A client that has just connected."""
        connection = Connection()
        client = self.pair(connection)
        arrive(connection, Client(self.listener, ip_address("192.0.2.9"), 50000), self.egress, None)
        connection.transport.resumeProducing()
        return client

    def work(self) -> None:
        """Let everybody do what can be done."""
        for _ in range(200):
            for end in self.ends:
                end.work()
            self.readiness.doRead()
            self.clock.advance(0)

    def asked(self, request: bytes) -> tuple[Far, Far]:
        """A client that has asked, and the origin that has heard it."""
        client = self.client()
        client.says(request)
        self.work()
        return client, self.upstream


class UploadTests(ShortcutCase):
    """Bodies of requests."""

    def test_moved(self):
        """A long body arrives as it was, with the next request behind it, and is counted to the byte."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE + GET)
        head, _, body = origin.heard.partition(b"\r\n\r\n")
        self.assertEqual(body, MEGABYTE)
        origin.says(OK)
        self.work()
        self.assertEqual(answers(client.heard), [200])
        self.assertEqual(origin.heard[:4], b"GET ")
        self.assertEqual(self.outcome("bytes_from_client", "error"), [(len(UPLOAD) + 2 + len(MEGABYTE), None)])
        client.resets()
        self.work()

    def test_moved_again(self):
        """The kernel moves the body of every request on a connection, and not of the first alone."""
        post = b"POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\nContent-Length: 160000\r\n\r\n"
        self.egress.splicer.pipes = pipes = CountedPipes()
        client, origin = self.asked(post + bytes(160_000))
        self.assertEqual(origin.heard.partition(b"\r\n\r\n")[2], bytes(160_000))
        taken = pipes.taken
        self.assertGreater(taken, 0)
        origin.says(OK)
        self.work()
        client.says(post + bytes(160_000))
        self.work()
        self.assertGreater(pipes.taken, taken)
        self.assertEqual(origin.heard.partition(b"\r\n\r\n")[2], bytes(160_000))
        origin.says(OK)
        self.work()
        self.assertEqual(answers(client.heard), [200, 200])
        client.resets()
        self.work()

    def test_expected(self):
        """A body that comes by itself is not asked for, however it is moved."""
        client, origin = self.asked(UPLOAD + b"Expect: 100-continue\r\n\r\n")
        client.says(MEGABYTE)
        self.work()
        self.clock.advance(1)
        self.work()
        self.assertEqual(client.heard, b"")
        self.assertEqual(origin.heard.partition(b"\r\n\r\n")[2], MEGABYTE)
        client.resets()
        self.work()

    def test_not_retried(self):
        """A request of whose body the kernel has moved a part is not sent again without it."""
        client, origin = self.asked(GET)
        origin.says(OK)
        self.work()
        client.says(UPLOAD.replace(b"POST", b"PUT") + b"Expect: 100-continue\r\n\r\n")
        self.work()
        client.says(MEGABYTE[:100_000])
        self.work()
        self.assertIs(self.upstream, origin)
        origin.closes()
        self.work()
        self.assertEqual(answers(client.heard), [200, 502])
        self.assertIs(self.upstream, origin)
        self.assertEqual(self.records[-1].error, "connection_terminated")
        client.resets()
        self.work()

    def test_slow_origin(self):
        """While the origin does not read, the client cannot send; then the origin is to blame: 504."""
        client, origin = self.asked(UPLOAD.replace(b"1048576", b"100000000") + b"\r\n")
        origin.reading = False
        client.says(MEGABYTE * 20)
        self.work()
        self.assertGreater(len(client._to_say), 0)
        (flow,) = self.egress.flows.values()
        self.assertLess(flow.record.bytes_from_client, len(MEGABYTE))
        self.clock.pump([10.0] * 70)
        self.work()
        self.assertEqual(answers(client.heard), [504])
        self.assertEqual(self.outcome("error"), [("connection_write_timeout",)])

    def test_slow_origin_without_pipe(self):
        """So it is when descriptors have run out, and nothing can be held for the origin."""
        assert self.egress.splicer is not None
        self.egress.splicer.pipes = NoPipes()
        client, origin = self.asked(UPLOAD.replace(b"1048576", b"100000000") + b"\r\n")
        origin.reading = False
        client.says(MEGABYTE * 20)
        self.work()
        self.clock.pump([10.0] * 70)
        self.work()
        self.assertEqual(answers(client.heard), [504])
        self.assertEqual(self.outcome("error"), [("connection_write_timeout",)])

    def test_slow_client(self):
        """A client that stops in the middle is to blame: 408."""
        client, _ = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        self.clock.pump([10.0] * 70)
        self.work()
        self.assertEqual(answers(client.heard), [408])
        self.assertEqual(self.outcome("bytes_from_client"), [(len(UPLOAD) + 2 + 500_000,)])

    def test_client_closes(self):
        """One that says FIN in the middle has left."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        client.closes()
        self.work()
        self.assertTrue(client.broken)
        self.assertTrue(origin.broken)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")])

    def test_client_resets(self):
        """So has one that resets."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        client.resets()
        self.work()
        self.assertTrue(origin.broken)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")])

    def test_origin_resets(self):
        """An origin that resets in the middle is a 502; what the client still sends is thrown away."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        origin.resets()
        client.says(MEGABYTE[500_000:])
        self.work()
        self.assertEqual(answers(client.heard), [502])
        self.assertEqual(self.outcome("error", "closed_by"), [("connection_terminated", "proxy")])
        client.resets()
        self.work()

    def test_origin_resets_first(self):
        """It does not matter whether that is found by writing or by reading."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        client.says(MEGABYTE[500_000:600_000])
        client.work()
        origin.resets()
        self.work()
        client.says(MEGABYTE[600_000:])
        self.work()
        self.assertEqual(answers(client.heard), [502])
        self.assertEqual(self.outcome("error"), [("connection_terminated",)])
        client.resets()
        self.work()

    def test_answered_early(self):
        """An answer that comes while the body moves is relayed; then both connections end."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        origin.says(OK.replace(b"200 OK", b"413 No"))
        self.work()
        heard = client.heard
        self.assertEqual(answers(heard), [413])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(client.ended)
        self.assertTrue(origin.broken)
        self.assertEqual(self.outcome("status", "error"), [(413, None)])

    def test_origin_resets_behind_an_early_answer(self):
        """An early answer that would end with the connection, and breaks off, is no complete one."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        origin.says(b"HTTP/1.1 200 OK\r\n\r\nhalf of the ans")
        self.work()
        client.says(MEGABYTE[500_000:600_000])
        client.work()  # so that the reset is found by writing
        origin.resets()
        self.work()
        self.assertTrue(client.heard.endswith(b"\r\nf\r\nhalf of the ans\r\n"))
        self.assertTrue(client.broken)
        self.assertEqual(self.outcome("status", "error", "closed_by"), [(200, "http_response_incomplete", "origin")])

    def test_killed(self):
        """A body that moves is ended from outside with everything else."""
        client, origin = self.asked(UPLOAD + b"\r\n" + MEGABYTE[:500_000])
        (flow,) = self.egress.flows.values()
        flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        self.work()
        self.assertEqual(answers(client.heard), [502])
        self.assertTrue(origin.broken)
        self.assertEqual(
            self.outcome("error", "closed_by", "bytes_from_client"),
            [("connection_terminated", "proxy", len(UPLOAD) + 2 + 500_000)],
        )


class ResponseTests(ShortcutCase):
    """Bodies of responses."""

    def test_moved(self):
        """A long body arrives as it was, is counted to the byte, and both connections can be used again."""
        client, origin = self.asked(GET)
        origin.says(DOWNLOAD + MEGABYTE)
        self.work()
        self.assertEqual(client.heard.partition(b"\r\n\r\n")[2], MEGABYTE)
        client.says(GET)
        self.work()
        self.assertIs(self.upstream, origin)
        origin.says(OK)
        self.work()
        self.assertEqual(answers(client.heard), [200])
        self.assertEqual(
            self.outcome("bytes_to_client", "reused"), [(len(DOWNLOAD) + len(MEGABYTE), False), (len(OK), True)]
        )

    def test_slow_client(self):
        """While the client does not read, the origin cannot send; if that lasts the client is to blame."""
        client, origin = self.asked(GET)
        client.reading = False
        origin.says(DOWNLOAD.replace(b"1048576", b"100000000") + MEGABYTE * 20)
        self.work()
        self.assertGreater(len(origin._to_say), 0)
        self.clock.pump([10.0] * 70)
        self.work()
        self.assertTrue(origin.broken)
        self.assertEqual(self.outcome("status", "error"), [(200, "connection_write_timeout")])

    def test_slow_origin(self):
        """An origin that stops in the middle is to blame."""
        client, origin = self.asked(GET)
        origin.says(DOWNLOAD + MEGABYTE[:500_000])
        self.work()
        self.clock.pump([10.0] * 70)
        self.work()
        self.assertTrue(client.broken)
        self.assertEqual(
            self.outcome("error", "bytes_to_client"), [("connection_read_timeout", len(DOWNLOAD) + 500_000)]
        )

    def test_truncated(self):
        """A body that breaks off breaks the client's connection too, whether by FIN or by reset."""
        for end in (Far.closes, Far.resets):
            client, origin = self.asked(GET)
            origin.says(DOWNLOAD + MEGABYTE[:500_000])
            self.work()
            end(origin)
            self.work()
            self.assertLess(len(client.heard), len(MEGABYTE))
            self.assertTrue(client.broken)
            self.assertEqual(
                (self.records[-1].error, self.records[-1].closed_by), ("http_response_incomplete", "origin")
            )

    def test_client_resets(self):
        """A client that leaves in the middle ends it, also if it did not read."""
        for reading in (True, False):
            client, origin = self.asked(GET)
            client.reading = reading
            origin.says(DOWNLOAD.replace(b"1048576", b"100000000") + MEGABYTE * 20)
            self.work()
            client.resets()
            origin.says(MEGABYTE)
            self.work()
            self.assertTrue(origin.broken)
            self.assertEqual((self.records[-1].error, self.records[-1].closed_by), ("client_disconnected", "client"))

    def test_client_resets_first(self):
        """It does not matter whether that is found by writing or by reading."""
        client, origin = self.asked(GET)
        origin.says(DOWNLOAD + MEGABYTE[:500_000])
        self.work()
        origin.says(MEGABYTE[500_000:600_000])
        origin.work()
        client.resets()
        self.work()
        self.assertTrue(origin.broken)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")])


class UpgradeTests(ShortcutCase):
    """Connections that switch to another protocol."""

    def test_switched(self):
        """After a 101 the kernel moves the bytes, behind those that were early, and each side may end by itself."""
        client, origin = self.asked(UPGRADE + b"early")
        self.assertNotIn(b"early", origin.heard)
        origin.says(SWITCHING + b"at once")
        self.work()
        (flow,) = self.egress.flows.values()
        self.assertIsInstance(flow.relay, SpliceRelay)
        self.assertEqual((client.heard, origin.heard), (SAID_SWITCHING + b"at once", b"early"))
        for source, sink, data in ((client, origin, MEGABYTE), (origin, client, MEGABYTE[:-1])):
            self.assertFalse(sink.ended)
            source.says(data)
            self.work()
            source.closes()
            self.work()
            self.assertTrue(sink.ended)
            self.assertTrue(sink.heard == data)
        self.assertEqual(
            self.outcome("status", "bytes_from_client", "bytes_to_client", "error", "closed_by"),
            [(101, len(UPGRADE) + 5 + len(MEGABYTE), len(SWITCHING) + 7 + len(MEGABYTE) - 1, None, "client")],
        )

    def test_reset(self):
        """A reset behind it is told as such, and is one for the other side."""
        client, origin = self.asked(UPGRADE)
        origin.says(SWITCHING)
        self.work()
        origin.resets()
        self.work()
        self.assertTrue(client.broken)
        self.assertEqual(self.outcome("status", "error", "closed_by"), [(101, "connection_terminated", "origin")])


class TakeShortcutTests(ShortcutCase):
    """`take_shortcut`: when there is one."""

    def shortcut(self, body: Body, source: Any, sink: Any) -> Any:
        """Take it."""
        return take_shortcut(self.egress, source, sink, body, None)  # type: ignore[arg-type]

    def test_not_worth_it(self):
        """Not for what is short, or of unknown length, or where one end is no plain socket, or nothing can splice."""
        near, far = Connection(GONE), Connection(GONE)
        self.pair(near)
        self.pair(far)
        long = Body(Framing.LENGTH, SPLICE_FROM)
        self.assertIsNone(self.shortcut(Body(Framing.LENGTH, SPLICE_FROM - 1), near.transport, far.transport))
        self.assertIsNone(self.shortcut(Body(Framing.CHUNKED), near.transport, far.transport))
        self.assertIsNone(self.shortcut(Body(Framing.CLOSE), near.transport, far.transport))
        self.assertIsNone(self.shortcut(long, Memory(self.clock, near), far.transport))
        transfer = self.shortcut(long, near.transport, far.transport)
        self.assertEqual(transfer.left, SPLICE_FROM)
        transfer.stop()
        self.egress.splicer = None
        self.assertIsNone(self.shortcut(long, near.transport, far.transport))
