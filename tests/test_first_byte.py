"""Tests for proxyd.wire.first_byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.wire.first_byte import Speaks, speaks

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class SpeaksTests(SynchronousTestCase):
    """Tests for speaks."""

    def test_tls(self) -> None:
        """A handshake record is TLS."""
        self.assertIs(speaks(0x16), Speaks.TLS)

    def test_socks5(self) -> None:
        """The version of a SOCKS5 greeting is SOCKS5."""
        self.assertIs(speaks(0x05), Speaks.SOCKS5)

    def test_http(self) -> None:
        """Whatever a method may begin with is HTTP."""
        for first in TOKEN:
            self.assertIs(speaks(first), Speaks.HTTP, chr(first))

    def test_empty_line(self) -> None:
        """An empty line may stand before an HTTP request."""
        self.assertIs(speaks(0x0D), Speaks.HTTP)

    def test_unknown(self) -> None:
        """SOCKS4, blanks, separators and all else are unknown."""
        unknown = set(range(256)) - set(TOKEN) - {0x16, 0x05, 0x0D}
        self.assertLessEqual({0x04, 0x0A, 0x20, ord("("), ord("/"), 0x00, 0x7F, 0x80, 0xFF}, unknown)
        for first in unknown:
            self.assertIs(speaks(first), Speaks.UNKNOWN, hex(first))
