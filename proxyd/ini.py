"""An ini file as configparser reads it, with the line of every section and option and every problem found."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from proxyd.values import Read, suggestion

T = TypeVar("T")
D = TypeVar("D")

_HEADER = re.compile(r"\[(?P<header>[^\]]+)\]\s*$")
_COMMENT = ("#", ";")
_SEPARATORS = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration, where it stands, and how to put it right."""

    file: str
    line: int
    """0: the file as a whole."""
    section: str | None
    option: str | None
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        section = f"[{self.section}] " if self.section else ""
        option = f"{self.option}: " if self.option else ""
        return f"{place}: {section}{option}{self.message}"


class ConfigError(Exception):
    """A configuration cannot be used; ``problems`` tells everything that is wrong with it, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__("\n".join(map(str, self.problems)))


class Problems:
    """The problems found so far in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Problem] = []

    def add(self, line: int, message: str, section: str | None = None, option: str | None = None) -> None:
        """Take note of a problem."""
        self.found.append(Problem(self.file, line, section, option, message))

    def check(self) -> None:
        """Raise all that was found, if anything was.

        Raises:
            ConfigError: there are problems.
        """
        if self.found:
            raise ConfigError(self.found)


@dataclass(frozen=True, slots=True)
class Option:
    """The text of one option, and the lines of the file from the one where it begins."""

    text: str
    line: int
    lines: Sequence[str]

    def words(self) -> list[str]:
        """The elements of a list, which are separated by blanks, commas or new lines."""
        return [word for word in _SEPARATORS.split(self.text) if word]

    def line_of(self, word: str) -> int:
        """The line that one of the words stands in."""
        for number, line in enumerate(self.lines[self.line - 1 :], self.line):
            if not line.lstrip().startswith(_COMMENT) and word in re.split(r"[\s,=]+", line):
                return number
        return self.line


class Section:
    """One section of an ini file, which gives each option's value once and takes note of what is wrong with it.

    ``kind`` and ``name`` are the parts of its header ``[kind:name]``; the name is empty for ``[kind]``.
    """

    def __init__(self, header: str, line: int, options: Mapping[str, Option], problems: Problems) -> None:
        self.header = header
        self.kind, _, self.name = header.partition(":")
        self.line = line
        self._options = options
        self._problems = problems
        self._known: set[str] = set()

    def __contains__(self, option: str) -> bool:
        return option in self._options

    def problem(self, message: str, option: str | None = None, word: str | None = None) -> None:
        """Take note of a problem with the section, with one of its options, or with one word of a list."""
        line = self.line
        if option is not None and option in self._options:
            line = self._options[option].line if word is None else self._options[option].line_of(word)
        self._problems.add(line, message, self.header, option)

    def take(self, option: str, read: Read[T], default: D) -> T | D:
        """The value of an option, or the default if it is not there (or wrong, which is then noted)."""
        self._known.add(option)
        if option not in self._options:
            return default
        text = self._options[option].text
        if "\n" in text:
            self.problem("it takes one line; a line that begins with a blank goes on with the one above", option)
            return default
        return self._read(option, text, read, default)

    def take_list(self, option: str, read: Read[T]) -> tuple[T, ...]:
        """The values of an option that lists one or more words, or none if it is not there.

        A list without words is refused: it could be taken for everything as well as for nothing.
        """
        self._known.add(option)
        if option not in self._options:
            return ()
        words = self._options[option].words()
        if not words:
            self.problem("it is empty; list something, or remove the option", option)
        values = [self._read(option, word, read, None, word) for word in words]
        return tuple(value for value in values if value is not None)

    def _read(self, option: str, text: str, read: Read[T], default: D, word: str | None = None) -> T | D:
        try:
            return read(text)
        except ValueError as error:
            hint = "; comments stand on lines of their own" if "#" in self._options[option].text else ""
            self.problem(f"{error}{hint}", option, word)
            return default

    def require(self, option: str, what: str) -> None:
        """Take note of a problem if an option is not there."""
        if option not in self._options:
            self.problem(f"it is missing; add {option} = {what}", option)

    def finish(self) -> None:
        """Take note of the options that nobody asked for."""
        for option in self._options.keys() - self._known:
            self.problem(f"there is no such option; {suggestion(option, self._known)}", option)


class _OptionName(str):
    """The name of an option, with the line it stands in."""

    line = 0


class _Parser(configparser.RawConfigParser):
    """A configparser that remembers lines."""

    SECTCRE = _HEADER  # configparser's own would silently pass over text behind the bracket

    def __init__(self) -> None:
        # Without interpolation as "%" has no meaning, with "=" alone as ":" stands in endpoints; an inline comment
        # would cut "#" out of values. No section can have the empty name, so none gives defaults to the others.
        super().__init__(
            interpolation=None,
            strict=True,
            delimiters=("=",),
            comment_prefixes=_COMMENT,
            inline_comment_prefixes=None,
            default_section="",
        )
        self.section_lines: list[int] = []
        self._line = 0

    def optionxform(self, optionstr: str) -> str:
        """The name as it is, case and all."""
        name = _OptionName(optionstr)
        name.line = self._line
        return name

    def counted(self, lines: Sequence[str]) -> Iterator[str]:
        """The lines; while the parser reads them, it knows where it is."""
        for self._line, line in enumerate(lines, 1):
            yield line
            if len(self) - 1 > len(self.section_lines):  # the parser counts the section of defaults too
                self.section_lines.append(self._line)


def read_sections(text: str, problems: Problems) -> list[Section]:
    """Read an ini file; what cannot be read is noted as a problem and left out."""
    lines = list(io.StringIO(text, newline=None))
    parser = _parse(list(lines), problems)
    sections = []
    for header, line in zip(parser.sections(), parser.section_lines, strict=True):
        options = {
            str(name): Option(value, name.line, lines)
            for name, value in parser.items(header)
            if isinstance(name, _OptionName)
        }
        sections.append(Section(header, line, options, problems))
    return sections


def _parse(lines: list[str], problems: Problems) -> _Parser:
    # configparser stops at the first duplicate: take note of it, blank it out and start again for the next one.
    while True:
        parser = _Parser()
        try:
            parser.read_file(parser.counted(lines), problems.file)
            return parser
        except configparser.DuplicateSectionError as error:
            first = parser.section_lines[parser.sections().index(error.section)]
            line = error.lineno or 0
            problems.add(line, f"it is there already, in line {first}; rename it, or join both", error.section)
            _blank_section(lines, line)
        except configparser.DuplicateOptionError as error:
            line = error.lineno or 0
            problems.add(line, "it is there already in this section; remove one of both", error.section, error.option)
            _blank_option(lines, line)
        except configparser.MissingSectionHeaderError as error:
            problems.add(error.lineno, "it stands before the first section; write [proxyd] or another header above it")
            _blank_section(lines, error.lineno)
        except configparser.ParsingError as error:
            for line, _ in error.errors:
                problems.add(line, "it is no section, option or comment; write [section] or option = value")
                lines[line - 1] = "\n"


def _blank_section(lines: list[str], start: int) -> None:
    """Blank out a line and everything behind it up to the next header."""
    lines[start - 1] = "\n"
    for index in range(start, len(lines)):
        if _HEADER.match(lines[index].strip()):
            break
        lines[index] = "\n"


def _blank_option(lines: list[str], start: int) -> None:
    """Blank out a line and those that continue it."""
    indent = _indent(lines[start - 1])
    lines[start - 1] = "\n"
    for index in range(start, len(lines)):
        if lines[index].strip() and _indent(lines[index]) <= indent:
            break
        lines[index] = "\n"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
