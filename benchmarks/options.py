"""What the programs here have in common: their command lines, and how they begin and end."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from collections.abc import Mapping
from typing import TypeVar

from benchmarks.doors import ALL, Door
from benchmarks.peers import PEERS, Peer
from benchmarks.work import NAMES

Value = TypeVar("Value")


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A command line with ``--doors``."""
    made = argparse.ArgumentParser(
        prog=program,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--doors", type=doors, default=ALL, metavar="DOOR,...", help=", ".join(map(str, ALL)))
    return made


def doors(text: str) -> tuple[Door, ...]:
    """Doors by their names."""
    return _chosen(text, {str(door): door for door in ALL})


def works(text: str) -> tuple[str, ...]:
    """Kinds of work."""
    return _chosen(text, {name: name for name in NAMES})


def peers(text: str) -> tuple[Peer, ...]:
    """Peers by their names, or ``none``."""
    return () if text == "none" else _chosen(text, {peer.name: peer for peer in PEERS})


def _chosen(text: str, known: Mapping[str, Value]) -> tuple[Value, ...]:
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f'"{unknown[0]}" is none of {", ".join(known)}')
    return tuple(known[name] for name in text.split(","))


def prepare_process() -> None:
    """End in order when we are told to, and with us all that we have started; open as many files as we may.

    Thousands of tunnels need them, and programs that are started inherit that.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
