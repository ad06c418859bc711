"""A tunnel between two plain sockets, moved by the kernel."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.interfaces import IPullProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.errors import ErrorType
from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.rate import Rate
from proxyd.net.relay import Limits, Relay
from proxyd.net.splice import Splicer, Transfer


class SpliceRelay(Relay):
    """A tunnel whose bytes never leave the kernel; the transports keep their sockets, and their protocols hear the
    end.
    """

    __slots__ = ("_down", "_gone", "_open", "_up")

    def __init__(
        self,
        splicer: Splicer,
        deadlines: Deadlines,
        client: Connection,
        upstream: Connection,
        limits: Limits,
        ended: Callable[[Relay], None],
        early: int = 0,
    ) -> None:
        super().__init__(splicer.reactor, deadlines, client, upstream, limits, ended, early)
        chunk = limits.buffer_size
        self._up = Transfer(splicer, client.transport, upstream.transport, self, chunk=chunk)
        self._down = Transfer(splicer, upstream.transport, client.transport, self, chunk=chunk)
        self._open = 2  # directions
        self._gone: str | None = None  # the side that takes nothing any more, while it is still heard
        if limits.rate:
            now = splicer.reactor.seconds()
            self._up.rate, self._down.rate = Rate(limits.rate, now), Rate(limits.rate, now)

    def start(self) -> None:
        """Begin to move bytes."""
        super().start()
        self._client.receiver = _Side(self, "client")
        self._upstream.receiver = _Side(self, "origin")
        for transfer in (self._up, self._down):
            if transfer.sink.pending:
                _Flush(transfer)
            else:
                transfer.start()

    @property
    def bytes_from_client(self) -> int:
        """Bytes the client has sent into the tunnel."""
        return self._early + self._up.moved

    @property
    def bytes_to_client(self) -> int:
        """Bytes the origin has sent into the tunnel."""
        return self._down.moved

    def began(self, transfer: Transfer) -> None:
        """The first bytes of a direction came."""
        if transfer is self._down:
            self.first_byte = self._clock.seconds()

    def finished(self, transfer: Transfer) -> None:
        """One side said FIN: say it to the other, and end when both have."""
        self._open -= 1
        if self.closed_by is None:
            self.closed_by = "client" if transfer is self._up else "origin"
        if self._gone is not None:
            self._broken(self._gone)
        elif not self._open:
            self._stop(self.closed_by, None, reset=False)
        else:
            try:
                transfer.sink.socket.shutdown(socket.SHUT_WR)
            except OSError:  # reset meanwhile
                self._sink_gone(transfer)

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """One side reset its connection: so do we on the other, once that has the last words of the first."""
        if at_source:
            self._broken("client" if transfer is self._up else "origin")
        else:
            self._open -= 1
            self._sink_gone(transfer)

    def _sink_gone(self, transfer: Transfer) -> None:
        """Nothing more can be said to one side; what it said before its reset may still wait in the kernel."""
        name = "origin" if transfer is self._up else "client"
        if self._open:
            self._gone = name
        else:
            self._broken(name)

    def _broken(self, name: str) -> None:
        name = self._gone or name
        error = ErrorType.CLIENT_DISCONNECTED if name == "client" else ErrorType.CONNECTION_TERMINATED
        self._stop(name, error, reset=True)

    def _close(self, connection: Connection) -> None:
        connection.transport.close()  # at once: nothing of it is left in user space

    def _release(self) -> None:
        self._up.stop()
        self._down.stop()


@implementer(IPullProducer)
class _Flush:
    """Has a transfer begin when its sink's transport has sent what it was given before the tunnel opened."""

    __slots__ = ("_transfer",)

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        transfer.sink.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """The transport asks at once, and again when all is sent."""
        if not self._transfer.sink.pending:
            self._transfer.sink.unregisterProducer()
            self._transfer.start()

    def stopProducing(self) -> None:
        """Its connection is lost, as its receiver hears too."""


class _Side:
    """Has one connection of a spliced tunnel: its bytes pass below, so only its loss is heard here."""

    __slots__ = ("_name", "_relay")

    def __init__(self, relay: SpliceRelay, name: str) -> None:
        self._relay = relay
        self._name = name

    def received(self, data: bytes) -> None:
        """Never called: the transport is not reading."""

    def read_closed(self) -> None:
        """Never called: the transport is not reading."""

    def lost(self, reason: Failure) -> None:
        """The transport found its socket reset."""
        self._relay._broken(self._name)
