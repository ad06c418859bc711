"""What a proxy costs: the processor time and the memory of all its processes, and the processors they may use."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` says of a process (proc(5))."""

    pid: int
    parent: int
    seconds: float
    """User and system time, its own and that of the children it has waited for."""

    @classmethod
    def parse(cls, text: str) -> Stat:
        """Read one line, in which the second field, the name, may hold blanks and parentheses."""
        pid, _, rest = text.partition(" (")
        fields = rest.rpartition(")")[2].split()
        return cls(int(pid), int(fields[1]), sum(map(int, fields[11:15])) / TICK)


def stats() -> Iterator[Stat]:
    """All processes there are."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield Stat.parse(path.read_text("utf-8", "replace"))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue


def tree(pid: int) -> list[Stat]:
    """A process and all that descend from it, parents first."""
    there = list(stats())
    found = [each for each in there if each.pid == pid]
    for parent in found:  # it grows
        found += [each for each in there if each.parent == parent.pid]
    return found


def processor_time(pid: int) -> float:
    """Seconds that a process and its descendants have used."""
    return sum(each.seconds for each in tree(pid))


def processor_times(pid: int) -> dict[int, float]:
    """The same, of each process."""
    return {each.pid: each.seconds for each in tree(pid)}


def memory(pid: int) -> int:
    """Bytes that a process and its descendants occupy, shared pages divided among those that share them."""
    return sum(_proportional(each.pid) for each in tree(pid))


def _proportional(pid: int) -> int:
    try:
        return parse_proportional(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def parse_proportional(text: str) -> int:
    """The ``Pss`` of a ``smaps`` file in bytes."""
    [line] = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def in_pipes(pid: int) -> int:
    """Bytes that are in pipes which a process or a descendant can read: the kernel holds them for it."""
    return sum(_pipe(path) for each in tree(pid) for path in Path(f"/proc/{each.pid}/fd").glob("*"))


def _pipe(path: Path) -> int:
    try:
        if (
            not os.readlink(path).startswith("pipe:") or not path.lstat().st_mode & stat.S_IRUSR
        ):  # or the end that writes
            return 0
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # closed meanwhile
        return 0
    try:
        held = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
        return int.from_bytes(held, sys.byteorder)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Processors:
    """Which processors are whose: the proxy has one, and the load and the origin have the others."""

    proxy: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of(cls, available: frozenset[int]) -> Processors:
        """Divide them; where there is only one all share it."""
        first = frozenset({min(available)})
        return cls(first, available - first or first)

    @classmethod
    def here(cls) -> Processors:
        """Divide those that we may use."""
        return cls.of(frozenset(os.sched_getaffinity(0)))

    @property
    def all(self) -> frozenset[int]:
        """Every one of them."""
        return self.proxy | self.load


@contextmanager
def bound_to(processors: frozenset[int]) -> Iterator[None]:
    """Within this, programs that are started run on these processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
