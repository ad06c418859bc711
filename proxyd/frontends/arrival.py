"""From a connection to its door: PROXY protocol header, TLS, first byte."""

from __future__ import annotations

from dataclasses import replace

from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress, Flow
from proxyd.frontends.answers import TLS_REFUSED
from proxyd.frontends.http import HttpDoor
from proxyd.frontends.socks5 import Socks5Door
from proxyd.net.connection import Connection
from proxyd.net.linger import Closing, Linger, abandon
from proxyd.net.tls import TLSLayer
from proxyd.net.tls_certificate import ServerCertificate
from proxyd.request import Door, Identity
from proxyd.wire.first_byte import Speaks, speaks
from proxyd.wire.proxy_protocol import parse_proxy_header


def arrive(connection: Connection, client: Client, egress: Egress, tls: ServerCertificate | None) -> None:
    """Give a new connection its first receiver: its door, unless something has to come before."""
    listener = client.listener
    if listener.detect or listener.tls_first or listener.proxy_protocol:
        Arrival(connection, client, egress, tls)
    elif Door.SOCKS5 in listener.doors:
        connection.receiver = Socks5Door(connection, client, egress, egress.clock.seconds())
    else:
        connection.receiver = HttpDoor(connection, client, egress, egress.clock.seconds())


class Arrival:
    """Has a client's connection until it is clear what it speaks; what must come first is configured per listener."""

    __slots__ = ("_began", "_client", "_connection", "_deadline", "_egress", "_proxied", "_secure", "_tls", "_unread")

    def __init__(self, connection: Connection, client: Client, egress: Egress, tls: ServerCertificate | None) -> None:
        self._connection = connection
        self._client = client
        self._egress = egress
        self._tls = tls
        self._secure = False
        self._proxied = client.listener.proxy_protocol
        self._unread = b""
        self._began = egress.clock.seconds()
        self._deadline = egress.deadlines.after(egress.settings.handshake_timeout, self._overdue)
        connection.receiver = self
        self._go_on()

    def _go_on(self) -> None:
        """Take the next step that needs no bytes, or that has its bytes."""
        listener = self._client.listener
        if self._proxied:
            if self._unread:
                self._read_proxy_header()
        elif listener.tls_first and not self._secure:
            self._start_tls()
        elif not listener.detect:
            self._open(Speaks.SOCKS5 if listener.doors == {Door.SOCKS5} else Speaks.HTTP)
        elif self._unread:
            spoken = speaks(self._unread[0])
            if spoken is Speaks.TLS and not self._secure:
                self._start_tls()
            else:
                self._open(spoken)

    def _read_proxy_header(self) -> None:
        try:
            header = parse_proxy_header(self._unread)
        except ProxyError as error:
            self._refuse(error)
            return
        if header is not None:
            self._unread = self._unread[header.size :]
            self._proxied = False
            if header.address is not None:
                self._client = replace(self._client, address=header.address, port=header.port)
            self._go_on()

    def _start_tls(self) -> None:
        if self._tls is None:
            self._refuse(ProxyError(ErrorType.TLS_PROTOCOL_ERROR, "TLS on a port without a certificate"), TLS_REFUSED)
            return
        data, self._unread = self._unread, b""
        layer = TLSLayer(self._connection, self._tls.current(), self._established, self._tls_failed, self._left)
        if data:
            layer.received(data)

    def _established(self, layer: TLSLayer) -> None:
        self._secure = True
        self._connection = layer.inner
        self._connection.receiver = self
        subject = layer.subject()
        if subject is not None:
            self._client = replace(self._client, identity=Identity(subject, "certificate"))
        self._go_on()

    def _tls_failed(self, reason: str) -> None:
        self._refuse(ProxyError(ErrorType.TLS_PROTOCOL_ERROR, reason))

    def _open(self, spoken: Speaks) -> None:
        """Give the connection to its door, with what it has sent so far."""
        connection = self._connection
        if spoken is Speaks.SOCKS5:
            connection.receiver = Socks5Door(connection, self._client, self._egress, self._began)
        elif spoken is Speaks.HTTP or not self._client.listener.detect:
            connection.receiver = HttpDoor(connection, self._client, self._egress, self._began)
        else:
            self._refuse(ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the first byte is neither TLS, SOCKS5 nor HTTP"))
            return
        self._deadline.cancel()
        if self._unread:
            connection.receiver.received(self._unread)

    def received(self, data: bytes) -> None:
        """The first bytes."""
        self._unread += data
        self._go_on()

    def read_closed(self) -> None:
        """A client that came and went."""
        self._deadline.cancel()
        Closing(self._connection, self._egress.deadlines)

    def lost(self, reason: Failure) -> None:
        """The client is gone, and has asked for nothing: no record."""
        self._left()

    def _left(self) -> None:
        self._deadline.cancel()

    def _refuse(self, error: ProxyError, answer: bytes = b"") -> None:
        self._deadline.cancel()
        flow = Flow(self._egress, self._client, Door.FORWARD, "", "")
        flow.record.protocol = ""  # nobody got so far as to know
        flow.record.bytes_from_client = len(self._unread)
        flow.fail(error)
        if answer:
            self._connection.transport.write(answer)
        Linger(self._connection, self._egress.deadlines)

    def _overdue(self) -> None:
        """Silence is no request, and gets no record."""
        abandon(self._connection)
