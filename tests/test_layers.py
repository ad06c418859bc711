"""The rooms of proxyd, and which may know of which: read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).parent.parent / "proxyd"

FLOORS = (
    ("errors",),
    ("request",),
    ("wire", "policy", "accounts", "ledger"),
    ("settings", "values", "certificates"),
    ("endpoint", "ini"),
    ("sections",),
    ("config",),
    ("net",),
    ("flow",),
    ("frontends",),
    ("entrance",),
    ("equipment",),
    ("listening",),
    ("service",),
    ("workers",),
    ("tap", "cli", "testing"),
)
"""Rooms, lowest floor first: a room imports from itself and from the floors below. Only ``__init__`` may import all."""

PURE = {room for rooms in FLOORS[: FLOORS.index(("net",))] for room in rooms}
"""The rooms below the I/O line: they do not know Twisted."""

CROSSINGS = {"accounts.accounts", "ledger.access_log"}
"""The two modules below the I/O line that may: both wait for a thread of their own."""

MAY_USE_INTERNET = {room for rooms in FLOORS for room in rooms} - PURE - {"cli"}

VAGUE = {"handler", "manager", "engine", "processor", "util", "context", "target", "helper"}
"""Words that tell that something is done, and not what."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package without ``proxyd.``, as in ``wire.http1``, and its source."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])
        yield name, ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.Module) -> Iterator[str]:
    """The full name of everything that is imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def is_in(name: str, package: str) -> bool:
    """Whether a full name is a package or something in it."""
    return name == package or name.startswith(package + ".")


def words(name: str) -> set[str]:
    """The words of a name, in lower case and the singular."""
    return {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


class LayersTests(SynchronousTestCase):
    """The import direction of the design, lowest first."""

    floor = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

    def test_every_room_has_a_floor(self) -> None:
        """A new room is given its floor here, before anything is built in it."""
        self.assertEqual({name.partition(".")[0] for name, _ in modules()} - {"__init__", *self.floor}, set())

    def test_direction(self) -> None:
        """A room imports from floors below its own, never from its neighbours and never from above."""
        wrong = []
        for name, tree in modules():
            room = name.partition(".")[0]
            for imported in set(imports(tree)) - {"proxyd.__version__"}:
                other = imported.split(".")[1] if is_in(imported, "proxyd") else room
                if room not in (other, "__init__") and self.floor.get(room, 0) <= self.floor.get(other, len(FLOORS)):
                    wrong.append(f"{name} imports {imported}")
        self.assertEqual(wrong, [])

    def test_absolute(self) -> None:
        """Imports are absolute, so that this test can read them."""
        relative = [f"{name}: {found}" for name, tree in modules() for found in imports(tree) if found.startswith(".")]
        self.assertEqual(relative, [])

    def test_pure(self) -> None:
        """Below the I/O line nothing imports Twisted, but for the two modules that wait for threads."""
        wrong = [
            f"{name} imports {found}"
            for name, tree in modules()
            for found in imports(tree)
            if is_in(found, "twisted") and name.partition(".")[0] in PURE and name not in CROSSINGS
        ]
        self.assertEqual(wrong, [])

    def test_internet(self) -> None:
        """``twisted.internet`` is known in the rooms that do I/O, and nowhere else."""
        wrong = [
            f"{name} imports {found}"
            for name, tree in modules()
            for found in imports(tree)
            if is_in(found, "twisted.internet") and name.partition(".")[0] not in MAY_USE_INTERNET
            if name not in CROSSINGS
        ]
        self.assertEqual(wrong, [])

    def test_reactor_is_an_argument(self) -> None:
        """Nothing imports the global reactor, but for the plugin's ``makeService``, which has to find it."""
        users = {name for name, tree in modules() if "twisted.internet.reactor" in imports(tree)}
        self.assertEqual(users - {"tap"}, set())

    def test_names_say_something(self) -> None:
        """No module and no class has a name that only tells that it does something."""
        vague = [name for name, _ in modules() if words(name) & VAGUE]
        for name, tree in modules():
            classes = (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
            vague += [f"{name}.{found}" for found in classes if words(found) & VAGUE]
        self.assertEqual(vague, [])

    def test_words(self) -> None:
        """Names are taken apart at capitals and underscores; abbreviations stay whole."""
        self.assertEqual(words("TLSContextFactory"), {"tl", "context", "factory"})
        self.assertEqual(words("net.http_utils"), {"net", "http", "util"})
