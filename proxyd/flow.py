"""One request from decision to access record: everything between parsing and the answer, once for every door."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxyd.accounts.accounts import Accounts
from proxyd.errors import ErrorType, ProxyError
from proxyd.ledger.record import AccessRecord, microseconds
from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.dialer import Dialer
from proxyd.net.linger import abandon
from proxyd.net.pool import IdlePool
from proxyd.net.relay import Limits, Relay
from proxyd.net.resolver import Resolver
from proxyd.net.splice import Splicer
from proxyd.net.tunnel import open_tunnel
from proxyd.policy.rules import Decision, Policy, Rule, Verdict
from proxyd.request import Destination, Door, Identity, IPAddress, Request
from proxyd.settings import Listener, Settings

log = Logger()
T = TypeVar("T")


class RecordLog(Protocol):
    """Where access records go."""

    def record(self, record: AccessRecord) -> None:
        """Take one finished record."""


@dataclass(slots=True, eq=False)
class Egress:
    """What all doors of one proxy share: the policy, the accounts, the ways out, the ledger."""

    clock: Any
    settings: Settings
    policy: Policy
    accounts: Accounts | None
    realm: str
    resolver: Resolver
    dialer: Dialer
    deadlines: Deadlines
    pool: IdlePool
    splicer: Splicer | None
    access_log: RecordLog
    via: str
    flows: dict[str, Flow] = field(default_factory=dict)
    draining: bool = False
    _limits: dict[tuple[float, float, int, int], Limits] = field(default_factory=dict)

    def tunnel_limits(self, rate: int) -> Limits:
        """The limits of a tunnel whose rule allows this many bytes per second; there are few, so they are kept."""
        settings = self.settings
        key = settings.idle_timeout, settings.tunnel_lifetime, settings.buffer_size, rate
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = Limits(*key)
        return limits


@dataclass(frozen=True, slots=True)
class Client:
    """Who connected, through which listener; ``identity`` is what a TLS client certificate proved."""

    listener: Listener
    address: IPAddress | None
    port: int
    identity: Identity | None = None
    name: str = field(init=False)
    """The address as text; empty for a client on a Unix socket."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", "" if self.address is None else str(self.address))


class Refused(ProxyError):
    """The policy said no, or asks who it is (``challenge``)."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.error or ErrorType.HTTP_REQUEST_DENIED, decision.reason)
        self.decision = decision
        self.challenge = decision.verdict is Verdict.CHALLENGE


_numbers = itertools.count(1)
_process = os.urandom(4).hex()


class Flow:
    """One request's whole life, from the moment its door has parsed it; ends in exactly one access record."""

    __slots__ = ("_dialing", "_egress", "_kill", "_start", "address", "decision", "ended", "record", "relay", "request")

    def __init__(self, egress: Egress, client: Client, door: Door, method: str, asked: str) -> None:
        self._egress = egress
        self._start = egress.clock.seconds()
        self._dialing: Deferred[Connection] | None = None
        self._kill: Callable[[ProxyError], object] | None = None
        self.request: Request | None = None
        self.address: IPAddress | None = None
        self.decision: Decision | None = None
        self.relay: Relay | None = None
        self.ended = False
        self.record = AccessRecord(
            time=microseconds(self._start),
            id=f"{_process}-{next(_numbers):x}",
            listener=client.listener.name,
            protocol=door.value,
            client=client.name,
            client_port=client.port,
            method=method,
            destination=asked,
        )
        egress.flows[self.record.id] = self

    # -- decision ---------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Rule | None:
        """The rule that decided, so far."""
        return None if self.decision is None else self.decision.rule

    def admit(self, request: Request) -> None:
        """Decide by what the client named, before anything is looked up.

        Raises:
            Refused: denied for certain, or an identity is needed.
        """
        self.request = request
        record = self.record
        record.destination = request.destination.authority
        record.method = request.method
        identity = request.identity
        if identity is not None:
            record.user, record.proof = identity.name, identity.proof
        self.decision = decision = self._egress.policy.decide(request)
        record.policy = self._since_start()
        if decision.verdict is not Verdict.ALLOW and decision.verdict is not Verdict.UNDECIDED:
            raise Refused(decision)

    def still_allowed(self, policy: Policy) -> bool:
        """Whether this policy would let the flow begin: by name, and by the address it is connected to."""
        if self.request is None or self.address is None:
            return True
        return policy.decide(self.request, self.address).allow

    # -- the way out --------------------------------------------------------------------------------------------------

    def reuse(self) -> Connection | None:
        """An idle upstream connection for this request, if the policy admits its address."""
        assert self.request is not None
        found = self._egress.pool.take(self.request.destination, self._admits)
        if found is None:
            return None
        connection, address = found
        self._dialled(address)
        self.record.reused = True
        return connection

    def _admits(self, address: IPAddress) -> bool:
        """Whether the request may go to this address; if so, that is the decision."""
        assert self.request is not None
        if self.request.destination.address is None:  # else it was decided on as the address that it is
            decision = self._egress.policy.decide(self.request, address)
            if not decision.allow:
                return False
            self.decision = decision
        return True

    def connect(self, timeout: float) -> Deferred[Connection]:
        """Resolve, decide on every address, and dial those that are allowed, all within the seconds given.

        Fails with `ProxyError`, `Refused` among them; may be cancelled.
        """
        request = self.request
        assert request is not None
        began = self._egress.clock.seconds()
        try:
            if request.destination.address is not None and self.decision is not None:
                self._dialing = self._dial({request.destination.address: self.decision}, began, timeout)
                return self._dialing
            found = self._egress.resolver.resolve(request.destination.host)
            if isinstance(found, Deferred):
                found.addTimeout(timeout, self._egress.clock, onTimeoutCancel=_dns_timeout)
                found.addBoth(self._looked_up, began)
                self._dialing = found.addCallback(self._resolved, began, timeout)
            else:
                self._looked_up(None, began)
                self._dialing = self._resolved(found, began, timeout)
        except Exception:  # noqa: BLE001 - a resolver or dialer of somebody else's may raise what it likes: a 500
            self._dialing = fail()
        return self._dialing

    def _looked_up(self, result: T, began: float) -> T:
        self.record.dns = microseconds(self._egress.clock.seconds() - began)
        return result

    def _resolved(self, addresses: Sequence[IPAddress], began: float, timeout: float) -> Deferred[Connection]:
        """Decide on each address, and dial those that are allowed."""
        request = self.request
        assert request is not None
        if not addresses:
            raise ProxyError(ErrorType.DNS_ERROR, "the name has no address")
        decisions = {address: self._egress.policy.decide(request, address) for address in addresses}
        allowed = {address: decision for address, decision in decisions.items() if decision.allow}
        if not allowed:
            self.decision = next(iter(decisions.values()))
            raise Refused(self.decision)
        return self._dial(allowed, began, timeout)

    def _dial(self, allowed: Mapping[IPAddress, Decision], began: float, timeout: float) -> Deferred[Connection]:
        assert self.request is not None
        now = self._egress.clock.seconds()
        dialing = self._egress.dialer.dial(
            tuple(allowed), self.request.destination.port, Connection, timeout - (now - began)
        )
        return dialing.addCallback(self._reached, allowed, self._egress.policy, now)

    def _reached(
        self,
        reached: tuple[Connection, IPAddress],
        allowed: Mapping[IPAddress, Decision],
        policy: Policy,
        began: float,
    ) -> Connection:
        connection, address = reached
        self.record.connect = microseconds(self._egress.clock.seconds() - began)
        self.decision = allowed[address]
        if policy is not self._egress.policy and self.request is not None:  # reloaded meanwhile
            self.decision = self._egress.policy.decide(self.request, address)
            if not self.decision.allow:
                abandon(connection)
                raise Refused(self.decision)
        self._dialled(address)
        return connection

    def _dialled(self, address: IPAddress) -> None:
        assert self.request is not None
        destination = self.request.destination
        self.address = address
        if destination.address is None:
            destination = Destination.of_address(address, destination.port)
        self.record.address = destination.authority

    # -- endings ------------------------------------------------------------------------------------------------

    def tunnel(self, client: Connection, upstream: Connection, early: bytes = b"") -> None:
        """Join the two connections until both are done; the record is written then."""
        limits = self._egress.tunnel_limits(0 if self.rule is None else self.rule.rate)
        self.relay = open_tunnel(
            self._egress.clock,
            self._egress.splicer,
            self._egress.deadlines,
            client,
            upstream,
            limits,
            self._tunnel_ended,
            early,
        )

    def _tunnel_ended(self, relay: Relay) -> None:
        record = self.record
        record.bytes_from_client += relay.bytes_from_client
        record.bytes_to_client += relay.bytes_to_client
        if relay.first_byte is not None and record.first_byte is None:
            record.first_byte = microseconds(relay.first_byte - self._start)
        self.end(relay.error, closed_by=relay.closed_by)

    def began_answer(self) -> None:
        """The origin's first byte has come."""
        if self.record.first_byte is None:
            self.record.first_byte = self._since_start()

    def fail(self, error: ProxyError, *, closed_by: str = "proxy") -> None:
        """End with an error of the table."""
        self.record.detail = error.detail
        self.end(error.error, closed_by=closed_by)

    def end(self, error: ErrorType | None = None, *, closed_by: str | None = None) -> None:
        """Write the access record. The first ending counts: what else breaks while a flow is taken down is its echo."""
        if self.ended:
            return
        self.ended = True
        self._kill = None
        record = self.record
        del self._egress.flows[record.id]
        decision = self.decision
        if decision is not None and decision.verdict is not Verdict.UNDECIDED:
            record.decision = decision.verdict.value
            record.rule = decision.rule.name if decision.rule is not None else None
        if error is not None:
            record.error = error.value
        record.closed_by = closed_by
        record.duration = self._since_start()
        self._egress.access_log.record(record)

    def on_kill(self, kill: Callable[[ProxyError], object]) -> None:
        """How the door ends this flow when it is told to."""
        self._kill = kill

    def abort(self, error: ProxyError) -> None:
        """End the flow from outside: drain, or an operator."""
        if self.relay is not None and self.relay.running:
            self.record.detail = error.detail
            self.relay.abort(error.error)
        elif self._kill is not None:
            self._kill(error)
            self.cancel_dialing()

    def cancel_dialing(self) -> None:
        """The client left: stop looking for a way out."""
        if self._dialing is not None:
            self._dialing.cancel()

    def _since_start(self) -> float:
        return microseconds(self._egress.clock.seconds() - self._start)


def _dns_timeout(result: object, timeout: float) -> NoReturn:
    raise ProxyError(ErrorType.DNS_TIMEOUT, "the name was not resolved in time")


def as_proxy_error(failure: Failure) -> ProxyError:
    """The error of the table for a failure; anything unexpected is our bug: logged, and an internal error."""
    if isinstance(failure.value, ProxyError):
        return failure.value
    if failure.check(CancelledError):
        return ProxyError(ErrorType.CLIENT_DISCONNECTED, "the client left")
    log.failure("proxyd has a bug", failure)
    return ProxyError(ErrorType.PROXY_INTERNAL_ERROR, "proxyd failed; its log says why")
