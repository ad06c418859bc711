"""Measure proxyd beside the proxies that are installed here: ``make bench``.

All of it runs on loopback, for about half an hour; --quick is for a look whether everything works.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks import work as works
from benchmarks.doors import ALL, PLAIN, Door
from benchmarks.field import Field, prepared
from benchmarks.load import LoadError
from benchmarks.peers import PEERS, Peer
from benchmarks.program import ProgramError
from benchmarks.report import Report, Row, machine
from benchmarks.rounds import Rounds
from benchmarks.work import scaled
from proxyd import __version__

RESULTS = Path(__file__).parent / "results"
QUICK = 0.005
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and tell the result."""
    options = parser().parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # thousands of tunnels; programs inherit it
    scale = QUICK if options.quick else options.scale
    try:
        with prepared(options.only, options.tls) as field:
            rounds = Rounds(field, 1 if options.quick else options.rounds, scale, progress)
            report = Report(machine(), versions(field, options.only), field.missing, options.rounds)
            with suppress(KeyboardInterrupt):  # what has been measured by then is told
                report.rows.extend(measured(rounds, options.work, options.doors, scale))
    except (LoadError, ProgramError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    tell(report, options.json)
    return 0


def measured(rounds: Rounds, names: Sequence[str], doors: Sequence[Door], scale: float) -> Iterator[Row]:
    """Do the work of these names at these doors, row by row."""
    costs = [work for work in works.COSTS if work.name in names]
    for door in doors:
        yield from (rounds.cost(work, door) for work in costs if door in work.doors)
        if works.IDLE in names and door in works.IDLE_DOORS:
            yield rounds.idle(door, scaled(works.IDLE_AMOUNT, scale))
        for name in works.LATENCIES:
            if name in names:
                yield from rounds.latency(name, door)
    for door in doors:
        if works.RULES in names and door in PLAIN:
            yield rounds.rules(door)
        if works.WORKERS in names and door in PLAIN:
            yield from rounds.workers(door)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="run.py", description=__doc__, allow_abbrev=False)
    made.add_argument("--only", type=_peers, default=PEERS, metavar="PEER,...", help="these peers; none: proxyd alone")
    made.add_argument("--work", type=_works, default=works.NAMES, metavar="WORK,...", help=", ".join(works.NAMES))
    made.add_argument("--doors", type=_doors, default=ALL, metavar="DOOR,...", help=", ".join(map(str, ALL)))
    made.add_argument("--rounds", type=int, default=ROUNDS, help="how often everything is measured (default: %(default)s)")
    made.add_argument("--scale", type=float, default=1.0, help="how much of each work (default: %(default)s)")
    made.add_argument("--tls", choices=("1.2", "1.3"), default="1.3", help="version to the proxy (default: %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: in benchmarks/results/)")
    made.add_argument("--quick", action="store_true", help="next to nothing of everything, once: no figures to rely on")
    return made


def _peers(text: str) -> tuple[Peer, ...]:
    names = [] if text in ("", "none") else text.split(",")
    known = {peer.name: peer for peer in PEERS}
    return tuple(_known(known, name) for name in names)


def _works(text: str) -> tuple[str, ...]:
    known = {name: name for name in works.NAMES}
    return tuple(_known(known, name) for name in text.split(","))


def _doors(text: str) -> tuple[Door, ...]:
    known = {str(door): door for door in ALL}
    return tuple(_known(known, name) for name in text.split(","))


def _known[Value](known: dict[str, Value], name: str) -> Value:
    if name not in known:
        raise argparse.ArgumentTypeError(f'"{name}" is none of {", ".join(known)}')
    return known[name]


def versions(field: Field, peers: Sequence[Peer]) -> dict[str, str]:
    """Of every proxy that is measured."""
    of_peers = {peer.name: peer.version() for peer in peers}
    return {proxy.name: of_peers.get(proxy.name, __version__) for proxy in field.proxies}


def progress(what: str) -> None:
    """Tell that a row is done."""
    sys.stderr.write(f"{what}\n")


def tell(report: Report, path: Path | None) -> None:
    """Print the tables, and write the figures to a file."""
    if path is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}.json"
    path.write_text(report.as_json(), "utf-8")
    sys.stdout.write(f"{report.as_text()}\n\nFigures: {path}\n")


if __name__ == "__main__":
    sys.exit(main())
