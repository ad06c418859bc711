"""Heads of HTTP/1.1 messages: found, parsed strictly, and written (RFC 9112 §2 to §5)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

import msgspec

from proxyd.errors import ErrorType, ProxyError

Field = tuple[bytes, bytes]
"""A field line: the name as received, the value without the blanks around it."""

Version = tuple[int, int]

HTTP_1_0: Final[Version] = (1, 0)
HTTP_1_1: Final[Version] = (1, 1)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How much of a head is read before it is refused."""

    size: int
    """Octets of the whole head, from the first of the start line to the end of the empty line."""
    fields: int
    start_line: int
    """Octets without CRLF; RFC 9112 §3 recommends at least 8000."""


HEAD_LIMITS: Final = HeadLimits(size=65536, fields=200, start_line=16384)


class FieldNames:
    """The names of a head's fields, and what follows from them alone; worked out once for those that often come."""

    __slots__ = ("_selectors", "at", "in_order")

    def __init__(self, in_order: tuple[bytes, ...]) -> None:
        self.in_order = in_order
        """In lower case."""
        self.at: dict[bytes, list[int]] = {}
        """Where in the head the fields of each name are."""
        for position, name in enumerate(in_order):
            self.at.setdefault(name, []).append(position)
        self._selectors: dict[frozenset[bytes], Selector] = {}

    def all_but(self, left_out: frozenset[bytes]) -> Selector:
        """What picks the fields of all names but these few, which are remembered."""
        selector = self._selectors.get(left_out)
        if selector is None:
            selector = _selector([at for at, name in enumerate(self.in_order) if name not in left_out])
            if len(self._selectors) == _MAX_SELECTORS:
                self._selectors.clear()
            self._selectors[left_out] = selector
        return selector


Selector = Callable[[Sequence[Field]], Sequence[Field]]


def _selector(positions: list[int]) -> Selector:
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda fields: [fields[at] for at in positions]


class Head(msgspec.Struct, gc=False):
    """What a request head and a response head have in common. Nobody changes it."""

    version: Version
    fields: list[Field]
    names: FieldNames
    size: int
    """Octets that were read for it, with the empty line that ends it."""

    def get(self, name: bytes) -> list[bytes]:
        """All values of the field with this lower-case name, in order."""
        places = self.names.at.get(name)
        if places is None:
            return []
        fields = self.fields
        return [fields[at][1] for at in places]

    def tokens(self, name: bytes) -> Sequence[bytes]:
        """The members, in lower case, of the comma-separated list that all lines of this name make up."""
        return _members(b",".join(self.get(name))) if name in self.names.at else ()


class RequestHead(Head, gc=False):
    """The head of one request."""

    method: bytes
    target: bytes


class ResponseHead(Head, gc=False):
    """The head of one response, final or interim."""

    status: int
    reason: bytes


def _members(value: bytes) -> tuple[bytes, ...]:
    return (_kept_members if len(value) <= _MAX_LIST_KEPT else _split_members)(value)


def _split_members(value: bytes) -> tuple[bytes, ...]:
    return tuple(member for member in map(bytes.strip, value.lower().split(b",")) if member)


_MAX_LIST_KEPT = 64
_kept_members = functools.lru_cache(maxsize=256)(_split_members)


_REQUEST: Final = ErrorType.HTTP_REQUEST_ERROR
_RESPONSE: Final = ErrorType.HTTP_PROTOCOL_ERROR

_TCHAR = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
# HTAB, blank, visible ASCII and obs-text: all that may stand between two CRLFs.
_TEXT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_TOKEN = re.compile(_TCHAR + rb"+\Z")
# A fragment is no part of a request-target (RFC 9112 §3.2): "#" is left out.
_REQUEST_LINE = re.compile(rb"(" + _TCHAR + rb"+) ([!\"$-~]+) HTTP/1\.([01])\Z")
_OTHER_VERSION = re.compile(_TCHAR + rb"+ [!-~]+ HTTP/[0-9]\.[0-9]\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?\Z")
_STATUS_LINE_BEGINS = b"HTTP/1."
_VERSIONS: Final = {b"0": HTTP_1_0, b"1": HTTP_1_1}

# RFC 9110 §7.2: uri-host [ ":" port ]. A comma would be a name's right, but is two Hosts made into one.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?\Z")
# Some agents write an IPv6 address without brackets in CONNECT, where Host is read by nobody.
_BARE_IPV6 = re.compile(rb"[0-9A-Fa-f:]+:[0-9A-Fa-f.]*:[0-9]+\Z")

_NOT_TEXT = "the head has a control character, or CR or LF alone"


def _too_large(error: ErrorType, status: int, detail: str) -> ProxyError:
    return ProxyError(error, detail, status=status if error is _REQUEST else None)


def find_head(buffer: bytes | bytearray, limits: HeadLimits, start: int = 0, error: ErrorType = _REQUEST) -> int:
    """The length of the head that the buffer begins with, or 0 as long as its end is missing.

    Args:
        start: how much of the buffer an earlier call has seen; what trickles in is looked at once.
        error: ``http_request_error`` where requests are read, ``http_protocol_error`` where responses are.

    Raises:
        ProxyError: when the head passes a limit, or when what there is of it can never become a head.
    """
    begin = _empty_lines(buffer) if error is _REQUEST else 0
    end = buffer.find(b"\r\n\r\n", max(begin, start - 3), limits.size)
    if end >= 0:
        return end + 4
    _check_beginning(buffer, begin, limits, start, error)
    return 0


def _empty_lines(buffer: bytes | bytearray) -> int:
    """The length of the empty lines before a request line; RFC 9112 §2.2 wants one ignored, here it is two."""
    if not buffer.startswith(b"\r\n"):
        return 0
    return 4 if buffer.startswith(b"\r\n", 2) else 2


def _check_beginning(buffer: bytes | bytearray, begin: int, limits: HeadLimits, start: int, error: ErrorType) -> None:
    line_end = buffer.find(b"\n", begin, begin + limits.start_line + 2)
    if line_end < 0 and len(buffer) >= begin + limits.start_line + 2:
        raise _too_large(error, 414, "the start line is too long")
    if len(buffer) >= limits.size:
        raise _too_large(error, 431, "the head is too large")
    _check_text(buffer, start, error)
    if line_end < 0:
        _check_first_bytes(buffer, begin, error)
    elif line_end >= start:
        read = _request_line if error is _REQUEST else _status_line
        read(bytes(buffer[begin : line_end - 1]), limits)


def _check_text(buffer: bytes | bytearray, start: int, error: ErrorType) -> None:
    """Of what is new in the buffer, all but text must be CRLFs; a last CR may still become one."""
    unseen = buffer[start - 1 :] if start and buffer[start - 1] == 0x0D else buffer[start:]
    if len(unseen.translate(None, _TEXT)) - unseen.endswith(b"\r") != 2 * unseen.count(b"\r\n"):
        raise ProxyError(error, _NOT_TEXT)


def _check_first_bytes(buffer: bytes | bytearray, begin: int, error: ErrorType) -> None:
    first = bytes(buffer[begin : begin + len(_STATUS_LINE_BEGINS)])
    if error is _RESPONSE:
        if not _STATUS_LINE_BEGINS.startswith(first):
            raise ProxyError(error, "the status line is malformed")
    elif first and not _TOKEN.match(first[:1]) and not (first == b"\r" and begin < 4):
        raise ProxyError(error, "the request line is malformed")


def parse_request_head(data: bytes, limits: HeadLimits) -> RequestHead:
    """Parse exactly one request head, as ``find_head`` measured it.

    Raises:
        ProxyError: ``http_request_error``, with the status 400, 414, 431 or 505.
    """
    line, _, section = data[_empty_lines(data) :].partition(b"\r\n")
    method, target, version = _request_line(line, limits)
    fields, names = parse_fields(section, limits, _REQUEST)
    head = RequestHead(version, fields, names, len(data), method, target)
    _check_host(head)
    return head


def parse_response_head(data: bytes, limits: HeadLimits) -> ResponseHead:
    """Parse exactly one response head.

    Raises:
        ProxyError: ``http_protocol_error``.
    """
    line, _, section = data.partition(b"\r\n")
    version, status, reason = _status_line(line, limits)
    fields, names = parse_fields(section, limits, _RESPONSE)
    return ResponseHead(version, fields, names, len(data), status, reason)


def _request_line(line: bytes, limits: HeadLimits) -> tuple[bytes, bytes, Version]:
    if len(line) > limits.start_line:
        raise _too_large(_REQUEST, 414, "the start line is too long")
    match = _REQUEST_LINE.match(line)
    if match is None:
        if _OTHER_VERSION.match(line) and not line.endswith((b"/1.0", b"/1.1")):
            raise ProxyError(_REQUEST, "only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
        raise ProxyError(_REQUEST, "the request line is malformed")
    method, target, minor = match.groups()
    return method, target, _VERSIONS[minor]


def _status_line(line: bytes, limits: HeadLimits) -> tuple[Version, int, bytes]:
    if len(line) > limits.start_line:
        raise _too_large(_RESPONSE, 414, "the start line is too long")
    match = _STATUS_LINE.match(line)
    if match is None:
        raise ProxyError(_RESPONSE, "the status line is malformed")
    minor, status, reason = match.groups(b"")
    return _VERSIONS[minor], int(status), reason


_MAX_KEPT = 1024
_MAX_NAME_KEPT = 64
_MAX_LINE_KEPT = 128
_lower_names: dict[bytes, bytes] = {}
"""A bounded cache: names that were found to be tokens, with their lower-case form."""
_REPEATED = frozenset(
    b"accept accept-encoding cache-control connection content-length content-type expect host proxy-connection server"
    b" user-agent x-log-apiversion x-log-bodyrawsize x-log-compresstype x-log-signaturemethod".split()
)
"""Fields whose lines an agent or an origin repeats with every message; none holds a secret."""
_lines: dict[bytes, tuple[bytes, Field]] = {}
"""A bounded cache: lines of such fields, parsed."""
_MAX_NAMES_KEPT = 256
_MAX_SECTION_KEPT = 4096
_MAX_SELECTORS = 16
_names: dict[tuple[bytes, ...], FieldNames] = {}
"""A bounded cache: the names of heads of usual size."""


def parse_fields(section: bytes, limits: HeadLimits, error: ErrorType) -> tuple[list[Field], FieldNames]:
    """Parse field lines and the empty line behind them; gives the fields, and their names.

    Raises:
        ProxyError: for anything that is not a field line to the letter, obsolete folding too (RFC 9112 §5.2).
    """
    lines = section.split(b"\r\n")
    if len(section.translate(None, _TEXT)) != 2 * (len(lines) - 1):
        raise ProxyError(error, _NOT_TEXT)
    if lines.pop() or not lines or lines.pop():
        raise ProxyError(error, "the head does not end with an empty line")
    if len(lines) > limits.fields:
        raise _too_large(error, 431, "the head has too many fields")
    known = _lines.get
    parsed = [known(line) or _parse_line(line, error) for line in lines]
    in_order = tuple([lower for lower, _ in parsed])
    return [field for _, field in parsed], _names.get(in_order) or _field_names(in_order, len(section))


def _field_names(in_order: tuple[bytes, ...], size: int) -> FieldNames:
    names = FieldNames(in_order)
    if size <= _MAX_SECTION_KEPT:
        if len(_names) == _MAX_NAMES_KEPT:
            _names.clear()
        _names[in_order] = names
    return names


def _parse_line(line: bytes, error: ErrorType) -> tuple[bytes, Field]:
    name, colon, value = line.partition(b":")
    lower = _lower_names.get(name) or _lower_name(name, error)
    if not colon:
        raise ProxyError(error, "a field line has no colon")
    parsed = lower, (name, value.strip())  # no other blanks than SP and HTAB are left here
    if lower in _REPEATED and len(line) <= _MAX_LINE_KEPT:
        if len(_lines) == _MAX_KEPT:
            _lines.clear()
        _lines[line] = parsed
    return parsed


def _lower_name(name: bytes, error: ErrorType) -> bytes:
    if not _TOKEN.match(name):
        raise ProxyError(error, "a field name is not a token")
    lower = name.lower()
    if len(name) <= _MAX_NAME_KEPT:
        if len(_lower_names) == _MAX_KEPT:
            _lower_names.clear()
        _lower_names[name] = lower
    return lower


def _check_host(head: RequestHead) -> None:
    """RFC 9112 §3.2: exactly one Host, a valid one; HTTP/1.0 may do without."""
    hosts = head.names.at.get(b"host")
    if hosts is None:
        if head.version != HTTP_1_0:
            raise ProxyError(_REQUEST, "the request has no Host field")
        return
    if len(hosts) > 1:
        raise ProxyError(_REQUEST, "the request has several Host fields")
    host = head.fields[hosts[0]][1]
    if not _HOST.match(host) and not (head.method == b"CONNECT" and _BARE_IPV6.match(host)):
        raise ProxyError(_REQUEST, "the Host field is malformed")


HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization proxy-authentication-info"
    b" te transfer-encoding upgrade".split()
)
"""Fields for the next hop only (RFC 9110 §7.6.1, §11.7); Trailer is not one, as trailers are passed on."""

_NEVER_NAMED = frozenset(b"host content-length transfer-encoding via date cache-control".split())
"""Fields that a Connection line cannot remove: they route, frame or are meant for everybody on the way."""


def _left_out(drop: frozenset[bytes], connection: bytes) -> frozenset[bytes]:
    return HOP_BY_HOP | drop | (frozenset(_members(connection)) - _NEVER_NAMED)


_usually_left_out = functools.lru_cache(maxsize=256)(_left_out)


def end_to_end_fields(head: Head, drop: frozenset[bytes]) -> Sequence[Field]:
    """The fields to pass on: without hop-by-hop fields, those that a Connection line names, and ``drop``."""
    names = head.names
    connection = b",".join(head.get(b"connection")) if b"connection" in names.at else b""
    if len(connection) <= _MAX_LIST_KEPT:
        return names.all_but(_usually_left_out(drop, connection))(head.fields)
    left_out = _left_out(drop, connection)
    return [field for name, field in zip(names.in_order, head.fields, strict=True) if name not in left_out]


def encode_request_head(method: bytes, target: bytes, fields: Iterable[Field]) -> bytes:
    """The head of an HTTP/1.1 request."""
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *map(b": ".join, fields), b"", b""])


def encode_response_head(status: int, reason: bytes, fields: Iterable[Field]) -> bytes:
    """The head of an HTTP/1.1 response."""
    return b"\r\n".join([b"HTTP/1.1 %d %b" % (status, reason), *map(b": ".join, fields), b"", b""])
