"""How fast one flow may go."""

from __future__ import annotations

BURST = 1.0
"""Seconds' worth of bytes that may pass at once after a quiet time."""


class Rate:
    """A token bucket that is charged after the fact: bytes move first, then the flow pauses until it is out of debt.

    So whole pieces move, by splice too, and the average holds.
    """

    __slots__ = ("_credit", "_per_second", "_seen")

    def __init__(self, per_second: int, now: float) -> None:
        self._per_second = per_second
        self._credit = per_second * BURST
        self._seen = now

    def charge(self, count: int, now: float) -> float:
        """Account for bytes that moved; the seconds to wait before the next may, 0 for none."""
        credit = self._credit + (now - self._seen) * self._per_second
        self._credit = min(credit, self._per_second * BURST) - count
        self._seen = now
        return max(0.0, -self._credit / self._per_second)
