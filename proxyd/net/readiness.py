"""Which sockets can be read or written: one epoll set of our own, seen by the reactor as a single reader.

The reactor's own set costs a logging context for each event and a system call for each change of hands; here a
socket is added once, and a relay takes a socket over from its transport by exchanging a callable.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

MOST_EVENTS = 256
"""Events taken from the kernel in one go, so that timers and other descriptors get their turn between."""

_READ = select.EPOLLIN if hasattr(select, "EPOLLIN") else 0
_WRITE = select.EPOLLOUT if hasattr(select, "EPOLLOUT") else 0
_ERROR = select.EPOLLERR if hasattr(select, "EPOLLERR") else 0
_GONE = _ERROR | (select.EPOLLHUP if hasattr(select, "EPOLLHUP") else 0)

Ready = Callable[[], object]


def _no_more(failure: Failure | None) -> None:
    """What a closed watch calls: it keeps no transport alive."""


class Watch:
    """One socket's place in the set: what to call when it can be read, be written, or broke.

    Set ``read`` and ``write`` to a callable or ``None``, then call `apply`. ``broken`` is called when the connection
    was reset while nobody was reading or writing, with the failure where a callable raised.
    """

    __slots__ = ("_readiness", "broken", "fd", "mask", "read", "write")

    def __init__(self, readiness: Readiness, fd: int, broken: Callable[[Failure | None], object]) -> None:
        self._readiness = readiness
        self.fd = fd
        self.mask = -1  # not in the set
        self.read: Ready | None = None
        self.write: Ready | None = None
        self.broken = broken

    def apply(self) -> None:
        """Tell the kernel what is wanted now, if that changed."""
        mask = (_READ if self.read is not None else 0) | (_WRITE if self.write is not None else 0)
        if mask != self.mask:
            self._readiness.change(self, mask)

    def close(self) -> None:
        """Leave the set; to be called before the socket is closed."""
        self.read = self.write = None
        self.broken = _no_more
        self._readiness.remove(self)


@implementer(IReadDescriptor)
class Readiness:
    """The sockets of one proxy process, level-triggered in one epoll set."""

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._watches: dict[int, Watch] = {}
        reactor.addReader(self)

    @staticmethod
    def available(reactor: object) -> bool:
        """Whether this platform has epoll and the reactor can watch a descriptor."""
        return hasattr(select, "epoll") and IReactorFDSet.providedBy(reactor)

    def change(self, watch: Watch, mask: int) -> None:
        """Put the watch into the set with this mask, or give it this mask there."""
        if watch.mask < 0:
            self._watches[watch.fd] = watch
            self._epoll.register(watch.fd, mask)
        else:
            self._epoll.modify(watch.fd, mask)
        watch.mask = mask

    def remove(self, watch: Watch) -> None:
        """Take the watch out of the set, if it is in it."""
        if watch.mask >= 0 and not self._epoll.closed:
            watch.mask = -1
            self._epoll.unregister(watch.fd)
        if self._watches.get(watch.fd) is watch:
            del self._watches[watch.fd]

    def fileno(self) -> int:
        """The descriptor the reactor watches."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """What Twisted's log calls us."""
        return "proxyd"

    def doRead(self) -> None:
        """Serve the sockets that are ready.

        A descriptor may have been closed and its number used again since the kernel reported it: as every callable
        takes "not ready" for an answer, that costs one system call and nothing else.
        """
        watches = self._watches
        for fd, event in self._epoll.poll(0, MOST_EVENTS):
            watch = watches.get(fd)
            if watch is None:
                continue
            try:
                if event & _GONE:
                    self._serve_gone(watch, event)
                    continue
                if event & _READ and watch.read is not None:
                    watch.read()
                if event & _WRITE and watch.write is not None:
                    watch.write()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends this one alone
                self._fail(watch)

    def _serve_gone(self, watch: Watch, event: int) -> None:
        if watch.read is not None:
            watch.read()
        elif watch.write is not None:
            watch.write()
        elif event & _ERROR:
            watch.broken(None)
        else:
            # Both sides have said FIN and unread bytes wait behind back-pressure: the kernel would report that
            # without end, so the socket leaves the set until somebody wants it again.
            self._epoll.unregister(watch.fd)
            watch.mask = -1

    def _fail(self, watch: Watch) -> None:
        failure = Failure()
        self._log.failure("a connection's code failed", failure)
        try:
            watch.broken(failure)
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends this one alone
            self._log.failure("a failed connection could not be ended")

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lets go of us; see `stop`."""

    def stop(self) -> None:
        """End what is still connected, leave the reactor and close the set."""
        for watch in list(self._watches.values()):
            try:
                watch.broken(None)
            except Exception:  # noqa: BLE001 - whatever it is, it is logged, and the others are ended too
                self._log.failure("a connection could not be ended")
        self.reactor.removeReader(self)
        self._watches.clear()
        self._epoll.close()
