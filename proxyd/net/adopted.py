"""Listening sockets that somebody else has bound: systemd, or the supervisor of several workers."""

from __future__ import annotations

import os
import socket

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from zope.interface import implementer


@implementer(IListeningPort)
class AdoptedPort:
    """A bound socket of which we have a descriptor among others; an `Acceptor` takes its clients.

    Twisted, given the descriptor of a Unix socket, would set the mode of its path so that everybody may connect, and
    in the end remove the path and shut the socket down for all who share it. Here nothing but the descriptor is ours.

    Args:
        descriptor: It is duplicated, and stays the caller's.

    Raises:
        OSError: it is not that of a socket.
    """

    def __init__(self, descriptor: int) -> None:
        own = os.dup(descriptor)
        try:
            self.socket = socket.socket(fileno=own)
        except OSError:
            os.close(own)
            raise
        self.socket.setblocking(False)

    def startListening(self) -> None:
        """It has begun before we came."""

    def stopListening(self) -> Deferred[None]:
        """Leave the socket to the others who have it; it closes with the last of them."""
        self.socket.close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """The address that clients connect to."""
        name = self.socket.getsockname()
        match self.socket.family:
            case socket.AF_INET:
                return IPv4Address("TCP", *name)
            case socket.AF_INET6:
                return IPv6Address("TCP", *name)
        return UNIXAddress(name.encode() if isinstance(name, str) else name)
