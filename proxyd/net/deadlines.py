"""Deadlines for many connections on one coarse timer."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TICK = 0.25
"""Seconds between two looks at the deadlines: the most by which one is late. It is never early."""


_ROUNDING = 1e-6
"""Of a tick: the timer may be called that much before the tick it waited for, as floating point has it."""


class Deadline:
    """One call that is due at some tick, unless it is cancelled before."""

    __slots__ = ("_buckets", "_due", "call")

    def __init__(self, call: Callable[[], object], due: int, buckets: Buckets) -> None:
        self.call = call
        self._due = due
        self._buckets = buckets
        bucket = buckets.get(due)
        if bucket is None:
            bucket = buckets[due] = {}
        bucket[self] = None

    def cancel(self) -> None:
        """Forget the call; harmless when it was made or cancelled already."""
        bucket = self._buckets.get(self._due)
        if bucket is not None and bucket.pop(self, bucket) is None and not bucket:
            del self._buckets[self._due]


Buckets = dict[int, dict[Deadline, None]]
"""The deadlines by the tick at which they are due; no bucket is empty."""


class Deadlines:
    """A wheel of deadlines: setting and cancelling one is a dictionary entry, whatever their number."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, tick: float = TICK) -> None:
        self._clock = clock
        self._tick = tick
        self._buckets: Buckets = {}
        self._next = 0  # the first tick that has not been looked at
        self._timer: IDelayedCall | None = None

    def after(self, seconds: float, call: Callable[[], object]) -> Deadline:
        """Make the call once the seconds have passed, at most one tick later."""
        now = self._clock.seconds()
        if not self._buckets:
            self._next = math.floor(now / self._tick) + 1
        deadline = Deadline(call, max(self._next, math.ceil((now + seconds) / self._tick)), self._buckets)
        if self._timer is None:
            self._wait(now)
        return deadline

    def _wait(self, now: float) -> None:
        """For the beginning of the next tick: the timer keeps step with the deadlines, so that none is late by two."""
        self._timer = self._clock.callLater((math.floor(now / self._tick) + 1) * self._tick - now, self._turn)

    def _turn(self) -> None:
        now = self._clock.seconds()
        for due in range(self._next, math.floor(now / self._tick + _ROUNDING) + 1):
            self._next = due + 1
            while (bucket := self._buckets.get(due)) is not None:
                deadline = next(iter(bucket))
                deadline.cancel()
                self._make(deadline)
        self._timer = None
        if self._buckets:
            self._wait(now)

    def _make(self, deadline: Deadline) -> None:
        try:
            deadline.call()
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends this one alone
            self._log.failure("a deadline's call failed")

    def stop(self) -> None:
        """Forget every deadline."""
        self._buckets.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
