"""One connection, and whoever has its bytes at the moment."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer


class ITransport(ITCPTransport, IConsumer, IPushProducer):
    """What we ask of a transport: half-close, abort, and back-pressure both ways."""


class Receiver(Protocol):
    """Who has a connection's bytes: a door, an exchange, a relay, the idle pool."""

    def received(self, data: bytes) -> None:
        """Bytes came."""

    def read_closed(self) -> None:
        """The peer will send nothing more; it may still be written to."""

    def lost(self, reason: Failure) -> None:
        """The connection is gone; called once, and last."""


@implementer(IHalfCloseableProtocol)
class Connection(protocol.Protocol):
    """A client's or an origin's connection: moves bytes to its receiver, and knows nothing of them."""

    transport: Any  # an ITransport
    receiver: Receiver

    def __init__(self, receiver: Receiver | None = None) -> None:
        if receiver is not None:
            self.receiver = receiver

    def dataReceived(self, data: bytes) -> None:
        """Twisted brings bytes."""
        self.receiver.received(data)

    def readConnectionLost(self) -> None:
        """Twisted tells of the peer's half-close."""
        self.receiver.read_closed()

    def writeConnectionLost(self) -> None:
        """Twisted tells that our own half-close was carried out."""

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Twisted tells of the end."""
        self.receiver.lost(reason)
