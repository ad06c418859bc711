"""Proxies that run for a measurement, and how proxyd is one of them."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.doors import Door
from benchmarks.load import Way
from benchmarks.program import Program
from proxyd.accounts.htpasswd import set_password
from proxyd.certificates import SelfSigned

PROXYD = "proxyd"
USER, PASSWORD = "agent", "a password of some length"
TUNNELS = 20000
"""As many connections as one client address may have: all of the load comes from one."""
RULES = 10


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that takes connections."""

    name: str
    program: Program
    ports: Mapping[Door, int]
    """Where each door is that it has."""
    user: str = ""
    """``name:password`` of who may use it."""

    def way(self, door: Door, origin: int, *, host: str = "127.0.0.1", tls: str = "1.3") -> Way:
        """Through this proxy to an origin on that port."""
        return Way(origin, door, self.ports[door], self.user, host, tls)


@dataclass(frozen=True, slots=True)
class Setup:
    """What of proxyd is measured: always with an access log, a policy, and users who prove who they are."""

    rules: int = RULES
    """One for each destination, of which the last is the one that matches."""
    workers: int = 1
    also: tuple[int, ...] = ()
    """Ports of further origins."""

    def start(self, folder: Path, origin: int, ports: Mapping[Door, int], processors: frozenset[int]) -> Proxy:
        """Start it, to serve an origin on that port."""
        make_certificate(folder)
        set_password(folder / "users.htpasswd", USER, PASSWORD.encode())
        config = folder / "proxyd.ini"
        config.write_text(self.configuration({door.listener: port for door, port in ports.items()}, origin))
        twistd = Path(sys.executable).with_name("twistd")
        command = [str(twistd), "--nodaemon", "--pidfile=", "proxyd", "--config", str(config)]
        return started(PROXYD, command, folder, ports, processors, f"{USER}:{PASSWORD}")

    def configuration(self, listeners: Mapping[str, int], origin: int) -> str:
        """Its ``proxyd.ini``, with the port of each listener."""
        lines = ["[proxyd]", "access_log_json = access.json", f"max_connections_per_client = {TUNNELS}"]
        lines += ["drain_timeout = 0", f"workers = {self.workers}", "[users]", "file = users.htpasswd"]
        for name, port in listeners.items():
            lines += _listener(name, port)
        for number in range(1, self.rules):
            lines += [f"[rule:other-{number}]", "action = allow", f"users = {USER}", f"destinations = {_other(number)}"]
        ports = f"ports = {' '.join(map(str, (origin, *self.also)))}"
        lines += ["[rule:origin]", "action = allow", f"users = {USER}", ports]
        lines += ["destinations = 127.0.0.1 ::1 localhost", "special_addresses = yes", ""]
        return "\n".join(lines)


def _listener(name: str, port: int) -> list[str]:
    endpoint = f"tcp:{port}:interface=127.0.0.1:backlog=4096"
    if name.endswith("-tls"):
        endpoint = f"ssl{endpoint.removeprefix('tcp')}:certKey=proxyd-cert.pem:privateKey=proxyd-key.pem"
    accept = "socks5" if name.startswith("socks5") else "forward connect"
    return [f"[listener:{name}]", f"endpoint = {endpoint}", f"accept = {accept}"]


def _other(number: int) -> str:
    """A destination that the load never asks for: names, domains and networks in turn."""
    network = f"10.{number >> 8 & 255}.{number & 255}.0/24"
    return (f"host{number}.example.com", f".domain{number}.example.net", network)[number % 3]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of the same kind for every proxy, and its key: P-256."""
    return SelfSigned.make(["127.0.0.1", "localhost"], datetime.datetime.now(datetime.UTC)).write(folder)


def started(
    name: str,
    command: Iterable[str],
    folder: Path,
    ports: Mapping[Door, int],
    processors: frozenset[int],
    user: str = "",
) -> Proxy:
    """Start a proxy, and wait until it takes connections on all its ports.

    Raises:
        ProgramError: it does not.
    """
    program = Program(name, list(command), folder, processors)
    try:
        program.wait_for(sorted(set(ports.values())))
    except BaseException:
        program.stop()
        raise
    return Proxy(name, program, ports, user)
