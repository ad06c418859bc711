"""A tunnel between any two transports, its bytes copied through this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.errors import ErrorType
from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.rate import Rate
from proxyd.net.relay import Limits, Relay


class CopyRelay(Relay):
    """A tunnel over TLS, a memory transport, or wherever the kernel cannot do it; back-pressure by producer and
    consumer.
    """

    __slots__ = ("_down", "_up")

    def __init__(
        self,
        clock: Any,
        deadlines: Deadlines,
        client: Connection,
        upstream: Connection,
        limits: Limits,
        ended: Callable[[Relay], None],
        early: int = 0,
    ) -> None:
        super().__init__(clock, deadlines, client, upstream, limits, ended, early)
        self._up = _Side(self, client, upstream)
        self._down = _Side(self, upstream, client)

    def start(self) -> None:
        """Begin to move bytes."""
        super().start()
        for side in (self._up, self._down):
            side.start()

    @property
    def bytes_from_client(self) -> int:
        """Bytes the client has sent into the tunnel."""
        return self._early + self._up.moved

    @property
    def bytes_to_client(self) -> int:
        """Bytes the origin has sent into the tunnel."""
        return self._down.moved

    def began(self, side: _Side) -> None:
        """The first bytes of a direction came."""
        if side is self._down:
            self.first_byte = self._clock.seconds()

    def said_fin(self, side: _Side) -> None:
        """One side will send no more: say so to the other, and end when both have."""
        if self.closed_by is None:
            self.closed_by = self._name(side.source)
        if self._up.done and self._down.done:
            self._stop(self.closed_by, None, reset=False)
        else:
            side.sink.transport.loseWriteConnection()

    def broke(self, side: _Side) -> None:
        """One side's connection was lost: so is the other's."""
        name = self._name(side.source)
        error = ErrorType.CLIENT_DISCONNECTED if name == "client" else ErrorType.CONNECTION_TERMINATED
        self._stop(name, error, reset=True)

    def _release(self) -> None:
        self._up.release()
        self._down.release()


@implementer(IPushProducer)
class _Side:
    """What one connection of the tunnel sends: the receiver of its bytes, the producer of the other's."""

    def __init__(self, relay: CopyRelay, source: Connection, sink: Connection) -> None:
        self._relay = relay
        self.source = source
        self.sink = sink
        self.moved = 0
        self.done = False
        self._blocked = False
        self._delayed: Any = None
        limits = relay._limits
        self._rate = Rate(limits.rate, relay._clock.seconds()) if limits.rate else None

    def start(self) -> None:
        self.source.receiver = self
        self.sink.transport.registerProducer(self, True)
        self.source.transport.resumeProducing()

    def release(self) -> None:
        if self._delayed is not None:
            self._delayed.cancel()
            self._delayed = None
        if not self.done:
            self.done = True
            self.sink.transport.unregisterProducer()

    def received(self, data: bytes) -> None:
        if not self.moved:
            self._relay.began(self)
        self.moved += len(data)
        self.sink.transport.write(data)
        if self._rate is not None and not self.done:
            pause = self._rate.charge(len(data), self._relay._clock.seconds())
            if pause and self._delayed is None:
                self.source.transport.pauseProducing()
                self._delayed = self._relay._clock.callLater(pause, self._rested)

    def _rested(self) -> None:
        self._delayed = None
        if not self._blocked:
            self.source.transport.resumeProducing()

    def read_closed(self) -> None:
        self.release()
        self._relay.said_fin(self)

    def lost(self, reason: Failure) -> None:
        self._relay.broke(self)

    def pauseProducing(self) -> None:
        """The sink is full."""
        self._blocked = True
        self.source.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The sink takes more."""
        self._blocked = False
        if self._delayed is None and not self.done:
            self.source.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The sink's connection is lost; its own receiver hears of that."""
