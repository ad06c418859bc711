"""Rounds: the same work done by each proxy in turn, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks import work as works
from benchmarks.doors import DIRECT, Door
from benchmarks.field import Field
from benchmarks.load import Amount, Load, Outcome, Way
from benchmarks.measure import memory, processor_time, processor_times
from benchmarks.proxies import PROXYD, Proxy, Setup
from benchmarks.report import COST, ITSELF, LATENCY, MEMORY, Row
from benchmarks.work import Unit, Work, scaled

Turn = TypeVar("Turn")

FEW = 0.01
"""The share of the work that may fail: a figure that rests on more failures than this is none."""

PATIENCE = 3.0
"""Seconds for one measurement of latency."""
FEWEST = 20
"""Exchanges that tell how long one takes."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How thoroughly everything is measured."""

    rounds: int = 5
    scale: float = 1.0
    """How much of each work is done."""
    settle: float = 0.3
    """Seconds in which a proxy ends what one measurement has begun, before the next one starts."""
    rules: int = 10_000
    """How many are many."""


QUICK = Extent(1, 0.005, 0.05, 100)
"""Next to nothing."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Workers, and those who make work for them, on processors of their own."""

    name: str
    load: Load
    origin: int
    proxy: Proxy


class Rounds:
    """Measures a field, and tells what it is doing."""

    def __init__(self, field: Field, extent: Extent, tell: Callable[[str], None]) -> None:
        self._field = field
        self._extent = extent
        self._tell = tell

    def cost(self, work: Work, door: Door) -> Row:
        """Processor time for each unit of work."""
        row = Row(COST, work.name, work.title, str(door), work.unit.value, PROXYD)
        amount = work.at(door, self._extent.scale)
        for proxy in self._turns(row, self._field.at(door)):
            row.add(proxy.name, self._cost(row, proxy, door, work.unit, amount))
        return row

    def _cost(
        self, row: Row, proxy: Proxy, door: Door, unit: Unit, amount: Amount, host: str = "127.0.0.1"
    ) -> float | None:
        before = processor_time(proxy.program.pid)
        outcome = self._field.run(proxy, door, amount, host=host)
        time.sleep(self._extent.settle)
        cost = unit.cost(processor_time(proxy.program.pid) - before, amount, outcome)
        return cost if done(row, proxy.name, amount, outcome) else None

    def idle(self, door: Door) -> Row:
        """Memory for each idle tunnel."""
        tunnels = scaled(works.IDLE_AMOUNT, self._extent.scale)
        row = Row(MEMORY, works.IDLE, f"{tunnels.connections} tunnels", str(door), "KiB/tunnel", PROXYD)
        for proxy in self._turns(row, self._field.at(door)):
            before = memory(proxy.program.pid)
            with self._field.hold(proxy, door, tunnels) as outcome:
                time.sleep(self._extent.settle)
                grown = memory(proxy.program.pid) - before
            time.sleep(self._extent.settle)
            row.add(proxy.name, grown / 1024 / tunnels.connections if done(row, proxy.name, tunnels, outcome) else None)
        return row

    def latency(self, name: str, door: Door) -> list[Row]:
        """What the proxy adds to the median and the 99th percentile of one agent's exchanges."""
        title = works.LATENCY_TITLES[name]
        rows = [Row(LATENCY, name, f"{title}, {which}", str(door), "µs", PROXYD) for which in ("p50", "p99")]
        direct = Way(self._field.origin, DIRECT)
        for proxy in self._turns(rows[0], self._field.at(door)):
            amount = self._patient(scaled(works.LATENCIES[name], self._extent.scale), proxy, door)
            without = self._field.load.run(direct, amount)
            outcome = self._field.run(proxy, door, amount)
            good = done(rows[0], proxy.name, amount, outcome)
            rows[0].add(proxy.name, outcome.p50 - without.p50 if good else None)
            rows[1].add(proxy.name, outcome.p99 - without.p99 if good else None)
        return rows

    def _patient(self, amount: Amount, proxy: Proxy, door: Door) -> Amount:
        """As much as can be waited for: some proxies run into Nagle's algorithm, and take 40 ms for every exchange."""
        few = replace(amount, exchanges=min(amount.exchanges, FEWEST))
        outcome = self._field.run(proxy, door, few)
        affordable = max(FEWEST, round(PATIENCE * 1e6 / max(1.0, outcome.p50)))
        return replace(amount, exchanges=min(amount.exchanges, affordable))

    def rules(self, doors: Sequence[Door]) -> Iterator[Row]:
        """New connections by a few rules and by many; to a name, so that names and addresses are decided."""
        few, many = f"{Setup().rules} rules", f"{self._extent.rules} rules"
        amount = scaled(works.RULES_AMOUNT, self._extent.scale)
        with (
            self._field.setup(Setup(), few) as first,
            self._field.setup(Setup(rules=self._extent.rules), many) as second,
        ):
            for door in doors:
                row = Row(ITSELF, works.RULES, "rules, new connection", str(door), Unit.CONNECTION.value, many)
                for proxy in self._turns(row, (first, second)):
                    row.add(proxy.name, self._cost(row, proxy, door, Unit.CONNECTION, amount, "localhost"))
                yield row

    def workers(self, doors: Sequence[Door]) -> Iterator[Row]:
        """New connections by one worker and by two, and how evenly those share the work.

        Load and origin need processors too, and more with every connection. So one worker has one processor together
        with them, and two have two: half of a machine against the whole of it.
        """
        amount = scaled(works.WORKERS_AMOUNT, self._extent.scale)
        with ExitStack() as stack:
            crews = [stack.enter_context(self._crew(count)) for count in (1, 2)]
            for door in doors:
                rate, share = (
                    Row(ITSELF, works.WORKERS, f"workers, {what}", str(door), unit, crews[-1].name)
                    for what, unit in (("rate", "connections/s"), ("work of the busiest", "%"))
                )
                for crew in self._turns(rate, crews):
                    pid = crew.proxy.program.pid
                    before = processor_times(pid)
                    outcome = crew.load.run(crew.proxy.way(door, crew.origin), amount)
                    time.sleep(self._extent.settle)
                    used = spent(before, processor_times(pid))
                    good = done(rate, crew.name, amount, outcome) and any(used)
                    rate.add(crew.name, outcome.connections / outcome.seconds if good else None)
                    share.add(crew.name, 100 * max(used) / sum(used) if good else None)
                yield from (rate, share)

    @contextmanager
    def _crew(self, count: int) -> Iterator[Crew]:
        name = f"{count} worker" + ("s" if count > 1 else "")
        processors = frozenset(sorted(self._field.processors.all)[:count])
        load = replace(self._field.load, processors=processors)
        with (
            load.origin() as origin,
            self._field.setup(Setup(workers=count, also=(origin,)), name, processors) as proxy,
        ):
            yield Crew(name, load, origin, proxy)

    def _turns(self, row: Row, proxies: Sequence[Turn]) -> Iterator[Turn]:
        """Each proxy once a round; every other round backwards, so that a drifting machine favours nobody."""
        for number in range(self._extent.rounds if proxies else 0):
            yield from proxies if number % 2 == 0 else reversed(proxies)
        if proxies:
            self._tell(f"{row.door}, {row.title}")


def done(row: Row, name: str, amount: Amount, outcome: Outcome) -> bool:
    """Whether the work was done; what went wrong, or otherwise than asked for, is noted."""
    if outcome.errors:
        row.note(name, f"{outcome.errors} of {amount.connections} connections failed: {outcome.error}")
    if outcome.reopened:
        row.note(name, "closes connections between requests")
    if amount.resume and outcome.resumed < outcome.connections * (1 - FEW) - amount.at_once:
        row.note(name, f"resumed {outcome.resumed} of {outcome.connections} TLS sessions")
    return outcome.errors <= amount.connections * FEW


def spent(before: dict[int, float], after: dict[int, float]) -> list[float]:
    """The processor time that each process has used since."""
    return [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]
