"""TLS to the proxy: the layer between a connection and its door."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.net.linger import GONE
from proxyd.net.tls_certificate import explain
from proxyd.wire.first_byte import Speaks, speaks

RECORD: Final = 16 * 1024
"""Plain bytes in the largest TLS record (RFC 8446 §5.1)."""

_TLS_WANTED: Final = b"proxyd: this port speaks TLS; the proxy URL must begin with https://\n"
HTTP_ON_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    % len(_TLS_WANTED)
    + _TLS_WANTED
)


class TLSLayer:
    """One TLS session: the receiver of its connection's records, the transport of the connection inside.

    OpenSSL works on memory: what one read of the socket brought is handed on as one piece, and what is written leaves
    in one piece. Back-pressure is the socket's own, in both directions. Of the callables one is called, once:
    ``established`` with this layer when the handshake is done, to give the connection inside its receiver; ``failed``
    with the reason when it cannot be done, for the connection below to be closed; ``left`` when the client goes before.
    """

    __slots__ = (
        "_ended",
        "_established",
        "_failed",
        "_greeted",
        "_handshaking",
        "_incoming",
        "_left",
        "_lower",
        "_outgoing",
        "_paused",
        "_said_fin",
        "_tls",
        "inner",
    )

    def __init__(
        self,
        lower: Connection,
        context: ssl.SSLContext,
        established: Callable[[TLSLayer], None],
        failed: Callable[[str], None],
        left: Callable[[], None],
    ) -> None:
        self._lower = lower
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._established = established
        self._failed = failed
        self._left = left
        self._greeted = False
        self._handshaking = True
        self._paused = False
        self._ended = False  # the client has said that it will send no more
        self._said_fin = False
        self.inner = Connection()
        self.inner.transport = self
        lower.receiver = self

    def subject(self) -> str | None:
        """The common name of the client's verified certificate, or its whole subject where it has none."""
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None:
            return None
        subject = x509.load_der_x509_certificate(certificate).subject
        names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else subject.rfc4514_string() or None

    # -- the receiver of records --------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Records from the client."""
        if self._handshaking:
            self._shake_hands(data)
        elif not self._ended:
            self._incoming.write(data)
            if not self._paused:
                self._deliver()

    def _shake_hands(self, data: bytes) -> None:
        if not self._greeted and speaks(data[0]) is not Speaks.TLS:
            self._explain_tls(speaks(data[0]))
            return
        self._greeted = True
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            self._fail(explain(error))
        else:
            self._handshaking = False
            self._flush()
            self._established(self)
            if not self._paused:
                self._deliver()

    def _explain_tls(self, spoken: Speaks) -> None:
        if spoken is Speaks.HTTP:
            self._lower.transport.write(HTTP_ON_TLS)
        self._fail("the client does not speak TLS")

    def _fail(self, reason: str) -> None:
        self._lower.receiver = GONE
        self._failed(reason)

    def _deliver(self) -> None:
        """Hand on what the records hold, all that are here, and the end if that is here."""
        pieces: list[bytes] = []
        closed = broken = False
        try:
            while self._incoming.pending and not closed:
                piece = self._tls.read(RECORD)
                pieces.append(piece)
                closed = not piece
        except ssl.SSLWantReadError:
            pass  # the rest is part of a record
        except ssl.SSLZeroReturnError:
            closed = True
        except ssl.SSLError:
            broken = True
        self._flush()  # what TLS itself has to say: key updates, alerts
        if any(pieces):
            self.inner.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if broken:
            self._lower.transport.abortConnection()
        elif closed and not self._ended:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self.inner.readConnectionLost()

    def read_closed(self) -> None:
        """The client has said FIN, and perhaps close_notify before."""
        if self._handshaking:
            self._lower.transport.loseConnection()
        elif not self._ended:
            self._end()

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        if self._handshaking:
            self._left()
        else:
            self.inner.connectionLost(reason)
            self.inner.receiver = GONE

    # -- the transport of what is inside ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if data and not self._said_fin:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                self._lower.transport.abortConnection()
            else:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.transport.write(self._outgoing.read())

    def _say_fin(self) -> None:
        if not self._said_fin:
            self._said_fin = True
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # the client has not said it yet, or the session failed before
                pass
            self._flush()

    def loseWriteConnection(self) -> None:
        """Say close_notify; the client may still send."""
        self._say_fin()

    def loseConnection(self) -> None:
        """Say close_notify and close once everything is sent."""
        self._say_fin()
        self._lower.transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self._lower.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Read no more."""
        self._paused = True
        self._lower.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on, first what is here already. The end is told again, for there may be a new receiver."""
        paused, self._paused = self._paused, False
        if self._ended:
            self.inner.readConnectionLost()
            return
        self._lower.transport.resumeProducing()
        if paused:
            self._deliver()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Whoever produces for us is throttled by the socket below."""
        self._lower.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """No more of that."""
        self._lower.transport.unregisterProducer()

    def getPeer(self) -> IAddress:
        """The client's address."""
        return self._lower.transport.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """Our address."""
        return self._lower.transport.getHost()  # type: ignore[no-any-return]
