"""A reactor whose sockets are real and whose time is the test's, and connections over loopback for it."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxyd.net.connection import Connection
from proxyd.net.readiness import Readiness
from proxyd.net.transport import Stream

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose close is a reset."""

SMALL = 64 * 1024
"""Bytes asked for a socket's buffers where they have to fill soon; the kernel takes twice as much."""


@implementer(IReactorFDSet)
class TurningReactor(Clock):
    """It knows one reader, which is the set of sockets, and turns when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        """Watch it."""
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        """Watch it no more, if it was watched."""
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        """Streams use the set."""
        raise NotImplementedError

    def removeWriter(self, writer: Any) -> None:
        """Streams use the set."""
        raise NotImplementedError

    def removeAll(self) -> list[Any]:
        """Streams use the set."""
        raise NotImplementedError

    def turn(self) -> None:
        """Serve what is due and what is ready, until nothing is; at most a thousand times."""
        for _ in range(1000):
            self.advance(0)
            ready = select.select(self.readers, [], [], 0)[0]
            if not ready:
                return
            for reader in ready:
                reader.doRead()


class Notes:
    """A receiver that keeps what it hears."""

    def __init__(self) -> None:
        self.data = b""
        self.ends = 0
        self.reasons: list[Failure] = []

    def received(self, data: bytes) -> None:
        """Bytes came."""
        self.data += data

    def read_closed(self) -> None:
        """No more will."""
        self.ends += 1

    def lost(self, reason: Failure) -> None:
        """The end."""
        self.reasons.append(reason)


def reset(sock: socket.socket) -> None:
    """Close a socket so that its peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def drained(sock: socket.socket) -> bytes:
    """Everything that can be read from a non-blocking socket now; of its end nothing is said."""
    pieces = []
    try:
        while piece := sock.recv(1 << 20):
            pieces.append(piece)
    except BlockingIOError:
        pass
    return b"".join(pieces)


class StreamCase(SynchronousTestCase):
    """Tests with streams over loopback."""

    def setUp(self) -> None:
        """Make the reactor and the set of sockets."""
        self.reactor = TurningReactor()
        if not Readiness.available(self.reactor):
            self.skipTest("there is no epoll here")
        self.readiness = Readiness(self.reactor)
        self.addCleanup(self.readiness.stop)

    def sockets(self, family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
        """The two ends of a connection with small buffers, neither of which blocks."""
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        listening = socket.socket(family)
        self.addCleanup(listening.close)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        listening.bind((host, 0))
        listening.listen()
        far = socket.socket(family)
        self.addCleanup(far.close)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        far.connect(listening.getsockname())
        near, _ = listening.accept()
        for sock in (near, far):
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return near, far

    def stream(self) -> tuple[Stream, Notes, socket.socket]:
        """A stream that reads, its receiver, and the socket at its far end."""
        near, far = self.sockets()
        notes = Notes()
        stream = Stream(near, Connection(notes), self.reactor, self.readiness)
        stream.begin()
        stream.resumeProducing()
        return stream, notes, far

    def turn(self) -> None:
        """Let happen what can happen."""
        self.reactor.turn()
