"""What a supervisor and its workers tell each other."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from proxyd.config import Config


@dataclass(frozen=True, slots=True)
class ListeningSocket:
    """To a worker: the descriptor that comes with this is for a listener of the next configuration."""

    listener: str


@dataclass(frozen=True, slots=True)
class Configure:
    """To a worker: serve this from now on. It answers."""

    config: Config


class Order(enum.Enum):
    """To a worker, which does not answer."""

    REOPEN_LOGS = "reopen logs"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Answer:
    """From a worker: it is configured, or has a problem, and then is as it was before."""

    problem: str | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """From a worker: one event of its log."""

    level: str
    system: str
    """What stands in brackets in Twisted's log: the part of the program, and the level."""
    text: str


Message = ListeningSocket | Configure | Order | Answer | LogLine
