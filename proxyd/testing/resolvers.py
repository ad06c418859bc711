"""Resolvers that answer as they were told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Destination, IPAddress

Addresses = Sequence[str]


class StaticResolver:
    """A resolver that knows what it was told: the same addresses for a name at each question.

    Args:
        names: The addresses of each name.
        clock: Needed with a delay.
        delay: Seconds until each answer; 0: at once, as from a cache.
    """

    def __init__(
        self, names: Mapping[str, Addresses] | None = None, *, clock: IReactorTime | None = None, delay: float = 0.0
    ) -> None:
        self._clock = clock
        self._answers: dict[str, list[tuple[IPAddress, ...] | ErrorType]] = {}
        self.delay = delay
        self.asked: list[str] = []
        """The names that were asked for."""
        for name, addresses in (names or {}).items():
            self._answers[_canonical(name)] = [_parsed(addresses)]

    def add(self, name: str, *addresses: str) -> None:
        """Let a name have these addresses."""
        self._answers[_canonical(name)] = [_parsed(addresses)]

    def fail(self, name: str, error: ErrorType = ErrorType.DNS_ERROR) -> None:
        """Let the look-up of a name fail."""
        self._answers[_canonical(name)] = [error]

    def knows(self, name: str) -> tuple[IPAddress, ...]:
        """The addresses that the next question for a name will bring, if any."""
        answers = self._answers.get(_canonical(name), [ErrorType.DNS_ERROR])
        return () if isinstance(answers[0], ErrorType) else answers[0]

    def resolve(self, name: str) -> Sequence[IPAddress] | Deferred[Sequence[IPAddress]]:
        """The addresses of a name: at once, or after the delay."""
        self.asked.append(name)
        if not self.delay:
            return self._answer(name)
        if self._clock is None:
            raise TypeError("a delay needs a clock")
        done: Deferred[str] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(self.delay, done.callback, name)
        return done.addCallback(self._answer)

    def _answer(self, name: str) -> Sequence[IPAddress]:
        answers = self._answers.get(name)
        if answers is None:
            raise ProxyError(ErrorType.DNS_ERROR, f'no such name: "{name}"')
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ErrorType):
            raise ProxyError(answer, f'the name "{name}" was not resolved')
        return answer


class RebindingResolver(StaticResolver):
    """A resolver that gives other addresses at each question, as an attacker's DNS server does; the last ones stay."""

    def rebind(self, name: str, *answers: Addresses) -> None:
        """Let a name have the first addresses at the first question, the second at the second, and so on."""
        if not answers:
            raise ValueError("there is no answer")
        self._answers[_canonical(name)] = [_parsed(addresses) for addresses in answers]


def _canonical(name: str) -> str:
    destination = Destination.parse(name, 1)
    if destination.address is not None:
        raise ValueError(f"{name} is an address, which nobody asks a resolver for")
    return destination.host


def _parsed(addresses: Addresses) -> tuple[IPAddress, ...]:
    if isinstance(addresses, str):
        raise TypeError("the addresses are a sequence of texts, not one text")
    return tuple(map(ip_address, addresses))
