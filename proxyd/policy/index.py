"""Finds the rules that name a destination without looking at the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Generic, TypeVar

from proxyd.policy.addresses import plain
from proxyd.request import IPAddress

T = TypeVar("T")

IPNetwork = IPv4Network | IPv6Network

EVERYTHING = "*"
"""The destination that is every name and every address."""

_MAPPED = IPv6Network("::ffff:0:0/96")


def network_of(destination: str) -> IPNetwork | None:
    """The network that a rule's destination is (one address: a network of one), or ``None`` for a name.

    Raises:
        ValueError: for what looks like an address or network and is none: taken for a name it would match nothing.
    """
    if "/" in destination or ":" in destination or destination.rpartition(".")[2].isdigit():
        return ip_network(destination)
    return None


class NetworkIndex:
    """Numbers filed under networks, with one dictionary for each prefix length that is in use.

    A look-up asks each dictionary once, however many networks they hold.
    """

    def __init__(self) -> None:
        self._by_shift: dict[int, dict[int, dict[int, list[int]]]] = {4: {}, 6: {}}

    def add(self, network: IPNetwork, number: int) -> None:
        """File a number under a network; a network of IPv4-mapped addresses is the IPv4 network."""
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            network = IPv4Network((int(network[0]) & 0xFFFFFFFF, network.prefixlen - 96))
        shift = network.max_prefixlen - network.prefixlen
        prefixes = self._by_shift[network.version].setdefault(shift, {})
        prefixes.setdefault(int(network[0]) >> shift, []).append(number)

    def find(self, address: IPAddress) -> set[int]:
        """The numbers filed under the networks that hold the address."""
        address = plain(address)
        value = int(address)
        found: set[int] = set()
        for shift, prefixes in self._by_shift[address.version].items():
            found.update(prefixes.get(value >> shift, ()))
        return found


class DestinationIndex(Generic[T]):
    """Rules in order, found by the destinations they list.

    Args:
        rules: The destinations of each rule, and what is to be found for it.
        alike: The key of rules that differ in nothing but their destinations: before a name is resolved, the first
            of them stands for all.
    """

    def __init__(self, rules: Iterable[tuple[Sequence[str], T]], alike: Callable[[T], Hashable]) -> None:
        self._rules: list[T] = []
        self._everywhere: list[int] = []
        self._names: dict[str, list[int]] = {}
        self._domains: dict[str, list[int]] = {}
        self._networks = NetworkIndex()
        unresolved: dict[Hashable, int] = {}
        for position, (destinations, rule) in enumerate(rules):
            self._rules.append(rule)
            if self._file(destinations, position):
                unresolved.setdefault(alike(rule), position)
        self._unresolved = list(unresolved.values())
        self._other_names = self._merge_for_name(set())
        self._other_addresses = self._merge_for_address(set())

    def for_name(self, name: str) -> tuple[tuple[T, bool], ...]:
        """The rules that may match a name, in order, each with whether the name alone makes it match.

        Of alike rules for which that depends on the address, only the first is there.
        """
        named = self._named(name)
        return self._merge_for_name(named) if named else self._other_names

    def for_address(self, name: str, address: IPAddress) -> tuple[T, ...]:
        """The rules that list a name or one of its addresses, in order."""
        found = self._named(name) | self._networks.find(address)
        return self._merge_for_address(found) if found else self._other_addresses

    def _file(self, destinations: Sequence[str], position: int) -> bool:
        """File a rule under its destinations, and tell whether some names need resolving before it can match."""
        if EVERYTHING in destinations:
            self._everywhere.append(position)
            return False
        networks = 0
        for destination in destinations:
            network = network_of(destination)
            if network is not None:
                self._networks.add(network, position)
                networks += 1
            elif destination.startswith("."):
                self._domains.setdefault(destination[1:], []).append(position)
            else:
                self._names.setdefault(destination, []).append(position)
        return networks > 0

    def _named(self, name: str) -> set[int]:
        found = set(self._names.get(name, ()))
        while name:
            found.update(self._domains.get(name, ()))
            name = name.partition(".")[2]
        return found

    def _merge_for_name(self, named: set[int]) -> tuple[tuple[T, bool], ...]:
        by_name = named.union(self._everywhere)
        return tuple((self._rules[at], at in by_name) for at in sorted(by_name.union(self._unresolved)))

    def _merge_for_address(self, found: set[int]) -> tuple[T, ...]:
        return tuple(self._rules[at] for at in sorted(found.union(self._everywhere)))
