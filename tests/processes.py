"""Worker processes in memory: what a supervisor sees of them, and what they were told."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol, IReadDescriptor
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from proxyd.workers.channel import Channel
from proxyd.workers.messages import Answer, Configure, ListeningSocket, Message

FIRST_PID = 1000


class SocketPort:
    """A port that listens nowhere, but has a real descriptor to pass on."""

    def __init__(self) -> None:
        self.socket, self._other = socket.socketpair()
        self.reading = True
        self.closed = False

    def stopReading(self) -> None:
        self.reading = False

    def stopListening(self) -> Deferred[None]:
        self.closed = True
        self.socket.close()
        self._other.close()
        return succeed(None)


class ReadingReactor(Clock):
    """Time, and readers that get what is there for them when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[IReadDescriptor] = set()

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.add(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.discard(reader)

    def settle(self) -> None:
        """Let everything be read, and everything happen that takes no time."""
        self.advance(0)
        while ready := select.select(self.readers, [], [], 0)[0]:
            for reader in ready:
                if reader in self.readers:
                    reader.doRead()
            self.advance(0)


class SpawningReactor(ReadingReactor):
    """A reactor whose processes and ports are doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[ScriptedWorker] = []
        """All that were started, the last one last."""
        self.ports: dict[int, SocketPort] = {}
        self.early: deque[str | None] = deque()
        """What the next workers answer before they are asked, for a supervisor that waits without the reactor."""
        self.unable = False
        self.stillborn = False

    def spawnProcess(
        self,
        protocol: IProcessProtocol,
        executable: str,
        args: Sequence[str],
        env: Mapping[str, str],
        childFDs: Mapping[int, int],
    ) -> None:
        if self.unable:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        worker = ScriptedWorker(self, protocol, [executable, *args], env, childFDs)
        self.workers.append(worker)
        protocol.makeConnection(worker)
        if self.early:
            worker.answer(self.early.popleft())
            worker.unasked = 1
        if self.stillborn:
            worker.channel.close()

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> SocketPort:
        if port in self.ports and not self.ports[port].closed:
            raise CannotListenError(interface, port, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
        self.ports[port] = SocketPort()
        return self.ports[port]


class ScriptedWorker:
    """A worker process: its end of the channel, and Twisted's transport of it."""

    def __init__(
        self,
        reactor: SpawningReactor,
        protocol: IProcessProtocol,
        command: Sequence[str],
        env: Mapping[str, str],
        descriptors: Mapping[int, int],
    ) -> None:
        self._reactor = reactor
        self._protocol = protocol
        self.command = command
        self.env = env
        self.descriptors = dict(descriptors)
        self.pid = FIRST_PID + len(reactor.workers)
        self.told: list[Message] = []
        """What it has received, but for sockets."""
        self.sockets: list[str] = []
        """The names of the listeners that sockets came for."""
        self.answers: deque[str | None] = deque()
        """What it answers to the next configurations; ``None``, and done, if nothing is said here."""
        self.silent = False
        self.unasked = 0
        self.alive = True
        self.signals: list[str] = []
        self.channel = Channel(socket.socket(fileno=os.dup(descriptors[3])), self._received, self._lost, 1.0)
        self.orphaned = False
        self.channel.begin(reactor)

    def _received(self, message: Message, descriptor: int | None) -> None:
        if isinstance(message, ListeningSocket) and descriptor is not None:
            self.sockets.append(message.listener)
            os.close(descriptor)
            return
        self.told.append(message)
        if isinstance(message, Configure) and not self.silent:
            if self.unasked:
                self.unasked -= 1
            else:
                self.answer(self.answers.popleft() if self.answers else None)

    def _lost(self) -> None:
        self.orphaned = True

    def answer(self, problem: str | None) -> None:
        """Say that a configuration is served, or what is wrong with it."""
        self.channel.send(Answer(problem))

    def signalProcess(self, name: str) -> None:
        """Twisted's transport: it dies of SIGKILL in a moment."""
        if not self.alive:
            raise ProcessExitedAlready()
        self.signals.append(name)
        self._reactor.callLater(0, self.die, signal.SIGKILL)

    def die(self, number: signal.Signals | None = None, *, status: int = 0) -> None:
        """End, of a signal or with an exit status."""
        if self.alive:
            self.alive = False
            self.channel.close()
            end = ProcessTerminated(status or None, number) if number or status else ProcessDone(0)
            self._protocol.processEnded(Failure(end))
