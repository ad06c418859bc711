"""Tests for proxyd.net.resolver."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.resolver import Answer, CachingResolver, NameNotFound

FIRST = IPv4Address("192.0.2.1")
SECOND = IPv6Address("2001:db8::2")
TIMEOUT = ProxyError(ErrorType.DNS_TIMEOUT, "no reply")


class Questions:
    """A source that keeps the questions until the test answers them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open: list[Deferred[Answer]] = []

    def lookup(self, name: str) -> Deferred[Answer]:
        self.asked.append(name)
        self.open.append(Deferred())
        return self.open[-1]

    def answer(self, *addresses: IPv4Address | IPv6Address, ttl: float = 60) -> None:
        self.open.pop(0).callback(Answer(addresses, ttl))

    def fail(self, error: Exception) -> None:
        self.open.pop(0).errback(error)


class Immediate:
    """A source that has its answer at once."""

    def lookup(self, name: str) -> Deferred[Answer]:
        return succeed(Answer((FIRST,), 60)) if name == "a.example" else fail(NameNotFound(f'no such name: "{name}"'))


class CachingResolverTests(SynchronousTestCase):
    """Answers are remembered for as long as they hold, and a little longer when nothing better can be had."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.source = Questions()
        self.resolver = CachingResolver(self.clock, self.source, negative_ttl=5)

    def ask(self, name: str = "a.example") -> Deferred:
        found = self.resolver.resolve(name)
        assert isinstance(found, Deferred), found
        return found

    def learn(self, name: str = "a.example", ttl: float = 60) -> None:
        asked = self.ask(name)
        self.source.answer(FIRST, ttl=ttl)
        self.successResultOf(asked)

    def error_of(self, asked: Deferred) -> ProxyError:
        return self.failureResultOf(asked, ProxyError).value

    def test_first_question(self) -> None:
        """The first question for a name waits for the source, and its addresses come in the source's order."""
        asked = self.ask()
        self.assertNoResult(asked)
        self.source.answer(SECOND, FIRST)
        self.assertEqual(self.successResultOf(asked), (SECOND, FIRST))

    def test_known(self) -> None:
        """A known answer is returned itself, without a Deferred and without a question."""
        self.learn()
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.assertEqual(self.source.asked, ["a.example"])

    def test_ttl(self) -> None:
        """An answer is used until its TTL has passed, and then asked for again."""
        self.learn(ttl=60)
        self.clock.advance(59.9)
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.clock.advance(0.1)
        asked = self.ask()
        self.source.answer(SECOND)
        self.assertEqual(self.successResultOf(asked), (SECOND,))
        self.assertEqual(self.resolver.resolve("a.example"), (SECOND,))

    def test_shortest_ttl(self) -> None:
        """An answer with TTL 0 is used for one second."""
        self.learn(ttl=0)
        self.clock.advance(0.9)
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.clock.advance(0.1)
        self.ask()

    def test_longest_ttl(self) -> None:
        """An answer is used for one day at the most."""
        self.learn(ttl=2**31)
        self.clock.advance(86399)
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.clock.advance(1)
        self.ask()

    def test_joined(self) -> None:
        """Questions for a name that is being looked up share the look-up."""
        askers = [self.ask(), self.ask(), self.ask()]
        self.assertEqual(self.source.asked, ["a.example"])
        self.source.answer(FIRST)
        self.assertEqual([self.successResultOf(asker) for asker in askers], [(FIRST,)] * 3)

    def test_names_apart(self) -> None:
        """Two names are two look-ups."""
        one, other = self.ask("a.example"), self.ask("b.example")
        self.source.answer(FIRST)
        self.source.answer(SECOND)
        self.assertEqual((self.successResultOf(one), self.successResultOf(other)), ((FIRST,), (SECOND,)))

    def test_asker_cancels(self) -> None:
        """An asker who cancels leaves the others waiting, and the look-up alone."""
        gone, stays = self.ask(), self.ask()
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertNoResult(stays)
        self.source.answer(FIRST)
        self.assertEqual(self.successResultOf(stays), (FIRST,))

    def test_last_asker_cancels(self) -> None:
        """The answer is remembered even if nobody waits for it any more."""
        asked = self.ask()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.source.answer(FIRST)
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))

    def test_asker_cancels_another(self) -> None:
        """An asker who cancels another when the answer comes does not keep a third from it."""
        first, second, third = self.ask(), self.ask(), self.ask()
        first.addCallback(lambda addresses: second.cancel())
        self.source.answer(FIRST)
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.successResultOf(third), (FIRST,))

    def test_no_such_name(self) -> None:
        """A missing name is an error to all who wait, and without a question for the negative TTL."""
        askers = [self.ask("no.example"), self.ask("no.example")]
        self.source.fail(NameNotFound('no such name: "no.example"'))
        for asker in askers:
            error = self.error_of(asker)
            self.assertEqual((error.error, error.detail), (ErrorType.DNS_ERROR, 'no such name: "no.example"'))
        self.clock.advance(4.9)
        known = self.assertRaises(ProxyError, self.resolver.resolve, "no.example")
        self.assertEqual((known.error, known.detail), (ErrorType.DNS_ERROR, 'no such name: "no.example"'))
        self.clock.advance(0.1)
        self.ask("no.example")

    def test_errors_apart(self) -> None:
        """Each asker gets an exception of its own, so that tracebacks do not pile up on a remembered one."""
        asked = self.ask()
        self.source.fail(NameNotFound("no"))
        errors = [self.error_of(asked)]
        errors += [self.assertRaises(ProxyError, self.resolver.resolve, "a.example") for _ in range(2)]
        self.assertEqual(len({id(error) for error in errors}), 3)

    def test_failure_held_for_a_second(self) -> None:
        """A failed look-up is not repeated within a second."""
        asked = self.ask()
        self.source.fail(TIMEOUT)
        self.assertEqual(self.error_of(asked).error, ErrorType.DNS_TIMEOUT)
        self.clock.advance(0.9)
        self.assertEqual(self.assertRaises(ProxyError, self.resolver.resolve, "a.example").error, ErrorType.DNS_TIMEOUT)
        self.clock.advance(0.1)
        self.ask()

    def test_stale_after_failure(self) -> None:
        """When the source fails, those who wait get the addresses known before."""
        self.learn(ttl=60)
        self.clock.advance(100)
        asked = self.ask()
        self.source.fail(TIMEOUT)
        self.assertEqual(self.successResultOf(asked), (FIRST,))

    def test_stale_while_failing(self) -> None:
        """Once the source has failed nobody waits for it: it is asked once a second, beside the stale answers."""
        self.learn(ttl=60)
        self.clock.advance(100)
        self.successResultOf(self.fail_once())
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.assertEqual(len(self.source.asked), 2)
        self.clock.advance(1)
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.assertEqual(len(self.source.asked), 3)

    def fail_once(self) -> Deferred:
        asked = self.ask()
        self.source.fail(TIMEOUT)
        return asked

    def test_source_recovers(self) -> None:
        """The first answer after failures replaces the stale one."""
        self.learn(ttl=60)
        self.clock.advance(100)
        self.successResultOf(self.fail_once())
        self.clock.advance(1)
        self.resolver.resolve("a.example")
        self.source.answer(SECOND)
        self.assertEqual(self.resolver.resolve("a.example"), (SECOND,))

    def test_slow_source(self) -> None:
        """With a stale answer at hand an asker waits 1.8 seconds for a better one; the look-up goes on."""
        self.learn(ttl=60)
        self.clock.advance(100)
        asked = self.ask()
        self.clock.advance(1.7)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(asked), (FIRST,))
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.source.answer(SECOND)
        self.assertEqual(self.resolver.resolve("a.example"), (SECOND,))

    def test_patience_ends_with_the_answer(self) -> None:
        """An answer that comes in time leaves no timer behind."""
        self.learn(ttl=60)
        self.clock.advance(100)
        self.ask()
        self.source.answer(SECOND)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_stale(self) -> None:
        """An answer more than an hour past its TTL is not used, also when the source has been failing all along."""
        self.learn(ttl=60)
        self.clock.advance(3659.5)
        self.successResultOf(self.fail_once())
        self.clock.advance(1)
        self.assertEqual(self.error_of(self.fail_once()).error, ErrorType.DNS_TIMEOUT)

    def test_gone_name_is_not_stale(self) -> None:
        """A name that is said not to exist any more is gone, whatever is known from before."""
        self.learn(ttl=60)
        self.clock.advance(100)
        asked = self.ask()
        self.source.fail(NameNotFound("no"))
        self.assertEqual(self.error_of(asked).error, ErrorType.DNS_ERROR)

    def test_immediate_source(self) -> None:
        """What the source has at once is returned or raised at once."""
        resolver = CachingResolver(self.clock, Immediate(), negative_ttl=5)
        self.assertEqual(resolver.resolve("a.example"), (FIRST,))
        self.assertRaises(ProxyError, resolver.resolve, "b.example")

    def test_bounded(self) -> None:
        """Beyond its size the cache forgets the name whose answer is the oldest."""
        self.resolver = CachingResolver(self.clock, self.source, negative_ttl=5, size=2)
        self.learn("a.example", ttl=10)
        self.learn("b.example")
        self.clock.advance(10)
        self.learn("a.example")
        self.learn("c.example")
        self.assertEqual(self.resolver.resolve("a.example"), (FIRST,))
        self.assertEqual(self.resolver.resolve("c.example"), (FIRST,))
        self.ask("b.example")

    def test_broken_source(self) -> None:
        """A source that raises what it should not is our bug: it is logged, and those who wait get an error."""
        asked = self.ask()
        self.source.fail(ZeroDivisionError())
        self.assertEqual(self.error_of(asked).error, ErrorType.DNS_ERROR)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stop(self) -> None:
        """Stopping breaks off the look-ups; who waits is told."""
        asked = self.ask()
        self.resolver.stop()
        error = self.error_of(asked)
        self.assertEqual(
            (error.error, error.detail), (ErrorType.DNS_ERROR, 'the look-up of "a.example" was broken off')
        )
