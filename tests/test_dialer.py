"""Tests for proxyd.net.dialer."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from unittest import SkipTest

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.deadlines import Deadlines
from proxyd.net.dialer import TCPDialer, interleaved
from proxyd.net.readiness import Readiness

HERE = IPv4Address("127.0.0.1")
HERE_6 = IPv6Address("::1")
NOWHERE = IPv4Address("255.255.255.255")
"""An address that TCP never reaches: the kernel says so at once (ENETUNREACH)."""


@implementer(IReactorFDSet)
class LoopbackReactor(Clock):
    """A reactor whose sockets are real and whose time is the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self.writers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        if reader not in self.readers:
            self.readers.append(reader)

    def addWriter(self, writer: Any) -> None:
        if writer not in self.writers:
            self.writers.append(writer)

    def removeReader(self, reader: Any) -> None:
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.writers:
            self.writers.remove(writer)

    def removeAll(self) -> list[Any]:
        return [*self.readers, *self.writers]

    getReaders = getWriters = removeAll

    def run_until(self, settled: Callable[[], object]) -> None:
        """Serve sockets until this is so; five seconds without any event are a failure."""
        while not settled():
            readable, writable, _ = select.select(self.readers, self.writers, [], 5)
            assert readable or writable, "nothing happens"
            for reader in readable:
                reader.doRead()
            for writer in writable:
                writer.doWrite()


class Recorder(Protocol):
    """An origin connection that keeps what it is told."""

    received = b""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Distant(socket.socket):
    """A socket to loopback that connects, or is refused, only when somebody looks for the second time, as if there
    were a network between."""

    looked = False

    def getsockopt(self, level: int, option: int, *length: int) -> Any:
        if option != socket.SO_ERROR or self.looked:
            return super().getsockopt(level, option, *length)
        return 0

    def getpeername(self) -> Any:
        if self.looked:
            return super().getpeername()
        self.looked = True
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


class InterleavedTests(SynchronousTestCase):
    """RFC 8305 §4: the families take turns."""

    def check(self, given: str, expected: str) -> None:
        addresses = interleaved([ip_address(text) for text in given.split()])
        self.assertEqual([str(address) for address in addresses], expected.split())

    def test_turns(self) -> None:
        """Addresses of the two families alternate, each family in its own order; what is left over comes last."""
        self.check("::1 ::2 ::3 10.0.0.1 10.0.0.2", "::1 10.0.0.1 ::2 10.0.0.2 ::3")

    def test_first_family(self) -> None:
        """The family of the first address begins."""
        self.check("10.0.0.1 ::1 ::2 10.0.0.2", "10.0.0.1 ::1 10.0.0.2 ::2")

    def test_one_family(self) -> None:
        """Addresses of one family stay in their order."""
        self.check("10.0.0.3 10.0.0.1 10.0.0.2", "10.0.0.3 10.0.0.1 10.0.0.2")

    def test_few(self) -> None:
        """One address, or two, cannot be in another order."""
        self.check("::1", "::1")
        self.check("10.0.0.1 ::1", "10.0.0.1 ::1")


class LoopbackTestCase(SynchronousTestCase):
    """Ports of every sort on loopback, and a dialer."""

    def setUp(self) -> None:
        self.reactor = LoopbackReactor()
        self.deadlines = Deadlines(self.reactor, tick=0.25)
        self.sockets: list[socket.socket] = []
        self.dialer = TCPDialer(self.reactor, self.deadlines, readiness=self.readiness(), make_socket=self.make_socket)

    def readiness(self) -> Readiness | None:
        return None

    def make_socket(self, family: int, kind: int) -> socket.socket:
        sock = Distant(family, kind)
        self.addCleanup(sock.close)
        self.sockets.append(sock)
        return sock

    def listen(self, address: str = "127.0.0.1", port: int = 0, backlog: int = 8) -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.addCleanup(listener.close)
        listener.bind((address, port))
        listener.listen(backlog)
        return listener

    def closed_port(self) -> int:
        """A port that is taken, so that nobody else gets it, and refuses."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

    def black_hole(self, address: str, port: int = 0) -> int:
        """A port that leaves SYNs unanswered: its accept queue is full."""
        port = int(self.listen(address, port, backlog=0).getsockname()[1])
        for _ in range(16):
            filler = socket.socket()
            self.addCleanup(filler.close)
            filler.setblocking(False)
            filler.connect_ex((address, port))
            if not select.select([], [filler], [], 0.05)[1]:
                return port
        raise SkipTest("the accept queue does not fill up here")

    def dial(self, port: int, *addresses: IPv4Address | IPv6Address, timeout: float = 10) -> Deferred:
        return self.dialer.dial(addresses or (HERE,), port, Recorder, timeout)

    def settle(self, dialed: Deferred) -> Any:
        results: list[Any] = []
        dialed.addBoth(results.append)
        self.reactor.run_until(lambda: results)
        return results[0]

    def connected(self, dialed: Deferred) -> tuple[Recorder, Any]:
        result = self.settle(dialed)
        if isinstance(result, Failure):
            result.raiseException()
        self.addCleanup(result[0].transport.connectionLost, Failure(CancelledError()))
        return result

    def error(self, dialed: Deferred) -> tuple[ErrorType, str]:
        failure = self.settle(dialed)
        failure.trap(ProxyError)
        return failure.value.error, failure.value.detail

    def assert_nothing_left(self) -> None:
        """No timer, no descriptor watched, no socket open."""
        self.assertEqual([sock for sock in self.sockets if sock.fileno() != -1], [])
        self.assertEqual(self.reactor.writers, [])
        self.reactor.advance(100)
        self.assertEqual(self.reactor.getDelayedCalls(), [])


class DialingTests(LoopbackTestCase):
    """What comes of dialing, where the reactor watches the sockets."""

    def test_connects(self) -> None:
        """The protocol is connected to the address, which comes with it."""
        listener = self.listen()
        protocol, address = self.connected(self.dial(listener.getsockname()[1]))
        origin, peer = listener.accept()
        self.addCleanup(origin.close)
        self.assertEqual(address, HERE)
        self.assertEqual((protocol.transport.getHost().host, protocol.transport.getHost().port), peer)

    def test_carries_bytes(self) -> None:
        """Bytes go both ways over the new connection."""
        listener = self.listen()
        protocol, _ = self.connected(self.dial(listener.getsockname()[1]))
        origin, _ = listener.accept()
        self.addCleanup(origin.close)
        origin.send(b"hello")
        protocol.transport.write(b"world")
        self.reactor.run_until(lambda: protocol.received)
        self.assertEqual((protocol.received, origin.recv(16)), (b"hello", b"world"))

    def test_options(self) -> None:
        """The socket sends at once, and notices a peer that is gone."""
        self.connected(self.dial(self.listen().getsockname()[1]))
        [sock] = self.sockets
        self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertTrue(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertFalse(sock.getblocking())

    def test_ipv6(self) -> None:
        """An IPv6 address is dialled as such."""
        listener = self.listen("::1")
        _, address = self.connected(self.dial(listener.getsockname()[1], HERE_6))
        self.assertEqual(address, HERE_6)

    def test_one_address_needs_no_timer(self) -> None:
        """A single address has the shared deadlines' timer and none of its own; a second address needs one."""
        port = self.black_hole("127.0.0.1")
        one = self.dial(port)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 1)
        two = self.dial(port, HERE, HERE)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 2)
        for dialed in one, two:
            dialed.cancel()
            self.failureResultOf(dialed, CancelledError)

    def test_deadline_is_forgotten(self) -> None:
        """A connection that was made is not disturbed when its time to connect has passed."""
        protocol, _ = self.connected(self.dial(self.listen().getsockname()[1]))
        self.reactor.advance(100)
        self.assertEqual((protocol.lost.called, self.reactor.getDelayedCalls()), (False, []))

    def test_refused(self) -> None:
        """A refused connection is reported as such, and leaves nothing behind."""
        dialed = self.dial(self.closed_port())
        self.assertEqual(self.error(dialed), (ErrorType.CONNECTION_REFUSED, "connection refused (1 address tried)"))
        self.assert_nothing_left()

    def test_all_refused(self) -> None:
        """All addresses are tried before the connection counts as refused."""
        dialed = self.dial(self.closed_port(), HERE, IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3"))
        self.assertEqual(self.error(dialed), (ErrorType.CONNECTION_REFUSED, "connection refused (3 addresses tried)"))
        self.assert_nothing_left()

    def test_unreachable(self) -> None:
        """An address that there is no way to is unroutable."""
        self.assertEqual(
            self.error(self.dial(80, NOWHERE)),
            (ErrorType.DESTINATION_IP_UNROUTABLE, "no route to the destination (1 address tried)"),
        )
        self.assert_nothing_left()

    def test_refused_is_more_telling_than_unreachable(self) -> None:
        """Where one address is unroutable and another refuses, the connection was refused."""
        dialed = self.dial(self.closed_port(), NOWHERE, HERE, NOWHERE)
        self.assertEqual(self.error(dialed)[0], ErrorType.CONNECTION_REFUSED)

    def test_next_address_at_once(self) -> None:
        """After a failure the next address is tried without waiting."""
        listener = self.listen("127.0.0.2")
        dialed = self.dial(listener.getsockname()[1], NOWHERE, HERE, IPv4Address("127.0.0.2"))
        self.assertEqual(self.connected(dialed)[1], IPv4Address("127.0.0.2"))
        self.assertEqual(self.reactor.seconds(), 0)

    def test_silent_address_costs_the_attempt_delay(self) -> None:
        """When an address stays silent for a quarter of a second the next is tried; the loser's socket is closed."""
        port = self.black_hole("127.0.0.1")
        self.listen("127.0.0.2", port)
        dialed = self.dial(port, HERE, IPv4Address("127.0.0.2"))
        self.reactor.advance(0.2)
        self.assertEqual(len(self.sockets), 1)
        self.reactor.advance(0.05)
        self.assertEqual(self.connected(dialed)[1], IPv4Address("127.0.0.2"))
        self.assertEqual(self.sockets[0].fileno(), -1)

    def test_silent_address_goes_on(self) -> None:
        """An address that stayed silent may still answer while later ones are tried."""
        port = self.black_hole("127.0.0.1")
        dialed = self.dial(port, HERE, IPv4Address("127.0.0.2"))
        self.reactor.advance(0.25)
        self.reactor.run_until(lambda: self.sockets[1].fileno() == -1)
        self.assertNoResult(dialed)
        self.reactor.advance(10)
        self.assertEqual(self.error(dialed), (ErrorType.CONNECTION_TIMEOUT, "no answer in time (2 addresses tried)"))
        self.assert_nothing_left()

    def test_failure_stops_the_attempt_delay(self) -> None:
        """A failure brings the next address at once, and the delay of the failed one does not bring another."""
        port = self.black_hole("127.0.0.2")
        dialed = self.dial(port, HERE, IPv4Address("127.0.0.2"), IPv4Address("127.0.0.3"))
        self.reactor.run_until(lambda: len(self.sockets) == 2)
        self.assertEqual(len(self.reactor.getDelayedCalls()), 2)
        self.reactor.advance(0.25)
        self.reactor.run_until(lambda: self.sockets[2].fileno() == -1)
        self.reactor.advance(10)
        self.assertEqual(self.error(dialed)[0], ErrorType.CONNECTION_TIMEOUT)

    def test_timeout(self) -> None:
        """The timeout ends the attempt, at most one tick late and never early."""
        dialed = self.dial(self.black_hole("127.0.0.1"), timeout=5)
        self.reactor.advance(4.9)
        self.assertNoResult(dialed)
        self.reactor.pump([0.25, 0.25])
        self.assertEqual(self.error(dialed), (ErrorType.CONNECTION_TIMEOUT, "no answer in time (1 address tried)"))
        self.assert_nothing_left()

    def test_timeout_covers_all(self) -> None:
        """The addresses share one timeout; those that were not tried do not count."""
        port = self.black_hole("127.0.0.1")
        self.dialer.attempt_delay = 0.35
        dialed = self.dialer.dial([HERE] * 5, port, Recorder, 0.9)
        self.reactor.pump([0.35, 0.35, 0.3])
        self.assertEqual(self.error(dialed), (ErrorType.CONNECTION_TIMEOUT, "no answer in time (3 addresses tried)"))
        self.assert_nothing_left()

    def test_cancel(self) -> None:
        """Cancelling closes all attempts."""
        port = self.black_hole("127.0.0.1")
        dialed = self.dial(port, HERE, HERE, HERE)
        self.reactor.advance(0.25)
        self.assertEqual(len(self.sockets), 2)
        dialed.cancel()
        self.failureResultOf(dialed, CancelledError)
        self.assert_nothing_left()

    def test_kernel_gives_up(self) -> None:
        """The kernel's own timeout counts as one."""
        self.dialer.make_socket = self.make_failing(errno.ETIMEDOUT)
        self.assertEqual(self.error(self.dial(80))[0], ErrorType.CONNECTION_TIMEOUT)

    def make_failing(self, code: int) -> Callable[[int, int], socket.socket]:
        class Failing(socket.socket):
            def connect_ex(self, address: Any) -> int:
                return code

        return Failing

    def test_connected_at_once(self) -> None:
        """A connection on the same machine needs no wait."""
        self.dialer.make_socket = socket.socket
        protocol, _ = self.successResultOf(self.dial(self.listen().getsockname()[1], HERE, HERE))
        self.addCleanup(protocol.transport.connectionLost, Failure(CancelledError()))
        self.assertEqual(self.reactor.writers, [])

    def test_refused_at_once(self) -> None:
        """Nor does being refused there."""
        self.dialer.make_socket = socket.socket
        refused = self.failureResultOf(self.dial(self.closed_port(), HERE, HERE), ProxyError).value
        self.assertEqual(refused.error, ErrorType.CONNECTION_REFUSED)

    def test_settled_in_the_call(self) -> None:
        """A system whose connect call says all is no different."""
        self.dialer.make_socket = self.make_failing(errno.ECONNREFUSED)
        refused = self.failureResultOf(self.dial(80), ProxyError).value
        self.assertEqual(refused.error, ErrorType.CONNECTION_REFUSED)

        class Blocking(socket.socket):
            def connect_ex(self, address: Any) -> int:
                self.setblocking(True)
                code = super().connect_ex(address)
                self.setblocking(False)
                return code

        self.dialer.make_socket = Blocking
        protocol, _ = self.successResultOf(self.dial(self.listen().getsockname()[1]))
        self.addCleanup(protocol.transport.connectionLost, Failure(CancelledError()))

    def test_out_of_descriptors(self) -> None:
        """Without a free descriptor no further address is tried."""

        def make_socket(family: int, kind: int) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

        self.dialer.make_socket = make_socket
        self.assertEqual(
            self.error(self.dial(80, HERE, HERE_6, HERE)),
            (ErrorType.CONNECTION_LIMIT_REACHED, "no more connections can be opened (1 address tried)"),
        )
        self.assert_nothing_left()

    def test_out_of_descriptors_later(self) -> None:
        """When descriptors run out while an attempt is under way, that one goes on."""
        port = self.black_hole("127.0.0.1")
        dialed = self.dial(port, HERE, HERE, HERE)
        self.dialer.make_socket = self.make_failing(errno.ENOBUFS)
        self.reactor.advance(0.25)
        self.assertNoResult(dialed)
        self.reactor.advance(10)
        self.assertEqual(
            self.error(dialed),
            (ErrorType.CONNECTION_LIMIT_REACHED, "no more connections can be opened (2 addresses tried)"),
        )
        self.assert_nothing_left()

    def test_connected_to_itself(self) -> None:
        """A socket that got the very port it connects to, where nobody listens, is refused."""

        class Itself(socket.socket):
            def connect_ex(self, address: Any) -> int:
                self.bind(("127.0.0.1", 0))
                return super().connect_ex(self.getsockname())

        self.dialer.make_socket = Itself
        self.assertEqual(self.error(self.dial(80))[0], ErrorType.CONNECTION_REFUSED)
        self.assertEqual(self.reactor.writers, [])

    def test_broken_protocol(self) -> None:
        """A protocol that cannot be made fails the dial, as our bug and not as the network's error."""

        def broken() -> Recorder:
            raise ZeroDivisionError

        dialed = self.dialer.dial([HERE], self.listen().getsockname()[1], broken, 10)
        self.settle(dialed).trap(ZeroDivisionError)

    def test_bulk_read(self) -> None:
        """A connection reads as much at once as its dialer was told."""
        self.dialer.bulk_read = 32768
        protocol, _ = self.connected(self.dial(self.listen().getsockname()[1]))
        self.assertEqual(protocol.transport.bulk_read, 32768)


class ReadinessDialingTests(DialingTests):
    """The same, where our own epoll set watches the sockets."""

    def readiness(self) -> Readiness | None:
        if not Readiness.available(self.reactor):
            raise SkipTest("no epoll on this platform")
        readiness = Readiness(self.reactor)
        self.addCleanup(readiness.stop)
        return readiness


class EventTests(LoopbackTestCase):
    """What a reactor may say of a socket besides that it can be written to."""

    def test_event_of_an_earlier_socket(self) -> None:
        """An event meant for a closed socket that had the same number does not pass for a connection."""
        dialed = self.dial(self.black_hole("127.0.0.1"))
        [attempt] = self.reactor.writers
        attempt.doWrite()
        self.assertNoResult(dialed)
        self.assertEqual(self.reactor.writers, [attempt])
        dialed.cancel()
        self.failureResultOf(dialed, CancelledError)

    def test_error_of_an_earlier_socket(self) -> None:
        """An error meant for a closed socket that had the same number does not end the attempt."""
        dialed = self.dial(self.black_hole("127.0.0.1"))
        [attempt] = self.reactor.writers
        self.reactor.removeWriter(attempt)
        attempt.connectionLost(Failure(ConnectionLost()))
        self.assertNoResult(dialed)
        self.assertEqual(self.reactor.writers, [attempt])
        dialed.cancel()
        self.failureResultOf(dialed, CancelledError)

    def test_error(self) -> None:
        """An error event brings the reason that the kernel has."""
        dialed = self.dial(self.closed_port())
        [attempt] = self.reactor.writers
        self.reactor.removeWriter(attempt)
        attempt.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(self.failureResultOf(dialed, ProxyError).value.error, ErrorType.CONNECTION_REFUSED)
        self.assert_nothing_left()


class InstalledReactorTests(TestCase):
    """Dialing with the reactor that trial runs."""

    timeout = 10

    def setUp(self) -> None:
        self.deadlines = Deadlines(reactor)
        self.addCleanup(self.deadlines.stop)
        self.dialer = TCPDialer(reactor, self.deadlines, make_socket=Distant)
        self.port = socket.socket()
        self.addCleanup(self.port.close)
        self.port.bind(("127.0.0.1", 0))

    async def test_connects(self) -> None:
        """A connection is made, and its protocol told of its end."""
        self.port.listen()
        protocol, address = await self.dialer.dial([HERE], self.port.getsockname()[1], Recorder, 10)
        self.assertEqual(address, HERE)
        protocol.transport.loseConnection()
        await protocol.lost

    async def test_refused(self) -> None:
        """A refused connection is told from a lost one."""
        with self.assertRaises(ProxyError) as caught:
            await self.dialer.dial([HERE], self.port.getsockname()[1], Recorder, 10)
        self.assertEqual(caught.exception.error, ErrorType.CONNECTION_REFUSED)
