"""Tests for proxyd.net.tunnel."""

from __future__ import annotations

import contextlib
import socket
from unittest import SkipTest

from twisted.internet.testing import StringTransport

from proxyd.errors import ErrorType
from proxyd.net.connection import Connection
from proxyd.net.copy_relay import CopyRelay
from proxyd.net.deadlines import Deadlines
from proxyd.net.relay import Limits, Relay
from proxyd.net.splice import Splicer
from proxyd.net.splice_relay import SpliceRelay
from proxyd.net.transport import Stream
from proxyd.net.tunnel import open_tunnel

from .turning import StreamCase, drained, reset

LIMITS = Limits(idle=600, lifetime=86400, buffer_size=65536)
BULK = bytes(range(251)) * 8009


class OpenTunnelTests(StreamCase):
    """Which way a tunnel's bytes go."""

    def setUp(self) -> None:
        if not Splicer.available():
            raise SkipTest("this platform cannot splice")
        super().setUp()
        self.splicer = Splicer(self.reactor, self.readiness)
        self.addCleanup(self.splicer.stop)
        self.deadlines = Deadlines(self.reactor)
        self.ended: list[Relay] = []
        self.client, self.client_end = self.connection()
        self.origin, self.origin_end = self.connection()

    def connection(self) -> tuple[Connection, socket.socket]:
        """A connection without a receiver yet, and the socket at its far end."""
        near, far = self.sockets()
        connection = Connection()
        Stream(near, connection, self.reactor, self.readiness).begin()
        return connection, far

    def open(self, splicer: Splicer | None, early: bytes = b"") -> Relay:
        """Open the tunnel between the two."""
        relay = open_tunnel(
            self.reactor, splicer, self.deadlines, self.client, self.origin, LIMITS, self.ended.append, early
        )
        self.addCleanup(relay.abort)
        return relay

    def works(self, relay: Relay, early: int = 0) -> None:
        """A tunnel carries bytes both ways."""
        self.client_end.send(b"question")
        self.turn()
        self.assertEqual(self.origin_end.recv(100)[-8:], b"question")
        self.origin_end.send(b"answer")
        self.turn()
        self.assertEqual(self.client_end.recv(100)[-6:], b"answer")
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (8 + early, 6))

    def test_sockets(self):
        """Between two sockets the kernel moves the bytes."""
        relay = self.open(self.splicer)
        self.assertIsInstance(relay, SpliceRelay)
        self.works(relay)

    def carried(self, source: socket.socket, sink: socket.socket, data: bytes) -> bytes:
        """What arrives of bytes with a FIN behind them, when that has arrived too."""
        unsent, heard = memoryview(data), b""
        while unsent:
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[source.send(unsent) :]
            self.turn()
            heard += drained(sink)
        source.shutdown(socket.SHUT_WR)
        piece = b"."
        while piece:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                piece = sink.recv(1 << 20)
                heard += piece
        return heard

    def test_unix_socket(self):
        """A client's Unix socket is as good: bulk passes both ways, each with its end, and is counted."""
        near, self.client_end = socket.socketpair(socket.AF_UNIX)
        self.addCleanup(self.client_end.close)
        near.setblocking(False)
        self.client_end.setblocking(False)
        self.client = Connection()
        Stream(near, self.client, self.reactor, self.readiness).begin()
        relay = self.open(self.splicer)
        self.assertIsInstance(relay, SpliceRelay)
        self.assertTrue(self.carried(self.client_end, self.origin_end, BULK) == BULK)
        self.assertTrue(relay.running)
        self.assertTrue(self.carried(self.origin_end, self.client_end, BULK[:-1]) == BULK[:-1])
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (len(BULK), len(BULK) - 1))
        self.assertEqual((relay.running, relay.closed_by, relay.error), (False, "client", None))

    def test_no_splice(self):
        """Where the platform cannot splice, the bytes are copied."""
        relay = self.open(None)
        self.assertIsInstance(relay, CopyRelay)
        self.works(relay)

    def test_no_socket(self):
        """Where one end is no plain socket, such as TLS, they are copied."""
        self.origin = Connection()
        self.origin.makeConnection(StringTransport())
        self.assertIsInstance(self.open(self.splicer), CopyRelay)

    def test_no_socket_at_the_client(self):
        """Whichever it is."""
        self.client = Connection()
        self.client.makeConnection(StringTransport())
        self.assertIsInstance(self.open(self.splicer), CopyRelay)

    def test_early(self):
        """What the client sent behind its handshake goes first, and counts."""
        relay = self.open(self.splicer, b"early")
        self.assertIsInstance(relay, SpliceRelay)
        self.assertEqual(self.origin_end.recv(100), b"early")
        self.works(relay, early=5)

    def test_early_and_slow(self):
        """What an origin does not take at once is not overtaken; behind it the kernel moves the bytes."""
        early = bytes(1_000_000)
        relay = self.open(self.splicer, early)
        self.assertIsInstance(relay, SpliceRelay)
        self.client_end.send(b"question")
        self.turn()
        self.assertEqual(relay.bytes_from_client, len(early))
        received = b""
        while not received.endswith(b"question"):
            received += drained(self.origin_end)
            self.turn()
        self.assertEqual(len(received), len(early) + 8)
        self.assertEqual(relay.bytes_from_client, len(early) + 8)
        self.works(relay, early=len(early) + 8)

    def test_answer_not_sent(self):
        """So it is while the answer to the client's handshake waits, and the other direction is free meanwhile."""
        self.client.transport.write(bytes(1_000_000))
        relay = self.open(self.splicer)
        self.origin_end.send(b"greeting")
        self.client_end.send(b"question")
        self.turn()
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (8, 0))
        received = b""
        while not received.endswith(b"greeting"):
            received += drained(self.client_end)
            self.turn()
        self.assertEqual(len(received), 1_000_008)

    def test_early_and_gone(self):
        """An origin that resets before it has taken the early bytes ends the tunnel."""
        relay = self.open(self.splicer, bytes(1_000_000))
        reset(self.origin_end)
        self.turn()
        self.assertEqual((relay.closed_by, relay.error), ("origin", ErrorType.CONNECTION_TERMINATED))
        self.assertEqual(self.ended, [relay])

    def test_lifetime(self):
        """Both kinds of tunnel have the limits."""
        relay = self.open(self.splicer)
        self.reactor.advance(86401)
        self.assertFalse(relay.running)
        self.assertEqual(self.ended, [relay])
