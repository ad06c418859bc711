"""Tests for ``proxyd.net.linger``."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.linger import GONE, Closing, Linger, abandon
from tests.doors import Memory


class LingerCase(SynchronousTestCase):
    """A connection that is to end."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.connection = Connection()
        self.peer = Memory(self.clock, self.connection)
        self.connection.makeConnection(self.peer)

    def turn(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([0.25] * int(seconds * 4) or [0])

    def forgotten(self) -> None:
        """Nothing is left to happen."""
        self.assertTrue(self.peer.lost)
        self.clock.pump([700, 1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LingerTests(LingerCase):
    """`Linger`: FIN first, then patience."""

    def test_peer_closes(self):
        """The FIN goes out behind what was written, and the connection closes when the peer has said FIN too."""
        self.connection.transport.write(b"last words")
        Linger(self.connection, self.deadlines)
        self.assertEqual(self.peer.heard, b"last words")
        self.assertTrue(self.peer.said_fin)
        self.assertFalse(self.peer.closing)
        self.peer.closes()
        self.turn(0)
        self.assertFalse(self.peer.aborted)
        self.forgotten()

    def test_peer_resets(self):
        """A peer that resets the connection ends it."""
        Linger(self.connection, self.deadlines)
        self.peer.resets()
        self.forgotten()

    def test_late_bytes(self):
        """What the peer still sends is read and thrown away, lest closing reset the connection."""
        Linger(self.connection, self.deadlines)
        self.peer.says(b"too late")
        self.assertTrue(self.peer.reading)
        self.peer.closes()
        self.turn(0)
        self.forgotten()

    def test_silent_peer(self):
        """A peer that does nothing is closed on after two seconds, not reset: the kernel delivers what waits there."""
        Linger(self.connection, self.deadlines)
        self.turn(1.75)
        self.assertFalse(self.peer.closing)
        self.turn(1)
        self.assertTrue(self.peer.closing)
        self.assertFalse(self.peer.aborted)
        self.forgotten()

    def test_sending_peer(self):
        """A peer that sends on, and so has not read our words yet, gets four times as long, less than ten seconds."""
        Linger(self.connection, self.deadlines)
        for _ in range(7):
            self.peer.says(b"more")
            self.turn(1)
        self.assertFalse(self.peer.closing)
        for _ in range(3):
            self.peer.says(b"more")
            self.turn(1)
        self.assertTrue(self.peer.lost)
        self.forgotten()

    def test_slow_reader(self):
        """A peer that reads slowly gets all that was written, however long that takes within reason."""
        self.peer.stalled = True
        self.connection.transport.write(b"last words")
        Linger(self.connection, self.deadlines)
        self.turn(30)
        self.assertFalse(self.peer.lost)
        self.peer.takes()
        self.assertEqual(self.peer.heard, b"last words")
        self.turn(0)
        self.assertFalse(self.peer.aborted)
        self.forgotten()


class ClosingTests(LingerCase):
    """`Closing`: no more words, but those written arrive."""

    def test_nothing_pending(self):
        """With nothing to be sent the connection just closes."""
        Closing(self.connection, self.deadlines)
        self.turn(0)
        self.assertFalse(self.peer.aborted)
        self.forgotten()

    def test_peer_never_reads(self):
        """A peer that never reads what was written is reset in the end."""
        self.peer.stalled = True
        self.connection.transport.write(b"last words")
        Closing(self.connection, self.deadlines, 10)
        self.turn(9.75)
        self.assertFalse(self.peer.lost)
        self.turn(1)
        self.assertTrue(self.peer.aborted)
        self.forgotten()


class AbandonTests(LingerCase):
    """`abandon`: a reset."""

    def test_reset(self):
        """The connection is reset, and nobody hears what it still brings."""
        abandon(self.connection)
        self.assertTrue(self.peer.aborted)
        self.connection.dataReceived(b"too late")
        self.connection.readConnectionLost()
        self.turn(0)
        self.forgotten()

    def test_gone(self):
        """Who has a connection that is gone minds nothing."""
        GONE.received(b"too late")
        GONE.read_closed()
        GONE.lost(Failure(ConnectionDone()))
