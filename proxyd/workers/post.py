"""The places that workers are to fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from proxyd.config import Config
from proxyd.workers.process import WorkerProcess

FIRST_DELAY = 0.5
"""Seconds until a new worker follows one that has ended by itself."""

LONGEST_DELAY = 60.0
"""The delay doubles up to this while workers end young: what is wrong is not cured by starting more of them."""

HEALTHY = 60.0
"""Seconds after which a worker does not count as young any more."""

Duty = Callable[[], tuple[Config, Mapping[str, int]]]
"""What a new worker is to serve, and the descriptors of all its listeners."""


class Post:
    """One worker's place: the process that fills it, those that leave it, and the next one if that ends by itself."""

    _log = Logger()

    def __init__(self, reactor: Any, number: int, duty: Duty) -> None:
        self._reactor = reactor
        self._number = number
        self._duty = duty
        self.process: WorkerProcess | None = None
        self._leaving: set[WorkerProcess] = set()
        self._delay = 0.0
        self._next: IDelayedCall | None = None
        self._problem: str | None = None
        self._empty: Deferred[None] | None = None

    # -- filling it ---------------------------------------------------------------------------------------------------

    def fill(self) -> WorkerProcess:
        """Start a process; it does nothing yet.

        Raises:
            OSError: no process can be started.
        """
        process = WorkerProcess(self._reactor, self._number, self._ended)
        process.spawn()
        self.process = process
        return process

    def refill(self) -> None:
        """Put a new process into the place, which may be empty; the old one drains meanwhile."""
        self._vacate()
        self._delay = 0.0
        self._try()

    def _try(self) -> None:
        self._next = None
        try:
            process = self.fill()
        except OSError as error:
            self._follow(f"cannot be started: {error}")
        else:
            process.configure(*self._duty()).addCallback(self._configured, process)

    def _configured(self, problem: str | None, process: WorkerProcess) -> None:
        if problem is not None and process is self.process:
            self._problem = problem
            process.kill()

    def _ended(self, process: WorkerProcess, how: str) -> None:
        if process is self.process:
            self.process = None
            if process.serves_since is not None and self._reactor.seconds() - process.serves_since >= HEALTHY:
                self._delay = 0.0
            problem, self._problem = self._problem, None
            self._follow(f"ended, {how}" if problem is None else f"cannot serve: {problem}")
        else:
            self._leaving.discard(process)
            self._tell_if_empty()

    def _follow(self, what: str) -> None:
        """Let a new process follow, later each time."""
        self._delay = min(self._delay * 2 or FIRST_DELAY, LONGEST_DELAY)
        self._log.error(
            "worker {number} {what}; a new one follows in {delay:g} s",
            number=self._number,
            what=what,
            delay=self._delay,
        )
        self._next = self._reactor.callLater(self._delay, self._try)

    # -- leaving it ---------------------------------------------------------------------------------------------------

    def leave(self) -> Deferred[None]:
        """Let the process drain; fires when the last one that was here is gone."""
        self._vacate()
        if not self._leaving:
            return succeed(None)
        if self._empty is None:
            self._empty = Deferred()
        return self._empty

    def _vacate(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        process, self.process = self.process, None
        if process is not None:
            self._leaving.add(process)
            process.leave()

    def _tell_if_empty(self) -> None:
        if self._empty is not None and not self._leaving:
            empty, self._empty = self._empty, None
            empty.callback(None)

    def kill(self) -> None:
        """End all that is here, at once."""
        self._vacate()
        for process in self._leaving:
            process.kill()

    def reopen_logs(self) -> None:
        """Let all that are here open their access logs again; those that leave write records too."""
        for process in [*self._leaving, *([self.process] if self.process is not None else [])]:
            process.reopen_logs()
