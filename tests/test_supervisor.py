"""Tests for proxyd.workers.supervisor."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from proxyd.config import Config
from proxyd.listening import ListenError
from proxyd.settings import Settings
from proxyd.workers.messages import Configure, Order
from proxyd.workers.process import ANSWER_PATIENCE
from proxyd.workers.supervisor import Supervisor, WorkerError, processes, share
from tests.processes import ScriptedWorker, SocketPort, SpawningReactor

RULE = "[rule:all]\naction = allow\ndestinations = *\n"


def configured(workers: int = 2, head: str = "", **ports: int) -> Config:
    """A configuration with so many workers and these listeners."""
    listeners = "".join(f"[listener:{name}]\nendpoint = tcp:{port}\naccept = forward\n" for name, port in ports.items())
    return Config.from_string(f"[proxyd]\nworkers = {workers}\n{head}\n{listeners}{RULE}")


class SupervisorTestCase(SynchronousTestCase):
    """A supervisor of workers that are doubles."""

    def setUp(self) -> None:
        self.reactor = SpawningReactor()
        self.addCleanup(self.end)

    def end(self) -> None:
        """Let nothing stay behind."""
        for worker in self.workers:
            worker.die()
        for port in self.reactor.ports.values():
            port.stopListening()

    @property
    def workers(self) -> list[ScriptedWorker]:
        """All that were ever started."""
        return self.reactor.workers

    def port(self, number: int) -> SocketPort:
        """What is bound to a port."""
        return self.reactor.ports[number]

    def supervisor(self, config: Config, *answers: str | None) -> Supervisor:
        """One that is not started; the workers' first answers, given early, as it waits without the reactor."""
        self.reactor.early.extend(answers or [None] * config.settings.workers)
        return Supervisor(self.reactor, config)

    def start(self, config: Config) -> Supervisor:
        """One that is started as twistd does."""
        supervisor = self.supervisor(config)
        supervisor.privilegedStartService()
        supervisor.startService()
        self.reactor.settle()
        return supervisor


class StartTests(SupervisorTestCase):
    """The start."""

    def test_bound_with_privileges(self) -> None:
        """Ports are bound in the privileged start; no worker is started there, and nobody accepts."""
        supervisor = self.supervisor(configured(a=8080, b=8081))
        supervisor.privilegedStartService()
        self.assertEqual([self.port(number).reading for number in (8080, 8081)], [False, False])
        self.assertEqual(self.workers, [])

    def test_workers(self) -> None:
        """Each worker gets the sockets of all listeners, and its share of the configuration."""
        config = configured(a=8080, b=8081)
        self.start(config)
        self.assertEqual(len(self.workers), 2)
        for worker in self.workers:
            self.assertEqual(worker.sockets, ["a", "b"])
            self.assertEqual(worker.told, [Configure(config)])

    def test_without_privileged_start(self) -> None:
        """What is not bound yet is bound at the start."""
        self.supervisor(configured(a=8080)).startService()
        self.assertFalse(self.port(8080).closed)

    def test_cannot_bind(self) -> None:
        """A port that cannot be bound fails the start, before there is any worker."""
        self.reactor.listenTCP(8081, None)
        supervisor = self.supervisor(configured(a=8080, b=8081))
        self.assertRaises(ListenError, supervisor.privilegedStartService)
        self.assertTrue(self.port(8080).closed)
        self.assertEqual(self.workers, [])

    def check_failed(self, supervisor: Supervisor, problem: str) -> None:
        """The start fails with that, and nothing is left."""
        error = self.assertRaises(WorkerError, supervisor.startService)
        self.assertEqual(str(error), problem)
        self.reactor.settle()
        self.assertTrue(self.port(8080).closed)
        self.assertEqual([worker.alive for worker in self.workers], [False] * len(self.workers))
        self.assertFalse(supervisor.running)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_worker_has_a_problem(self) -> None:
        """The problem of a worker is the problem of the start; it does not go round in circles."""
        self.check_failed(self.supervisor(configured(a=8080), "no users", "no users"), "no users")

    def test_second_worker_has_a_problem(self) -> None:
        """It may be any worker's."""
        self.check_failed(self.supervisor(configured(a=8080), None, "no log"), "no log")

    def test_worker_ends(self) -> None:
        """A worker that ends before it serves fails the start as well."""
        reactor, supervisor = self.reactor, self.supervisor(configured(1, a=8080), None)
        reactor.early.clear()
        reactor.stillborn = True
        self.check_failed(supervisor, "worker 1 has ended without an answer; the log may say why")

    def test_no_process(self) -> None:
        """So does a process that cannot be."""
        supervisor = self.supervisor(configured(a=8080))
        self.reactor.unable = True
        self.check_failed(supervisor, "worker 1 cannot be started: [Errno 11] Resource temporarily unavailable")


class ReloadTests(SupervisorTestCase):
    """A new configuration."""

    def setUp(self) -> None:
        super().setUp()
        self.service = self.start(configured(a=8080))
        for worker in self.workers:
            worker.told.clear()
            worker.sockets.clear()

    def reload(self, config: Config) -> None:
        """Go over to it."""
        reloaded = self.service.reload(config)
        self.reactor.settle()
        self.successResultOf(reloaded)

    def fail(self, config: Config) -> Exception:  # type: ignore[override]
        """Fail to go over to it, and why."""
        reloaded = self.service.reload(config)
        self.reactor.settle()
        return self.failureResultOf(reloaded, ListenError, WorkerError).value  # type: ignore[no-any-return]

    def test_all_are_told(self) -> None:
        """Every worker gets the sockets of new listeners and the configuration; then old ports are closed."""
        config = configured(b=8081, c=8082)
        with capturedLogs() as events:
            self.reload(config)
        for worker in self.workers:
            self.assertEqual(worker.sockets, ["b", "c"])
            self.assertEqual(worker.told, [Configure(config)])
        self.assertEqual([self.port(number).closed for number in (8080, 8081, 8082)], [True, False, False])
        self.assertEqual([event["log_format"].format(**event) for event in events], ["reloaded: 2 workers"])

    def test_cannot_bind(self) -> None:
        """A port that cannot be bound changes nothing; no worker hears of it."""
        self.reactor.listenTCP(8082, None)
        self.assertIsInstance(self.fail(configured(b=8081, c=8082)), ListenError)
        self.assertEqual([self.port(number).closed for number in (8080, 8081)], [False, True])
        self.assertEqual([worker.told for worker in self.workers], [[], []])

    def test_refused(self) -> None:
        """What the first worker refuses changes nothing; no other hears of it."""
        self.workers[0].answers.append("no users")
        self.assertEqual(str(self.fail(configured(b=8081))), "no users")
        self.assertEqual([self.port(number).closed for number in (8080, 8081)], [False, True])
        self.assertEqual(self.workers[1].told, [])
        self.assertEqual([worker.alive for worker in self.workers], [True, True])
        self.reload(configured(b=8081))

    def test_refused_later(self) -> None:
        """A worker that refuses what another has taken is told in the log and replaced."""
        self.workers[1].answers.append("out of memory")
        config = configured(b=8081)
        with capturedLogs() as events:
            self.reload(config)
            self.reactor.settle()
        lines = [event["log_format"].format(**event) for event in events]
        self.assertEqual(lines[0], "a worker is replaced, as it could not be configured: out of memory")
        self.assertEqual(self.workers[1].told, [Configure(config), Order.STOP])
        self.assertEqual(self.workers[2].told, [Configure(config)])
        self.assertEqual(self.workers[2].sockets, ["b"])

    def test_silent(self) -> None:
        """A first worker that does not answer is replaced, by one with the old configuration."""
        self.workers[0].silent = True
        reloaded = self.service.reload(configured(b=8081))
        self.reactor.settle()
        self.reactor.advance(ANSWER_PATIENCE)
        error = self.failureResultOf(reloaded, WorkerError).value
        self.assertEqual(str(error), "worker 1 does not answer")
        self.reactor.settle()
        self.assertEqual(self.workers[0].told[-1], Order.STOP)
        self.assertEqual(self.workers[2].told, [Configure(configured(a=8080))])

    def test_dies_of_it(self) -> None:
        """If the first worker ends instead of an answer, nothing changes; the next one has the old configuration."""
        self.workers[0].silent = True
        reloaded = self.service.reload(configured(b=8081))
        self.workers[0].die(signal.SIGSEGV)
        self.failureResultOf(reloaded, WorkerError)
        self.reactor.advance(1)
        self.reactor.settle()
        self.assertEqual(self.workers[2].told, [Configure(configured(a=8080))])
        self.assertEqual(self.workers[1].told, [])

    def test_one_after_the_other(self) -> None:
        """A reload that comes while another goes on follows it."""
        first, second = configured(b=8081), configured(c=8082)
        reloads = [self.service.reload(first), self.service.reload(second)]
        self.reactor.settle()
        for reloaded in reloads:
            self.successResultOf(reloaded)
        self.assertEqual([worker.told for worker in self.workers], [[Configure(first), Configure(second)]] * 2)

    def test_while_one_is_missing(self) -> None:
        """Places that wait for a new worker are filled at once, with the new configuration."""
        self.workers[0].die()
        config = configured(b=8081)
        self.reload(config)
        self.reactor.settle()
        self.assertEqual([worker.told for worker in self.workers[1:]], [[Configure(config)], [Configure(config)]])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_while_one_starts(self) -> None:
        """One that is on its way to serve the old configuration is replaced."""
        self.workers[0].die()
        self.reactor.advance(0.5)
        self.workers[2].silent = True
        config = configured(b=8081)
        self.reload(config)
        self.reactor.settle()
        self.assertEqual(self.workers[2].told, [Configure(configured(a=8080)), Order.STOP])
        self.assertEqual(self.workers[3].told, [Configure(config)])

    def test_all_are_missing(self) -> None:
        """A configuration may be what helps when no worker can serve the old one."""
        for worker in self.workers:
            worker.die()
        config = configured(b=8081)
        self.reload(config)
        self.reactor.settle()
        self.assertEqual([worker.told for worker in self.workers[2:]], [[Configure(config)], [Configure(config)]])

    def test_more(self) -> None:
        """There may be more workers then."""
        config = configured(3, a=8080)
        self.reload(config)
        self.reactor.settle()
        self.assertEqual([worker.told for worker in self.workers], [[Configure(config)]] * 3)
        self.assertEqual(self.workers[2].sockets, ["a"])

    def test_fewer(self) -> None:
        """Or fewer: those who are too many drain, and are waited for at the end."""
        config = configured(1, a=8080)
        self.reload(config)
        self.reactor.settle()
        self.assertEqual(self.workers[0].told, [Configure(config)])
        self.assertEqual(self.workers[1].told, [Configure(config), Order.STOP])
        stopped = self.service.stopService()
        self.workers[0].die()
        self.assertNoResult(stopped)
        self.workers[1].die()
        self.successResultOf(stopped)
        self.assertEqual(len(self.workers), 2)

    def test_fewer_and_gone(self) -> None:
        """Once they have ended nothing waits for them."""
        self.reload(configured(1, a=8080))
        self.workers[1].die()
        stopped = self.service.stopService()
        self.workers[0].die()
        self.successResultOf(stopped)

    def test_stopped_meanwhile(self) -> None:
        """A reload that is overtaken by the end is given up, and starts nobody."""
        self.workers[0].silent = True
        reloaded = self.service.reload(configured(b=8081))
        waiting = self.service.reload(configured(c=8082))
        stopped = self.service.stopService()
        for worker in self.workers:
            worker.die()
        for each in (reloaded, waiting):
            self.assertEqual(str(self.failureResultOf(each, WorkerError).value), "proxyd is stopping")
        self.successResultOf(stopped)
        self.assertEqual([port.closed for port in self.reactor.ports.values()], [True, True])
        self.assertEqual(len(self.workers), 2)


class LifeTests(SupervisorTestCase):
    """The rest of its life, and its end."""

    def test_worker_dies(self) -> None:
        """Whoever ends by itself is replaced."""
        self.start(configured(a=8080))
        self.workers[0].die(signal.SIGKILL)
        self.reactor.advance(1)
        self.reactor.settle()
        self.assertEqual(self.workers[2].sockets, ["a"])
        self.assertEqual(self.workers[2].told, [Configure(configured(a=8080))])

    def test_reopen(self) -> None:
        """All workers open their logs again, those who drain as well."""
        service = self.start(configured(a=8080))
        service.reload(configured(1, a=8080))
        self.reactor.settle()
        service.reopen_logs()
        self.reactor.settle()
        self.assertEqual([worker.told[-1] for worker in self.workers], [Order.REOPEN_LOGS, Order.REOPEN_LOGS])

    def test_stop(self) -> None:
        """At the end the ports are closed, all workers drain, and the last one to end ends it; nobody is replaced."""
        service = self.start(configured(a=8080))
        stopped = service.stopService()
        self.reactor.settle()
        self.assertTrue(self.port(8080).closed)
        self.assertEqual([worker.told[-1] for worker in self.workers], [Order.STOP, Order.STOP])
        self.workers[1].die()
        self.assertNoResult(stopped)
        self.workers[0].die()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_before_start(self) -> None:
        """It can be stopped where it was never started."""
        supervisor = self.supervisor(configured(a=8080))
        supervisor.privilegedStartService()
        self.successResultOf(supervisor.stopService())
        self.assertTrue(self.port(8080).closed)


class ShareTests(SynchronousTestCase):
    """What is each worker's."""

    def test_connections(self) -> None:
        """The limit on connections is divided, and rounded up; no limit stays none."""
        for most, workers, own in ((1000, 4, 250), (1000, 3, 334), (2, 4, 1), (0, 4, 0)):
            config = configured(workers, f"max_connections = {most}" if most else "", a=8080)
            self.assertEqual(share(config).settings.max_connections, own)

    def test_rest(self) -> None:
        """Everything else is the same for all."""
        config = configured(4, "max_connections = 8", a=8080)
        shared = share(config)
        self.assertEqual(replace(shared, settings=config.settings), config)
        self.assertEqual(replace(shared.settings, max_connections=8), config.settings)

    def test_auto(self) -> None:
        """As many as cores that we may use, if that is what is asked for; every worker knows the number."""
        cores = len(os.sched_getaffinity(0))
        self.assertEqual([processes(Settings(workers=number)) for number in (0, 1, 5)], [cores, 1, 5])
        config = configured(1, a=8080)
        auto = replace(config, settings=replace(config.settings, workers=0))
        self.assertEqual(share(auto).settings.workers, cores)
