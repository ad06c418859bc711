"""Tests for proxyd.tap."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path

from twisted.application.service import IService
from twisted.internet.protocol import Factory
from twisted.logger import LogEvent, capturedLogs
from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from proxyd.config import Config
from proxyd.service import Proxy
from proxyd.tap import Daemon, Options, StartFailed, makeService
from proxyd.testing import LabReactor, RecordList
from proxyd.workers.supervisor import Supervisor, WorkerError

CONFIG = """
[listener:http]
endpoint = tcp:8080
accept = forward
[rule:all]
action = allow
destinations = *
"""


class RunningReactor(LabReactor):
    """A reactor that runs when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._when_running: list[Callable[[], object]] = []

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        self._when_running.append(call)

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self.callLater(0, call, *arguments)

    def run(self) -> None:
        """Begin to run."""
        while self._when_running:
            self._when_running.pop(0)()


class ReopeningProxy(Proxy):
    """A proxy that counts how often it was told to open its logs again."""

    reopened = 0

    def reopen_logs(self) -> None:
        super().reopen_logs()
        self.reopened += 1


class UnableSupervisor(Supervisor):
    """A supervisor whose workers do not start."""

    def startService(self) -> None:
        raise WorkerError("worker 1 does not answer")


class OptionsTests(SynchronousTestCase):
    """The command line of ``twistd proxyd``."""

    def parsed(self, *arguments: str) -> Options:
        options = Options()
        options.parseOptions(arguments)
        return options

    def test_config(self) -> None:
        """There is one option, the configuration file, which may be left out."""
        self.assertEqual(self.parsed("--config", "a.ini")["config"], "a.ini")
        self.assertEqual(self.parsed("-c", "a.ini")["config"], "a.ini")
        self.assertIsNone(self.parsed()["config"])

    def test_nothing_else(self) -> None:
        """Anything else is refused."""
        self.assertRaises(usage.UsageError, self.parsed, "proxyd.ini")
        self.assertRaises(usage.UsageError, self.parsed, "--listen", "8080")


class MakeServiceTests(SynchronousTestCase):
    """What twistd calls."""

    def make(self, path: str | None) -> IService:
        options = Options()
        options["config"] = path
        return makeService(options)

    def write(self, text: str) -> str:
        path = Path(self.mktemp())
        path.write_text(text)
        return str(path)

    def test_service(self) -> None:
        """There is one service, made from the file; nothing is bound yet."""
        service = self.make(self.write(CONFIG))
        self.assertTrue(IService.providedBy(service))
        self.assertIsInstance(service, Daemon)

    def test_workers(self) -> None:
        """One process is a proxy by itself; several have a supervisor."""
        for workers, kind in ((1, Proxy), (2, Supervisor)):
            service = self.make(self.write(f"[proxyd]\nworkers = {workers}\n{CONFIG}"))
            assert isinstance(service, Daemon)
            [served] = service.services
            self.assertIsInstance(served, kind)

    def test_embedded(self) -> None:
        """Without a file there is the embedded configuration."""
        self.assertTrue(IService.providedBy(self.make(None)))

    def test_wrong_configuration(self) -> None:
        """A wrong configuration is told by file and line, without a traceback."""
        path = self.write(CONFIG.replace("accept = forward", "accept = forwards"))
        error = self.assertRaises(SystemExit, self.make, path)
        self.assertTrue(str(error).startswith(f"{path}:4: [listener:http] accept: "), str(error))


class DaemonTests(SynchronousTestCase):
    """The running proxy, as an operator handles it."""

    def setUp(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.reactor = RunningReactor()
        self.path = Path(self.mktemp())
        self.path.write_text(CONFIG)
        self.proxy = ReopeningProxy(self.reactor, self.read(), access_log=RecordList())
        self.daemon = Daemon(self.reactor, self.proxy, self.read)

    def read(self) -> Config:
        """The configuration as it is in the file now."""
        return Config.from_path(self.path)

    def start(self) -> None:
        """Start as twistd does."""
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self.addCleanup(self.stop)
        self.reactor.run()

    def stop(self) -> None:
        """Stop as twistd does."""
        stopped = self.daemon.stopService()
        self.reactor.advance(1)
        self.successResultOf(stopped)

    def ports(self) -> list[int]:
        """Where the proxy listens."""
        return [address.port for address in self.successResultOf(self.proxy.listen()).values()]  # type: ignore[attr-defined]

    def hang_up(self) -> list[LogEvent]:
        """Send SIGHUP; what is logged about it."""
        with capturedLogs() as events:
            signal.raise_signal(signal.SIGHUP)
            self.reactor.settle()
        return [event for event in events if event["log_namespace"] == "proxyd.tap.Daemon"]

    def test_start(self) -> None:
        """Ports are bound in the privileged start, and all descriptors that are allowed may be used."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
        self.start()
        self.assertEqual(self.ports(), [8080])
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (hard, hard))

    def test_cannot_start(self) -> None:
        """A listener that cannot be bound ends the start with one line that names it."""
        self.reactor.listenTCP(8080, Factory())
        error = self.assertRaises(SystemExit, self.daemon.privilegedStartService)
        expected = 'proxyd: listener "http": cannot listen on tcp:8080: [Errno 98] Address already in use'
        self.assertEqual(str(error), expected)

    def test_workers_cannot_start(self) -> None:
        """What is found out behind the privileged start ends the start in the same way."""
        daemon = Daemon(self.reactor, UnableSupervisor(self.reactor, self.read()), self.read)
        error = self.assertRaises(SystemExit, daemon.startService)
        self.assertEqual(str(error), "proxyd: worker 1 does not answer")

    def test_signal_before_it_runs(self) -> None:
        """A signal at the start does not end the process, and is obeyed once the reactor runs."""
        self.daemon.startService()
        self.addCleanup(self.stop)
        signal.raise_signal(signal.SIGUSR1)
        self.assertEqual(self.proxy.reopened, 0)
        self.reactor.run()
        self.reactor.settle()
        self.assertEqual(self.proxy.reopened, 1)

    def test_signals_of_the_reactor(self) -> None:
        """What the reactor installs when it starts to run does not stay."""
        self.daemon.startService()
        self.addCleanup(self.stop)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        self.reactor.run()
        signal.raise_signal(signal.SIGUSR1)
        self.reactor.settle()
        self.assertEqual(self.proxy.reopened, 1)

    def test_failure_is_an_exception(self) -> None:
        """A twistd in the background learns of a start that fails only by an Exception; Python ends with its line."""
        self.assertTrue(issubclass(StartFailed, Exception))
        self.assertEqual(StartFailed("proxyd: no port").code, "proxyd: no port")

    def test_reload(self) -> None:
        """SIGHUP reads the file again."""
        self.start()
        self.path.write_text(CONFIG.replace("8080", "8081"))
        self.assertEqual(self.hang_up(), [])
        self.assertEqual(self.ports(), [8081])

    def test_more_workers(self) -> None:
        """One process cannot become several by a reload: the log says so, and the rest of the file counts."""
        self.start()
        self.path.write_text("[proxyd]\nworkers = 2\n" + CONFIG.replace("8080", "8081"))
        [event] = self.hang_up()
        self.assertEqual(event["log_format"].format(**event), "workers = 2 counts from the next start on")
        self.assertEqual(self.ports(), [8081])

    def check_kept(self, reason: str) -> None:
        """After SIGHUP all is as before, and one line says why."""
        [event] = self.hang_up()
        self.assertEqual(self.ports(), [8080])
        self.assertIn("the configuration was not reloaded, the old one stays", event["log_format"])
        self.assertIn(reason, str(event["error"]))

    def test_reload_of_a_wrong_file(self) -> None:
        """A wrong file changes nothing, and is told in the log."""
        self.start()
        self.path.write_text(CONFIG.replace("accept", "accepts"))
        self.check_kept("accepts")

    def test_reload_that_cannot_bind(self) -> None:
        """Nor does one whose listener cannot be bound."""
        self.start()
        self.reactor.listenTCP(8081, Factory())
        self.path.write_text(CONFIG.replace("8080", "8081"))
        self.check_kept("Address already in use")

    def test_reload_without_users(self) -> None:
        """Nor one whose users file is of no use."""
        users = Path(self.mktemp())
        users.write_text("alice:plain text\n")
        self.start()
        self.path.write_text(CONFIG + f"[users]\nfile = {users.absolute()}\n")
        self.check_kept(str(users))

    def test_reopen(self) -> None:
        """SIGUSR1 opens the logs again, in the reactor's thread and time."""
        self.start()
        signal.raise_signal(signal.SIGUSR1)
        self.assertEqual(self.proxy.reopened, 0)
        self.reactor.settle()
        self.assertEqual(self.proxy.reopened, 1)

    def test_stopped_twice(self) -> None:
        """Of several signals to stop the reactor hears the first: the second would be an error to it."""
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: heard.append(number))
        self.start()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        self.assertEqual(heard, [signal.SIGTERM])

    def test_signal_at_the_end(self) -> None:
        """A SIGHUP that comes while the proxy stops is not obeyed."""
        self.start()
        self.daemon.stopService()
        self.path.write_text("")
        self.assertEqual(self.hang_up(), [])
