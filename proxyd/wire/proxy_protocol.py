"""The header that a balancer puts before a connection to say whose it is (PROXY protocol, versions 1 and 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import IPAddress

V1_LIMIT: Final = 107
"""Octets of the longest version 1 header, CRLF included."""
V2_LIMIT: Final = 4096
"""Octets of the longest version 2 header that is read; addresses take 52, the rest are additions that we skip."""

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V1_ADDRESS: Final = rb"([0-9a-fA-F.:]+)"
_V1_PORT: Final = rb"(0|[1-9][0-9]{0,4})"
_V1_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|(TCP[46]) %b %b %b %b)\Z" % (_V1_ADDRESS, _V1_ADDRESS, _V1_PORT, _V1_PORT)
)
_V2_SOURCES: Final = {0x11: 4, 0x21: 16}
"""Octets of an address by family and transport: TCP over IPv4, TCP over IPv6."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who the balancer says is calling; no address for its own checks (``LOCAL``, ``UNKNOWN``) and other families."""

    address: IPAddress | None
    port: int
    size: int
    """Octets of the header."""


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the beginning of the bytes; ``None`` while its end is missing.

    Raises:
        ProxyError: the bytes do not begin with a header.
    """
    if data.startswith(_V2_SIGNATURE):
        return _version_2(data)
    if data.startswith(b"PROXY "):
        return _version_1(data)
    if _V2_SIGNATURE.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise _malformed()


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, V1_LIMIT)
    if end < 0:
        if len(data) >= V1_LIMIT:
            raise _malformed()
        return None
    match = _V1_LINE.match(data[:end])
    if match is None:
        raise _malformed()
    family, source, destination, port, destination_port = match.groups()
    if family is None:
        return ProxyHeader(None, 0, end + 2)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        address, _ = kind(source.decode("ascii")), kind(destination.decode("ascii"))
    except ValueError:
        raise _malformed() from None
    if int(port) > 65535 or int(destination_port) > 65535:
        raise _malformed()
    return ProxyHeader(_plain(address), int(port), end + 2)


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    version, command = data[12] >> 4, data[12] & 0x0F
    size = 16 + int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1 or size > V2_LIMIT:
        raise _malformed()
    if len(data) < size:
        return None
    source = _V2_SOURCES.get(data[13])
    if command == 0 or source is None:
        return ProxyHeader(None, 0, size)
    if size < 16 + 2 * source + 4:
        raise _malformed()
    packed = data[16 : 16 + source]
    address = IPv4Address(packed) if source == 4 else IPv6Address(packed)
    return ProxyHeader(_plain(address), int.from_bytes(data[16 + 2 * source : 18 + 2 * source], "big"), size)


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 client is the same to the policy whatever socket the balancer took it from (RFC 4291 §2.5.5.2)."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _malformed() -> ProxyError:
    return ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the connection does not begin with a PROXY protocol header")
