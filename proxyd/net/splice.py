"""Bytes from one socket to another inside the kernel (Linux splice(2))."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

from proxyd.net.rate import Rate
from proxyd.net.readiness import Readiness
from proxyd.net.transport import Stream

PIPE_SIZE = 1024 * 1024
"""Bytes a pipe is asked to hold. A user without privileges has 64 of these (/proc/sys/fs/pipe-user-pages-soft); then
the
kernel gives smaller ones, which work as well with more system calls."""

POOLED_PIPES = 32
"""Empty pipes kept for the next transfer. A pipe is held only while bytes are in flight, so few serve many flows."""

ROUNDS = 16
"""Transfers for one readiness event, so that one fast flow leaves the others their turn: a millisecond or two of them.
Whoever is left with a full receive buffer has a peer that sends little pieces as room comes up; with 8 rounds, or 4, a
gigabyte took half as much again as with 16 or 32."""

ENOUGH = 64 * 1024
"""A transfer smaller than this has most likely emptied the socket: asking again would only cost a system call."""

splice: Any = getattr(os, "splice", None)  # looked up once: this is the hottest call of all
_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)

Pipe = tuple[int, int, int]
"""Read end, write end, size in bytes."""


class Pipes:
    """Empty pipes, made as needed and used again."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    def take(self) -> Pipe:
        """An empty pipe. Raises OSError when descriptors run out."""
        if self._free:
            return self._free.pop()
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # EPERM: the user's share of pipe pages is used up
            size = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
        return read, write, size

    def give_back(self, pipe: Pipe) -> None:
        """Keep an empty pipe for the next transfer."""
        if len(self._free) < POOLED_PIPES:
            self._free.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe that may hold bytes of a broken transfer."""
        os.close(pipe[0])
        os.close(pipe[1])

    def close(self) -> None:
        """Close the pipes that are kept."""
        while self._free:
            self.discard(self._free.pop())


class Splicer:
    """What transfers share: the sockets' readiness, the pipes, the time."""

    def __init__(self, reactor: Any, readiness: Readiness) -> None:
        self.reactor = reactor
        self.readiness = readiness
        self.pipes = Pipes()

    @staticmethod
    def available() -> bool:
        """Whether this platform can splice."""
        return hasattr(os, "splice")

    def stop(self) -> None:
        """Close the pipes that are kept."""
        self.pipes.close()


def plain(transport: object) -> TypeGuard[Stream]:
    """Whether it is a socket in our epoll set, so that the kernel can move its bytes."""
    return isinstance(transport, Stream) and transport.watch is not None


class Owner(Protocol):
    """Who has a transfer made, and hears how it goes."""

    def began(self, transfer: Transfer) -> None:
        """The first bytes came."""

    def finished(self, transfer: Transfer) -> None:
        """All bytes have been moved: the source said FIN, or the length is reached (``left == 0``)."""

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """The connection to the source or to the sink was reset."""


class Transfer:
    """Bytes on their way from one stream to another: until the source's end, or for a number of bytes.

    While it runs it reads for the source's transport and writes for the sink's, which has nothing pending in user
    space; the transports still own the sockets. ``moved`` counts the bytes taken from the source, ``left`` those still
    to come (negative: until the source's end).
    """

    __slots__ = (
        "_chunk",
        "_delayed",
        "_held",
        "_owed",
        "_owner",
        "_pipe",
        "_sink_fd",
        "_source_fd",
        "_splicer",
        "left",
        "moved",
        "rate",
        "sink",
        "source",
    )

    def __init__(
        self, splicer: Splicer, source: Stream, sink: Stream, owner: Owner, *, chunk: int, length: int = -1
    ) -> None:
        self._splicer = splicer
        self._owner = owner
        self._chunk = chunk
        self.source = source
        self.sink = sink
        self.left = length
        self.moved = 0
        self.rate: Rate | None = None
        self._pipe: Pipe | None = None
        self._held = 0
        self._owed = 0
        self._delayed: Any = None
        self._source_fd = source.fileno()
        self._sink_fd = sink.fileno()

    @staticmethod
    def possible(source: object, sink: object) -> bool:
        """Whether both are sockets in our epoll set and nothing is pending towards the sink."""
        return plain(source) and plain(sink) and not sink.pending

    @property
    def blocked(self) -> bool:
        """Whether it is the sink that keeps bytes from moving; nobody else waits to write to it."""
        return self.sink.watch.write is not None  # type: ignore[union-attr]

    def start(self) -> None:
        """Read from the source as soon as it has something."""
        self._delayed = None
        self.source.watch.read = self._read  # type: ignore[union-attr]
        self.source.watch.apply()  # type: ignore[union-attr]

    def stop(self) -> None:
        """Let go of both sockets and of the pipe, whatever it holds."""
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        if self.blocked:
            self.sink.stopWriting()
        self.source.stopReading()
        self._release()

    def _release(self) -> None:
        pipe = self._pipe
        if pipe is not None:
            self._pipe = None
            if self._held:
                self._held = 0
                self._splicer.pipes.discard(pipe)
            else:
                self._splicer.pipes.give_back(pipe)

    def _read(self) -> None:
        try:
            pipe = self._pipe = self._splicer.pipes.take()
        except OSError:
            self._copy()
            return
        wanted = min(self._chunk, pipe[2])
        source, into = self._source_fd, pipe[1]
        for _ in range(ROUNDS):
            if 0 <= self.left < wanted:
                wanted = self.left
            try:
                self._held = count = splice(source, into, wanted, None, None, _FLAGS)
            except BlockingIOError:
                break
            except OSError:
                self._end(at_source=True)
                return
            if not count:
                self._finish()
                return
            self._count(count)
            if not self._pass_on():
                return
            if not self.left:
                self._finish()
                return
            if self.rate is not None and self._paced(self.rate):
                return
            if count < ENOUGH:
                break
        self._release()

    def _copy(self) -> None:
        """Move some bytes without a pipe, for which no descriptor is left; the source keeps the rest."""
        source, sink = self.source.socket, self.sink.socket
        try:
            data = source.recv(ENOUGH if self.left < 0 else min(ENOUGH, self.left), socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self._end(at_source=True)
            return
        if not data:
            self._finish()
            return
        try:
            count = sink.send(data)
        except BlockingIOError:
            self._wait(self._has_room)
            return
        except OSError:
            self._end(at_source=False)
            return
        source.recv(count)
        self._count(count)
        if not self.left:
            self._finish()
        elif self.rate is not None:
            self._paced(self.rate)

    def _count(self, count: int) -> None:
        if not self.moved:
            self._owner.began(self)
        self.moved += count
        self._owed = count
        if self.left > 0:
            self.left -= count

    def _pass_on(self) -> bool:
        """Empty the pipe into the sink; False when the sink is full (then reading waits) or broken."""
        assert self._pipe is not None
        try:
            while self._held:
                self._held -= splice(self._pipe[0], self._sink_fd, self._held, None, None, _FLAGS)
        except BlockingIOError:
            self._wait(self._writable)
            return False
        except OSError:
            self._end(at_source=False)
            return False
        return True

    def _wait(self, writable: Callable[[], None]) -> None:
        """Leave the source alone until the sink takes more."""
        watch = self.sink.watch
        assert watch is not None
        if watch.write is None:
            self.source.stopReading()
            watch.write = writable
            watch.apply()

    def _has_room(self) -> None:
        self.sink.stopWriting()
        self.start()

    def _writable(self) -> None:
        if not self._pass_on():
            return
        self.sink.stopWriting()
        if not self.left:
            self._finish()
        elif self.rate is None or not self._paced(self.rate):
            self._release()
            self.start()

    def _paced(self, rate: Rate) -> bool:
        """Whether the rate makes the transfer pause now."""
        pause = rate.charge(self._owed, self._splicer.reactor.seconds())
        if pause:
            self._release()
            self.source.stopReading()
            self._delayed = self._splicer.reactor.callLater(pause, self.start)
        return pause > 0

    def _finish(self) -> None:
        """All bytes are moved. Mostly the owner closes the source now or reads on from it: the kernel is told after."""
        watch = self.source.watch
        assert watch is not None
        watch.read = None
        self._release()
        self._owner.finished(self)
        if watch.mask > 0:
            watch.apply()

    def _end(self, at_source: bool) -> None:
        self.stop()
        if not at_source:
            self.sink.write_failed()
        self._owner.broke(self, at_source)
