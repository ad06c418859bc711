"""Tests for proxyd.net.own."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.own import MOST_REMEMBERED, REMEMBERED, OwnAddresses
from proxyd.request import IPAddress

LOOPBACK = IPv4Address("127.0.0.1")
FOREIGN = IPv4Address("192.0.2.77")


class Probe(socket.socket):
    """A socket that finds itself at the address that it is connected to, or cannot be connected."""

    error = 0
    name = "127.0.0.1"

    def connect(self, address: object) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def getsockname(self) -> object:
        return self.name, 40000


class OwnAddressesTests(SynchronousTestCase):
    """The kernel knows which addresses are this machine's own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.probes: list[Probe] = []
        self.error = 0
        self.no_socket = 0
        self.name = "127.0.0.1"
        self.own = OwnAddresses(self.clock, self.make_probe)

    def make_probe(self, family: int, kind: int) -> socket.socket:
        """A scripted socket."""
        if self.no_socket:
            raise OSError(self.no_socket, os.strerror(self.no_socket))
        probe = Probe(family, kind)
        probe.error, probe.name = self.error, self.name
        self.probes.append(probe)
        return probe

    def is_own(self, address: IPAddress = LOOPBACK) -> bool:
        """Ask about an address, with scripted sockets."""
        return self.own(address, 80)

    def test_loopback(self) -> None:
        """The loopback address is this machine's own, at any port, and another machine's address is not."""
        own = OwnAddresses(self.clock)
        self.assertTrue(own(LOOPBACK, 80))
        self.assertTrue(own(LOOPBACK, 1))
        self.assertFalse(own(FOREIGN, 80))

    def test_ipv6(self) -> None:
        """An IPv6 address is asked about with a socket of its family."""
        self.name = "::1"
        self.assertTrue(self.is_own(IPv6Address("::1")))
        self.assertEqual([probe.family for probe in self.probes], [socket.AF_INET6])

    def test_other_source(self) -> None:
        """An address that is reached from another one of ours is not ours."""
        self.assertFalse(self.is_own(FOREIGN))

    def test_no_route(self) -> None:
        """Where no route leads to, or what family this machine does not have, is not its own."""
        for error in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES):
            self.error = error
            self.assertFalse(OwnAddresses(self.clock, self.make_probe)(FOREIGN, 80))
        self.no_socket = errno.EAFNOSUPPORT
        self.assertFalse(self.is_own())

    def test_no_descriptors(self) -> None:
        """While the kernel cannot be asked, nothing is allowed on a guess: that is an error, and not remembered."""
        for self.no_socket in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            error = self.assertRaises(ProxyError, self.is_own, FOREIGN)
            self.assertIs(error.error, ErrorType.CONNECTION_LIMIT_REACHED)
        self.no_socket = 0
        self.assertFalse(self.is_own(FOREIGN))

    def test_no_descriptors_for_a_known_address(self) -> None:
        """The last answer holds for that time, old as it may be."""
        self.assertEqual((self.is_own(LOOPBACK), self.is_own(FOREIGN)), (True, False))
        self.clock.advance(2 * REMEMBERED)
        self.no_socket = errno.EMFILE
        self.assertEqual((self.is_own(LOOPBACK), self.is_own(FOREIGN)), (True, False))

    def test_remembered(self) -> None:
        """An answer holds for a while, and is asked for again then."""
        self.assertEqual([self.is_own(), self.is_own()], [True, True])
        self.assertEqual(len(self.probes), 1)
        self.clock.advance(REMEMBERED)
        self.name = "192.0.2.1"
        self.assertFalse(self.is_own())

    def test_bounded(self) -> None:
        """So many answers are remembered, and no more."""
        for number in range(MOST_REMEMBERED):
            self.is_own(FOREIGN + number)
        self.is_own()
        self.is_own(FOREIGN)
        self.assertEqual(len(self.probes), MOST_REMEMBERED + 2)

    def test_closed(self) -> None:
        """The sockets are closed again."""
        self.is_own()
        self.error = errno.ENETUNREACH
        self.is_own(FOREIGN)
        self.assertEqual([probe.fileno() for probe in self.probes], [-1, -1])
