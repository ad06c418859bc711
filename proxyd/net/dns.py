"""Addresses from the configured DNS servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.names import dns
from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.dns_exchange import Server, ServerUnreachable, exchange
from proxyd.net.dns_message import MAX_ALIASES, Question, Reply, ServerFailed
from proxyd.net.resolver import MAX_ADDRESSES, Answer, NameNotFound
from proxyd.request import IPAddress

RESOLUTION_DELAY = 0.3
"""Seconds for which one family's answer waits for the other's (RFC 8305 §3 recommends 0.05 before connecting; this one
is remembered for its TTL, so it pays to wait a little for all of it)."""

PARTIAL_TTL = 30.0
"""Seconds for which an answer is used at the most when one family's question was not answered."""

PENALTY = 30.0
"""Seconds for which a server that did not reply is asked last."""


class ServerResolver:
    """A source that asks the configured DNS servers, the first that replies: no hosts file, no search list."""

    def __init__(self, reactor: Any, servers: Sequence[Server], *, timeout: float) -> None:
        self._reactor = reactor
        self._servers = servers
        self._timeout = timeout
        self._failed_at: dict[Server, float] = {}

    def lookup(self, name: str) -> Deferred[Answer]:
        """Ask for both families at the same time."""
        end = self._reactor.seconds() + self._timeout
        families = [Deferred.fromCoroutine(self._family(name, type, end)) for type in (dns.AAAA, dns.A)]
        return _Families(self._reactor, families).done

    async def _family(self, name: str, type: int, end: float) -> Answer:
        asked, ttl = name.encode("ascii"), math.inf
        for _ in range(MAX_ALIASES):
            reply = await self._ask(name, asked, type, end)
            ttl = min(ttl, reply.ttl)
            if reply.addresses:
                return Answer(reply.addresses, ttl)
            if not reply.exists:
                raise NoSuchName(f'no such name: "{name}"')
            if reply.alias is None:
                raise NameNotFound(f'no address for the name "{name}"')
            asked = reply.alias
        raise ProxyError(ErrorType.DNS_ERROR, f'too many aliases for the name "{name}"')

    async def _ask(self, name: str, asked: bytes, type: int, end: float) -> Reply:
        """Ask the servers in turn; those that said they could not answer are asked once more, as that often passes."""
        error = ProxyError(ErrorType.DNS_TIMEOUT, f'no DNS server replied for the name "{name}"')
        servers = self._in_turn()
        for _ in range(2):
            unable = []
            for server in servers:
                seconds = min(self._timeout / len(self._servers), end - self._reactor.seconds())
                if seconds <= 0:
                    raise error
                try:
                    return await exchange(self._reactor, server, Question(asked, type), seconds)
                except ServerFailed as failed:
                    unable.append(server)
                    error = ProxyError(failed.error, f'{failed.detail} for the name "{name}"')
                except ServerUnreachable as unreachable:
                    self._failed_at[server] = self._reactor.seconds()
                    if error.error is ErrorType.DNS_TIMEOUT:
                        error = ProxyError(unreachable.error, error.detail)
            servers = unable
        raise error

    def _in_turn(self) -> list[Server]:
        """The servers as configured, but those last that did not reply a moment ago."""
        since = self._reactor.seconds() - PENALTY
        return sorted(self._servers, key=lambda server: self._failed_at.get(server, since) > since)


class NoSuchName(NameNotFound):
    """The name does not exist, whatever the family."""


class _Families:
    """The answers of both families to one look-up, IPv6 and IPv4; they become one as soon as enough is known."""

    def __init__(self, reactor: Any, families: Sequence[Deferred[Answer]]) -> None:
        self._reactor = reactor
        self._families = families
        self._outcomes: list[Answer | ProxyError | None] = [None, None]
        self._timer: IDelayedCall | None = None
        self._over = False
        self.done: Deferred[Answer] = Deferred(self._release)
        for number, family in enumerate(families):
            family.addCallbacks(self._came, self._failed, callbackArgs=(number,), errbackArgs=(number,))

    def _failed(self, failure: Failure, number: int) -> None:
        if isinstance(failure.value, ProxyError):
            self._came(failure.value, number)
        elif not self._over:
            self._release()
            self.done.errback(failure)

    def _came(self, outcome: Answer | ProxyError, number: int) -> None:
        self._outcomes[number] = outcome
        if None not in self._outcomes:
            self._finish()
        elif isinstance(outcome, (Answer, NoSuchName)):
            self._timer = self._reactor.callLater(RESOLUTION_DELAY, self._finish_without)

    def _finish_without(self) -> None:
        self._timer = None
        self._finish()

    def _finish(self) -> None:
        self._release()
        try:
            answer = combined(*self._outcomes)
        except ProxyError as error:
            self.done.errback(error)
        else:
            self.done.callback(answer)

    def _release(self, cancelled: object = None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        for family in self._families:
            family.cancel()


def combined(ipv6: Answer | ProxyError | None, ipv4: Answer | ProxyError | None) -> Answer:
    """One answer out of what came of the two questions; ``None`` for one that is still open.

    Raises:
        ProxyError: neither question brought an address.
    """
    if isinstance(ipv6, Answer) and isinstance(ipv4, Answer):
        return Answer(_share(ipv6.addresses, ipv4.addresses), min(ipv6.ttl, ipv4.ttl))
    for answer, other in (ipv6, ipv4), (ipv4, ipv6):
        if isinstance(answer, Answer):
            ttl = answer.ttl if isinstance(other, NameNotFound) else min(answer.ttl, PARTIAL_TTL)
            return Answer(answer.addresses[:MAX_ADDRESSES], ttl)
    raise max((error for error in (ipv4, ipv6) if isinstance(error, ProxyError)), key=_weight)


def _share(some: tuple[IPAddress, ...], others: tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
    half = MAX_ADDRESSES // 2
    return some[: max(half, MAX_ADDRESSES - len(others))] + others[: max(half, MAX_ADDRESSES - len(some))]


def _weight(error: ProxyError) -> int:
    """A name that does not exist has no addresses; one that lacks those of one family may have the others."""
    if isinstance(error, NameNotFound):
        return 2 if isinstance(error, NoSuchName) else 0
    return 1
