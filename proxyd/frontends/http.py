"""An HTTP client's connection: its requests, one after the other."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress, Flow
from proxyd.frontends.answers import TLS_REFUSED, refusal
from proxyd.frontends.connect import ConnectTurn
from proxyd.frontends.discard import Discard
from proxyd.frontends.forward import Exchange
from proxyd.frontends.turn import Turn
from proxyd.net.connection import Connection
from proxyd.net.linger import Closing, Linger, abandon
from proxyd.request import Door
from proxyd.wire.first_byte import Speaks, speaks
from proxyd.wire.http1 import HeadLimits, find_head, parse_request_head

LOOKS = 8
"""Looks at a turn's progress within the shortest of its timeouts: it is found overdue a quarter late at most, and bytes
and requests cost nothing for it."""


@implementer(IPushProducer)
class HttpDoor:
    """Has one client's connection while it speaks HTTP: reads heads, and gives each request its turn.

    One request at a time: what a client pipelines waits, unread beyond a bound. None begins while the client does not
    read its answers: the door is the producer of all that is written to it.
    """

    __slots__ = (
        "_deadline",
        "_fresh",
        "_look_every",
        "_scanned",
        "_seen",
        "_serving",
        "_since",
        "_turn",
        "_unread",
        "_waiting",
        "client",
        "connection",
        "egress",
        "full",
        "half_closed",
        "limits",
    )

    def __init__(self, connection: Connection, client: Client, egress: Egress, began: float) -> None:
        self.connection = connection
        self.client = client
        self.egress = egress
        settings = egress.settings
        self.limits = HeadLimits(settings.head_size, settings.head_fields, settings.start_line_size)
        self.full = False  # whether the client does not read what was written to it
        self.half_closed = False  # whether the client has said that it will send no more
        self._unread = b""
        self._scanned = 0
        self._serving = False
        self._turn: Turn | Discard | None = None
        self._fresh = False  # whether the next head has not begun, after one that was answered
        self._since = began
        self._waiting = settings.handshake_timeout  # seconds that the present silence may last
        self._seen: tuple[str, int] | None = None  # the turn that was looked at, and how far it had come
        self._look_every = min(settings.response_timeout, settings.idle_timeout) / LOOKS
        left = began + self._waiting - egress.clock.seconds()
        self._deadline = egress.deadlines.after(min(left, self._look_every), self._look)
        connection.transport.registerProducer(self, True)

    # -- the connection -----------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._turn is not None:
            self._turn.client_sent(data)
        elif self.full:
            self.keep(data)
        else:
            self._unread += data
            self._serve()

    def read_closed(self) -> None:
        """The client will send no more; what it has asked is still answered."""
        self.half_closed = True
        if self._turn is not None:
            self._turn.client_closed()
        else:
            self._serve()

    def lost(self, reason: Failure) -> None:
        """The client is gone."""
        self._deadline.cancel()
        if self._turn is not None:
            self._turn.client_lost()

    def pauseProducing(self) -> None:
        """The client does not read."""
        self.full = True
        if self._turn is not None:
            self._turn.client_full()

    def resumeProducing(self) -> None:
        """The client has read all that was written to it."""
        self.full = False
        if self._turn is not None:
            self._turn.client_drained()
        elif self.egress.draining:
            self._close()  # as the transport may have been told already: it does not while it has a paused producer
        else:
            self._read_on()

    def stopProducing(self) -> None:
        """The client is gone, as we are told otherwise too."""

    # -- requests -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Begin the requests whose heads are complete, one after the other; what a turn does at once may end it."""
        if self._serving:
            return
        self._serving = True
        while self._unread and self._ready and self._begin_turn():
            pass
        self._serving = False
        if self.half_closed and self._ready:
            self._close()

    @property
    def _ready(self) -> bool:
        return self._turn is None and not self.full and self.connection.receiver is self

    def _begin_turn(self) -> bool:
        try:
            length = find_head(self._unread, self.limits, self._scanned)
            if not length:
                self._head_begins()
                return False
            head = parse_request_head(self._unread[:length], self.limits)
        except ProxyError as error:
            self._malformed(error)
            return False
        held, self._unread = self._unread[length:], b""
        self._scanned = 0
        turn = self._turn = ConnectTurn(self, head) if head.method == b"CONNECT" else Exchange(self, head)
        turn.held = held
        turn.start()
        return True

    def _head_begins(self) -> None:
        self._scanned = len(self._unread)
        if self._fresh:
            self._fresh = False
            self._await(self.egress.settings.handshake_timeout)

    def _malformed(self, error: ProxyError) -> None:
        """A request that cannot be read ends the connection, for nobody knows where the next one begins."""
        if speaks(self._unread[0]) is Speaks.TLS:
            self.connection.transport.write(TLS_REFUSED)
            error = ProxyError(ErrorType.TLS_PROTOCOL_ERROR, "TLS on a port that speaks plain HTTP")
        kind = Door.CONNECT if self._unread.startswith(b"CONNECT ") else Door.FORWARD
        flow = Flow(self.egress, self.client, kind, "", "")
        flow.record.bytes_from_client = len(self._unread)
        if error.error is not ErrorType.TLS_PROTOCOL_ERROR:
            flow.record.status = error.status
            now = self.egress.clock.seconds()
            self.connection.transport.write(refusal(now, error, flow, self.egress.realm, close=True))
        flow.fail(error)
        self.part()

    def may_persist(self, turn: Turn) -> bool:
        """Whether the connection can carry another request after this one."""
        return turn.body is not None and turn.body.done and self._lasts(turn)

    def _lasts(self, turn: Turn) -> bool:
        return turn.lasting and not self.egress.draining and (bool(self._unread) or not self.half_closed)

    def answered(self, turn: Turn, *, close: bool) -> None:
        """A turn is over, its answer written; ``close`` is what the client was told."""
        if close or not self.may_persist(turn):
            self.part()
        else:
            self._next()

    def refused(self, turn: Turn, error: ProxyError) -> None:
        """Write a turn's refusal; the connection is kept where the end of the request can be found cheaply."""
        rest = self._discard(turn, error)
        now, bodiless = self.egress.clock.seconds(), turn.head.method == b"HEAD"
        answer = refusal(now, error, turn.flow, self.egress.realm, close=rest is None, bodiless=bodiless)
        self.connection.transport.write(answer)
        if rest is None:
            self.part()
        elif rest.done:
            self._next()
        else:
            self._turn = rest
            self._await(self.egress.settings.handshake_timeout)
            self.connection.transport.resumeProducing()

    def _discard(self, turn: Turn, error: ProxyError) -> Discard | None:
        """What throws away the rest of a refused request; ``None`` if its end is unknown, far, or nobody needs it."""
        held, turn.held = turn.held, b""
        if turn.body is None or error.error is ErrorType.HTTP_REQUEST_ERROR:
            return None
        rest = Discard(self, turn.body)
        if not rest.take(held) or not self._lasts(turn):
            return None
        # A client that was promised a 100 may send its body now, or take the refusal for the end of it.
        return rest if rest.done or (rest.cheap and b"expect" not in turn.head.names.at) else None

    def discarded(self) -> None:
        """The body of a refused request has gone by."""
        self._next()

    def _next(self) -> None:
        self._turn = None
        self._fresh = True
        self._await(self.egress.settings.keepalive_timeout)
        if not self.full:
            self._read_on()

    def _read_on(self) -> None:
        if not self.half_closed:
            self.connection.transport.resumeProducing()
        self._serve()

    # -- what turns need ----------------------------------------------------------------------------------------------

    def keep(self, data: bytes) -> None:
        """Bytes of a later request; beyond the bound the client is not read until its turn comes."""
        self._unread += data
        if len(self._unread) > self.egress.settings.buffer_size:
            self.connection.transport.pauseProducing()

    def unread(self) -> bytes:
        """Give up the bytes that no request has claimed."""
        data, self._unread = self._unread, b""
        return data

    def leave(self) -> Connection:
        """Give the connection away: it becomes a tunnel."""
        self._deadline.cancel()
        self._turn = None
        self.connection.transport.unregisterProducer()
        return self.connection

    def cut(self) -> None:
        """Break the connection, so that nobody takes half an answer for a whole one."""
        abandon(self.leave())

    def part(self) -> None:
        """Say no more, and close once the client has heard it."""
        Linger(self.leave(), self.egress.deadlines)

    def _close(self) -> None:
        Closing(self.leave(), self.egress.deadlines)

    # -- time ---------------------------------------------------------------------------------------------------------

    def _await(self, seconds: float) -> None:
        """The client has this long until its next head is complete."""
        self._since = self.egress.clock.seconds()
        self._waiting = seconds
        if seconds < self._look_every:
            self._deadline.cancel()
            self._deadline = self.egress.deadlines.after(seconds, self._look)

    def _look(self) -> None:
        """Has the client, or its turn, been silent for too long?"""
        turn, now = self._turn, self.egress.clock.seconds()
        patience = self._waiting
        if isinstance(turn, Turn):
            patience = turn.patience()
            seen = turn.flow.record.id, turn.moved()
            if seen != self._seen:
                self._seen, self._since = seen, now
        left = self._since + patience - now
        self._deadline = self.egress.deadlines.after(min(left, self._look_every) if left > 0 else patience, self._look)
        if left <= 0:
            self._overdue()

    def _overdue(self) -> None:
        if isinstance(self._turn, Exchange):
            self._turn.overdue()
        elif self._ready and self._unread:
            late = ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the request head did not come in time", status=408)
            self._malformed(late)
        else:
            self._close()
