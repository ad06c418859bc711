"""``proxyd.ini`` as a value that never changes, or everything that is wrong with it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from proxyd.ini import ConfigError, Problem, Problems, Section, read_sections
from proxyd.policy.rules import Rule
from proxyd.sections import Names, read_group, read_listener, read_rule, read_settings, read_users
from proxyd.settings import ClientCertificate, Listener, Settings, TLSFiles, Users
from proxyd.values import suggestion

__all__ = [
    "ClientCertificate",
    "Config",
    "ConfigError",
    "Listener",
    "Problem",
    "Rule",
    "Settings",
    "TLSFiles",
    "Users",
    "packaged",
]

_SINGLE = ("proxyd", "users")
_NAMED = ("listener", "group", "rule")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")  # stands in logs, header fields and metrics as it is


@dataclass(frozen=True, slots=True)
class Config:
    """One configuration, whole and free of contradictions: what ``proxyd.ini`` says."""

    settings: Settings
    listeners: tuple[Listener, ...]
    users: Users | None
    groups: Mapping[str, frozenset[str]]
    rules: tuple[Rule, ...]
    path: Path | None
    """The file it was read from, to be read again at a reload."""

    @classmethod
    def from_path(cls, path: str | Path) -> Config:
        """Read a file; relative paths in it are relative to its directory.

        Raises:
            ConfigError: with all problems at once.
        """
        path = Path(path)
        return _Reading(_text(path), str(path), path.absolute().parent).config(path)

    @classmethod
    def from_string(cls, text: str, filename: str = "<string>") -> Config:
        """Read a text; relative paths in it are relative to the working directory.

        Args:
            filename: What the problems call the text.

        Raises:
            ConfigError: with all problems at once.
        """
        return _Reading(text, filename, Path.cwd()).config(None)

    @classmethod
    def embedded(cls) -> Config:
        """The configuration of a proxyd that was given none: every door, on loopback only."""
        return cls.from_string(packaged("proxyd"), "<embedded proxyd.ini>")


def packaged(name: str) -> str:
    """The text of an ini file that comes with the package: ``proxyd``, ``example`` or ``from-nginx``."""
    return (files("proxyd") / "defaults" / f"{name}.ini").read_text("utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, None, None, f"it cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, None, None, "it is not text in UTF-8; save it as UTF-8")]) from None


class _Reading:
    """One ini file on its way to a configuration: its sections by kind, and the problems found in them."""

    def __init__(self, text: str, filename: str, directory: Path) -> None:
        self._directory = directory
        self._problems = Problems(filename)
        self._last_line = text.count("\n") + 1
        self._sections: dict[str, list[Section]] = {kind: [] for kind in _SINGLE + _NAMED}
        for section in read_sections(text, self._problems):
            if _is_known(section):
                self._sections[section.kind].append(section)

    def config(self, path: Path | None) -> Config:
        settings = [read_settings(section, self._directory) for section in self._sections["proxyd"]]
        users = [read_users(section, self._directory) for section in self._sections["users"]]
        config = Config(
            settings=settings[0] if settings else Settings(),
            listeners=self._listeners(),
            users=users[0] if users else None,
            groups={section.name: read_group(section) for section in self._sections["group"]},
            rules=self._rules(),
            path=path,
        )
        for section in itertools.chain.from_iterable(self._sections.values()):
            section.finish()
        self._problems.check()
        return config

    def _listeners(self) -> tuple[Listener, ...]:
        if not self._sections["listener"]:
            self._problems.add(self._last_line, "there is no listener; add [listener:NAME] with endpoint and accept")
        listeners: dict[str, Listener] = {}
        for section in self._sections["listener"]:
            listener = read_listener(section, self._directory)
            if listener is None:
                continue
            place = section.name if _is_any_port(listener.endpoint) else listener.endpoint
            other = listeners.setdefault(place, listener)
            if other is not listener:
                section.problem(f"[listener:{other.name}] listens there; choose another port or path", "endpoint")
        return tuple(listeners.values())

    def _rules(self) -> tuple[Rule, ...]:
        names = self._names()
        rules = tuple(read_rule(section, names) for section in self._sections["rule"])
        if not any(rule.allow for rule in rules):
            self._problems.add(
                self._last_line, "nothing is allowed; add [rule:NAME] with action = allow and destinations"
            )
        return rules

    def _names(self) -> Names:
        # Names of sections that have problems count: a rule that refers to one of them is not wrong for that.
        return Names(
            listeners=frozenset(section.name for section in self._sections["listener"]),
            groups=frozenset(section.name for section in self._sections["group"]),
            identities=bool(self._sections["users"])
            or any("client_ca" in section for section in self._sections["listener"]),
        )


def _is_any_port(endpoint: str) -> bool:
    kind, port, *_ = endpoint.split(":")
    return kind in ("tcp", "tcp6") and port == "0"  # the kernel chooses one, a different one for each


def _is_known(section: Section) -> bool:
    if section.kind not in _SINGLE + _NAMED:
        section.problem(f"there is no such section; {suggestion(section.kind, _SINGLE + _NAMED)}")
    elif section.kind in _SINGLE and section.header != section.kind:
        section.problem(f"it takes no name; write [{section.kind}]")
    elif section.kind in _NAMED and not _NAME.match(section.name):
        section.problem(f"it needs a name of letters, digits, dots and dashes; write [{section.kind}:NAME]")
    else:
        return True
    return False
