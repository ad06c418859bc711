"""Tests for proxyd.net.rate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.rate import Rate


class RateTests(SynchronousTestCase):
    """A token bucket that is charged after the fact."""

    def test_burst(self):
        """A second's worth of bytes passes at once."""
        rate = Rate(1000, now=0)
        self.assertEqual(rate.charge(1000, 0), 0)

    def test_debt(self):
        """What moved beyond that is waited for."""
        rate = Rate(1000, now=0)
        self.assertEqual(rate.charge(3000, 0), 2)
        self.assertEqual(rate.charge(500, 2), 0.5)

    def test_no_pause(self):
        """Who stays below the rate never waits."""
        rate = Rate(1000, now=0)
        self.assertEqual([rate.charge(100, 0.1 * tick) for tick in range(1, 200)], [0] * 199)

    def test_quiet_time(self):
        """A quiet hour is worth no more than one second of burst."""
        rate = Rate(1000, now=0)
        self.assertEqual(rate.charge(1000, 3600), 0)
        self.assertEqual(rate.charge(1000, 3600), 1)

    def test_large_piece(self):
        """A piece of many seconds moves whole and is paid for afterwards."""
        rate = Rate(1000, now=10)
        self.assertEqual(rate.charge(262_144, 10), 261.144)

    @given(
        per_second=st.integers(1, 10**9),
        pieces=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 10)), min_size=1, max_size=50),
    )
    def test_average(self, per_second: int, pieces: list[tuple[int, float]]):
        """Who pauses as told never exceeds the rate on average, apart from one second's burst and the last piece."""
        rate, now, total = Rate(per_second, now=0), 0.0, 0
        for count, spare in pieces:
            now += spare
            self.assertLessEqual(total, (now + 1) * per_second * (1 + 1e-6) + 1)
            total += count
            pause = rate.charge(count, now)
            self.assertGreaterEqual(pause, 0)
            now += pause
