"""Upstream connections between two requests."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadline, Deadlines
from proxyd.net.linger import ORIGIN_FLUSH, Closing
from proxyd.request import Destination, IPAddress


class IdlePool:
    """Connections to origins that have answered and may be asked again, by destination; the last one first."""

    def __init__(self, clock: IReactorTime, deadlines: Deadlines, *, idle_timeout: float = 0, size: int = 0) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._deadline: Deadline | None = None
        self.idle_timeout = idle_timeout
        self.size = size
        self._idle: dict[_Idle, None] = {}  # the oldest first
        self._by_authority: dict[str, dict[_Idle, None]] = {}

    def take(
        self, destination: Destination, admits: Callable[[IPAddress], bool]
    ) -> tuple[Connection, IPAddress] | None:
        """A connection to the destination whose address the policy admits for this request, or ``None``."""
        while (idle := self._newest(destination.authority, admits)) is not None:
            self.forget(idle)
            if _silent(idle.connection.transport):
                return idle.connection, idle.address
            Closing(idle.connection, self._deadlines, ORIGIN_FLUSH)
        return None

    def _newest(self, authority: str, admits: Callable[[IPAddress], bool]) -> _Idle | None:
        for idle in reversed(self._by_authority.get(authority, {})):
            if admits(idle.address):
                return idle
        return None

    def give(self, destination: Destination, connection: Connection, address: IPAddress) -> None:
        """Keep a connection whose last response was complete; if there are too many, the oldest goes."""
        if not self.size:
            Closing(connection, self._deadlines, ORIGIN_FLUSH)
            return
        while len(self._idle) >= self.size:
            next(iter(self._idle)).close()
        authority = destination.authority
        idle = _Idle(self, authority, connection, address, self._clock.seconds())
        connection.receiver = idle
        self._idle[idle] = None
        if self._deadline is None:
            self._deadline = self._deadlines.after(self.idle_timeout, self._close_stale)
        self._by_authority.setdefault(authority, {})[idle] = None
        connection.transport.resumeProducing()  # to hear if the origin closes it

    def _close_stale(self) -> None:
        """Close what nobody has used for too long; the oldest stand first, so that one deadline serves all."""
        self._deadline = None
        now = self._clock.seconds()
        while self._idle and (idle := next(iter(self._idle))).since + self.idle_timeout <= now:
            idle.close()
        if self._idle:
            left = next(iter(self._idle)).since + self.idle_timeout - now
            self._deadline = self._deadlines.after(left, self._close_stale)

    def forget(self, idle: _Idle) -> None:
        """A connection is in use again, or no longer good; known to the pool or not any more."""
        if self._idle.pop(idle, idle) is None:
            waiting = self._by_authority[idle.authority]
            del waiting[idle]
            if not waiting:
                del self._by_authority[idle.authority]

    def discard(self, idle: _Idle) -> None:
        """Close a connection of which nothing is expected any more."""
        self.forget(idle)
        Closing(idle.connection, self._deadlines, ORIGIN_FLUSH)

    def close(self) -> None:
        """Close them all."""
        for idle in list(self._idle):
            idle.close()


def _silent(transport: Any) -> bool:
    """Whether the origin has said nothing, not even that it closes: what waits in the kernel was not reported yet."""
    sock = getattr(transport, "socket", None)
    if sock is None:
        return True
    try:  # poll(2) would need no exception, and fails once the limit on open files was lowered
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class _Idle:
    """Has one connection while nobody uses it: whatever happens to it now ends it."""

    __slots__ = ("_pool", "address", "authority", "connection", "since")

    def __init__(
        self, pool: IdlePool, authority: str, connection: Connection, address: IPAddress, since: float
    ) -> None:
        self._pool = pool
        self.since = since
        self.authority = authority
        self.connection = connection
        self.address = address

    def close(self) -> None:
        """Unused for too long, or useless."""
        self._pool.discard(self)

    def received(self, data: bytes) -> None:
        """An answer to nothing: the connection is out of step."""
        self.close()

    def read_closed(self) -> None:
        """The origin wants no more."""
        self.close()

    def lost(self, reason: Failure) -> None:
        """It broke."""
        self._pool.forget(self)
