"""What a run has found: rows of figures, their medians and ratios, as tables and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

COST = "CPU time of the proxy"
MEMORY = "Memory of idle tunnels"
LATENCY = "Latency added to a direct exchange"
ITSELF = "proxyd beside itself"

HEADINGS = (COST, MEMORY, LATENCY, ITSELF)


@dataclass
class Row:
    """One kind of work at one door: a figure for each proxy from each round."""

    heading: str
    work: str
    title: str
    door: str
    unit: str
    subject: str
    """Whose figure is divided by that of each other."""
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    """By name, one for each round; none where the work was not done."""
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, figure: float | None) -> None:
        """Keep the figure of the next round."""
        self.figures.setdefault(name, []).append(figure)

    def note(self, name: str, text: str) -> None:
        """Say once what makes a figure doubtful."""
        note = f"{name}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def median(self, name: str) -> float | None:
        """The median over the rounds."""
        found = [figure for figure in self.figures.get(name, ()) if figure is not None]
        return median(found) if found else None

    def ratio(self, name: str) -> float | None:
        """The median over the rounds of what the subject costs for each unit that this one costs.

        Round by round, because machines drift: figures of one round have been taken one right after the other.
        """
        pairs = zip(self.figures.get(self.subject, ()), self.figures.get(name, ()), strict=False)
        ratios = [own / other for own, other in pairs if own is not None and other]
        return median(ratios) if ratios and name != self.subject else None

    def as_json(self) -> dict[str, Any]:
        """All of it, with what follows from it."""
        return {
            "heading": self.heading,
            "work": self.work,
            "title": self.title,
            "door": self.door,
            "unit": self.unit,
            "subject": self.subject,
            "figures": self.figures,
            "medians": {name: self.median(name) for name in self.figures},
            "ratios": {name: self.ratio(name) for name in self.figures if name != self.subject},
            "notes": self.notes,
        }


def number(value: float | None) -> str:
    """Three digits, or a dash for nothing."""
    if value is None:
        return "-"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def cell(row: Row, name: str) -> str:
    """A figure, and for others than the subject its ratio in parentheses."""
    if name not in row.figures:
        return ""
    ratio = row.ratio(name)
    return number(row.median(name)) + (f" ({ratio:.2f})" if ratio is not None else "")


def aligned(lines: Sequence[Sequence[str]], *, left: int) -> str:
    """Cells in columns, so many of them to the left and the others to the right; a rule under the first line."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        "  ".join(
            text.ljust(width) if position < left else text.rjust(width)
            for position, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([printed[0], "  ".join("-" * width for width in widths), *printed[1:]])


def table(rows: Sequence[Row]) -> str:
    """The rows of one heading."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [["door", "work", "unit", *names]]
    lines += [[row.door, row.title, row.unit, *(cell(row, name) for name in names)] for row in rows]
    return aligned(lines, left=3)


def tables(rows: Sequence[Row]) -> str:
    """All rows, a table for each heading, and the notes below."""
    printed = []
    for heading in HEADINGS:
        chosen = [row for row in rows if row.heading == heading and row.figures]
        if chosen:
            printed.append(f"{heading}\n\n{table(chosen)}")
    notes = [f"{row.door}, {row.title}: {note}" for row in rows for note in row.notes]
    if notes:
        printed.append("\n".join(["Notes", "", *dict.fromkeys(notes)]))
    return "\n\n".join(printed)


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that tells which one."""
    return {
        "processor": processor(Path("/proc/cpuinfo").read_text()),
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def processor(cpuinfo: str) -> str:
    """The model as ``/proc/cpuinfo`` names it, or the architecture."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    versions: dict[str, str]
    """Of each proxy that was measured."""
    missing: list[str]
    """Of what was not, with the reason."""
    rounds: int
    rows: list[Row] = field(default_factory=list)

    def as_text(self) -> str:
        """For people: what was measured on what, and the tables."""
        about = ", ".join(f"{name} {value}".strip() for name, value in self.versions.items())
        rounds = f"medians of {self.rounds} rounds" if self.rounds > 1 else "one round"
        lines = [f"Measured: {about}; {rounds}."]
        lines += [f"Missing: {missing}" for missing in self.missing]
        lines += [
            "Machine: {processor}, {processors} processors, Linux {kernel}, Python {python}.".format(**self.machine)
        ]
        lines += [
            "In parentheses: proxyd's figure divided by that of the other, round by round; where it is beside itself,",
            "the figure of the last column divided by that of the other.",
        ]
        return "\n".join([*lines, "", tables(self.rows)])

    def as_json(self) -> str:
        """For programs."""
        whole = {
            "machine": self.machine,
            "versions": self.versions,
            "missing": self.missing,
            "rounds": self.rounds,
            "rows": [row.as_json() for row in self.rows],
        }
        return json.dumps(whole, indent=1) + "\n"
