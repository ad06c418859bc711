"""A real twistd for a test: its files, its ports, its logs, its end."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from proxyd.accounts.htpasswd import set_password
from proxyd.certificates import SelfSigned
from tests.functional.names import NameServer
from tests.functional.origin import Origin

PATIENCE = 30.0
"""Seconds after which something that has to happen counts as not happening: a bound, never a measure."""

LOOK_AGAIN = 0.02
"""Seconds between two looks at something that gives no sign by itself."""

TROUBLE = ("Traceback", "Unhandled", "proxyd has a bug", "#critical")
"""What no client and no origin may bring into the log."""

COUNTED = """
import resource
from coverage import Coverage
from twisted.internet import reactor
from twisted.scripts.twistd import run

def save():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a test may have left none for the file
    Coverage.current().save()

reactor.addSystemEventTrigger("after", "shutdown", save)
run()
"""
"""A twistd whose lines are counted: Twisted ends a process by the signal it got, which would lose the counts."""

TWISTD = [str(Path(sys.executable).with_name("twistd"))]
if "COVERAGE_PROCESS_CONFIG" in os.environ:
    TWISTD = [sys.executable, "-c", COUNTED]

PROJECT = "proj.cn-hangzhou.log.aliyuncs.com"
OTHER_PROJECT = "other.cn-hangzhou.log.aliyuncs.com"
CONTROL = "logtail.cn-hangzhou.log.aliyuncs.com"
MONITORING = "ali-cn-hangzhou-sls-admin.cn-hangzhou.log.aliyuncs.com"
NAMES = (PROJECT, OTHER_PROJECT, CONTROL, MONITORING)
"""The hosts of the log service that agents speak to; here the origin answers for all of them."""


def without_proxies(**more: str) -> dict[str, str]:
    """Our environment, in which nothing names a proxy but what is added."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | more


def free_ports(*names: str) -> dict[str, int]:
    """A port that nobody listens on for each name, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    try:
        return {name: held.getsockname()[1] for name, held in zip(names, sockets, strict=True)}
    finally:
        for held in sockets:
            held.close()


def eventually(look: Callable[[], Any], what: Callable[[], str]) -> Any:
    """The first true thing that ``look`` gives, for as long as our patience lasts."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"not in {PATIENCE:.0f} s: {what()}"
        time.sleep(LOOK_AGAIN)
    return found


class Proxyd:
    """One ``twistd proxyd`` with the files of its folder, from start to end."""

    def __init__(
        self, folder: Path, config: str, ports: Mapping[str, int], *, host: str = "127.0.0.1", descriptors: int = 0
    ) -> None:
        self.folder = folder
        self.host = host
        self.ports = ports
        self.config = folder / "proxyd.ini"
        self.config.write_text(config)
        self.log_path = folder / "twistd.log"
        self.access_path = folder / "access.json"
        self.squid_path = folder / "access.squid"
        command = [*TWISTD, "-n", "--pidfile=", "proxyd", "-c", str(self.config)]
        if descriptors:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=without_proxies()
            )

    @property
    def log(self) -> str:
        """What twistd has printed so far."""
        return self.log_path.read_text(errors="replace")

    def wait_until_listening(self) -> None:
        """Return once every port takes connections; fail if the process ends before."""
        for port in self.ports.values():
            eventually(lambda port=port: self._listens(port), lambda port=port: f"port {port} is open\n{self.log}")

    def _listens(self, port: int) -> bool:
        assert self.process.poll() is None, f"twistd ended with {self.process.returncode}:\n{self.log}"
        try:
            socket.create_connection((self.host, port), PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True

    def records(self, count: int) -> list[dict[str, Any]]:
        """The access records, once there are that many."""
        eventually(lambda: len(self._lines()) >= count, lambda: f"{count} records; there are {self._lines()}")
        return [json.loads(line) for line in self._lines()]

    def _lines(self) -> list[bytes]:
        return self.access_path.read_bytes().splitlines()

    def all_records(self) -> list[dict[str, Any]]:
        """Every access record of this proxy, which is stopped for that."""
        self.stop()
        return [json.loads(line) for line in self._lines()]

    def signal(self, number: signal.Signals) -> None:
        """Tell it something."""
        self.process.send_signal(number)

    def wait_for_log(self, words: str) -> None:
        """Return once that stands in the log."""
        eventually(lambda: words in self.log, lambda: f"{words!r} in the log:\n{self.log}")

    def status(self, field: str) -> int:
        """A number of ``/proc/PID/status``: KiB for sizes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0])
        raise LookupError(field)

    def descriptors(self) -> set[int]:
        """The numbers of the files and sockets that it has open."""
        return set(map(int, os.listdir(f"/proc/{self.process.pid}/fd")))

    def processor_time(self) -> float:
        """Seconds of processor time that it has used (proc(5): utime and stime are fields 14 and 15)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def leave_descriptors(self, number: int) -> None:
        """Let it open that many files and sockets more: new ones have the lowest free numbers, all below the limit.

        0 is for good: what it closes leaves no room either.
        """
        unused = (descriptor for descriptor in itertools.count() if descriptor not in self.descriptors())
        limit = next(itertools.islice(unused, number, None)) if number else 0
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (limit, hard))

    def stop(self) -> int:
        """End it as an init system does; the exit status, negative for the signal it died of."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """The exit status, once it has ended."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise


class ProxydTestCase(TestCase):
    """Tests that start programs, in a folder of their own; whatever they started has ended afterwards."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)

    def start_origin(self, *, address: str = "127.0.0.1", ports: tuple[int, int] = (0, 0)) -> Origin:
        """An origin for all the names."""
        folder = self.folder / "origin"
        folder.mkdir()
        origin = Origin(folder, NAMES, address, ports)
        self.addCleanup(self._check_origin, origin)
        self.addCleanup(origin.close)
        return origin

    def _check_origin(self, origin: Origin) -> None:
        self.assertEqual(origin.errors, [])

    def start_names(self, address: str = "127.0.0.1") -> NameServer:
        """A DNS server that has this address for all the names, and no other name."""
        names = NameServer(dict.fromkeys(NAMES, address))
        self.addCleanup(names.close)
        return names

    def make_certificate(self, *, rsa: bool = False, folder: Path | None = None) -> Path:
        """A certificate for a proxy on 127.0.0.1, as ``proxyd-cert.pem``; with it comes ``proxyd-key.pem``."""
        made = SelfSigned.make(["127.0.0.1", "::1"], datetime.datetime.now(datetime.UTC), with_rsa=rsa)
        certificate, _ = made.write(folder or self.folder)
        return certificate

    def add_user(self, name: str, password: str) -> None:
        """Set a password in ``users.htpasswd``."""
        set_password(self.folder / "users.htpasswd", name, password.encode())

    def start_proxyd(
        self, config: str, ports: Mapping[str, int], *, host: str = "127.0.0.1", descriptors: int = 0
    ) -> Proxyd:
        """A proxy that takes connections on these ports, with a quick access log in both formats.

        ``config`` begins with options of the section ``[proxyd]``.
        """
        proxyd = Proxyd(self.folder, self.with_defaults(config), ports, host=host, descriptors=descriptors)
        self.addCleanup(self._check_end, proxyd)
        proxyd.wait_until_listening()
        return proxyd

    @staticmethod
    def with_defaults(config: str) -> str:
        """The same configuration with what all tests want in it."""
        head = ["[proxyd]"]
        for option, value in DEFAULTS.items():
            if f"{option} =" not in config:
                head.append(f"{option} = {value}")
        return "\n".join([*head, config])

    def _check_end(self, proxyd: Proxyd) -> None:
        stopped = proxyd.process.poll() is None
        status = proxyd.stop()
        if stopped:
            self.assertIn(status, (0, -signal.SIGTERM), proxyd.log)
        for word in TROUBLE:
            self.assertNotIn(word, proxyd.log)


DEFAULTS = {
    "access_log_json": "access.json",
    "access_log_squid": "access.squid",
    "access_log_flush": "10ms",
    "drain_timeout": "2s",
}
"""Options of the section ``[proxyd]`` for all tests that do not say otherwise."""
