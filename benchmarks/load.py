"""The origin and the load, compiled from ``load/`` as they are needed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.doors import DIRECT, Door
from benchmarks.measure import bound_to

SOURCES = Path(__file__).parent / "load"
LIMIT = 120
"""Seconds that one amount of work may take; what is not done by then counts as errors."""


class LoadError(Exception):
    """The load cannot be built, or did not do its work; the message says why."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much the load does, and how."""

    connections: int
    at_once: int
    exchanges: int = 1
    """Requests on each connection, one after the other."""
    up: int = 0
    """Bytes of each request's body; without any the request is a GET."""
    down: int = 200
    """Bytes of each response's body."""
    expect: bool = False
    """Whether requests wait for 100 Continue before they send their body, and fail if it takes a second."""
    resume: bool = False
    """Whether TLS sessions are resumed; else every connection is a full handshake."""

    def options(self) -> list[str]:
        """As the load wants to be told."""
        numbers = {
            "connections": self.connections,
            "at_once": self.at_once,
            "exchanges": self.exchanges,
            "up": self.up,
            "down": self.down,
            "expect": int(self.expect),
            "resume": int(self.resume),
        }
        return [f"{name}={value}" for name, value in numbers.items()]


@dataclass(frozen=True, slots=True)
class Way:
    """How the load reaches the origin."""

    origin: int
    """The origin's port."""
    door: Door = DIRECT
    port: int = 0
    """The proxy's."""
    user: str = ""
    """``name:password`` for the proxy."""
    host: str = "127.0.0.1"
    """What the origin is called."""
    tls: str = "1.3"
    """The version of TLS to the proxy, where the door has TLS."""

    def options(self) -> list[str]:
        """As the load wants to be told."""
        version = self.tls.replace(".", "") if self.door.tls else "0"
        way = {"door": self.door.kind, "host": self.host, "user": self.user}
        ports = {"proxy": self.port, "origin": self.origin, "tls": version}
        return [f"{name}={value}" for name, value in {**way, **ports}.items()]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an amount of work."""

    seconds: float
    connections: int
    exchanges: int
    errors: int
    error: str
    """The first."""
    reopened: int
    """Connections that the proxy closed between two requests."""
    resumed: int
    """TLS sessions."""
    p50: float
    """Microseconds from a request's first byte to its response's last, and so is `p99`."""
    p99: float

    @classmethod
    def parse(cls, line: str) -> Outcome:
        """Read the line that the load prints.

        Raises:
            LoadError: it has printed nothing of the kind.
        """
        try:
            told: dict[str, Any] = json.loads(line)
            return cls(**told)
        except (ValueError, TypeError):
            raise LoadError(f"the load did not do its work, but said {line!r}") from None


@dataclass(frozen=True, slots=True)
class Load:
    """The two programs, compiled into a folder."""

    folder: Path
    processors: frozenset[int]
    tls: bool = True
    """Whether it can speak TLS, for which it needs OpenSSL's header files."""

    @classmethod
    def build(cls, folder: Path, processors: frozenset[int]) -> Load:
        """Compile them, without TLS if OpenSSL's header files are missing.

        Raises:
            LoadError: there is no C compiler, or it fails.
        """
        _compile(folder / "origin", "origin.c", "line.c")
        try:
            _compile(folder / "load", "load.c", "client.c", "line.c", "-DWITH_TLS", "-lssl", "-lcrypto")
        except LoadError:
            _compile(folder / "load", "load.c", "client.c", "line.c")
            return cls(folder, processors, tls=False)
        return cls(folder, processors)

    @contextmanager
    def origin(self) -> Iterator[int]:
        """An origin, as its port."""
        with self._start([str(self.folder / "origin")]) as process:  # which closes its standard input at the end
            assert process.stdout is not None
            yield int(process.stdout.readline())

    def run(self, way: Way, amount: Amount, limit: int = LIMIT) -> Outcome:
        """Do the work."""
        command = self._command("run", way, amount, limit)
        with bound_to(self.processors):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=2 * limit, check=False
            )
        return Outcome.parse(done.stdout)

    def hold(self, way: Way, amount: Amount, limit: int = LIMIT) -> Held:
        """Do the work, and keep the connections until the end of the ``with``."""
        return Held(self._start(self._command("hold", way, amount, limit)))

    def _command(self, verb: str, way: Way, amount: Amount, limit: int) -> list[str]:
        return [str(self.folder / "load"), verb, *way.options(), *amount.options(), f"limit={limit}"]

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        with bound_to(self.processors):
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Held:
    """Connections that are kept open: in a ``with`` it gives what came of opening them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.lost = 0
        """At the end: how many the proxy has closed meanwhile."""

    def __enter__(self) -> Outcome:
        assert self._process.stdout is not None
        self._opened = Outcome.parse(self._process.stdout.readline())
        return self._opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        output, _ = self._process.communicate(timeout=LIMIT)
        if kind is None:
            self.lost = Outcome.parse(output).errors - self._opened.errors


def _compile(program: Path, *arguments: str) -> None:
    command = ["cc", "-O2", "-o", str(program), *arguments]
    try:
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LoadError(
            "the load is written in C: install a C compiler (on Debian: gcc libc6-dev libssl-dev)"
        ) from None
    if done.returncode:
        raise LoadError(f"{' '.join(command)} failed:\n{done.stderr}")
