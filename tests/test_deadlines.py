"""Tests for proxyd.net.deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.deadlines import TICK, Deadlines


class SettableClock(Clock):
    """A clock that can be set back; the calls that wait stay where they are, as in a reactor."""

    behind = 0.0
    """Seconds that it was set back, all in all."""

    def set_back(self, seconds: float) -> None:
        """Set it back."""
        self.rightNow -= seconds
        self.behind += seconds


class DeadlinesTests(SynchronousTestCase):
    """One coarse timer for many deadlines."""

    def setUp(self) -> None:
        self.clock = SettableClock()
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

    def test_set_forward(self):
        """When the clock is set forward, by decades even, what is due by then is called at once, in order."""
        for name, seconds in (("b", 5), ("a", 1), ("c", 3e9)):
            self.note(name, seconds)
        self.clock.advance(2e9)
        self.assertEqual(self.called, ["a", "b"])
        self.clock.advance(1e9 + TICK)
        self.assertEqual(self.called, ["a", "b", "c"])

    def test_set_back(self):
        """When the clock is set back, deadlines that are set from then on are called in time, and then earlier ones."""
        self.clock.advance(10_000)
        self.note("a", 10)
        self.clock.set_back(3600)
        self.note("b", 2)
        self.clock.advance(2 + TICK)
        self.assertEqual(self.called, ["b"])
        self.clock.advance(8 + TICK)
        self.assertEqual(self.called, ["b", "a"])

    def test_set_back_without_deadlines(self):
        """Nothing remembers a clock that was ahead when there was no deadline."""
        self.clock.advance(10_000)
        self.note("a", 1)
        self.clock.advance(1 + TICK)
        self.clock.set_back(3600)
        self.note("b", 1)
        self.clock.advance(1 + TICK)
        self.assertEqual(self.called, ["a", "b"])

    def test_set_back_in_a_call(self):
        """The clock may be set back while deadlines are being served; there is still one timer."""
        self.clock.advance(10_000)
        self.deadlines.after(1, lambda: (self.clock.set_back(3600), self.note("c", 1)))
        self.note("a", 1)
        self.note("b", 5)
        self.clock.advance(1 + TICK)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(1 + TICK)
        self.assertEqual(self.called, ["a", "c"])
        self.clock.advance(3 + TICK)
        self.assertEqual(self.called, ["a", "c", "b"])

    def test_cancelled_after_the_clock_was_set_back(self):
        """A deadline that has moved with the clock can be cancelled."""
        self.clock.advance(10_000)
        deadline = self.deadlines.after(10, lambda: self.called.append("a"))
        self.clock.set_back(3600)
        self.note("b", 1)
        deadline.cancel()
        self.clock.advance(20)
        self.assertEqual(self.called, ["b"])

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

    @given(
        start=st.floats(10_000, 11_000),
        delays=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.floats(0, 100)), min_size=1, max_size=20),
    )
    def test_any_set_back(self, start: float, delays: list[tuple[float, float, float]]):
        """However often the clock is set back: no deadline is early by the time that has really passed, and none is
        late by more than a tick and two for each time, as coarse as the clock is.
        """
        clock = SettableClock()
        clock.advance(start)
        deadlines = Deadlines(clock)
        late: list[float] = []
        for delay, passed, back in delays:
            due = clock.seconds() + clock.behind + delay
            deadlines.after(delay, lambda due=due: late.append(clock.seconds() + clock.behind - due))
            clock.advance(passed)
            clock.set_back(back)
        deadlines.after(0, lambda: None)
        while clock.getDelayedCalls():
            clock.advance(0.01)
        self.assertEqual(len(late), len(delays))
        self.assertGreaterEqual(min(late), -1e-6)
        self.assertLessEqual(max(late), TICK + 2 * TICK * len(delays) + 1)
