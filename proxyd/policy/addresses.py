"""Which IP addresses are not ordinary hosts of the Internet, by the IANA special-purpose address registries."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import NamedTuple

from proxyd.request import IPAddress

# The standard library's is_private and is_global change between Python releases (CVE-2024-4032), so the table is ours.
# Blocks that IANA calls globally reachable (AS112, AMT, anycast) stand here too: no egress client has business there.
SPECIAL_BLOCKS = {
    # Metadata services of cloud vendors: whoever reaches one can become the machine.
    "100.100.100.200/32": "metadata service",  # Aliyun, inside the shared address space
    "169.254.169.254/32": "metadata service",  # AWS, Azure, GCP, inside link local
    "168.63.129.16/32": "metadata service",  # Azure's wire server, a global address
    "fd00:ec2::254/128": "metadata service",  # AWS, inside unique local
    # IANA IPv4 Special-Purpose Address Registry
    "0.0.0.0/8": "this network",  # RFC 791 §3.2
    "0.0.0.0/32": "unspecified",  # RFC 1122 §3.2.1.3; connecting to it reaches the machine itself
    "10.0.0.0/8": "private use",  # RFC 1918
    "100.64.0.0/10": "shared address space",  # RFC 6598
    "127.0.0.0/8": "loopback",  # RFC 1122 §3.2.1.3
    "169.254.0.0/16": "link local",  # RFC 3927
    "172.16.0.0/12": "private use",  # RFC 1918
    "192.0.0.0/24": "IETF protocol assignments",  # RFC 6890 §2.1
    "192.0.0.0/29": "IPv4 service continuity prefix",  # RFC 7335
    "192.0.0.8/32": "IPv4 dummy address",  # RFC 7600
    "192.0.0.9/32": "port control protocol anycast",  # RFC 7723
    "192.0.0.10/32": "TURN anycast",  # RFC 8155
    "192.0.0.170/32": "NAT64/DNS64 discovery",  # RFC 8880, RFC 7050 §2.2
    "192.0.0.171/32": "NAT64/DNS64 discovery",  # RFC 8880, RFC 7050 §2.2
    "192.0.2.0/24": "documentation",  # RFC 5737, TEST-NET-1
    "192.31.196.0/24": "AS112",  # RFC 7535
    "192.52.193.0/24": "AMT",  # RFC 7450
    "192.88.99.0/24": "6to4 relay anycast",  # RFC 7526
    "192.88.99.2/32": "6a44 relay anycast",  # RFC 6751
    "192.168.0.0/16": "private use",  # RFC 1918
    "192.175.48.0/24": "AS112",  # RFC 7534
    "198.18.0.0/15": "benchmarking",  # RFC 2544
    "198.51.100.0/24": "documentation",  # RFC 5737, TEST-NET-2
    "203.0.113.0/24": "documentation",  # RFC 5737, TEST-NET-3
    "240.0.0.0/4": "reserved",  # RFC 1112 §4
    "255.255.255.255/32": "limited broadcast",  # RFC 919 §7, RFC 8190
    # IANA IPv4 Multicast Address Space Registry
    "224.0.0.0/4": "multicast",  # RFC 5771
    # IANA IPv6 Special-Purpose Address Registry
    "::/128": "unspecified",  # RFC 4291 §2.5.2
    "::1/128": "loopback",  # RFC 4291 §2.5.3
    "::ffff:0:0/96": "IPv4-mapped",  # RFC 4291 §2.5.5.2
    "64:ff9b::/96": "IPv4/IPv6 translation",  # RFC 6052
    "64:ff9b:1::/48": "IPv4/IPv6 translation",  # RFC 8215
    "100::/64": "discard only",  # RFC 6666
    "100:0:0:1::/64": "dummy prefix",  # RFC 9780
    "2001::/23": "IETF protocol assignments",  # RFC 2928
    "2001::/32": "Teredo",  # RFC 4380, RFC 8190
    "2001:1::1/128": "port control protocol anycast",  # RFC 7723
    "2001:1::2/128": "TURN anycast",  # RFC 8155
    "2001:1::3/128": "DNS-SD service registration anycast",  # RFC 9665
    "2001:2::/48": "benchmarking",  # RFC 5180
    "2001:3::/32": "AMT",  # RFC 7450
    "2001:4:112::/48": "AS112",  # RFC 7535
    "2001:10::/28": "ORCHID",  # RFC 4843
    "2001:20::/28": "ORCHIDv2",  # RFC 7343
    "2001:30::/28": "drone remote identification",  # RFC 9374
    "2001:db8::/32": "documentation",  # RFC 3849
    "2002::/16": "6to4",  # RFC 3056
    "2620:4f:8000::/48": "AS112",  # RFC 7534
    "3fff::/20": "documentation",  # RFC 9637
    "5f00::/16": "SRv6 segment identifiers",  # RFC 9602
    "fc00::/7": "unique local",  # RFC 4193, RFC 8190
    "fe80::/10": "link local",  # RFC 4291 §2.5.6
    # IANA IPv6 Address Space: what the registry above leaves out
    "::/96": "IPv4-compatible",  # RFC 4291 §2.5.5.1, deprecated
    "::ffff:0:0:0/96": "IPv4-translated",  # RFC 2765 §2.1, obsolete
    "fec0::/10": "site local",  # RFC 3879, deprecated
    "ff00::/8": "multicast",  # RFC 4291 §2.7
}
"""Every special-purpose block with its name; of overlapping ones the most specific names the address."""

NOT_GLOBAL_UNICAST = "not global unicast"
"""All of IPv6 outside 2000::/3 that has no name above: IANA has delegated nothing there."""


class _Block(NamedTuple):
    shift: int
    prefix: int
    name: str


def _blocks(version: int) -> list[_Block]:
    """The blocks of one IP version, the most specific first."""
    blocks = []
    for text, name in SPECIAL_BLOCKS.items():
        network = ip_network(text)
        if network.version == version:
            shift = network.max_prefixlen - network.prefixlen
            blocks.append(_Block(shift, int(network[0]) >> shift, name))
    return sorted(blocks)


_IPV4_BLOCKS = _blocks(4)
_IPV6_BLOCKS = _blocks(6)


def _name(blocks: Iterable[_Block], value: int) -> str | None:
    return next((block.name for block in blocks if value >> block.shift == block.prefix), None)


@functools.lru_cache(maxsize=4096)
def special_purpose(address: IPAddress) -> str | None:
    """The name of the special-purpose block that holds the address, or ``None`` for a global unicast address.

    An IPv6 address that leads to a special IPv4 address is as special as that one, also where its own prefix is global.
    """
    value = int(address)
    if isinstance(address, IPv4Address):
        return _name(_IPV4_BLOCKS, value)
    inner = embedded_ipv4(address)
    embedded = inner and special_purpose(inner)
    if embedded:
        return f"IPv4 embedded: {embedded}"
    return _name(_IPV6_BLOCKS, value) or (None if value >> 125 == 0b001 else NOT_GLOBAL_UNICAST)


def plain(address: IPAddress) -> IPAddress:
    """The address, or the IPv4 address that an IPv4-mapped one (::ffff:0:0/96) is to the kernel."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


_LAST_32_BITS = frozenset(
    (
        0,  # IPv4-compatible ::/96, RFC 4291 §2.5.5.1
        0xFFFF,  # IPv4-mapped ::ffff:0:0/96, RFC 4291 §2.5.5.2
        0xFFFF0000,  # IPv4-translated ::ffff:0:0:0/96, RFC 2765 §2.1
        0x0064FF9B << 64,  # NAT64 64:ff9b::/96, RFC 6052 §2.1
    )
)
_LOCAL_NAT64 = 0x0064FF9B0001  # 64:ff9b:1::/48, RFC 8215; a translator uses a /96 of it (RFC 6052 §2.2)
_TEREDO = 0x20010000  # 2001::/32, RFC 4380 §4: the client's address, every bit inverted
_6TO4 = 0x2002  # 2002::/16, RFC 3056 §2: the address follows the prefix
_ISATAP = frozenset((0x00005EFE, 0x02005EFE))  # interface identifiers in any prefix, RFC 5214 §6.1


def embedded_ipv4(address: IPAddress) -> IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end up at, where a transition mechanism puts one into it."""
    if isinstance(address, IPv4Address):
        return None
    value = int(address)
    if value <= 1:
        return None  # :: and ::1 are not IPv4-compatible, RFC 4291 §2.5.2 and §2.5.3
    if value >> 112 == _6TO4:
        return IPv4Address(value >> 80 & 0xFFFFFFFF)
    if value >> 96 == _TEREDO:
        return IPv4Address(~value & 0xFFFFFFFF)
    if value >> 32 in _LAST_32_BITS or value >> 80 == _LOCAL_NAT64 or value >> 32 & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(value & 0xFFFFFFFF)
    return None
