"""Measure proxyd beside the proxies that are installed here: ``make bench``.

All of it runs on loopback, for about half an hour; --quick is for a look whether everything works.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import options
from benchmarks import work as works
from benchmarks.doors import PLAIN, Door
from benchmarks.field import Field, complete
from benchmarks.load import LoadError
from benchmarks.options import prepare_process
from benchmarks.peers import PEERS, Peer
from benchmarks.program import ProgramError
from benchmarks.report import Report, Row, machine
from benchmarks.rounds import QUICK, Extent, Rounds
from proxyd import __version__

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and tell the result; the exit status is 1 if there is none, or not all of it."""
    chosen = parser().parse_args(arguments)
    prepare_process()
    extent = QUICK if chosen.quick else Extent(chosen.rounds, chosen.scale)
    try:
        with complete(chosen.only, chosen.tls) as field:
            report = Report(machine(), versions(field, chosen.only), field.missing, extent.rounds)
            whole = fill(report, measured(Rounds(field, extent, progress), chosen.work, chosen.doors))
    except (LoadError, ProgramError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    tell(report, chosen.json)
    return int(not whole)


def fill(report: Report, rows: Iterator[Row]) -> bool:
    """Add the rows as they come; what has been measured is kept if the rest cannot be."""
    try:
        for row in rows:
            report.rows.append(row)
    except (LoadError, ProgramError, KeyboardInterrupt) as error:
        report.missing.append(f"what would have come next, because of {type(error).__name__} {error}".rstrip())
        return False
    return True


def measured(rounds: Rounds, names: Sequence[str], doors: Sequence[Door]) -> Iterator[Row]:
    """Do the work of these names at these doors, row by row."""
    costs = [work for work in works.COSTS if work.name in names]
    for door in doors:
        yield from (rounds.cost(work, door) for work in costs if door in work.doors)
        if works.IDLE in names and door in works.IDLE_DOORS:
            yield rounds.idle(door)
        for name in works.LATENCIES:
            if name in names:
                yield from rounds.latency(name, door)
    plain = [door for door in doors if door in PLAIN]
    if works.RULES in names and plain:
        yield from rounds.rules(plain)
    if works.WORKERS in names and plain:
        yield from rounds.workers(plain)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = options.parser("run.py", __doc__)
    made.add_argument("--only", type=options.peers, default=PEERS, metavar="PEER,...", help="these peers, or none")
    made.add_argument(
        "--work", type=options.works, default=works.NAMES, metavar="WORK,...", help=", ".join(works.NAMES)
    )
    extent = Extent()
    made.add_argument("--rounds", type=int, default=extent.rounds, help="how often (default: %(default)s)")
    made.add_argument("--scale", type=float, default=extent.scale, help="how much of it (default: %(default)s)")
    made.add_argument("--tls", choices=("1.2", "1.3"), default="1.3", help="to the proxy (default: %(default)s)")
    made.add_argument(
        "--json", type=Path, metavar="FILE", help="where the figures go (default: in benchmarks/results/)"
    )
    made.add_argument("--quick", action="store_true", help="next to nothing, once: no figures to rely on")
    return made


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
