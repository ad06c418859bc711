"""Tests for ``proxyd.frontends.socks5``; the bytes are those of RFC 1928 and RFC 1929."""

from __future__ import annotations

from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred

from proxyd.errors import ErrorType, ProxyError
from proxyd.policy.rules import Rule
from proxyd.request import Door, Identity
from tests.doors import ALLOW, DoorCase, Memory, listener

FREE = b"\x05\x01\x00"
ASKED = b"\x05\x02\x00\x02"
PASSWORD = b"\x01\x05alice\x0bopen sesame"
CONNECT = b"\x05\x01\x00\x03\x0eorigin.example\x01\xbb"
CONNECT_IPV4 = b"\x05\x01\x00\x01\xcb\x00\x71\x07\x01\xbb"
CONNECT_IPV6 = b"\x05\x01\x00\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x01\xbb"
OPEN = b"\x05\x00\x00\x01\xc0\x00\x02\x01\x9c\x40"
"""Succeeded, bound to 192.0.2.1:40000."""

ALICE = Rule("for alice", True, ("*",), users=frozenset({"alice"}), special_addresses=True)
BY_NAME = Rule("for alice by name", True, (".private.example",), users=frozenset({"alice"}))
DENY = Rule("no", False, (".denied.example",))


def refusal(code: int) -> bytes:
    """A reply that says no: well-formed, ten bytes."""
    return bytes((5, code)) + b"\x00\x01\0\0\0\0\0\0"


class SocksCase(DoorCase):
    """A listener for SOCKS5."""

    listener = listener(Door.SOCKS5)

    def greeted(self, greeting: bytes = FREE, *, eager: bool = False) -> Memory:
        """A client that has agreed on no authentication."""
        client = self.connect(eager=eager)
        client.says(greeting)
        self.assertEqual(client.heard, b"\x05\x00")
        return client


class TunnelTests(SocksCase):
    """From greeting to tunnel."""

    def test_step_by_step(self):
        """A client that waits at each step gets its tunnel; the reply tells where the origin sees us."""
        client = self.greeted()
        client.says(CONNECT)
        self.assertEqual(client.heard, OPEN)
        self.assertEqual((self.dialer.dialings[0].port, self.dialer.dialings[0].timeout), (443, 5.0))
        client.says(b"ping")
        self.assertEqual(self.origin.heard, b"ping")
        self.origin.says(b"pong")
        self.assertEqual(client.heard, b"pong")
        self.origin.closes()
        client.closes()
        self.drained(client, self.origin)
        self.assertEqual(
            self.outcome("protocol", "method", "destination", "reply", "error", "bytes_from_client", "bytes_to_client"),
            [("socks5", "CONNECT", "origin.example:443", 0, None, 4, 4)],
        )

    def test_addresses(self):
        """IPv4 and IPv6 go as they are, an IPv4 address as text or inside IPv6 as IPv4."""
        for command, expected in (
            (CONNECT_IPV4, "203.0.113.7"),
            (CONNECT_IPV6, "2001:db8::1"),
            (b"\x05\x01\x00\x03\x0b203.0.113.7\x01\xbb", "203.0.113.7"),
            (b"\x05\x01\x00\x04" + bytes(10) + b"\xff\xff\xcb\x00\x71\x07\x01\xbb", "203.0.113.7"),
        ):
            client = self.greeted()
            client.says(command)
            self.assertEqual(client.heard, OPEN)
            self.assertEqual([str(address) for address in self.dialer.dialings[-1].addresses], [expected])
            client.resets()
        self.assertEqual(self.resolver.asked, [])

    def test_any_split(self):
        """It does not matter how the messages arrive, nor whether the client waits for the answers."""
        data = FREE + CONNECT + b"early"
        for size in range(1, len(data) + 1):
            client = self.connect()
            client.says(*(data[at : at + size] for at in range(0, len(data), size)))
            self.assertEqual(client.heard, b"\x05\x00" + OPEN)
            self.assertEqual(self.origin.heard, b"early", size)
            client.resets()
        self.assertEqual({record.bytes_from_client for record in self.records}, {5})

    def test_early_data(self):
        """While the origin is dialed the tunnel's first bytes are kept, up to a bound."""
        self.dialer.instant = False
        client = self.greeted()
        client.says(CONNECT + b"x" * 100_000, b"x" * 200_000)
        self.assertFalse(client.reading)
        self.assertEqual(client.heard, b"")
        self.dialer.connects()
        self.assertEqual(client.heard, OPEN)
        self.assertEqual(self.origin.heard, b"x" * 300_000)
        self.assertTrue(client.reading)
        client.resets()

    def test_half_closed(self):
        """A client that has said everything at once still gets its answer."""
        for eager in (False, True):
            self.dialer.instant = False
            client = self.connect(eager=eager)
            client.says(FREE + CONNECT + b"ping")
            client.closes()
            self.dialer.connects()
            self.turn()
            self.assertEqual(client.heard, b"\x05\x00" + OPEN)
            self.assertEqual(self.origin.heard, b"ping")
            self.assertTrue(self.origin.said_fin)
            self.origin.says(b"pong")
            self.origin.closes()
            self.assertEqual(client.heard, b"pong")
            self.drained(client, self.origin)
        self.assertEqual(self.outcome("error"), [(None,), (None,)])

    def test_bound(self):
        """The reply has our IPv6 address where that is ours, and zeros where we have none."""
        for host, expected in (
            (IPv6Address("TCP", "2001:db8::2", 40000), b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x02\x9c\x40"),
            (UNIXAddress("/run/x"), b"\x01\0\0\0\0\0\0"),
        ):
            self.dialer.instant = False
            client = self.greeted()
            client.says(CONNECT)
            self.dialer.connects(host)
            self.assertEqual(client.heard, b"\x05\x00\x00" + expected)
            client.resets()

    def test_killed(self):
        """A tunnel that is ended from outside is cut on both sides."""
        client = self.greeted()
        client.says(CONNECT)
        (flow,) = self.egress.flows.values()
        flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        self.drained(client, self.origin)
        self.assertEqual(self.outcome("reply", "error"), [(0, "connection_terminated")])


class RefusalTests(SocksCase):
    """Failures, each in its own words."""

    rules = (DENY, ALLOW)

    def refused(self, command: bytes, code: int) -> None:
        """A command that is refused with this reply; then the connection ends."""
        client = self.greeted()
        client.says(command)
        self.assertEqual(client.heard, refusal(code), command)
        self.assertTrue(client.said_fin)
        self.assertEqual(self.records[-1].reply, code)
        self.turn(3)
        self.drained(client)

    def test_commands(self):
        """BIND and UDP ASSOCIATE are not supported, wherever they point, nor is any other command: 7."""
        for command in (
            b"\x05\x02\x00\x01\xcb\x00\x71\x07\x01\xbb",
            b"\x05\x03\x00\x01\0\0\0\0\0\0",
            b"\x05\x03\x00\x03\x00\0\0",
            b"\x05\x04\x00\x01\xcb\x00\x71\x07\x01\xbb",
            b"\x05\x00\x00\x01\xcb\x00\x71\x07\x01\xbb",
            b"\x05\xff\x00\x09",
        ):
            self.refused(command, 7)
        self.assertEqual(
            self.outcome("method", "destination")[:4],
            [("BIND", "203.0.113.7:443"), ("UDP_ASSOCIATE", ""), ("UDP_ASSOCIATE", ""), ("", "203.0.113.7:443")],
        )

    def test_address_type(self):
        """An address type that does not exist: 8."""
        self.refused(b"\x05\x01\x00\x02", 8)
        self.refused(b"\x05\x01\x00\x05\x00", 8)

    def test_malformed(self):
        """What is no command, or names nothing to connect to: 1."""
        self.refused(b"\x04\x01", 1)
        self.refused(b"\x05\x01\x01\x01\xcb\x00\x71\x07\x01\xbb", 1)
        self.refused(b"\x05\x01\x00\x01\xcb\x00\x71\x07\x00\x00", 1)
        self.refused(b"\x05\x01\x00\x03\x00\x01\xbb", 1)
        self.refused(b"\x05\x01\x00\x03\x04a\0.b\x01\xbb", 1)

    def test_denied(self):
        """What the policy denies: 2."""
        self.refused(b"\x05\x01\x00\x03\x12log.denied.example\x01\xbb", 2)
        self.assertEqual(
            self.outcome("destination", "decision", "rule", "error"),
            [("log.denied.example:443", "deny", "no", "http_request_denied")],
        )
        self.assertEqual(self.resolver.asked, [])

    def test_wrong_door(self):
        """A port that speaks no SOCKS5 denies too."""
        self.listener = listener(Door.FORWARD, detect=True)
        client = self.connect()
        client.says(FREE + CONNECT)
        self.assertEqual(client.heard, b"\x05\x00" + refusal(2))
        self.assertEqual(self.outcome("destination", "error"), [("origin.example:443", "http_request_denied")])

    def test_no_way(self):
        """Each way in which an origin cannot be reached has its reply."""
        self.dialer.instant = False
        for error, code in (
            (ErrorType.CONNECTION_REFUSED, 5),
            (ErrorType.DESTINATION_IP_UNROUTABLE, 3),
            (ErrorType.CONNECTION_TIMEOUT, 4),
            (ErrorType.CONNECTION_LIMIT_REACHED, 1),
        ):
            client = self.greeted()
            client.says(CONNECT)
            self.assertEqual(client.heard, b"")
            self.dialer.fails(error)
            self.assertEqual(client.heard, refusal(code))
            self.assertTrue(client.said_fin)
            self.assertEqual((self.records[-1].reply, self.records[-1].error), (code, error.value))

    def test_unknown_name(self):
        """A name that does not exist is a host that cannot be reached: 4."""
        self.refused(b"\x05\x01\x00\x03\x0funknown.example\x01\xbb", 4)
        self.assertEqual(self.outcome("error"), [("dns_error",)])

    def test_not_socks(self):
        """A client that does not speak SOCKS5 is answered with nothing."""
        for data in (b"\x04\x01\x00\x50\xcb\x00\x71\x07\x00", b"GET http://origin.example/ HTTP/1.1\r\n"):
            client = self.connect()
            client.says(data)
            self.assertEqual(client.heard, b"")
            self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "reply", "destination"), [("http_request_error", None, "")] * 2)

    def test_killed(self):
        """A command that is ended from outside while it is dialed gets a reply."""
        self.dialer.instant = False
        client = self.greeted()
        client.says(CONNECT)
        (flow,) = self.egress.flows.values()
        flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        self.assertEqual(client.heard, refusal(1))
        self.assertTrue(self.dialer.dialings[0].cancelled)

    def test_no_reply(self):
        """An error that SOCKS can never meet is a general failure, in the record too."""
        self.dialer.instant = False
        client = self.greeted()
        client.says(CONNECT)
        self.dialer.fails(ErrorType.HTTP_PROTOCOL_ERROR)
        self.assertEqual(client.heard, refusal(1))
        self.assertEqual(self.outcome("reply"), [(1,)])

    def test_late_bytes(self):
        """What a refused client still sends is thrown away, until it closes or we do within ten seconds."""
        client = self.greeted()
        client.says(b"\x05\x02\x00\x01\xcb\x00\x71\x07\x01\xbb" + b"x" * 300_000)
        self.assertTrue(client.reading)
        for _ in range(9):
            client.says(CONNECT)
            self.turn(1)
        self.turn()
        self.drained(client)
        self.assertEqual(len(self.records), 1)


class LeavingTests(SocksCase):
    """Clients that go before they have their tunnel."""

    def test_silent(self):
        """One that has said nothing leaves no record."""
        for leave in (Memory.closes, Memory.resets):
            client = self.connect()
            leave(client)
            self.drained(client)
        self.assertEqual(self.records, [])

    def test_after_greeting(self):
        """One that leaves before its request gets a record with a hint: it may have failed to resolve the name."""
        for leave in (Memory.closes, Memory.resets):
            client = self.greeted()
            leave(client)
            self.drained(client)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")] * 2)
        self.assertIn("resolves names itself", str(self.records[0].detail))

    def test_in_command(self):
        """So does one that leaves in the middle of it."""
        client = self.greeted()
        client.says(CONNECT[:10])
        client.closes()
        self.drained(client)
        self.assertEqual(self.outcome("error"), [("client_disconnected",)])

    def test_while_dialing(self):
        """One that leaves while its origin is dialed stops that."""
        self.dialer.instant = False
        client = self.greeted()
        client.says(CONNECT)
        client.resets()
        self.assertTrue(self.dialer.dialings[0].cancelled)
        self.assertEqual(self.outcome("error", "destination"), [("client_disconnected", "origin.example:443")])

    def test_connected_too_late(self):
        """An origin that is reached in that very moment is left alone."""
        self.dialer.instant = False
        self.dialer.when_cancelled = self.dialer.connects
        client = self.greeted()
        client.says(CONNECT)
        client.resets()
        self.drained(self.origin)
        self.assertEqual(len(self.records), 1)


class TimeTests(SocksCase):
    """The handshake has one deadline, not one for each message."""

    def test_slow(self):
        """A handshake that drips is ended, in the words of the message that is awaited."""
        client = self.connect()
        client.says(b"\x05")
        self.turn(29)
        client.says(b"\x01\x00")
        self.assertEqual(client.heard, b"\x05\x00")
        self.turn(2)
        self.assertEqual(client.heard, refusal(1))
        self.assertEqual(self.outcome("error", "reply"), [("http_request_error", 1)])

    def test_slow_greeting(self):
        """One that has not come to its greeting's end is ended without a word."""
        client = self.connect()
        client.says(b"\x05")
        self.turn(31)
        self.assertEqual(client.heard, b"")
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "reply"), [("http_request_error", None)])

    def test_silence(self):
        """Silence is no request, and gets no record."""
        client = self.connect()
        self.turn(31)
        self.drained(client)
        self.assertEqual(self.records, [])

    def test_dialing(self):
        """Dialing has limits of its own."""
        self.dialer.instant = False
        client = self.greeted()
        client.says(CONNECT)
        self.turn(60)
        self.assertFalse(client.closed)
        self.dialer.connects()
        self.assertEqual(client.heard, OPEN)
        client.resets()


class MethodTests(SocksCase):
    """The choice of an authentication method (RFC 1928 §3)."""

    def chosen(self, offer: bytes) -> int:
        """The method that is selected."""
        client = self.connect()
        client.says(b"\x05" + bytes((len(offer),)) + offer)
        answer = client.heard
        self.assertEqual(answer[:1], b"\x05")
        self.assertEqual(len(answer), 2)
        if answer[1] == 0xFF:
            self.assertTrue(client.said_fin)
        client.resets()
        return answer[1]

    def choices(self, none: int, free: int, password: int, both: int) -> None:
        """What is selected of each offer; GSSAPI and others never are."""
        for offer, expected in (
            (b"", none),
            (b"\x01", none),
            (b"\x01\x80\xfe\xff", none),
            (b"\x00", free),
            (b"\x00\x01", free),
            (b"\x02", password),
            (b"\x00\x02", both),
            (b"\x02\x00", both),
            (b"\x00\x01\x02", both),
        ):
            self.assertEqual(self.chosen(offer), expected, offer)

    def change_rules(self, *rules: Rule) -> None:
        """Begin anew with other rules, and with accounts."""
        self.rules = rules
        self.setUp()
        self.egress.accounts = self.accounts

    def test_nobody_asked(self):
        """Without accounts nobody is asked, but one who insists may say who he is."""
        self.choices(0xFF, 0x00, 0x02, 0x00)

    def test_nobody_needed(self):
        """Nor where no rule wants to know."""
        self.change_rules(ALLOW)
        self.choices(0xFF, 0x00, 0x02, 0x00)

    def test_always_needed(self):
        """Where every rule wants to know, everybody is asked, even who would rather not say."""
        self.change_rules(ALICE)
        self.choices(0xFF, 0xFF, 0x02, 0x02)

    def test_maybe_needed(self):
        """Where some rule wants to know, those are asked who can be; the others get as far as they get."""
        self.change_rules(BY_NAME, ALLOW)
        self.choices(0xFF, 0x00, 0x02, 0x02)

    def test_certificate(self):
        """Who has proven it by a certificate is not asked."""
        self.change_rules(ALICE)
        client = self.connect(identity=Identity("alice", "certificate"))
        client.says(b"\x05\x02\x00\x02" + CONNECT)
        self.assertEqual(client.heard, b"\x05\x00" + OPEN)
        client.resets()
        self.assertEqual((self.records[-1].user, self.records[-1].proof), ("alice", "certificate"))

    def test_refused(self):
        """Who cannot be asked is recorded as challenged, not as an error."""
        self.change_rules(ALICE)
        client = self.connect()
        client.says(FREE)
        self.assertEqual(client.heard, b"\x05\xff")
        self.assertEqual(self.outcome("decision", "error", "reply"), [("challenge", None, None)])


class PasswordTests(SocksCase):
    """Username and password (RFC 1929)."""

    rules = (ALICE,)

    def setUp(self) -> None:
        super().setUp()
        self.egress.accounts = self.accounts

    def asked(self) -> Memory:
        """A client that is asked who it is."""
        client = self.connect()
        client.says(ASKED)
        self.assertEqual(client.heard, b"\x05\x02")
        return client

    def test_right(self):
        """The right password is accepted, and the tunnel is that user's."""
        client = self.asked()
        client.says(PASSWORD)
        self.assertEqual(client.heard, b"\x01\x00")
        client.says(CONNECT)
        self.assertEqual(client.heard, OPEN)
        client.resets()
        self.assertEqual(self.outcome("user", "proof", "rule", "reply"), [("alice", "socks5", "for alice", 0)])

    def test_any_split(self):
        """It does not matter how the messages arrive."""
        data = ASKED + PASSWORD + CONNECT + b"early"
        for size in range(1, len(data) + 1, 3):
            client = self.connect()
            client.says(*(data[at : at + size] for at in range(0, len(data), size)))
            self.assertEqual(client.heard, b"\x05\x02\x01\x00" + OPEN)
            self.assertEqual(self.origin.heard, b"early")
            client.resets()

    def test_wrong(self):
        """Any other is refused in the status of RFC 1929, and the connection ends."""
        for credentials in (
            b"\x01\x05alice\x0bopen sesamE",
            b"\x01\x05alice\x0copen sesame\0",
            b"\x01\x06alice\0\x0bopen sesame",
            b"\x01\x05alice\x00",
            b"\x01\x00\x0bopen sesame",
            b"\x01\x00\x00",
            b"\x01\xff" + b"\xff" * 255 + b"\xff" + b"\xfe" * 255,
        ):
            client = self.asked()
            client.says(credentials + CONNECT)
            self.assertEqual(client.heard, b"\x01\x01", credentials)
            self.assertTrue(client.said_fin)
        self.assertEqual(self.dialer.dialings, [])
        self.assertEqual(
            {(record.decision, record.error, record.reply, record.user) for record in self.records},
            {("challenge", None, None, None)},
        )
        self.assertNotIn("sesam", str(self.records))

    def test_malformed(self):
        """A message of another version is refused the same way."""
        client = self.asked()
        client.says(b"\x05\x01\x00")
        self.assertEqual(client.heard, b"\x01\x01")
        self.assertEqual(self.outcome("error"), [("http_request_error",)])

    def test_nobody_to_ask(self):
        """Without accounts anything is accepted, and proves nothing."""
        self.egress.accounts = None
        client = self.connect()
        client.says(b"\x05\x01\x02" + PASSWORD + CONNECT)
        self.assertEqual(client.heard, b"\x05\x02\x01\x00" + refusal(2))
        self.assertEqual(self.outcome("user", "decision", "reply"), [(None, "challenge", 2)])

    def test_checked_later(self):
        """While the password is checked what follows it waits."""
        self.accounts.waiting = Deferred()
        client = self.asked()
        client.says(PASSWORD + CONNECT, b"early" * 60_000)
        self.assertEqual(client.heard, b"")
        self.assertFalse(client.reading)
        self.accounts.waiting.callback(Identity("alice", "socks5"))
        self.assertEqual(client.heard, b"\x01\x00" + OPEN)
        self.assertEqual(self.origin.heard, b"early" * 60_000)
        self.assertTrue(client.reading)
        client.resets()

    def test_found_wrong_later(self):
        """So does its refusal."""
        self.accounts.waiting = Deferred()
        client = self.asked()
        client.says(PASSWORD)
        self.accounts.waiting.callback(None)
        self.assertEqual(client.heard, b"\x01\x01")

    def test_half_closed(self):
        """A client that has said everything and FIN while its password is checked still gets its tunnel."""
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(ASKED + PASSWORD + CONNECT + b"ping")
        client.closes()
        self.assertFalse(client.closed)
        self.accounts.waiting.callback(Identity("alice", "socks5"))
        self.turn()
        self.assertEqual(client.heard, b"\x05\x02\x01\x00" + OPEN)
        self.assertEqual(self.origin.heard, b"ping")
        self.origin.closes()
        self.drained(client)
        self.assertEqual(self.outcome("error"), [(None,)])

    def test_half_closed_too_early(self):
        """One that has not asked for anything by then is done."""
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(ASKED + PASSWORD)
        client.closes()
        self.accounts.waiting.callback(Identity("alice", "socks5"))
        self.assertEqual(client.heard, b"\x05\x02\x01\x00")
        self.drained(client)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")])

    def test_client_leaves(self):
        """For a client that has left nothing is done, whatever its password."""
        for proven in (Identity("alice", "socks5"), None):
            self.accounts.waiting = Deferred()
            client = self.connect()
            client.says(ASKED + PASSWORD + CONNECT)
            client.resets()
            self.accounts.waiting.callback(proven)
        self.assertEqual(self.dialer.dialings, [])
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(ASKED + PASSWORD + CONNECT)
        client.resets()
        self.accounts.waiting.errback(ProxyError(ErrorType.PROXY_INTERNAL_ERROR, "it cannot be checked"))
        self.assertEqual(self.records, [])

    def test_not_checked(self):
        """Where passwords cannot be checked the client is refused, and the record tells why."""
        self.accounts.error = ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "too many passwords")
        client = self.asked()
        client.says(PASSWORD)
        self.assertEqual(client.heard, b"\x01\x01")
        self.accounts.error = None
        self.accounts.waiting = Deferred()
        client = self.asked()
        client.says(PASSWORD)
        self.accounts.waiting.errback(ProxyError(ErrorType.PROXY_INTERNAL_ERROR, "it cannot be checked"))
        self.assertEqual(client.heard, b"\x01\x01")
        self.assertEqual(self.outcome("error"), [("connection_limit_reached",), ("proxy_internal_error",)])

    def test_overdue(self):
        """A check that does not end ends with the handshake's deadline."""
        self.accounts.waiting = Deferred()
        client = self.asked()
        client.says(PASSWORD)
        self.turn(31)
        self.assertEqual(client.heard, b"\x01\x01")
        self.accounts.waiting.callback(Identity("alice", "socks5"))
        self.assertEqual(len(self.records), 1)
