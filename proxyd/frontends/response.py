"""The way back: an origin's response to its client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.heads import agrees, client_head, interim_head, persists, switching_head
from proxyd.frontends.shortcut import take_shortcut
from proxyd.net.connection import Connection
from proxyd.net.splice import Transfer
from proxyd.wire.body import Body, body_of
from proxyd.wire.framing import Framing, encode_chunk, encode_last_chunk, response_body
from proxyd.wire.http1 import HTTP_1_1, ResponseHead, find_head, parse_response_head

if TYPE_CHECKING:
    from proxyd.frontends.forward import Exchange


class Response:
    """Has the upstream connection of one exchange: reads the response and passes it on."""

    __slots__ = (
        "_body",
        "_chunked",
        "_exchange",
        "_scanned",
        "_transfer",
        "_unread",
        "_upstream",
        "answered",
        "close",
        "reusable",
    )

    def __init__(self, exchange: Exchange, upstream: Connection) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._unread = b""
        self._scanned = 0
        self._body: Body | None = None
        self._chunked = False  # whether the client is sent chunks
        self._transfer: Transfer | None = None
        self.answered = False  # whether the client was sent any of the final response
        self.close = False  # whether the client's connection ends with this response
        self.reusable = False  # whether the origin's connection can carry another request after this one

    # -- the upstream connection --------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the origin."""
        try:
            if self._body is not None:
                self._pass_on(data)
            else:
                self._exchange.answer_began()
                self._unread += data
                self._read_heads()
        except ProxyError as error:
            self._exchange.refuse(error)

    def read_closed(self) -> None:
        """The origin has sent everything it will."""
        if self._body is not None and self._body.framing is Framing.CLOSE:
            self._end()
        else:
            self._broken("the origin closed the connection")

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._broken("the connection to the origin was lost")

    def _broken(self, detail: str) -> None:
        if self.answered or self._unread:
            error = ProxyError(ErrorType.HTTP_RESPONSE_INCOMPLETE, f"{detail} in mid-response")
        elif self._exchange.retry():
            return
        else:
            error = ProxyError(ErrorType.CONNECTION_TERMINATED, f"{detail} without a response")
        self._exchange.refuse(error, closed_by="origin")

    # -- heads --------------------------------------------------------------------------------------------------------

    def _read_heads(self) -> None:
        exchange = self._exchange
        limits = exchange.door.limits
        while self._body is None and self._unread:
            length = find_head(self._unread, limits, self._scanned, ErrorType.HTTP_PROTOCOL_ERROR)
            if not length:
                self._scanned = len(self._unread)
                return
            head = parse_response_head(self._unread[:length], limits)
            self._unread = self._unread[length:]
            self._scanned = 0
            exchange.flow.record.bytes_to_client += length
            if head.status >= 200:
                self._begin(head)
            elif head.status == 101:
                self._switch(head)
                return
            else:
                self._interim(head)

    def _interim(self, head: ResponseHead) -> None:
        """RFC 9110 §15.2: passed on, but never to HTTP/1.0; a 100 only if we have not said it ourselves."""
        exchange = self._exchange
        if exchange.head.version == HTTP_1_1 and not (head.status == 100 and exchange.said_continue):
            exchange.door.connection.transport.write(interim_head(head, exchange.egress.via))

    def _switch(self, head: ResponseHead) -> None:
        exchange = self._exchange
        if not exchange.body.done or not agrees(head, exchange.upgrade):
            raise ProxyError(ErrorType.HTTP_PROTOCOL_ERROR, "the origin switches to a protocol that nobody asked for")
        exchange.flow.record.status = 101
        exchange.door.connection.transport.write(switching_head(head, exchange.egress.via))
        early, self._unread = self._unread, b""
        exchange.switch(early)

    def _begin(self, head: ResponseHead) -> None:
        exchange = self._exchange
        framing, length = response_body(head, exchange.head.method)
        self._body = body_of(framing, length, ErrorType.HTTP_PROTOCOL_ERROR)
        modern = exchange.head.version == HTTP_1_1
        unknown = framing is Framing.CHUNKED or framing is Framing.CLOSE
        self._chunked = modern and unknown
        self.close = (unknown and not modern) or not exchange.door.may_persist(exchange)
        self.reusable = framing is not Framing.CLOSE and persists(exchange.head, head)
        exchange.flow.record.status = head.status
        answer = client_head(
            head,
            via=exchange.egress.via,
            now=exchange.egress.clock.seconds(),
            chunked=self._chunked,
            close=self.close,
        )
        data, self._unread = self._unread, b""
        self._pass_on(data, answer)

    # -- the body -----------------------------------------------------------------------------------------------------

    def _pass_on(self, data: bytes, head: bytes = b"") -> None:
        content = self._take(data) if data else b""
        self.answered = True
        exchange, body = self._exchange, self._body
        assert body is not None
        client = exchange.door.connection.transport
        if head or content:
            client.write(head + content)
        if body.done:
            exchange.finish()
        else:
            self._transfer = take_shortcut(exchange.egress, self._upstream.transport, client, body, self)

    def _take(self, data: bytes) -> bytes:
        """The content in these bytes, as the client is sent it; what is behind its end was never asked for."""
        body, record = self._body, self._exchange.flow.record
        assert body is not None
        if body.done:
            self.reusable = False
            return b""
        record.bytes_to_client += len(data)
        pieces, surplus = body.feed(data)
        if surplus:
            record.bytes_to_client -= len(surplus)
            self.reusable = False
        return self._encode(pieces)

    def _encode(self, pieces: Sequence[bytes]) -> bytes:
        body = self._body
        assert body is not None
        if not self._chunked:
            return b"".join(pieces)
        return encode_chunk(pieces) + encode_last_chunk(body.trailers) if body.done else encode_chunk(pieces)

    def _end(self) -> None:
        """A body that lasts until the connection closes is complete."""
        body = self._body
        assert body is not None
        body.done = True
        if self._chunked:
            self._exchange.door.connection.transport.write(encode_last_chunk(()))
        self._exchange.finish()

    @property
    def moving(self) -> int:
        """Bytes moved by the kernel that are not in the record yet."""
        return 0 if self._transfer is None else self._transfer.moved

    def lateness(self) -> ProxyError:
        """Why nothing moves."""
        if not self.answered:
            return ProxyError(ErrorType.CONNECTION_READ_TIMEOUT, "the origin did not answer in time")
        if self._exchange.door.full or (self._transfer is not None and self._transfer.blocked):
            return ProxyError(ErrorType.CONNECTION_WRITE_TIMEOUT, "the client did not read its response in time")
        return ProxyError(ErrorType.CONNECTION_READ_TIMEOUT, "the origin did not go on with its response in time")

    def release(self) -> None:
        """Let go of the transfer."""
        if self._transfer is not None:
            self._transfer.stop()
            self._account(self._transfer)

    # -- a body moved by the kernel (the owner's side of a Transfer) --------------------------------------------------

    def began(self, transfer: Transfer) -> None:
        """The time of the first byte was the head's."""

    def finished(self, transfer: Transfer) -> None:
        """All of it, or the origin's FIN before its time."""
        body = self._account(transfer)
        if body.done:
            self._exchange.finish()
        else:
            self._broken("the origin closed the connection")

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """A reset on one side."""
        self._account(transfer)
        if at_source:
            self._broken("the connection to the origin was lost")
        else:
            self._exchange.door.connection.transport.abortConnection()

    def _account(self, transfer: Transfer) -> Body:
        assert self._body is not None
        self._transfer = None
        self._exchange.flow.record.bytes_to_client += transfer.moved
        self._body.skip(transfer.moved)
        return self._body
