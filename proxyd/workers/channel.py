"""Messages and descriptors between a supervisor and one of its workers."""

from __future__ import annotations

import array
import os
import pickle
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.workers.messages import Message

READ_SIZE = 64 * 1024
"""Bytes taken at one time; most messages have some hundred, configurations with many rules have more than this."""

_HEADER = struct.Struct("!I?")  # bytes that follow, and whether a descriptor comes with them
_DESCRIPTOR = struct.calcsize("i")


@implementer(IReadDescriptor)
class Channel:
    """One end of a pair of Unix sockets between two processes that trust each other, so messages may be pickles.

    Args:
        received: Gets each message, and its descriptor; ``None`` if none was sent with it, or none could be received.
        lost: Called once, when the other end is closed.
        patience: Seconds that a message may wait for room in the socket; nobody reads it there counts as lost.
    """

    def __init__(
        self,
        end: socket.socket,
        received: Callable[[Message, int | None], None],
        lost: Callable[[], None],
        patience: float,
    ) -> None:
        end.settimeout(patience)
        self._socket = end
        self._received = received
        self._lost = lost
        self._reactor: Any = None
        self._bytes = bytearray()
        self._descriptors: deque[int | None] = deque()

    def begin(self, reactor: Any) -> None:
        """Receive what comes."""
        self._reactor = reactor
        reactor.addReader(self)

    @property
    def open(self) -> bool:
        """Whether the other end is still there, as far as is known."""
        return self._socket.fileno() >= 0

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Tell the other end something; in vain, if it is lost."""
        data = pickle.dumps(message)
        data = _HEADER.pack(len(data), descriptor is not None) + data
        rights = [] if descriptor is None else [_rights(descriptor)]
        try:
            sent = self._socket.sendmsg([data], rights)
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """A message was cut, so nothing more can be said; whoever reads here or there finds the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is lost for both already

    # -- what Twisted calls -------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor the reactor watches."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What Twisted's log calls us."""
        return "proxyd"

    def doRead(self) -> None:
        """Take what has come."""
        try:
            data, rights, flags, _ = self._socket.recvmsg(READ_SIZE, socket.CMSG_SPACE(_DESCRIPTOR), _FLAGS)
        except OSError:
            data, rights, flags = b"", [], 0
        if not data:
            self._end()
            return
        for _, _, content in rights:
            self._descriptors.extend(array.array("i", content))
        if flags & socket.MSG_CTRUNC:  # we have too many open, and the kernel has closed it
            self._descriptors.append(None)
        self._bytes += data
        self._deliver()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops, or the code that received a message failed, which Twisted has logged."""
        self._end()

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if self.open:
            self.close()
            self._lost()

    def _deliver(self) -> None:
        while len(self._bytes) >= _HEADER.size:
            length, with_descriptor = _HEADER.unpack_from(self._bytes)
            end = _HEADER.size + length
            if len(self._bytes) < end:
                return
            message = pickle.loads(self._bytes[_HEADER.size : end])
            del self._bytes[:end]
            self._received(message, self._descriptors.popleft() if with_descriptor else None)

    def finish(self) -> None:
        """The process at the other end has ended: receive the last of what it said."""
        while self.open and _readable([self.fileno()], 0):
            self.doRead()
        self._end()

    def close(self) -> None:
        """Say and receive nothing more."""
        if self._reactor is not None and self.open:
            self._reactor.removeReader(self)
        self._socket.close()
        while self._descriptors:  # of messages that have not come as a whole
            descriptor = self._descriptors.popleft()
            if descriptor is not None:
                os.close(descriptor)


_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def _rights(descriptor: int) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor])


def wait(channels: Collection[Channel], answered: Callable[[], bool], silence: float) -> None:
    """Receive by ourselves, as the reactor does not run yet, until all is answered or nothing comes for so long."""
    while not answered() and (by_number := {channel.fileno(): channel for channel in channels if channel.open}):
        ready = _readable(by_number, silence)
        if not ready:
            return
        for number in ready:
            by_number[number].doRead()


def _readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]
