"""The body of one message, taken out of the bytes of its connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxyd.errors import ErrorType
from proxyd.wire.framing import ChunkedBody, Framing
from proxyd.wire.http1 import Field


def body_of(framing: Framing, length: int, error: ErrorType = ErrorType.HTTP_REQUEST_ERROR) -> Body:
    """The body of a message that is framed like this; those that have none share one."""
    return NO_BODY if framing is Framing.NONE else Body(framing, length, error)


class Body:
    """A body while it is read; ``left`` is what is still to come of one of known length, else -1.

    ``error`` is what malformed chunks are: the client's error or the origin's.
    """

    __slots__ = ("_chunks", "done", "framing", "left")

    def __init__(self, framing: Framing, length: int = 0, error: ErrorType = ErrorType.HTTP_REQUEST_ERROR) -> None:
        self.framing = framing
        self.left = length if framing is Framing.LENGTH else -1
        self._chunks = ChunkedBody(error) if framing is Framing.CHUNKED else None
        self.done = framing is Framing.NONE or self.left == 0

    @property
    def trailers(self) -> Sequence[Field]:
        """The trailer fields of a chunked body that is done."""
        return () if self._chunks is None else self._chunks.trailers

    def feed(self, data: bytes) -> tuple[Sequence[bytes], bytes]:
        """The content in these bytes, in pieces, and what is behind the body's end.

        Raises:
            ProxyError: for malformed chunks.
        """
        if self._chunks is not None:
            pieces, used = self._chunks.feed(data)
            self.done = self._chunks.done
            return pieces, data[used:]
        if self.left < 0:
            return (data,), b""
        if len(data) < self.left:
            self.left -= len(data)
            return (data,), b""
        surplus = data[self.left :]
        piece = data[: self.left] if surplus else data
        self.left = 0
        self.done = True
        return (piece,), surplus

    def skip(self, count: int) -> None:
        """Account for content of known length that was moved by the kernel."""
        self.left -= count
        self.done = self.left == 0


NO_BODY: Final = Body(Framing.NONE)
