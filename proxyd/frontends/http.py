"""An HTTP client's connection: its requests, one after the other."""

from __future__ import annotations

from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress, Flow
from proxyd.frontends.answers import TLS_REFUSED, refusal
from proxyd.frontends.connect import ConnectTurn
from proxyd.frontends.forward import Exchange
from proxyd.frontends.turn import Turn
from proxyd.net.connection import Connection
from proxyd.net.linger import Linger
from proxyd.request import Door
from proxyd.wire.body import Body
from proxyd.wire.first_byte import Speaks, speaks
from proxyd.wire.http1 import HeadLimits, RequestHead, find_head, parse_request_head

DISCARD_LIMIT = 1024 * 1024
"""Bytes of a refused request's body that are read and thrown away to keep the connection; for more it is closed."""


class HttpDoor:
    """Has one client's connection while it speaks HTTP: reads heads, and gives each request its turn.

    One request at a time: what a client pipelines waits, unread beyond a bound.
    """

    __slots__ = (
        "_deadline",
        "_read_closed",
        "_scanned",
        "_serving",
        "_since",
        "_turn",
        "_unread",
        "_waiting",
        "client",
        "connection",
        "egress",
        "limits",
    )

    def __init__(self, connection: Connection, client: Client, egress: Egress) -> None:
        self.connection = connection
        self.client = client
        self.egress = egress
        settings = egress.settings
        self.limits = HeadLimits(settings.head_size, settings.head_fields, settings.start_line_size)
        self._unread = b""
        self._scanned = 0
        self._serving = False
        self._turn: Turn | _Discard | None = None
        self._read_closed = False
        self._since = egress.clock.seconds()
        self._waiting = settings.handshake_timeout  # seconds that the present silence may last
        self._deadline = egress.deadlines.after(self._waiting, self._overdue)

    # -- the connection -----------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._turn is not None:
            self._turn.client_sent(data)
            return
        fresh = not self._unread
        self._unread += data
        self._serve()
        if fresh and self._unread and self._turn is None and self.connection.receiver is self:
            self._await(self.egress.settings.handshake_timeout)

    def read_closed(self) -> None:
        """The client will send no more; what it has asked is still answered."""
        self._read_closed = True
        if self._turn is not None:
            self._turn.client_closed()
        else:
            self._close()

    def lost(self, reason: Failure) -> None:
        """The client is gone."""
        self._deadline.cancel()
        if self._turn is not None:
            self._turn.client_lost()

    # -- requests -------------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Begin the requests whose heads are complete, one after the other; what a turn does at once may end it."""
        if not self._serving:
            self._serving = True
            while self._turn is None and self._unread and self._begin_turn():
                pass
            self._serving = False

    def _begin_turn(self) -> bool:
        try:
            length = find_head(self._unread, self.limits, self._scanned)
            if not length:
                self._scanned = len(self._unread)
                return False
            head = parse_request_head(self._unread[:length], self.limits)
        except ProxyError as error:
            self._malformed(error)
            return False
        self._unread = self._unread[length:]
        self._scanned = 0
        turn = self._turn = ConnectTurn(self, head) if head.method == b"CONNECT" else Exchange(self, head)
        if self._unread:
            turn.held, self._unread = self._unread, b""
        turn.start()
        return True

    def _malformed(self, error: ProxyError) -> None:
        """A request that cannot be read ends the connection, for nobody knows where the next one begins."""
        if self._unread and speaks(self._unread[0]) is Speaks.TLS:
            self.connection.transport.write(TLS_REFUSED)
            error = ProxyError(ErrorType.TLS_PROTOCOL_ERROR, "TLS on a port that speaks plain HTTP")
        kind = Door.CONNECT if self._unread.startswith(b"CONNECT ") else Door.FORWARD
        flow = Flow(self.egress, self.client, kind, "-", "-")
        flow.record.bytes_from_client = len(self._unread)
        self._unread = b""
        if error.error is not ErrorType.TLS_PROTOCOL_ERROR:
            flow.record.status = error.status
            now = self.egress.clock.seconds()
            self.connection.transport.write(refusal(now, error, flow, self.egress.realm, close=True))
        flow.fail(error)
        self._linger()

    def may_persist(self, turn: Turn) -> bool:
        """Whether the connection can carry another request after this one."""
        head = turn.head
        return (
            head.version == (1, 1)
            and turn.body is not None
            and turn.body.done
            and not self._read_closed
            and not self.egress.draining
            and b"close" not in head.tokens(b"connection")
            and b"close" not in head.tokens(b"proxy-connection")
        )

    def answered(self, turn: Turn) -> None:
        """A turn is over, its answer written."""
        if self.may_persist(turn) and not self._closes(turn):
            self._next()
        else:
            self._linger()

    @staticmethod
    def _closes(turn: Turn) -> bool:
        return isinstance(turn, Exchange) and turn.response is not None and turn.response.close

    def _next(self) -> None:
        self._turn = None
        self._await(self.egress.settings.handshake_timeout if self._unread else self.egress.settings.keepalive_timeout)
        self.connection.transport.resumeProducing()
        self._serve()

    def refused(self, turn: Turn, error: ProxyError) -> None:
        """Write a turn's refusal; its body is thrown away if that is cheap and nobody waits for a 100."""
        body = turn.body
        discard = None
        if body is not None and not body.done and b"expect" not in turn.head.names and body.left <= DISCARD_LIMIT:
            discard = _Discard(self, body)
            discard.take(turn.held)
        elif turn.held:
            self._unread = turn.held + self._unread
        turn.held = b""
        sound = body is not None and (body.done or discard is not None)
        keep = sound and turn.head.version == (1, 1) and not self._read_closed and not self.egress.draining
        keep = keep and b"close" not in turn.head.tokens(b"connection") + turn.head.tokens(b"proxy-connection")
        now, bodiless = self.egress.clock.seconds(), turn.head.method == b"HEAD"
        self.connection.transport.write(
            refusal(now, error, turn.flow, self.egress.realm, close=not keep, bodiless=bodiless)
        )
        if not keep:
            self._linger()
        elif discard is not None and not discard.body.done:
            self._turn = discard
            self._await(self.egress.settings.handshake_timeout)
            self.connection.transport.resumeProducing()
        else:
            self._next()

    # -- what turns need --------------------------------------------------------------------------------------------------------

    def keep(self, data: bytes) -> None:
        """Bytes of a later request; beyond the bound the client is not read until its turn comes."""
        if data:
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
        return self.connection

    def cut(self) -> None:
        """Break the connection, so that nobody takes half an answer for a whole one."""
        self._forget()
        self.connection.transport.abortConnection()

    def discarded(self) -> None:
        """The body of a refused request has gone by."""
        self._next()

    def _close(self) -> None:
        self._deadline.cancel()
        self.connection.transport.loseConnection()

    def _forget(self) -> None:
        self._deadline.cancel()
        self._turn = None
        self._unread = b""

    def _linger(self) -> None:
        self._forget()
        Linger(self.connection, self.egress.deadlines)

    # -- time -------------------------------------------------------------------------------------------------------------------

    def _await(self, seconds: float) -> None:
        """The client has this long until its next head is complete; set anew only when that is sooner than planned."""
        self._since = self.egress.clock.seconds()
        if seconds < self._waiting:
            self._deadline.cancel()
            self._deadline = self.egress.deadlines.after(seconds, self._overdue)
        self._waiting = seconds

    def _overdue(self) -> None:
        if isinstance(self._turn, Turn):
            left = self._waiting  # the turn has its own deadlines
        else:
            left = self._since + self._waiting - self.egress.clock.seconds()
        if left > 0:
            self._deadline = self.egress.deadlines.after(left, self._overdue)
        elif self._unread:
            self._malformed(ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the request head did not come in time", status=408))
        else:
            self._close()


class _Discard:
    """The rest of a refused request's body."""

    __slots__ = ("_door", "_seen", "body")

    def __init__(self, door: HttpDoor, body: Body) -> None:
        self._door = door
        self.body = body
        self._seen = 0

    def take(self, data: bytes) -> None:
        """Throw body bytes away; what is behind them is the next request's."""
        if data:
            self._seen += len(data)
            _, surplus = self.body.feed(data)
            self._door.keep(surplus)

    def client_sent(self, data: bytes) -> None:
        """More of it."""
        try:
            self.take(data)
        except ProxyError:
            self._door.cut()
            return
        if self.body.done:
            self._door.discarded()
        elif self._seen > DISCARD_LIMIT:
            self._door.cut()

    def client_closed(self) -> None:
        """The client does not finish it."""
        self._door.cut()

    def client_lost(self) -> None:
        """The client is gone; its refusal is recorded already."""
