"""Tests for proxyd.net.deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.deadlines import TICK, Deadlines


class DeadlinesTests(SynchronousTestCase):
    """One coarse timer for many deadlines."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.called: list[str] = []

    def note(self, name: str, seconds: float) -> None:
        """Set a deadline that writes its name down."""
        self.deadlines.after(seconds, lambda: self.called.append(name))

    def test_never_early(self):
        """Nothing is called before its time."""
        self.note("a", 10)
        self.clock.pump([TICK] * 39)
        self.assertEqual(self.called, [])

    def test_late_by_a_tick(self):
        """A deadline is called within a tick of its time, once."""
        self.clock.advance(0.1)
        self.note("a", 10)
        self.clock.advance(10 + TICK)
        self.assertEqual(self.called, ["a"])
        self.clock.pump([TICK] * 100)
        self.assertEqual(self.called, ["a"])

    def test_cancelled(self):
        """A cancelled deadline is not called."""
        deadline = self.deadlines.after(1, lambda: self.called.append("a"))
        self.note("b", 1)
        deadline.cancel()
        self.clock.pump([TICK] * 8)
        self.assertEqual(self.called, ["b"])

    def test_cancelled_twice(self):
        """Cancelling again, or after the call, is harmless."""
        deadline = self.deadlines.after(1, lambda: self.called.append("a"))
        self.clock.pump([TICK] * 8)
        deadline.cancel()
        deadline.cancel()
        self.assertEqual(self.called, ["a"])

    def test_cancelled_by_another(self):
        """A deadline may cancel another one that is due at the same time; exactly one of the two is called."""
        one = self.deadlines.after(1, lambda: (self.called.append("one"), other.cancel()))
        other = self.deadlines.after(1, lambda: (self.called.append("other"), one.cancel()))
        self.clock.pump([TICK] * 8)
        self.assertEqual(len(self.called), 1)

    def test_set_in_a_call(self):
        """A call may set the next deadline, also one without delay."""

        def again() -> None:
            self.called.append("again")
            if len(self.called) < 3:
                self.deadlines.after(0, again)

        self.deadlines.after(0, again)
        self.clock.pump([TICK] * 12)
        self.assertEqual(self.called, ["again"] * 3)

    def test_long_stop(self):
        """Everything that came due while the process was stopped is called when it goes on."""
        for name, seconds in (("a", 1), ("b", 5), ("c", 100)):
            self.note(name, seconds)
        self.clock.advance(50)
        self.assertEqual(sorted(self.called), ["a", "b"])
        self.clock.advance(51)
        self.assertEqual(sorted(self.called), ["a", "b", "c"])

    def test_failing_call(self):
        """A call that fails is logged, and keeps the others from nothing."""

        def fail() -> None:
            raise ValueError("a bug")

        self.note("a", 1)
        self.deadlines.after(1, fail)
        self.note("b", 1)
        self.note("c", 2)
        self.clock.pump([TICK] * 12)
        self.assertEqual(sorted(self.called), ["a", "b", "c"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_one_timer(self):
        """However many deadlines there are, the reactor has one timer, and none when there are no deadlines."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for seconds in range(1000):
            self.note("", seconds / 100)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.pump([TICK] * 50)
        self.assertEqual(len(self.called), 1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_last_one_cancelled(self):
        """When the last deadline is cancelled the timer ends by itself, and the next deadline starts it again."""
        self.deadlines.after(100, lambda: None).cancel()
        self.clock.pump([TICK] * 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1000)
        self.note("a", 1)
        self.clock.pump([TICK] * 6)
        self.assertEqual(self.called, ["a"])

    def test_stopped_in_a_call(self):
        """A call may stop everything."""
        self.deadlines.after(1, self.deadlines.stop)
        self.note("a", 2)
        self.clock.pump([TICK] * 20)
        self.assertEqual(self.called, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped(self):
        """After the stop nothing is called, and no timer runs."""
        deadline = self.deadlines.after(1, lambda: self.called.append("a"))
        self.deadlines.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.pump([TICK] * 8)
        deadline.cancel()
        self.assertEqual(self.called, [])

    def test_stopped_without_deadlines(self):
        """Stopping is harmless where there never was a deadline."""
        self.deadlines.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @given(
        start=st.floats(0, 1000),
        delays=st.lists(st.floats(0, 5), min_size=1, max_size=20),
        step=st.floats(0.01, 1),
    )
    def test_any_delays(self, start: float, delays: list[float], step: float):
        """Whatever the times: never early, and late by two ticks at the most, as coarse as the clock's own steps
        are.
        """
        clock = Clock()
        clock.advance(start)
        deadlines = Deadlines(clock)
        late: list[float] = []
        for delay in delays:
            due = clock.seconds() + delay
            deadlines.after(delay, lambda due=due: late.append(clock.seconds() - due))
        while clock.getDelayedCalls():
            clock.advance(step)
        self.assertEqual(len(late), len(delays))
        self.assertGreaterEqual(min(late), -1e-6)
        self.assertLessEqual(max(late), TICK + step + 1e-6)
