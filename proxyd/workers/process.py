"""One worker, as its supervisor sees it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from proxyd.config import Config
from proxyd.workers.channel import Channel
from proxyd.workers.messages import Answer, Configure, ListeningSocket, LogLine, Message, Order

CONTROL = 3
"""The descriptor that a worker finds its end of the channel at."""

ANSWER_PATIENCE = 30.0
"""Seconds until a worker must have answered: it starts, it reads files, and that is all."""

AFTER_DRAIN = 10.0
"""Seconds for what comes behind ``drain_timeout``: last words to the clients, the rest of the access log, the end."""


class WorkerProcess(ProcessProtocol):
    """One worker: a process, and the channel to it.

    ``ended`` is called with it and the reason, once it is gone and all that it said has been heard.
    """

    _log = Logger()

    def __init__(self, reactor: Any, number: int, ended: Callable[[WorkerProcess, str], None]) -> None:
        self._reactor = reactor
        self._number = number
        self._ended = ended
        self._answers: deque[Deferred[str | None]] = deque()
        self._kill: IDelayedCall | None = None
        self.config: Config | None = None
        """What it serves, as far as is known."""
        self.serves_since: float | None = None
        """When it first served something."""
        self._drain_timeout = 0.0
        ours, self._theirs = socket.socketpair()
        self.channel = Channel(ours, self._received, self._lost, ANSWER_PATIENCE)

    def spawn(self) -> None:
        """Start the process.

        Raises:
            OSError: that cannot be done.
        """
        with self._theirs:
            try:
                self._run(self._theirs.fileno())
            except OSError:
                self.channel.close()
                raise
        self.channel.begin(self._reactor)

    def _run(self, control: int) -> None:
        # -P: the working directory is no place to look for modules in. The rest of the path is ours, however we came
        # to it: a checkout, a wheel, an option of twistd.
        command = [sys.executable, "-P", "-m", "proxyd.workers.worker", str(self._number)]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._reactor.spawnProcess(
            self, command[0], command, env=os.environ | {"PYTHONPATH": path}, childFDs={0: 0, 1: 1, 2: 2, 3: control}
        )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return int(self.transport.pid)  # type: ignore[union-attr]

    # -- what it is told ----------------------------------------------------------------------------------------------

    def configure(self, config: Config, sockets: Mapping[str, int]) -> Deferred[str | None]:
        """Let it serve a configuration, with the descriptors of the listeners that it has no sockets for yet.

        Fires with ``None`` or a problem. A problem of a worker that serves leaves it as it was, unless it is silent.
        """
        before, self.config = self.config, None
        self._drain_timeout = max(self._drain_timeout, config.settings.drain_timeout)
        for name, descriptor in sockets.items():
            self.channel.send(ListeningSocket(name), descriptor)
        self.channel.send(Configure(config))
        answer: Deferred[str | None] = Deferred()
        self._answers.append(answer)
        answer.addCallback(self._answered, before, config)
        if not self.channel.open:
            self._unanswered()
        return answer.addTimeout(ANSWER_PATIENCE, self._reactor, lambda *_: f"worker {self._number} does not answer")

    def _answered(self, problem: str | None, before: Config | None, config: Config) -> str | None:
        self.config = before if problem else config
        if self.serves_since is None and not problem:
            self.serves_since = self._reactor.seconds()
            self._log.info("worker {number} serves, process {pid}", number=self._number, pid=self.pid)
        return problem

    def reopen_logs(self) -> None:
        """Let it open its access logs again."""
        self.channel.send(Order.REOPEN_LOGS)

    def leave(self) -> None:
        """Let it drain and end; kill it if it takes longer than that may."""
        self.channel.send(Order.STOP)
        self._kill_later()

    def _kill_later(self) -> None:
        if self._kill is None:
            self._kill = self._reactor.callLater(self._drain_timeout + AFTER_DRAIN, self.kill)

    def kill(self) -> None:
        """End it now."""
        try:
            self.transport.signalProcess("KILL")  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass

    # -- what comes from it -------------------------------------------------------------------------------------------

    def _received(self, message: Message, descriptor: int | None) -> None:
        match message:
            case Answer(problem):
                self._answers.popleft().callback(problem)
            case LogLine(level, system, text):
                known = LogLevel.levelWithName(level)
                self._log.emit(known, "{text}", text=text, log_system=f"worker {self._number}: {system}")

    def _lost(self) -> None:
        """It has closed the channel: it is ending, one way or the other."""
        self._unanswered()
        self._kill_later()

    def _unanswered(self) -> None:
        while self._answers:
            self._answers.popleft().callback(f"worker {self._number} has ended without an answer; the log may say why")

    def processEnded(self, reason: Failure) -> None:
        """Twisted tells that the process is gone."""
        self.channel.finish()
        if self._kill is not None and self._kill.active():
            self._kill.cancel()
        self._ended(self, _how(reason.value))


def _how(end: Any) -> str:
    if end.signal is not None:
        return f"killed by {signal.Signals(end.signal).name}"
    return f"exit status {end.exitCode}"
