"""Whether a flow still moves."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from proxyd.net.deadlines import Deadline, Deadlines

CHECKS = 8
"""Looks at the counters within one timeout: it fires at most an eighth late, and costs nothing for each byte."""


class IdleWatch:
    """Calls ``expired`` once no byte has been counted for some seconds."""

    __slots__ = ("_clock", "_deadline", "_deadlines", "_expired", "_moved", "_quiet_since", "_seconds", "_seen")

    def __init__(
        self,
        clock: IReactorTime,
        deadlines: Deadlines,
        seconds: float,
        moved: Callable[[], int],
        expired: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._seconds = seconds
        self._moved = moved
        self._expired = expired
        self._seen = moved()
        self._quiet_since = clock.seconds()
        self._deadline: Deadline = deadlines.after(seconds / CHECKS, self._check)

    def _check(self) -> None:
        moved = self._moved()
        now = self._clock.seconds()
        if moved != self._seen:
            self._seen = moved
            self._quiet_since = now
        left = self._quiet_since + self._seconds - now
        if left <= 0:
            self._expired()
        else:
            self._deadline = self._deadlines.after(min(left, self._seconds / CHECKS), self._check)

    def stop(self) -> None:
        """Look no more."""
        self._deadline.cancel()
