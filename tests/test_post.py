"""Tests for proxyd.workers.post."""

from __future__ import annotations

import signal

from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from proxyd.config import Config
from proxyd.workers.messages import Configure, Order
from proxyd.workers.post import FIRST_DELAY, HEALTHY, LONGEST_DELAY, Post
from proxyd.workers.process import AFTER_DRAIN
from tests.processes import ScriptedWorker, SpawningReactor

CONFIG = Config.from_string(
    "[proxyd]\ndrain_timeout = 30s\n[listener:a]\nendpoint = tcp:1\naccept = forward\n"
    "[rule:all]\naction = allow\ndestinations = *\n"
)


def text(event: LogEvent) -> str:
    """An event of the log as it is read."""
    return str(event["log_format"].format(**event))


class PostTests(SynchronousTestCase):
    """A place that is to be filled."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.post = Post(self.reactor, 1, lambda: (CONFIG, {}))
        self.addCleanup(self.end)

    def end(self) -> None:
        """Let nobody stay behind."""
        self.post.leave()
        for worker in self.workers:
            worker.die()

    @property
    def workers(self) -> list[ScriptedWorker]:
        """All that were ever here."""
        return self.reactor.workers

    def serve(self) -> ScriptedWorker:
        """Fill the place; who serves then."""
        self.post.refill()
        self.reactor.settle()
        return self.workers[-1]

    def die(self, worker: ScriptedWorker) -> str:
        """A worker dies; what the log says."""
        with capturedLogs() as events:
            worker.die(signal.SIGKILL)
        [event] = events
        return text(event)

    def test_filled(self) -> None:
        """A new process gets what it is to serve."""
        worker = self.serve()
        self.assertEqual(worker.told, [Configure(CONFIG)])
        self.assertIsNotNone(self.post.process)

    def test_dies(self) -> None:
        """One that ends by itself is told in one line and followed by another, after a moment."""
        worker = self.serve()
        line = self.die(worker)
        self.assertEqual(line, "worker 1 ended, killed by SIGKILL; a new one follows in 0.5 s")
        self.assertIsNone(self.post.process)
        self.reactor.advance(FIRST_DELAY - 0.1)
        self.assertEqual(len(self.workers), 1)
        self.reactor.advance(0.1)
        self.reactor.settle()
        self.assertEqual(self.workers[-1].told, [Configure(CONFIG)])

    def delays(self, count: int, life: float) -> list[float]:
        """How long it takes until a worker is followed, so many times, if each lives as long as this."""
        found = []
        for _ in range(count):
            self.reactor.advance(life)
            self.workers[-1].die(status=1)
            [follow] = self.reactor.getDelayedCalls()
            found.append(follow.getTime() - self.reactor.seconds())
            self.reactor.advance(found[-1])
            self.reactor.settle()
        return found

    def test_dies_again_and_again(self) -> None:
        """While they die young the delay doubles, up to a minute."""
        self.serve()
        self.assertEqual(self.delays(9, HEALTHY - 1), [0.5, 1, 2, 4, 8, 16, 32, LONGEST_DELAY, LONGEST_DELAY])

    def test_dies_old(self) -> None:
        """Behind one that has served for a while the delay is short again."""
        self.serve()
        self.delays(3, 0)
        self.assertEqual(self.delays(2, HEALTHY), [FIRST_DELAY, FIRST_DELAY])

    def test_cannot_serve(self) -> None:
        """One that is started anew and has a problem is ended; the log says it, and the next one tries again."""
        worker = self.serve()
        worker.die()
        self.reactor.advance(FIRST_DELAY)
        self.workers[-1].answers.append("users: no such file")
        with capturedLogs() as events:
            self.reactor.settle()
        line = "worker 1 cannot serve: users: no such file; a new one follows in 1 s"
        self.assertEqual(list(map(text, events)), [line])
        with capturedLogs() as events:
            self.reactor.advance(1)
            self.reactor.settle()
        self.assertEqual(list(map(text, events)), ["worker 1 serves, process 1002"])

    def test_cannot_be_started(self) -> None:
        """So it is when there can be no process at all."""
        self.serve().die()
        self.reactor.unable = True
        with capturedLogs() as events:
            self.reactor.advance(FIRST_DELAY)
        line = "worker 1 cannot be started: [Errno 11] Resource temporarily unavailable; a new one follows in 1 s"
        self.assertEqual(list(map(text, events)), [line])
        self.reactor.unable = False
        self.reactor.advance(1)
        self.assertEqual(len(self.workers), 2)

    def test_replaced(self) -> None:
        """One that is replaced drains while the next one serves; its end is nobody's business."""
        old = self.serve()
        new = self.serve()
        self.assertEqual(old.told, [Configure(CONFIG), Order.STOP])
        self.assertEqual(new.told, [Configure(CONFIG)])
        with capturedLogs() as events:
            old.die()
        self.assertEqual(events, [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_refilled(self) -> None:
        """A place that waits for the next worker may be filled at once."""
        self.serve().die()
        self.serve()
        self.reactor.advance(LONGEST_DELAY)
        self.assertEqual(len(self.workers), 2)

    def test_late_problem(self) -> None:
        """A problem of one that is replaced meanwhile does not concern the one in its place."""
        self.post.refill()
        self.workers[0].answers.append("no such file")
        new = self.serve()
        self.assertEqual([worker.signals for worker in self.workers], [[], []])
        self.assertIs(new, self.workers[1])

    def test_left(self) -> None:
        """When it is left, that is over when all who were there have ended."""
        old = self.serve()
        new = self.serve()
        left = self.post.leave()
        self.assertIs(self.post.leave(), left)
        self.reactor.settle()
        self.assertEqual([worker.told[-1] for worker in self.workers], [Order.STOP, Order.STOP])
        new.die()
        self.assertNoResult(left)
        old.die()
        self.successResultOf(left)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_left_while_empty(self) -> None:
        """Nobody follows when it is left while it is empty."""
        self.serve().die()
        self.successResultOf(self.post.leave())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_left_in_vain(self) -> None:
        """One that does not go is killed."""
        self.serve()
        left = self.post.leave()
        self.reactor.advance(30 + AFTER_DRAIN)
        self.reactor.settle()
        self.successResultOf(left)

    def test_kill(self) -> None:
        """All may be ended at once."""
        self.serve()
        self.serve()
        self.post.kill()
        self.reactor.settle()
        self.assertEqual([worker.alive for worker in self.workers], [False, False])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_reopen(self) -> None:
        """Everyone here opens the logs again, those who leave too; an empty place has no logs."""
        self.post.reopen_logs()
        old = self.serve()
        new = self.serve()
        self.post.reopen_logs()
        self.reactor.settle()
        self.assertEqual([old.told[-1], new.told[-1]], [Order.REOPEN_LOGS, Order.REOPEN_LOGS])
