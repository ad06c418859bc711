"""Who may go where: rules in order, and the decision that every request gets."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from proxyd.errors import ErrorType
from proxyd.policy.addresses import plain, special_purpose
from proxyd.policy.index import DestinationIndex, IPNetwork, NetworkIndex
from proxyd.request import Door, IPAddress, Request

MAX_REMEMBERED = 4096
"""Names, addresses and clients whose rules a policy remembers; each is a few hundred bytes."""


DEFAULT_PORTS = (range(80, 81), range(443, 444))
"""The ports of an allow rule that names none: HTTP and HTTPS, where log services listen. The same at every door, so
that a rule which names no protocol decides alike whichever way a client comes."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the configuration: whom and what it is about, and what holds then.

    Every condition must match; an empty one matches whatever comes, but ``destinations`` must be given: each is
    canonical, ``example.com``, ``.example.com`` (that domain and its subdomains), ``192.0.2.1``, ``2001:db8::/32``
    or ``*``. Without ``ports`` an allow rule is about `DEFAULT_PORTS`, a deny rule about every port. Where both
    ``users`` and ``groups`` are given, either suffices.
    """

    name: str
    allow: bool
    destinations: tuple[str, ...]
    ports: tuple[range, ...] = ()
    listeners: frozenset[str] = frozenset()
    doors: frozenset[Door] = frozenset()
    methods: frozenset[str] = frozenset()
    clients: tuple[IPNetwork, ...] = ()
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    special_addresses: bool = False
    preserve_host: bool = False
    rate: int = 0
    """Bytes per second of a flow in each direction; 0 is no limit."""


class Verdict(enum.Enum):
    """What a decision comes to."""

    ALLOW = "allow"
    DENY = "deny"
    CHALLENGE = "challenge"
    """Who is asking matters, and the request does not say it."""
    UNDECIDED = "undecided"
    """The answer depends on the address behind the name: resolve it, then ask again for each address."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's answer to one request: the rule it rests on, and the reason in a few words for logs."""

    verdict: Verdict
    rule: Rule | None
    reason: str
    error: ErrorType | None

    @property
    def allow(self) -> bool:
        """Whether the request may go on."""
        return self.verdict is Verdict.ALLOW


NO_RULE = Decision(Verdict.DENY, None, "no rule allows", ErrorType.HTTP_REQUEST_DENIED)


class UserNeeded(enum.Enum):
    """Whether a client has to say who it is before anything else is known of its requests."""

    NEVER = "never"
    MAYBE = "maybe"
    ALWAYS = "always"


class _Clause:
    """A rule made ready for matching: an unset condition is ``None``, and its decisions are built once.

    ``clients`` is the number under which the policy files the rule's client networks.
    """

    __slots__ = (
        "rule", "decision", "challenge", "undecided", "listeners", "doors", "methods", "ports", "clients", "people"
    )  # fmt: skip

    def __init__(self, rule: Rule, clients: int | None, groups: Mapping[str, frozenset[str]]) -> None:
        self.rule = rule
        if rule.allow:
            self.decision = Decision(Verdict.ALLOW, rule, f'rule "{rule.name}" allows', None)
        else:
            self.decision = Decision(Verdict.DENY, rule, f'rule "{rule.name}" denies', ErrorType.HTTP_REQUEST_DENIED)
        self.challenge = Decision(Verdict.CHALLENGE, rule, f'rule "{rule.name}" needs a user', None)
        self.undecided = Decision(Verdict.UNDECIDED, rule, f'rule "{rule.name}" depends on the address', None)
        self.listeners = rule.listeners or None
        self.doors = tuple(rule.doors) or None  # not a set: hashing an enum member costs more than three comparisons
        self.methods = rule.methods or None
        ports = rule.ports or (DEFAULT_PORTS if rule.allow else ())
        self.ports = _union(ports) if len(ports) > 1 else next(iter(ports), None)
        self.clients = clients
        self.people = rule.users.union(*(groups[name] for name in rule.groups)) if rule.users or rule.groups else None

    @property
    def conditions(self) -> Hashable:
        """What ``answer`` looks at: of clauses where this is equal, all answer or none does."""
        rule = self.rule
        return rule.allow, self.ports, rule.listeners, rule.doors, rule.methods, self.clients, rule.users, rule.groups

    @property
    def audience(self) -> Hashable:
        """What ``Policy.user_needed`` looks at."""
        rule = self.rule
        return rule.allow, rule.listeners, rule.doors, rule.methods, self.clients, self.people is None

    def answer(self, request: Request, near: frozenset[int]) -> Decision | None:
        """What the rule says where its destinations match, or ``None`` if it is not about this request.

        Args:
            near: The numbers of the client networks that the client is in.
        """
        if (
            (self.ports is not None and request.destination.port not in self.ports)
            or (self.listeners is not None and request.listener not in self.listeners)
            or (self.doors is not None and request.door not in self.doors)
            or (self.methods is not None and request.method not in self.methods)
            or (self.clients is not None and self.clients not in near)
        ):
            return None
        if self.people is None:
            return self.decision
        if request.identity is None:
            return self.challenge
        return self.decision if request.identity.name in self.people else None

    def reaches(self, listener: str, door: Door, near: frozenset[int]) -> bool:
        """Whether a request of such a client at this door can match."""
        tunnel = door is not Door.FORWARD
        return (
            (self.listeners is None or listener in self.listeners)
            and (self.doors is None or door in self.doors)
            and (self.methods is None or any((method == "CONNECT") is tunnel for method in self.methods))
            and (self.clients is None or self.clients in near)
        )


@functools.lru_cache(maxsize=64)
def _union(ranges: tuple[range, ...]) -> Collection[int]:
    # Most rules of a configuration list the same ports: they share the set.
    return frozenset(itertools.chain.from_iterable(ranges))


_NOWHERE: frozenset[int] = frozenset()


def _never(address: IPAddress, port: int) -> bool:
    return False


class Policy:
    """The rules of one configuration, made ready for deciding; it never changes, a reload builds another.

    Args:
        rules: The first that matches decides; where none does, the request is denied.
        groups: The members of every group that a rule names.
        is_own: Tells whether the proxy itself listens on an address and port.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        groups: Mapping[str, frozenset[str]],
        is_own: Callable[[IPAddress, int], bool] = _never,
    ) -> None:
        self._is_own = is_own
        numbers = {networks: number for number, networks in enumerate({rule.clients for rule in rules if rule.clients})}
        self._knows_clients = bool(numbers)
        self._clients = NetworkIndex()
        for networks, number in numbers.items():
            for network in networks:
                self._clients.add(network, number)
        clauses = [_Clause(rule, numbers.get(rule.clients), groups) for rule in rules]
        self._audiences = list({clause.audience: clause for clause in clauses}.values())
        self._destinations = DestinationIndex(
            ((clause.rule.destinations, clause) for clause in clauses), alike=lambda clause: clause.conditions
        )
        # The caches belong to the policy, and go with it at a reload.
        self._for_name = functools.lru_cache(MAX_REMEMBERED)(self._destinations.for_name)
        self._for_address = functools.lru_cache(MAX_REMEMBERED)(self._locate)
        self._near = functools.lru_cache(MAX_REMEMBERED)(self._find_near)

    def decide(self, request: Request, address: IPAddress | None = None) -> Decision:
        """Decide on a request by the name it asks for, or by that and one of the addresses behind it.

        Args:
            address: An address that the name has; without one the name is decided on before DNS. A destination
                that is an address itself is decided on completely either way.
        """
        if address is None:
            address = request.destination.address
        near = self._networks_of(request.client)
        return self._by_name(request, near) if address is None else self._by_address(request, near, address)

    def _by_name(self, request: Request, near: frozenset[int]) -> Decision:
        # Rules for addresses may come before the one that decides by name. DNS is asked only where some address could
        # lead to ALLOW: names must not leak through DNS for those who get nowhere, or have not said who they are.
        decision = NO_RULE
        earlier = asking = None
        for clause, by_name in self._for_name(request.destination.host):
            answer = clause.answer(request, near)
            if answer is None:
                continue
            if by_name:
                decision = answer
                break
            if answer.verdict is Verdict.ALLOW:
                return clause.undecided
            earlier = earlier or clause
            if clause.rule.allow:
                asking = asking or clause
        if earlier is not None and decision.verdict is Verdict.ALLOW:
            return earlier.undecided
        return decision if asking is None else asking.challenge

    def _by_address(self, request: Request, near: frozenset[int], address: IPAddress) -> Decision:
        clauses, address, special = self._for_address(request.destination.host, address.packed)
        for clause in clauses:
            decision = clause.answer(request, near)
            if decision is not None:
                break
        else:
            return NO_RULE
        if decision.verdict is not Verdict.ALLOW or clause.rule.special_addresses:
            return decision
        if special is None:
            if not self._is_own(address, request.destination.port):
                return decision
            special = "the proxy's own address"
        return Decision(Verdict.DENY, clause.rule, f"{address} is {special}", ErrorType.DESTINATION_IP_PROHIBITED)

    def user_needed(self, listener: str, door: Door, client: IPAddress | None) -> UserNeeded:
        """Whether a client should be asked who it is when it connects: always if nothing is allowed otherwise."""
        near = self._networks_of(client)
        reaching = [clause for clause in self._audiences if clause.reaches(listener, door, near)]
        if all(clause.people is None for clause in reaching):
            return UserNeeded.NEVER
        allowing = [clause for clause in reaching if clause.rule.allow]
        always = bool(allowing) and all(clause.people is not None for clause in allowing)
        return UserNeeded.ALWAYS if always else UserNeeded.MAYBE

    def _networks_of(self, client: IPAddress | None) -> frozenset[int]:
        return self._near(client.packed) if self._knows_clients and client is not None else _NOWHERE

    def _find_near(self, client: bytes) -> frozenset[int]:
        return frozenset(self._clients.find(ip_address(client)))

    def _locate(self, name: str, packed: bytes) -> tuple[tuple[_Clause, ...], IPAddress, str | None]:
        """The clauses that list a name or its address, that address, and what makes it special."""
        address = plain(ip_address(packed))
        return self._destinations.for_address(name, address), address, special_purpose(address)
