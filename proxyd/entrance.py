"""The clients of one listener, from accept to their first receiver."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxyd.flow import Client, Egress
from proxyd.frontends.arrival import arrive
from proxyd.net.acceptor import MOST_ACCEPTS, MOST_SHARED_ACCEPTS, Acceptor
from proxyd.net.adopted import AdoptedPort
from proxyd.net.connection import Connection
from proxyd.net.linger import GONE, Linger
from proxyd.net.readiness import Readiness
from proxyd.net.tls import TLSLayer
from proxyd.net.tls_certificate import ServerCertificate
from proxyd.net.transport import Stream, bulk_read_size
from proxyd.request import Door, IPAddress, parse_ip
from proxyd.settings import Listener

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nProxy-Status: proxyd; error=connection_limit_reached\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
"""For a client beyond the limits, where it speaks plain HTTP; others are just closed."""

MOST_TURNED = 64
"""Clients that may be reading `BUSY` at the same time; in a storm the others are just closed. Each holds a descriptor
of those that are kept from the clients for a moment."""

COMPLAIN_AGAIN = 10.0
"""Seconds between two log lines about refused clients: a storm of them shall not fill the log."""


class Crowd:
    """The clients of all listeners: counted together, and by address."""

    _log = Logger()

    def __init__(self, clock: Any, most: int, most_per_client: int) -> None:
        self._clock = clock
        self.most = most
        self.most_per_client = most_per_client
        self.present: set[Visitor] = set()
        self.turned: set[Visitor] = set()
        """Those who were not let in, while they are told."""
        self.refused = 0
        self._by_address: Counter[IPAddress | None] = Counter()
        self._complained = -COMPLAIN_AGAIN

    def admit(self, visitor: Visitor) -> bool:
        """Count a client in, unless there is no room."""
        address = visitor.counted_as
        if len(self.present) >= self.most or (
            self.most_per_client and address is not None and self._by_address[address] >= self.most_per_client
        ):
            self.refused += 1
            self._complain(address)
            return False
        self.present.add(visitor)
        self._by_address[address] += 1
        return True

    def leave(self, visitor: Visitor) -> None:
        """Count a client out."""
        self.turned.discard(visitor)
        if visitor in self.present:
            self.present.remove(visitor)
            self._by_address[visitor.counted_as] -= 1
            if not self._by_address[visitor.counted_as]:
                del self._by_address[visitor.counted_as]

    def _complain(self, address: IPAddress | None) -> None:
        now = self._clock.seconds()
        if now - self._complained >= COMPLAIN_AGAIN:
            self._complained = now
            self._log.warn(
                "client {address} refused: {present} connections, of them {own} from there ({refused} refused so far)",
                address=address,
                present=len(self.present),
                own=self._by_address[address],
                refused=self.refused,
            )


class Visitor(Connection):
    """One client's connection, as long as it lasts."""

    def __init__(self, entrance: Entrance) -> None:
        super().__init__(GONE)
        self._entrance = entrance
        self.counted_as: IPAddress | None = None
        """The address under which the client is counted; ``None`` where it is not the client's own."""

    def connectionMade(self) -> None:
        """Twisted has accepted it."""
        try:
            self._entrance.welcome(self, *_peer(self.transport))
        except BaseException:
            # Whoever has accepted it logs that, and has no other way to it. To abort would change the epoll set first,
            # which may be what has failed.
            self.transport.connectionLost(Failure())
            raise

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted tells of the end."""
        self._entrance.crowd.leave(self)
        super().connectionLost(reason)

    def dismiss(self) -> None:
        """Close once all is sent; where the last words are under way already, they are left to arrive."""
        receiver: object = self.receiver
        if isinstance(receiver, TLSLayer):
            receiver = getattr(receiver.inner, "receiver", None)  # there is none before the handshake is done
        if not isinstance(receiver, Linger):
            self.transport.loseConnection()


class Entrance(Factory):
    """One listener's clients."""

    noisy = False

    def __init__(
        self,
        listener: Listener,
        egress: Egress,
        crowd: Crowd,
        readiness: Readiness | None,
        tls: ServerCertificate | None,
    ) -> None:
        self.listener = listener
        self.egress = egress
        self.crowd = crowd
        self.tls = tls
        self._readiness = readiness
        self._acceptor: Acceptor | None = None

    def logPrefix(self) -> str:
        """What Twisted's log calls the port."""
        return f'listener "{self.listener.name}"'

    def buildProtocol(self, addr: IAddress | None) -> Visitor:
        """Twisted asks for a protocol."""
        return Visitor(self)

    def welcome(self, visitor: Visitor, address: IPAddress | None, port: int) -> None:
        """Let a client in, or turn it away."""
        if not self.listener.proxy_protocol:  # else the address is the balancer's
            visitor.counted_as = address
        if self.crowd.admit(visitor):
            arrive(visitor, Client(self.listener, address, port), self.egress, self.tls)
            visitor.transport.resumeProducing()
        else:
            self._turn_away(visitor)

    def _turn_away(self, visitor: Visitor) -> None:
        speaks_plain_http = self.listener.tls is None and Door.SOCKS5 not in self.listener.doors
        if speaks_plain_http and len(self.crowd.turned) < MOST_TURNED:
            self.crowd.turned.add(visitor)
            visitor.transport.write(BUSY)
            Linger(visitor, self.egress.deadlines)
        else:
            visitor.receiver = GONE
            visitor.transport.loseConnection()

    def accept_streams(self, port: IListeningPort) -> None:
        """Accept for the port ourselves, where we have an epoll set; clients' sockets inherit options of the port's."""
        if self._readiness is not None and isinstance(port, tcp.Port | AdoptedPort):
            if port.socket.family != socket.AF_UNIX:
                port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if isinstance(port, tcp.Port):
                port.stopReading()
            most = MOST_ACCEPTS if self.egress.settings.workers == 1 else MOST_SHARED_ACCEPTS
            self._acceptor = Acceptor(self._readiness, port.socket, self._accepted, most)

    def stop_accepting(self) -> None:
        """Leave the port's socket alone; it is closed next."""
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None

    def _accepted(self, sock: socket.socket, peer: Any) -> None:
        bulk_read = bulk_read_size(self.egress.settings.buffer_size)
        Stream(sock, Visitor(self), self.egress.clock, self._readiness, peer, bulk_read).begin()


def _peer(transport: Any) -> tuple[IPAddress | None, int]:
    if isinstance(transport, Stream) and isinstance(transport.peer, tuple):
        return parse_ip(transport.peer[0]), transport.peer[1]
    peer = transport.getPeer()
    return parse_ip(getattr(peer, "host", "")), getattr(peer, "port", 0)
