"""The access log: lines wait in memory until one thread writes them, so that no disk ever holds up the reactor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from proxyd.ledger.log_file import LogFile, Outcome, Write, reason
from proxyd.ledger.record import AccessRecord

Encode = Callable[[AccessRecord], bytes]

STOP_PATIENCE = 5.0
"""Seconds that ``stop`` gives a write that hangs, as one to a pipe that nobody reads."""


class AccessLogError(Exception):
    """An access log cannot be opened; the message names its path."""


class AccessLog:
    """Where access records go: any number of files, each in a format of its own.

    Lines wait for ``flush`` seconds at most before the writer thread gets them, and ``buffer`` bounds the bytes of
    all that are not yet written. ``written`` and ``dropped`` count lines: a record is one line in each file.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        outputs: Sequence[tuple[str, Encode]],
        *,
        flush: float,
        buffer: int,
        pool: ThreadPool | None = None,
        write: Write = os.write,
    ) -> None:
        self.written = 0
        self.dropped = 0
        self._reactor = reactor
        self._flush = flush
        self._buffer = buffer
        self._pool = _WriterPool() if pool is None else pool
        self._encoders = list(dict.fromkeys(encode for _, encode in outputs))
        self._files = [(LogFile(path, write), self._encoders.index(encode)) for path, encode in outputs]
        self._waiting: list[list[bytes]] = [[] for _ in self._encoders]
        self._size = 0
        self._timer: IDelayedCall | None = None
        self._open = False
        self._writing = False
        self._reopen = False
        self._stopped: Deferred[None] | None = None
        self._lost_by_path: dict[str, int] = {}
        self._lost_by_size = 0

    def start(self) -> None:
        """Open the files.

        Raises:
            AccessLogError: One of them cannot be opened; none is open then.
        """
        for file, _ in self._files:
            try:
                file.open()
            except OSError as error:
                self._close_files()
                raise AccessLogError(f"access log {file.path}: {reason(error)}") from error
        self._pool.start()
        self._open = True

    def record(self, record: AccessRecord) -> None:
        """Take one record; it is dropped where the buffer is full, and never waited for."""
        lines = [encode(record) for encode in self._encoders]
        size = sum(map(len, lines))
        if not self._open or self._size + size > self._buffer:
            self._drop()
            return
        self._size += size
        for waiting, line in zip(self._waiting, lines, strict=True):
            waiting.append(line)
        if size and self._timer is None and not self._writing:
            self._timer = self._reactor.callLater(self._flush, self._hand_over)

    def reopen(self) -> None:
        """Leave the open files for those that the paths lead to now, which may be new ones."""
        if self._open:
            self._reopen = True
            self._hand_over()

    def stop(self) -> Deferred[None]:
        """Write what waits and close the files; fires within ``STOP_PATIENCE`` seconds."""
        if not self._open or self._stopped is not None:
            return succeed(None)
        self._stopped = stopped = Deferred[None]()
        patience = self._reactor.callLater(STOP_PATIENCE, self._give_up, stopped)
        stopped.addCallback(lambda _: patience.cancel() if patience.active() else None)
        self._hand_over()
        return stopped

    def _drop(self) -> None:
        self.dropped += len(self._files)
        if self._open:
            if not self._lost_by_size:
                self._log.error("The access log's buffer of {size} bytes is full: records are lost.", size=self._buffer)
            self._lost_by_size += 1

    def _hand_over(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._writing:
            return
        self._writing = True
        waiting, self._waiting = self._waiting, [[] for _ in self._encoders]
        reopen, self._reopen = self._reopen, False
        size, lost = self._size, self._lost_by_size
        now = self._reactor.seconds()
        done = deferToThreadPool(self._reactor, self._pool, self._write, waiting, now, reopen)
        done.addCallback(self._report)
        done.addErrback(lambda failure: self._log.failure("The access log's writer failed", failure))
        done.addCallback(lambda _: self._handed_over(size, lost))

    def _write(self, waiting: list[list[bytes]], now: float, reopen: bool) -> list[Outcome]:
        # In the writer thread, as are the files from start to stop.
        batches = [b"".join(lines) for lines in waiting]
        return [file.append(batches[index], now, reopen) for file, index in self._files]

    def _handed_over(self, size: int, lost: int) -> None:
        self._writing = False
        self._size -= size
        if not self._open:
            return
        if lost and lost == self._lost_by_size:
            self._log.info("The access log keeps up again; {lost} records were lost.", lost=lost)
            self._lost_by_size = 0
        if self._reopen or (self._stopped is not None and self._size):
            self._hand_over()
        elif self._stopped is not None:
            self._finish(self._stopped)
        elif self._size:
            self._timer = self._reactor.callLater(self._flush, self._hand_over)

    def _report(self, outcomes: list[Outcome]) -> None:
        for (file, _), outcome in zip(self._files, outcomes, strict=True):
            self.written += outcome.written
            self.dropped += outcome.lost
            path = file.path
            if outcome.problem:
                if path not in self._lost_by_path:
                    self._log.error("Access log {path}: {problem}", path=path, problem=outcome.problem)
                self._lost_by_path[path] = self._lost_by_path.get(path, 0) + outcome.lost
            elif outcome.written and path in self._lost_by_path:
                lost = self._lost_by_path.pop(path)
                self._log.info("Access log {path} is written again; {lost} lines were lost.", path=path, lost=lost)

    def _finish(self, stopped: Deferred[None]) -> None:
        self._open = False
        self._close_files()
        self._pool.stop()
        stopped.callback(None)

    def _give_up(self, stopped: Deferred[None]) -> None:
        # The writer is left behind with its files: joining its thread would hang the process too.
        self._open = False
        self._log.error("The access log's writer hangs: {size} bytes of records are lost.", size=self._size)
        stopped.callback(None)

    def _close_files(self) -> None:
        for file, _ in self._files:
            file.close()


class _DaemonThread(Thread):
    """A thread that does not keep the process from ending, should its write hang for ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, daemon=True, **kwargs)


class _WriterPool(ThreadPool):
    """The one thread that writes."""

    threadFactory = _DaemonThread

    def __init__(self) -> None:
        super().__init__(minthreads=0, maxthreads=1, name="access-log")
