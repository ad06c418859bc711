"""Tests for proxyd.wire.socks5."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Destination
from proxyd.wire.socks5 import Command, Credentials, Greeting, Message, Socks5Server, State

CANARY = b"canary-7f3a"


def in_state(state: State) -> Socks5Server:
    """A codec that has come as far as ``state``."""
    codec = Socks5Server()
    if state is not State.GREETING:
        codec.feed(b"\x05\x02\x00\x02")
        codec.select(2 if state is State.CREDENTIALS else 0)
    return codec


def feed_all(codec: Socks5Server, pieces: list[bytes]) -> list[Message]:
    """Feed pieces, answering each message at once: password if it is offered, any credentials accepted."""
    messages: list[Message] = []
    for piece in pieces:
        new = codec.feed(piece)
        while new:
            messages += new
            match new[0]:
                case Greeting(methods):
                    codec.select(2 if 2 in methods else 0)
                case Credentials():
                    codec.verdict(True)
            new = codec.feed(b"")
    return messages


class CodecTestCase(SynchronousTestCase):
    """Assertions that hold for bytes that come together and for bytes that come one by one."""

    def parse(self, state: State, data: bytes) -> Message:
        """The one message that ``data`` is, however it is split."""
        whole, trickled = in_state(state), in_state(state)
        [message] = whole.feed(data)
        for octet in data[:-1]:
            self.assertEqual(trickled.feed(bytes([octet])), [])
        self.assertEqual(trickled.feed(data[-1:]), [message])
        self.assertEqual((whole.unread, trickled.unread), (b"", b""))
        return message

    def refused(self, state: State, data: bytes) -> tuple[int | None, bytes]:
        """The reply code and the last bytes for the client, which is refused just at the last byte of ``data``."""
        whole, trickled = in_state(state), in_state(state)
        error = self.assertRaises(ProxyError, whole.feed, data)
        for octet in data[:-1]:
            self.assertEqual(trickled.feed(bytes([octet])), [])
        again = self.assertRaises(ProxyError, trickled.feed, data[-1:])
        self.assertEqual((error.error, again.detail), (ErrorType.HTTP_REQUEST_ERROR, error.detail))
        self.assertEqual(whole.feed(b"\x05\x01\x00"), [])
        assert error.reply is not None
        return error.reply, whole.refuse(error.reply)


class GreetingTests(CodecTestCase):
    """Tests for the method negotiation (RFC 1928 §3)."""

    def test_methods(self) -> None:
        """The offers of the agents' clients are understood."""
        for data, methods in {
            b"\x05\x01\x00": {0},
            b"\x05\x02\x00\x02": {0, 2},
            b"\x05\x02\x00\x01": {0, 1},
            b"\x05\x03\x00\x01\x02": {0, 1, 2},
            b"\x05\x02\x02\x02": {2},
            b"\x05\xff" + bytes(range(255)): set(range(255)),
        }.items():
            self.assertEqual(self.parse(State.GREETING, data), Greeting(frozenset(methods)))

    def test_no_methods(self) -> None:
        """A greeting without methods is legal, and none of them is acceptable."""
        codec = Socks5Server()
        self.assertEqual(codec.feed(b"\x05\x00"), [Greeting(frozenset())])
        self.assertEqual(codec.select(0xFF), b"\x05\xff")

    def test_version(self) -> None:
        """Any version but 5 is refused at its byte, and gets no answer."""
        for version in (0, 4, 6, 0x16, ord("G"), 255):
            self.assertEqual(self.refused(State.GREETING, bytes([version])), (1, b""))

    def test_select(self) -> None:
        """The selected method decides which message comes next."""
        for method, answer, state in (
            (0x00, b"\x05\x00", State.REQUEST),
            (0x02, b"\x05\x02", State.CREDENTIALS),
            (0xFF, b"\x05\xff", State.DONE),
        ):
            codec = Socks5Server()
            codec.feed(b"\x05\x03\x00\x01\x02")
            self.assertIs(codec.state, State.GREETING)
            self.assertEqual((codec.select(method), codec.state), (answer, state))

    def test_select_unsupported(self) -> None:
        """A method that the codec does not speak cannot be selected: that is a refusal."""
        codec = Socks5Server()
        codec.feed(b"\x05\x01\x01")
        self.assertEqual((codec.select(0x01), codec.state), (b"\x05\xff", State.DONE))

    def test_nothing_after_refusal(self) -> None:
        """Where no method was acceptable nothing more is parsed."""
        codec = Socks5Server()
        codec.feed(b"\x05\x01\x01")
        codec.select(0xFF)
        self.assertEqual(codec.feed(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"), [])

    def test_waits_for_answer(self) -> None:
        """What comes before the greeting is answered is parsed only after it."""
        codec = Socks5Server()
        self.assertEqual(len(codec.feed(b"\x05\x01\x02\x01\x01a\x01b")), 1)
        self.assertEqual(codec.feed(b""), [])
        codec.select(2)
        self.assertEqual(codec.feed(b""), [Credentials(b"a", b"b")])


class CredentialsTests(CodecTestCase):
    """Tests for username and password (RFC 1929 §2)."""

    def test_credentials(self) -> None:
        """Name and password are bytes of any value and of up to 255."""
        for name, password in (
            (b"us@er", b"p:w"),
            (b"\x00\xff\n", b"\x01\x05"),
            (b"n" * 255, b"p" * 255),
        ):
            data = b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password
            self.assertEqual(self.parse(State.CREDENTIALS, data), Credentials(name, password))

    def test_empty(self) -> None:
        """Empty names and passwords are parsed, for the caller to refuse."""
        for data, name, password in (
            (b"\x01\x00\x00", b"", b""),
            (b"\x01\x01a\x00", b"a", b""),
            (b"\x01\x00\x01b", b"", b"b"),
        ):
            self.assertEqual(self.parse(State.CREDENTIALS, data), Credentials(name, password))

    def test_version(self) -> None:
        """Any version but 1 of the subnegotiation is refused at its byte, with a failed verdict."""
        for version in (0, 2, 5, 255):
            self.assertEqual(self.refused(State.CREDENTIALS, bytes([version])), (1, b"\x01\x01"))

    def test_accepted(self) -> None:
        """After a success the request is expected."""
        codec = in_state(State.CREDENTIALS)
        codec.feed(b"\x01\x01a\x01b")
        self.assertIs(codec.state, State.CREDENTIALS)
        self.assertEqual((codec.verdict(True), codec.state), (b"\x01\x00", State.REQUEST))

    def test_refused(self) -> None:
        """After a failure nothing more is parsed."""
        codec = in_state(State.CREDENTIALS)
        codec.feed(b"\x01\x01a\x01b")
        self.assertEqual((codec.verdict(False), codec.state), (b"\x01\x01", State.DONE))
        self.assertEqual(codec.feed(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"), [])

    def test_no_secret(self) -> None:
        """The password is not in the representation of the credentials."""
        codec = in_state(State.CREDENTIALS)
        [message] = codec.feed(b"\x01\x05alice" + bytes([len(CANARY)]) + CANARY)
        self.assertIn("alice", repr(message))
        self.assertNotIn("canary", repr(message) + repr(codec))


class CommandTests(CodecTestCase):
    """Tests for the request (RFC 1928 §4 and §5)."""

    def test_ipv4(self) -> None:
        """An IPv4 address is four octets."""
        self.assertEqual(
            self.parse(State.REQUEST, b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb"),
            Command(1, Destination("192.0.2.1", 443, IPv4Address("192.0.2.1")), 1),
        )

    def test_ipv6(self) -> None:
        """An IPv6 address is sixteen octets."""
        address = b"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"
        self.assertEqual(
            self.parse(State.REQUEST, b"\x05\x01\x00\x04" + address + b"\x00\x50"),
            Command(1, Destination("2001:db8::1", 80, IPv6Address("2001:db8::1")), 4),
        )

    def test_domain(self) -> None:
        """A domain name is canonicalised; one that is the text of an address becomes that address."""
        for domain, host in {
            b"example.com": "example.com",
            b"EXAMPLE.com.": "example.com",
            b"b\xc3\xbccher.example": "xn--bcher-kva.example",
            b"1.2.3.4": "1.2.3.4",
            b"::1": "::1",
            b"[2001:DB8::1]": "2001:db8::1",
            b".".join([b"a" * 63] * 3 + [b"b" * 61]): ".".join(["a" * 63] * 3 + ["b" * 61]),
        }.items():
            message = self.parse(State.REQUEST, b"\x05\x01\x00\x03" + bytes([len(domain)]) + domain + b"\x01\xbb")
            self.assertEqual(message, Command(1, Destination.parse(host, 443), 3))

    def test_invalid_domain(self) -> None:
        """A domain that is no name is refused with reply 1."""
        for domain in (
            b"",
            b".",
            b"exam\x00ple.com",
            b"example.com\x00",
            b"exam ple.com",
            b"user@example.com",
            b"example.com:80",
            b"\xff\xfe",
            b"b\xfccher.example",
            b"\xc0\xae",
            b"127.1",
            b"0x7f000001",
            b"fe80::1%eth0",
            b"a" * 64,
            b"a." * 127 + b"a",
        ):
            data = b"\x05\x01\x00\x03" + bytes([len(domain)]) + domain + b"\x00\x50"
            self.assertEqual(
                self.refused(State.REQUEST, data), (1, b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00"), domain
            )

    def test_port_zero(self) -> None:
        """Nothing can be connected to at port 0."""
        for data in (
            b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00",
            b"\x05\x01\x00\x04" + bytes(16) + b"\x00\x00",
            b"\x05\x01\x00\x03\x01a\x00\x00",
        ):
            self.assertEqual(self.refused(State.REQUEST, data)[0], 1)

    def test_version(self) -> None:
        """Any version but 5 is refused at its byte."""
        for version in (0, 1, 4, 255):
            self.assertEqual(
                self.refused(State.REQUEST, bytes([version])), (1, b"\x05\x01\x00\x01\x00\x00\x00\x00\x00\x00")
            )

    def test_reserved(self) -> None:
        """The reserved byte must be zero."""
        for reserved in (1, 255):
            self.assertEqual(self.refused(State.REQUEST, b"\x05\x01" + bytes([reserved]) + b"\x01")[0], 1)

    def test_address_type_not_supported(self) -> None:
        """An unknown address type is refused at its byte with reply 8: its length cannot be known."""
        for address_type in (0, 2, 5, 255):
            self.assertEqual(
                self.refused(State.REQUEST, b"\x05\x01\x00" + bytes([address_type])),
                (8, b"\x05\x08\x00\x01\x00\x00\x00\x00\x00\x00"),
            )

    def test_command_before_address_type(self) -> None:
        """Where command and address type are both unknown the reply is the command's, 7."""
        for command in (0, 2, 3, 4, 255):
            self.assertEqual(
                self.refused(State.REQUEST, b"\x05" + bytes([command]) + b"\x00\x09"),
                (7, b"\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"),
            )

    def test_other_commands(self) -> None:
        """Other commands are consumed whole and given to the caller, who refuses them."""
        for command in (0, 2, 3, 4, 255):
            for address, host in (
                (b"\x01\xc0\x00\x02\x01", "192.0.2.1"),
                (b"\x03\x0bexample.com", "example.com"),
                (b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01", "2001:db8::1"),
            ):
                data = b"\x05" + bytes([command]) + b"\x00" + address + b"\x00\x50"
                message = self.parse(State.REQUEST, data)
                self.assertEqual(message, Command(command, Destination.parse(host, 80), address[0]))

    def test_udp_associate_without_address(self) -> None:
        """The 0.0.0.0:0 of UDP ASSOCIATE and other addresses of no use do not hide the command."""
        for address in (
            b"\x01\x00\x00\x00\x00\x00\x00",
            b"\x04" + bytes(18),
            b"\x03\x00\x00\x00",
            b"\x03\x01\xff\x00\x50",
        ):
            message = self.parse(State.REQUEST, b"\x05\x03\x00" + address)
            self.assertEqual(message, Command(3, None, address[0]))


class UnreadTests(SynchronousTestCase):
    """Tests for bytes that come before they are due."""

    def test_early_data(self) -> None:
        """What follows the command is kept, in the same segment and in later ones."""
        codec = in_state(State.REQUEST)
        codec.feed(b"\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb\x16\x03")
        self.assertIs(codec.state, State.DONE)
        self.assertEqual(codec.feed(b"\x01\x02"), [])
        self.assertEqual(codec.unread, b"\x16\x03\x01\x02")

    def test_one_segment(self) -> None:
        """A whole handshake with early data may come in one segment."""
        codec = Socks5Server()
        messages = feed_all(codec, [b"\x05\x01\x02\x01\x01a\x01b\x05\x01\x00\x03\x0bexample.com\x00\x50GET /"])
        self.assertEqual(
            messages,
            [
                Greeting(frozenset({2})),
                Credentials(b"a", b"b"),
                Command(1, Destination("example.com", 80, None), 3),
            ],
        )
        self.assertEqual(codec.unread, b"GET /")

    @settings(deadline=None)
    @given(st.sets(st.integers(0, 80)), st.binary(max_size=40))
    def test_split_anywhere(self, cuts: set[int], early: bytes) -> None:
        """However a handshake is split, it is the same handshake."""
        data = b"\x05\x03\x00\x01\x02\x01\x06us@er!\x03p:w\x05\x01\x00\x03\x0bexample.com\x00\x50" + early
        places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        codec = Socks5Server()
        messages = feed_all(codec, [data[start:end] for start, end in pairwise(places)])
        command = Command(1, Destination("example.com", 80, None), 3)
        self.assertEqual(messages, [Greeting(frozenset({0, 1, 2})), Credentials(b"us@er!", b"p:w"), command])
        self.assertEqual(codec.unread, early)

    @settings(deadline=None)
    @given(st.lists(st.binary(max_size=30), max_size=8), st.booleans())
    def test_junk(self, pieces: list[bytes], greeted: bool) -> None:
        """Whatever comes, the only error is ProxyError, and it has a reply."""
        codec = in_state(State.REQUEST if greeted else State.GREETING)
        if greeted:
            pieces = [b"\x05\x01\x00", *pieces]
        try:
            feed_all(codec, pieces)
        except ProxyError as error:
            self.assertIn(error.reply, (1, 7, 8))

    @settings(deadline=None)
    @given(st.binary(max_size=255))
    def test_junk_domain(self, domain: bytes) -> None:
        """Any domain is either a destination or refused with reply 1."""
        codec = in_state(State.REQUEST)
        try:
            [message] = codec.feed(b"\x05\x01\x00\x03" + bytes([len(domain)]) + domain + b"\x00\x50")
        except ProxyError as error:
            self.assertEqual(error.reply, 1)
        else:
            assert isinstance(message, Command)
            self.assertIsNotNone(message.destination)


class ReplyTests(SynchronousTestCase):
    """Tests for replies (RFC 1928 §6)."""

    def test_default(self) -> None:
        """A reply is ten bytes with the address 0.0.0.0:0, also a refusal."""
        self.assertEqual(Socks5Server().reply(0), b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        self.assertEqual(Socks5Server().reply(5), b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")

    def test_bound_ipv4(self) -> None:
        """The bound address may be told."""
        self.assertEqual(
            Socks5Server().reply(0, IPv4Address("192.0.2.7"), 4660), b"\x05\x00\x00\x01\xc0\x00\x02\x07\x12\x34"
        )

    def test_bound_ipv6(self) -> None:
        """A bound IPv6 address makes the reply 22 bytes long."""
        self.assertEqual(
            Socks5Server().reply(0, IPv6Address("2001:db8::1"), 80),
            b"\x05\x00\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x50",
        )
