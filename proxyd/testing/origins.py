"""Scripted origins, and the dialer that connects to them."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IReactorTime

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.dialer import ATTEMPT_DELAY
from proxyd.request import IPAddress
from proxyd.testing.faults import NO_FAULTS, Faults
from proxyd.testing.peers import Peer
from proxyd.testing.reactor import internet_address
from proxyd.testing.transport import joined

PROXY_IPV4: Final = "192.0.2.254"
PROXY_IPV6: Final = "2001:db8::254"
"""Where origins see the proxy."""

P = TypeVar("P", bound=IProtocol)


class Reach(enum.Enum):
    """What a connection attempt meets at an origin's address."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "silent"
    """Nothing comes back: the attempt lasts until its time is up."""
    UNROUTABLE = "unroutable"


class OriginPeer(Peer):
    """An origin's end of one connection."""

    def __init__(self, clock: Any, origin: Origin) -> None:
        super().__init__(clock)
        self._origin = origin
        self._tail = b""

    def came(self, data: bytes) -> None:
        """Give the origin's answer behind each blank line, the end of a request head."""
        ends = (self._tail + data).count(b"\r\n\r\n")
        self._tail = (self._tail + data)[-3:]
        if self._origin.answer:
            for _ in range(ends):
                self.send(self._origin.answer)


@dataclass(slots=True, eq=False)
class Origin:
    """A scripted origin: what is at one port, and how it behaves.

    ``received``, ``reply``, ``half_close``, ``close`` and ``reset`` are about the connection that was made last;
    ``connections`` has all of them.
    """

    clock: Any
    answer: bytes = b""
    """What is sent by itself for each head (to a blank line) that a connection receives."""
    reach: Reach = Reach.OPEN
    connect_delay: float = 0.0
    """Seconds until a connection is made."""
    faults: Faults = NO_FAULTS
    """What goes wrong with the bytes that it sends."""
    connections: list[OriginPeer] = field(default_factory=list)

    @property
    def connection(self) -> OriginPeer:
        """The connection that was made last. Raises AssertionError if there is none."""
        if not self.connections:
            raise AssertionError("nobody has connected to this origin")
        return self.connections[-1]

    def received(self) -> bytes:
        """What has come since the last call."""
        return self.connection.received()

    def reply(self, data: bytes) -> None:
        """Send bytes."""
        self.connection.send(data)

    def half_close(self) -> None:
        """Send no more."""
        self.connection.half_close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def reset(self) -> None:
        """Break the connection."""
        self.connection.reset()

    def accept(self) -> OriginPeer:
        """One more connection, which its transport is yet to be given to."""
        peer = OriginPeer(self.clock, self)
        self.connections.append(peer)
        return peer


@dataclass(frozen=True, slots=True)
class Dial:
    """One thing a dialer was asked for."""

    addresses: tuple[IPAddress, ...]
    port: int
    timeout: float


class ScriptedDialer:
    """A dialer whose origins are scripted; where there is none, connections are refused.

    The addresses are tried in the order in which they are given; one that is silent delays the next, as in `TCPDialer`.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._origins: dict[tuple[IPAddress, int], Origin] = {}
        self._local_ports = itertools.count(40000)
        self.dials: list[Dial] = []
        """What was asked for."""

    def place(self, origin: Origin, address: str, port: int) -> None:
        """Put an origin at a port of an address."""
        self._origins[ip_address(address), port] = origin

    def dial(
        self, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], P], timeout: float
    ) -> Deferred[tuple[P, IPAddress]]:
        """Connect to one of the addresses.

        Raises:
            ValueError: there is no address.
        """
        if not addresses:
            raise ValueError("there is no address to dial")
        self.dials.append(Dial(tuple(addresses), port, timeout))
        delay, found = self._find(addresses, port, timeout)
        done: Deferred[tuple[P, IPAddress]] = Deferred(lambda _: call.cancel())
        if isinstance(found, ProxyError):
            call = self._clock.callLater(delay, done.errback, found)
        else:
            call = self._clock.callLater(delay, self._connect, done, protocol, found, port)
        return done

    def _find(self, addresses: Sequence[IPAddress], port: int, timeout: float) -> tuple[float, IPAddress | ProxyError]:
        """When an attempt ends, and how: with the address that is connected to, or an error."""
        delay, met = 0.0, set()
        for address in addresses:
            origin = self._origins.get((address, port))
            reach = Reach.REFUSED if origin is None else origin.reach
            if origin is not None and reach is Reach.OPEN:
                delay += origin.connect_delay
                if delay < timeout:
                    return delay, address
                break
            met.add(reach)
            delay += ATTEMPT_DELAY if reach is Reach.SILENT else 0.0
        else:
            if Reach.SILENT not in met:
                refused = Reach.REFUSED in met
                error = ErrorType.CONNECTION_REFUSED if refused else ErrorType.DESTINATION_IP_UNROUTABLE
                return 0.0, ProxyError(error, "connection refused" if refused else "no route to the destination")
        return max(0.0, timeout), ProxyError(ErrorType.CONNECTION_TIMEOUT, "no answer in time")

    def _connect(
        self, done: Deferred[tuple[P, IPAddress]], protocol: Callable[[], P], address: IPAddress, port: int
    ) -> None:
        origin, ours = self._origins[address, port], protocol()
        here = internet_address(PROXY_IPV4 if address.version == 4 else PROXY_IPV6, next(self._local_ports))
        there = internet_address(str(address), port)
        near, far = joined(self._clock, ours, here, origin.accept(), there, far_faults=origin.faults)
        near.begin()
        far.begin()
        done.callback((ours, address))
