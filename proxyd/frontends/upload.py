"""The way there: the body of a client's request to its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.answers import CONTINUE
from proxyd.frontends.shortcut import take_shortcut
from proxyd.net.connection import Connection
from proxyd.net.splice import Transfer
from proxyd.wire.body import Body

if TYPE_CHECKING:
    from proxyd.frontends.forward import Exchange


@implementer(IPushProducer)
class Upload:
    """What is still to come of a request's body when its head was sent on; the origin sets the client's pace."""

    __slots__ = ("_body", "_client", "_continue_timer", "_exchange", "_full", "_origin", "_transfer", "_useless")

    def __init__(self, exchange: Exchange, body: Body, upstream: Connection) -> None:
        self._exchange = exchange
        self._body = body
        self._client = exchange.door.connection.transport
        self._origin = upstream.transport
        self._continue_timer: Any = None
        self._full = False
        self._useless = False  # the origin takes no more; what it said before is still to be read
        self._transfer: Transfer | None = None
        self._origin.registerProducer(self, True)

    def start(self, *, awaited: bool) -> None:
        """Read on from the client; ``awaited`` if it may be waiting for a 100 before it sends anything."""
        if awaited:
            egress = self._exchange.egress
            self._continue_timer = egress.clock.callLater(egress.settings.continue_wait, self._say_continue)
        self._shorten()
        if self._transfer is None:
            self._client.resumeProducing()

    def _say_continue(self) -> None:
        """The origin is silent or far: the client shall not wait for it."""
        self._continue_timer = None
        self._exchange.said_continue = True
        self._client.write(CONTINUE)

    def settled(self) -> None:
        """The client need not be told to go on: it has, or the origin has spoken."""
        if self._continue_timer is not None:
            self._continue_timer.cancel()
            self._continue_timer = None

    def send(self, content: bytes) -> None:
        """Pass on what the client sent."""
        self.settled()
        if content and not self._useless:
            self._origin.write(content)
        if not self._body.done:
            self._shorten()

    def stop(self) -> None:
        """Let go of everything: the body is complete, or nobody wants it any more."""
        self.settled()
        if self._transfer is not None:
            self._transfer.stop()
            self._account(self._transfer)
        self._origin.unregisterProducer()

    @property
    def moving(self) -> int:
        """Bytes moved by the kernel that are not in the record yet."""
        return 0 if self._transfer is None else self._transfer.moved

    def lateness(self) -> ProxyError:
        """Why nothing moves."""
        if self._full or (self._transfer is not None and self._transfer.blocked):
            return ProxyError(ErrorType.CONNECTION_WRITE_TIMEOUT, "the origin did not take the request's body in time")
        return ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the request's body did not come in time", status=408)

    # -- the producer of what is written to the origin ----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The origin does not keep up."""
        self._full = True
        self._client.pauseProducing()

    def resumeProducing(self) -> None:
        """It takes more."""
        self._full = False
        self._client.resumeProducing()

    def stopProducing(self) -> None:
        """Its connection is lost, as the response is told too."""

    # -- a body moved by the kernel (the owner's side of a Transfer) --------------------------------------------------

    def _shorten(self) -> None:
        if not self._useless:
            self._transfer = take_shortcut(self._exchange.egress, self._client, self._origin, self._body, self)

    def began(self, transfer: Transfer) -> None:
        """The client went on by itself."""
        self.settled()

    def finished(self, transfer: Transfer) -> None:
        """All of it, or the client's FIN in the middle."""
        self._account(transfer)
        if self._body.done:
            self._exchange.uploaded()
            self._client.resumeProducing()
        else:
            self._exchange.client_closed()

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """One side was reset while the kernel moved the body."""
        self._account(transfer)
        if at_source:
            self._client.abortConnection()
        else:
            self._useless = True
            self._client.resumeProducing()

    def _account(self, transfer: Transfer) -> None:
        self._transfer = None
        self._exchange.flow.record.bytes_from_client += transfer.moved
        self._body.skip(transfer.moved)
