"""Deadlines for many connections on one coarse timer."""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

TICK = 0.25
"""Seconds between two looks at the deadlines: the most by which one is late. It is never early."""


class Deadline:
    """One call that is due at some tick, unless it is cancelled before."""

    __slots__ = ("_bucket", "call")

    def __init__(self, call: Callable[[], object], bucket: dict[Deadline, None]) -> None:
        self.call = call
        self._bucket = bucket
        bucket[self] = None

    def cancel(self) -> None:
        """Forget the call; harmless when it was made or cancelled already."""
        self._bucket.pop(self, None)


class Deadlines:
    """A wheel of deadlines: setting and cancelling one is a dictionary entry, whatever their number."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, tick: float = TICK) -> None:
        self._clock = clock
        self._tick = tick
        self._buckets: dict[int, dict[Deadline, None]] = {}
        self._timer: IDelayedCall | None = None

    def after(self, seconds: float, call: Callable[[], object]) -> Deadline:
        """Make the call once the seconds have passed, at most one tick later."""
        due = math.ceil((self._clock.seconds() + seconds) / self._tick)
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = {}
            if self._timer is None:
                self._timer = self._clock.callLater(self._tick, self._turn)
        return Deadline(call, bucket)

    def _turn(self) -> None:
        self._timer = None
        now = self._clock.seconds() / self._tick
        for due in sorted(due for due in self._buckets if due <= now):
            bucket = self._buckets.pop(due)
            while bucket:
                deadline, _ = bucket.popitem()
                try:
                    deadline.call()
                except Exception:  # noqa: BLE001 - whatever it is, it is logged and ends this one alone
                    self._log.failure("a deadline's call failed")
        if self._buckets and self._timer is None:
            self._timer = self._clock.callLater(self._tick, self._turn)

    def stop(self) -> None:
        """Forget every deadline."""
        self._buckets.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
