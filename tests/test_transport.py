"""Tests for proxyd.net.transport."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - streams without an epoll set of ours need a real one
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from proxyd.net.connection import Connection
from proxyd.net.transport import Stream, bulk_read_size

from .turning import Notes, StreamCase, drained, reset

MEGABYTE = bytes(range(256)) * 4096


class Producer:
    """A push producer that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """The consumer is full."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """It takes more."""
        self.told.append("resume")

    def stopProducing(self) -> None:
        """It is lost."""
        self.told.append("stop")


class ReadingTests(StreamCase):
    """What the far end sends."""

    def test_interfaces(self):
        """A stream is a TCP transport, a consumer and a push producer."""
        stream, _, _ = self.stream()
        for interface in (ITCPTransport, IConsumer, IPushProducer):
            self.assertTrue(verifyObject(interface, stream))
        self.assertEqual(stream.logPrefix(), "proxyd")

    def test_begins(self):
        """The protocol is given its transport before anything is read, and nothing is read until it asks."""
        near, far = self.sockets()
        notes = Notes()
        connection = Connection(notes)
        stream = Stream(near, connection, self.reactor, self.readiness)
        stream.begin()
        self.assertIs(connection.transport, stream)
        far.send(b"abc")
        self.turn()
        self.assertEqual(notes.data, b"")
        stream.resumeProducing()
        self.turn()
        self.assertEqual(notes.data, b"abc")

    def test_bulk(self):
        """Everything arrives, in order."""
        _, notes, far = self.stream()
        sent = 0
        while sent < len(MEGABYTE):
            sent += far.send(MEGABYTE[sent:])
            self.turn()
        self.assertTrue(notes.data == MEGABYTE)

    def test_bulk_read_size(self):
        """Two reads are what may be held, but for a limit that makes no sense; more than a bound brings nothing."""
        for allowed, size in ((1, 16384), (32768, 16384), (65536, 32768), (262144, 131072), (1 << 26, 131072)):
            self.assertEqual(bulk_read_size(allowed), size)

    def test_paused(self):
        """A paused stream reads nothing, and notices neither bytes nor FIN until it is resumed."""
        stream, notes, far = self.stream()
        stream.pauseProducing()
        stream.pauseProducing()
        far.send(b"abc")
        far.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((notes.data, notes.ends), (b"", 0))
        stream.resumeProducing()
        self.turn()
        self.assertEqual((notes.data, notes.ends), (b"abc", 1))

    def test_half_closed(self):
        """Behind the far end's FIN we can still write."""
        stream, notes, far = self.stream()
        far.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((notes.ends, notes.reasons), (1, []))
        stream.write(b"tail")
        self.assertEqual(far.recv(10), b"tail")

    def test_half_closed_again(self):
        """A receiver that comes later hears of the FIN when it resumes reading."""
        stream, notes, far = self.stream()
        far.shutdown(socket.SHUT_WR)
        self.turn()
        stream.resumeProducing()
        self.turn()
        self.assertEqual((notes.ends, notes.reasons), (2, []))

    def test_reset(self):
        """A reset ends the connection, told once."""
        stream, notes, far = self.stream()
        reset(far)
        self.turn()
        (reason,) = notes.reasons
        self.assertTrue(reason.check(ConnectionLost))
        stream.resumeProducing()
        stream.pauseProducing()
        stream.startReading()
        stream.startWriting()
        self.turn()
        self.assertEqual(len(notes.reasons), 1)

    def test_reset_while_paused(self):
        """A reset is noticed also while nobody reads."""
        stream, notes, far = self.stream()
        stream.pauseProducing()
        reset(far)
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionLost))

    def test_failing_protocol(self):
        """When the protocol's own code fails, the failure is logged and ends the connection."""
        near, far = self.sockets()
        reasons: list[Any] = []

        class Failing(Protocol):
            def dataReceived(self, data: bytes) -> None:
                raise ValueError("a bug")

            def connectionLost(self, reason: Any = None) -> None:
                reasons.append(reason)

        stream = Stream(near, Failing(), self.reactor, self.readiness)
        stream.begin()
        stream.resumeProducing()
        far.send(b"abc")
        self.turn()
        self.assertTrue(reasons[0].check(ValueError))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(far.recv(10), b"")

    def test_spurious(self):
        """Being called without anything to read is harmless."""
        stream, notes, _ = self.stream()
        assert stream.watch is not None and stream.watch.read is not None
        stream.watch.read()
        self.assertEqual((notes.data, notes.ends, notes.reasons), (b"", 0, []))


class WritingTests(StreamCase):
    """What we send."""

    def test_at_once(self):
        """What is written is on its way before anything else happens."""
        stream, _, far = self.stream()
        stream.write(b"abc")
        self.assertEqual(far.recv(10), b"abc")
        self.assertFalse(stream.pending)

    def test_more_than_fits(self):
        """What the kernel does not take waits, and follows in order as soon as it does."""
        stream, _, far = self.stream()
        stream.write(MEGABYTE)
        self.assertTrue(stream.pending)
        stream.write(b"end")
        received = b""
        while len(received) < len(MEGABYTE) + 3:
            received += drained(far)
            self.turn()
        self.assertTrue(received == MEGABYTE + b"end")
        self.assertFalse(stream.pending)

    def test_full_from_the_start(self):
        """A socket that takes nothing at all loses nothing."""
        stream, _, far = self.stream()
        while not stream.pending:
            stream.write(bytes(4096))
        self.turn()
        stream.write(b"end")
        received = b""
        while not received.endswith(b"end"):
            received += drained(far)
            self.turn()
        self.assertEqual(received.strip(b"\0"), b"end")

    def test_back_pressure(self):
        """A producer is paused while much is waiting, and resumed when all of it is sent."""
        stream, _, far = self.stream()
        producer = Producer()
        stream.registerProducer(producer, True)
        stream.write(b"abc")
        self.assertEqual(producer.told, [])
        stream.write(MEGABYTE)
        self.assertEqual(producer.told, ["pause"])
        while stream.pending:
            drained(far)
            self.turn()
        self.turn()
        self.assertEqual(producer.told, ["pause", "resume"])
        stream.unregisterProducer()

    def test_lost_consumer(self):
        """When the connection is lost, the producer is stopped."""
        stream, _, far = self.stream()
        producer = Producer()
        stream.registerProducer(producer, True)
        reset(far)
        self.turn()
        self.assertEqual(producer.told, ["stop"])

    def test_reset_while_sending(self):
        """A reset while bytes wait ends the connection."""
        stream, notes, far = self.stream()
        stream.pauseProducing()
        stream.write(MEGABYTE)
        reset(far)
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionLost))

    def test_last_words(self):
        """What a peer said before it closed is read even if sending to it has failed already."""
        stream, notes, far = self.stream()
        far.send(b"last words")
        far.close()
        stream.write(b"a")  # answered with a reset
        stream.write(b"b")  # which is found here
        self.turn()
        self.assertEqual(len(notes.reasons), 1)
        self.assertEqual(notes.ends, 0)
        self.assertIn(notes.data, (b"last words", b""))  # the kernel may throw them away with the reset

    def test_failed_and_closed(self):
        """After a failed write the FIN that is read is no half-close: the connection is lost."""
        stream, notes, far = self.stream()
        stream.socket.shutdown(socket.SHUT_WR)
        stream.write(b"abc")
        far.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual(notes.ends, 0)
        self.assertTrue(notes.reasons[0].check(ConnectionLost))

    def test_reset_found_by_writing(self):
        """A write that fails while nobody reads ends the connection, but not before the writer is done."""
        stream, notes, _ = self.stream()
        stream.pauseProducing()
        stream.socket.shutdown(socket.SHUT_WR)
        stream.write(b"abc")
        stream.write(b"def")
        self.assertEqual(notes.reasons, [])
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionLost))

    def test_our_half_close(self):
        """Our FIN follows what was written; what is written behind it is ignored, and reading goes on."""
        stream, notes, far = self.stream()
        stream.write(MEGABYTE)
        stream.loseWriteConnection()
        stream.write(b"too late")
        received = b""
        while len(received) < len(MEGABYTE):
            received += drained(far)
            self.turn()
        self.assertTrue(received == MEGABYTE)
        self.assertEqual(far.recv(10), b"")
        far.send(b"tail")
        self.turn()
        self.assertEqual((notes.data, notes.reasons), (b"tail", []))

    def test_both_half_closed(self):
        """The far end's FIN behind ours is a half-close too, and no loss; whoever owns the connection closes it."""
        stream, notes, far = self.stream()
        stream.loseWriteConnection()
        self.turn()
        far.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((notes.ends, notes.reasons), (1, []))
        stream.loseConnection()
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionDone))


class EndingTests(StreamCase):
    """The ways a connection ends from our side."""

    def test_close_at_once(self):
        """With nothing waiting, a close is done before it returns."""
        stream, notes, far = self.stream()
        stream.close()
        self.assertTrue(notes.reasons[0].check(ConnectionDone))
        self.assertEqual(far.recv(10), b"")

    def test_close_when_sent(self):
        """Else it waits until everything is sent."""
        stream, notes, far = self.stream()
        stream.write(MEGABYTE)
        stream.close()
        self.assertEqual(notes.reasons, [])
        received = b""
        while len(received) < len(MEGABYTE):
            received += drained(far)
            self.turn()
        self.turn()
        self.assertTrue(received == MEGABYTE)
        self.assertTrue(notes.reasons[0].check(ConnectionDone))

    def test_lose(self):
        """Twisted's way of closing is the same, one turn later."""
        stream, notes, far = self.stream()
        stream.write(b"abc")
        stream.loseConnection()
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionDone))
        self.assertEqual(far.recv(10), b"abc")
        self.assertEqual(far.recv(10), b"")

    def test_abort(self):
        """An abort is a reset, whatever waits."""
        stream, notes, far = self.stream()
        stream.write(MEGABYTE)
        stream.abortConnection()
        self.assertEqual(notes.reasons, [])
        self.turn()
        self.assertTrue(notes.reasons[0].check(ConnectionAborted))
        with self.assertRaises(ConnectionResetError):
            while True:
                far.recv(1 << 20)

    def test_once(self):
        """However often a connection ends, its protocol is told once."""
        stream, notes, _ = self.stream()
        stream.abortConnection()
        stream.abortConnection()
        stream.close()
        stream.close()
        stream.loseConnection()
        stream.loseWriteConnection()
        self.turn()
        self.assertEqual(len(notes.reasons), 1)

    def test_write_after_the_end(self):
        """What is written after the end is ignored."""
        stream, notes, _ = self.stream()
        stream.close()
        stream.write(b"abc")
        self.turn()
        self.assertEqual(len(notes.reasons), 1)

    def test_with_the_set(self):
        """When the set of sockets is stopped, as at the end of the process, connections end."""
        _, notes, _ = self.stream()
        self.readiness.stop()
        self.assertTrue(notes.reasons[0].check(ConnectionLost))


class AddressTests(StreamCase):
    """Who talks to whom."""

    def test_ipv4(self):
        """A TCP connection has its two addresses."""
        stream, _, far = self.stream()
        self.assertEqual(stream.getPeer(), IPv4Address("TCP", *far.getsockname()))
        self.assertEqual(stream.getHost(), IPv4Address("TCP", *far.getpeername()))

    def test_ipv6(self):
        """So it is with IPv6."""
        try:
            near, far = self.sockets(socket.AF_INET6)
        except OSError:
            self.skipTest("there is no IPv6 here")
        stream = Stream(near, Connection(Notes()), self.reactor, self.readiness, far.getsockname())
        self.assertEqual(stream.getPeer(), IPv6Address("TCP", *far.getsockname()))
        self.assertEqual(stream.peer, far.getsockname())
        stream.begin()
        stream.close()

    def test_unix(self):
        """A Unix socket has a path, and a client without one is told by an empty address."""
        path = str(Path(self.mktemp()).absolute())
        if len(path) > 107:
            self.skipTest("the directory is too deep for a Unix socket")
        listening = socket.socket(socket.AF_UNIX)
        self.addCleanup(listening.close)
        listening.bind(path)
        listening.listen()
        far = socket.socket(socket.AF_UNIX)
        self.addCleanup(far.close)
        far.connect(path)
        near, _ = listening.accept()
        near.setblocking(False)
        stream = Stream(near, Connection(Notes()), self.reactor, self.readiness)
        self.assertEqual((stream.getHost(), stream.getPeer()), (UNIXAddress(path), UNIXAddress(None)))
        stream.begin()
        stream.close()


class PlainReactorTests(TestCase):
    """A stream without an epoll set of ours: the reactor watches its socket."""

    timeout = 20

    def setUp(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        self.far = socket.create_connection(listening.getsockname())
        self.addCleanup(self.far.close)
        near, _ = listening.accept()
        near.setblocking(False)
        self.notes = Notes()
        self.stream = Stream(near, Connection(self.notes), reactor)
        self.stream.begin()
        self.stream.resumeProducing()

    async def until(self, condition: Any) -> None:
        """Let the reactor turn until something is the case."""
        while not condition():
            await deferLater(reactor, 0)

    async def test_reads(self) -> None:
        """Bytes arrive, and a FIN is a half-close."""
        self.far.send(b"abc")
        await self.until(lambda: self.notes.data == b"abc")
        self.stream.pauseProducing()
        self.stream.resumeProducing()
        self.far.shutdown(socket.SHUT_WR)
        await self.until(lambda: self.notes.ends)
        self.stream.loseConnection()
        await self.until(lambda: self.notes.reasons)
        self.assertTrue(self.notes.reasons[0].check(ConnectionDone))

    async def test_writes(self) -> None:
        """What is written is sent at once; what does not fit follows."""
        self.stream.write(b"abc")
        self.assertEqual(self.far.recv(10), b"abc")
        self.far.setblocking(False)
        self.stream.write(MEGABYTE * 8)
        received = 0

        def all_there() -> bool:
            nonlocal received
            received += len(drained(self.far))
            return received == 8 * len(MEGABYTE)

        await self.until(all_there)
        self.stream.close()
        await self.until(lambda: self.notes.reasons)
        self.assertTrue(self.notes.reasons[0].check(ConnectionDone))

    async def test_aborts(self) -> None:
        """An abort is a reset."""
        self.stream.abortConnection()
        await self.until(lambda: self.notes.reasons)
        self.assertTrue(self.notes.reasons[0].check(ConnectionAborted))
        with self.assertRaises(ConnectionResetError):
            self.far.recv(10)

    async def test_write_to_a_lost_peer(self) -> None:
        """A write that fails ends the connection, but not before the writer is done."""
        reset(self.far)
        self.stream.write(b"abc")
        self.stream.write(b"def")
        self.assertEqual(self.notes.reasons, [])
        await self.until(lambda: self.notes.reasons)
        self.assertTrue(self.notes.reasons[0].check(ConnectionLost))
