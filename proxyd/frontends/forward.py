"""HTTP forward: one request to an origin, and its response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.answers import CONTINUE, simple_answer
from proxyd.frontends.heads import Target, check_loop, max_forwards, parse_target, traced, upstream_head, wanted_upgrade
from proxyd.frontends.response import Response
from proxyd.frontends.turn import Turn
from proxyd.net.connection import Connection
from proxyd.net.idle import IdleWatch
from proxyd.net.splice import Transfer
from proxyd.net.throttle import Throttle
from proxyd.request import Destination, Door
from proxyd.wire.body import Body
from proxyd.wire.framing import Framing, encode_chunk, encode_last_chunk, request_body
from proxyd.wire.http1 import RequestHead

if TYPE_CHECKING:
    from proxyd.frontends.http import HttpDoor

SPLICE_FROM = 32 * 1024
"""Bytes still to come of a body from which the kernel moves them; fewer are cheaper to copy than to hand over."""

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""Methods that may be sent again when a reused connection turns out to be dead (RFC 9110 §9.2.2)."""


class Exchange(Turn):
    """One forward request: its way to the origin; the way back is its `Response`'s."""

    door_kind = Door.FORWARD
    target: Target
    body: Body

    def __init__(self, door: HttpDoor, head: RequestHead) -> None:
        super().__init__(door, head)
        self.upstream: Connection | None = None
        self.response: Response | None = None
        self.upgrade: bytes | None = None
        self._expects = False
        self._continue_timer: Any = None
        self._hops: int | None = None
        self._transfer: Transfer | None = None
        self._repeatable = False  # while nothing but a head was sent, on a connection that may have been dead
        self.said_continue = False
        self._idle: IdleWatch | None = None
        self._upload_broken = False

    # -- the request ----------------------------------------------------------------------------------------------------

    def read_request(self) -> Destination:
        """Check framing, target, hops and loops."""
        head = self.head
        framing, length = request_body(head)
        self.body = Body(framing, length)
        self.target = parse_target(head)
        check_loop(head, self.egress.via)
        self._hops = max_forwards(head)
        self.upgrade = wanted_upgrade(head)
        expectations = head.tokens(b"expect")
        if expectations and head.version == (1, 1):
            if expectations != [b"100-continue"]:
                raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the only expectation known is 100-continue", status=417)
            self._expects = not self.body.done
        return self.target.destination

    def admitted(self) -> None:
        """Answer what is meant for us; else find the way to the origin."""
        if self._hops == 0:
            self._answer_last_hop()
            return
        upstream = self.flow.reuse()
        if upstream is not None:
            self._begin(upstream, reused=True)
        else:
            self._dial()

    def _dial(self) -> None:
        self.flow.connect(self.egress.settings.connect_timeout).addCallback(self._connected).addErrback(self.failed)

    def _connected(self, upstream: Connection) -> None:
        if self.over:
            upstream.transport.abortConnection()
        else:
            self._begin(upstream, reused=False)

    def _answer_last_hop(self) -> None:
        """RFC 9110 §7.6.2: with Max-Forwards 0 we are the final recipient."""
        if self.head.method == b"TRACE":
            body, fields = traced(self.head), [(b"Content-Type", b"message/http")]
        else:
            body, fields = b"", [(b"Allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH, CONNECT")]
        self.over = True
        self.flow.record.status = 200
        self.door.connection.transport.write(
            simple_answer(self.egress.clock.seconds(), 200, body, fields, close=not self.door.may_persist(self))
        )
        self.flow.end(closed_by="proxy")
        self.door.answered(self)

    def _begin(self, upstream: Connection, *, reused: bool) -> None:
        self.upstream = upstream
        rule = self.flow.rule
        request = upstream_head(
            self.head,
            self.target,
            self.body.framing,
            self.body.left,
            via=self.egress.via,
            preserve_host=rule is not None and rule.preserve_host,
            upgrade=self.upgrade,
            expects=self._expects,
            hops=self._hops,
        )
        self.response = upstream.receiver = Response(self, upstream)
        held, self.held = self.held, b""
        try:
            content = self._encode(held)
        except ProxyError as error:
            self.fail_upstream(error)
            return
        self._repeatable = reused and not held and (self._expects or (self.body.done and self.head.method in IDEMPOTENT))
        upstream.transport.write(request + content)
        upstream.transport.resumeProducing()
        self._idle = IdleWatch(
            self.egress.clock, self.egress.deadlines, self.egress.settings.response_timeout, self._moved, self._overdue
        )
        if not self.body.done:
            upstream.transport.registerProducer(Throttle(self.door.connection.transport), True)
            self.door.connection.transport.resumeProducing()
            if self._expects and not held:
                self._continue_timer = self.egress.clock.callLater(self.egress.settings.continue_wait, self._say_continue)
            self._splice_body()

    def _encode(self, data: bytes) -> bytes:
        """Body bytes as they go to the origin; what is behind the body goes back to the door."""
        if not data or self.body.done:
            self.door.keep(data)
            return b""
        pieces, surplus = self.body.feed(data)
        self.flow.record.bytes_from_client += len(data) - len(surplus)
        if surplus:
            self.door.keep(surplus)
        if self.body.framing is not Framing.CHUNKED:
            return pieces[0] if pieces else b""
        encoded = encode_chunk(pieces) if pieces else b""
        return encoded + encode_last_chunk(self.body.trailers) if self.body.done else encoded

    def client_sent(self, data: bytes) -> None:
        """More of the body, or of a request behind it."""
        if self.upstream is None:
            self.hold(data)
            return
        self._cancel_continue()
        self._repeatable = False
        try:
            content = self._encode(data)
        except ProxyError as error:
            self.fail_upstream(error)
            return
        if content and not self._upload_broken:
            self.upstream.transport.write(content)
        if self.body.done:
            self._body_sent()
        else:
            self._splice_body()

    def _splice_body(self) -> None:
        """Let the kernel move the rest of a long body, where it can."""
        client, upstream = self.door.connection.transport, self.upstream
        assert upstream is not None
        splicer = self.egress.splicer
        if splicer is None or self.body.left < SPLICE_FROM or self._upload_broken:
            return
        if Transfer.possible(client, upstream.transport):
            self._transfer = Transfer(
                splicer,
                client,
                upstream.transport,
                _Upload(self),
                chunk=self.egress.settings.buffer_size,
                length=self.body.left,
            )
            self._transfer.start()

    def uploaded(self, transfer: Transfer) -> None:
        """The kernel has moved the rest of the body, or the client ended in the middle of it."""
        self._account(transfer)
        if self.body.done:
            self.door.connection.transport.resumeProducing()
            self._body_sent()
        else:
            self.client_closed()

    def upload_broke(self, transfer: Transfer, at_client: bool) -> None:
        """One side was reset while the kernel moved the body."""
        self._account(transfer)
        if at_client:
            self.door.connection.transport.abortConnection()
        else:
            self._upload_broken = True  # what the origin said before is still to be read
            self.door.connection.transport.resumeProducing()

    def _account(self, transfer: Transfer) -> None:
        self._transfer = None
        self.flow.record.bytes_from_client += transfer.moved
        self.body.skip(transfer.moved)

    def _body_sent(self) -> None:
        assert self.upstream is not None
        self.upstream.transport.unregisterProducer()

    # -- 100-continue -----------------------------------------------------------------------------------------------------

    def _say_continue(self) -> None:
        """The origin is silent or far: the client shall not wait for it."""
        self._continue_timer = None
        self.said_continue = True
        self._repeatable = False
        self.door.connection.transport.write(CONTINUE)

    def _cancel_continue(self) -> None:
        if self._continue_timer is not None:
            self._continue_timer.cancel()
            self._continue_timer = None

    # -- the response -----------------------------------------------------------------------------------------------------

    def answer_began(self) -> None:
        """The origin's first bytes came."""
        self._cancel_continue()
        self._repeatable = False
        self.flow.began_answer()

    def retry(self) -> bool:
        """Send the request again if its reused connection turns out to have been dead; whether that was possible."""
        if not self._repeatable or self.over:
            return False
        self._release()
        self.upstream = self.response = None
        self.flow.record.reused = False
        self._dial()
        return True

    def finish(self) -> None:
        """The response is complete: the record is written, the connections go on or close."""
        response, upstream = self.response, self.upstream
        assert response is not None and upstream is not None
        self.over = True
        self._release()
        if self.body.done and response.reusable and self.flow.address is not None:
            self.egress.pool.give(self.target.destination, upstream, self.flow.address)
        else:
            response.discard()
            upstream.transport.loseConnection()
        self.flow.end(closed_by="proxy" if response.close else None)
        self.door.answered(self)

    def switch(self, early: bytes) -> None:
        """The origin agreed to another protocol: the rest is a tunnel."""
        assert self.upstream is not None
        self.over = True
        self._release()
        client = self.door.leave()
        upstream = self.upstream
        if early:
            client.transport.write(early)
            self.flow.record.bytes_to_client += len(early)
        self.flow.tunnel(client, upstream, self.door.unread())

    def fail_upstream(self, error: ProxyError) -> None:
        """The exchange cannot be completed: say so if no answer has begun, else cut."""
        if self.over:
            return
        began = self.response is not None and self.response.answered
        self._drop_upstream()
        if not began:
            self.refuse(error)
            return
        self.over = True
        closed_by = "origin" if error.error in _ORIGINS_FAULT else "proxy"
        self.flow.fail(error, closed_by=closed_by)
        self.door.cut()

    def _drop_upstream(self) -> None:
        self._release()
        if self.upstream is not None:
            assert self.response is not None
            self.response.discard()
            self.upstream.transport.abortConnection()

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error of the table, and be done."""
        if self.upstream is not None and not self.over:
            if self.response is not None and self.response.answered:
                self.fail_upstream(error)
                return
            self._drop_upstream()
        super().refuse(error)

    def _release(self) -> None:
        """Let go of timers, transfers and producers."""
        self._cancel_continue()
        if self._idle is not None:
            self._idle.stop()
            self._idle = None
        if self._transfer is not None:
            self._transfer.stop()
            self._account(self._transfer)
        if self.response is not None:
            self.response.release()
        if self.upstream is not None:
            self.upstream.transport.unregisterProducer()
            self.door.connection.transport.unregisterProducer()

    # -- the client -------------------------------------------------------------------------------------------------------

    def client_closed(self) -> None:
        """The client will send no more: in the middle of a body that ends the exchange."""
        if not self.over and not self.body.done:
            self._drop_upstream()
            self.over = True
            self.flow.end(ErrorType.CLIENT_DISCONNECTED, closed_by="client")
            self.door.cut()

    def client_lost(self) -> None:
        """The client is gone."""
        if not self.over:
            self._drop_upstream()
        super().client_lost()

    # -- time ---------------------------------------------------------------------------------------------------------------

    def _moved(self) -> int:
        record = self.flow.record
        moved = record.bytes_from_client + record.bytes_to_client
        if self._transfer is not None:
            moved += self._transfer.moved
        if self.response is not None and self.response.transfer is not None:
            moved += self.response.transfer.moved
        return moved

    def _overdue(self) -> None:
        if not self.body.done and not (self.response is not None and self.response.answered):
            detail = "the request's body did not come in time"
            self.fail_upstream(ProxyError(ErrorType.HTTP_REQUEST_ERROR, detail, status=408))
        else:
            self.fail_upstream(ProxyError(ErrorType.CONNECTION_READ_TIMEOUT, "the origin did not answer in time"))


_ORIGINS_FAULT = frozenset(
    {
        ErrorType.CONNECTION_TERMINATED,
        ErrorType.HTTP_RESPONSE_INCOMPLETE,
        ErrorType.HTTP_PROTOCOL_ERROR,
        ErrorType.CONNECTION_READ_TIMEOUT,
    }
)


class _Upload:
    """Owns the transfer of a request body."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def began(self, transfer: Transfer) -> None:
        """Nothing depends on it."""

    def finished(self, transfer: Transfer) -> None:
        """All of it, or the client's FIN."""
        self._exchange.uploaded(transfer)

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """A reset on one side."""
        self._exchange.upload_broke(transfer, at_source)
