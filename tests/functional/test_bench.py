"""The benchmarks run, with next to nothing to do: what they find does not matter here."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from benchmarks.measure import stats, tree
from tests.functional.running import eventually, without_proxies

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120
DESCRIPTORS = 16384
"""More than twice five thousand."""


def programs(pid: int) -> set[str]:
    """What a process and its descendants run."""
    names = set()
    for each in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            names.add(Path(f"/proc/{each.pid}/comm").read_text().strip())
    return names


class BenchTests(SynchronousTestCase):
    """The programs in ``benchmarks/``, as a user starts them."""

    def setUp(self) -> None:
        if shutil.which("cc") is None:
            raise SkipTest("there is no C compiler")

    def benchmark(self, program: str, *arguments: str) -> str:
        """What one of them prints; it has to succeed."""
        command = [sys.executable, "-m", f"benchmarks.{program}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=without_proxies(), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        self.assertEqual(done.returncode, 0, f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def quick(self, *arguments: str) -> dict[str, Any]:
        """The figures of a quick run."""
        path = Path(self.mktemp())
        printed = self.benchmark("run", "--quick", "--json", str(path.absolute()), *arguments)
        self.assertIn("CPU time of the proxy", printed)
        figures: dict[str, Any] = json.loads(path.read_text())
        return figures

    def test_proxyd(self) -> None:
        """Every kind of work is done, inside TLS too where OpenSSL's header files are, without anything failing."""
        report = self.quick("--only", "none", "--doors", "forward,connect+tls")
        self.assertEqual([row["notes"] for row in report["rows"] if row["notes"]], [])
        costs = {"new", "kept", "post160", "post512", "post160-expect", "post512-expect", "up", "down"}
        works = costs | {"latency4", "latency160", "rules", "workers"}
        if not report["missing"]:
            works |= {"resumed", "idle"}
        self.assertEqual({row["work"] for row in report["rows"] if row["figures"]}, works)

    def test_peers(self) -> None:
        """Whatever is installed is measured too, and the others are said to be missing."""
        report = self.quick("--doors", "connect,socks5", "--work", "new")
        present = set(report["versions"])
        missing = {text.partition(" ")[0] for text in report["missing"]}
        self.assertEqual(present | missing, {"proxyd", "squid", "nginx", "tinyproxy", "dante", "microsocks", "3proxy"})
        for row in report["rows"]:
            self.assertEqual([name for name, median in row["medians"].items() if median is None], [])

    def test_idle(self) -> None:
        """Five thousand idle tunnels are held through a door until the end, and each takes 6 KiB at most."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < DESCRIPTORS:
            raise SkipTest(f"the hard limit on open files is {hard}")
        printed = self.benchmark("idle", "--seconds", "0", "--doors", "connect,socks5")
        for door in ("connect", "socks5"):
            [memory] = re.findall(rf"\n{door} +5000 +0 +0 +(\S+)", printed)
            self.assertLessEqual(float(memory), 6.0, door)

    def test_stalled(self) -> None:
        """As many posts as an agent has in flight wait for a stalled origin, and the proxy keeps within its bound."""
        doors = ["forward", "connect", "forward+tls", "connect+tls"]
        printed = self.benchmark("stalled", "--doors", ",".join(doors))
        self.assertEqual(re.findall(r"\n(\S+) +22 .* within", printed), doors)

    def test_terminated(self) -> None:
        """Told to end, a program leaves nothing behind of what it has started."""
        command = [sys.executable, "-m", "benchmarks.idle", "--doors", "connect", "--tunnels", "10", "--seconds", "60"]
        process = subprocess.Popen(command, cwd=ROOT, env=without_proxies(), stdout=subprocess.DEVNULL)
        self.addCleanup(process.wait, TIMEOUT)
        self.addCleanup(process.kill)
        eventually(lambda: {"origin", "twistd", "load"} <= programs(process.pid), lambda: "all of them run")
        started = {each.pid for each in tree(process.pid)}
        process.terminate()
        self.assertEqual(process.wait(TIMEOUT), 143)
        self.assertEqual(started & {each.pid for each in stats()}, set())
