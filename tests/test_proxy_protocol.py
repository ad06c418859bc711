"""Tests for ``proxyd.wire.proxy_protocol``; the bytes are those of HAProxy's doc/proxy-protocol.txt."""

from __future__ import annotations

from ipaddress import ip_address

from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.wire.proxy_protocol import ProxyHeader, parse_proxy_header

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
V4 = ip_address("192.0.2.9").packed + ip_address("192.0.2.1").packed + b"\xc3\x50\x1f\x90"
V6 = ip_address("2001:db8::9").packed + ip_address("2001:db8::1").packed + b"\xc3\x50\x1f\x90"
MAPPED = ip_address("::ffff:192.0.2.9").packed + ip_address("::ffff:192.0.2.1").packed + b"\xc3\x50\x1f\x90"


def version_2(command: int, family: int, content: bytes) -> bytes:
    """A header of version 2."""
    return SIGNATURE + bytes((0x20 | command, family)) + len(content).to_bytes(2, "big") + content


HEADERS: dict[str, tuple[bytes, str | None, int]] = {
    "version 1, IPv4": (b"PROXY TCP4 192.0.2.9 192.0.2.1 50000 8080\r\n", "192.0.2.9", 50000),
    "version 1, IPv6": (b"PROXY TCP6 2001:db8::9 2001:db8::1 50000 8080\r\n", "2001:db8::9", 50000),
    "version 1, IPv4 in IPv6": (b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:192.0.2.1 1 2\r\n", "192.0.2.9", 1),
    "version 1, the longest addresses": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        65535,
    ),
    "version 1, unknown": (b"PROXY UNKNOWN\r\n", None, 0),
    "version 1, unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None, 0),
    "version 2, IPv4": (version_2(1, 0x11, V4), "192.0.2.9", 50000),
    "version 2, IPv6": (version_2(1, 0x21, V6), "2001:db8::9", 50000),
    "version 2, IPv4 in IPv6": (version_2(1, 0x21, MAPPED), "192.0.2.9", 50000),
    "version 2, with additions": (version_2(1, 0x11, V4 + b"\x04\x00\x03abc"), "192.0.2.9", 50000),
    "version 2, local": (version_2(0, 0x00, b""), None, 0),
    "version 2, local with addresses": (version_2(0, 0x11, V4), None, 0),
    "version 2, UDP": (version_2(1, 0x12, V4), None, 0),
    "version 2, Unix": (version_2(1, 0x31, bytes(216)), None, 0),
}

MALFORMED: dict[str, bytes] = {
    "an HTTP request": b"GET http://origin.example/ HTTP/1.1\r\n",
    "a SOCKS5 greeting": b"\x05\x01\x00",
    "nearly version 1": b"PROXX",
    "nearly version 2": SIGNATURE[:11] + b"x",
    "a family that does not exist": b"PROXY TCP5 192.0.2.9 192.0.2.1 1 2\r\n",
    "IPv6 that is announced as IPv4": b"PROXY TCP4 2001:db8::9 2001:db8::1 1 2\r\n",
    "IPv4 that is announced as IPv6": b"PROXY TCP6 192.0.2.9 192.0.2.1 1 2\r\n",
    "an address that is none": b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2\r\n",
    "a destination that is none": b"PROXY TCP4 192.0.2.9 192.0.2 1 2\r\n",
    "a leading zero": b"PROXY TCP4 192.0.2.9 192.0.2.1 01 2\r\n",
    "a port that is too large": b"PROXY TCP4 192.0.2.9 192.0.2.1 65536 2\r\n",
    "a destination port that is too large": b"PROXY TCP4 192.0.2.9 192.0.2.1 1 65536\r\n",
    "two blanks": b"PROXY TCP4  192.0.2.9 192.0.2.1 1 2\r\n",
    "something behind the ports": b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2 3\r\n",
    "LF alone": b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\nGET / HTTP/1.1\r\n",
    "a line without end": b"PROXY UNKNOWN " + b"x" * 93,
    "version 3": SIGNATURE + b"\x31\x11\x00\x0c" + V4,
    "a command that does not exist": version_2(2, 0x11, V4),
    "addresses that are too short": version_2(1, 0x11, V4[:-1]),
    "IPv6 addresses that are too short": version_2(1, 0x21, V6[:-1]),
    "a length beyond reason": SIGNATURE + b"\x21\x11\xff\xff",
}


class ProxyHeaderTests(SynchronousTestCase):
    """The header that a balancer puts before a connection."""

    def test_headers(self):
        """Both versions tell the client's address and port, or that there is none to tell."""
        for name, (header, address, port) in HEADERS.items():
            expected = ProxyHeader(None if address is None else ip_address(address), port, len(header))
            self.assertEqual(parse_proxy_header(header), expected, name)

    def test_followed(self):
        """What follows the header is left alone."""
        for name, (header, _, _) in HEADERS.items():
            self.assertEqual(parse_proxy_header(header + b"GET "), parse_proxy_header(header), name)

    def test_incomplete(self):
        """The beginning of a header is not refused, wherever it ends."""
        for name, (header, _, _) in HEADERS.items():
            for end in range(len(header)):
                self.assertIsNone(parse_proxy_header(header[:end]), f"{name}: {header[:end]!r}")

    def test_malformed(self):
        """Anything else is refused: an address must not be made up by whoever connects."""
        for name, data in MALFORMED.items():
            with self.assertRaises(ProxyError, msg=name) as caught:
                parse_proxy_header(data)
            self.assertIs(caught.exception.error, ErrorType.HTTP_REQUEST_ERROR)
