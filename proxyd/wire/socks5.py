"""The server's side of a SOCKS5 handshake: RFC 1928, with username and password of RFC 1929."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Destination, IPAddress

VERSION = 5
CREDENTIALS_VERSION = 1
UNSPECIFIED = IPv4Address(0)


class Method(enum.IntEnum):
    """The authentication methods of RFC 1928 §3 that a server can select here."""

    NO_AUTHENTICATION_REQUIRED = 0x00
    USERNAME_PASSWORD = 0x02
    NO_ACCEPTABLE_METHODS = 0xFF


class CommandCode(enum.IntEnum):
    """CMD of RFC 1928 §4."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(enum.IntEnum):
    """ATYP of RFC 1928 §5."""

    IPV4 = 1
    DOMAINNAME = 3
    IPV6 = 4


class Reply(enum.IntEnum):
    """The values of REP (RFC 1928 §6) that the codec itself chooses; the error table has the others."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class State(enum.Enum):
    """How far a handshake has come: the message that is expected, or whose answer is owed."""

    GREETING = "greeting"
    CREDENTIALS = "credentials"
    REQUEST = "request"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Greeting:
    """The methods a client offers; none at all is legal."""

    methods: frozenset[int]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client says to prove who it is, either of them perhaps empty."""

    name: bytes
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Command:
    """What a client asks for.

    ``destination`` is ``None`` only for a command other than CONNECT whose address is none to connect to, as
    the 0.0.0.0:0 of UDP ASSOCIATE.
    """

    command: int
    destination: Destination | None
    address_type: int


Message = Greeting | Credentials | Command
T = TypeVar("T")
Parsed = tuple[T, int] | None
"""A message and its length, or ``None`` where its end has not come yet."""


class Socks5Server:
    """One handshake as the server sees it: bytes in, messages out, and the bytes of each answer.

    After a message nothing more is parsed until it is answered; ``feed(b"")`` then goes on with bytes that came
    early. What comes behind the command stays in ``unread``, and it is the caller who bounds it, by reading no more.
    """

    def __init__(self) -> None:
        self.state = State.GREETING
        self._parse: Callable[[bytearray], Parsed[Message]] | None = _greeting
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes, split anywhere; return the message that they complete, if they do.

        Raises:
            ProxyError: The message is malformed; ``refuse(error.reply)`` is the answer. Nothing is parsed after it.
        """
        self._buffer += data
        parse, self._parse = self._parse, None
        if parse is None:
            return []
        parsed = parse(self._buffer)
        if parsed is None:
            self._parse = parse
            return []
        message, length = parsed
        del self._buffer[:length]
        if isinstance(message, Command):
            self.state = State.DONE
        return [message]

    @property
    def unread(self) -> bytes:
        """The bytes that belong to no message yet: behind a command, early data for the tunnel."""
        return bytes(self._buffer)

    def select(self, method: int) -> bytes:
        """Answer the greeting with one of ``Method`` (RFC 1928 §3); that decides what the client sends next."""
        if method == Method.USERNAME_PASSWORD:
            self.state, self._parse = State.CREDENTIALS, _credentials
        elif method == Method.NO_AUTHENTICATION_REQUIRED:
            self.state, self._parse = State.REQUEST, _command
        else:
            self.state, method = State.DONE, Method.NO_ACCEPTABLE_METHODS
        return bytes((VERSION, method))

    def verdict(self, accepted: bool) -> bytes:
        """Answer the credentials (RFC 1929 §2); after a refusal the connection must be closed."""
        if accepted:
            self.state, self._parse = State.REQUEST, _command
        else:
            self.state = State.DONE
        return bytes((CREDENTIALS_VERSION, 0 if accepted else 1))

    def reply(self, code: int, bound: IPAddress | None = None, port: int = 0) -> bytes:
        """Answer the command (RFC 1928 §6); clients read BND.ADDR of a refusal too, so it is always there."""
        address = UNSPECIFIED if bound is None else bound
        address_type = AddressType.IPV4 if address.version == 4 else AddressType.IPV6
        return bytes((VERSION, code, 0, address_type)) + address.packed + port.to_bytes(2, "big")

    def refuse(self, code: int) -> bytes:
        """The last bytes for a client whose handshake failed, in the words of the message it waits an answer to.

        They are none where it has not even greeted in SOCKS5.
        """
        if self.state is State.GREETING:
            return b""
        if self.state is State.CREDENTIALS:
            return self.verdict(False)
        return self.reply(code)


def _greeting(data: bytearray) -> Parsed[Greeting]:
    """VER, NMETHODS, METHODS (RFC 1928 §3)."""
    _check_version(data, VERSION)
    if len(data) < 2 or len(data) < (end := 2 + data[1]):
        return None
    return Greeting(frozenset(data[2:end])), end


def _credentials(data: bytearray) -> Parsed[Credentials]:
    """VER, ULEN, UNAME, PLEN, PASSWD (RFC 1929 §2)."""
    _check_version(data, CREDENTIALS_VERSION)
    if len(data) < 2 or len(data) <= (middle := 2 + data[1]):
        return None
    end = middle + 1 + data[middle]
    if len(data) < end:
        return None
    return Credentials(bytes(data[2:middle]), bytes(data[middle + 1 : end])), end


def _command(data: bytearray) -> Parsed[Command]:
    """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (RFC 1928 §4)."""
    _check_version(data, VERSION)
    if len(data) < 4:
        return None
    _, command, reserved, address_type = data[:4]
    if reserved:
        raise _malformed("the reserved byte of the SOCKS request is not zero")
    start, end = _address_span(data, command, address_type)
    if len(data) < end + 2:
        return None
    port = int.from_bytes(data[end : end + 2], "big")
    try:
        destination = _destination(address_type, bytes(data[start:end]), port)
    except ProxyError:
        if command == CommandCode.CONNECT:
            raise
        destination = None  # the caller refuses the command, whatever its address
    return Command(command, destination, address_type), end + 2


def _address_span(data: bytearray, command: int, address_type: int) -> tuple[int, int]:
    if address_type == AddressType.IPV4:
        return 4, 8
    if address_type == AddressType.IPV6:
        return 4, 20
    if address_type == AddressType.DOMAINNAME:
        return 5, 5 + (data[4] if len(data) > 4 else 1)
    # Where such a request ends cannot be known, so that its command is answered now or never.
    if command != CommandCode.CONNECT:
        raise _malformed("the SOCKS command is not supported", Reply.COMMAND_NOT_SUPPORTED)
    raise _malformed("the SOCKS address type is not supported", Reply.ADDRESS_TYPE_NOT_SUPPORTED)


def _destination(address_type: int, address: bytes, port: int) -> Destination:
    if address_type == AddressType.IPV4:
        return Destination.of_address(IPv4Address(address), port)
    if address_type == AddressType.IPV6:
        return Destination.of_address(IPv6Address(address), port)
    try:
        name = address.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("the host is neither ASCII nor UTF-8") from None
    return Destination.parse(name, port)


def _check_version(data: bytearray, expected: int) -> None:
    if data and data[0] != expected:
        raise _malformed(f"the SOCKS message begins with {data[0]}, not with version {expected}")


def _malformed(detail: str, reply: Reply = Reply.GENERAL_FAILURE) -> ProxyError:
    return ProxyError(ErrorType.HTTP_REQUEST_ERROR, detail, reply=reply)
