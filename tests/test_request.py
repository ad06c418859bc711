"""Tests for proxyd.request."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import MAX_NAME_LENGTH, Destination, parse_ip

any_text = st.text(st.characters(exclude_categories=()), max_size=300)  # lone surrogates too
labels = st.from_regex(r"[a-z_](?:[a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)
ipv4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6_addresses = st.integers(0, 2**128 - 1).map(IPv6Address) | st.integers(0, 2**34).map(IPv6Address)
hosts = names | ipv4_addresses.map(str) | ipv6_addresses.map(str)
ports = st.integers(1, 65535)


@st.composite
def ipv4_spellings(draw: st.DrawFn) -> tuple[IPv4Address, str]:
    """An IPv4 address as inet_aton reads it: one to four parts, each decimal, octal or hexadecimal."""
    value = draw(st.integers(0, 2**32 - 1))
    bits = draw(st.sampled_from(([32], [8, 24], [8, 8, 16], [8, 8, 8, 8])))
    parts = []
    left = 32
    for width in bits:
        left -= width
        part = value >> left & (1 << width) - 1
        parts.append(draw(st.sampled_from((f"{part}", f"0{part:o}", f"0x{part:x}", f"0X{part:X}", f"0x000{part:x}"))))
    return IPv4Address(value), ".".join(parts)


class RefusalTests(SynchronousTestCase):
    """What is neither a name nor an address."""

    def assert_refused(self, host: str) -> None:
        """Parsing the host ends with http_request_error."""
        error = self.assertRaises(ProxyError, Destination.parse, host, 80)
        self.assertIs(error.error, ErrorType.HTTP_REQUEST_ERROR)

    def test_malformed_names(self) -> None:
        """Empty and long labels, two trailing dots, hyphens at an edge and characters of no host name are refused."""
        for host in (
            "", ".", "..", "a..b", ".a", "a..", "-a", "a-", "a.-b.c", "a b", "a\tb", " a", "a ", "a\n", "a\x00",
            "a/b", "a,b", "a\\b", "a@b", "a#b", "a?b", "a%41", "a%00", "a;b", "a'b", 'a"b', "a<b", "a|b", "a*b",
            "*", "a:b", "a\x7f", "(a)", "a" * 64, "a" * 64 + ".b", ".".join(["a" * 63] * 4),
            "[a]", "[example.com]", "[", "]", "[]", "a]", "[a",
        ):  # fmt: skip
            self.assert_refused(host)

    def test_longest_name(self) -> None:
        """A name of 253 octets passes, with a dot behind it too; one octet more is refused."""
        name = ".".join(["a" * 63] * 3 + ["b" * 61])
        self.assertEqual(len(name), MAX_NAME_LENGTH)
        self.assertEqual(Destination.parse(name + ".", 80).host, name)
        self.assert_refused(name + "b")
        self.assert_refused("\xad" * 16384 + "example.com")

    def test_alternate_ipv4_spellings(self) -> None:
        """Every spelling of an IPv4 address but the dotted quad is refused, also those that resolvers accept."""
        for host in (
            "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
            "127.0.0.01", "127.000.000.001", "0X7F.0x0.0.1", "127.0.0.0x1", "127.0.0.1.", "127.0.0.1..",
            "256.0.0.1", "1.2.3", "1.2.3.4.5", "1.2.3.4.", "4294967296", "0", "0x", "1.0x", "127.0.0.256",
            "999.999.999.999", "example.1", "example.0x1f", "[127.0.0.1]", "127.0.0.1%eth0", "+127.0.0.1",
            "127.0.0.-1", "1_0.0.0.1", "127.0.0.1_0/8",
        ):  # fmt: skip
            self.assert_refused(host)

    def test_ipv4_in_other_digits(self) -> None:
        """Full-width, circled and superscript digits, and other scripts' full stops, make no IPv4 address."""
        for host in (
            "１２７.0.0.1", "127.0.0.１", "①②⑦.0.0.1", "127。0。0。1", "127．0．0．1", "１２７．０．０．１",
            "２１３０７０６４３３", "127.0.0.¹", "１２７.1", "٠.٠.٠.٠", "0ｘ7f.1",
        ):  # fmt: skip
            self.assert_refused(host)

    def test_malformed_ipv6(self) -> None:
        """IPv6 text that is not an address, has a zone, a prefix length or half of its brackets is refused."""
        for host in (
            "[::1", "::1]", "[[::1]]", "[::1]]", "[::1%eth0]", "::1%1", "[fe80::1%25eth0]", "[::1/128]", "[:::1]",
            "1::2::3", "[12345::]", "[::1 ]", "[ ::1]", "[::1\x00]", "[::g]", "[1:2:3:4:5:6:7]", "[::1.2.3]",
            "[::01.2.3.4]", "[v1.a]", "[::１]",
        ):  # fmt: skip
            self.assert_refused(host)

    def test_malformed_international_names(self) -> None:
        """What IDNA 2008 does not allow is refused, also characters that map to those with a meaning in URLs."""
        for host in (
            "☃.example",
            "a\u200db.example",
            "\u0301a.example",
            "ａ／b",
            "a％00",
            "a＠b",
            "a：80",
            "\ud800",
            "❤️.ws",
        ):
            self.assert_refused(host)

    def test_ports(self) -> None:
        """Port 0 and ports beyond 65535 are refused for names and addresses."""
        for host in ("example.com", "192.0.2.1", "[::1]"):
            for port in (0, 65536, -1):
                self.assertRaises(ProxyError, Destination.parse, host, port)
        self.assertRaises(ProxyError, Destination.of_address, IPv4Address("192.0.2.1"), 0)

    @settings(deadline=None)
    @given(ipv4_spellings())
    def test_every_ipv4_spelling(self, spelled: tuple[IPv4Address, str]) -> None:
        """Whatever inet_aton reads as an address is refused, unless it is spelled as its dotted quad."""
        address, text = spelled
        self.assertEqual(socket.inet_aton(text), address.packed)
        assume(text != str(address))
        self.assert_refused(text)

    @settings(deadline=None)
    @given(ipv4_addresses, st.data())
    def test_every_foreign_digit(self, address: IPv4Address, data: st.DataObject) -> None:
        """An IPv4 address with one full-width or mathematical digit, which IDNA maps to an ASCII one, is refused."""
        text = str(address)
        at = data.draw(st.sampled_from([at for at, digit in enumerate(text) if digit != "."]))
        zero = data.draw(st.sampled_from((0xFF10, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6)))
        self.assert_refused(text[:at] + chr(zero + int(text[at])) + text[at + 1 :])

    @settings(deadline=None)
    @given(hosts, st.data())
    def test_control_and_blank_anywhere(self, host: str, data: st.DataObject) -> None:
        """One NUL, control or blank anywhere in a host is enough to refuse it."""
        at = data.draw(st.integers(0, len(host)))
        bad = data.draw(st.sampled_from([chr(code) for code in (*range(33), 0x7F)] + ["\x85", "\xa0", "\u2028"]))
        self.assert_refused(host[:at] + bad + host[at:])

    @settings(deadline=None)
    @given(any_text, st.integers(-1, 70000))
    def test_nothing_else_is_raised(self, host: str, port: int) -> None:
        """Whatever the text, the outcome is a destination or http_request_error."""
        for parse in (lambda: Destination.parse(host, port), lambda: Destination.parse_authority(host, port)):
            try:
                parse()
            except ProxyError as error:
                self.assertIs(error.error, ErrorType.HTTP_REQUEST_ERROR)


class CanonicalTests(SynchronousTestCase):
    """One spelling for each name and address."""

    def test_names(self) -> None:
        """Names become lower-case A-labels without the trailing dot."""
        for text, host in {
            "example.com": "example.com",
            "EXAMPLE.Com": "example.com",
            "example.com.": "example.com",
            "localhost": "localhost",
            "a_b.example": "a_b.example",
            "_dmarc.example": "_dmarc.example",
            "7.example": "7.example",
            "1.2.3.4.example": "1.2.3.4.example",
            "0x7f.com": "0x7f.com",
            "1e3": "1e3",
            "xn--bcher-kva.example": "xn--bcher-kva.example",
            "XN--Bcher-KVA.example": "xn--bcher-kva.example",
            "bücher.example": "xn--bcher-kva.example",
            "BÜCHER.example.": "xn--bcher-kva.example",
            "bu\u0308cher.example": "xn--bcher-kva.example",
            "faß.de": "xn--fa-hia.de",
            "例え.テスト": "xn--r8jz45g.xn--zckzah",
            "例え。テスト": "xn--r8jz45g.xn--zckzah",
            "ｅｘａｍｐｌｅ.com": "example.com",
            "exam\xadple.com": "example.com",
        }.items():
            self.assertEqual(Destination.parse(text, 80), Destination(host, 80, None), text)

    def test_addresses(self) -> None:
        """Addresses become their canonical text (RFC 5952); an IPv4-mapped one becomes the IPv4 address."""
        for text, host in {
            "192.0.2.1": "192.0.2.1",
            "0.0.0.0": "0.0.0.0",
            "[::1]": "::1",
            "::1": "::1",
            "[2001:DB8:0:0:0:0:0:1]": "2001:db8::1",
            "2001:0db8::0001": "2001:db8::1",
            "[64:ff9b::192.0.2.33]": "64:ff9b::c000:221",
            "[::ffff:192.0.2.1]": "192.0.2.1",
            "::FFFF:c000:201": "192.0.2.1",
            "[::ffff:0.0.0.0]": "0.0.0.0",
        }.items():
            self.assertEqual(Destination.parse(text, 80), Destination(host, 80, ip_address(host)), text)

    @settings(deadline=None)
    @given(any_text | hosts | st.text(max_size=20), ports)
    def test_idempotent(self, text: str, port: int) -> None:
        """A canonical host parses to itself, with and without its port."""
        try:
            destination = Destination.parse(text, port)
        except ProxyError:
            return
        self.assertEqual(Destination.parse(destination.host, port), destination)
        self.assertEqual(Destination.parse_authority(destination.authority), destination)
        self.assertEqual(Destination.parse_authority(destination.host_field(443), 443), destination)

    @settings(deadline=None)
    @given(names, st.data())
    def test_case_and_dot(self, name: str, data: st.DataObject) -> None:
        """Case and one trailing dot make no difference to a name."""
        flips = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
        spelled = "".join(char.upper() if flip else char for char, flip in zip(name, flips, strict=True))
        self.assertEqual(Destination.parse(spelled, 80), Destination(name, 80, None))
        self.assertEqual(Destination.parse(spelled + ".", 80), Destination(name, 80, None))

    @settings(deadline=None)
    @given(ipv6_addresses, ports)
    def test_ipv6_spellings(self, address: IPv6Address, port: int) -> None:
        """Brackets, case and zeros make no difference to an IPv6 address, and none to the binary form's destination."""
        expected = Destination.of_address(address, port)
        for text in (address.compressed, address.exploded, address.exploded.upper()):
            self.assertEqual(Destination.parse(text, port), expected)
            self.assertEqual(Destination.parse(f"[{text}]", port), expected)
            self.assertEqual(Destination.parse_authority(f"{text}:{port}"), expected)

    @settings(deadline=None)
    @given(ipv4_addresses, ports)
    def test_ipv4_spellings(self, address: IPv4Address, port: int) -> None:
        """An IPv4 address as text, in binary and mapped into IPv6 is one destination."""
        expected = Destination(str(address), port, address)
        mapped = IPv6Address(0xFFFF << 32 | int(address))
        self.assertEqual(Destination.parse(str(address), port), expected)
        self.assertEqual(Destination.of_address(address, port), expected)
        self.assertEqual(Destination.of_address(mapped, port), expected)
        self.assertEqual(Destination.parse(f"[::ffff:{address}]", port), expected)


class AuthorityTests(SynchronousTestCase):
    """A host and a port in one text."""

    def test_with_port(self) -> None:
        """The port follows the last colon; an IPv6 address needs no brackets where a port must follow."""
        for text, host, port in (
            ("example.com:80", "example.com", 80),
            ("Example.COM.:00443", "example.com", 443),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
            ("[2001:db8::1]:443", "2001:db8::1", 443),
            ("2001:db8::1:443", "2001:db8::1", 443),
        ):
            self.assertEqual(Destination.parse_authority(text), Destination.parse(host, port), text)

    def test_default_port(self) -> None:
        """A missing or empty port is the default one (RFC 3986 §3.2.3)."""
        for text in ("example.com", "example.com:", "EXAMPLE.com.:", "example.com:80"):
            self.assertEqual(Destination.parse_authority(text, 80), Destination("example.com", 80, None))
        for text in ("[::1]", "[::1]:", "[::1]:80"):
            self.assertEqual(Destination.parse_authority(text, 80), Destination("::1", 80, IPv6Address("::1")))

    def test_refused(self) -> None:
        """No port, a port that is no decimal number, user information and loose IPv6 addresses are refused."""
        for text, default in (
            ("example.com", None),
            ("example.com:", None),
            ("[::1]", None),
            ("[::1]:", None),
            ("::1", None),
            ("", None),
            ("", 80),
            (":80", None),
            (":80", 80),
            ("example.com:0", 80),
            ("example.com:65536", 80),
            ("example.com:000080", 80),
            ("example.com:+80", 80),
            ("example.com:-80", 80),
            ("example.com:8_0", 80),
            ("example.com:80 ", 80),
            ("example.com:80\n", 80),
            ("example.com:８０", 80),
            ("example.com:0x50", 80),
            ("example.com:http", 80),
            ("example.com:80:80", None),
            ("user@example.com:80", 80),
            ("user:secret@example.com:80", 80),
            ("@example.com:80", 80),
            ("2001:db8::1", 80),
            ("2001:db8::1:443", 80),
            ("[::1]80", 80),
            ("[::1]:80:80", 80),
            ("[::1:80", 80),
            ("127.1:80", 80),
        ):
            error = self.assertRaises(ProxyError, Destination.parse_authority, text, default)
            self.assertIs(error.error, ErrorType.HTTP_REQUEST_ERROR)

    def test_secret_not_repeated(self) -> None:
        """The refusal of user information does not repeat it."""
        error = self.assertRaises(ProxyError, Destination.parse_authority, "user:canary@example.com:80")
        self.assertNotIn("canary", str(error))

    def test_spelled_out(self) -> None:
        """The authority has brackets around IPv6; the Host field leaves the scheme's own port out."""
        for text, authority, host_field in (
            ("example.com:80", "example.com:80", "example.com"),
            ("example.com:8080", "example.com:8080", "example.com:8080"),
            ("192.0.2.1:80", "192.0.2.1:80", "192.0.2.1"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80", "[2001:db8::1]"),
            ("[2001:db8::1]:8080", "[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ):
            destination = Destination.parse_authority(text)
            self.assertEqual((destination.authority, destination.host_field(80)), (authority, host_field))


class ParseIPTests(SynchronousTestCase):
    """The address that a socket's name shows."""

    def test_addresses(self) -> None:
        """A zone is left out, and a client of a dual-stack socket is the IPv4 client."""
        for text, address in (
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ):
            self.assertEqual(parse_ip(text), ip_address(address), text)

    def test_others(self) -> None:
        """What is no address, such as a Unix socket's path, has none."""
        for text in ("", "/run/proxyd.sock", "localhost", "127.1"):
            self.assertIsNone(parse_ip(text), text)
