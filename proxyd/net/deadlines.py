"""Deadlines for many connections on one coarse timer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TICK = 0.25
"""Seconds between two looks at the deadlines: the most by which one is late. It is never early."""


_ROUNDING = 1e-6
"""Of a tick: the timer may be called that much before the tick it waited for, as floating point has it."""


class Deadline:
    """One call that is due at some tick, unless it is cancelled before."""

    __slots__ = ("_buckets", "call", "due")

    def __init__(self, call: Callable[[], object], due: int, buckets: Buckets) -> None:
        self.call = call
        self.due = due
        self._buckets = buckets
        bucket = buckets.get(due)
        if bucket is None:
            bucket = buckets[due] = {}
        bucket[self] = None

    def cancel(self) -> None:
        """Forget the call; harmless when it was made or cancelled already."""
        bucket = self._buckets.get(self.due)
        if bucket is not None and bucket.pop(self, bucket) is None and not bucket:
            del self._buckets[self.due]


Buckets = dict[int, dict[Deadline, None]]
"""The deadlines by the tick at which they are due; no bucket is empty."""


class Deadlines:
    """A wheel of deadlines: setting and cancelling one is a dictionary entry, whatever their number.

    The clock of a reactor is the system's, which may be set. When it is set back the deadlines go back with it, as soon
    as the next one is set.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, tick: float = TICK) -> None:
        self._clock = clock
        self._tick = tick
        self._buckets: Buckets = {}
        self._next = 0  # the first tick that has not been looked at
        self._timer: IDelayedCall | None = None
        self._since = math.inf  # when the timer was set, or called

    def after(self, seconds: float, call: Callable[[], object]) -> Deadline:
        """Make the call once the seconds have passed, at most one tick later."""
        now = self._clock.seconds()
        if now < self._since:  # there is no timer, or the clock was set back
            self._begin(now)
        return Deadline(call, max(self._next, math.ceil((now + seconds) / self._tick)), self._buckets)

    def _begin(self, now: float) -> None:
        if self._timer is not None:
            self._move(math.floor((self._since - now) / self._tick))
        self._next = math.floor(now / self._tick) + 1
        self._wait(now)

    def _move(self, ticks: int) -> None:
        """Have every deadline so many ticks earlier."""
        buckets = list(self._buckets.items())
        self._buckets.clear()
        for due, bucket in buckets:
            for deadline in bucket:
                deadline.due = due - ticks
            self._buckets[due - ticks] = bucket

    def _wait(self, now: float) -> None:
        """For the beginning of the next tick: the timer keeps step with the deadlines, so that none is late by two."""
        self._rest()
        self._since = now
        self._timer = self._clock.callLater((math.floor(now / self._tick) + 1) * self._tick - now, self._turn)

    def _turn(self) -> None:
        self._since = self._clock.seconds()
        last = math.floor(self._since / self._tick + _ROUNDING)
        ticks, self._next = self._ticks(last), last + 1
        for due in ticks:
            while (bucket := self._buckets.get(due)) is not None:
                deadline = next(iter(bucket))
                deadline.cancel()
                self._make(deadline)
        if self._buckets:
            self._wait(self._clock.seconds())
        else:
            self._rest()

    def _ticks(self, last: int) -> Sequence[int]:
        """Those up to the last that may have deadlines: of the millions after the clock was set forward, few do."""
        ticks = range(self._next, last + 1)
        if len(ticks) <= len(self._buckets):
            return ticks
        return sorted(due for due in self._buckets if due <= last)

    def _make(self, deadline: Deadline) -> None:
        try:
            deadline.call()
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends this one alone
            self._log.failure("a deadline's call failed")

    def _rest(self) -> None:
        """Have no timer."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._since = math.inf

    def stop(self) -> None:
        """Forget every deadline."""
        self._buckets.clear()
        self._rest()
