"""One of several processes that serve the same listeners: a proxy that does what its supervisor tells it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, eventAsText, globalLogBeginner
from zope.interface import implementer

from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config
from proxyd.ledger.access_log import AccessLogError
from proxyd.listening import ListenError
from proxyd.service import Proxy
from proxyd.workers.channel import Channel
from proxyd.workers.messages import Answer, Configure, ListeningSocket, LogLine, Message, Order
from proxyd.workers.process import CONTROL

SUPERVISORS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that the supervisor obeys. They may be sent to the whole group: Ctrl-C, a terminal that goes, systemd."""

SEND_PATIENCE = 5.0
"""Seconds that a line for the log may wait, and all clients with it, until the supervisor counts as lost."""


@implementer(ILogObserver)
class Worker:
    """One worker, between the channel to its supervisor and the proxy that it is told to be."""

    _log = Logger()

    def __init__(self, reactor: Any, control: socket.socket, make_proxy: Callable[..., Proxy] = Proxy) -> None:
        self._reactor = reactor
        self._make_proxy = make_proxy
        self._channel = Channel(control, self._received, self.end, SEND_PATIENCE)
        self._proxy: Proxy | None = None
        self._sockets: dict[str, int | None] = {}
        self._ending = False

    def begin(self) -> None:
        """Listen to the supervisor, once the reactor runs."""
        self._reactor.addSystemEventTrigger("before", "shutdown", self._drain)
        self._channel.begin(self._reactor)

    def __call__(self, event: LogEvent) -> None:
        """Tell the supervisor, which has the log, of an event of ours."""
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if text:
            level = event.get("log_level", LogLevel.info).name
            system = event.get("log_system") or f"{event.get('log_namespace', '-')}#{level}"
            self._channel.send(LogLine(level, system, text))

    def _received(self, message: Message, descriptor: int | None) -> None:
        match message:
            case ListeningSocket(listener):
                self._sockets[listener] = descriptor
            case Configure():
                self._channel.send(Answer(self._configure(message)))
            case Order.REOPEN_LOGS if self._proxy is not None:
                self._proxy.reopen_logs()
            case Order.STOP:
                self.end()

    def _configure(self, order: Configure) -> str | None:
        """Serve that, or say why not. A bug ends the reload, and not the clients that are here."""
        try:
            self._serve(order.config, self._take_sockets())
        except (AccountsError, AccessLogError, ListenError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is logged
            self._log.failure("proxyd has a bug")
            return f"{type(error).__name__}: {error}"
        return None

    def _take_sockets(self) -> dict[str, int]:
        """The sockets that came for the configuration. Raises ListenError if one of them could not be received."""
        sockets, self._sockets = self._sockets, {}
        received = {listener: descriptor for listener, descriptor in sockets.items() if descriptor is not None}
        for listener, descriptor in sockets.items():
            if descriptor is None:
                for useless in received.values():
                    os.close(useless)
                raise ListenError(f'listener "{listener}": its socket could not be received: too many open files')
        return received

    def _serve(self, config: Config, sockets: dict[str, int]) -> None:
        if self._proxy is None:
            proxy = self._make_proxy(self._reactor, config, inherited=sockets)
            proxy.startService()
            self._proxy = proxy
        else:
            self._proxy.reload(config, inherited=sockets)

    def end(self) -> None:
        """Drain and end: the supervisor said so, or is gone."""
        if not self._ending:
            self._ending = True
            self._reactor.stop()

    def _drain(self) -> Deferred[None] | None:
        self._ending = True
        return None if self._proxy is None else self._proxy.stopService()


def main() -> None:
    """Be a worker, with the channel to the supervisor at descriptor `CONTROL`."""
    ignore_signals()
    react(serve)


def serve(reactor: Any) -> Deferred[None]:
    """Be a worker until its end."""
    worker = Worker(reactor, socket.socket(fileno=CONTROL))
    globalLogBeginner.beginLoggingTo([worker], redirectStandardIO=False)
    reactor.callWhenRunning(ignore_signals)  # the reactor has its own way with some of them
    worker.begin()
    return Deferred()


def ignore_signals() -> None:
    """Leave the signals to the supervisor."""
    for number in SUPERVISORS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
