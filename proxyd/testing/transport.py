"""Connections in memory: two transports that are each other's far end, and what may go wrong between them."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.testing.faults import NO_FAULTS, Faults

WINDOW: Final = 64 * 1024
"""Bytes that may be under way, as in the buffers of a kernel; beyond them a producer is paused, and a close waits."""


class _Sign(enum.Enum):
    """What travels besides bytes."""

    FIN = "fin"
    RESET = "reset"


@implementer(ITCPTransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end of a connection in memory; `joined` makes two, and `begin` hands each to its protocol.

    It does what a `Stream` does on a socket: reads nothing before `resumeProducing`, calls its protocol in a later turn
    of the reactor and never while paused, ignores what is written after a close, answers bytes for a closed end with a
    reset, and turns a close with bytes unread into one.
    """

    def __init__(
        self, clock: IReactorTime, protocol: IProtocol, host: IAddress, peer: IAddress, faults: Faults
    ) -> None:
        self.protocol = protocol
        self.producer: Any = None
        self.reading = False
        self.connected = False
        self.disconnecting = False
        self.disconnected = False
        self.options: dict[str, bool] = {}
        self._clock = clock
        self._host = host
        self._peer = peer
        self._faults = faults
        self._far: MemoryTransport
        self._under_way: deque[tuple[bytes | _Sign, Any]] = deque()
        self._inbox: deque[bytes | _Sign] = deque()
        self._sent = 0
        self._outstanding = 0
        self._streaming = False
        self._producer_paused = False
        self._said_fin = False
        self._read_closed = False

    def begin(self) -> None:
        """Hand the connection to its protocol."""
        self.connected = True
        self.protocol.makeConnection(self)

    # -- sending ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes; after a close of this end they are ignored, as Twisted does.

        Raises:
            TypeError: for anything else than bytes.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a transport takes bytes, not {type(data).__name__}")
        if data and self.connected and not self._said_fin and not self.disconnecting:
            self._send(bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send several pieces."""
        self.write(b"".join(data))

    def _send(self, data: bytes) -> None:
        faults = self._faults
        end = faults.end_within(self._sent, len(data))
        data = data[:end]
        self._sent += len(data)
        self._outstanding += len(data)
        for piece in faults.pieces(data):
            self._dispatch(piece)
        if end is not None and faults.resets:
            self._said_fin = True
            self._dispatch(_Sign.RESET)
            self._clock.callLater(0, self._lose, ConnectionLost())
        elif end is not None:
            self.loseWriteConnection()
        elif self._outstanding > WINDOW and self._streaming and not self._producer_paused:
            self._producer_paused = True
            self.producer.pauseProducing()

    def _dispatch(self, what: bytes | _Sign) -> None:
        self._under_way.append((what, self._clock.callLater(self._faults.delay, self._arrive)))

    def _arrive(self) -> None:
        what, _ = self._under_way.popleft()
        self._far._take(what)

    def _delivered(self, count: int) -> None:
        self._outstanding -= count
        if self.producer is not None and not self._outstanding and (self._producer_paused or not self._streaming):
            self._producer_paused = False
            self.producer.resumeProducing()
        self._close_if_sent()

    def loseWriteConnection(self) -> None:
        """Say FIN behind what was written."""
        if self.connected and not self._said_fin:
            self._said_fin = True
            self._dispatch(_Sign.FIN)
            self._clock.callLater(0, self._half_closed)

    def _half_closed(self) -> None:
        protocol = IHalfCloseableProtocol(self.protocol, None)
        if protocol is not None and self.connected:
            protocol.writeConnectionLost()

    def loseConnection(self) -> None:
        """Close once everything is sent."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.reading = False
            self._close_if_sent()

    def _close_if_sent(self) -> None:
        if self.disconnecting and self._outstanding <= WINDOW:
            self._clock.callLater(0, self._close)

    def _close(self) -> None:
        if not self.disconnected:
            if any(isinstance(what, bytes) for what in self._inbox):
                self._dispatch(_Sign.RESET)
            elif not self._said_fin:
                self._dispatch(_Sign.FIN)
            self._lose(ConnectionDone())

    def abortConnection(self) -> None:
        """Reset the connection: what has not left the process is lost, and what the far end has not read."""
        if self.connected:
            self.connected = self.reading = False
            self._recall(WINDOW)
            self._dispatch(_Sign.RESET)
            self._clock.callLater(0, self._lose, ConnectionAborted())

    def _recall(self, sent: int) -> None:
        """Take back what is under way, but for so many bytes."""
        under_way, self._under_way = self._under_way, deque()
        for what, call in under_way:
            sent -= len(what) if isinstance(what, bytes) else 0
            if sent < 0:
                call.cancel()
            else:
                self._under_way.append((what, call))

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _take(self, what: bytes | _Sign) -> None:
        if self.disconnected:
            if isinstance(what, bytes):  # nobody is here: that is answered with a reset
                self._clock.callLater(0, self._far._lose, ConnectionLost())
        elif what is _Sign.RESET:
            self._recall(-1)
            self._lose(ConnectionLost())
        else:
            self._inbox.append(what)
            self._read()

    def _read(self) -> None:
        while self.reading and self._inbox:
            what = self._inbox.popleft()
            if isinstance(what, bytes):
                self._far._delivered(len(what))
                self.protocol.dataReceived(what)
            else:
                self._read_closed = True
        if self.reading and self._read_closed:
            self.reading = False
            protocol = IHalfCloseableProtocol(self.protocol, None)
            if protocol is None:
                self._lose(ConnectionDone())
            else:
                protocol.readConnectionLost()

    def _lose(self, reason: Exception) -> None:
        if not self.disconnected:
            self.connected = self.reading = False
            self.disconnected = True
            self._inbox.clear()
            if self.producer is not None:
                self.producer.stopProducing()
                self.producer = None
            self.protocol.connectionLost(Failure(reason))

    # -- the reading side as a producer, the writing side as a consumer -----------------------------------------------

    def pauseProducing(self) -> None:
        """Read no more."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read, from the next turn of the reactor on; a FIN that was read before is met again."""
        if self.connected and not self.disconnecting:
            self.reading = True
            if self._inbox or self._read_closed:
                self._clock.callLater(0, self._read)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Have a producer paused and resumed as the far end falls behind or keeps up.

        Raises:
            RuntimeError: there is one already.
        """
        if self.producer is not None:
            raise RuntimeError(f"{producer} cannot be registered: {self.producer} was never unregistered")
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer = producer
        self._streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """The producer has done its work."""
        self.producer = None
        self._streaming = self._producer_paused = False

    # -- what a socket knows ------------------------------------------------------------------------------------------

    def getHost(self) -> Any:
        """The address of this end."""
        return self._host

    def getPeer(self) -> Any:
        """The address of the far end."""
        return self._peer

    def getTcpNoDelay(self) -> bool:
        """As it was set."""
        return self.options.get("nodelay", False)

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Set, and otherwise without effect."""
        self.options["nodelay"] = bool(enabled)

    def getTcpKeepAlive(self) -> bool:
        """As it was set."""
        return self.options.get("keepalive", False)

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Set, and otherwise without effect."""
        self.options["keepalive"] = bool(enabled)


def joined(
    clock: IReactorTime,
    near: IProtocol,
    near_address: IAddress,
    far: IProtocol,
    far_address: IAddress,
    near_faults: Faults = NO_FAULTS,
    far_faults: Faults = NO_FAULTS,
) -> tuple[MemoryTransport, MemoryTransport]:
    """The two ends of a new connection; `MemoryTransport.begin` hands each to its protocol."""
    one = MemoryTransport(clock, near, near_address, far_address, near_faults)
    other = MemoryTransport(clock, far, far_address, near_address, far_faults)
    one._far, other._far = other, one
    return one, other
