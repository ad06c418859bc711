"""Tests for ``proxyd.net.pool``."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.pool import IdlePool
from proxyd.request import Destination, IPAddress
from tests.doors import Memory
from tests.turning import reset

HERE = Destination.parse("origin.example", 80)
THERE = Destination.parse("origin.example", 8080)
ADDRESS = ip_address("203.0.113.7")
OTHER = ip_address("203.0.113.8")


def anyone(address: IPAddress) -> bool:
    """A policy without objections."""
    return True


class IdlePoolTests(SynchronousTestCase):
    """Connections to origins between two requests."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = IdlePool(self.clock, Deadlines(self.clock), idle_timeout=15, size=3)

    def give(self, destination: Destination = HERE, address: IPAddress = ADDRESS) -> Memory:
        """An origin whose connection is idle now."""
        connection = Connection()
        origin = Memory(self.clock, connection)
        connection.makeConnection(origin)
        self.pool.give(destination, connection, address)
        return origin

    def take(self, destination: Destination = HERE) -> Memory | None:
        """The origin of the connection that is given out."""
        taken = self.pool.take(destination, anyone)
        return None if taken is None else taken[0].transport

    def turn(self, seconds: float = 0) -> None:
        """Let time pass."""
        self.clock.pump([0.25] * int(seconds * 4) or [0])

    def test_empty(self):
        """An empty pool has nothing to give."""
        self.assertIsNone(self.take())

    def test_given_back(self):
        """A connection is given out once, with its address, to the same host and port only."""
        origin = self.give()
        self.assertIsNone(self.take(THERE))
        taken = self.pool.take(Destination.parse("ORIGIN.example.", 80), anyone)
        assert taken is not None
        connection, address = taken
        self.assertIs(connection.transport, origin)
        self.assertEqual(address, ADDRESS)
        self.assertIsNone(self.take())

    def test_last_first(self):
        """The connection that was used last is the first to be used again: it is the least likely to be closed."""
        first, second = self.give(), self.give()
        self.assertIs(self.take(), second)
        self.assertIs(self.take(), first)

    def test_policy(self):
        """Only a connection whose address the policy admits is given out."""
        origin, _ = self.give(address=OTHER), self.give()
        taken = self.pool.take(HERE, lambda address: address == OTHER)
        assert taken is not None
        self.assertIs(taken[0].transport, origin)
        self.assertIsNone(self.pool.take(HERE, lambda address: address == OTHER))

    def test_read(self):
        """An idle connection is read, even if it was paused in its last use, to hear when the origin closes it."""
        origin = self.give()
        self.assertTrue(origin.reading)
        origin.closes()
        self.turn()
        self.assertTrue(origin.lost)
        self.assertFalse(origin.aborted)
        self.assertIsNone(self.take())

    def test_out_of_step(self):
        """An origin that says something without being asked is out of step: its connection is closed."""
        origin = self.give()
        origin.says(b"HTTP/1.1 200 OK\r\n")
        self.assertIsNone(self.take())
        self.turn()
        self.assertTrue(origin.lost)

    def test_reset(self):
        """A connection that breaks is forgotten."""
        self.give().resets()
        self.assertIsNone(self.take())

    def test_idle_timeout(self):
        """A connection that nobody needs for some time is closed."""
        origin = self.give()
        self.turn(14.75)
        self.assertFalse(origin.closed)
        self.turn(1)
        self.assertTrue(origin.lost)
        self.assertIsNone(self.take())

    def test_deadline_ends_with_use(self):
        """A connection in use again is not closed by the deadline of its idleness."""
        origin = self.give()
        self.take()
        self.turn(30)
        self.assertFalse(origin.closed)

    def test_full(self):
        """If there are too many, the one that has been idle the longest goes, whatever its destination."""
        oldest = self.give(THERE)
        for _ in range(3):
            self.give()
        self.turn()
        self.assertTrue(oldest.lost)
        self.assertIsNone(self.take(THERE))
        for _ in range(3):
            self.assertIsNotNone(self.take())

    def test_smaller(self):
        """A pool that was made smaller has no more than that from the next connection on that it is given."""
        origins = [self.give() for _ in range(3)]
        self.pool.size = 2
        self.give()
        self.turn()
        self.assertEqual([origin.lost for origin in origins], [True, True, False])

    def test_no_pool(self):
        """A pool of no size closes everything it is given."""
        self.pool.size = 0
        origin = self.give()
        self.assertIsNone(self.take())
        self.turn()
        self.assertTrue(origin.lost)

    def test_stuck(self):
        """An origin that does not even take the rest of its request is reset after a while."""
        connection = Connection()
        origin = Memory(self.clock, connection)
        connection.makeConnection(origin)
        origin.stalled = True
        connection.transport.write(b"the rest")
        self.pool.give(HERE, connection, ADDRESS)
        self.pool.close()
        self.turn(9.75)
        self.assertFalse(origin.lost)
        self.turn(1)
        self.assertTrue(origin.aborted)

    def test_close(self):
        """All are closed at the end."""
        origins = [self.give(), self.give(THERE)]
        self.pool.close()
        self.turn()
        self.assertEqual([origin.lost for origin in origins], [True, True])
        self.assertIsNone(self.take())

    def with_socket(self) -> tuple[Memory, socket.socket]:
        """An idle connection that has a real socket, and the other end of that."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            near = socket.create_connection(listening.getsockname())
            far, _ = listening.accept()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        near.setblocking(False)
        origin = self.give()
        origin.socket = near  # type: ignore[attr-defined]
        return origin, far

    def test_silent_socket(self):
        """A connection on whose socket nothing waits is good."""
        origin, _ = self.with_socket()
        self.assertIs(self.take(), origin)

    def test_unheard(self):
        """Bytes that wait in the kernel, unread yet, answer nothing: such a connection is not used, the next one is."""
        good = self.give()
        origin, far = self.with_socket()
        far.send(b"HTTP/1.1 200 OK\r\n")
        self.assertIs(self.take(), good)
        self.turn()
        self.assertTrue(origin.lost)

    def test_unseen_end(self):
        """Nor is one that the origin has closed, as the reactor would tell in a moment."""
        _, far = self.with_socket()
        far.close()
        self.assertIsNone(self.take())

    def test_unseen_reset(self):
        """Nor one that the origin has reset."""
        _, far = self.with_socket()
        reset(far)
        self.assertIsNone(self.take())
