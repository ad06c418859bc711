"""proxyd as a twistd plugin: options, signals, and one clear line when a start fails."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.logger import Logger
from twisted.python import usage

from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config, ConfigError
from proxyd.ledger.access_log import AccessLogError
from proxyd.listening import ListenError
from proxyd.service import Proxy

START_ERRORS = (AccountsError, AccessLogError, ConfigError, ListenError)


class Options(usage.Options):
    """The command line of ``twistd proxyd``."""

    synopsis = "[--config FILE]"
    longdesc = "An egress proxy for log agents: HTTP forward, CONNECT and SOCKS5 behind one policy and one access log."
    optParameters = [["config", "c", None, "Configuration file; none: an embedded one that listens on loopback only."]]


class Daemon(MultiService):
    """A proxy that obeys the signals of an operator: SIGHUP reloads, SIGUSR1 reopens the logs."""

    log = Logger()

    def __init__(self, reactor: Any, proxy: Proxy, read: Callable[[], Config]) -> None:
        super().__init__()
        self._reactor = reactor
        self._proxy = proxy
        self._read = read
        proxy.setServiceParent(self)

    def privilegedStartService(self) -> None:
        """Bind, or say in one line why that cannot be done."""
        _raise_descriptor_limit()
        try:
            super().privilegedStartService()
        except START_ERRORS as error:
            raise SystemExit(f"proxyd: {error}") from None

    def startService(self) -> None:
        """Start, and listen to signals once the reactor has installed its own."""
        super().startService()
        self._reactor.callWhenRunning(self._obey_signals)

    def _obey_signals(self) -> None:
        for number, action in ((signal.SIGHUP, self._reload), (signal.SIGUSR1, self._proxy.reopen_logs)):
            signal.signal(number, lambda *_, action=action: self._reactor.callFromThread(action))

    def _reload(self) -> None:
        if not self.running:
            return
        try:
            self._proxy.reload(self._read())
        except START_ERRORS as error:
            self.log.error("the configuration was not reloaded, the old one stays: {error}", error=error)


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
    return Daemon(reactor, Proxy(reactor, config), read)
