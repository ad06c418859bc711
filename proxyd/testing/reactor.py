"""A reactor in memory: time that stands still until it is moved, and ports that clients in memory connect to."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocol, IProtocolFactory
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer

from proxyd.testing.faults import NO_FAULTS, Faults
from proxyd.testing.transport import joined

FIRST_FREE_PORT = 49152
"""Given to the first who listens on port 0 (RFC 6335 §6)."""


class LabReactor(Clock):
    """The `Clock` of a lab, with the part of a reactor that listeners need."""

    def __init__(self) -> None:
        super().__init__()
        self._ports: list[MemoryPort] = []
        self._free_ports = itertools.count(FIRST_FREE_PORT)
        self._advancing = False

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, amount: float) -> None:
        """Move time on, from one call that is due to the next, so that each is made at its own time."""
        end = self.rightNow + amount
        self._advancing = True
        try:
            while self.calls and self.calls[0].getTime() <= end:
                self.rightNow = max(self.rightNow, self.calls[0].getTime())
                super().advance(0)
            self.rightNow = end
        finally:
            self._advancing = False

    def settle(self) -> None:
        """Let everything happen that takes no time; nothing, when called from something that is happening."""
        if not self._advancing:
            self.advance(0)

    # -- listening ----------------------------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Listen on a port that exists in this reactor alone.

        Raises:
            CannotListenError: somebody listens there.
        """
        number = port or next(self._free_ports)
        return self._listen(internet_address(interface or "0.0.0.0", number), factory)

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        """Listen on a path that exists in this reactor alone."""
        return self._listen(UNIXAddress(os.fsencode(address)), factory)

    def _listen(self, address: Any, factory: IProtocolFactory) -> IListeningPort:
        if self._port_at(address) is not None:
            in_use = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            raise CannotListenError(getattr(address, "host", ""), getattr(address, "port", address), in_use)
        port = MemoryPort(self, address, factory)
        port.startListening()
        return port

    def _port_at(self, address: IAddress) -> MemoryPort | None:
        return next((port for port in self._ports if port.getHost() == address), None)

    def open(self, port: MemoryPort) -> None:
        """A port accepts clients."""
        self._ports.append(port)

    def close(self, port: MemoryPort) -> None:
        """A port accepts no more."""
        if port in self._ports:
            self._ports.remove(port)

    def connect(self, client: IProtocol, host: IAddress, peer: IAddress, faults: Faults = NO_FAULTS) -> None:
        """Connect a client that has the address ``host`` to the port at ``peer``.

        Raises:
            ConnectionRefusedError: nobody listens there.
        """
        port = self._port_at(peer)
        if port is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {peer}")
        port.accept(client, host, faults)


@implementer(IListeningPort)
class MemoryPort:
    """A port that somebody listens on, in memory."""

    def __init__(self, reactor: LabReactor, address: IAddress, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self._address = address
        self._factory = factory

    def startListening(self) -> None:
        """Accept clients."""
        self._factory.doStart()
        self._reactor.open(self)

    def stopListening(self) -> Deferred[None]:
        """Accept no more; fires in a later turn, as a socket is closed then."""
        self._reactor.close(self)
        return deferLater(self._reactor, 0, self._factory.doStop)

    def getHost(self) -> IAddress:
        """The address that clients connect to."""
        return self._address

    def accept(self, client: IProtocol, address: IAddress, faults: Faults) -> None:
        """Connect a client to the protocol that the factory builds."""
        protocol = self._factory.buildProtocol(address)
        assert protocol is not None, "the factory refuses the client"
        near, far = joined(self._reactor, client, address, protocol, self._address, faults)
        near.begin()
        far.begin()


def internet_address(host: str, port: int) -> IPv4Address | IPv6Address:
    """The address of one end of a TCP connection."""
    return IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)
