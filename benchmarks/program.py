"""A program that is measured or helps to measure: started, waited for, and ended with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.measure import bound_to, tree

PATIENCE = 20.0
"""Seconds for a program to open its ports, or to end."""

LOOK_AGAIN = 0.02


class ProgramError(Exception):
    """A program did not start; the message says which, and what it had printed."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def environment() -> dict[str, str]:
    """Ours, in which nothing names a proxy."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


class Program:
    """One running program, with a folder of its own that has its files and what it prints."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, processors: frozenset[int]) -> None:
        self.name = name
        self.folder = folder
        self._output = folder / "output"
        with bound_to(processors), self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process that was started; it may have children."""
        return self._process.pid

    def wait_for(self, ports: Sequence[int]) -> None:
        """Return once all these ports take connections.

        Raises:
            ProgramError: it has ended instead, or they do not within our patience.
        """
        end = time.monotonic() + PATIENCE
        for port in ports:
            while not _listens(port):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise ProgramError(f"{self.name} does not listen on port {port}; it says:\n{self.output()}")
                time.sleep(LOOK_AGAIN)

    def output(self) -> str:
        """The end of what it has printed."""
        return self._output.read_text("utf-8", "replace")[-2000:]

    def stop(self) -> None:
        """End it as an init system does, and kill whatever of it is still there after our patience."""
        family = [stat.pid for stat in tree(self.pid)]
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE / 4)
        for pid in family:
            if pid != self.pid and _session(pid) == self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def _session(pid: int) -> int:
    """Whose session a process belongs to: a number that has been given to another program since is not in ours."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0
