"""Tests for proxyd.testing."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IListeningPort, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from proxyd.certificates import SelfSigned
from proxyd.config import Config
from proxyd.errors import ErrorType, ProxyError
from proxyd.ledger.record import AccessRecord
from proxyd.listening import ListenError
from proxyd.service import Proxy
from proxyd.testing import (
    Dial,
    Ending,
    Faults,
    Lab,
    LabReactor,
    MemoryTransport,
    Origin,
    Peer,
    Reach,
    RebindingResolver,
    RecordList,
    ScriptedDialer,
    StaticResolver,
    joined,
)
from proxyd.testing.transport import WINDOW
from tests.loopback import connect

HERE = IPv4Address("TCP", "192.0.2.1", 50000)
THERE = IPv4Address("TCP", "192.0.2.2", 80)
NO_FAULTS = Faults()

CONFIG = """
[listener:http]
endpoint = tcp:8080
accept = forward connect

[listener:socks]
endpoint = tcp:1080
accept = socks5

[rule:web]
action = allow
destinations = .example.com 93.184.216.0/24
"""
GET = b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
ANSWER = b"HTTP/1.1 204 No Content\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
CONNECT = b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com\r\n\r\n"


class Listener(Protocol):
    """A protocol that writes down what its transport does to it."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def connectionMade(self) -> None:
        self.heard.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append(type(reason.value))


@implementer(IHalfCloseableProtocol)
class HalfCloser(Listener):
    """One that knows of half-closed connections."""

    def readConnectionLost(self) -> None:
        self.heard.append("read closed")

    def writeConnectionLost(self) -> None:
        self.heard.append("write closed")


@implementer(IPushProducer)
class Producer:
    """A producer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class MemoryTransportTests(SynchronousTestCase):
    """A transport in memory does what one on a socket does."""

    def setUp(self) -> None:
        self.clock = LabReactor()

    def connect(
        self, near: Protocol, far: Protocol, faults: Faults = NO_FAULTS
    ) -> tuple[MemoryTransport, MemoryTransport]:
        """Two ends; the faults are the near one's. Both read."""
        ends = joined(self.clock, near, HERE, far, THERE, faults)
        for end in ends:
            end.begin()
            end.resumeProducing()
        return ends

    def pair(self, faults: Faults = NO_FAULTS) -> tuple[MemoryTransport, MemoryTransport, HalfCloser, HalfCloser]:
        """Two ends, and their protocols, which have forgotten how the connection was made."""
        near, far = HalfCloser(), HalfCloser()
        ends = self.connect(near, far, faults)
        near.heard.clear()
        far.heard.clear()
        return *ends, near, far

    def test_interfaces(self) -> None:
        """It is a TCP transport, a consumer, and a producer."""
        near, _, _, _ = self.pair()
        for interface in (ITCPTransport, IConsumer, IPushProducer):
            verifyObject(interface, near)

    def test_addresses(self) -> None:
        """Each end knows its own address and the other's."""
        near, far, _, _ = self.pair()
        self.assertEqual((near.getHost(), near.getPeer(), far.getHost(), far.getPeer()), (HERE, THERE, THERE, HERE))

    def test_options(self) -> None:
        """Options of the socket are off, and then as they were set."""
        near, _, _, _ = self.pair()
        self.assertFalse(near.getTcpNoDelay() or near.getTcpKeepAlive())
        near.setTcpNoDelay(True)
        near.setTcpKeepAlive(True)
        self.assertTrue(near.getTcpNoDelay() and near.getTcpKeepAlive())

    def test_reads_when_told(self) -> None:
        """A new end reads nothing before it is told to, and then what came meanwhile."""
        protocol = Listener()
        near, far = joined(self.clock, Listener(), HERE, protocol, THERE)
        near.begin()
        far.begin()
        near.write(b"early")
        self.clock.settle()
        self.assertEqual(protocol.heard, ["made"])
        far.resumeProducing()
        self.assertEqual(protocol.heard, ["made"])
        self.clock.settle()
        self.assertEqual(protocol.heard, ["made", b"early"])

    def test_later_turn(self) -> None:
        """A protocol is never called from within a write, so that nothing is entered twice."""
        near, _, _, far = self.pair()
        near.write(b"hello")
        self.assertEqual(far.heard, [])
        self.clock.settle()
        self.assertEqual(far.heard, [b"hello"])

    def test_sequence(self) -> None:
        """A sequence is written as one."""
        near, _, _, far = self.pair()
        near.writeSequence([b"hel", b"lo"])
        self.clock.settle()
        self.assertEqual(far.heard, [b"hello"])

    def test_bytes_only(self) -> None:
        """Text is refused, as Twisted does."""
        near, _, _, _ = self.pair()
        error = self.assertRaises(TypeError, near.write, "text")
        self.assertEqual(str(error), "a transport takes bytes, not str")

    def test_not_connected(self) -> None:
        """What is written before the connection is made is lost."""
        far = Listener()
        near, other = joined(self.clock, Listener(), HERE, far, THERE)
        other.begin()
        other.resumeProducing()
        near.write(b"too early")
        near.loseConnection()
        near.abortConnection()
        near.loseWriteConnection()
        self.clock.settle()
        self.assertEqual(far.heard, ["made"])

    def test_paused(self) -> None:
        """A paused end reads neither bytes nor the FIN behind them, until it is resumed."""
        near, far, _, protocol = self.pair()
        far.pauseProducing()
        near.write(b"hello")
        near.loseWriteConnection()
        self.clock.settle()
        self.assertEqual(protocol.heard, [])
        far.resumeProducing()
        self.clock.settle()
        self.assertEqual(protocol.heard, [b"hello", "read closed"])

    def test_paused_while_reading(self) -> None:
        """An end that pauses between two reads keeps the second."""
        near, far, _, protocol = self.pair()
        far.pauseProducing()
        near.write(b"one")
        near.write(b"two")
        self.clock.settle()
        received = protocol.dataReceived
        protocol.dataReceived = lambda data: (received(data), far.pauseProducing())  # type: ignore[method-assign]
        far.resumeProducing()
        self.clock.settle()
        self.assertEqual(protocol.heard, [b"one"])

    def test_half_close(self) -> None:
        """A FIN is told to both protocols; the other direction goes on, and this one takes no more."""
        near, far, here, there = self.pair()
        near.write(b"bye")
        near.loseWriteConnection()
        near.loseWriteConnection()
        near.write(b"too late")
        self.clock.settle()
        far.write(b"still here")
        self.clock.settle()
        self.assertEqual(there.heard, [b"bye", "read closed"])
        self.assertEqual(here.heard, ["write closed", b"still here"])

    def test_fin_is_met_again(self) -> None:
        """Who resumes behind a FIN reads it once more, as from a socket."""
        near, far, _, there = self.pair()
        near.loseWriteConnection()
        self.clock.settle()
        far.resumeProducing()
        self.clock.settle()
        self.assertEqual(there.heard, ["read closed", "read closed"])

    def test_half_close_without_interest(self) -> None:
        """For a protocol that knows of no half-close a FIN is the end of the connection, and its own goes untold."""
        far = Listener()
        near, other = self.connect(Listener(), far)
        other.loseWriteConnection()
        near.loseWriteConnection()
        self.clock.settle()
        self.assertEqual(far.heard, ["made", ConnectionDone])

    def test_close(self) -> None:
        """A close sends what was written, ignores what comes after it, and is told once; the other end reads a FIN."""
        near, _, here, there = self.pair()
        near.write(b"bye")
        near.loseConnection()
        near.loseConnection()
        near.write(b"too late")
        near.resumeProducing()
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), ([ConnectionDone], [b"bye", "read closed"]))
        self.assertEqual((near.connected, near.disconnected), (False, True))

    def test_close_after_half_close(self) -> None:
        """A close behind a half-close sends no second FIN."""
        near, _, here, there = self.pair()
        near.loseWriteConnection()
        near.stopProducing()
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), (["write closed", ConnectionDone], ["read closed"]))

    def test_close_waits(self) -> None:
        """A close waits until what is written fits into the buffers of the kernel."""
        near, far, here, there = self.pair()
        far.pauseProducing()
        near.write(b"x" * (WINDOW + 1))
        near.loseConnection()
        self.clock.settle()
        self.assertEqual(here.heard, [])
        far.resumeProducing()
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), ([ConnectionDone], [b"x" * (WINDOW + 1), "read closed"]))

    def test_close_with_unread_bytes(self) -> None:
        """A close with bytes unread is a reset to the other end, as TCP does it."""
        near, far, here, there = self.pair()
        near.pauseProducing()
        far.write(b"unread")
        self.clock.settle()
        near.write(b"last words")
        near.loseConnection()
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), ([ConnectionDone], [b"last words", ConnectionLost]))

    def test_bytes_for_a_closed_end(self) -> None:
        """Bytes that find the other end closed are answered with a reset; a FIN is not."""
        near, far, _, there = self.pair()
        near.loseConnection()
        self.clock.settle()
        far.write(b"hello?")
        far.loseWriteConnection()
        self.clock.settle()
        self.assertEqual(there.heard, ["read closed", "write closed", ConnectionLost])

    def test_abort(self) -> None:
        """An abort is told to both ends, behind the bytes that the kernel had taken; those beyond them are lost."""
        near, far, here, there = self.pair()
        far.write(b"unread")
        near.write(b"sent")
        near.write(b"x" * WINDOW)
        near.abortConnection()
        near.abortConnection()
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), ([ConnectionAborted], [b"sent", ConnectionLost]))

    def test_abort_of_a_paused_end(self) -> None:
        """An end that does not read loses what it has not read, and hears of the reset all the same."""
        near, far, _, there = self.pair()
        far.pauseProducing()
        near.write(b"unread")
        near.loseWriteConnection()
        near.abortConnection()
        self.clock.settle()
        self.assertEqual(there.heard, [ConnectionLost])

    def test_producer(self) -> None:
        """A producer is paused when the other end falls behind, once, and resumed when it has caught up."""
        near, far, _, _ = self.pair()
        producer = Producer()
        near.registerProducer(producer, True)
        far.pauseProducing()
        near.write(b"x" * WINDOW)
        self.assertEqual(producer.told, [])
        near.write(b"x")
        near.write(b"x")
        self.clock.settle()
        self.assertEqual(producer.told, ["pause"])
        far.resumeProducing()
        self.clock.settle()
        self.assertEqual(producer.told, ["pause", "resume"])

    def test_unregistered_producer(self) -> None:
        """A producer that was unregistered hears nothing more."""
        near, far, _, _ = self.pair()
        producer = Producer()
        near.registerProducer(producer, True)
        far.pauseProducing()
        near.write(b"x" * (WINDOW + 1))
        near.unregisterProducer()
        far.resumeProducing()
        near.loseConnection()
        self.clock.settle()
        self.assertEqual(producer.told, ["pause"])

    def test_pull_producer(self) -> None:
        """A pull producer is asked for more at once, and whenever everything has arrived."""
        near, _, _, _ = self.pair()
        producer = Producer()
        near.registerProducer(producer, False)
        near.write(b"x" * (WINDOW + 1))
        self.clock.settle()
        self.assertEqual(producer.told, ["resume", "resume"])

    def test_second_producer(self) -> None:
        """There is one producer at a time."""
        near, _, _, _ = self.pair()
        near.registerProducer(Producer(), True)
        self.assertRaises(RuntimeError, near.registerProducer, Producer(), True)

    def test_producer_of_a_lost_connection(self) -> None:
        """A producer is told to stop when the connection is lost, or if it was before."""
        near, _, _, _ = self.pair()
        early, late = Producer(), Producer()
        near.registerProducer(early, True)
        near.abortConnection()
        self.clock.settle()
        near.registerProducer(late, True)
        self.assertEqual((early.told, late.told), (["stop"], ["stop"]))

    def test_delay(self) -> None:
        """With a delay everything is under way for that long, one after the other."""
        near, far, _, there = self.pair(Faults(delay=0.5))
        near.write(b"one")
        self.clock.advance(0.25)
        near.write(b"two")
        near.loseWriteConnection()
        far.write(b"at once")
        self.clock.advance(0.25)
        self.assertEqual(there.heard, [b"one"])
        self.clock.advance(0.25)
        self.assertEqual(there.heard, [b"one", b"two", "read closed"])

    def test_pieces(self) -> None:
        """Bytes arrive in pieces of the size that was asked for."""
        near, _, _, there = self.pair(Faults(piece=2))
        near.write(b"hello")
        self.clock.settle()
        self.assertEqual(there.heard, [b"he", b"ll", b"o"])

    def test_reset_at(self) -> None:
        """After so many bytes the connection breaks for both ends."""
        near, _, here, there = self.pair(Faults(reset_at=7))
        near.write(b"hello")
        self.clock.settle()
        self.assertEqual(there.heard, [b"hello"])
        near.write(b"world")
        near.write(b"!")
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), ([ConnectionLost], [b"hello", b"wo", ConnectionLost]))

    def test_fin_at(self) -> None:
        """After so many bytes this end is half-closed; of a FIN and a reset the first counts."""
        near, far, here, there = self.pair(Faults(fin_at=3, reset_at=4))
        near.write(b"hello")
        self.clock.settle()
        far.write(b"and you?")
        self.clock.settle()
        self.assertEqual((here.heard, there.heard), (["write closed", b"and you?"], [b"hel", "read closed"]))

    def test_reset_first(self) -> None:
        """A reset before a FIN, or in its place, is a reset."""
        near, _, _, there = self.pair(Faults(fin_at=3, reset_at=3))
        near.write(b"hello")
        self.clock.settle()
        self.assertEqual(there.heard, [b"hel", ConnectionLost])

    def test_lost_before_half_closed(self) -> None:
        """A connection that is lost before its FIN is sent is not told that it was."""
        near, far, here, _ = self.pair()
        near.loseWriteConnection()
        near.abortConnection()
        self.clock.settle()
        self.assertEqual(here.heard, [ConnectionAborted])


class LabReactorTests(SynchronousTestCase):
    """Time, and ports in memory."""

    def setUp(self) -> None:
        self.reactor = LabReactor()

    def test_each_call_at_its_time(self) -> None:
        """Calls are made at their own times, in order, however far time is moved at once."""
        times: list[float] = []

        def again() -> None:
            times.append(self.reactor.seconds())
            self.reactor.callLater(0.1, again)

        self.reactor.callLater(0.1, again)
        self.reactor.advance(0.35)
        self.assertEqual([round(time, 3) for time in times], [0.1, 0.2, 0.3])
        self.assertEqual(self.reactor.seconds(), 0.35)

    def test_settle_within_a_call(self) -> None:
        """A call that lets things settle does not enter other calls: they are made when it is over."""
        order: list[str] = []
        self.reactor.callLater(0, lambda: (self.reactor.settle(), order.append("first")))
        self.reactor.callLater(0, order.append, "second")
        self.reactor.settle()
        self.assertEqual(order, ["first", "second"])

    def test_ports(self) -> None:
        """A listener gets the port it asks for, or one of its own, on its interface."""
        hosts = [
            self.reactor.listenTCP(8080, Factory()).getHost(),
            self.reactor.listenTCP(0, Factory(), interface="127.0.0.1").getHost(),
            self.reactor.listenTCP(0, Factory(), interface="::1").getHost(),
            self.reactor.listenUNIX("/run/x", Factory()).getHost(),
        ]
        expected = [
            IPv4Address("TCP", "0.0.0.0", 8080),
            IPv4Address("TCP", "127.0.0.1", 49152),
            IPv6Address("TCP", "::1", 49153),
            UNIXAddress(b"/run/x"),
        ]
        self.assertEqual(hosts, expected)

    def test_in_use(self) -> None:
        """Two cannot listen at one place."""
        verifyObject(IListeningPort, self.reactor.listenTCP(8080, Factory()))
        error = self.assertRaises(CannotListenError, self.reactor.listenTCP, 8080, Factory())
        self.assertIn("Address already in use", str(error))
        self.reactor.listenUNIX("/run/x", Factory())
        self.assertRaises(CannotListenError, self.reactor.listenUNIX, "/run/x", Factory())

    def test_stop_listening(self) -> None:
        """A port that is closed refuses clients, and can be opened again; closing it twice is harmless."""
        port = self.reactor.listenTCP(8080, Factory())
        there = port.getHost()
        stopped = port.stopListening()
        self.assertNoResult(stopped)
        self.assertRaises(ConnectionRefusedError, self.reactor.connect, Protocol(), HERE, there)
        self.reactor.settle()
        self.assertIsNone(self.successResultOf(stopped))
        port.stopListening()
        self.reactor.listenTCP(8080, Factory())

    def test_unwelcome(self) -> None:
        """A factory that builds no protocol is a mistake of the test."""
        factory = Factory()
        factory.buildProtocol = lambda addr: None  # type: ignore[method-assign]
        there = self.reactor.listenTCP(8080, factory).getHost()
        self.assertRaises(AssertionError, self.reactor.connect, Protocol(), HERE, there)


class PeerTests(SynchronousTestCase):
    """A scripted end of a connection."""

    def setUp(self) -> None:
        self.clock = LabReactor()
        self.near, self.far = self.meet(self.clock)

    def meet(self, clock: Any) -> tuple[Peer, Peer]:
        """Two peers that talk to each other."""
        peers = Peer(clock), Peer(clock)
        for end in joined(clock, peers[0], HERE, peers[1], THERE):
            end.begin()
        return peers

    def test_talk(self) -> None:
        """What one sends the other has received when the call returns; it is given out once."""
        self.near.send(b"hello")
        self.near.send(b" world")
        self.assertEqual(self.far.received(), b"hello world")
        self.assertEqual(self.far.received(), b"")
        self.assertIs(self.far.ending, Ending.OPEN)

    def test_other_reactor(self) -> None:
        """With another reactor it is that one's to move time."""
        clock = Clock()
        near, far = self.meet(clock)
        near.send(b"hello")
        self.assertEqual(far.received(), b"")
        clock.advance(0)
        self.assertEqual(far.received(), b"hello")

    def test_half_close(self) -> None:
        """After a half-close nothing can be sent, as on a socket, and the other end can go on."""
        self.near.half_close()
        self.assertRaises(BrokenPipeError, self.near.send, b"more")
        self.assertRaises(BrokenPipeError, self.near.half_close)
        self.far.send(b"I go on")
        self.assertEqual((self.far.ending, self.near.ending), (Ending.FIN, Ending.OPEN))
        self.assertEqual(self.near.received(), b"I go on")

    def test_close(self) -> None:
        """After a close nothing can be sent; the other end reads a FIN, and is reset when it sends."""
        self.near.close()
        self.near.close()
        self.assertRaises(BrokenPipeError, self.near.send, b"more")
        self.assertIs(self.far.ending, Ending.FIN)
        self.far.send(b"hello?")
        self.assertRaises(ConnectionResetError, self.far.send, b"hello??")
        self.assertEqual((self.far.ending, self.near.ending), (Ending.RESET, Ending.OPEN))

    def test_reset(self) -> None:
        """A reset is seen by the other end alone."""
        self.near.reset()
        self.assertEqual((self.far.ending, self.near.ending), (Ending.RESET, Ending.OPEN))
        self.assertRaises(BrokenPipeError, self.near.send, b"more")

    def test_pause(self) -> None:
        """What comes while an end is paused is there when it is resumed."""
        self.far.pause()
        self.near.send(b"hello")
        self.assertEqual(self.far.received(), b"")
        self.far.resume()
        self.assertEqual(self.far.received(), b"hello")


class TLSTests(SynchronousTestCase):
    """Clients that speak TLS to a listener."""

    def setUp(self) -> None:
        directory = Path(self.mktemp())
        directory.mkdir()
        made = SelfSigned.make(["proxy.example.com"], datetime.datetime.now(datetime.UTC))
        self.certificate, self.private_key = made.write(directory)
        self.lab = Lab(CONFIG + self.listener("tls", ""))
        self.addCleanup(self.lab.stop)

    def listener(self, name: str, options: str) -> str:
        """A listener that speaks TLS."""
        files = f"privateKey={self.private_key}:certKey={self.certificate}"
        return f"[listener:{name}]\nendpoint = ssl:0:{files}\naccept = forward connect\n{options}"

    def test_inside(self) -> None:
        """Behind the handshake everything is sent and received as without TLS, also what is larger than a record."""
        origin = self.lab.origin("www.example.com", 443)
        client = self.lab.connect("tls")
        session = client.start_tls()
        client.send(CONNECT)
        client.received()
        client.send(b"x" * 40000)
        origin.reply(b"y" * 40000)
        self.assertEqual((origin.received(), client.received()), (b"x" * 40000, b"y" * 40000))
        self.assertEqual(session.get_protocol_version_name(), "TLSv1.3")

    def test_endings(self) -> None:
        """Half-close and close are said by close_notify, and heard."""
        origin = self.lab.origin("www.example.com", 443)
        client = self.lab.connect("tls")
        client.start_tls()
        client.send(CONNECT)
        client.half_close()
        self.assertIs(origin.connection.ending, Ending.FIN)
        origin.close()
        self.assertIs(client.ending, Ending.FIN)
        client.close()

        another = self.lab.connect("tls")
        another.start_tls()
        another.close()
        self.assertEqual(another.ending, Ending.OPEN)

    def test_early(self) -> None:
        """What is sent while the handshake is under way follows it."""
        origin = self.lab.origin("www.example.com", 80, answer=ANSWER)
        client = self.lab.connect("tls", faults=Faults(delay=0.1))
        client.start_tls()
        client.send(GET)
        client.send(GET)
        client.pause()
        client.resume()
        self.lab.advance(1)
        self.assertEqual(len(origin.connections), 1)
        self.assertEqual(client.received().count(b"204 No Content"), 2)

    def test_close_before_the_handshake(self) -> None:
        """A client may leave in the middle of the handshake."""
        client = self.lab.connect("tls", faults=Faults(delay=0.1))
        client.start_tls()
        client.close()
        self.lab.advance(1)
        self.lab.records.expect()

    def test_refused(self) -> None:
        """A handshake that fails is an error."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        client = self.lab.connect("tls")
        error = self.assertRaises(ConnectionAbortedError, client.start_tls, context)
        self.assertIn("the TLS handshake failed", str(error))
        client.close()

    def test_certificate_wanted(self) -> None:
        """So is an alert that comes behind the handshake, as TLS 1.3 refuses a client's certificate."""
        options = f"client_certificate = required\nclient_ca = {self.certificate}\n"
        self.lab.reload(CONFIG + self.listener("strict", options))
        client = self.lab.connect("strict")
        error = self.assertRaises(ConnectionAbortedError, client.start_tls)
        self.assertIn("certificate", str(error))


class ResolverTests(SynchronousTestCase):
    """Resolvers that answer as they were told."""

    def test_static(self) -> None:
        """A name has the addresses that were given; every question is remembered."""
        resolver = StaticResolver({"www.example.com": ["192.0.2.1", "2001:db8::1"]})
        found = resolver.resolve("www.example.com")
        self.assertEqual(found, (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
        self.assertEqual(resolver.asked, ["www.example.com"])

    def test_canonical(self) -> None:
        """Names may be given in any spelling that a client may use; the proxy asks for the canonical one."""
        resolver = StaticResolver({"WWW.Example.com.": ["192.0.2.1"]})
        self.assertEqual(resolver.knows("www.example.COM"), (ip_address("192.0.2.1"),))

    def test_refusals(self) -> None:
        """What cannot be meant is refused: an address in place of a name, and a text in place of a sequence of them."""
        self.assertRaises(ValueError, StaticResolver, {"192.0.2.1": ["192.0.2.1"]})
        self.assertRaises(TypeError, StaticResolver, {"www.example.com": "192.0.2.1"})
        self.assertRaises(ProxyError, StaticResolver, {"not a name": ["192.0.2.1"]})
        self.assertRaises(ValueError, RebindingResolver().rebind, "www.example.com")
        self.assertRaises(TypeError, StaticResolver(delay=1).resolve, "www.example.com")

    def check_error(self, resolver: StaticResolver, error: ErrorType) -> None:
        """The name fails with this error."""
        self.assertIs(self.assertRaises(ProxyError, resolver.resolve, "www.example.com").error, error)
        self.assertEqual(resolver.knows("www.example.com"), ())

    def test_unknown(self) -> None:
        """A name that is not known does not exist."""
        self.check_error(StaticResolver(), ErrorType.DNS_ERROR)

    def test_failure(self) -> None:
        """A look-up can be made to fail in any way."""
        resolver = StaticResolver()
        resolver.fail("www.example.com")
        self.check_error(resolver, ErrorType.DNS_ERROR)
        resolver.fail("www.example.com", ErrorType.DNS_TIMEOUT)
        self.check_error(resolver, ErrorType.DNS_TIMEOUT)

    def test_delay(self) -> None:
        """With a delay the answer comes then, or the error; it may be cancelled."""
        clock = Clock()
        resolver = StaticResolver({"www.example.com": ["192.0.2.1"]}, clock=clock, delay=0.5)
        names = ("www.example.com", "unknown.example.com", "www.example.com")
        answer, error, cancelled = (resolver.resolve(name) for name in names)
        assert isinstance(answer, Deferred) and isinstance(error, Deferred) and isinstance(cancelled, Deferred)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        clock.advance(0.25)
        self.assertNoResult(answer)
        clock.advance(0.25)
        self.assertEqual(self.successResultOf(answer), (ip_address("192.0.2.1"),))
        self.failureResultOf(error, ProxyError)

    def test_rebinding(self) -> None:
        """Each question brings the next addresses, and the last ones stay."""
        resolver = RebindingResolver()
        resolver.rebind("www.example.com", ["93.184.216.34"], ["127.0.0.1"])
        found = [resolver.resolve("www.example.com") for _ in range(3)]
        self.assertEqual(found, [(ip_address("93.184.216.34"),), *[(ip_address("127.0.0.1"),)] * 2])


class RecordListTests(SynchronousTestCase):
    """An access log that can be looked at."""

    def setUp(self) -> None:
        self.records = RecordList()
        self.record = AccessRecord(0.0, "1", "http", "forward", "192.0.2.7", 50000, status=200)
        self.records.record(self.record)

    def test_expected(self) -> None:
        """Of each record the fields that are named count."""
        self.records.expect({"status": 200, "error": None, "listener": "http"})

    def test_other_value(self) -> None:
        """Another value is an error that shows both."""
        error = self.assertRaises(AssertionError, self.records.expect, {"status": 403})
        self.assertEqual(str(error), "the records are\n  {'status': 200}\n  and not\n  {'status': 403}")

    def test_missing(self) -> None:
        """So is a record that is not there."""
        self.assertRaises(AssertionError, self.records.expect, {"status": 200}, {"status": 200})

    def test_unexpected(self) -> None:
        """So is one that is there without being expected; it is shown with all it has."""
        error = self.assertRaises(AssertionError, self.records.expect)
        self.assertIn("'client': '192.0.2.7', 'client_port': 50000", str(error))

    def test_unknown_field(self) -> None:
        """A field that no record has is a mistake of the test."""
        self.assertRaises(AttributeError, self.records.expect, {"state": 200})

    def test_twice(self) -> None:
        """A second record for one flow is refused: there may be only one."""
        self.assertRaises(AssertionError, self.records.record, self.record)


class ScriptedDialerTests(SynchronousTestCase):
    """A dialer whose origins are scripted."""

    def setUp(self) -> None:
        self.clock = LabReactor()
        self.dialer = ScriptedDialer(self.clock)

    def place(self, address: str, reach: Reach = Reach.OPEN, delay: float = 0.0) -> Origin:
        """An origin at port 80 of an address."""
        origin = Origin(self.clock, reach=reach, connect_delay=delay)
        self.dialer.place(origin, address, 80)
        return origin

    def dial(self, *addresses: str, timeout: float = 5.0) -> Deferred[Any]:
        """Dial port 80 of one of the addresses."""
        return self.dialer.dial([ip_address(address) for address in addresses], 80, Listener, timeout)

    def check_error(self, dialing: Deferred[Any], error: ErrorType) -> None:
        """It has failed with this error."""
        self.assertIs(self.failureResultOf(dialing, ProxyError).value.error, error)

    def test_connected(self) -> None:
        """The protocol gets a connection to the address, in a later turn, and the origin its other end."""
        origin = self.place("192.0.2.1")
        dialing = self.dial("192.0.2.1")
        self.assertNoResult(dialing)
        self.clock.settle()
        protocol, address = self.successResultOf(dialing)
        self.assertEqual((str(address), protocol.heard), ("192.0.2.1", ["made"]))
        self.assertEqual(protocol.transport.getPeer(), IPv4Address("TCP", "192.0.2.1", 80))
        self.assertFalse(protocol.transport.reading)
        protocol.transport.write(b"hello")
        self.clock.settle()
        self.assertEqual(origin.received(), b"hello")
        self.assertEqual(self.dialer.dials, [Dial((ip_address("192.0.2.1"),), 80, 5.0)])

    def test_ipv6(self) -> None:
        """An origin may have an IPv6 address."""
        self.place("2001:db8::1")
        dialing = self.dial("2001:db8::1")
        self.clock.settle()
        protocol, _ = self.successResultOf(dialing)
        self.assertEqual(protocol.transport.getPeer(), IPv6Address("TCP", "2001:db8::1", 80))
        self.assertIsInstance(protocol.transport.getHost(), IPv6Address)

    def test_nobody(self) -> None:
        """Where there is no origin, the connection is refused."""
        dialing = self.dial("192.0.2.1")
        self.clock.settle()
        self.check_error(dialing, ErrorType.CONNECTION_REFUSED)

    def test_refused(self) -> None:
        """An origin can refuse; of several errors that of one who refuses is told."""
        self.place("192.0.2.1", Reach.REFUSED)
        self.place("192.0.2.2", Reach.UNROUTABLE)
        dialing = self.dial("192.0.2.1", "192.0.2.2")
        self.clock.settle()
        self.check_error(dialing, ErrorType.CONNECTION_REFUSED)

    def test_unroutable(self) -> None:
        """There may be no way to an origin."""
        self.place("192.0.2.2", Reach.UNROUTABLE)
        dialing = self.dial("192.0.2.2")
        self.clock.settle()
        self.check_error(dialing, ErrorType.DESTINATION_IP_UNROUTABLE)

    def test_silent(self) -> None:
        """An origin that is silent takes all the time there is."""
        self.place("192.0.2.1", Reach.SILENT)
        dialing = self.dial("192.0.2.1")
        self.clock.advance(4.9)
        self.assertNoResult(dialing)
        self.clock.advance(0.1)
        self.check_error(dialing, ErrorType.CONNECTION_TIMEOUT)

    def test_next_address(self) -> None:
        """The next address is tried at once when one refuses, and after a moment when one is silent."""
        self.place("192.0.2.2", Reach.SILENT)
        self.place("192.0.2.3", delay=0.5)
        dialing = self.dial("192.0.2.1", "192.0.2.2", "192.0.2.3")
        self.clock.advance(0.74)
        self.assertNoResult(dialing)
        self.clock.advance(0.01)
        self.assertEqual(str(self.successResultOf(dialing)[1]), "192.0.2.3")

    def test_too_slow(self) -> None:
        """An origin that answers too late might as well not answer."""
        self.place("192.0.2.1", delay=5.0)
        dialing = self.dial("192.0.2.1")
        self.clock.advance(5)
        self.check_error(dialing, ErrorType.CONNECTION_TIMEOUT)

    def test_cancelled(self) -> None:
        """Nobody is connected to once it is cancelled, and no error comes later."""
        origin = self.place("192.0.2.1")
        connecting, failing = self.dial("192.0.2.1"), self.dial("192.0.2.2")
        connecting.cancel()
        failing.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.failureResultOf(failing, CancelledError)
        self.clock.settle()
        self.assertEqual((origin.connections, self.clock.getDelayedCalls()), ([], []))

    def test_no_address(self) -> None:
        """To dial no address at all is a mistake."""
        self.assertRaises(ValueError, self.dial)


class OriginTests(SynchronousTestCase):
    """A scripted origin, seen from a client."""

    def setUp(self) -> None:
        self.lab = Lab(CONFIG)
        self.addCleanup(self.lab.stop)

    def tunnel(self, faults: Faults = NO_FAULTS) -> tuple[Peer, Origin]:
        """A client, and the origin that it has a tunnel to."""
        origin = self.lab.origin("www.example.com", 443, faults=faults)
        client = self.lab.connect("http")
        client.send(CONNECT)
        self.assertEqual(client.received(), b"HTTP/1.1 200 Connection Established\r\n\r\n")
        return client, origin

    def test_answer(self) -> None:
        """An origin with an answer gives it to each head that it receives, however that is split."""
        client, origin = self.tunnel()
        origin.answer = b"ok"
        client.send(b"GET / HTTP/1.1\r\n\r")
        self.assertEqual(client.received(), b"")
        client.send(b"\nGET / HTTP/1.1\r\n\r\n")
        self.assertEqual(client.received(), b"okok")

    def test_conversation(self) -> None:
        """What an origin has received can be looked at, and answered."""
        client, origin = self.tunnel()
        client.send(b"hello")
        self.assertEqual(origin.received(), b"hello")
        origin.reply(b"hello yourself")
        self.assertEqual(client.received(), b"hello yourself")

    def test_endings(self) -> None:
        """An origin can half-close, close and reset its connection."""
        endings: dict[Callable[[Origin], None], Ending] = {
            Origin.half_close: Ending.FIN,
            Origin.close: Ending.FIN,
            Origin.reset: Ending.RESET,
        }
        for end, seen in endings.items():
            client, origin = self.tunnel()
            end(origin)
            self.assertIs(client.ending, seen)

    def test_faults(self) -> None:
        """What an origin sends can break off."""
        client, origin = self.tunnel(Faults(reset_at=3))
        origin.reply(b"hello")
        self.assertEqual((client.received(), client.ending), (b"hel", Ending.RESET))

    def test_nobody_came(self) -> None:
        """An origin that nobody has connected to has received nothing: that is told, and not guessed."""
        origin = self.lab.origin("www.example.com", 443)
        self.assertRaises(AssertionError, origin.received)


class LabTests(SynchronousTestCase):
    """A whole proxy in memory."""

    def lab(self, config: str | Config = CONFIG, **arguments: Any) -> Lab:
        """A lab that is stopped at the end of the test."""
        lab = Lab(config, **arguments)
        self.addCleanup(lab.stop)
        return lab

    def test_request(self) -> None:
        """A request goes through the real doors and the real policy to a scripted origin, and into the records."""
        with Lab(CONFIG) as lab:
            lab.origin("www.example.com", 80, answer=ANSWER)
            client = lab.connect("http", "192.0.2.9", 1234)
            client.send(GET)
            self.assertTrue(client.received().startswith(b"HTTP/1.1 204 No Content\r\n"))
            lab.records.expect({"status": 204, "rule": "web", "client": "192.0.2.9", "client_port": 1234})

    def test_socks(self) -> None:
        """Other doors are reached by the names of their listeners."""
        lab = self.lab()
        origin = lab.origin("93.184.216.34", 80)
        client = lab.connect("socks", "2001:db8::9")
        client.send(b"\x05\x01\x00")
        client.send(b"\x05\x01\x00\x01\x5d\xb8\xd8\x22\x00\x50")
        self.assertEqual(client.received()[:4], b"\x05\x00\x05\x00")
        client.send(b"hello")
        self.assertEqual(origin.received(), b"hello")
        self.assertEqual([flow.record.client for flow in lab.flows], ["2001:db8::9"])

    def test_unix(self) -> None:
        """A listener may be a Unix socket; its clients have no address."""
        lab = self.lab(CONFIG + "[listener:local]\nendpoint = unix:/run/proxyd.sock\naccept = forward\n")
        lab.origin("www.example.com", 80, answer=ANSWER)
        lab.connect("local").send(GET)
        lab.records.expect({"status": 204, "listener": "local", "client_port": 0})

    def test_config(self) -> None:
        """A configuration that was read already may be given."""
        self.assertEqual(self.lab(Config.from_string(CONFIG)).addresses["http"], IPv4Address("TCP", "0.0.0.0", 8080))

    def test_names(self) -> None:
        """A name gets an address of its own with its first origin, and keeps it; or those that are given."""
        lab = self.lab()
        lab.origin("www.example.com", 80)
        lab.origin("www.example.com", 443)
        lab.origin("logs.example.com", 80)
        lab.origin("two.example.com", 80, "93.184.216.34", "93.184.216.35")
        known = {
            name: [str(address) for address in lab.resolver.knows(f"{name}.example.com")]
            for name in ("www", "logs", "two")
        }
        self.assertEqual(
            known, {"www": ["93.184.216.1"], "logs": ["93.184.216.2"], "two": ["93.184.216.34", "93.184.216.35"]}
        )

    def test_own_resolver(self) -> None:
        """The resolver may be another one."""
        resolver = RebindingResolver()
        lab = self.lab(resolver=resolver)
        resolver.rebind("www.example.com", ["93.184.216.34"], ["127.0.0.1"])
        lab.origin("93.184.216.34", 443)
        for _ in range(2):
            lab.connect("http").send(CONNECT)
        lab.records.expect({"error": "destination_ip_prohibited", "address": None})
        self.assertEqual([flow.record.address for flow in lab.flows], ["93.184.216.34:443"])

    def test_own_addresses(self) -> None:
        """The addresses of the proxy's machine are those that are given, whatever the tests run on."""
        lab = self.lab(own_addresses=["93.184.216.34"])
        lab.origin("www.example.com", 80, "93.184.216.34")
        lab.connect("http").send(GET)
        lab.records.expect({"error": "destination_ip_prohibited"})

    def test_time(self) -> None:
        """Time stands still until it is moved."""
        lab = self.lab()
        lab.origin("www.example.com", 443).reach = Reach.SILENT
        client = lab.connect("http")
        client.send(CONNECT)
        lab.advance(9)
        self.assertEqual(client.received(), b"")
        lab.advance(1)
        self.assertTrue(client.received().startswith(b"HTTP/1.1 504 Gateway Timeout\r\n"))
        lab.records.expect({"error": "connection_timeout", "duration": 10.0})

    def test_accounts(self) -> None:
        """Passwords are checked as ever, but at once and without a thread."""
        users = Path(self.mktemp())
        users.write_text("alice:$2b$04$ZtohShRF77OBDVMfAPRqD.XtIu2hqLreYgPsVkozy/hYAZJ8ZNXKG\n")
        lab = self.lab(CONFIG + f"users = alice\n[users]\nfile = {users.absolute()}\n")
        client = lab.connect("http")
        client.send(CONNECT)
        client.send(CONNECT.replace(b"\r\n\r\n", b"\r\nProxy-Authorization: Basic YWxpY2U6d3Jvbmc=\r\n\r\n"))
        self.assertEqual(client.received().count(b"407 Proxy Authentication Required"), 2)
        lab.records.expect(*[{"status": 407, "decision": "challenge"}] * 2)

    def test_reload(self) -> None:
        """Another configuration may follow, and clients find its listeners."""
        lab = self.lab()
        client = lab.connect("http")
        report = lab.reload(CONFIG.replace("[listener:http]", "[listener:web]").replace("tcp:8080", "tcp:8081"))
        self.assertEqual((report.added, report.removed), (("web",), ("http",)))
        self.assertEqual(lab.addresses["web"], IPv4Address("TCP", "0.0.0.0", 8081))
        self.assertRaises(KeyError, lab.connect, "http")
        client.send(GET)
        lab.connect("web").send(GET)
        lab.records.expect({"listener": "http", "error": "dns_error"}, {"listener": "web", "error": "dns_error"})

    def test_cannot_listen(self) -> None:
        """A proxy that cannot start is an error, as in life."""
        twice = CONFIG.replace("tcp:1080", "tcp:8080:interface=0.0.0.0")
        error = self.assertRaises(ListenError, Lab, twice)
        self.assertIn("Address already in use", str(error))

    def test_stopped(self) -> None:
        """A stopped lab refuses clients."""
        lab = Lab(CONFIG)
        lab.stop()
        self.assertRaises(ConnectionRefusedError, lab.connect, "http")

    def test_error_inside(self) -> None:
        """Where the test fails already, nothing else is checked."""

        def fail() -> None:
            with Lab(CONFIG) as lab:
                lab.reactor.callLater(1, print)
                raise KeyError("this one")

        self.assertEqual(str(self.assertRaises(KeyError, fail)), "'this one'")

    def test_left_behind(self) -> None:
        """Calls that are still to be made when all has stopped are a defect, and told."""
        lab = Lab(CONFIG)
        lab.reactor.callLater(1e6, print)
        error = self.assertRaises(AssertionError, lab.stop)
        self.assertIn("calls are still to be made", str(error))

    def test_missing_record(self) -> None:
        """A flow that ends without a record is a defect, and told."""
        lab = Lab(CONFIG)
        lab.origin("www.example.com", 443)
        lab.connect("http").send(CONNECT)
        [flow] = lab.flows
        flow.ended = True
        error = self.assertRaises(AssertionError, lab.stop)
        self.assertIn("flows without a record", str(error))

    def test_no_result(self) -> None:
        """What never comes is not waited for for ever."""
        lab = self.lab()
        self.assertRaises(AssertionError, lab.result_of, Deferred())

    def test_result(self) -> None:
        """Time passes until there is a result."""
        lab = self.lab()
        later: Deferred[str] = Deferred()
        lab.reactor.callLater(3, later.callback, "now")
        self.assertEqual(lab.result_of(later), "now")
        self.assertEqual(lab.reactor.seconds(), 3)


class PiecesAloneTests(SynchronousTestCase):
    """The pieces of a lab can be given to a `Proxy` one by one."""

    def test_proxy(self) -> None:
        """A proxy takes them with any reactor."""
        reactor = LabReactor()
        records, dialer = RecordList(), ScriptedDialer(reactor)
        resolver = StaticResolver({"www.example.com": ["93.184.216.34"]})
        proxy = Proxy(reactor, Config.from_string(CONFIG), access_log=records, dialer=dialer, resolver=resolver)
        where = self.successResultOf(proxy.listen())["http"]
        dialer.place(Origin(reactor, ANSWER), "93.184.216.34", 80)
        client = Peer(reactor)
        reactor.connect(client, HERE, where)
        client.send(GET)
        records.expect({"status": 204})
        stopped = proxy.stopService()
        reactor.advance(1)
        self.successResultOf(stopped)


class RealReactorTests(TestCase):
    """The pieces work in any reactor."""

    timeout = 20

    async def test_memory_origin(self) -> None:
        """Origins may be in memory where clients and listeners are real."""
        records, dialer = RecordList(), ScriptedDialer(reactor)
        resolver = StaticResolver({"www.example.com": ["93.184.216.34"]}, clock=reactor, delay=0.001)
        origin = Origin(reactor, faults=Faults(piece=100))
        dialer.place(origin, "93.184.216.34", 443)
        loopback = CONFIG.replace("tcp:8080", "tcp:0:interface=127.0.0.1").replace("tcp:1080", "tcp:0")
        config = Config.from_string(loopback)
        proxy = Proxy(reactor, config, access_log=records, dialer=dialer, resolver=resolver)
        self.addCleanup(proxy.stopService)
        client = await connect((await proxy.listen())["http"])
        client.transport.write(CONNECT)
        await client.until(b"\r\n\r\n")
        origin.reply(b"x" * 200000 + b"end")
        await client.until(b"end")
        origin.close()
        client.transport.loseConnection()
        await client.closed
        while not records:
            await deferLater(reactor, 0.001)
        records.expect({"status": 200, "bytes_to_client": 200003, "address": "93.184.216.34:443"})
