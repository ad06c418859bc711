"""How the values in an ini file are spelled: durations, sizes, ports, networks, destinations.

Every reader takes the text and gives the value, or raises ``ValueError`` with what is wrong and how to put it right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

from proxyd.errors import ProxyError
from proxyd.request import Destination, IPAddress

T = TypeVar("T")
N = TypeVar("N", int, float)
Read = Callable[[str], T]

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?\Z")
_SIZE = re.compile(r"([0-9]{1,15})([kMG])?\Z", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_SERVER = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:]*))(?::(?P<port>[0-9]{1,5}))?\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 §5.6.2
_PSEUDONYM = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?::[0-9]{1,5})?\Z")  # received-by, RFC 9110 §7.6.3
_QUOTABLE = re.compile(r'[^"\\\x00-\x1f\x7f-\U0010ffff]+\Z')

_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

DNS_PORT = 53
ALL_PORTS = range(1, 65536)


def suggestion(word: str, known: Collection[str]) -> str:
    """The fix for a word that is not one of those known."""
    close = difflib.get_close_matches(word.lower(), sorted(known), n=1)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"known: {', '.join(sorted(known))}" if known else "there is none"


def duration(text: str) -> float:
    """Seconds, from ``10s``, ``250ms``, ``5m``, ``1h``, ``2d`` or a bare number."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f'"{text}" is not a duration; write 250ms, 10s, 5m, 1h or 2d')
    number, unit = match.groups()
    # Decimal fractions of a second come out as the literal would: 0.25, not 0.25000000000000006.
    return float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit]


def size(text: str) -> int:
    """Bytes, from ``64k``, ``8M``, ``1G`` (powers of 1024) or a bare number."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f'"{text}" is not a size; write bytes, or 64k, 8M, 1G')
    number, unit = match.groups("")
    return int(number) * _BYTES[unit.lower()]


def number(text: str) -> int:
    """A whole number."""
    if not _NUMBER.match(text):
        raise ValueError(f'"{text}" is not a number; write digits only')
    return int(text)


def within(read: Read[N], least: str, most: str) -> Read[N]:
    """A reader that refuses what is less or more than two limits, given in its own spelling."""

    def read_within(text: str) -> N:
        value = read(text)
        if not read(least) <= value <= read(most):
            raise ValueError(f'"{text}" is out of range; write something from {least} to {most}')
        return value

    return read_within


def or_word(word: str, value: T, read: Read[T]) -> Read[T]:
    """A reader that also takes one word, for one value."""

    def read_or_word(text: str) -> T:
        if text == word:
            return value
        try:
            return read(text)
        except ValueError as error:
            raise ValueError(f"{error}, or {word}") from None

    return read_or_word


def one_of(known: Collection[str], noun: str) -> Read[str]:
    """A reader for a closed set of words."""

    def read_one(text: str) -> str:
        if text not in known:
            raise ValueError(f'there is no {noun} "{text}"; {suggestion(text, known)}')
        return text

    return read_one


def yes_no(text: str) -> bool:
    """``yes`` or ``no``."""
    if text not in ("yes", "no"):
        raise ValueError(f'"{text}" is neither yes nor no; write one of them')
    return text == "yes"


def token(text: str) -> str:
    """A name of letters, digits and a few signs, as HTTP methods are; these are upper-case throughout."""
    if not _TOKEN.match(text):
        raise ValueError(f'"{text}" is not a method; write GET, POST, CONNECT')
    if text != text.upper():
        raise ValueError(f'methods are told apart by case and "{text}" is none that is in use; write {text.upper()}')
    return text


def pseudonym(text: str) -> str:
    """A name for ``Via``: letters, digits, dots, dashes; or nothing, for the default one."""
    if text and not _PSEUDONYM.match(text):
        raise ValueError(f'"{text}" cannot stand in Via; write one word of letters, digits, dots and dashes')
    return text


def quotable(text: str) -> str:
    """Text that can stand between quotes in a header field."""
    if not _QUOTABLE.match(text):
        raise ValueError("it cannot stand in a header field; write plain ASCII without quotes and backslashes")
    return text


def ports(text: str) -> range:
    """Ports, from ``443``, ``8000-8100`` or ``*`` for all."""
    if text == "*":
        return ALL_PORTS
    match = _PORTS.match(text)
    if match is None:
        raise ValueError(f'"{text}" is not a port; write 443, 8000-8100 or *')
    first = int(match[1])
    last = int(match[2] or first)
    if not 0 < first <= last < 65536:
        raise ValueError(f'"{text}" is not a range of ports; they go from 1 to 65535, the lower one first')
    return range(first, last + 1)


def network(text: str) -> IPv4Network | IPv6Network:
    """A network in prefix notation, or one address."""
    try:
        meant = ip_network(text, strict=False)
        if "%" in text:
            raise ValueError  # a zone index: networks are the same behind every interface
    except ValueError:
        raise ValueError(f'"{text}" is not a network; write 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32') from None
    if ip_address(text.partition("/")[0]) != meant.network_address:
        raise ValueError(f'"{text}" has bits set behind its prefix; write {meant}')
    return meant


def destination(text: str) -> str:
    """A destination of a rule, canonical: a name, ``.example.com``, an address, a network, or ``*`` for everything."""
    if text == "*":
        return text
    if "://" in text:
        raise ValueError(f'"{text}" is a URL; write its host alone, and its port under ports')
    if "/" in text:
        return str(network(text))
    if text.startswith("*."):
        raise ValueError(f'"{text}" is not how a domain is written; write {text[1:]} for it and all its subdomains')
    if text.startswith("."):
        return _domain(text)
    try:
        return Destination.parse(text, 443).host
    except ProxyError as error:
        raise ValueError(_not_a_host(text, error)) from None


def _domain(text: str) -> str:
    try:
        parsed = Destination.parse(text[1:], 443)
    except ProxyError as error:
        raise ValueError(f'"{text}": {error.detail}; write .example.com for a domain and its subdomains') from None
    if parsed.address is not None:
        raise ValueError(f'"{text}" is not a domain; write addresses without the leading dot')
    return f".{parsed.host}"


def _not_a_host(text: str, error: ProxyError) -> str:
    try:
        host = Destination.parse_authority(text).host
    except ProxyError:
        return f'"{text}": {error.detail}; write a name, .example.com, an address, a network or *'
    return f'"{text}" names a port; write {host} here, and the port under ports'


def server(text: str) -> tuple[IPAddress, int]:
    """The address of a DNS server, with or without its port: ``10.0.0.2``, ``10.0.0.3:5353``, ``[::1]:53``, ``::1``."""
    match = _SERVER.match(text)
    host, port = (match["six"] or match["four"], match["port"]) if match else (text, None)
    try:
        address = ip_address(host)
        if not 0 < int(port or DNS_PORT) < 65536:
            raise ValueError
    except ValueError:
        raise ValueError(f'"{text}" is not a server address; write 10.0.0.2, 10.0.0.2:5353 or [::1]:53') from None
    return address, int(port or DNS_PORT)
