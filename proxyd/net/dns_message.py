"""What DNS messages say: a question for addresses, and the reply to it (RFC 1035, RFC 3596)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.names import dns

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import IPAddress

MAX_ALIASES = 8
"""CNAME records followed for one name; longer chains are mistakes or mischief."""

_CODES = {dns.EFORMAT: "FORMERR", dns.ESERVER: "SERVFAIL", dns.ENOTIMP: "NOTIMP", dns.EREFUSED: "REFUSED"}


class ServerFailed(ProxyError):
    """A server answered that it will not or cannot say: another server may."""

    def __init__(self, code: int) -> None:
        super().__init__(ErrorType.DNS_ERROR, f"the DNS server said {_CODES.get(code, f'RCODE {code}')}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server says of a name: its addresses, or that it has none of this family.

    ``exists`` is false for NXDOMAIN. ``alias`` is the name still to be asked for, when the server gave only a CNAME
    to it. ``ttl`` is that of the shortest-lived record used.
    """

    addresses: tuple[IPAddress, ...] = ()
    ttl: float = float("inf")
    exists: bool = True
    alias: bytes | None = None


class Question:
    """One question for the A or AAAA records of a name, with a random identifier."""

    def __init__(self, name: bytes, type: int) -> None:
        self._query = dns.Query(name, type)
        self._id = dns.randomSource()

    def encode(self) -> bytes:
        """The query message, recursion desired."""
        message = dns.Message(self._id, recDes=1)
        message.queries = [self._query]
        return message.toStr()

    def match(self, data: bytes) -> dns.Message | None:
        """The message, if it is well formed and replies to this very question; it may be truncated (``trunc``)."""
        message = dns.Message()
        try:
            message.fromStr(data)
        except (EOFError, ValueError):
            return None
        if not message.answer or message.id != self._id or len(message.queries) != 1:
            return None
        query = message.queries[0]
        asked = self._query
        if query.name != asked.name or query.type != asked.type or query.cls != dns.IN:
            return None
        answers = int.from_bytes(data[6:8], "big")
        return message if message.trunc or len(message.answers) == answers else None

    def read(self, message: dns.Message) -> Reply:
        """What a matching message says, its chain of CNAME records followed.

        Raises:
            ServerFailed: the server said neither yes nor no.
        """
        if message.rCode == dns.ENAME:
            return Reply(exists=False)
        if message.rCode != dns.OK:
            raise ServerFailed(message.rCode)
        asked = self._query.name.name.lower()
        name, ttl = _follow(asked, message.answers)
        found = [
            record
            for record in message.answers
            if record.type == self._query.type and record.cls == dns.IN and record.name.name.lower() == name
        ]
        if found:
            ttl = min(ttl, *(record.ttl for record in found))
            return Reply(tuple(dict.fromkeys(_address(record.payload) for record in found)), ttl)
        # RFC 2308 §2.2: with a SOA record the server says that there is nothing of this type at the chain's end.
        final = name == asked or any(record.type == dns.SOA for record in message.authority)
        return Reply(ttl=ttl, alias=None if final else name)


def _follow(name: bytes, records: list[dns.RRHeader]) -> tuple[bytes, float]:
    """The end of the chain of aliases that begins at a name, and the shortest TTL on the way."""
    aliases = {
        record.name.name.lower(): record for record in records if record.type == dns.CNAME and record.cls == dns.IN
    }
    ttl = float("inf")
    for _ in range(MAX_ALIASES):
        record = aliases.get(name)
        if record is None:
            break
        payload: Any = record.payload
        name = payload.name.name.lower()
        ttl = min(ttl, record.ttl)
    return name, ttl


def _address(payload: Any) -> IPAddress:
    return IPv4Address(payload.address) if isinstance(payload, dns.Record_A) else IPv6Address(payload.address)
