"""TCP and Unix sockets as Twisted transports that send at once."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet import abstract, address, tcp
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IProtocol
from twisted.python.failure import Failure

from proxyd.net.readiness import Readiness, Watch

READ_SIZE = 16 * 1024
"""Bytes asked of the kernel in one read: a request head and a small body, and an allocation of this size is cheap."""

BULK_READ_SIZE = 128 * 1024
"""Bytes asked for while a peer sends much: fewer system calls, and larger pieces for TLS. More would cost memory: the
buffers of a TLS session keep the size that its largest read once had."""

DONE: Final = Failure(ConnectionDone())
LOST: Final = Failure(ConnectionLost())


def bulk_read_size(buffer_size: int) -> int:
    """What one read may bring where so many bytes may be held in each direction: a producer pauses when as much as a
    read waits here, and another read may have come by then."""
    return max(READ_SIZE, min(BULK_READ_SIZE, buffer_size // 2))


class Stream(tcp.Connection):
    """A connected, non-blocking socket whose writes go to the kernel at once and whose readiness comes from our own
    epoll set.

    Without a `Readiness` (no epoll, or a foreign reactor) it is an ordinary Twisted transport that still sends at once.
    """

    _shouldShutdown = False  # nobody shares the socket, so close() alone sends the FIN
    bufferSize = READ_SIZE
    _write_failed = False

    def __init__(
        self,
        sock: socket.socket,
        protocol: IProtocol,
        reactor: Any,
        readiness: Readiness | None = None,
        peer: Any = None,
        bulk_read: int = BULK_READ_SIZE,
    ) -> None:
        abstract.FileDescriptor.__init__(self, reactor)  # not Connection's: the socket is non-blocking already
        self.socket = sock
        self.fileno = sock.fileno
        self.protocol = protocol
        self._clock = reactor
        self.peer = peer  # the name that accept() gave
        self.bulk_read = bulk_read
        self.watch = None if readiness is None else Watch(readiness, sock.fileno(), self._broken)

    def begin(self) -> None:
        """Hand the connection to its protocol; reading starts with `resumeProducing`."""
        self.connected = 1
        self.protocol.makeConnection(self)

    @property
    def pending(self) -> int:
        """Bytes that wait here for the kernel to take them."""
        return self._tempDataLen + len(self.dataBuffer) - self.offset

    def write(self, data: bytes) -> None:
        """Send the bytes now, as far as the kernel takes them; the rest follows when it can."""
        if not self.connected or self._writeDisconnecting:
            return
        if not self._tempDataLen and len(self.dataBuffer) == self.offset:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.write_failed()
                if self.watch is None or self.watch.read is None:
                    self._clock.callLater(0, self.connectionLost, LOST)
                return
            if sent == len(data):
                return
            data = data[sent:]
        super().write(data)

    def write_failed(self) -> None:
        """The peer is gone. What it said before is still to be read, and the end that is read then is no clean one:
        the error was told to the writer, and the kernel tells it once."""
        self._write_failed = self._writeDisconnected = True

    def close(self) -> None:
        """Close now if nothing is waiting to be sent, else when it is; ``connectionLost`` follows, perhaps before
        this returns."""
        if self.pending:
            self.loseConnection()
        else:
            self.connectionLost(DONE)

    # -- readiness: the reactor's set or our own ------------------------------------------------------------------

    def resumeProducing(self) -> None:
        """Read on, unless that is what we do."""
        if self.watch is None or self.watch.read is None:
            super().resumeProducing()

    def startReading(self) -> None:
        if self.watch is None:
            super().startReading()
        elif not self.disconnected:
            self.watch.read = self._readable
            self.watch.apply()

    def stopReading(self) -> None:
        if self.watch is None:
            super().stopReading()
        elif self.watch.read is not None:
            self.watch.read = None
            self.watch.apply()

    def startWriting(self) -> None:
        if self.watch is None:
            super().startWriting()
        elif not self.disconnected:
            self.watch.write = self._writable
            self.watch.apply()

    def stopWriting(self) -> None:
        if self.watch is None:
            super().stopWriting()
        elif self.watch.write is not None:
            self.watch.write = None
            self.watch.apply()

    def _readable(self) -> None:
        try:
            data = self.socket.recv(self.bufferSize)
        except BlockingIOError:
            return
        except OSError:
            self.connectionLost(LOST)
            return
        if data:
            self.bufferSize = self.bulk_read if len(data) >= READ_SIZE else READ_SIZE
            self.protocol.dataReceived(data)
        else:
            self.stopReading()
            if self._write_failed:
                self.connectionLost(LOST)
            else:
                self.readConnectionLost(DONE)

    def _writable(self) -> None:
        why = self.doWrite()
        if why is not None:
            self.connectionLost(DONE if isinstance(why, ConnectionDone) else LOST)

    def _broken(self, failure: Failure | None) -> None:
        self.connectionLost(LOST if failure is None else failure)

    def connectionLost(self, reason: Failure) -> None:
        """The end of the connection: leave the set, close the socket, tell the protocol."""
        if self.disconnected:
            return
        if self.watch is None:
            super().connectionLost(reason)
            return
        self.disconnected = 1
        self.connected = 0
        self.watch.close()
        if self.producer is not None:
            self.producer.stopProducing()
            self.producer = None
        if reason.type is ConnectionAborted:
            self._closeSocket(False)
        else:
            self.socket.close()
        protocol = self.protocol
        del self.protocol, self.socket, self.fileno
        protocol.connectionLost(reason)

    # -- addresses --------------------------------------------------------------------------------------------------

    def getHost(self) -> IAddress:
        """Our address."""
        return _address(self.socket.family, self.socket.getsockname())

    def getPeer(self) -> IAddress:
        """The other side's address, for as long as the connection stands."""
        return _address(self.socket.family, self.socket.getpeername())

    def logPrefix(self) -> str:
        """What Twisted's log calls us."""
        return "proxyd"


def _address(family: int, name: Any) -> IAddress:
    if family == socket.AF_INET:
        return address.IPv4Address("TCP", *name)
    if family == socket.AF_INET6:
        return address.IPv6Address("TCP", *name)
    return address.UNIXAddress(name or None)
