"""Bytes both ways between a client and an origin until both are done: count, limit, half-close, idle timeout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from proxyd.errors import ErrorType
from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadline, Deadlines
from proxyd.net.linger import Closing, abandon

IDLE_LOOKS = 8
"""Looks at the counters within one idle timeout: it fires at most an eighth late, and costs nothing for each byte."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how fast a tunnel may run: seconds, bytes, bytes per second and direction; 0 is no limit."""

    idle: float
    lifetime: float
    buffer_size: int
    rate: int = 0
    look_every: float = field(init=False)
    """Seconds between two looks at whether a tunnel still moves and may go on; 0 for none."""

    def __post_init__(self) -> None:
        looks = [seconds for seconds in (self.idle / IDLE_LOOKS, self.lifetime) if seconds]
        object.__setattr__(self, "look_every", min(looks, default=0.0))


class Relay:
    """A tunnel between two connections; the common part of both ways to move its bytes.

    ``early`` counts the client's bytes that came with its handshake and are on their way already. ``ended`` is called
    once, when both sides are closed or have been told to close; ``closed_by`` then says who ended it
    (``client``, ``origin`` or ``proxy``), and ``error`` why, if it was not by a FIN from both sides.
    """

    __slots__ = (
        "_client",
        "_began",
        "_clock",
        "_deadline",
        "_deadlines",
        "_early",
        "_ended",
        "_limits",
        "_look_every",
        "_quiet_since",
        "_seen",
        "_upstream",
        "closed_by",
        "error",
        "first_byte",
        "running",
    )

    def __init__(
        self,
        clock: Any,
        deadlines: Deadlines,
        client: Connection,
        upstream: Connection,
        limits: Limits,
        ended: Callable[[Relay], None],
        early: int = 0,
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._client = client
        self._upstream = upstream
        self._limits = limits
        self._ended = ended
        self._early = early
        self.running = True
        self.closed_by: str | None = None
        self.error: ErrorType | None = None
        self.first_byte: float | None = None
        self._seen = early
        self._began = self._quiet_since = clock.seconds()
        self._look_every = limits.look_every
        self._deadline: Deadline | None = None

    @property
    def bytes_from_client(self) -> int:
        """Bytes the client has sent into the tunnel."""
        raise NotImplementedError

    @property
    def bytes_to_client(self) -> int:
        """Bytes the origin has sent into the tunnel."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to move bytes, and to look now and then whether they move."""
        if self._look_every:
            self._deadline = self._deadlines.after(self._look_every, self._look)

    def abort(self, error: ErrorType | None = None) -> None:
        """End the tunnel now, with a reset on both sides: a limit was reached, or somebody wants it gone."""
        self._stop("proxy", error, reset=True)

    def _look(self) -> None:
        now = self._clock.seconds()
        moved = self.bytes_from_client + self.bytes_to_client
        if moved != self._seen:
            self._seen = moved
            self._quiet_since = now
        wait = self._look_every
        if self._limits.lifetime:
            left = self._began + self._limits.lifetime - now
            if left <= 0:
                self.abort(ErrorType.CONNECTION_TIMEOUT)
                return
            wait = min(wait, left)
        if self._limits.idle:
            left = self._quiet_since + self._limits.idle - now
            if left <= 0:
                self.abort(ErrorType.CONNECTION_READ_TIMEOUT)
                return
            wait = min(wait, left)
        self._deadline = self._deadlines.after(wait, self._look)

    def _close(self, connection: Connection) -> None:
        """Close a connection whose bytes have all been passed on, though it may not have taken them yet."""
        Closing(connection, self._deadlines)

    def _release(self) -> None:
        """Let go of what the way of moving bytes holds."""

    def _stop(self, closed_by: str, error: ErrorType | None, *, reset: bool) -> None:
        if not self.running:
            return
        self.running = False
        if self._deadline is not None:
            self._deadline.cancel()
        self.closed_by = closed_by
        self.error = error
        self._release()
        for connection in (self._client, self._upstream):
            if reset:
                abandon(connection)
            else:
                self._close(connection)
        self._ended(self)

    def _name(self, connection: Connection) -> str:
        return "client" if connection is self._client else "origin"
