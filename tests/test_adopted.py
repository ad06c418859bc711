"""Tests for proxyd.net.adopted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface.verify import verifyObject

from proxyd.net.adopted import AdoptedPort


class AdoptedPortTests(SynchronousTestCase):
    """A bound socket that others have as well."""

    def adopted(self, bound: socket.socket) -> AdoptedPort:
        """The port for such a socket."""
        self.addCleanup(bound.close)
        port = AdoptedPort(bound.fileno())
        self.addCleanup(port.socket.close)
        port.startListening()
        return port

    def test_interface(self) -> None:
        """It is a port to Twisted."""
        verifyObject(IListeningPort, self.adopted(socket.create_server(("127.0.0.1", 0))))

    def test_addresses(self) -> None:
        """It knows its address, in each family."""
        ipv4 = socket.create_server(("127.0.0.1", 0))
        self.assertEqual(self.adopted(ipv4).getHost(), IPv4Address("TCP", *ipv4.getsockname()))
        unix = socket.socket(socket.AF_UNIX)
        path = str(Path(self.mktemp()).absolute())
        unix.bind(path)
        self.assertEqual(self.adopted(unix).getHost(), UNIXAddress(path.encode()))

    def test_abstract(self) -> None:
        """A Unix socket may have a name that is no path."""
        unix = socket.socket(socket.AF_UNIX)
        unix.bind("")  # Linux chooses one: unix(7), autobind
        self.assertEqual(self.adopted(unix).getHost(), UNIXAddress(unix.getsockname()))

    def test_ipv6(self) -> None:
        """An IPv6 address has its flow and scope."""
        try:
            ipv6 = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError as error:
            raise SkipTest("there is no IPv6 here") from error
        self.assertEqual(self.adopted(ipv6).getHost(), IPv6Address("TCP", *ipv6.getsockname()))

    def test_ready_for_the_reactor(self) -> None:
        """The socket does not block, and is not passed on to programs."""
        port = self.adopted(socket.create_server(("127.0.0.1", 0)))
        self.assertFalse(port.socket.getblocking())
        self.assertFalse(port.socket.get_inheritable())

    def test_closed(self) -> None:
        """Closing it leaves the socket to the others: clients still come."""
        bound = socket.create_server(("127.0.0.1", 0))
        port = self.adopted(bound)
        self.successResultOf(port.stopListening())
        socket.create_connection(bound.getsockname(), 30).close()

    def test_unix_untouched(self) -> None:
        """The path of a Unix socket keeps its mode, and stays when the port is closed."""
        path = Path(self.mktemp()).absolute()
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(path))
        path.chmod(0o600)
        bound.listen()
        port = self.adopted(bound)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        self.successResultOf(port.stopListening())
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.connect(str(path))

    def test_no_socket(self) -> None:
        """A descriptor of something else is refused, and stays the caller's."""
        descriptor = os.open(os.devnull, os.O_RDONLY)
        before = os.listdir("/proc/self/fd")
        self.assertRaises(OSError, AdoptedPort, descriptor)
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))
        os.close(descriptor)
