"""The way back: an origin's response to its client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.heads import client_head, interim_head, switching_head
from proxyd.net.connection import Connection
from proxyd.net.splice import Transfer
from proxyd.net.throttle import Throttle
from proxyd.wire.body import Body
from proxyd.wire.framing import Framing, encode_chunk, encode_last_chunk, response_body
from proxyd.wire.http1 import ResponseHead, find_head, parse_response_head

if TYPE_CHECKING:
    from proxyd.frontends.forward import Exchange

SPLICE_FROM = 32 * 1024
"""As for request bodies."""


class Response:
    """Has the upstream connection of one exchange: reads the response and passes it on."""

    def __init__(self, exchange: Exchange, upstream: Connection) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._unread = b""
        self._scanned = 0
        self._body: Body | None = None
        self._chunked = False  # whether the client is sent chunks
        self.answered = False  # whether the client has got anything of the final response
        self.close = False  # whether the client's connection ends with this response
        self.reusable = False
        self.transfer: Transfer | None = None
        self._producing = False

    # -- the upstream connection ------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the origin."""
        exchange = self._exchange
        exchange.answer_began()
        try:
            if self._body is None:
                self._unread = self._unread + data if self._unread else data
                self._read_heads()
            else:
                self._pass_on(data, b"")
        except ProxyError as error:
            exchange.fail_upstream(error)

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
        if not self.answered and not self._unread and self._exchange.retry():
            return
        error = ErrorType.HTTP_RESPONSE_INCOMPLETE if self.answered or self._unread else ErrorType.CONNECTION_TERMINATED
        self._exchange.fail_upstream(ProxyError(error, detail + (" in mid-response" if self.answered else " without a response")))

    # -- heads ------------------------------------------------------------------------------------------------------------

    def _read_heads(self) -> None:
        limits = self._exchange.door.limits
        while self._body is None and self._unread:
            length = find_head(self._unread, limits, self._scanned, ErrorType.HTTP_PROTOCOL_ERROR)
            if not length:
                self._scanned = len(self._unread)
                return
            head = parse_response_head(self._unread[:length], limits)
            self._unread = self._unread[length:]
            self._scanned = 0
            self._exchange.flow.record.bytes_to_client += length
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
        if exchange.head.version == (1, 1) and not (head.status == 100 and exchange.said_continue):
            exchange.door.connection.transport.write(interim_head(head, exchange.egress.via))

    def _switch(self, head: ResponseHead) -> None:
        exchange = self._exchange
        if exchange.upgrade is None or not exchange.body.done:
            raise ProxyError(ErrorType.HTTP_PROTOCOL_ERROR, "the origin switches protocols, which nobody asked for")
        exchange.flow.record.status = 101
        exchange.door.connection.transport.write(switching_head(head, exchange.egress.via))
        early, self._unread = self._unread, b""
        exchange.switch(early)

    def _begin(self, head: ResponseHead) -> None:
        exchange = self._exchange
        framing, length = response_body(head, exchange.head.method)
        self._body = Body(framing, length, ErrorType.HTTP_PROTOCOL_ERROR)
        modern = exchange.head.version == (1, 1)
        unknown = framing in (Framing.CHUNKED, Framing.CLOSE)
        self._chunked = modern and unknown
        self.close = (unknown and not modern) or not exchange.door.may_persist(exchange)
        self.reusable = (
            framing is not Framing.CLOSE and head.version == (1, 1) and b"close" not in head.tokens(b"connection")
        )
        self.answered = True
        exchange.flow.record.status = head.status
        answer = client_head(
            head,
            framing,
            via=exchange.egress.via,
            now=exchange.egress.clock.seconds(),
            chunked=self._chunked,
            close=self.close,
        )
        data, self._unread = self._unread, b""
        self._pass_on(data, answer)

    # -- the body ---------------------------------------------------------------------------------------------------------

    def _pass_on(self, data: bytes, answer: bytes) -> None:
        body = self._body
        assert body is not None
        client = self._exchange.door.connection.transport
        if data and not body.done:
            pieces, surplus = body.feed(data)
            self._exchange.flow.record.bytes_to_client += len(data) - len(surplus)
            if surplus:
                self.reusable = False
            answer += self._encode(pieces)
        elif data:
            self.reusable = False
        if answer:
            client.write(answer)
        if body.done:
            self._done()
        else:
            self._back_pressure()
            self._splice()

    def _encode(self, pieces: Sequence[bytes]) -> bytes:
        body = self._body
        assert body is not None
        if not self._chunked:
            return b"".join(pieces)
        encoded = encode_chunk(pieces) if pieces else b""
        return encoded + encode_last_chunk(body.trailers) if body.done else encoded

    def _back_pressure(self) -> None:
        if not self._producing:
            self._producing = True
            self._exchange.door.connection.transport.registerProducer(Throttle(self._upstream.transport), True)

    def _splice(self) -> None:
        """Let the kernel move the rest of a long body, where it can."""
        body, exchange = self._body, self._exchange
        assert body is not None
        client, splicer = exchange.door.connection.transport, exchange.egress.splicer
        if splicer is None or self._chunked or body.left < SPLICE_FROM:
            return
        if Transfer.possible(self._upstream.transport, client):
            chunk = exchange.egress.settings.buffer_size
            self.transfer = Transfer(splicer, self._upstream.transport, client, self, chunk=chunk, length=body.left)
            self.transfer.start()

    def _end(self) -> None:
        """A body that lasts until the connection closes is complete."""
        body = self._body
        assert body is not None
        body.done = True
        if self._chunked:
            self._exchange.door.connection.transport.write(encode_last_chunk(()))
        self._done()

    def _done(self) -> None:
        if self._producing:
            self._producing = False
            self._exchange.door.connection.transport.unregisterProducer()
        self._exchange.finish()

    # -- a spliced body (the owner's side of a Transfer) --------------------------------------------------------------------

    def began(self, transfer: Transfer) -> None:
        """The time of the first byte was the head's."""

    def finished(self, transfer: Transfer) -> None:
        """All of it, or the origin's FIN before its time."""
        self._account(transfer)
        if self._body is not None and self._body.done:
            self._upstream.transport.resumeProducing()
            self._done()
        else:
            self._broken("the origin closed the connection")

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """A reset on one side."""
        self._account(transfer)
        if at_source:
            self._broken("the connection to the origin was lost")
        else:
            self._exchange.door.connection.transport.abortConnection()

    def _account(self, transfer: Transfer) -> None:
        self.transfer = None
        self._exchange.flow.record.bytes_to_client += transfer.moved
        assert self._body is not None
        self._body.skip(transfer.moved)

    def release(self) -> None:
        """Let go of the transfer."""
        if self.transfer is not None:
            transfer, self.transfer = self.transfer, None
            transfer.stop()
            self._exchange.flow.record.bytes_to_client += transfer.moved

    def discard(self) -> None:
        """Whatever the upstream connection still brings is not wanted."""
        self.release()
        self._upstream.receiver = _Unwanted()


class _Unwanted:
    """Has an upstream connection that is being closed."""

    def received(self, data: bytes) -> None:
        """Too late."""

    def read_closed(self) -> None:
        """Known."""

    def lost(self, reason: Failure) -> None:
        """As told."""
