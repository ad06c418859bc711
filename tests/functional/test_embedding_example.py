"""The examples of the page on embedding run, and say what the page says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the Python that runs the tests."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)


class EmbeddingExampleTests(SynchronousTestCase):
    """What a reader copies works."""

    def test_lab(self) -> None:
        """The lab example prints the origin's answer and the one record of the request, and ends."""
        done = run(str(EXAMPLES / "lab.py"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        answer, line = done.stdout.splitlines()
        record = json.loads(line)
        self.assertEqual(answer, "200 hello from the origin")
        expected = {"listener": "lab", "protocol": "forward", "method": "GET", "status": 200, "rule": "origin"}
        self.assertEqual({name: record.get(name) for name in expected}, expected)
        self.assertEqual(record["destination"], record["address"])

    def test_policy_test(self) -> None:
        """The example of a test passes."""
        done = run("-m", "unittest", str(EXAMPLES / "policy_test.py"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Ran 5 tests", done.stderr)

    def test_page(self) -> None:
        """The page shows both files themselves, not copies of them."""
        page = (ROOT / "docs" / "embedding.rst").read_text("utf-8")
        for example in ("lab.py", "policy_test.py"):
            self.assertIn(f".. literalinclude:: examples/{example}\n", page)
