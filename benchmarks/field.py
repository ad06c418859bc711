"""The field of a run: the load, the origin, proxyd and its peers, all of them running at the same time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.doors import ALL, Door
from benchmarks.load import Amount, Held, Load, Outcome
from benchmarks.measure import Processors
from benchmarks.peers import Peer
from benchmarks.program import ProgramError, free_ports
from benchmarks.proxies import PROXYD, Proxy, Setup

WARM_UP = Amount(8, 4, exchanges=4)
"""Passwords are checked, caches are filled and code is compiled before anything is measured."""


def allot(doors: Iterable[Door]) -> dict[Door, int]:
    """A free port for each door; those that share a listener share it."""
    doors = tuple(doors)
    listeners = sorted({door.listener for door in doors})
    ports = dict(zip(listeners, free_ports(len(listeners)), strict=True))
    return {door: ports[door.listener] for door in doors}


@dataclass
class Field:
    """Everything that runs. Proxies that nobody asks anything cost nothing."""

    load: Load
    origin: int
    processors: Processors
    folder: Path
    tls: str = "1.3"
    proxies: list[Proxy] = field(default_factory=list)
    """proxyd first."""
    missing: list[str] = field(default_factory=list)
    """Who is not here, and why."""

    def at(self, door: Door) -> list[Proxy]:
        """Those that have this door; none if the load cannot speak TLS where that is needed."""
        if door.tls and not self.load.tls:
            return []
        return [proxy for proxy in self.proxies if door in proxy.ports]

    def run(self, proxy: Proxy, door: Door, amount: Amount, *, host: str = "127.0.0.1") -> Outcome:
        """Have a proxy do work."""
        return self.load.run(proxy.way(door, self.origin, host=host, tls=self.tls), amount)

    def hold(self, proxy: Proxy, door: Door, amount: Amount) -> Held:
        """Have a proxy hold connections."""
        return self.load.hold(proxy.way(door, self.origin, tls=self.tls), amount)

    @contextmanager
    def setup(self, setup: Setup, name: str, processors: frozenset[int] | None = None) -> Iterator[Proxy]:
        """A proxyd that runs for a while."""
        folder = self._own_folder(name)
        proxy = setup.start(folder, self.origin, allot(ALL), processors or self.processors.proxy)
        with proxy.program:
            self._warm_up(proxy)
            yield replace(proxy, name=name)

    def start_peer(self, peer: Peer, stack: ExitStack) -> None:
        """Have a peer run until the end of the stack, or say why it is missing."""
        doors = peer.present()
        if not doors:
            self.missing.append(peer.name + (f" (apt-get install {peer.package})" if peer.package else ""))
            return
        try:
            proxy = peer.start(self._own_folder(peer.name), allot(doors), self.processors.proxy)
        except ProgramError as error:
            self.missing.append(str(error))
            return
        stack.enter_context(proxy.program)
        self._warm_up(proxy)
        self.proxies.append(proxy)

    def _own_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name.split()[0]}-", dir=self.folder))

    def _warm_up(self, proxy: Proxy) -> None:
        for door in proxy.ports:
            if self.load.tls or not door.tls:
                self.run(proxy, door, WARM_UP)


@contextmanager
def prepared(tls: str = "1.3") -> Iterator[Field]:
    """A field with the load and an origin, and no proxy yet.

    Raises:
        LoadError: the load cannot be built.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxyd-benchmark-")))
        folder.chmod(0o711)  # Squid does not stay root
        processors = Processors.here()
        load = Load.build(folder, processors.load)
        field = Field(load, stack.enter_context(load.origin()), processors, folder, tls)
        if not load.tls:
            field.missing.append("TLS to the proxy (apt-get install libssl-dev)")
        yield field


@contextmanager
def complete(peers: Iterable[Peer], tls: str) -> Iterator[Field]:
    """A field with proxyd and these peers.

    Raises:
        LoadError: the load cannot be built.
        ProgramError: proxyd does not start.
    """
    with prepared(tls) as field, contextlib.ExitStack() as stack:
        field.proxies.append(stack.enter_context(field.setup(Setup(), PROXYD)))
        for peer in peers:
            field.start_peer(peer, stack)
        yield field
