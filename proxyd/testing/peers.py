"""The scripted ends of connections: what a client or an origin does, and what it gets to see."""

from __future__ import annotations

import enum
from typing import Any

from OpenSSL import SSL
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.testing.reactor import LabReactor
from proxyd.testing.tls import ClientSession


class Ending(enum.Enum):
    """How the far end of a connection has ended it."""

    OPEN = "open"
    """Not at all."""
    FIN = "fin"
    """It will send no more."""
    RESET = "reset"
    """It has broken the connection."""


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """One scripted end of a connection in memory.

    In a `LabReactor` each method returns when everything has happened that takes no time; with another reactor that
    is for its own turns to do.
    """

    transport: Any

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._unread = b""
        self._tls: ClientSession | None = None
        self._closed = False
        self.ending = Ending.OPEN
        """How the far end has ended the connection."""

    # -- the script ---------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            BrokenPipeError: this end was closed or half-closed.
            ConnectionResetError: the far end has reset the connection.
        """
        self._check_open()
        self.transport.write(data if self._tls is None else self._tls.encrypt(data))
        self._settle()

    def received(self) -> bytes:
        """What has come since the last call."""
        data, self._unread = self._unread, b""
        return data

    def half_close(self) -> None:
        """Send no more: FIN, or close_notify within TLS. Raises as `send` does."""
        self._check_open()
        self._closed = True
        if self._tls is None:
            self.transport.loseWriteConnection()
        else:
            self.transport.write(self._tls.close())
        self._settle()

    def close(self) -> None:
        """Close: send no more, and read no more; harmless after another end."""
        if self._tls is not None and not self._closed:
            self.transport.write(self._tls.close())
        self._closed = True
        self.transport.loseConnection()
        self._settle()

    def reset(self) -> None:
        """Break the connection."""
        self._closed = True
        self.transport.abortConnection()
        self._settle()

    def pause(self) -> None:
        """Read no more, so that what the far end sends piles up."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self.transport.resumeProducing()
        self._settle()

    def start_tls(self, context: SSL.Context | None = None) -> SSL.Connection:
        """Speak TLS from here on, as a client; without a context every certificate is believed.

        Gives the OpenSSL connection, which knows the version, the ALPN protocol and the certificate.

        Raises:
            ConnectionAbortedError: the far end does not agree to it, as far as that takes no time.
        """
        self._tls = ClientSession(context)
        self.transport.write(self._tls.start())
        self._settle()
        if self._tls.error:
            raise ConnectionAbortedError(self._tls.error)
        return self._tls.connection

    def _check_open(self) -> None:
        if self.ending is Ending.RESET:
            raise ConnectionResetError("the far end has reset the connection")
        if self._closed:
            raise BrokenPipeError("this end is closed")

    def _settle(self) -> None:
        if isinstance(self._clock, LabReactor):
            self._clock.settle()

    # -- the protocol -------------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """The transport is connected: read."""
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """The transport brings bytes."""
        if self._tls is not None:
            data = self._tls.decrypt(data)
            self.transport.write(self._tls.outgoing())
            if self._tls.said_close:
                self.ending = Ending.FIN
        self._unread += data
        self.came(data)

    def came(self, data: bytes) -> None:
        """Bytes came; for those who want to act on them."""

    def readConnectionLost(self) -> None:
        """The transport has read FIN."""
        self.ending = Ending.FIN

    def writeConnectionLost(self) -> None:
        """Our own FIN is sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if reason.check(ConnectionLost) and not reason.check(ConnectionAborted):
            self.ending = Ending.RESET
