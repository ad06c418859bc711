"""The work that is measured: what log agents do, and what shows where a proxy's time goes."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from benchmarks.doors import ALL, FORWARD, TLS, TUNNELS, Door
from benchmarks.load import Amount, Outcome

PACK = 160_000
"""Bytes of a pack of logs as agents send it: 512 KiB, compressed."""
RAW_PACK = 512 * 1024
"""The same if it does not compress."""
ANSWER = 60
"""Bytes of the log service's answer."""
BULK = 500_000_000


class Unit(enum.Enum):
    """What processor time is divided by."""

    CONNECTION = "µs/connection"
    REQUEST = "µs/request"
    GIGABYTE = "ms/GB"

    def cost(self, seconds: float, amount: Amount, outcome: Outcome) -> float:
        """Processor time for one unit of work that has been done."""
        if self is Unit.CONNECTION:
            return 1e6 * seconds / max(1, outcome.connections)
        if self is Unit.REQUEST:
            return 1e6 * seconds / max(1, outcome.exchanges)
        return 1e3 * seconds / (max(1, outcome.exchanges * (amount.up + amount.down)) / 1e9)


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work, measured as processor time of the proxy for each unit."""

    name: str
    title: str
    unit: Unit
    amount: Amount
    doors: tuple[Door, ...] = ALL
    tls_share: int = 4
    """Inside TLS everything takes longer: there it is this many times less."""

    def at(self, door: Door, scale: float) -> Amount:
        """How much of it is done at a door."""
        return scaled(self.amount, scale / self.tls_share if door.tls else scale)


def scaled(amount: Amount, scale: float) -> Amount:
    """More or less of an amount: of connections where there are many, else of exchanges, else of bytes."""
    if amount.connections > amount.at_once:
        connections = max(1, round(amount.connections * scale))
        return replace(amount, connections=connections, at_once=min(amount.at_once, connections))
    if amount.exchanges > 1:
        return replace(amount, exchanges=max(2, round(amount.exchanges * scale)))
    return replace(amount, up=round(amount.up * scale), down=max(1, round(amount.down * scale)))


COSTS = (
    Work("new", "new connection, one exchange", Unit.CONNECTION, Amount(4000, 32)),
    Work("resumed", "the same, TLS session resumed", Unit.CONNECTION, Amount(4000, 32, resume=True), TLS),
    Work("kept", "small request, kept connection", Unit.REQUEST, Amount(32, 32, exchanges=400)),
    Work("post160", "160 KB posts", Unit.GIGABYTE, Amount(16, 16, exchanges=200, up=PACK, down=ANSWER)),
    Work("post512", "512 KiB posts", Unit.GIGABYTE, Amount(16, 16, exchanges=100, up=RAW_PACK, down=ANSWER)),
    Work(
        "post160-expect",
        "160 KB posts, 100-continue",
        Unit.GIGABYTE,
        Amount(16, 16, exchanges=200, up=PACK, down=ANSWER, expect=True),
        FORWARD,  # in a tunnel nobody between the two ends sees it
    ),
    Work(
        "post512-expect",
        "512 KiB posts, 100-continue",
        Unit.GIGABYTE,
        Amount(16, 16, exchanges=100, up=RAW_PACK, down=ANSWER, expect=True),
        FORWARD,
    ),
    Work("up", "bulk up", Unit.GIGABYTE, Amount(4, 4, up=BULK, down=ANSWER)),
    Work("down", "bulk down", Unit.GIGABYTE, Amount(4, 4, down=BULK)),
)

IDLE = "idle"
IDLE_DOORS = TUNNELS
IDLE_AMOUNT = Amount(2000, 32)
"""Each tunnel has carried one exchange before it idles, as those of agents have."""

LATENCIES = {
    "latency4": Amount(1, 1, exchanges=2000, up=4000, down=ANSWER),
    "latency160": Amount(1, 1, 600, PACK, ANSWER),
}
LATENCY_TITLES = {"latency4": "4 KB posts", "latency160": "160 KB posts"}

RULES = "rules"
RULES_AMOUNT = Amount(2000, 32)

WORKERS = "workers"
WORKERS_AMOUNT = Amount(6000, 64)

NAMES = (*(work.name for work in COSTS), IDLE, *LATENCIES, RULES, WORKERS)
