"""A whole proxy in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Any, Final, TypeVar

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from proxyd.config import Config
from proxyd.flow import Flow
from proxyd.request import IPAddress
from proxyd.service import Proxy, ReloadReport
from proxyd.testing.faults import NO_FAULTS, Faults
from proxyd.testing.origins import Origin, ScriptedDialer
from proxyd.testing.peers import Peer
from proxyd.testing.reactor import LabReactor, internet_address
from proxyd.testing.records import RecordList
from proxyd.testing.resolvers import StaticResolver

CLIENT: Final = "192.0.2.7"
"""The address of a client that is not given one."""

ORIGINS: Final = "93.184.216.%d"
"""Addresses of origins that are not given one: to the policy the networks for documentation are not hosts."""

PATIENCE: Final = 100_000.0
"""Seconds, of the lab's time, in which what is waited for must happen: more than a day."""

T = TypeVar("T")


class Lab:
    """The real doors, policy, flows and ledger of a proxy, without a socket, a thread or a second that passes.

    Clients, origins, names and the access log are scripted; time moves by `advance` alone. As a ``with`` statement's
    object it is stopped at the end, which also checks that nothing was left behind.

    Args:
        config: A configuration, or the text of one; its listeners may have any port.
        resolver: Who knows the names, for example a `RebindingResolver`.
        own_addresses: The addresses that are the proxy's machine's own.
    """

    def __init__(
        self, config: str | Config, *, resolver: StaticResolver | None = None, own_addresses: Collection[str] = ()
    ) -> None:
        self.reactor = LabReactor()
        self.resolver = StaticResolver(clock=self.reactor) if resolver is None else resolver
        self.dialer = ScriptedDialer(self.reactor)
        self.records = RecordList()
        """The access records so far."""
        own = frozenset(map(ip_address, own_addresses))
        self.proxy = Proxy(
            self.reactor,
            _config(config),
            access_log=self.records,
            dialer=self.dialer,
            resolver=self.resolver,
            defer_to_pool=self._defer,
            is_own=lambda address, port: address in own,
        )
        self._client_ports = itertools.count(50000)
        self._origin_numbers = itertools.count(1)
        self.addresses: dict[str, IAddress] = self.result_of(self.proxy.listen())
        """Where each listener is bound."""

    def _defer(self, work: Callable[[], T], /) -> Deferred[T]:
        return deferLater(self.reactor, 0, work)

    # -- who is there -------------------------------------------------------------------------------------------------

    def connect(
        self, listener: str, address: str = CLIENT, port: int | None = None, *, faults: Faults = NO_FAULTS
    ) -> Peer:
        """A new client of a listener.

        Raises:
            ConnectionRefusedError: the listener is not open (any more).
        """
        client = Peer(self.reactor)
        there = self.addresses[listener]
        number = port or next(self._client_ports)
        here = UNIXAddress(None) if isinstance(there, UNIXAddress) else internet_address(address, number)
        self.reactor.connect(client, here, there, faults)
        self.reactor.settle()
        return client

    def origin(self, host: str, port: int, *addresses: str, answer: bytes = b"", faults: Faults = NO_FAULTS) -> Origin:
        """A new origin: what is at a port of a name, or of an address.

        A name that has no addresses yet gets those that are given, or else one that is free.
        """
        origin = Origin(self.reactor, answer, faults=faults)
        for address in self._addresses_of(host, addresses):
            self.dialer.place(origin, str(address), port)
        return origin

    def _addresses_of(self, host: str, addresses: tuple[str, ...]) -> Collection[str | IPAddress]:
        try:
            return (ip_address(host),)
        except ValueError:
            pass
        known = self.resolver.knows(host)
        if not known or addresses:
            self.resolver.add(host, *(addresses or (ORIGINS % next(self._origin_numbers),)))
            known = self.resolver.knows(host)
        return known

    # -- what happens -------------------------------------------------------------------------------------------------

    @property
    def flows(self) -> Collection[Flow]:
        """The requests and tunnels in progress."""
        return self.proxy.flows

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.reactor.advance(seconds)

    def result_of(self, deferred: Deferred[T]) -> T:
        """Let time pass until there is a result, and give or raise it.

        Raises:
            AssertionError: none comes.
        """
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.reactor.settle()
        end = self.reactor.seconds() + PATIENCE
        while not results and self.reactor.calls and self.reactor.seconds() < end:
            self.reactor.advance(max(0.0, self.reactor.calls[0].getTime() - self.reactor.seconds()))
        if not results:
            raise AssertionError("no result comes, however long one waits")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]  # type: ignore[no-any-return]

    def reload(self, config: str | Config) -> ReloadReport:
        """Go over to another configuration. Raises what `Proxy.reload` raises."""
        report = self.proxy.reload(_config(config))
        self.addresses = self.result_of(self.proxy.listen())
        return report

    def stop(self) -> None:
        """Stop the proxy, and check what is left.

        Raises:
            AssertionError: flows have no record, or calls are still to be made.
        """
        flows = {flow.record.id for flow in self.flows}
        self.result_of(self.proxy.stopService())
        self.reactor.settle()
        missing = flows - {record.id for record in self.records}
        if missing:
            raise AssertionError(f"flows without a record: {sorted(missing)}")
        if self.reactor.getDelayedCalls():
            raise AssertionError(f"calls are still to be made: {self.reactor.getDelayedCalls()}")

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.stop()


def _config(config: str | Config) -> Config:
    return config if isinstance(config, Config) else Config.from_string(config, "<lab>")
