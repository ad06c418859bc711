"""Tests for proxyd.workers.channel."""

from __future__ import annotations

import os
import pickle
import socket
import struct
from threading import Thread

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxyd.workers.channel import READ_SIZE, Channel, wait
from proxyd.workers.messages import Answer, ListeningSocket, LogLine, Message, Order
from tests.descriptors import no_descriptors
from tests.processes import ReadingReactor


class End:
    """One end of a channel, and what came to it."""

    def __init__(self, reactor: ReadingReactor, end: socket.socket) -> None:
        self.socket = end
        self.messages: list[Message] = []
        self.descriptors: list[int] = []
        self.lost = 0
        self.channel = Channel(end, self._received, self._lost, 5.0)
        self.channel.begin(reactor)

    def _received(self, message: Message, descriptor: int | None) -> None:
        self.messages.append(message)
        if descriptor is not None:
            self.descriptors.append(descriptor)

    def _lost(self) -> None:
        self.lost += 1


class ChannelTests(SynchronousTestCase):
    """What one end says, the other end hears."""

    def setUp(self) -> None:
        self.reactor = ReadingReactor()
        ours, theirs = socket.socketpair()
        self.here, self.there = End(self.reactor, ours), End(self.reactor, theirs)
        self.addCleanup(self.here.channel.close)
        self.addCleanup(self.there.channel.close)

    def file(self, content: bytes) -> int:
        """The descriptor of a file that has this in it."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        descriptor = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor

    def test_messages(self) -> None:
        """Messages arrive one by one and in order, in both directions."""
        self.here.channel.send(Order.REOPEN_LOGS)
        self.here.channel.send(Order.STOP)
        self.there.channel.send(Answer(None))
        self.reactor.settle()
        self.assertEqual(self.there.messages, [Order.REOPEN_LOGS, Order.STOP])
        self.assertEqual(self.here.messages, [Answer(None)])

    def test_byte_by_byte(self) -> None:
        """A message may arrive in any pieces."""
        data = pickle.dumps(LogLine("info", "proxyd", "text"))
        for byte in struct.pack("!I?", len(data), False) + data:
            self.assertEqual(self.there.messages, [])
            self.here.socket.send(bytes([byte]))
            self.reactor.settle()
        self.assertEqual(self.there.messages, [LogLine("info", "proxyd", "text")])

    def test_large(self) -> None:
        """A message may be larger than what is read at one time."""
        self.here.channel.send(Answer("x" * (READ_SIZE + 1)))
        self.reactor.settle()
        self.assertEqual(self.there.messages, [Answer("x" * (READ_SIZE + 1))])

    def test_larger_than_the_socket(self) -> None:
        """Or larger than what the socket holds; sending it takes until the other process has read most of it."""
        other = Thread(target=wait, args=([self.there.channel], lambda: bool(self.there.messages), 30))
        other.start()
        self.addCleanup(other.join)
        self.here.channel.send(Answer("x" * 1_000_000))
        other.join()
        self.assertEqual(self.there.messages, [Answer("x" * 1_000_000)])

    def test_descriptors(self) -> None:
        """Each descriptor comes with the message it was sent with, for the same file; programs do not inherit it."""
        for name in ("a", "b"):
            self.here.channel.send(ListeningSocket(name), self.file(name.encode()))
        self.here.channel.send(Order.STOP)
        self.reactor.settle()
        self.assertEqual(self.there.messages, [ListeningSocket("a"), ListeningSocket("b"), Order.STOP])
        for descriptor, content in zip(self.there.descriptors, (b"a", b"b"), strict=True):
            self.addCleanup(os.close, descriptor)
            self.assertEqual(os.read(descriptor, 10), content)
            self.assertFalse(os.get_inheritable(descriptor))

    def test_no_room_for_a_descriptor(self) -> None:
        """Where too many are open already a message comes without its descriptor; the next one has its own again."""
        self.here.channel.send(ListeningSocket("a"), self.file(b"a"))
        with no_descriptors():
            self.reactor.settle()
        self.assertEqual((self.there.messages, self.there.descriptors), ([ListeningSocket("a")], []))
        self.here.channel.send(ListeningSocket("b"), self.file(b"b"))
        self.reactor.settle()
        [descriptor] = self.there.descriptors
        self.addCleanup(os.close, descriptor)
        self.assertEqual(os.read(descriptor, 10), b"b")

    def test_cut_message_without_its_descriptor(self) -> None:
        """If the rest of that message never comes there is nothing to close."""
        socket.send_fds(self.here.socket, [struct.pack("!I?", 100, True)], [self.file(b"")])
        with no_descriptors():
            self.reactor.settle()
        self.here.channel.close()
        self.reactor.settle()
        self.assertEqual((self.there.messages, self.there.lost), ([], 1))

    def test_cut_message(self) -> None:
        """A descriptor whose message never comes as a whole is closed."""
        descriptor = self.file(b"")
        socket.send_fds(self.here.socket, [struct.pack("!I?", 100, True)], [descriptor])
        before = set(os.listdir("/proc/self/fd"))
        self.reactor.settle()
        [received] = set(os.listdir("/proc/self/fd")) - before
        self.here.channel.close()
        self.reactor.settle()
        self.assertNotIn(received, os.listdir("/proc/self/fd"))

    def test_lost(self) -> None:
        """The end of the other end is told once, behind all that it said before."""
        self.here.channel.send(Order.STOP)
        self.here.channel.close()
        self.reactor.settle()
        self.assertEqual(self.there.messages, [Order.STOP])
        self.assertEqual(self.there.lost, 1)
        self.assertFalse(self.there.channel.open)
        self.assertEqual(self.reactor.readers, set())

    def test_said_in_vain(self) -> None:
        """What is said to an end that is lost, or to nobody at all, is said in vain."""
        self.there.channel.close()
        self.here.channel.send(Order.STOP)
        self.reactor.settle()
        self.assertEqual(self.here.lost, 1)
        self.here.channel.send(Order.STOP)

    def test_nobody_reads(self) -> None:
        """An end that reads nothing while the socket fills up counts as lost; it finds the end behind what it got."""
        self.here.socket.settimeout(0)
        for _ in range(1000):
            self.here.channel.send(Answer("x" * 10_000))
        self.reactor.settle()
        self.assertEqual(self.there.messages[0], Answer("x" * 10_000))
        self.assertEqual([self.here.lost, self.there.lost], [1, 1])

    def test_dropped(self) -> None:
        """An end that Twisted drops is closed, and that is told."""
        self.there.channel.connectionLost(Failure(ConnectionLost()))
        self.assertFalse(self.there.channel.open)
        self.assertEqual(self.there.lost, 1)

    def test_finish(self) -> None:
        """When the other process has ended, all that it said is still to be heard."""
        for number in range(3):
            self.here.channel.send(Answer(str(number)))
        self.here.channel.close()
        self.there.channel.finish()
        self.assertEqual(self.there.messages, [Answer("0"), Answer("1"), Answer("2")])
        self.assertEqual(self.there.lost, 1)

    def test_name(self) -> None:
        """Twisted calls it by the program's name."""
        self.assertEqual(self.here.channel.logPrefix(), "proxyd")


class WaitTests(SynchronousTestCase):
    """Waiting without a reactor."""

    def setUp(self) -> None:
        self.reactor = ReadingReactor()
        pairs = [socket.socketpair() for _ in range(2)]
        self.ends = [End(self.reactor, ours) for ours, _ in pairs]
        self.others = [End(self.reactor, theirs) for _, theirs in pairs]
        for end in (*self.ends, *self.others):
            self.addCleanup(end.channel.close)
        self.channels = [end.channel for end in self.ends]

    def test_answered(self) -> None:
        """It ends when enough is said, and hears no more than that."""
        for other in self.others:
            other.channel.send(Answer(None))
        wait(self.channels, lambda: all(end.messages for end in self.ends), 30)
        self.assertEqual([end.messages for end in self.ends], [[Answer(None)], [Answer(None)]])

    def test_lost(self) -> None:
        """It ends when nobody is left who could say anything."""
        self.others[0].channel.send(Answer(None))
        for other in self.others:
            other.channel.close()
        wait(self.channels, lambda: False, 30)
        self.assertEqual([end.lost for end in self.ends], [1, 1])
        self.assertEqual(self.ends[0].messages, [Answer(None)])

    def test_silence(self) -> None:
        """It ends when nothing comes any more."""
        wait(self.channels, lambda: False, 0)
        self.assertEqual([end.lost for end in self.ends], [0, 0])
