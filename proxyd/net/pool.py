"""Upstream connections between two requests."""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadline, Deadlines
from proxyd.request import Destination, IPAddress


class IdlePool:
    """Connections to origins that have answered and may be asked again, by destination; the last one first."""

    def __init__(self, deadlines: Deadlines, *, idle_timeout: float = 0, size: int = 0) -> None:
        self._deadlines = deadlines
        self.idle_timeout = idle_timeout
        self.size = size
        self._idle: dict[tuple[str, int], list[_Idle]] = {}
        self._count = 0

    def take(self, destination: Destination, admits: Callable[[IPAddress], bool]) -> tuple[Connection, IPAddress] | None:
        """A connection to the destination whose address the policy admits for this request, or ``None``."""
        waiting = self._idle.get((destination.host, destination.port))
        if waiting is not None:
            for idle in reversed(waiting):
                if admits(idle.address):
                    self._remove(idle)
                    return idle.connection, idle.address
        return None

    def give(self, destination: Destination, connection: Connection, address: IPAddress) -> None:
        """Keep a connection whose last response was complete; beyond the pool's size it is closed."""
        if self._count >= self.size:
            connection.transport.loseConnection()
            return
        key = (destination.host, destination.port)
        idle = _Idle(self, key, connection, address)
        idle.deadline = self._deadlines.after(self.idle_timeout, idle.close)
        connection.receiver = idle
        self._idle.setdefault(key, []).append(idle)
        self._count += 1

    def _remove(self, idle: _Idle) -> None:
        idle.deadline.cancel()
        waiting = self._idle[idle.key]
        waiting.remove(idle)
        if not waiting:
            del self._idle[idle.key]
        self._count -= 1

    def drop(self, idle: _Idle) -> None:
        """Forget a connection that is no longer good."""
        if idle in self._idle.get(idle.key, ()):
            self._remove(idle)

    def close(self) -> None:
        """Close them all."""
        for waiting in list(self._idle.values()):
            for idle in list(waiting):
                idle.close()


class _Idle:
    """Has one connection while nobody uses it: whatever happens to it now ends it."""

    __slots__ = ("_pool", "address", "connection", "deadline", "key")

    deadline: Deadline

    def __init__(self, pool: IdlePool, key: tuple[str, int], connection: Connection, address: IPAddress) -> None:
        self._pool = pool
        self.key = key
        self.connection = connection
        self.address = address

    def close(self) -> None:
        """Unused for too long, or useless."""
        self._pool.drop(self)
        self.connection.transport.loseConnection()

    def received(self, data: bytes) -> None:
        """An answer to nothing: the connection is out of step."""
        self.close()

    def read_closed(self) -> None:
        """The origin wants no more."""
        self.close()

    def lost(self, reason: Failure) -> None:
        """It broke, or is closed as told."""
        self._pool.drop(self)
