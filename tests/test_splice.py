"""Tests for proxyd.net.splice."""

from __future__ import annotations

import fcntl
import os
import socket
from unittest import SkipTest

from twisted.internet.error import ConnectionLost
from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.connection import Connection
from proxyd.net.rate import Rate
from proxyd.net.splice import PIPE_SIZE, POOLED_PIPES, Pipe, Pipes, Splicer, Transfer
from proxyd.net.transport import Stream

from .turning import Notes, StreamCase, drained, reset

NOBODY = 65534
PAGE = 4096
BODY = bytes(range(253)) * 5003


def open_descriptors() -> set[str]:
    """The process's descriptors."""
    return set(os.listdir("/proc/self/fd"))


class PipesTests(SynchronousTestCase):
    """Pipes that are made as needed and used again."""

    def setUp(self) -> None:
        if not Splicer.available():
            raise SkipTest("this platform cannot splice")
        self.pipes = Pipes()
        self.addCleanup(self.pipes.close)

    def test_pipe(self):
        """A pipe neither blocks nor is inherited, and holds as much as it says."""
        read, write, size = pipe = self.pipes.take()
        self.addCleanup(self.pipes.discard, pipe)
        self.assertEqual(fcntl.fcntl(write, fcntl.F_GETPIPE_SZ), size)
        self.assertFalse(os.get_blocking(read) or os.get_blocking(write))
        self.assertFalse(os.get_inheritable(read) or os.get_inheritable(write))

    def test_used_again(self):
        """An empty pipe that was given back is the next one's."""
        pipe = self.pipes.take()
        self.pipes.give_back(pipe)
        self.assertEqual(self.pipes.take(), pipe)
        self.pipes.discard(pipe)

    def test_few_are_kept(self):
        """Beyond a number pipes are closed when they are given back, and all are in the end."""
        before = open_descriptors()
        taken = [self.pipes.take() for _ in range(POOLED_PIPES + 10)]
        for pipe in taken:
            self.pipes.give_back(pipe)
        self.assertEqual(len(open_descriptors() - before), 2 * POOLED_PIPES)
        self.pipes.close()
        self.assertEqual(open_descriptors() - before, set())

    def test_without_privileges(self):
        """A user whose share of pipe pages is used up gets smaller pipes, which work."""
        if os.getuid() == 0:
            os.seteuid(NOBODY)
            self.addCleanup(os.seteuid, 0)
        with open("/proc/sys/fs/pipe-user-pages-soft") as share:
            pages = int(share.read())
        if not 0 < pages <= 16384:
            raise SkipTest("users may have any number of pipes")
        taken = [self.pipes.take() for _ in range(pages * PAGE // PIPE_SIZE + 10)]
        for read, write, size in taken:
            self.addCleanup(self.pipes.discard, (read, write, size))
            self.assertEqual(os.write(write, bytes(100_000)), min(size, 100_000))
            self.assertEqual(len(os.read(read, 100_000)), min(size, 100_000))
        self.assertEqual(taken[0][2], PIPE_SIZE)
        self.assertLess(taken[-1][2], PIPE_SIZE)


class Owner:
    """Who has the transfer made, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def began(self, transfer: Transfer) -> None:
        """The first bytes came."""
        self.heard.append("began")

    def finished(self, transfer: Transfer) -> None:
        """All is moved."""
        self.heard.append("finished")

    def broke(self, transfer: Transfer, at_source: bool) -> None:
        """A reset."""
        self.heard.append("source broke" if at_source else "sink broke")


class CountedPipes(Pipes):
    """Pipes that know how many are in use; ``most`` is how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0
        self.most = 1000

    def take(self) -> Pipe:
        """One more."""
        if self.used >= self.most:
            raise OSError(24, "Too many open files")
        self.used += 1
        return super().take()

    def give_back(self, pipe: Pipe) -> None:
        """One less."""
        self.used -= 1
        super().give_back(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Closed, in use or not."""
        self.used -= pipe not in self._free
        super().discard(pipe)


class TransferTests(StreamCase):
    """Bytes on their way from one stream to another."""

    def setUp(self) -> None:
        if not Splicer.available():
            raise SkipTest("this platform cannot splice")
        super().setUp()
        self.splicer = Splicer(self.reactor, self.readiness)
        self.pipes = self.splicer.pipes = CountedPipes()
        self.addCleanup(self.splicer.stop)
        self.source, self.source_notes, self.sender = self.stream()
        self.sink, self.sink_notes, self.receiver = self.stream()
        self.source.pauseProducing()
        self.owner = Owner()
        self.heard = b""

    def transfer(self, length: int = -1, chunk: int = 65536, rate: int = 0) -> Transfer:
        """A transfer that has begun."""
        transfer = Transfer(self.splicer, self.source, self.sink, self.owner, chunk=chunk, length=length)
        if rate:
            transfer.rate = Rate(rate, self.reactor.seconds())
        transfer.start()
        return transfer

    def hear(self) -> bytes:
        """Everything that has arrived."""
        self.heard += drained(self.receiver)
        return self.heard

    def send_all(self, data: bytes) -> None:
        """Send much, and hear it meanwhile."""
        while data:
            try:
                data = data[self.sender.send(data) :]
            except BlockingIOError:
                pass
            self.turn()
            self.hear()
        self.turn()
        self.hear()

    def test_possible(self):
        """Both ends have to be streams in an epoll set of ours, with nothing pending towards the sink."""
        self.assertTrue(Transfer.possible(self.source, self.sink))
        self.assertFalse(Transfer.possible(self.source, object()))
        self.assertFalse(Transfer.possible(object(), self.sink))
        near, _ = self.sockets()
        self.addCleanup(near.close)
        elsewhere = Stream(near, Connection(Notes()), self.reactor)
        self.assertFalse(Transfer.possible(self.source, elsewhere))
        self.assertFalse(Transfer.possible(elsewhere, self.sink))
        self.source.write(bytes(1_000_000))
        self.assertTrue(Transfer.possible(self.source, self.sink))
        self.sink.write(bytes(1_000_000))
        self.assertFalse(Transfer.possible(self.source, self.sink))

    def test_until_the_end(self):
        """Without a length, bytes move until the source's FIN."""
        transfer = self.transfer()
        self.send_all(BODY)
        self.assertEqual((self.owner.heard, transfer.moved, transfer.left), (["began"], len(BODY), -1))
        self.sender.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual(self.owner.heard, ["began", "finished"])
        self.assertTrue(self.heard == BODY)
        self.assertEqual(self.pipes.used, 0)

    def test_nothing(self):
        """A source that says FIN at once has moved nothing, and never began."""
        transfer = self.transfer()
        self.sender.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((self.owner.heard, transfer.moved), (["finished"], 0))

    def test_length(self):
        """With a length exactly so many bytes move; the next is the source's transport's."""
        transfer = self.transfer(length=100_000)
        self.send_all(BODY[:100_000] + b"HTTP/1.1 200 OK")
        self.assertEqual((self.owner.heard, transfer.moved, transfer.left), (["began", "finished"], 100_000, 0))
        self.assertTrue(self.heard == BODY[:100_000])
        self.assertEqual(self.source_notes.data, b"")
        self.source.resumeProducing()
        self.turn()
        self.assertEqual(self.source_notes.data, b"HTTP/1.1 200 OK")
        self.assertEqual(self.source_notes.ends, 0)

    def test_length_in_small_pieces(self):
        """So it is however small the pieces are."""
        self.transfer(length=100)
        for _ in range(60):
            self.sender.send(b"ab")
            self.turn()
        self.assertEqual(self.hear(), b"ab" * 50)
        self.assertEqual(self.owner.heard, ["began", "finished"])

    def test_cut_short(self):
        """A FIN before the length is reached says so by what is left."""
        transfer = self.transfer(length=1000)
        self.send_all(b"a" * 999)
        self.sender.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((self.owner.heard, transfer.left), (["began", "finished"], 1))

    def test_both_ways(self):
        """Two transfers share two sockets, one in each direction, and end each for itself."""
        self.sink.pauseProducing()
        up = self.transfer()
        down = Transfer(self.splicer, self.sink, self.source, self.owner, chunk=65536)
        down.start()
        self.sender.send(b"question")
        self.receiver.send(b"the answer")
        self.turn()
        self.assertEqual((self.receiver.recv(100), self.sender.recv(100)), (b"question", b"the answer"))
        self.sender.shutdown(socket.SHUT_WR)
        self.turn()
        self.receiver.send(b"tail")
        self.turn()
        self.assertEqual(self.sender.recv(100), b"tail")
        self.assertEqual((up.moved, down.moved), (8, 14))

    def test_no_pipe_while_idle(self):
        """A transfer holds a pipe only while bytes are in flight."""
        self.transfer()
        self.assertEqual(self.pipes.used, 0)
        self.send_all(b"abc")
        self.assertEqual(self.pipes.used, 0)

    def test_blocked(self):
        """While the sink takes nothing, the transfer is blocked: the source is not read, and little is in flight."""
        transfer = self.transfer()
        sent = 0
        for _ in range(200):
            try:
                sent += self.sender.send(BODY[sent : sent + 65536])
            except BlockingIOError:
                pass
            self.turn()
        self.assertTrue(transfer.blocked)
        self.assertLess(sent, len(BODY))
        self.assertEqual(self.pipes.used, 1)
        self.send_all(BODY[sent:])
        self.assertTrue(self.heard == BODY)
        self.assertFalse(transfer.blocked)
        self.assertEqual(self.pipes.used, 0)

    def fill(self, transfer: Transfer) -> None:
        """Send until the transfer is blocked."""
        while not transfer.blocked:
            try:
                self.sender.send(bytes(65536))
            except BlockingIOError:
                pass
            self.turn()

    def test_last_bytes_blocked(self):
        """A length that is reached while the sink is full is reached when the sink has taken it."""
        transfer = self.transfer()
        self.fill(transfer)
        transfer.left = 0
        self.assertEqual(self.owner.heard, ["began"])
        while self.owner.heard == ["began"]:
            self.hear()
            self.turn()
        self.assertEqual(self.owner.heard, ["began", "finished"])

    def test_source_reset(self):
        """A reset at the source is told as such; the sink is left alone."""
        self.transfer()
        self.send_all(b"abc")
        reset(self.sender)
        self.turn()
        self.assertEqual(self.owner.heard, ["began", "source broke"])
        self.assertEqual(self.sink_notes.reasons, [])
        self.assertEqual(self.pipes.used, 0)

    def test_sink_reset(self):
        """A reset at the sink is found by the next bytes for it."""
        self.sink.pauseProducing()
        self.sink.startWriting()  # nothing else of it is watched, and that not for long
        self.sink.stopWriting()
        self.transfer()
        self.send_all(b"abc")
        self.sink.socket.shutdown(socket.SHUT_WR)
        self.sender.send(b"def")
        self.turn()
        self.assertEqual(self.owner.heard, ["began", "sink broke"])
        self.assertEqual(self.pipes.used, 0)

    def test_end_behind_a_sink_reset(self):
        """The FIN that is read from a broken sink is no clean end: its connection is lost, with a pipe and without."""
        for most in (1, 0):
            self.pipes.most = most
            self.sink, self.sink_notes, self.receiver = self.stream()
            transfer = self.transfer()
            self.sink.socket.shutdown(socket.SHUT_WR)
            self.sender.send(b"abc")
            self.receiver.send(b"last words")
            self.receiver.close()
            self.turn()
            self.assertEqual((self.sink_notes.data, self.sink_notes.ends), (b"last words", 0))
            self.assertTrue(self.sink_notes.reasons[0].check(ConnectionLost))
            transfer.stop()

    def test_sink_reset_while_blocked(self):
        """So it is while the transfer waits for the sink; the pipe with what it held is closed."""
        transfer = self.transfer()
        self.sink.pauseProducing()
        self.fill(transfer)
        reset(self.receiver)
        self.turn()
        self.assertEqual(self.owner.heard, ["began", "sink broke"])
        self.assertEqual(self.pipes.used, 0)

    def test_stop(self):
        """A stopped transfer moves nothing more, holds nothing, and both streams are as before."""
        transfer = self.transfer()
        self.send_all(b"abc")
        transfer.stop()
        transfer.stop()
        self.sender.send(b"def")
        self.turn()
        self.assertEqual(self.hear(), b"abc")
        self.source.resumeProducing()
        self.turn()
        self.assertEqual(self.source_notes.data, b"def")
        self.sink.write(b"ghi")
        self.assertEqual(self.hear(), b"abcghi")

    def test_stop_while_blocked(self):
        """What a stopped transfer held is lost with its pipe."""
        transfer = self.transfer()
        self.fill(transfer)
        transfer.stop()
        self.assertEqual(self.pipes.used, 0)
        while not self.hear() or drained(self.receiver):
            self.turn()
        self.assertEqual(self.owner.heard, ["began"])

    def test_descriptors(self):
        """Whatever happens, no descriptor is left over."""
        before = open_descriptors()
        transfer = self.transfer()
        self.fill(transfer)
        transfer.stop()
        self.splicer.stop()
        self.assertEqual(open_descriptors(), before)

    def fill_kernel(self) -> None:
        """Leave no room in the kernel for bytes to the sink."""
        try:
            while True:
                self.sink.socket.send(bytes(4096))
        except BlockingIOError:
            pass

    def test_no_pipe(self):
        """When descriptors have run out, bytes are copied, and nothing is lost or doubled."""
        self.pipes.most = 0
        transfer = self.transfer()
        self.send_all(BODY)
        self.assertTrue(self.heard == BODY)
        self.sender.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((self.owner.heard, transfer.moved), (["began", "finished"], len(BODY)))

    def test_no_pipe_for_a_while(self):
        """Descriptors may come and go in the middle of a transfer."""
        transfer = self.transfer()
        for number, start in enumerate(range(0, len(BODY), 30_000)):
            self.pipes.most = number % 2
            self.send_all(BODY[start : start + 30_000])
        self.assertTrue(self.heard == BODY)
        self.assertEqual(transfer.moved, len(BODY))

    def test_no_pipe_and_length(self):
        """A length holds without a pipe too; the bytes behind it stay where they are."""
        self.pipes.most = 0
        self.transfer(length=1000)
        self.send_all(b"a" * 1000 + b"HTTP/1.1 200 OK")
        self.assertEqual((self.heard, self.owner.heard), (b"a" * 1000, ["began", "finished"]))
        self.source.resumeProducing()
        self.turn()
        self.assertEqual(self.source_notes.data, b"HTTP/1.1 200 OK")

    def test_no_pipe_and_no_room(self):
        """Where there is no room in the sink either, the transfer waits for that, and says so."""
        self.pipes.most = 0
        self.fill_kernel()
        transfer = self.transfer()
        self.sender.send(b"abc")
        self.turn()
        self.assertEqual((transfer.moved, transfer.blocked), (0, True))
        while not self.hear().endswith(b"abc"):
            self.turn()
        self.assertEqual((transfer.moved, transfer.blocked), (3, False))

    def test_stop_without_pipe(self):
        """Nor does it move anything after a stop."""
        self.pipes.most = 0
        self.fill_kernel()
        transfer = self.transfer()
        self.sender.send(b"abc")
        self.turn()
        transfer.stop()
        self.assertFalse(transfer.blocked)
        while drained(self.receiver):
            self.turn()
        self.assertEqual(transfer.moved, 0)

    def test_no_pipe_and_reset(self):
        """Resets are found without a pipe as well."""
        self.pipes.most = 0
        self.transfer()
        self.send_all(b"abc")
        reset(self.sender)
        self.turn()
        self.assertEqual(self.owner.heard, ["began", "source broke"])

    def test_no_pipe_and_sink_reset(self):
        """At the sink they are found by sending."""
        self.pipes.most = 0
        self.transfer()
        self.sink.socket.shutdown(socket.SHUT_WR)
        self.sender.send(b"abc")
        self.turn()
        self.assertEqual(self.owner.heard, ["sink broke"])

    def test_no_pipe_and_rate(self):
        """The rate holds without a pipe."""
        self.pipes.most = 0
        transfer = self.transfer(rate=1000)
        self.send_all(b"a" * 3000)
        self.send_all(b"b" * 100)
        self.assertEqual(transfer.moved, 3000)
        self.reactor.advance(2)
        self.turn()
        self.assertEqual(transfer.moved, 3100)

    def test_spurious(self):
        """Being called when there is nothing to read is harmless, with a pipe and without."""
        for most in (1, 0):
            self.pipes.most = most
            transfer = self.transfer()
            assert self.source.watch is not None and self.source.watch.read is not None
            self.source.watch.read()
            self.assertEqual((transfer.moved, self.owner.heard, self.pipes.used), (0, [], 0))
            transfer.stop()

    def test_rate(self):
        """Bytes beyond the rate are waited for, without a pipe."""
        transfer = self.transfer(rate=1000)
        self.send_all(b"a" * 3000)
        self.assertEqual((transfer.moved, self.pipes.used), (3000, 0))
        self.send_all(b"b" * 100)
        self.reactor.advance(1.99)
        self.turn()
        self.assertEqual(transfer.moved, 3000)
        self.reactor.advance(0.02)
        self.turn()
        self.assertEqual((transfer.moved, self.hear()), (3100, b"a" * 3000 + b"b" * 100))

    def test_rate_not_reached(self):
        """Below the rate nothing waits."""
        transfer = self.transfer(rate=1_000_000)
        self.send_all(BODY[:300_000])
        self.assertEqual(transfer.moved, 300_000)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_rate_while_blocked(self):
        """A piece that the sink was slow to take is charged when it has taken it."""
        self.fill_kernel()
        transfer = self.transfer(rate=1000)
        self.sender.send(bytes(3000))
        self.turn()
        self.assertTrue(transfer.blocked)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        while transfer.blocked:
            self.hear()
            self.turn()
        self.assertEqual([call.getTime() for call in self.reactor.getDelayedCalls()], [2])

    def test_fair(self):
        """A source that never runs dry leaves the others their turn."""
        for sock in (self.source.socket, self.sender, self.sink.socket, self.receiver):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        sent = 0
        try:
            while True:
                sent += self.sender.send(bytes(4096))
        except BlockingIOError:
            pass
        if sent < 2 * 16 * 65536:
            raise SkipTest("net.core.rmem_max and wmem_max do not let a socket hold enough")
        transfer = self.transfer()
        self.readiness.doRead()
        self.assertGreater(transfer.moved, 0)
        self.assertLessEqual(transfer.moved, 16 * 65536)

    def test_tight_sink(self):
        """A sink that takes little by little, much less than is in flight, gets everything in order."""
        self.sink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        self.transfer()
        self.send_all(BODY[:300_000])
        while len(self.hear()) < 300_000:
            self.turn()
        self.assertTrue(self.heard == BODY[:300_000])

    def test_small_pipes(self):
        """A pipe smaller than the chunk is all that one step moves."""
        read, write = os.pipe2(os.O_NONBLOCK)
        self.pipes.used += 1
        self.pipes.give_back((read, write, fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)))
        self.transfer()
        self.send_all(BODY[:200_000])
        self.assertTrue(self.heard == BODY[:200_000])
