"""What a client asks for: the same few values whichever door it came through."""

from __future__ import annotations

import enum
import functools
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

import idna
import msgspec

from proxyd.errors import ErrorType, ProxyError

IPAddress = IPv4Address | IPv6Address

MAX_NAME_LENGTH = 253
"""Octets of a host name without its trailing dot (RFC 1035 §2.3.4: 255 on the wire)."""

_DIGITS = re.compile(r"[0-9]{1,5}\Z")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")


class Door(enum.Enum):
    """The way in that a client used: the protocol of its request."""

    FORWARD = "forward"
    CONNECT = "connect"
    SOCKS5 = "socks5"

    __hash__ = object.__hash__  # as members are equal only to themselves; enum's own is written in Python


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Who is asking, and how that was proven: ``basic``, ``socks5`` or ``certificate``."""

    name: str
    proof: str


@dataclass(frozen=True, slots=True)
class Destination:
    """The host and port a client names, canonicalised once.

    ``host`` is a lower-case A-label name without trailing dot, or the canonical text of an IP address;
    ``address`` is that address, or ``None`` for a name.
    """

    host: str
    port: int
    address: IPAddress | None
    authority: str = field(init=False, repr=False, compare=False)
    """``host:port``, with brackets around an IPv6 address."""

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        object.__setattr__(self, "authority", f"{host}:{self.port}")

    def host_field(self, default_port: int) -> str:
        """The value of ``Host``: the authority without the port that the scheme implies."""
        return self.authority.rpartition(":")[0] if self.port == default_port else self.authority

    @classmethod
    def parse(cls, host: str, port: int) -> Destination:
        """Canonicalise a host as the client spelled it: name, IPv4, or IPv6 with or without brackets.

        Raises:
            ProxyError: ``http_request_error`` for anything that is neither a host name nor a plain address.
        """
        return _parse(host, port)

    @classmethod
    def parse_authority(cls, authority: str, default_port: int | None = None) -> Destination:
        """Canonicalise ``host:port``; the port may be missing where ``default_port`` says what it then is.

        An IPv6 address without brackets is understood when a port follows it and no default is given, as
        some agents write it in CONNECT.

        Raises:
            ProxyError: ``http_request_error``, also for user information (``user@host``).
        """
        return _parse_authority(authority, default_port)

    @classmethod
    def of_address(cls, address: IPAddress, port: int) -> Destination:
        """The destination for a binary address, as SOCKS5 carries it.

        An IPv4-mapped address (RFC 4291 §2.5.5.2) is the IPv4 address: the kernel dials that one.

        Raises:
            ProxyError: ``http_request_error`` for port 0.
        """
        _check_port(port)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return cls(str(address), port, address)


def _refuse(detail: str) -> ProxyError:
    return ProxyError(ErrorType.HTTP_REQUEST_ERROR, detail)


def _check_port(port: int) -> None:
    if not 0 < port < 65536:
        raise _refuse("the port must be between 1 and 65535")


@functools.lru_cache(maxsize=4096)
def _parse(host: str, port: int) -> Destination:
    if host.startswith("[") and host.endswith("]"):
        return Destination.of_address(_ipv6(host[1:-1]), port)
    if ":" in host:
        return Destination.of_address(_ipv6(host), port)
    name = _canonical_name(host)
    if _NUMERIC_LABEL.match(name.rpartition(".")[2]):
        return Destination.of_address(_ipv4(host), port)
    _check_port(port)
    return Destination(name, port, None)


@functools.lru_cache(maxsize=4096)
def _parse_authority(authority: str, default_port: int | None) -> Destination:
    if "@" in authority:
        raise _refuse("user information in the authority is refused")
    host, colon, port = authority.rpartition(":")
    if not colon or (authority.startswith("[") and authority.endswith("]")):
        host, port = authority, ""
    elif not port and default_port is not None:
        pass  # RFC 3986 §3.2.3: an empty port is the default one
    elif not _DIGITS.match(port):
        raise _refuse("the port is not a number")
    if ":" in host and not host.startswith("[") and default_port is not None:
        raise _refuse("an IPv6 address needs brackets")
    if not port:
        if default_port is None:
            raise _refuse("the port is missing")
        return _parse(host, default_port)
    return _parse(host, int(port))


def _ipv6(text: str) -> IPv6Address:
    if "%" in text:
        raise _refuse("a zone index means nothing on another machine")
    try:
        return IPv6Address(text)
    except ValueError:
        raise _refuse("the host is neither a name nor an IPv6 address") from None


def _ipv4(host: str) -> IPv4Address:
    # What ends in a number is an address to getaddrinfo (127.1, 0x7f.1, 2130706433, full-width digits): only the
    # dotted quad as it was spelled, before any mapping, is one to us.
    try:
        return IPv4Address(host)
    except ValueError:
        raise _refuse("an IPv4 address must be four decimal numbers without leading zeros") from None


def _canonical_name(host: str) -> str:
    if len(host) > MAX_NAME_LENGTH + 1:
        raise _refuse("the host is too long")
    name = host
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            raise _refuse("the host is not a valid international name") from None
    name = name.lower()
    if name.endswith("."):
        name = name[:-1]
    if not name or len(name) > MAX_NAME_LENGTH or not all(map(_LABEL.match, name.split("."))):
        raise _refuse("the host is not a valid name")
    return name


class Request(msgspec.Struct, frozen=True, gc=False):
    """One thing a client asks for; what the policy decides on.

    ``method`` is the HTTP method, or ``CONNECT`` for SOCKS5 too: its command has that name.
    """

    listener: str
    door: Door
    client: IPAddress | None
    """``None`` for a client on a Unix socket."""
    client_port: int
    identity: Identity | None
    method: str
    destination: Destination


@functools.lru_cache(maxsize=4096)
def parse_ip(text: str) -> IPAddress | None:
    """The address that a socket's name shows, without its zone and as IPv4 where it is mapped; ``None`` for others."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
