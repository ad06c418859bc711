"""Tests for proxyd.net.readiness."""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Any
from unittest import SkipTest

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from proxyd.net.readiness import Readiness, Watch

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close is a reset."""


@implementer(IReactorFDSet)
class Readers:
    """A reactor that only knows its readers."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        """Watch it."""
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        """Watch it no more."""
        self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        """Not needed."""

    def removeWriter(self, writer: Any) -> None:
        """Not needed."""

    def removeAll(self) -> list[Any]:
        """Not needed."""
        return []


class ReadinessTests(SynchronousTestCase):
    """An epoll set of real sockets, whose turn comes when the test says so."""

    def setUp(self) -> None:
        if not hasattr(select, "epoll"):
            raise SkipTest("there is no epoll here")
        self.reactor = Readers()
        self.readiness = Readiness(self.reactor)
        self.addCleanup(self.stop)
        self.heard: list[object] = []

    def stop(self) -> None:
        """Stop the set, unless the test did."""
        if self.reactor.readers:
            self.readiness.stop()

    def turn(self) -> list[object]:
        """What the sockets' callables note in one turn of the reactor."""
        self.heard.clear()
        self.readiness.doRead()
        return list(self.heard)

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """The two ends of a TCP connection."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        far = socket.create_connection(listening.getsockname())
        self.addCleanup(far.close)
        near, _ = listening.accept()
        self.addCleanup(near.close)
        near.setblocking(False)
        return near, far

    def watch(self, sock: socket.socket, name: str = "") -> Watch:
        """A watch that notes what happens."""
        return Watch(self.readiness, sock.fileno(), lambda failure: self.heard.append(f"{name}broken"))

    def note(self, what: str) -> Any:
        """A callable that notes it was called."""
        return lambda: self.heard.append(what)

    def test_one_reader(self):
        """The reactor sees one reader, whose descriptor is the set's."""
        self.assertEqual(self.reactor.readers, [self.readiness])
        self.assertTrue(verifyObject(IReadDescriptor, self.readiness))
        self.assertGreaterEqual(self.readiness.fileno(), 0)
        self.assertEqual(self.readiness.logPrefix(), "proxyd")

    def test_available(self):
        """It needs epoll, and a reactor that watches descriptors."""
        self.assertTrue(Readiness.available(self.reactor))
        self.assertFalse(Readiness.available(Clock()))

    def test_readable(self):
        """A socket with bytes is reported until they are read."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("read")
        watch.apply()
        self.assertEqual(self.turn(), [])
        far.send(b"abc")
        self.assertEqual(self.turn(), ["read"])
        self.assertEqual(self.turn(), ["read"])
        near.recv(3)
        self.assertEqual(self.turn(), [])

    def test_writable(self):
        """A socket that takes bytes is reported if that is wanted, together with what can be read."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.write = self.note("write")
        watch.apply()
        self.assertEqual(self.turn(), ["write"])
        watch.read = self.note("read")
        watch.apply()
        far.send(b"abc")
        self.assertEqual(self.turn(), ["read", "write"])
        watch.write = None
        watch.apply()
        self.assertEqual(self.turn(), ["read"])

    def test_changes_hands(self):
        """Another callable takes a socket over without a word to the kernel."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("transport")
        watch.apply()
        far.send(b"abc")
        watch.read = self.note("relay")
        self.assertEqual(self.turn(), ["relay"])

    def test_nothing_wanted(self):
        """A socket that is neither read nor written is quiet, whatever comes."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("read")
        watch.apply()
        watch.read = None
        watch.apply()
        far.send(b"abc")
        far.shutdown(socket.SHUT_WR)
        self.assertEqual(self.turn(), [])

    def test_fin_is_read(self):
        """The far end's FIN is something to read."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("read")
        watch.apply()
        far.shutdown(socket.SHUT_WR)
        self.assertEqual(self.turn(), ["read"])

    def test_reset_while_reading(self):
        """A reset is found by whoever reads; by whoever writes, if nobody reads; else the watch is broken."""
        for wanted, found in (({"read", "write"}, "read"), ({"write"}, "write"), (set[str](), "broken")):
            near, far = self.connected()
            watch = self.watch(near)
            watch.read = self.note("read")
            watch.apply()
            watch.read = self.note("read") if "read" in wanted else None
            watch.write = self.note("write") if "write" in wanted else None
            watch.apply()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            far.close()
            self.assertEqual(self.turn(), [found])
            watch.close()

    def test_both_closed_and_unread(self):
        """A socket that both ends have closed, with bytes nobody wants yet, is left alone until somebody does."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("read")
        watch.apply()
        watch.read = None
        watch.apply()
        far.send(b"abc")
        far.shutdown(socket.SHUT_WR)
        near.shutdown(socket.SHUT_WR)
        self.assertEqual(self.turn(), [])
        self.assertEqual(select.select([self.readiness], [], [], 0)[0], [])
        watch.read = self.note("read")
        watch.apply()
        self.assertEqual(self.turn(), ["read"])

    def test_closed_watch(self):
        """A closed watch is not called again, also where the kernel has reported its socket already."""
        (one, far_one), (other, far_other) = self.connected(), self.connected()
        watches = [self.watch(one), self.watch(other)]

        def close_both() -> None:
            self.heard.append("read")
            for watch in watches:
                watch.close()

        for watch in watches:
            watch.read = close_both
            watch.apply()
        far_one.send(b"abc")
        far_other.send(b"abc")
        self.assertEqual(self.turn(), ["read"])
        self.assertEqual(self.turn(), [])
        watches[0].close()

    def test_never_applied(self):
        """A watch that never was in the set can be closed."""
        near, _ = self.connected()
        self.watch(near).close()
        self.assertEqual(self.turn(), [])

    def test_descriptor_used_again(self):
        """When a descriptor's number is used again, its events go to the new socket's watch."""
        near, _ = self.connected()
        again, far = self.connected()
        number = near.fileno()
        old = self.watch(near, "old ")
        old.read = self.note("old")
        old.apply()
        old.close()
        near.close()
        os.dup2(again.fileno(), number)
        self.addCleanup(os.close, number)
        new = Watch(self.readiness, number, lambda failure: None)
        new.read = self.note("new")
        new.apply()
        old.close()
        far.send(b"abc")
        self.assertEqual(self.turn(), ["new"])

    def test_failing_code(self):
        """When a connection's code fails, that is logged, the connection is told, and the others go on."""
        (one, far_one), (other, far_other) = self.connected(), self.connected()
        failures: list[Failure | None] = []
        failing, sound = Watch(self.readiness, one.fileno(), failures.append), self.watch(other)
        failing.read = lambda: 1 // 0
        sound.read = self.note("read")
        failing.apply()
        sound.apply()
        far_one.send(b"abc")
        far_other.send(b"abc")
        self.assertEqual(self.turn(), ["read"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        (failure,) = failures
        assert failure is not None
        self.assertTrue(failure.check(ZeroDivisionError))

    def test_failing_twice(self):
        """When not even the end of a failed connection works, that is logged too, and the proxy goes on."""
        near, far = self.connected()
        watch = Watch(self.readiness, near.fileno(), lambda failure: [][0])
        watch.read = lambda: 1 // 0
        watch.apply()
        far.send(b"abc")
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)
        watch.close()

    def test_failing_at_the_stop(self):
        """A connection whose end fails does not keep the others from ending."""
        (one, _), (other, _) = self.connected(), self.connected()
        failing, sound = Watch(self.readiness, one.fileno(), lambda failure: [][0]), self.watch(other)
        for watch in (failing, sound):
            watch.read = self.note("read")
            watch.apply()
        self.readiness.stop()
        self.assertEqual(self.heard, ["broken"])
        self.assertEqual(self.readiness.fileno(), -1)
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_stop(self):
        """With the set everything ends that is still connected; the reactor has no reader of ours any more."""
        near, far = self.connected()
        watch = self.watch(near)
        watch.read = self.note("read")
        watch.apply()
        self.readiness.connectionLost(Failure(ValueError()))
        self.readiness.stop()
        self.assertEqual(self.reactor.readers, [])
        self.assertEqual(self.readiness.fileno(), -1)
        self.assertEqual(self.heard, ["broken"])
        watch.close()
