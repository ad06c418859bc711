"""Clients on real sockets, for the tests that need some."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs the tests
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class Talk(Protocol):
    """One end of a connection: what it has received, and when it ended."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[bytes] = Deferred()
        """Fires with everything that was received."""
        self._wanted = b""
        self._waiting: Deferred[bytes] | None = None

    def until(self, text: bytes) -> Deferred[bytes]:
        """Fires with everything that was received so far, once this is in it."""
        self._wanted, self._waiting = text, Deferred()
        waiting = self._waiting
        self._look()
        return waiting

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        self.received += data
        self._look()

    def _look(self) -> None:
        if self._waiting is not None and self._wanted in self.received:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self.received)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.closed.callback(self.received)


async def connect(address: IAddress, source: str | None = None) -> Talk:
    """A connection to a listener."""
    if isinstance(address, UNIXAddress):
        endpoint: Any = UNIXClientEndpoint(reactor, address.name)
    else:
        host: str = address.host  # type: ignore[attr-defined]
        port: int = address.port  # type: ignore[attr-defined]
        bind = None if source is None else (source, 0)
        endpoint = HostnameEndpoint(reactor, host, port, bindAddress=bind)
    talk: Talk = await endpoint.connect(Factory.forProtocol(Talk))
    return talk
