"""Tests for the public names of proxyd."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import proxyd
import proxyd.testing

PUBLIC = [
    *("AccessRecord", "Config", "ConfigError", "Decision", "Destination", "Door", "ErrorType", "Identity"),
    *("ListenError", "Policy", "Proxy", "ProxyError", "ReloadReport", "Request", "Rule", "Verdict", "__version__"),
]

DOUBLES = [
    *("Dial", "Ending", "Faults", "Lab", "LabReactor", "MemoryPort", "MemoryTransport", "Origin", "OriginPeer"),
    *("Peer", "Reach", "RebindingResolver", "RecordList", "ScriptedDialer", "StaticResolver", "joined"),
]

LOADED = "import sys; %s; print(*(name for name in ('twisted', 'twisted.internet.reactor') if name in sys.modules))"


def loaded_by(statement: str) -> list[str]:
    """Whether a fresh interpreter that runs a statement has loaded Twisted, and whether the global reactor."""
    command = [sys.executable, "-c", LOADED % statement]
    root = Path(proxyd.__file__).parent.parent
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=60).stdout.split()


class ExportsTests(SynchronousTestCase):
    """What ``from proxyd import`` and ``from proxyd.testing import`` offer, and what that costs."""

    def test_names(self) -> None:
        """These names are public: one that goes is a removal, one that comes is a promise."""
        self.assertEqual(sorted(proxyd.__all__), PUBLIC)

    def test_names_of_doubles(self) -> None:
        """So are these."""
        self.assertEqual(sorted(proxyd.testing.__all__, key=str.lower), sorted(DOUBLES, key=str.lower))

    def test_all_exist(self) -> None:
        """Every public name leads to the thing that is called so, which has a docstring."""
        for module in (proxyd, proxyd.testing):
            for name in set(module.__all__) - {"__version__"}:
                found = getattr(module, name)
                self.assertEqual(found.__name__, name)
                self.assertTrue(found.__doc__, name)

    def test_unknown_name(self) -> None:
        """Any other name is an AttributeError that tells it."""
        error = self.assertRaises(AttributeError, lambda: proxyd.Nothing)
        self.assertEqual(str(error), "module 'proxyd' has no attribute 'Nothing'")

    def test_listed(self) -> None:
        """Interactive help lists the public names though they are not loaded yet."""
        self.assertLessEqual(set(PUBLIC), set(dir(proxyd)))

    def test_version_is_a_literal(self) -> None:
        """Setuptools reads the version from the source, without importing what is not installed yet."""
        tree = ast.parse(Path(proxyd.__file__).read_text("utf-8"))
        values = [
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and [ast.unparse(name) for name in node.targets] == ["__version__"]
        ]
        self.assertEqual(values, [proxyd.__version__])

    def test_package_is_cheap(self) -> None:
        """Importing the package, or a codec in it, does not load Twisted."""
        self.assertEqual(loaded_by("import proxyd, proxyd.wire.http1, proxyd.config"), [])

    def test_no_global_reactor(self) -> None:
        """Neither the service nor the doubles install the global reactor: the program chooses which one it has."""
        self.assertEqual(loaded_by("from proxyd import Proxy; import proxyd.testing"), ["twisted"])
