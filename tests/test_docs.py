"""The documentation names every option, error and key that there is, with the true defaults, and its examples work."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from proxyd.config import Config, ConfigError, packaged
from proxyd.errors import ErrorType
from proxyd.ledger.access_log import STOP_PATIENCE
from proxyd.ledger.record import AccessRecord
from proxyd.service import LAST_WORDS
from proxyd.settings import Settings
from proxyd.values import duration

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

SECTIONS = {
    "proxyd": "[proxyd]\n",
    "listener": "[listener:any]\nendpoint = tcp:0\naccept = connect\n",
    "users": "[users]\nfile = users.htpasswd\n",
    "group": "[group:people]\nmembers = alice\n",
    "rule": "[rule:any]\naction = allow\ndestinations = *\n",
}
"""The smallest section of each kind that says all that is required."""

ABSENT = "~"
"""An option that is in no section, and like none."""

ABSURD = {"duration": "999999999s", "size": "999999999999999", "number": "999999999"}
"""More than any option takes, by the type that the documentation gives it."""

FILES = ("users.htpasswd", "proxyd-cert.pem", "proxyd-key.pem", "client-ca.pem")
"""What the configurations in the documentation refer to."""

_CONFVAL = re.compile(r"^\.\. confval:: (\w+)\n   :type: (.+)\n   :default: (.+)\n", re.MULTILINE)
_RANGE = re.compile(r"(duration|size|number), (\S+) to (\S+?)(?:,|$)")
_QUOTED = re.compile(r'(?<!\*)\*"([^"*]+)"\*(?!\*)')


def page(name: str) -> str:
    """The source of one page."""
    return (DOCS / f"{name}.rst").read_text("utf-8")


def described() -> dict[str, tuple[str, str]]:
    """Type and default of every option, as the page on the configuration has them."""
    return {name: (kind, default) for name, kind, default in _CONFVAL.findall(page("configuration"))}


def readme() -> str:
    """The source of README."""
    return (ROOT / "README.md").read_text("utf-8")


def unit() -> str:
    """The unit for systemd."""
    return (DOCS / "examples" / "proxyd.service").read_text("utf-8")


def configurations() -> Iterator[tuple[str, str]]:
    """Every configuration that is shown, whole or in part, and where; units of systemd are none."""
    blocks = [("README", block) for block in re.findall(r"```ini\n(.*?)```", readme(), re.DOTALL)]
    for path in sorted(DOCS.glob("*.rst")):
        found = re.findall(r"code-block:: ini\n((?:\n| .*\n)+)", page(path.stem))
        blocks += [(path.stem, re.sub(r"^ +(:caption: .*\n)?", "", block, flags=re.MULTILINE)) for block in found]
    yield from ((name, block) for name, block in blocks if "[Socket]" not in block)


class DocsTestCase(SynchronousTestCase):
    """A folder with the files that configurations refer to."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)
        for name in FILES:
            (self.folder / name).touch()

    def read(self, text: str) -> Config:
        """A configuration in that folder."""
        path = self.folder / "proxyd.ini"
        path.write_text(text)
        return Config.from_path(path)

    def problem(self, kind: str, option: str, value: str) -> str:
        """What is wrong with the value of an option."""
        path = self.folder / "proxyd.ini"
        path.write_text("".join(SECTIONS.values()).replace(SECTIONS[kind], f"{SECTIONS[kind]}{option} = {value}\n"))
        error = self.assertRaises(ConfigError, Config.from_path, path)
        [message] = [str(problem.message) for problem in error.problems if problem.option == option]
        return message

    def options(self) -> dict[str, set[str]]:
        """The options of each kind of section, as told to who names one that is not there."""
        known = {kind: self.problem(kind, ABSENT, "").partition("known: ")[2] for kind in SECTIONS}
        return {kind: set(names.split(", ")) for kind, names in known.items()}


class ConfigurationTests(DocsTestCase):
    """The page on the configuration, and the example that has every option."""

    def test_every_option_is_described(self) -> None:
        """The page has the options that there are, each once, and no others."""
        names = [name for name, _, _ in _CONFVAL.findall(page("configuration"))]

        self.assertEqual(sorted(names), sorted(name for names in self.options().values() for name in names))

    def test_every_option_is_in_the_example(self) -> None:
        """The example configuration has the options that there are, each in its section, and no others."""
        found: dict[str, set[str]] = {}
        section = ""
        for line in packaged("example").splitlines():
            if header := re.match(r"#?\[(\w+)(?::\w[^\]]*)?\]$", line):
                section = header[1]
            elif option := re.match(r"#?(\w+) =", line):
                found.setdefault(section, set()).add(option[1])

        self.assertEqual(found, self.options())

    def test_defaults(self) -> None:
        """Whoever writes all defaults of the page into a file has said nothing new."""
        sections = dict(SECTIONS)
        count = 0
        for kind, names in self.options().items():
            for name in names:
                if default := re.fullmatch(r"``([^`]+)``", described()[name][1]):
                    sections[kind] += f"{name} = {default[1]}\n"
                    count += 1

        self.assertEqual(self.read("".join(sections.values())), self.read("".join(SECTIONS.values())))
        self.assertGreater(count, len(Settings.__slots__) - 4)

    def test_required(self) -> None:
        """An option is called required if nothing works without it."""
        required = {name for name, (_, default) in described().items() if default == "required"}

        self.assertEqual(required, set(re.findall(r"^(\w+) =", "".join(SECTIONS.values()), re.MULTILINE)))

    def test_ranges(self) -> None:
        """The least and the most that an option takes are those that its error names."""
        kinds = {name: kind for kind, names in self.options().items() for name in names}
        count = 0
        for name, (type, _) in described().items():
            if found := _RANGE.match(type):
                unit, least, most = found.groups()
                self.assertIn(f"from {least} to {most}", self.problem(kinds[name], name, ABSURD[unit]), name)
                count += 1

        self.assertGreater(count, 20)

    def test_examples(self) -> None:
        """Every configuration in the documentation works; those that show a part do with the rest added."""
        count = 0
        for name, text in configurations():
            whole = re.sub(r"/(var/log|etc)/proxyd/", "", text)
            if "[listener:" not in whole:
                whole += SECTIONS["listener"]
            if "action = allow" not in whole:
                whole += SECTIONS["rule"]
            try:
                self.read(whole)
            except ConfigError as error:
                self.fail(f"in {name}:\n{text}\n{error}")
            count += 1

        self.assertGreater(count, 10)


class TablesTests(SynchronousTestCase):
    """Tables that say the same as the source."""

    def test_errors(self) -> None:
        """Every error stands in its table, in the order of the source, with the answer of each door."""
        rows = re.findall(r"^   \* - ``(\w+)``\n     - (\S+)\n     - (\S+)\n     - \S", page("errors"), re.MULTILINE)

        self.assertEqual(
            rows, [(error.value, str(error.status or "–"), str(error.reply or "–")) for error in ErrorType]
        )

    def test_keys(self) -> None:
        """Every key of the access log is defined, in the order in which it stands in a line."""
        keys = re.findall(r"^   \* - ``(\w+)``\n", page("access-log"), re.MULTILINE)

        self.assertEqual(keys, [field.name for field in msgspec.structs.fields(AccessRecord)])

    def test_messages(self) -> None:
        """The messages that are quoted are those of the program."""
        source = "".join(path.read_text("utf-8") for path in sorted((ROOT / "proxyd").rglob("*.py")))
        quoted = {name: _QUOTED.findall(" ".join(page(name).split())) for name in ("errors", "operations", "agents")}
        missing = [
            f"{name}: {message}"
            for name, messages in quoted.items()
            for message in messages
            if not all(part.strip() in source for part in message.split("..."))
        ]

        self.assertEqual(missing, [])
        self.assertGreater(sum(map(len, quoted.values())), 10)


class FilesTests(SynchronousTestCase):
    """Files that the documentation hands out, or leads to."""

    def test_links(self) -> None:
        """Every file that README leads to is there."""
        links = re.findall(r"\]\(([^)#:]+)\)", readme())

        self.assertEqual([link for link in links if not (ROOT / link).is_file()], [])
        self.assertGreater(len(links), 10)

    def test_unit(self) -> None:
        """systemd understands the unit."""
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("systemd-analyze is not installed")
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        file = folder / "proxyd.service"
        file.write_text(unit().replace("/opt/proxyd/bin/proxyd", "/bin/true"))  # it looks whether programs are there

        done = subprocess.run([program, "verify", "--man=no", str(file)], capture_output=True, text=True, timeout=60)

        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_unit_waits_for_the_drain(self) -> None:
        """The unit gives a stop more time than a drain, the last words and the last records take."""
        [patience] = re.findall(r"^TimeoutStopSec=(.+)$", unit(), re.MULTILINE)

        self.assertGreater(duration(patience), Settings().drain_timeout + LAST_WORDS + STOP_PATIENCE)
