"""Tests for proxyd.policy.index."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.policy.index import DestinationIndex, NetworkIndex, network_of


def index(*rules: str, alike: bool = False) -> DestinationIndex[int]:
    """An index of rules known by number, each given as its destinations with blanks between them."""
    listed = [(rule.split(), number) for number, rule in enumerate(rules)]
    return DestinationIndex(listed, alike=(lambda number: 0) if alike else (lambda number: number))


class NetworkOfTests(SynchronousTestCase):
    """Telling networks from names."""

    def test_networks(self) -> None:
        """An address is a network of one; a network is itself."""
        for text in ("192.0.2.1", "192.0.2.0/24", "2001:db8::1", "2001:db8::/32", "0.0.0.0/0", "::/0"):
            self.assertEqual(network_of(text), ip_network(text))

    def test_names(self) -> None:
        """A name is no network, even with digits in it."""
        for text in ("example.com", ".example.com", "1.2.3.example", ".7e", "localhost"):
            self.assertIsNone(network_of(text))

    def test_neither(self) -> None:
        """What looks like an address and is none is refused: as a name it would never match."""
        for text in ("192.0.2.1/24", "192.0.2", "192.0.2.0/33", "2001:db8:::", "example.com/24", "192.0.02.1"):
            self.assertRaises(ValueError, network_of, text)


class NetworkIndexTests(SynchronousTestCase):
    """Numbers filed under networks."""

    def test_every_prefix_length(self) -> None:
        """An address is found under every network that holds it, from /0 to its own length, and under no other."""
        networks = NetworkIndex()
        for length in range(33):
            networks.add(ip_network(("192.0.2.1", length), strict=False), length)
        self.assertEqual(networks.find(ip_address("192.0.2.1")), set(range(33)))
        self.assertEqual(networks.find(ip_address("192.0.2.0")), set(range(32)))
        self.assertEqual(networks.find(ip_address("64.0.0.0")), {0})

    def test_versions_apart(self) -> None:
        """An IPv4 network holds no IPv6 address, nor the other way round."""
        networks = NetworkIndex()
        networks.add(ip_network("0.0.0.0/0"), 4)
        networks.add(ip_network("::/0"), 6)
        self.assertEqual(networks.find(ip_address("0.0.0.1")), {4})
        self.assertEqual(networks.find(ip_address("::1")), {6})

    def test_mapped_address(self) -> None:
        """An IPv4-mapped address is found under IPv4 networks only."""
        networks = NetworkIndex()
        networks.add(ip_network("192.0.2.0/24"), 4)
        networks.add(ip_network("::/0"), 6)
        self.assertEqual(networks.find(ip_address("::ffff:192.0.2.1")), {4})

    def test_mapped_network(self) -> None:
        """A network of IPv4-mapped addresses is the IPv4 network."""
        networks = NetworkIndex()
        networks.add(ip_network("::ffff:192.0.2.0/120"), 1)
        self.assertEqual(networks.find(ip_address("192.0.2.255")), {1})
        self.assertEqual(networks.find(ip_address("::ffff:192.0.2.255")), {1})
        self.assertEqual(networks.find(ip_address("192.0.3.0")), set())


class DestinationIndexTests(SynchronousTestCase):
    """Rules found by destination."""

    def test_exact_name(self) -> None:
        """A name is found as it stands, and not for its subdomains."""
        rules = index("example.com", "www.example.com")
        self.assertEqual(rules.for_name("example.com"), ((0, True),))
        self.assertEqual(rules.for_name("www.example.com"), ((1, True),))
        self.assertEqual(rules.for_name("ftp.example.com"), ())

    def test_domain(self) -> None:
        """A domain is found for itself and for subdomains at any depth, and not for names that merely end alike."""
        rules = index(".example.com", ".com")
        for name in ("example.com", "www.example.com", "a.b.c.example.com"):
            self.assertEqual(rules.for_name(name), ((0, True), (1, True)), name)
        self.assertEqual(rules.for_name("badexample.com"), ((1, True),))
        self.assertEqual(rules.for_name("example.com.net"), ())

    def test_everything(self) -> None:
        """A rule for everything is found for every name and address, in its place among the others."""
        rules = index("example.com 8.8.8.8", "*", "other.example", ".com 8.8.8.0/24", "*")
        self.assertEqual(rules.for_name("example.com"), ((0, True), (1, True), (3, True), (4, True)))
        self.assertEqual(rules.for_address("other.example", ip_address("8.8.8.8")), (0, 1, 2, 3, 4))
        self.assertEqual(rules.for_address("another.example", ip_address("8.8.4.4")), (1, 4))

    def test_order(self) -> None:
        """Rules are found in order, however far apart they stand."""
        rules = index(*("*" if at == 34 else ".com 8.8.8.8" if at in (2, 33, 512) else ".net" for at in range(600)))
        self.assertEqual(rules.for_name("example.com"), ((2, True), (33, True), (34, True), (512, True)))
        self.assertEqual(rules.for_address("example.org", ip_address("8.8.8.8")), (2, 33, 34, 512))

    def test_unresolved(self) -> None:
        """A rule for addresses may match every name, as long as the name is not resolved."""
        rules = index("example.com", "192.0.2.0/24", "* 192.0.2.1", "2001:db8::1 example.com")
        self.assertEqual(rules.for_name("example.com"), ((0, True), (1, False), (2, True), (3, True)))
        self.assertEqual(rules.for_name("example.net"), ((1, False), (2, True), (3, False)))

    def test_alike(self) -> None:
        """Before a name is resolved the first of alike rules stands for all; one that lists the name stands apart."""
        rules = index("192.0.2.1", "192.0.2.2", "192.0.2.3 example.com", "192.0.2.4", alike=True)
        self.assertEqual(rules.for_name("example.net"), ((0, False),))
        self.assertEqual(rules.for_name("example.com"), ((0, False), (2, True)))
        self.assertEqual(rules.for_address("example.net", ip_address("192.0.2.4")), (3,))

    def test_name_and_address_together(self) -> None:
        """A rule that lists the name and the address is found once."""
        rules = index("example.com .com 192.0.2.1 192.0.2.0/24")
        self.assertEqual(rules.for_address("www.example.com", ip_address("192.0.2.1")), (0,))

    def test_addresses_match_no_suffix(self) -> None:
        """An address is no name: it is found by value, not by its text."""
        rules = index(".com", "10.0.0.1")
        self.assertEqual(rules.for_address("10.0.0.1", ip_address("10.0.0.1")), (1,))
        self.assertEqual(rules.for_address("10.0.0.1", ip_address("10.0.0.2")), ())

    @settings(deadline=None)
    @given(
        st.lists(st.integers(0, 32), max_size=20),
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 31), max_size=20),
    )
    def test_networks_like_a_scan(self, lengths: list[int], value: int, flips: list[int]) -> None:
        """The index finds the networks that a scan over all of them finds."""
        networks = [
            IPv4Network((value ^ 1 << flip, length), strict=False) for flip, length in zip(flips, lengths, strict=False)
        ]
        address = ip_address(value)
        found = index(*map(str, networks)).for_address("example.com", address)
        self.assertEqual(found, tuple(number for number, network in enumerate(networks) if address in network))
