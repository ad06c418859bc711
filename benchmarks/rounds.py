"""Rounds: the same work done by each proxy in turn, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from benchmarks import work as works
from benchmarks.doors import DIRECT, Door
from benchmarks.field import Field
from benchmarks.load import Amount, Outcome, Way
from benchmarks.measure import memory, processor_time, processor_times
from benchmarks.proxies import PROXYD, Proxy, Setup
from benchmarks.report import COST, ITSELF, LATENCY, MEMORY, Row
from benchmarks.work import Work, scaled

SETTLE = 0.3
"""Seconds in which a proxy ends what one measurement has begun, before the next one starts."""

FEW = 0.01
"""The share of the work that may fail: a figure that rests on more failures than this is none."""


class Rounds:
    """Measures a field, so many times, and so much of each work."""

    def __init__(self, field: Field, rounds: int, scale: float, tell: Callable[[str], None]) -> None:
        self._field = field
        self._rounds = rounds
        self._scale = scale
        self._tell = tell

    def cost(self, work: Work, door: Door) -> Row:
        """Processor time for each unit of work."""
        row = Row(COST, work.name, work.title, str(door), work.unit.value, PROXYD)
        amount = work.at(door, self._scale)
        for proxy in self._turns(row, self._field.at(door)):
            row.add(proxy.name, self._cost(row, proxy, door, work.unit, amount))
        return row

    def _cost(
        self, row: Row, proxy: Proxy, door: Door, unit: works.Unit, amount: Amount, host: str = "127.0.0.1"
    ) -> float | None:
        before = processor_time(proxy.program.pid)
        outcome = self._field.run(proxy, door, amount, host=host)
        time.sleep(SETTLE)
        cost = unit.cost(processor_time(proxy.program.pid) - before, amount, outcome)
        return cost if done(row, proxy.name, amount, outcome) else None

    def idle(self, door: Door, tunnels: Amount) -> Row:
        """Memory for each idle tunnel."""
        row = Row(MEMORY, works.IDLE, f"{tunnels.connections} tunnels", str(door), "KiB/tunnel", PROXYD)
        for proxy in self._turns(row, self._field.at(door)):
            before = memory(proxy.program.pid)
            with self._field.hold(proxy, door, tunnels) as outcome:
                time.sleep(SETTLE)
                grown = memory(proxy.program.pid) - before
            time.sleep(SETTLE)
            row.add(proxy.name, grown / 1024 / tunnels.connections if done(row, proxy.name, tunnels, outcome) else None)
        return row

    def latency(self, name: str, door: Door) -> list[Row]:
        """What the proxy adds to the median and the 99th percentile of one agent's exchanges."""
        amount = scaled(works.LATENCIES[name], self._scale)
        title = works.LATENCY_TITLES[name]
        rows = [Row(LATENCY, name, f"{title}, {which}", str(door), "µs", PROXYD) for which in ("p50", "p99")]
        direct = Way(self._field.origin, DIRECT)
        for proxy in self._turns(rows[0], self._field.at(door)):
            without = self._field.load.run(direct, amount)
            outcome = self._field.run(proxy, door, amount)
            good = done(rows[0], proxy.name, amount, outcome)
            rows[0].add(proxy.name, outcome.p50 - without.p50 if good else None)
            rows[1].add(proxy.name, outcome.p99 - without.p99 if good else None)
        return rows

    def rules(self, door: Door) -> Row:
        """A new connection by a short list of rules and by a long one, to a name: both names and addresses are decided."""
        few, many = f"{Setup().rules} rules", f"{works.MANY_RULES} rules"
        row = Row(ITSELF, works.RULES, "rules, new connection", str(door), works.Unit.CONNECTION.value, many)
        amount = scaled(works.RULES_AMOUNT, self._scale)
        with ExitStack() as stack:
            pair = [stack.enter_context(self._field.setup(Setup(), few))]
            pair.append(stack.enter_context(self._field.setup(Setup(rules=works.MANY_RULES), many)))
            for proxy in self._turns(row, pair):
                row.add(proxy.name, self._cost(row, proxy, door, works.Unit.CONNECTION, amount, "localhost"))
        return row

    def workers(self, door: Door) -> list[Row]:
        """New connections by one worker and by two: what was seen, and what the busier worker has room for.

        The load needs processors too. Where there are just two, the rate that is seen cannot double; what each worker
        could serve if it had a processor to itself is the second row.
        """
        seen = Row(ITSELF, works.WORKERS, "workers, rate seen", str(door), "connections/s", "2 workers")
        room = Row(ITSELF, works.WORKERS, "workers, by the busier one's CPU time", str(door), "connections/s", "2 workers")
        amount = scaled(works.WORKERS_AMOUNT, self._scale)
        everywhere = self._field.processors.all
        with ExitStack() as stack:
            pair = [
                stack.enter_context(self._field.setup(Setup(workers=1), "1 worker", everywhere)),
                stack.enter_context(self._field.setup(Setup(workers=2), "2 workers", everywhere)),
            ]
            for proxy in self._turns(seen, pair):
                before = processor_times(proxy.program.pid)
                outcome = self._field.run_everywhere(proxy, door, amount)
                time.sleep(SETTLE)
                good = done(seen, proxy.name, amount, outcome)
                busiest = most(before, processor_times(proxy.program.pid))
                seen.add(proxy.name, outcome.connections / outcome.seconds if good else None)
                room.add(proxy.name, outcome.connections / busiest if good and busiest else None)
        return [seen, room]

    def _turns(self, row: Row, proxies: Sequence[Proxy]) -> Iterator[Proxy]:
        """Each proxy once a round; every other round backwards, so that a drifting machine favours nobody."""
        for number in range(self._rounds if len(proxies) else 0):
            yield from proxies if number % 2 == 0 else reversed(proxies)
        if proxies:
            self._tell(f"{row.door}, {row.title}")


def done(row: Row, name: str, amount: Amount, outcome: Outcome) -> bool:
    """Whether the work was done; what went wrong, or otherwise than asked for, is noted."""
    if outcome.errors:
        row.note(name, f"{outcome.errors} of {amount.connections} connections failed: {outcome.error}")
    if outcome.reopened:
        row.note(name, "closes connections between requests")
    if outcome.unanswered:
        row.note(name, "does not pass on 100 Continue")
    if amount.resume and outcome.resumed < outcome.connections * (1 - FEW) - amount.at_once:
        row.note(name, f"resumed {outcome.resumed} of {outcome.connections} TLS sessions")
    return outcome.errors <= amount.connections * FEW


def most(before: dict[int, float], after: dict[int, float]) -> float:
    """The processor time of the process that has used most of it since."""
    return max(seconds - before.get(pid, 0.0) for pid, seconds in after.items())
