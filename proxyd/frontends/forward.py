"""HTTP forward: one request to an origin, and its response."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.answers import last_hop_answer
from proxyd.frontends.heads import ForwardUrl, check_loop, max_forwards, parse_target, upstream_head, wanted_upgrade
from proxyd.frontends.response import Response
from proxyd.frontends.turn import Turn
from proxyd.frontends.upload import Upload
from proxyd.net.connection import Connection
from proxyd.net.linger import ORIGIN_FLUSH, Closing, abandon
from proxyd.request import Destination, Door
from proxyd.wire.body import Body, body_of
from proxyd.wire.framing import Framing, encode_chunk, encode_last_chunk, request_body
from proxyd.wire.http1 import HTTP_1_1, RequestHead

if TYPE_CHECKING:
    from proxyd.frontends.http import HttpDoor

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""Methods that may be sent again when a reused connection turns out to be dead (RFC 9110 §9.2.2)."""


class Exchange(Turn):
    """One forward request: its way to the origin; the way back is its `Response`'s."""

    __slots__ = ("_hops", "_upload", "expects", "response", "said_continue", "target", "upgrade", "upstream")

    kind = Door.FORWARD
    target: ForwardUrl
    body: Body
    upgrade: bytes | None
    expects: bool

    def __init__(self, door: HttpDoor, head: RequestHead) -> None:
        super().__init__(door, head)
        self.upstream: Connection | None = None
        self.response: Response | None = None
        self.said_continue = False
        self._upload: Upload | None = None

    # -- the request --------------------------------------------------------------------------------------------------

    def read_request(self) -> Destination:
        """Check target, framing, hops and loops."""
        head = self.head
        self.target = parse_target(head)
        self.flow.record.destination = self.target.destination.authority
        self.body = body_of(*request_body(head))
        if head.method == b"TRACE" and not self.body.done:
            raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "a TRACE request has no content")  # RFC 9110 §9.3.8
        self.expects = self._expectation()
        check_loop(head, self.egress.via)
        self._hops = max_forwards(head)
        self.upgrade = wanted_upgrade(head, self.options)
        return self.target.destination

    def _expectation(self) -> bool:
        """Whether the client waits for a 100; what HTTP/1.0 expects is not heard (RFC 9110 §10.1.1)."""
        if b"expect" not in self.head.names.at or self.head.version != HTTP_1_1:
            return False
        if self.head.tokens(b"expect") != (b"100-continue",):
            raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the only expectation known is 100-continue", status=417)
        return not self.body.done

    def admitted(self) -> None:
        """Answer what is meant for us; else find the way to the origin."""
        if self._hops == 0:
            self._answer_last_hop()
            return
        upstream = self.flow.reuse()
        if upstream is not None:
            self._begin(upstream)
        else:
            self._dial()

    def _answer_last_hop(self) -> None:
        """RFC 9110 §7.6.2: with Max-Forwards 0 we are the final recipient."""
        self.over = True
        close = not self.door.may_persist(self)
        self.door.connection.transport.write(last_hop_answer(self.egress.clock.seconds(), self.head, close=close))
        self.flow.record.status = 200
        self.flow.end(closed_by="proxy" if close else None)
        self.door.keep(self.held)
        self.door.answered(self, close=close)

    def _dial(self) -> None:
        self.flow.connect(self.egress.settings.connect_timeout).addCallback(self._connected).addErrback(self.failed)

    def _connected(self, upstream: Connection) -> None:
        if self.over:
            abandon(upstream)
        else:
            self._begin(upstream)

    def _begin(self, upstream: Connection) -> None:
        rule = self.flow.rule
        request = upstream_head(
            self.head,
            self.target,
            self.body.framing,
            self.body.left,
            via=self.egress.via,
            preserve_host=rule is not None and rule.preserve_host,
            upgrade=self.upgrade,
            expects=self.expects,
            hops=self._hops,
        )
        self.upstream = upstream
        self.response = upstream.receiver = Response(self, upstream)
        held, self.held = self.held, b""
        try:
            content = self._encode(held)
        except ProxyError as error:
            self.refuse(error)
            return
        if self.door.half_closed and not self.body.done:
            self.client_closed()
            return
        upstream.transport.write(request + content)
        upstream.transport.resumeProducing()
        if not self.body.done:
            self._upload = Upload(self, self.body, upstream)
            self._upload.start(awaited=self.expects and not held and not self.said_continue)

    def _encode(self, data: bytes) -> bytes:
        """Body bytes as they go to the origin; what is behind the body goes back to the door."""
        if not data or self.body.done:
            self.door.keep(data)
            return b""
        self.flow.record.bytes_from_client += len(data)
        pieces, surplus = self.body.feed(data)
        if surplus:
            self.flow.record.bytes_from_client -= len(surplus)
            self.door.keep(surplus)
        if self.body.framing is not Framing.CHUNKED:
            return pieces[0]
        encoded = encode_chunk(pieces)
        return encoded + encode_last_chunk(self.body.trailers) if self.body.done else encoded

    def client_sent(self, data: bytes) -> None:
        """More of the body, or of a request behind it."""
        if self.upstream is None:
            self.hold(data)
            return
        try:
            content = self._encode(data)
        except ProxyError as error:
            self.refuse(error)
            return
        if self._upload is not None:
            self._upload.send(content)
            if self.body.done:
                self.uploaded()

    def uploaded(self) -> None:
        """The body is complete."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            upload.stop()

    # -- the response -------------------------------------------------------------------------------------------------

    def answer_began(self) -> None:
        """The origin has spoken."""
        if self._upload is not None:
            self._upload.settled()
        self.flow.began_answer()

    def retry(self) -> bool:
        """Send the request again where its reused connection was dead: if that is safe, and only its head was lost."""
        safe = self.expects or self.head.method in IDEMPOTENT
        if not self.flow.record.reused or not safe or self.moved() > self.head.size:
            return False
        self._drop_upstream()
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
        if not self.body.done:
            abandon(upstream)
        elif response.reusable and self.flow.address is not None:
            self.egress.pool.give(self.target.destination, upstream, self.flow.address)
        else:
            Closing(upstream, self.egress.deadlines, ORIGIN_FLUSH)
        self.flow.end(closed_by="proxy" if response.close else None)
        self.door.answered(self, close=response.close)

    def switch(self, early: bytes) -> None:
        """The origin agreed to another protocol: the rest is a tunnel."""
        assert self.upstream is not None
        self.over = True
        self._release()
        client = self.door.leave()
        if early:
            client.transport.write(early)
            self.flow.record.bytes_to_client += len(early)
        self.flow.tunnel(client, self.upstream, self.door.unread())

    def refuse(self, error: ProxyError, closed_by: str = "proxy") -> None:
        """The exchange cannot be completed: say so if no answer has begun, else cut it off."""
        self._drop_upstream()
        if self.response is None or not self.response.answered:
            super().refuse(error)
            return
        self.over = True
        self.flow.fail(error, closed_by=closed_by)
        self.door.cut()

    def _drop_upstream(self) -> None:
        self._release()
        if self.upstream is not None:
            abandon(self.upstream)

    def _release(self) -> None:
        """Let go of timers, transfers and producers."""
        self.uploaded()
        if self.response is not None:
            self.response.release()

    # -- the client ---------------------------------------------------------------------------------------------------

    def client_closed(self) -> None:
        """The client will send no more: in the middle of a body, that ends an exchange which is not answered yet."""
        if self.body.done or self.upstream is None:
            return
        if self.response is not None and self.response.answered:
            self.uploaded()
            return
        self.client_lost()
        self.door.cut()

    def client_lost(self) -> None:
        """The client is gone."""
        self._drop_upstream()
        super().client_lost()

    def client_full(self) -> None:
        """The response waits for the client to read what it has got."""
        if self.upstream is not None:
            self.upstream.transport.pauseProducing()

    def client_drained(self) -> None:
        """The response may go on."""
        if self.upstream is not None:
            self.upstream.transport.resumeProducing()

    # -- time ---------------------------------------------------------------------------------------------------------

    def moved(self) -> int:
        """The bytes of request and response so far."""
        record = self.flow.record
        moved = record.bytes_from_client + record.bytes_to_client
        if self._upload is not None:
            moved += self._upload.moving
        if self.response is not None:
            moved += self.response.moving
        return moved

    def patience(self) -> float:
        """An origin that has the whole request gets the response timeout, a body that moves the idle timeout."""
        response, settings = self.response, self.egress.settings
        if response is None:
            return math.inf
        return settings.response_timeout if self._upload is None and not response.answered else settings.idle_timeout

    def overdue(self) -> None:
        """Nothing has moved for too long."""
        assert self.response is not None
        if self._upload is None or self.response.answered:
            self.refuse(self.response.lateness())
        else:
            self.refuse(self._upload.lateness())
