"""The commands that README promises, run as they are printed: ``make run``, and curl through every door."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, TestCase

from tests.functional.running import PATIENCE, TROUBLE, eventually, without_proxies

ROOT = Path(__file__).parent.parent.parent
PORTS = (8000, 8080, 8443, 1080, 9000)
"""What README has: the origin's port, and those of the embedded configuration."""

PAGE = b"It works.\n"

DOORS = [
    ("http", "forward"),
    ("http", "connect"),
    ("connect", "connect"),
    ("socks5", "socks5"),
    ("all", "forward"),
    ("all", "connect"),
    ("all", "socks5"),
    ("all", "forward"),
    ("all", "connect"),
]
"""The listener and the protocol of each line in turn; the last two are inside TLS."""

_MARKED = r"<!-- tests/functional/test_readme\.py runs \w+: {} -->\n```\w+\n(.*?)```\n"


def marked(mark: str) -> list[str]:
    """The lines of a block that README marks for this test, without comments and blank ones."""
    [block] = re.findall(_MARKED.format(mark), (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def environment() -> dict[str, str]:
    """Ours, without proxies, and without what a ``make`` that runs the tests hands down to the next."""
    return {name: value for name, value in without_proxies().items() if not name.startswith(("MAKE", "MFLAGS"))}


def make_run() -> list[str]:
    """``make run`` for any directory, with the programs of this environment in place of an installation."""
    variables = ["VENV=.venv", f"BIN={Path(sys.executable).parent}"]
    return ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "-o", ".venv/installed", *variables, "run"]


class ReadmeTests(TestCase):
    """README from its first command on, on the ports that it names."""

    def setUp(self) -> None:
        for program in ("make", "curl", "python3"):
            if shutil.which(program) is None:
                raise SkipTest(f"{program} is not installed")
        for port in PORTS:
            self.skip_if_taken(port)
        self.folder = Path(self.mktemp()).absolute()
        self.site = self.folder / "site"
        self.site.mkdir(parents=True)
        (self.site / "index.html").write_bytes(PAGE)
        self.log = self.folder / "proxyd.log"

    def skip_if_taken(self, port: int) -> None:
        """The ports are fixed: somebody else may have one."""
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise SkipTest(f"a port that README names is not free: {error.strerror}") from None

    def start(self, command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start a program with a process group of its own, which is ended when the test is."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a program and what it has started."""
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise

    def wait_for(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        """Return once a port takes connections."""

        def listens() -> bool:
            self.assertIsNone(process.poll(), log.read_text())
            with socket.socket() as probe:
                return not probe.connect_ex(("127.0.0.1", port))

        eventually(listens, lambda: f"port {port} is open\n{log.read_text()}")

    def run_line(self, line: str) -> bytes:
        """What a line prints; it has to succeed."""
        done = subprocess.run(
            ["sh", "-c", line], cwd=self.folder, env=environment(), capture_output=True, timeout=PATIENCE
        )
        self.assertEqual(done.returncode, 0, f"{line}\n{done.stderr.decode()}\n{self.log.read_text()}")
        return done.stdout

    def records(self) -> list[dict[str, Any]]:
        """The access records among what proxyd has printed."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def test_lines(self) -> None:
        """``make run`` starts a proxy through which every line prints the page, each by its own door."""
        [origin_line] = marked("origin")
        origin_log = self.folder / "origin.log"
        origin = self.start(["sh", "-c", origin_line], self.site, origin_log)
        proxyd = self.start(make_run(), self.folder, self.log)
        self.wait_for(PORTS[0], origin, origin_log)
        for port in PORTS[1:]:
            self.wait_for(port, proxyd, self.log)

        for line in marked("clients"):
            self.assertEqual(self.run_line(line), PAGE, line)
        [denied, answer] = marked("denial")
        printed = self.run_line(denied.removeprefix("$ ")).decode()
        self.stop(proxyd)

        self.assertEqual(re.sub(r"\(id .*\)", "(id)", printed), re.sub(r"\(id .*\)", "(id)", answer) + "\n")
        records = self.records()
        self.assertEqual([(record["listener"], record["protocol"]) for record in records[:-1]], DOORS)
        self.assertEqual({record["rule"] for record in records[:-1]}, {"this-machine"})
        self.assertEqual(records[-1]["decision"], "deny")
        for word in TROUBLE:
            self.assertNotIn(word, self.log.read_text())

    def test_again(self) -> None:
        """A second ``make run`` keeps the configuration and the certificate that are there."""
        names = ("proxyd.ini", "proxyd-cert.pem", "proxyd-key.pem")
        states = []
        for _ in range(2):
            proxyd = self.start(make_run(), self.folder, self.log)
            self.wait_for(PORTS[-1], proxyd, self.log)
            states.append([(self.folder / name).read_bytes() for name in names])
            self.stop(proxyd)

        self.assertEqual(*states)
