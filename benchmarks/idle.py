"""Hold thousands of idle tunnels through each door of proxyd, and tell how much memory each takes.

At the door "forward", which has no tunnels, it is connections that wait for their next request.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from benchmarks import options
from benchmarks.doors import Door
from benchmarks.field import Field, prepared
from benchmarks.load import Amount, LoadError
from benchmarks.measure import memory
from benchmarks.options import prepare_process
from benchmarks.program import ProgramError
from benchmarks.proxies import PROXYD, Setup
from benchmarks.report import aligned, number

HEAD = ("door", "opened", "failed", "lost", "KiB/tunnel")


def main(arguments: Sequence[str] | None = None) -> int:
    """Hold them, and print a table; the exit status is 1 if a tunnel could not be opened, or was lost."""
    parser = options.parser("idle.py", __doc__)
    parser.add_argument("--tunnels", type=int, default=5000, help="at each door (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    prepare_process()
    try:
        with prepared() as field:
            lines = [hold(field, door, chosen.tunnels, chosen.seconds) for door in chosen.doors]
    except (LoadError, ProgramError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(aligned([HEAD, *lines], left=1) + "\n")
    return int(any(int(line[2]) or int(line[3]) for line in lines))


def hold(field: Field, door: Door, tunnels: int, seconds: float) -> tuple[str, ...]:
    """One line of the table, from a proxy that has served nothing else."""
    with field.setup(Setup(), PROXYD) as proxy:
        before = memory(proxy.program.pid)
        held = field.hold(proxy, door, Amount(tunnels, 64))
        with held as outcome:
            time.sleep(seconds)
            each = (memory(proxy.program.pid) - before) / 1024 / max(1, outcome.connections)
        return (str(door), str(outcome.connections), str(outcome.errors), str(held.lost), number(each))


if __name__ == "__main__":
    sys.exit(main())
