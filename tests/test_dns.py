"""Tests for proxyd.net.dns."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.defer import CancelledError, Deferred
from twisted.names import dns
from twisted.names.common import ResolverBase
from twisted.names.server import DNSServerFactory
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.dns import NoSuchName, ServerResolver, combined
from proxyd.net.resolver import Answer, NameNotFound
from tests.dns_server import DNSServer, OwnTime, listen, records, say, silence

ONE = IPv4Address("192.0.2.1")
TWO = IPv4Address("192.0.2.2")
SIX = IPv6Address("2001:db8::1")


class CombinedTests(SynchronousTestCase):
    """What the outcomes of both families' questions mean together."""

    nothing = NameNotFound("no address")
    missing = NoSuchName("no such name")
    failed = ProxyError(ErrorType.DNS_ERROR, "failed")
    timed_out = ProxyError(ErrorType.DNS_TIMEOUT, "timed out")

    def test_both(self) -> None:
        """The addresses of both families count, IPv6 first (RFC 6724), for the shorter of the TTLs."""
        self.assertEqual(combined(Answer((SIX,), 60), Answer((ONE, TWO), 50)), Answer((SIX, ONE, TWO), 50))

    def test_one_family_only(self) -> None:
        """A name may have addresses of one family only."""
        for none in self.nothing, self.missing:
            self.assertEqual(combined(none, Answer((ONE,), 60)), Answer((ONE,), 60))
            self.assertEqual(combined(Answer((SIX,), 60), none), Answer((SIX,), 60))

    def test_one_family_not_known(self) -> None:
        """Where one family's question was not answered the other's addresses serve, for a short time."""
        for unknown in self.failed, self.timed_out, None:
            self.assertEqual(combined(unknown, Answer((ONE,), 60)), Answer((ONE,), 30))
            self.assertEqual(combined(Answer((SIX,), 20), unknown), Answer((SIX,), 20))

    def test_none(self) -> None:
        """A name without addresses in both families has none."""
        self.assertRaises(NameNotFound, combined, self.nothing, self.nothing)

    def test_missing(self) -> None:
        """A name that does not exist has no address of any family."""
        for other in self.nothing, self.failed, self.timed_out, None:
            self.assertRaises(NoSuchName, combined, other, self.missing)
            self.assertRaises(NoSuchName, combined, self.missing, other)

    def test_failed(self) -> None:
        """A failure and no addresses are a failure; of two failures that of IPv4 is told."""
        for pair in (self.nothing, self.timed_out), (self.timed_out, self.nothing), (self.failed, self.timed_out):
            self.assertIs(self.assertRaises(ProxyError, combined, *pair), self.timed_out)

    def test_most(self) -> None:
        """Sixteen addresses are used, and of two long lists eight each."""
        sixes = tuple(IPv6Address(number) for number in range(20))
        fours = tuple(IPv4Address(number) for number in range(20))
        self.assertEqual(combined(Answer(sixes, 1), Answer(fours, 1)).addresses, sixes[:8] + fours[:8])
        self.assertEqual(combined(Answer(sixes, 1), Answer(fours[:2], 1)).addresses, sixes[:14] + fours[:2])
        self.assertEqual(combined(Answer(sixes[:2], 1), Answer(fours, 1)).addresses, sixes[:2] + fours[:14])
        self.assertEqual(combined(self.nothing, Answer(fours, 1)).addresses, fours[:16])


class ServerResolverTests(TestCase):
    """Look-ups at scripted servers on loopback."""

    timeout = 10

    def setUp(self) -> None:
        self.clock = OwnTime(reactor)
        self.server, self.second = DNSServer(), DNSServer()
        self.first_address = self.server.listen(self, reactor)
        self.second_address = self.second.listen(self, reactor)
        self.resolver = ServerResolver(self.clock, [self.first_address], timeout=5)

    def use_both(self) -> None:
        self.resolver = ServerResolver(self.clock, [self.first_address, self.second_address], timeout=5)

    async def heard(self, server: DNSServer, count: int) -> None:
        for _ in range(count):
            await server.heard.get()

    async def error(self, name: str = "a.example") -> tuple[ErrorType, str]:
        with self.assertRaises(ProxyError) as caught:
            await self.resolver.lookup(name)
        return caught.exception.error, caught.exception.detail

    async def test_both_families(self) -> None:
        """A and AAAA records are asked for at the same time, and both are used."""
        self.server.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.2", "a.example 50 A 192.0.2.1")
        self.server.replies["a.example", dns.AAAA] = say("a.example 70 AAAA 2001:db8::1")
        self.assertEqual(await self.resolver.lookup("a.example"), Answer((SIX, TWO, ONE), 50))
        self.assertCountEqual(self.server.asked, [("a.example", dns.A), ("a.example", dns.AAAA)])

    async def test_no_hosts_file(self) -> None:
        """Only the servers know, whatever the hosts file says."""
        self.server.replies["localhost", dns.A] = say("localhost 60 A 192.0.2.1")
        self.server.replies["localhost", dns.AAAA] = say()
        self.assertEqual((await self.resolver.lookup("localhost")).addresses, (ONE,))

    async def test_no_such_name(self) -> None:
        """NXDOMAIN is final: the second server is not asked."""
        self.use_both()
        self.assertEqual(await self.error(), (ErrorType.DNS_ERROR, 'no such name: "a.example"'))
        self.assertEqual(self.second.asked, [])

    async def test_no_address(self) -> None:
        """A name that exists and has no address is told from one that does not exist."""
        self.server.default = say()
        self.assertEqual(await self.error(), (ErrorType.DNS_ERROR, 'no address for the name "a.example"'))

    async def test_next_server(self) -> None:
        """A server that cannot answer, or does not want to, has the next one asked."""
        self.use_both()
        for code in dns.ESERVER, dns.EREFUSED:
            self.server.default = say(code=code)
            self.second.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.1")
            self.assertEqual((await self.resolver.lookup("a.example")).addresses, (ONE,))

    async def test_asked_once_more(self) -> None:
        """A server failure often passes: the question is asked once more."""
        failures = [say(code=dns.ESERVER)]
        answer = say("a.example 60 A 192.0.2.1")
        self.server.replies["a.example", dns.A] = lambda query: (failures.pop() if failures else answer)(query)
        self.assertEqual((await self.resolver.lookup("a.example")).addresses, (ONE,))

    async def test_no_server_can(self) -> None:
        """When all servers fail, twice, their failure is the error."""
        self.use_both()
        self.server.default = say(code=dns.EREFUSED)
        self.second.default = say(code=dns.ESERVER)
        self.assertEqual(
            await self.error(), (ErrorType.DNS_ERROR, 'the DNS server said SERVFAIL for the name "a.example"')
        )
        self.assertEqual((len(self.server.asked), len(self.second.asked)), (4, 4))

    async def test_failure_is_more_telling_than_silence(self) -> None:
        """Where one server fails and the other is silent, the failure is the error."""
        self.use_both()
        self.server.default = say(code=dns.ESERVER)
        self.second.default = silence
        asked = self.resolver.lookup("a.example")
        await self.heard(self.second, 2)
        self.clock.advance(2.5)
        await self.heard(self.server, 4)
        with self.assertRaises(ProxyError) as caught:
            await asked
        self.assertEqual(caught.exception.error, ErrorType.DNS_ERROR)

    async def test_dead_server(self) -> None:
        """A silent server costs its share of the timeout once, and is asked last for the next half minute."""
        self.use_both()
        self.server.default = silence
        self.second.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.1")
        asked = self.resolver.lookup("a.example")
        await self.heard(self.server, 2)
        self.clock.advance(2.5)
        self.assertEqual((await asked).addresses, (ONE,))
        self.assertEqual(len(self.server.asked), 2)
        self.clock.advance(29)
        self.assertEqual((await self.resolver.lookup("a.example")).addresses, (ONE,))
        self.assertEqual(len(self.server.asked), 2)
        self.clock.advance(1)
        self.server.default = say("a.example 60 A 192.0.2.2")
        self.assertEqual((await self.resolver.lookup("a.example")).addresses, (TWO,))

    async def test_closed_server(self) -> None:
        """A server that does not run costs no time at all."""
        [port] = [port for port in reactor.getReaders() if getattr(port, "protocol", None) is self.server]
        await port.stopListening()
        self.use_both()
        self.second.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.1")
        self.assertEqual((await self.resolver.lookup("a.example")).addresses, (ONE,))
        self.assertEqual(self.clock.seconds(), 0)

    async def test_no_server_runs(self) -> None:
        """Servers that do not run are an error of DNS, and no timeout."""
        [port] = [port for port in reactor.getReaders() if getattr(port, "protocol", None) is self.server]
        await port.stopListening()
        self.assertEqual(await self.error(), (ErrorType.DNS_ERROR, 'no DNS server replied for the name "a.example"'))

    async def test_all_silent(self) -> None:
        """The timeout covers all servers and all that is asked again."""
        self.use_both()
        self.server.default = self.second.default = silence
        asked = self.resolver.lookup("a.example")
        await self.heard(self.server, 2)
        self.clock.advance(2.5)
        await self.heard(self.second, 2)
        self.clock.advance(2.4)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        error = self.failureResultOf(asked, ProxyError).value
        self.assertEqual(error.error, ErrorType.DNS_TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_time_runs_out_between_servers(self) -> None:
        """No server is asked for whom no time is left."""
        self.use_both()

        def late(query: dns.Message) -> bytes:
            self.clock.rightNow = 5.0
            return say(code=dns.ESERVER)(query)

        self.server.default = late
        await self.error()
        self.assertEqual(self.second.asked, [])

    async def test_lost_family(self) -> None:
        """Addresses wait 0.3 seconds for those of the other family; what is then known holds for 30 seconds."""
        self.server.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.1")
        self.server.replies["a.example", dns.AAAA] = silence
        asked = self.resolver.lookup("a.example")
        await self.timer(0.3)
        self.clock.advance(0.2)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(asked), Answer((ONE,), 30))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def timer(self, due: float) -> None:
        """Wait until the reactor has been told to call something then."""
        while due not in [call.getTime() for call in self.clock.getDelayedCalls()]:
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn

    async def test_late_family(self) -> None:
        """Addresses of the other family that come within 0.3 seconds are used."""
        self.server.replies["a.example", dns.A] = say("a.example 60 A 192.0.2.1")
        self.server.replies["a.example", dns.AAAA] = silence
        asked = self.resolver.lookup("a.example")
        await self.timer(0.3)
        self.server.replies["a.example", dns.AAAA] = say("a.example 60 AAAA 2001:db8::1")
        for call in self.clock.getDelayedCalls():
            if call.getTime() == 1.0:
                call.reset(0)
        self.clock.advance(0)
        self.assertEqual(await asked, Answer((SIX, ONE), 60))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_lost_family_of_a_missing_name(self) -> None:
        """NXDOMAIN for one family waits no longer for the other either."""
        self.server.replies["a.example", dns.AAAA] = silence
        asked = self.resolver.lookup("a.example")
        await self.timer(0.3)
        self.clock.advance(0.3)
        self.failureResultOf(asked, NoSuchName)

    async def test_no_address_in_one_family(self) -> None:
        """That there is no address of one family says nothing of the other: it is waited for."""
        self.server.replies["a.example", dns.AAAA] = say()
        self.server.replies["a.example", dns.A] = silence
        asked = self.resolver.lookup("a.example")
        await self.heard(self.server, 2)
        self.clock.advance(4.9)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertEqual(self.failureResultOf(asked, ProxyError).value.error, ErrorType.DNS_TIMEOUT)

    async def test_alias(self) -> None:
        """An alias that the server leaves to us is asked for; the shortest TTL of all counts."""
        self.server.default = say("a.example 40 CNAME b.example")
        self.server.replies["b.example", dns.A] = say("b.example 60 A 192.0.2.1")
        self.server.replies["b.example", dns.AAAA] = say()
        self.assertEqual(await self.resolver.lookup("a.example"), Answer((ONE,), 40))

    async def test_endless_aliases(self) -> None:
        """Aliases that lead on and on are given up after eight questions."""

        def next_one(query: dns.Message) -> bytes:
            name = query.queries[0].name.name.decode()
            return say(f"{name} 60 CNAME x{name}")(query)

        self.server.default = next_one
        self.assertEqual(await self.error(), (ErrorType.DNS_ERROR, 'too many aliases for the name "a.example"'))
        self.assertEqual(len(self.server.asked), 16)

    async def test_cancel(self) -> None:
        """Cancelling leaves no timer behind; trial finds sockets."""
        self.server.default = silence
        asked = self.resolver.lookup("a.example")
        await self.heard(self.server, 2)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_bug(self) -> None:
        """A failure that is none of the table's comes out as what it is."""
        self.failureResultOf(self.resolver.lookup("\N{SNOWMAN}"), UnicodeError)

    async def test_real_server(self) -> None:
        """A server of Twisted's making is understood, over UDP and, for a long answer, over TCP."""
        lines = [f"b.example 60 A 192.0.2.{number}" for number in range(100)]
        zone = Zone({b"a.example": ["a.example 60 CNAME b.example", *lines[:1]], b"b.example": lines})
        factory = DNSServerFactory(clients=[zone])
        factory.noisy = False
        datagrams = dns.DNSDatagramProtocol(factory)
        datagrams.noisy = False
        resolver = ServerResolver(self.clock, [listen(self, reactor, datagrams, factory)], timeout=5)
        self.assertEqual(await resolver.lookup("a.example"), Answer((ip_address("192.0.2.0"),), 60))
        self.assertEqual(len((await resolver.lookup("b.example")).addresses), 16)


class Zone(ResolverBase):
    """What Twisted's server knows: IPv4 addresses and aliases."""

    def __init__(self, lines: dict[bytes, list[str]]) -> None:
        super().__init__()
        self.lines = lines

    def query(self, query: dns.Query, timeout: object = None) -> Deferred:
        known = records(*self.lines[query.name.name]) if query.type == dns.A else []
        found: Deferred = Deferred()
        found.callback((known, [], []))
        return found
