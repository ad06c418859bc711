"""proxyd as a twistd plugin: options, signals, and one clear line when a start fails."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import IService, MultiService
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config, ConfigError
from proxyd.ledger.access_log import AccessLogError
from proxyd.listening import ListenError
from proxyd.service import Proxy
from proxyd.workers.supervisor import Supervisor, WorkerError, processes

START_ERRORS = (AccountsError, AccessLogError, ConfigError, ListenError, WorkerError)


class Options(usage.Options):
    """The command line of ``twistd proxyd``."""

    synopsis = "[--config FILE]"
    longdesc = "An egress proxy for log agents: HTTP forward, CONNECT and SOCKS5 behind one policy and one access log."
    optParameters = [["config", "c", None, "Configuration file; none: an embedded one that listens on loopback only."]]


class StartFailed(SystemExit, Exception):
    """The process ends with one line. It is an ``Exception`` too: of others a twistd that goes to the background does
    not learn, and whoever started it would wait for ever."""


class Served(Protocol):
    """A proxy, in one process or in several: a service that can do this too."""

    def setServiceParent(self, parent: Any) -> None:
        """Start and stop with another service."""

    def reload(self, config: Config) -> object:
        """Go over to another configuration, at once or until a Deferred fires."""

    def reopen_logs(self) -> None:
        """Open the access logs again."""


class Daemon(MultiService):
    """A proxy that obeys the signals of an operator: SIGHUP reloads, SIGUSR1 reopens the logs."""

    log = Logger()

    def __init__(self, reactor: Any, proxy: Served, read: Callable[[], Config]) -> None:
        super().__init__()
        self._reactor = reactor
        self._proxy = proxy
        self._read = read
        self._stopping = False
        proxy.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Bind, or say in one line why that cannot be done."""
        _raise_descriptor_limit()
        _in_one_line(super().privilegedStartService)

    def startService(self) -> None:
        """Start, and obey signals as soon as the reactor runs."""
        self._obey_signals()  # workers may be there before the reactor runs, and with them whoever sends signals
        _in_one_line(super().startService)
        self._reactor.callWhenRunning(self._obey_signals)  # again, as it may have installed its own
        self._reactor.callWhenRunning(self._stop_once)

    def _obey_signals(self) -> None:
        for number, action in ((signal.SIGHUP, self._reload), (signal.SIGUSR1, self._proxy.reopen_logs)):
            signal.signal(number, lambda *_, action=action: self._reactor.callFromThread(action))

    def _stop_once(self) -> None:
        """Pass on the first signal to stop, and no other: a reactor that is told twice calls that an error.

        Whoever signals a process group through make or a shell sends two.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            stop = signal.getsignal(number)
            if callable(stop):
                signal.signal(number, lambda *arguments, stop=stop: self._stop(stop, *arguments))

    def _stop(self, stop: Callable[..., object], *arguments: object) -> None:
        if not self._stopping:
            self._stopping = True
            stop(*arguments)

    def _reload(self) -> None:
        if not self.running:
            return
        reloaded = maybeDeferred(self._read_and_reload)
        reloaded.addErrback(self._not_reloaded)
        reloaded.addErrback(lambda failure: self.log.failure("the reload failed", failure))

    def _read_and_reload(self) -> object:
        config = self._read()
        if isinstance(self._proxy, Proxy) and processes(config.settings) > 1:
            self.log.warn(
                "workers = {workers} counts from the next start on", workers=config.settings.workers or "auto"
            )
        return self._proxy.reload(config)

    def _not_reloaded(self, failure: Failure) -> None:
        failure.trap(*START_ERRORS)
        self.log.error("the configuration was not reloaded, the old one stays: {error}", error=failure.value)


def _in_one_line(start: Callable[[], object]) -> None:
    """Start something, or end the process with one line that says why that cannot be done."""
    try:
        start()
    except START_ERRORS as error:
        raise StartFailed(f"proxyd: {error}") from None


def _raise_descriptor_limit() -> None:
    """Use all the descriptors that we are allowed: each tunnel takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def makeService(options: Options) -> IService:
    """The service that twistd runs."""
    from twisted.internet import reactor  # noqa: TID251 - here, and only here, the process's reactor is chosen

    path = options["config"]

    def read() -> Config:
        return Config.from_path(path) if path else Config.embedded()

    try:
        config = read()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    several = processes(config.settings) > 1
    return Daemon(reactor, Supervisor(reactor, config) if several else Proxy(reactor, config), read)
