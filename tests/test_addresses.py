"""Tests for proxyd.policy.addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.policy.addresses import SPECIAL_BLOCKS, embedded_ipv4, plain, special_purpose

TABLE = {
    # Ordinary hosts
    "1.1.1.1": None,
    "8.8.8.8": None,
    "1.0.0.0": None,
    "223.255.255.255": None,
    "2000::": None,
    "2001:200::1": None,
    "2400:3200::1": None,
    "2606:4700:4700::1111": None,
    "3ffe:ffff:ffff::1": None,
    "3fff:1000::": None,
    # Metadata services
    "100.100.100.200": "metadata service",
    "169.254.169.254": "metadata service",
    "168.63.129.16": "metadata service",
    "fd00:ec2::254": "metadata service",
    # Their neighbours
    "100.100.100.201": "shared address space",
    "169.254.169.253": "link local",
    "168.63.129.17": None,
    "fd00:ec2::253": "unique local",
    # IPv4, at the edges of each block
    "0.0.0.0": "unspecified",
    "0.0.0.1": "this network",
    "0.255.255.255": "this network",
    "9.255.255.255": None,
    "10.0.0.0": "private use",
    "10.255.255.255": "private use",
    "11.0.0.0": None,
    "100.63.255.255": None,
    "100.64.0.0": "shared address space",
    "100.127.255.255": "shared address space",
    "100.128.0.0": None,
    "126.255.255.255": None,
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "128.0.0.0": None,
    "169.253.255.255": None,
    "169.254.0.0": "link local",
    "169.255.0.0": None,
    "172.15.255.255": None,
    "172.16.0.0": "private use",
    "172.31.255.255": "private use",
    "172.32.0.0": None,
    "191.255.255.255": None,
    "192.0.0.0": "IPv4 service continuity prefix",
    "192.0.0.8": "IPv4 dummy address",
    "192.0.0.9": "port control protocol anycast",
    "192.0.0.10": "TURN anycast",
    "192.0.0.11": "IETF protocol assignments",
    "192.0.0.170": "NAT64/DNS64 discovery",
    "192.0.0.171": "NAT64/DNS64 discovery",
    "192.0.1.0": None,
    "192.0.2.255": "documentation",
    "192.0.3.0": None,
    "192.31.196.1": "AS112",
    "192.52.193.1": "AMT",
    "192.88.99.1": "6to4 relay anycast",
    "192.88.99.2": "6a44 relay anycast",
    "192.167.255.255": None,
    "192.168.0.0": "private use",
    "192.168.255.255": "private use",
    "192.169.0.0": None,
    "192.175.48.42": "AS112",
    "198.17.255.255": None,
    "198.18.0.0": "benchmarking",
    "198.19.255.255": "benchmarking",
    "198.20.0.0": None,
    "198.51.100.1": "documentation",
    "203.0.113.255": "documentation",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.0": "reserved",
    "255.255.255.254": "reserved",
    "255.255.255.255": "limited broadcast",
    # IPv6
    "::": "unspecified",
    "::1": "loopback",
    "100::": "discard only",
    "100::ffff:ffff:ffff:ffff": "discard only",
    "100:0:0:1::1": "dummy prefix",
    "100:0:0:2::": "not global unicast",
    "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "not global unicast",
    "2001:1::1": "port control protocol anycast",
    "2001:1::2": "TURN anycast",
    "2001:1::3": "DNS-SD service registration anycast",
    "2001:1::4": "IETF protocol assignments",
    "2001:2::1": "benchmarking",
    "2001:3::1": "AMT",
    "2001:4:112::1": "AS112",
    "2001:10::1": "ORCHID",
    "2001:20::1": "ORCHIDv2",
    "2001:3f::1": "drone remote identification",
    "2001:1ff:ffff::1": "IETF protocol assignments",
    "2001:db7:ffff::1": None,
    "2001:db8::1": "documentation",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff": "documentation",
    "2001:db9::": None,
    "2620:4f:8000::1": "AS112",
    "3fff::1": "documentation",
    "3fff:fff:ffff::1": "documentation",
    "4000::1": "not global unicast",
    "5f00::1": "SRv6 segment identifiers",
    "5f01::1": "not global unicast",
    "fbff::1": "not global unicast",
    "fc00::": "unique local",
    "fdff:ffff::1": "unique local",
    "fe00::1": "not global unicast",
    "fe80::1": "link local",
    "febf:ffff::1": "link local",
    "fec0::1": "site local",
    "feff:ffff::1": "site local",
    "ff02::1": "multicast",
    "ff0e::1": "multicast",
    # IPv4 inside IPv6: the name says what the inner address is, if that is special
    "::127.0.0.1": "IPv4 embedded: loopback",
    "::8.8.8.8": "IPv4-compatible",
    "::ffff:127.0.0.1": "IPv4 embedded: loopback",
    "::ffff:169.254.169.254": "IPv4 embedded: metadata service",
    "::ffff:8.8.8.8": "IPv4-mapped",
    "::ffff:0:10.0.0.1": "IPv4 embedded: private use",
    "::ffff:0:8.8.8.8": "IPv4-translated",
    "64:ff9b::10.0.0.1": "IPv4 embedded: private use",
    "64:ff9b::100.100.100.200": "IPv4 embedded: metadata service",
    "64:ff9b::8.8.8.8": "IPv4/IPv6 translation",
    "64:ff9b:1::192.168.0.1": "IPv4 embedded: private use",
    "64:ff9b:1:ffff::8.8.8.8": "IPv4/IPv6 translation",
    "2002:7f00:1::1": "IPv4 embedded: loopback",
    "2002:a9fe:a9fe::": "IPv4 embedded: metadata service",
    "2002:808:808::1": "6to4",
    "2001:0:4136:e378:8000:63bf:80ff:fffe": "IPv4 embedded: loopback",
    "2001:0:4136:e378:8000:63bf:f7f7:f7f7": "Teredo",
    "2400:3200::5efe:10.0.0.1": "IPv4 embedded: private use",
    "2400:3200::200:5efe:127.0.0.1": "IPv4 embedded: loopback",
    "2400:3200::200:5efe:8.8.8.8": None,
    "2400:3200::300:5efe:127.0.0.1": None,
}

ipv4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
special_ipv4_addresses = st.sampled_from([text for text in SPECIAL_BLOCKS if ":" not in text]).flatmap(
    lambda text: st.integers(int(ip_network(text)[0]), int(ip_network(text)[-1])).map(IPv4Address)
)
ipv6_addresses = st.integers(0, 2**128 - 1).map(IPv6Address)


class SpecialPurposeTests(SynchronousTestCase):
    """The table of special-purpose addresses."""

    def test_table(self) -> None:
        """Each address has the name of the most specific block that holds it, or none if it is global unicast."""
        self.assertEqual({text: special_purpose(ip_address(text)) for text in TABLE}, TABLE)

    def test_every_block_is_covered(self) -> None:
        """The first and the last address of every block are special."""
        for text in SPECIAL_BLOCKS:
            for address in (ip_network(text)[0], ip_network(text)[-1]):
                self.assertIsNotNone(special_purpose(address), address)

    @settings(deadline=None)
    @given(st.integers(0, 2**128 - 1).filter(lambda value: value >> 125 != 1).map(IPv6Address))
    def test_ipv6_outside_global_unicast(self, address: IPv6Address) -> None:
        """Whatever is not in 2000::/3 is special."""
        self.assertIsNotNone(special_purpose(address))

    @settings(deadline=None)
    @given(special_ipv4_addresses, st.integers(0, 2**64 - 1))
    def test_special_ipv4_in_every_embedding(self, inner: IPv4Address, other: int) -> None:
        """A special IPv4 address stays special in every form that IPv6 gives it."""
        value = int(inner)
        forms = {
            "mapped": 0xFFFF << 32 | value,
            "translated": 0xFFFF0000 << 32 | value,
            "NAT64": 0x64FF9B << 96 | value,
            "local NAT64": 0x64FF9B0001 << 80 | (other & 0xFFFF) << 64 | value,
            "6to4": 0x2002 << 112 | value << 80 | other,
            "Teredo": 0x20010000 << 96 | (other & 0xFFFFFFFF) << 64 | value ^ 0xFFFFFFFF,
            "ISATAP": (0x2400 << 48 | other >> 16) << 64 | 0x5EFE << 32 | value,
        }
        for form, number in forms.items():
            address = IPv6Address(number)
            self.assertEqual(embedded_ipv4(address), inner, form)
            self.assertEqual(special_purpose(address), f"IPv4 embedded: {special_purpose(inner)}", form)

    @settings(deadline=None)
    @given(ipv4_addresses | ipv6_addresses | special_ipv4_addresses)
    def test_knows_what_the_standard_library_knows(self, address: IPv4Address | IPv6Address) -> None:
        """No address that the standard library calls private, reserved or multicast passes for an ordinary one."""
        if address.is_private or address.is_reserved or address.is_multicast or address.is_link_local:
            self.assertIsNotNone(special_purpose(address))


class EmbeddedIPv4Tests(SynchronousTestCase):
    """Reading the IPv4 address out of an IPv6 address."""

    def test_examples(self) -> None:
        """The examples of the RFCs give the addresses that stand there."""
        examples = {
            "::13.1.68.3": "13.1.68.3",  # RFC 4291 §2.2
            "::FFFF:129.144.52.38": "129.144.52.38",  # RFC 4291 §2.2
            "64:ff9b::192.0.2.33": "192.0.2.33",  # RFC 6052 §2.4
            "2002:c000:0204::1": "192.0.2.4",  # RFC 3056 §2
            "fe80::5efe:10.40.1.29": "10.40.1.29",  # RFC 5214 §6.1
            "2001:0:4136:e378:8000:63bf:3fff:fdd2": "192.0.2.45",  # RFC 4380 §4
        }
        for text, inner in examples.items():
            self.assertEqual(embedded_ipv4(IPv6Address(text)), IPv4Address(inner), text)

    def test_none_inside(self) -> None:
        """Neither an IPv4 address, nor ::, ::1 or an ordinary IPv6 address has another inside."""
        for text in ("127.0.0.1", "::", "::1", "2400:3200::1", "fe80::1"):
            self.assertIsNone(embedded_ipv4(ip_address(text)), text)


class PlainTests(SynchronousTestCase):
    """The address that the kernel dials."""

    def test_mapped(self) -> None:
        """An IPv4-mapped address is the IPv4 address, 0.0.0.0 too."""
        self.assertEqual(plain(IPv6Address("::ffff:192.0.2.1")), IPv4Address("192.0.2.1"))
        self.assertEqual(plain(IPv6Address("::ffff:0.0.0.0")), IPv4Address("0.0.0.0"))

    def test_others(self) -> None:
        """Every other address is itself."""
        for text in ("192.0.2.1", "::192.0.2.1", "2001:db8::1"):
            self.assertEqual(plain(ip_address(text)), ip_address(text))
