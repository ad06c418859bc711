"""Where the content of a message ends, and the chunked transfer coding (RFC 9112 §6 and §7)."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from typing import Final

from proxyd.errors import ErrorType, ProxyError
from proxyd.wire.http1 import HEAD_LIMITS, HOP_BY_HOP, HTTP_1_0, Field, Head, RequestHead, ResponseHead, parse_fields


class Framing(enum.Enum):
    """How the content of a message is delimited."""

    NONE = enum.auto()
    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    CLOSE = enum.auto()
    """The content of a response lasts until the origin closes the connection."""


_MAX_LENGTH = 2**63 - 1
"""A longer content overflows the signed 64-bit counters of the programs behind us."""

_MAX_LENGTH_DIGITS = 19
_COMPRESSED = rb"(?:(?:x-)?gzip|(?:x-)?compress|deflate)"
_COMPRESSED_CHUNKED = re.compile(
    _COMPRESSED + rb"(?:[ \t]*,[ \t]*" + _COMPRESSED + rb")*[ \t]*,[ \t]*chunked\Z", re.IGNORECASE
)


def request_body(head: RequestHead) -> tuple[Framing, int]:
    """How the request's content is delimited, and its length if that is told; never ``CLOSE``.

    Raises:
        ProxyError: ``http_request_error`` for everything that two readers could frame differently.
    """
    framing, length = _declared(head, ErrorType.HTTP_REQUEST_ERROR)
    if head.method != b"CONNECT":
        return framing, length
    if framing is Framing.CHUNKED or length:
        # RFC 9110 §9.3.6: what follows the head is the tunnel's; a length would make it content to others.
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "a CONNECT request has no content")
    return Framing.NONE, 0


def response_body(head: ResponseHead, request_method: bytes) -> tuple[Framing, int]:
    """How the content of the response to such a request is delimited (RFC 9112 §6.3).

    Raises:
        ProxyError: ``http_protocol_error``, also where the response has no content but ambiguous fields.
    """
    if request_method == b"CONNECT" and 200 <= head.status < 300:
        return Framing.NONE, 0
    framing, length = _declared(head, ErrorType.HTTP_PROTOCOL_ERROR)
    if request_method == b"HEAD" or head.status < 200 or head.status in (204, 304):
        return Framing.NONE, 0
    return (Framing.CLOSE, 0) if framing is Framing.NONE else (framing, length)


def _declared(head: Head, error: ErrorType) -> tuple[Framing, int]:
    names = head.names.at
    lengths = names.get(b"content-length")
    if b"transfer-encoding" in names:
        if lengths is not None:
            raise ProxyError(error, "the message has both Content-Length and Transfer-Encoding")
        _check_chunked(head, head.get(b"transfer-encoding"), error)
        return Framing.CHUNKED, 0
    if lengths is None:
        return Framing.NONE, 0
    if len(lengths) > 1:
        raise ProxyError(error, "the message has several Content-Length fields")
    digits = head.fields[lengths[0]][1]
    # Of bytes, isdigit() means 0 to 9 alone; int() would also take blanks, signs and underscores.
    if not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS or int(digits) > _MAX_LENGTH:
        raise ProxyError(error, "Content-Length is malformed")
    return Framing.LENGTH, int(digits)


def _check_chunked(head: Head, codings: list[bytes], error: ErrorType) -> None:
    if head.version == HTTP_1_0:
        raise ProxyError(error, "Transfer-Encoding is not part of HTTP/1.0")
    if len(codings) > 1:
        raise ProxyError(error, "the message has several Transfer-Encoding fields")
    if codings[0].lower() == b"chunked":
        return
    if error is ErrorType.HTTP_REQUEST_ERROR and _COMPRESSED_CHUNKED.match(codings[0]):
        raise ProxyError(error, "only the transfer coding chunked is understood", status=501)  # RFC 9112 §6.1
    raise ProxyError(error, "Transfer-Encoding is not exactly chunked")


MAX_CHUNK_LINE: Final = 4096
"""Octets of a chunk-size line with its extensions and CRLF: nobody needs extensions, and they are not passed on."""

MAX_TRAILERS: Final = 16384
"""Octets of the whole trailer section."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
# RFC 9112 §7.1.1, with the bad blanks that its grammar lets a recipient see; possessive, so that it takes linear time.
_EXTENSION = rb"[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?+"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:" + _EXTENSION + rb")*+\r\n")

# What mostly stands between two chunks, matched at once.
_NEXT_CHUNK = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n")

_NO_TRAILERS = HOP_BY_HOP | {b"content-length", b"host", b"trailer"}
"""Trailer fields that are dropped: merged into the head they would frame or route the message (RFC 9110 §6.5.1)."""


_CHUNK_OVERRUN = "a chunk does not end where its size says"


class _Line(enum.Enum):
    """What the next line of a chunked body is."""

    SIZE = enum.auto()
    CHUNK_END = enum.auto()
    TRAILER = enum.auto()


class ChunkedBody:
    """The chunked content of one message, decoded as it arrives (RFC 9112 §7.1).

    ``error`` is what malformed input is called: ``http_request_error`` or ``http_protocol_error``.
    """

    __slots__ = ("done", "trailers", "_error", "_expected", "_room", "_held", "_left")

    def __init__(self, error: ErrorType = ErrorType.HTTP_REQUEST_ERROR) -> None:
        self.done = False
        self.trailers: list[Field] = []
        """Complete when ``done``; without those that must not be passed on."""
        self._error = error
        self._expected = _Line.SIZE
        self._room = MAX_CHUNK_LINE
        self._held = bytearray()
        self._left = 0

    def feed(self, data: bytes | memoryview) -> tuple[list[bytes], int]:
        """Decode what has arrived: the pieces of content, and how much of ``data`` belongs to this body.

        Raises:
            ProxyError: at the first malformed line; the pieces before it in ``data`` are lost.
        """
        pieces: list[bytes] = []
        position, end = 0, len(data)
        while position < end and not self.done:
            if self._left:
                piece = bytes(data[position : position + self._left])  # no copy of bytes that are all content
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
            elif self._expected is _Line.CHUNK_END and not self._held and (match := _NEXT_CHUNK.match(data, position)):
                self._begin_chunk(match[1])
                position = match.end()
            else:
                position += self._take_line(data, position)
        return pieces, position

    def _take_line(self, data: bytes | memoryview, position: int) -> int:
        """Take what is there of a line, and read it once it is complete; gives the number of octets taken."""
        window = bytes(data[position : position + self._room])
        length = window.find(b"\n") + 1
        if not length:
            self._hold(window)
            return len(window)
        line = window[:length]
        if self._held:
            line = bytes(self._held + line)
            self._held.clear()
        self._room -= length
        self._read_line(line)
        return length

    def _hold(self, window: bytes) -> None:
        """Keep the beginning of a line that can still end well."""
        self._held += window
        self._room -= len(window)
        if self._expected is _Line.CHUNK_END and self._held != b"\r":
            raise ProxyError(self._error, _CHUNK_OVERRUN)
        if not self._room:
            trailers = self._expected is _Line.TRAILER and self._error is ErrorType.HTTP_REQUEST_ERROR
            raise ProxyError(self._error, "a line of the chunked content is too long", status=431 if trailers else None)

    def _read_line(self, line: bytes) -> None:
        match self._expected:
            case _Line.SIZE:
                self._read_size(line)
            case _Line.CHUNK_END:
                if line != b"\r\n":
                    raise ProxyError(self._error, _CHUNK_OVERRUN)
                self._expect(_Line.SIZE, MAX_CHUNK_LINE)
            case _Line.TRAILER:
                self._read_trailer(line)

    def _expect(self, line: _Line, room: int) -> None:
        self._expected = line
        self._room = room

    def _read_size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ProxyError(self._error, "a chunk size or extension is malformed")
        self._begin_chunk(match[1])

    def _begin_chunk(self, size: bytes) -> None:
        self._left = int(size, 16)
        if self._left:
            self._expect(_Line.CHUNK_END, len(b"\r\n"))
        else:
            self._expect(_Line.TRAILER, MAX_TRAILERS)

    def _read_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.done = True
            return
        fields, names = parse_fields(line + b"\r\n", HEAD_LIMITS, self._error)
        if names.in_order[0] not in _NO_TRAILERS:
            self.trailers += fields


LAST_CHUNK: Final = b"0\r\n\r\n"


def encode_chunk(pieces: Sequence[bytes]) -> bytes:
    """One chunk of all the pieces; nothing for no content, as a chunk of size 0 would be the last."""
    size = sum(map(len, pieces))
    return b"".join([b"%x\r\n" % size, *pieces, b"\r\n"]) if size else b""


def encode_last_chunk(trailers: Iterable[Field]) -> bytes:
    """The last chunk, the trailer fields, and the empty line that ends the body."""
    return b"\r\n".join([b"0", *map(b": ".join, trailers), b"", b""])
