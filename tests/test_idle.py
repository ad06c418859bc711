"""Tests for proxyd.net.idle."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.deadlines import Deadlines
from proxyd.net.idle import IdleWatch


class IdleWatchTests(SynchronousTestCase):
    """Whether bytes still move."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.moved = 0
        self.expired: list[float] = []
        self.watch = IdleWatch(
            self.clock,
            Deadlines(self.clock),
            80,
            lambda: self.moved,
            lambda: self.expired.append(self.clock.seconds()),
        )

    def pass_seconds(self, seconds: int) -> None:
        """Let time pass in small steps."""
        self.clock.pump([0.5] * (2 * seconds))

    def test_quiet(self):
        """Without a byte the watch expires when its time is over, once."""
        self.pass_seconds(79)
        self.assertEqual(self.expired, [])
        self.pass_seconds(3)
        self.assertEqual(len(self.expired), 1)
        self.pass_seconds(1000)
        self.assertEqual(len(self.expired), 1)

    def test_moving(self):
        """While bytes move nothing expires, however long that goes on."""
        for _ in range(20):
            self.moved += 1
            self.pass_seconds(70)
        self.assertEqual(self.expired, [])

    def test_quiet_after_moving(self):
        """The time counts from the last byte: not earlier, and at most an eighth later."""
        self.pass_seconds(41)
        self.moved += 1
        self.pass_seconds(79)
        self.assertEqual(self.expired, [])
        self.pass_seconds(14)
        self.assertEqual(len(self.expired), 1)

    def test_moved_before(self):
        """What moved before the watch began is no movement."""
        expired: list[int] = []
        IdleWatch(self.clock, Deadlines(self.clock), 8, lambda: 4711, lambda: expired.append(1))
        self.pass_seconds(10)
        self.assertEqual(expired, [1])

    def test_few_looks(self):
        """The counters are looked at eight times in the timeout and not for each byte."""
        looks: list[float] = []

        def moved() -> int:
            looks.append(self.clock.seconds())
            return 0

        IdleWatch(self.clock, Deadlines(self.clock), 80, moved, lambda: None)
        self.pass_seconds(79)
        self.assertLessEqual(len(looks), 9)

    def test_stopped(self):
        """A stopped watch does not expire, and stopping it again is harmless."""
        self.pass_seconds(79)
        self.watch.stop()
        self.pass_seconds(100)
        self.watch.stop()
        self.assertEqual(self.expired, [])
