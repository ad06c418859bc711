"""Names to addresses: what a resolver is, and the cache that stands before every source of answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import IPAddress

SHORTEST_TTL = 1.0
"""Seconds for which even an answer with TTL 0 is used: the flows of one moment share it."""

LONGEST_TTL = 86400.0
"""Seconds after which every answer is asked for again, whatever the zone says (RFC 8767 §4 asks for a cap)."""

FAILURE_TTL = 1.0
"""Seconds between two questions for a name whose last look-up failed (RFC 9520 §3.2 asks for at least one)."""

STALE = 3600.0
"""Seconds beyond its TTL for which an answer is used while the source fails."""

PATIENCE = 1.8
"""Seconds an asker waits for a fresh answer where a stale one is at hand (RFC 8767 §5)."""

SIZE = 4096
"""Names remembered, a kilobyte each at the most."""

MAX_ADDRESSES = 16
"""Addresses of a name that are used: more than can be tried within a connect timeout."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The addresses of a name, in the order they were given, and the seconds for which they hold."""

    addresses: tuple[IPAddress, ...]
    ttl: float


class NameNotFound(ProxyError):
    """The name does not exist, or has no address: an answer that may be remembered, not a failure to get one."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorType.DNS_ERROR, detail)


class Resolver(Protocol):
    """Who turns the names of destinations into addresses."""

    def resolve(self, name: str) -> Sequence[IPAddress] | Deferred[Sequence[IPAddress]]:
        """The addresses of a name: at once if they are known, else when they come.

        Raises:
            ProxyError: ``dns_error`` or ``dns_timeout``; the Deferred fails with the same.
        """


class Source(Protocol):
    """Who is asked when the cache does not know."""

    def lookup(self, name: str) -> Deferred[Answer]:
        """Ask for the addresses of a name, at least one.

        Fails with `NameNotFound`, or with another `ProxyError` where no answer could be had. May be cancelled.
        """


class CachingResolver:
    """A resolver that remembers: answers for their TTL, and beyond it while the source fails; missing names briefly."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        source: Source,
        *,
        negative_ttl: float,
        size: int = SIZE,
        stale: float = STALE,
    ) -> None:
        self._clock = clock
        self._source = source
        self._negative_ttl = negative_ttl
        self._size = size
        self._stale = stale
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._questions: dict[str, _Question] = {}

    def resolve(self, name: str) -> Sequence[IPAddress] | Deferred[Sequence[IPAddress]]:
        """The addresses of a name: at once if they are known, else when they come."""
        known = self._known.get(name)
        now = self._clock.seconds()
        if known is not None and now < known.until:
            return known.addresses_or_error()
        question = self._questions.get(name) or self._ask(name, known)
        if question.outcome is not None:
            return question.outcome.addresses_or_error()
        return question.join()

    def _ask(self, name: str, known: _Known | None) -> _Question:
        question = self._questions[name] = _Question()
        if known is not None and self._clock.seconds() < known.stale_until:
            if known.failing:
                question.outcome = known
            else:
                question.patience = self._clock.callLater(PATIENCE, self._lose_patience, question, known)
        question.lookup = self._source.lookup(name)
        question.lookup.addCallbacks(self._answered, self._failed, callbackArgs=(name,), errbackArgs=(name,))
        return question

    def _lose_patience(self, question: _Question, known: _Known) -> None:
        question.patience = None
        known.failing = True
        question.settle(known)

    def _answered(self, answer: Answer, name: str) -> None:
        ttl = min(max(answer.ttl, SHORTEST_TTL), LONGEST_TTL)
        until = self._clock.seconds() + ttl
        self._learn(name, _Known(answer.addresses, until, until + self._stale))

    def _failed(self, failure: Failure, name: str) -> None:
        error, now = self._error(failure, name), self._clock.seconds()
        stale = self._known.get(name)
        if isinstance(error, NameNotFound):
            known = _Known((), now + self._negative_ttl, error=error)
        elif stale is not None and now < stale.stale_until:
            known = _Known(stale.addresses, now + FAILURE_TTL, stale.stale_until, failing=True)
        else:
            known = _Known((), now + FAILURE_TTL, error=error)
        self._learn(name, known)

    def _error(self, failure: Failure, name: str) -> ProxyError:
        if isinstance(failure.value, ProxyError):
            return failure.value
        if failure.check(CancelledError) is None:
            self._log.failure("looking up a name failed in a way that is proxyd's own fault", failure)
        return ProxyError(ErrorType.DNS_ERROR, f'the look-up of "{name}" was broken off')

    def _learn(self, name: str, known: _Known) -> None:
        self._known[name] = known
        self._known.move_to_end(name)
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        self._questions.pop(name).settle(known)

    def stop(self) -> None:
        """Break off the look-ups under way; whoever waits for one is told."""
        for question in list(self._questions.values()):
            assert question.lookup is not None
            question.lookup.cancel()


class _Known:
    """What is remembered of one name: its addresses, or why there are none.

    ``failing`` says that the addresses are past their TTL and the source could not be asked for new ones, so nobody
    waits for the next attempt.
    """

    __slots__ = ("_error", "addresses", "failing", "stale_until", "until")

    def __init__(
        self,
        addresses: tuple[IPAddress, ...],
        until: float,
        stale_until: float = 0.0,
        *,
        error: ProxyError | None = None,
        failing: bool = False,
    ) -> None:
        self.addresses = addresses
        self.until = until
        self.stale_until = stale_until
        self.failing = failing
        self._error = error

    def addresses_or_error(self) -> tuple[IPAddress, ...]:
        """The addresses. Raises a `ProxyError` of its own for each asker: a shared one would collect tracebacks."""
        if self._error is not None:
            raise ProxyError(self._error.error, self._error.detail)
        return self.addresses


class _Question:
    """One look-up under way, and everybody who waits for it.

    ``outcome`` is what askers get: the answer, or, while that is still awaited, stale addresses.
    """

    __slots__ = ("_askers", "lookup", "outcome", "patience")

    def __init__(self) -> None:
        self._askers: dict[Deferred[Sequence[IPAddress]], None] = {}
        self.lookup: Deferred[Answer] | None = None
        self.outcome: _Known | None = None
        self.patience: IDelayedCall | None = None

    def join(self) -> Deferred[Sequence[IPAddress]]:
        """Wait too. An asker who cancels leaves the others and the look-up alone."""
        asker: Deferred[Sequence[IPAddress]] = Deferred(self._leave)
        self._askers[asker] = None
        return asker

    def _leave(self, asker: Deferred[Sequence[IPAddress]]) -> None:
        self._askers.pop(asker, None)

    def settle(self, outcome: _Known) -> None:
        """Tell all who wait."""
        self.outcome = outcome
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None
        while self._askers:  # one asker may cancel another
            asker = next(iter(self._askers))
            del self._askers[asker]
            try:
                addresses = outcome.addresses_or_error()
            except ProxyError as error:
                asker.errback(error)
            else:
                asker.callback(addresses)
