"""Tests for proxyd.net.dns_exchange."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.names import dns
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from proxyd.errors import ErrorType
from proxyd.net.dns_exchange import Server, ServerUnreachable, exchange
from proxyd.net.dns_message import Question, Reply, ServerFailed
from tests.dns_server import DNSServer, OwnTime, say, silence

ANSWER = Reply((IPv4Address("192.0.2.1"),), 60)


class ExchangeTests(TestCase):
    """One question to one server on loopback."""

    timeout = 10

    def setUp(self) -> None:
        self.clock = OwnTime(reactor)
        self.server = DNSServer()
        self.server.default = say("a.example 60 A 192.0.2.1")
        self.address = self.server.listen(self, reactor)

    def ask(self, server: Server | None = None, seconds: float = 5) -> Deferred[Reply]:
        question = Question(b"a.example", dns.A)
        return Deferred.fromCoroutine(exchange(self.clock, server or self.address, question, seconds))

    def watched(self) -> list[Any]:
        """Our sockets among those that the reactor watches; the server's TCP connections are not ours."""
        return [reader for reader in reactor.getReaders() if type(reader).__module__ == exchange.__module__]

    def assert_nothing_left(self) -> None:
        """No timer, and no socket."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.watched(), [])

    async def test_reply(self) -> None:
        """The server's reply ends the exchange."""
        self.assertEqual(await self.ask(), ANSWER)
        self.assertEqual(self.server.asked, [("a.example", dns.A)])
        self.assert_nothing_left()

    async def test_ipv6_server(self) -> None:
        """A server may have an IPv6 address."""
        server = DNSServer()
        server.default = say("a.example 60 A 192.0.2.1")
        port = reactor.listenUDP(0, server, interface="::1")
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.ask((IPv6Address("::1"), port.getHost().port)), ANSWER)

    async def test_junk(self) -> None:
        """What is no reply to the question is passed over; the reply that follows counts."""

        def junk_first(query: dns.Message) -> bytes:
            return b"junk" if len(self.server.asked) == 1 else say("a.example 60 A 192.0.2.1")(query)

        self.server.default = junk_first
        asked = self.ask()
        await self.server.heard.get()
        self.clock.advance(1)
        self.assertEqual(await asked, ANSWER)

    async def test_sent_again(self) -> None:
        """A question that stays without a reply is sent again every second, the very same."""
        self.server.default = silence
        asked = self.ask()
        queries = [await self.server.heard.get()]
        for _ in range(4):
            self.clock.advance(1)
            queries.append(await self.server.heard.get())
        self.assertEqual({query.id for query in queries}, {queries[0].id})
        self.clock.advance(1)
        self.failureResultOf(asked, ServerUnreachable)
        self.assertEqual(len(self.server.asked), 5)

    async def test_silence(self) -> None:
        """A server that stays silent costs the seconds given, no more."""
        self.server.default = silence
        asked = self.ask(seconds=2.5)
        await self.server.heard.get()
        self.clock.pump([1, 1, 0.4])
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        error = self.failureResultOf(asked, ServerUnreachable).value
        self.assertEqual(error.error, ErrorType.DNS_TIMEOUT)
        self.assertEqual(error.detail, f"no reply from the DNS server 127.0.0.1 port {self.address[1]}")
        self.assert_nothing_left()

    def closed_port(self) -> Server:
        """A port that nobody listens at."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            return IPv4Address("127.0.0.1"), sock.getsockname()[1]

    async def test_nobody_listens(self) -> None:
        """A server that does not run is found out at once."""
        with self.assertRaises(ServerUnreachable) as caught:
            await self.ask(self.closed_port())
        self.assertEqual(caught.exception.error, ErrorType.DNS_ERROR)
        self.assertEqual(self.clock.seconds(), 0)
        self.assert_nothing_left()

    def test_nobody_listens_any_more(self) -> None:
        """That a server does not run is found out as well when the question is sent again."""
        asked = self.ask(self.closed_port())
        self.clock.advance(1)
        self.assertEqual(self.failureResultOf(asked, ServerUnreachable).value.error, ErrorType.DNS_ERROR)
        self.assert_nothing_left()

    async def test_event_of_an_earlier_socket(self) -> None:
        """Events meant for a closed socket that had the same number, or for one that is done with, change nothing."""
        asked = self.ask()
        [ours] = self.watched()
        ours.doRead()
        reactor.removeReader(ours)
        ours.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(await asked, ANSWER)
        ours.connectionLost(Failure(ConnectionLost()))
        self.assert_nothing_left()

    async def test_no_way(self) -> None:
        """A server that the kernel cannot send to is found out at once."""
        with self.assertRaises(ServerUnreachable):
            await self.ask((IPv4Address("255.255.255.255"), 53))

    async def test_server_failure(self) -> None:
        """A server that cannot answer says so."""
        self.server.default = say(code=dns.ESERVER)
        with self.assertRaises(ServerFailed):
            await self.ask()

    async def test_cancel(self) -> None:
        """Cancelling leaves nothing behind."""
        self.server.default = silence
        asked = self.ask()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assert_nothing_left()

    async def test_truncated(self) -> None:
        """A truncated reply is asked for again over TCP, and can be long there."""
        lines = [f"a.example 60 A 192.0.2.{number}" for number in range(200)]
        self.server.default = say(truncated=True)
        self.server.over_tcp = say(*lines)
        reply = await self.ask()
        self.assertEqual(len(reply.addresses), 200)
        self.assert_nothing_left()

    async def test_tcp_on_ipv6(self) -> None:
        """TCP serves for a server with an IPv6 address too; nobody listens here, which is found out at once."""
        server = DNSServer()
        server.default = say(truncated=True)
        port = reactor.listenUDP(0, server, interface="::1")
        self.addCleanup(port.stopListening)
        with self.assertRaises(ServerUnreachable) as caught:
            await self.ask((IPv6Address("::1"), port.getHost().port))
        self.assertEqual(caught.exception.error, ErrorType.DNS_ERROR)

    async def test_closed_without_a_reply(self) -> None:
        """A server that closes the TCP connection without a reply cannot be used."""
        self.server.default = say(truncated=True)
        with self.assertRaises(ServerUnreachable) as caught:
            await self.ask()
        self.assertIn("closed without a reply", caught.exception.detail)

    async def test_silence_over_tcp(self) -> None:
        """Over TCP the time that is left counts; what is no reply does not stop it."""
        self.server.default = say(truncated=True)
        self.server.over_tcp = lambda query: b"junk"
        asked = self.ask()
        await self.server.heard.get()
        await self.server.heard.get()
        self.clock.advance(4.9)
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.assertEqual(self.failureResultOf(asked, ServerUnreachable).value.error, ErrorType.DNS_TIMEOUT)
        self.assert_nothing_left()

    async def test_cancel_over_tcp(self) -> None:
        """Cancelling closes the TCP connection."""
        self.server.default = say(truncated=True)
        self.server.over_tcp = lambda query: b"junk"
        asked = self.ask()
        await self.server.heard.get()
        await self.server.heard.get()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assert_nothing_left()
