from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.request import Destination
from proxyd.values import (
    destination,
    duration,
    network,
    number,
    one_of,
    or_word,
    ports,
    pseudonym,
    quotable,
    server,
    size,
    suggestion,
    token,
    within,
    yes_no,
)


class ValuesTestCase(SynchronousTestCase):
    """Tables of texts, with what a reader makes of them or how it refuses them."""

    def check(self, read, good, bad):
        for text, value in good.items():
            self.assertEqual(read(text), value, text)
        for text, message in bad.items():
            self.assertEqual(str(self.assertRaises(ValueError, read, text)), message)


class DurationTests(ValuesTestCase):
    def test_units(self):
        """A duration has a unit or is in seconds; fractions are exact."""
        good = {
            "10s": 10.0, "250ms": 0.25, "5m": 300.0, "1h": 3600.0, "2d": 172800.0, "7": 7.0, "0.5": 0.5, "0": 0.0,
            "1.5m": 90.0, "20ms": 0.02, "200ms": 0.2,
        }  # fmt: skip
        fix = "is not a duration; write 250ms, 10s, 5m, 1h or 2d"
        bad = {
            text: f'"{text}" {fix}' for text in ("", "s", "10 s", "-1s", "1e3", "10sec", "1h30m", "٣s", "inf", "5s\n")
        }
        self.check(duration, good, bad)

    @given(st.integers(0, 10**9 - 1), st.sampled_from(["ms", "s", "m", "h", "d"]))
    def test_every_whole_number(self, count, unit):
        """Every number of up to nine digits is understood in every unit, in proportion."""
        self.assertEqual(duration(f"{count}{unit}"), count * duration(f"1000{unit}") / 1000)


class SizeTests(ValuesTestCase):
    def test_units(self):
        """A size is in bytes or in powers of 1024, with the unit in either case."""
        good = {"0": 0, "1500": 1500, "64k": 65536, "64K": 65536, "8M": 8388608, "8m": 8388608, "1G": 1073741824}
        fix = "is not a size; write bytes, or 64k, 8M, 1G"
        bad = {text: f'"{text}" {fix}' for text in ("", "k", "64 k", "1.5M", "-1", "64kB", "0x10", "9" * 16)}
        self.check(size, good, bad)


class NumberTests(ValuesTestCase):
    def test_digits(self):
        """A number has one to nine ASCII digits, nothing that int() takes beyond that."""
        bad = {
            text: f'"{text}" is not a number; write digits only'
            for text in ("", "+1", "1_0", " 1", "-1", "٣", "1" * 10)
        }
        self.check(number, {"0": 0, "256": 256}, bad)


class WithinTests(ValuesTestCase):
    def test_limits(self):
        """Both limits are allowed; the refusal names them as they were written."""
        bad = {text: f'"{text}" is out of range; write something from 10ms to 2s' for text in ("9ms", "2.1s", "0")}
        self.check(within(duration, "10ms", "2s"), {"10ms": 0.01, "2s": 2.0, "1": 1.0}, bad)


class OrWordTests(ValuesTestCase):
    def test_word(self):
        """The word is taken beside the values, and named where neither is understood."""
        bad = {"nono": '"nono" is not a number; write digits only, or auto'}
        self.check(or_word("auto", 0, number), {"auto": 0, "4": 4}, bad)


class OneOfTests(ValuesTestCase):
    def test_closed_set(self):
        """Another word is refused with the closest one, else with all of them, or with the fact that there is none."""
        bad = {
            "conect": 'there is no protocol "conect"; did you mean "connect"?',
            "SOCKS5": 'there is no protocol "SOCKS5"; did you mean "socks5"?',
            "udp": 'there is no protocol "udp"; known: connect, forward, socks5',
        }
        self.check(one_of(("forward", "connect", "socks5"), "protocol"), {"connect": "connect"}, bad)
        self.check(one_of((), "group"), {}, {"ops": 'there is no group "ops"; there is none'})

    def test_suggestion(self):
        """A suggestion does not look at case."""
        self.assertEqual(suggestion("Endpoint", ["endpoint", "accept"]), 'did you mean "endpoint"?')


class WordTests(ValuesTestCase):
    def test_yes_no(self):
        """Only yes and no are yes and no."""
        bad = {text: f'"{text}" is neither yes nor no; write one of them' for text in ("", "true", "1", "Yes", "on")}
        self.check(yes_no, {"yes": True, "no": False}, bad)

    def test_token(self):
        """A method is an upper-case token."""
        bad = {
            "get": 'methods are told apart by case and "get" is none that is in use; write GET',
            "G(T": '"G(T" is not a method; write GET, POST, CONNECT',
            "": '"" is not a method; write GET, POST, CONNECT',
        }
        self.check(token, {"GET": "GET", "M-SEARCH": "M-SEARCH"}, bad)

    def test_pseudonym(self):
        """A pseudonym is a token, with a port where it is a host, or empty for the default one."""
        fix = "cannot stand in Via; write one word of letters, digits, dots and dashes"
        bad = {text: f'"{text}" {fix}' for text in ("two words", "a,b", "a:b", "proxy\n", "ü")}
        self.check(pseudonym, {"": "", "proxyd-1": "proxyd-1", "proxy.example:3128": "proxy.example:3128"}, bad)

    def test_quotable(self):
        """Text for a quoted-string is printable ASCII without quotes and backslashes."""
        refused = "it cannot stand in a header field; write plain ASCII without quotes and backslashes"
        bad = dict.fromkeys(("", 'a"b', "a\\b", "a\rb", "a\x00b", "ü", "a\n", "\x7f"), refused)
        self.check(quotable, {"Log shipping, egress": "Log shipping, egress"}, bad)


class PortsTests(ValuesTestCase):
    def test_ranges(self):
        """Ports are one, a range with both its ends, or all."""
        good = {
            "443": range(443, 444), "8000-8100": range(8000, 8101), "*": range(1, 65536), "1-65535": range(1, 65536),
        }  # fmt: skip
        bad = {
            text: f'"{text}" is not a port; write 443, 8000-8100 or *'
            for text in ("", "http", "1-2-3", "80-", "-80", "1:2")
        }
        order = "is not a range of ports; they go from 1 to 65535, the lower one first"
        bad |= {text: f'"{text}" {order}' for text in ("0", "65536", "90-80", "80-70000")}
        self.check(ports, good, bad)


class NetworkTests(ValuesTestCase):
    def test_networks(self):
        """A network has no bits behind its prefix; a single address is a network of one."""
        good = {
            "10.0.0.0/8": IPv4Network("10.0.0.0/8"),
            "192.0.2.1": IPv4Network("192.0.2.1/32"),
            "2001:db8::/32": IPv6Network("2001:db8::/32"),
            "::1": IPv6Network("::1/128"),
        }
        bad = {text: f'"{text}" is not a network; write 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32' for text in (
            "", "example.com", "10.0.0.0/33", "10.1", "010.0.0.0/8", "::1/129", "fe80::1%eth0", "fe80::%eth0/64",
        )}  # fmt: skip
        bad["10.1.2.3/8"] = '"10.1.2.3/8" has bits set behind its prefix; write 10.0.0.0/8'
        bad["2001:db8::1/32"] = '"2001:db8::1/32" has bits set behind its prefix; write 2001:db8::/32'
        self.check(network, good, bad)


class DestinationTests(ValuesTestCase):
    def test_canonical(self):
        """Destinations come out as requests name them: lower-case A-labels, plain addresses, networks."""
        good = {
            "*": "*",
            "Example.COM": "example.com",
            "example.com.": "example.com",
            ".Log.AliyunCS.com": ".log.aliyuncs.com",
            ".com": ".com",
            "bücher.example": "xn--bcher-kva.example",
            ".bücher.example": ".xn--bcher-kva.example",
            "localhost": "localhost",
            "192.0.2.1": "192.0.2.1",
            "[2001:DB8::1]": "2001:db8::1",
            "2001:db8:0:0::1": "2001:db8::1",
            "192.0.2.0/24": "192.0.2.0/24",
            "2001:0db8::/32": "2001:db8::/32",
        }
        self.check(destination, good, {})

    def test_refused(self):
        """What is no destination is refused, with how the thing that may be meant is written."""
        bad = {
            "*.example.com": (
                '"*.example.com" is not how a domain is written; write .example.com for it and all its subdomains'
            ),
            "https://example.com": '"https://example.com" is a URL; write its host alone, and its port under ports',
            "example.com/x": '"example.com/x" is not a network; write 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32',
            "10.1.2.3/8": '"10.1.2.3/8" has bits set behind its prefix; write 10.0.0.0/8',
            "example.com:443": '"example.com:443" names a port; write example.com here, and the port under ports',
            "[::1]:443": '"[::1]:443" names a port; write ::1 here, and the port under ports',
            ".": '".": the host is not a valid name; write .example.com for a domain and its subdomains',
            ".192.0.2.1": '".192.0.2.1" is not a domain; write addresses without the leading dot',
            "ex*mple.com": (
                '"ex*mple.com": the host is not a valid name; write a name, .example.com, an address, a network or *'
            ),
            "127.1": (
                '"127.1": an IPv4 address must be four decimal numbers without leading zeros; '
                "write a name, .example.com, an address, a network or *"
            ),
        }
        self.check(destination, {}, bad)

    @given(st.from_regex(r"[A-Za-z0-9.-]{1,30}", fullmatch=True))
    def test_same_as_requests(self, text):
        """A name in a rule is spelled exactly as the same name in a request, whatever its case."""
        try:
            canonical = destination(text)
        except ValueError:
            return
        asked = text.removeprefix(".") if canonical.startswith(".") else text
        self.assertEqual(canonical.removeprefix("."), Destination.parse(asked, 80).host)


class ServerTests(ValuesTestCase):
    def test_servers(self):
        """A DNS server is an address, with its port if that is not 53."""
        good = {
            "10.0.0.2": (IPv4Address("10.0.0.2"), 53),
            "10.0.0.3:5353": (IPv4Address("10.0.0.3"), 5353),
            "[::1]:53": (IPv6Address("::1"), 53),
            "[2001:db8::53]": (IPv6Address("2001:db8::53"), 53),
            "2001:db8::53": (IPv6Address("2001:db8::53"), 53),
        }
        fix = "is not a server address; write 10.0.0.2, 10.0.0.2:5353 or [::1]:53"
        refused = ("", "dns.example", "10.0.0.2:0", "10.0.0.2:70000", "10.0.0.2:", "[::1", "[]:53", "10.0.0.256")
        self.check(server, good, {text: f'"{text}" {fix}' for text in refused})
