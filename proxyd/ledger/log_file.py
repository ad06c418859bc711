"""One file of the access log, as the thread that writes it sees it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Write = Callable[[int, bytes], int]

STANDARD_OUTPUT = "-"
CHECK_INTERVAL = 1.0
"""Seconds between two looks at whether the path still leads to the file that is open: logrotate moves it away."""

_STANDARD_OUTPUT_DESCRIPTOR = 1
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE = 0o640


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one batch, in lines; ``problem`` says what went wrong, and is empty if nothing did."""

    written: int
    lost: int
    problem: str


class LogFile:
    """A file that lines are appended to, wherever its path leads at the time.

    ``write`` is ``os.write`` or its double: it takes a descriptor and bytes, and returns how many it wrote.
    """

    def __init__(self, path: str, write: Write = os.write) -> None:
        self.path = path
        self._write = write
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._checked = 0.0
        self._is_file = False
        self._torn = False
        self._unopened: OSError | None = None

    def open(self) -> None:
        """Open what the path leads to now, then close what was open before.

        Raises:
            OSError: It cannot be opened; what was open before still is.
        """
        if self.path == STANDARD_OUTPUT:
            self._descriptor = _STANDARD_OUTPUT_DESCRIPTOR
            return
        descriptor = os.open(self.path, _FLAGS, _MODE)
        # O_NONBLOCK was for a FIFO that nobody reads: an error, where open() would else wait for a reader.
        os.set_blocking(descriptor, True)
        found = os.fstat(descriptor)
        identity = found.st_dev, found.st_ino
        self._torn = self._torn and identity == self._identity
        self.close()
        self._descriptor, self._identity, self._unopened = descriptor, identity, None
        self._is_file = stat.S_ISREG(found.st_mode)

    def close(self) -> None:
        """Close what is open, if anything is."""
        if self._descriptor is not None and self.path != STANDARD_OUTPUT:
            os.close(self._descriptor)
        self._descriptor = None

    def append(self, lines: bytes, now: float, reopen: bool = False) -> Outcome:
        """Append whole lines by a single write, so that those of several processes never mix.

        What a full disk leaves over is lost: a retry would keep the lines of the time after it waiting.
        """
        self._follow(now, reopen)
        count = lines.count(b"\n")
        problem = "" if self._unopened is None else reason(self._unopened)
        if not count or self._descriptor is None:
            return Outcome(0, count, problem)
        data = b"\n" + lines if self._torn else lines
        try:
            done = self._put(self._descriptor, data)
        except OSError as error:
            return Outcome(0, count, reason(error))
        if done < len(data):
            problem = f"only {done} of {len(data)} bytes could be written"
        lost = min(count, data.count(b"\n", done))
        return Outcome(count - lost, lost, problem)

    def _put(self, descriptor: int, data: bytes) -> int:
        """Write once. A line that was broken is taken back from a file, and elsewhere ended by the next batch.

        A newline would not do for a file: it needs room as well, and another process may be quicker to append.
        """
        with _locked(descriptor) if self._is_file else contextlib.nullcontext():
            done = self._write(descriptor, data)
            if done:
                broken = done - data.rfind(b"\n", 0, done) - 1
                self._torn = broken > 0 and not (self._is_file and _taken_back(descriptor, broken))
            return done

    def _follow(self, now: float, reopen: bool) -> None:
        if self.path == STANDARD_OUTPUT or not (reopen or self._moved(now)):
            return
        try:
            self.open()
        except OSError as error:
            self._unopened = error
            # Lines go on into the old file, as with nginx, unless it has no name left to be read by.
            if self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
                self.close()

    def _moved(self, now: float) -> bool:
        if now - self._checked < CHECK_INTERVAL:
            return False
        self._checked = now
        try:
            found = os.stat(self.path)
        except OSError:
            return True
        return self._unopened is not None or (found.st_dev, found.st_ino) != self._identity


@contextlib.contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    """Keep the other processes that write to the file from it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, which are for the rare broken line only
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _taken_back(descriptor: int, size: int) -> bool:
    """Cut off the last bytes that were written, unless somebody who heeds no lock has written behind them."""
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        if os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - size)
            return True
    except OSError:
        pass  # the file may only be appended to
    return False


def reason(error: OSError) -> str:
    """What the system says about an error, without number and path."""
    return error.strerror or str(error)
