"""Tests for proxyd.workers.process."""

from __future__ import annotations

import os
import signal
import socket
import sys

from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from proxyd.config import Config
from proxyd.workers.messages import Configure, LogLine, Order
from proxyd.workers.process import AFTER_DRAIN, ANSWER_PATIENCE, CONTROL, WorkerProcess
from tests.processes import FIRST_PID, ScriptedWorker, SpawningReactor

TEXT = "[proxyd]\ndrain_timeout = {}\n[listener:a]\nendpoint = tcp:1\naccept = forward\n"
TEXT += "[rule:all]\naction = allow\ndestinations = *\n"
CONFIG = Config.from_string(TEXT.format("30s"))
OTHER = Config.from_string(TEXT.format("40s"))


class WorkerProcessTests(SynchronousTestCase):
    """A worker, from spawn to end."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.ends: list[str] = []
        self.process = WorkerProcess(self.reactor, 7, lambda process, how: self.ends.append(how))
        self.sockets: dict[str, int] = {}

    def spawn(self) -> ScriptedWorker:
        """Start it."""
        self.process.spawn()
        [worker] = self.reactor.workers
        self.addCleanup(worker.die)
        return worker

    def socket(self, name: str) -> None:
        """Have a socket for a listener."""
        end, other = socket.socketpair()
        self.addCleanup(end.close)
        self.addCleanup(other.close)
        self.sockets[name] = end.fileno()

    def configure(self, config: Config = CONFIG) -> str | None:
        """Configure it; what it answers."""
        answer = self.process.configure(config, self.sockets)
        self.reactor.settle()
        return self.successResultOf(answer)

    def test_command(self) -> None:
        """It runs our Python with our modules, and none from the working directory; its number is to be seen."""
        worker = self.spawn()
        self.assertEqual(worker.command[1:], [sys.executable, "-P", "-m", "proxyd.workers.worker", "7"])
        self.assertEqual(worker.env["PYTHONPATH"].split(os.pathsep), [entry or os.getcwd() for entry in sys.path])
        self.assertEqual(worker.env["PATH"], os.environ["PATH"])
        self.assertEqual(self.process.pid, FIRST_PID)

    def test_descriptors(self) -> None:
        """It has our standard descriptors and the channel; the end that it has is closed here."""
        worker = self.spawn()
        control = worker.descriptors.pop(CONTROL)
        self.assertEqual(worker.descriptors, {0: 0, 1: 1, 2: 2})
        worker.channel.close()
        self.reactor.settle()
        self.assertFalse(self.process.channel.open)
        self.assertNotEqual(control, CONTROL)

    def test_cannot_be_spawned(self) -> None:
        """If there can be no process, nothing is left of it."""
        self.reactor.unable = True
        before = len(os.listdir("/proc/self/fd"))
        self.assertRaises(OSError, self.process.spawn)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before - 2)
        self.assertEqual(self.reactor.readers, set())

    def test_configured(self) -> None:
        """It gets the sockets, then the configuration, and answers."""
        worker = self.spawn()
        self.socket("a")
        self.socket("b")
        self.assertIsNone(self.configure())
        self.assertEqual(worker.sockets, ["a", "b"])
        self.assertEqual(worker.told, [Configure(CONFIG)])
        self.assertIs(self.process.config, CONFIG)

    def test_serves_since(self) -> None:
        """The moment at which it first serves is kept, and told in the log with the number of the process."""
        self.spawn()
        self.assertIsNone(self.process.serves_since)
        self.reactor.advance(5)
        with capturedLogs() as events:
            self.configure()
            self.reactor.advance(5)
            self.configure(OTHER)
        self.assertEqual(self.process.serves_since, 5.0)
        self.assertEqual([event["log_format"].format(**event) for event in events], ["worker 7 serves, process 1000"])

    def test_problem(self) -> None:
        """A worker with a problem is as it was before."""
        worker = self.spawn()
        worker.answers.append("no such file")
        self.assertEqual(self.configure(), "no such file")
        self.assertIsNone(self.process.config)
        self.assertIsNone(self.process.serves_since)
        self.configure()
        worker.answers.append("no such file")
        self.assertEqual(self.configure(OTHER), "no such file")
        self.assertIs(self.process.config, CONFIG)

    def test_silent(self) -> None:
        """What a worker serves that does not answer in time is not known; a late answer counts for nothing."""
        worker = self.spawn()
        self.configure()
        worker.silent = True
        answer = self.process.configure(OTHER, {})
        self.reactor.settle()
        self.reactor.advance(ANSWER_PATIENCE - 1)
        self.assertNoResult(answer)
        self.reactor.advance(1)
        self.assertEqual(self.successResultOf(answer), "worker 7 does not answer")
        worker.answer(None)
        self.reactor.settle()
        self.assertIsNone(self.process.config)

    def test_ends_instead(self) -> None:
        """A worker that ends answers nothing more."""
        worker = self.spawn()
        self.configure()
        worker.silent = True
        answer = self.process.configure(OTHER, {})
        worker.die(status=1)
        self.assertEqual(self.successResultOf(answer), "worker 7 has ended without an answer; the log may say why")
        self.assertIs(self.process.config, CONFIG)
        self.assertEqual(self.configure(), "worker 7 has ended without an answer; the log may say why")
        self.assertEqual(self.ends, ["exit status 1"])

    def test_ends(self) -> None:
        """Its end is told once, and how it came."""
        self.spawn().die()
        self.assertEqual(self.ends, ["exit status 0"])

    def test_killed(self) -> None:
        """So is that of a worker that was killed."""
        self.spawn().die(signal.SIGSEGV)
        self.assertEqual(self.ends, ["killed by SIGSEGV"])

    def test_last_words(self) -> None:
        """What it said before its end is heard."""
        worker = self.spawn()
        answer = self.process.configure(CONFIG, {})
        worker.answer("no memory")
        worker.die(status=1)
        self.assertEqual(self.successResultOf(answer), "no memory")

    def test_reopen(self) -> None:
        """It is told to open its logs again."""
        worker = self.spawn()
        self.process.reopen_logs()
        self.reactor.settle()
        self.assertEqual(worker.told, [Order.REOPEN_LOGS])

    def test_leaves(self) -> None:
        """It is told to stop, and has all the time that it may take; nothing is left to be called when it has ended."""
        worker = self.spawn()
        self.configure(OTHER)
        self.configure(CONFIG)
        self.process.leave()
        self.reactor.settle()
        self.assertEqual(worker.told[2:], [Order.STOP])
        self.reactor.advance(40 + AFTER_DRAIN - 1)
        self.assertEqual(worker.signals, [])
        worker.die()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_does_not_leave(self) -> None:
        """If it takes longer, it is killed."""
        worker = self.spawn()
        self.configure()
        self.process.leave()
        self.process.leave()
        self.reactor.advance(30 + AFTER_DRAIN)
        self.reactor.settle()
        self.assertEqual(worker.signals, ["KILL"])
        self.assertEqual(self.ends, ["killed by SIGKILL"])
        self.process.kill()

    def test_closed_channel(self) -> None:
        """A worker that is out of reach is ending by itself, or killed."""
        worker = self.spawn()
        self.configure()
        worker.channel.close()
        self.reactor.settle()
        self.reactor.advance(30 + AFTER_DRAIN)
        self.assertEqual(worker.signals, ["KILL"])

    def test_strange_message(self) -> None:
        """What a worker has no business to say is passed over."""
        worker = self.spawn()
        worker.channel.send(Order.STOP)
        self.assertIsNone(self.configure())

    def test_log(self) -> None:
        """What it logs is logged, with its number, as it would have been logged by itself."""
        worker = self.spawn()
        with capturedLogs() as events:
            worker.channel.send(LogLine("warn", "proxyd.entrance.Crowd#warn", "{braces} stay"))
            self.reactor.settle()
        [event] = events
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertEqual(event["log_system"], "worker 7: proxyd.entrance.Crowd#warn")
        self.assertEqual(event["log_format"].format(**event), "{braces} stay")
