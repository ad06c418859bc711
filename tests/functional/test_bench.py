"""The benchmarks run, with next to nothing to do: what they find does not matter here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.functional.running import without_proxies

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120


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
        """Tunnels are held through a door, and all are there until the end."""
        printed = self.benchmark("idle", "--tunnels", "50", "--seconds", "0", "--doors", "connect")
        self.assertRegex(printed, r"\nconnect +50 +0 +0 ")

    def test_stalled(self) -> None:
        """Posts to a stalled origin are held, and the proxy keeps within its bound."""
        printed = self.benchmark("stalled", "--posts", "12", "--doors", "forward")
        self.assertRegex(printed, r"\nforward +12 .* within\n")
