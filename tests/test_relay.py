"""Tests for proxyd.net.relay, copy_relay and splice_relay: the same scenarios over every way to move bytes.

Sockets and reactor are real, time is the test's own.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.certificates import SelfSigned
from proxyd.errors import ErrorType
from proxyd.net.connection import Connection
from proxyd.net.copy_relay import CopyRelay
from proxyd.net.deadlines import Deadlines
from proxyd.net.readiness import Readiness
from proxyd.net.relay import Limits, Relay
from proxyd.net.splice import Pipe, Pipes, Splicer
from proxyd.net.splice_relay import SpliceRelay
from proxyd.net.tls import TLSLayer
from proxyd.net.tls_certificate import make_context
from proxyd.net.transport import Stream, bulk_read_size
from proxyd.settings import ClientCertificate, TLSFiles
from proxyd.testing.tls import ClientSession

from .turning import SMALL, Notes, StreamCase, drained, reset

CALM = 30
"""Turns of the reactor in which nothing moves before we say that nothing will."""

UP = bytes(range(251)) * 12_001
DOWN = bytes(reversed(range(241))) * 13_007

MUCH = bytes(16 * 1024 * 1024)
"""More than the buffers of two sockets take."""


class Far:
    """A program at the far end of one of the tunnel's connections, driven by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.heard = bytearray()
        self.ended = self.reset = False
        self.stalled = False
        """Whether it does not read."""
        self.unsent = memoryview(b"")
        self._finishes = False

    def say(self, data: bytes) -> None:
        """Send as fast as the kernel takes it."""
        self.unsent = memoryview(bytes(self.unsent) + data)

    def finish(self) -> None:
        """Say FIN behind everything else."""
        self._finishes = True

    def vanish(self) -> None:
        """Reset the connection."""
        reset(self.socket)
        self.stalled = True
        self.unsent = memoryview(b"")

    def leave(self, words: bytes) -> None:
        """Say something and close. Where bytes are left unread, that is a reset behind the words."""
        self.socket.send(words)
        self.socket.close()
        self.stalled = True

    def turn(self) -> None:
        """Do what can be done now."""
        try:
            if self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            elif self._finishes:
                self._finishes = False
                self.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:  # which takes the error away from the read
            self.unsent = memoryview(b"")
            self.reset = True
        if not self.stalled and not self.ended and not self.reset:
            self._read()

    def _read(self) -> None:
        try:
            while piece := self.socket.recv(1 << 18):
                self.heard += piece
            self.ended = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.reset = True


class Witness(Connection):
    """A connection that counts its ends."""

    def __init__(self) -> None:
        super().__init__(Notes())
        self.losses = 0

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The end."""
        self.losses += 1
        super().connectionLost(reason)


def not_taken(far: Far, near: Witness) -> bytes:
    """The rest of what a far end says, read from our end of its connection before that is closed."""
    sock, rest, piece = near.transport.socket, bytearray(), b"."
    far.finish()
    while piece:
        far.turn()
        with contextlib.suppress(BlockingIOError):
            piece = sock.recv(1 << 18)
            rest += piece
    return bytes(rest)


class RelayScenarios:
    """What holds for every tunnel; a subclass says how bytes are moved."""

    timeout = 60
    readiness: Readiness | None
    assertEqual: Callable[..., None]
    assertTrue: Callable[..., None]
    assertFalse: Callable[..., None]
    assertLess: Callable[..., None]
    assertGreater: Callable[..., None]
    addCleanup: Callable[..., None]

    def setUp(self) -> None:
        """Make two connections, and what a relay needs."""
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)
        self.prepare()
        self.ended: list[Relay] = []
        self.client, self.near_client = self.connection()
        self.origin, self.near_origin = self.connection()

    def prepare(self) -> None:
        """What this way of moving bytes needs."""
        raise NotImplementedError

    def relay(self, limits: Limits, early: int) -> Relay:
        """A tunnel, not started yet."""
        raise NotImplementedError

    def shut_down(self) -> None:
        """What the end of the process does to the connections."""
        raise NotImplementedError

    def connection(self) -> tuple[Far, Witness]:
        """A connection with small buffers: its far end and ours."""
        listening = socket.socket()
        far = socket.socket()
        for sock in (listening, far):
            self.addCleanup(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        far.connect(listening.getsockname())
        near, _ = listening.accept()
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        witness = Witness()
        stream = Stream(near, witness, reactor, self.readiness)
        stream.begin()
        self.addCleanup(self.gone, witness)
        return Far(far), witness

    async def gone(self, witness: Witness) -> None:
        """End a connection that the test has left open."""
        if not witness.losses:
            witness.transport.abortConnection()
        while not witness.losses:
            await deferLater(reactor, 0)

    def open(self, early: int = 0, **limits: Any) -> Relay:
        """Start a tunnel between the two connections."""
        values = {"idle": 600, "lifetime": 0, "buffer_size": 65536, "rate": 0, **limits}
        relay = self.relay(Limits(**values), early)
        relay.start()
        self.addCleanup(relay.abort)
        return relay

    # -- turns --------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """One turn of the reactor and of the programs at the far ends."""
        self.client.turn()
        self.origin.turn()
        await deferLater(reactor, 0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Turn until something is the case."""
        while not condition():
            await self.turn()

    async def until_calm(self) -> None:
        """Turn until nothing has moved for a while."""
        calm, before = 0, None
        while calm < CALM:
            await self.turn()
            now = tuple((len(far.unsent), len(far.heard), far.ended, far.reset) for far in (self.client, self.origin))
            calm = calm + 1 if now == before else 0
            before = now

    async def pass_seconds(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)
        await self.turn()

    # -- assertions ---------------------------------------------------------------------------------------------------

    def ending(self, relay: Relay, closed_by: str, error: ErrorType | None, up: int, down: int) -> None:
        """A tunnel has ended, once, in exactly this way, and nothing of it is left in the reactor."""
        self.assertEqual(self.ended, [relay])
        self.assertFalse(relay.running)
        self.assertEqual((relay.closed_by, relay.error), (closed_by, error))
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (up, down))
        self.deadlines.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def both_lost(self) -> None:
        """Both protocols hear of their end, once."""
        await self.until(lambda: self.near_client.losses and self.near_origin.losses)
        await self.until_calm()
        self.assertEqual((self.near_client.losses, self.near_origin.losses), (1, 1))

    # -- bytes --------------------------------------------------------------------------------------------------------

    async def test_both_ways(self) -> None:
        """Bytes go both ways and are counted where they came from."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard == b"question")
        self.origin.say(b"the answer")
        await self.until(lambda: self.client.heard == b"the answer")
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (8, 10))
        self.assertTrue(relay.running)

    async def test_first_byte(self) -> None:
        """The time of the origin's first byte is kept; the client's is none."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard)
        self.assertEqual(relay.first_byte, None)
        self.clock.advance(5)
        self.origin.say(b"an")
        await self.until(lambda: self.client.heard)
        self.clock.advance(5)
        self.origin.say(b"swer")
        await self.until(lambda: self.client.heard == b"answer")
        self.assertEqual(relay.first_byte, 5)

    async def test_early(self) -> None:
        """What the client sent behind its handshake counts as the client's."""
        self.near_origin.transport.write(b"early ")
        relay = self.open(early=6)
        self.assertEqual(relay.bytes_from_client, 6)
        self.client.say(b"bird")
        await self.until(lambda: self.origin.heard == b"early bird")
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (10, 0))

    async def test_much_early(self) -> None:
        """What the origin does not take at once of it comes before everything else, and the client's FIN behind."""
        self.near_origin.transport.write(UP)
        relay = self.open(early=len(UP))
        self.client.say(b"the end")
        self.client.finish()
        await self.until(lambda: self.origin.ended)
        self.assertTrue(self.origin.heard == UP + b"the end")
        self.assertEqual(relay.bytes_from_client, len(UP) + 7)

    async def test_abort_behind_much_early(self) -> None:
        """A tunnel that ends before that is taken is reset on both sides all the same."""
        self.near_origin.transport.write(UP)
        relay = self.open(early=len(UP))
        relay.abort()
        await self.until(lambda: self.client.reset and self.origin.reset)
        await self.both_lost()
        self.ending(relay, "proxy", None, len(UP), 0)

    async def test_sent_before_the_start(self) -> None:
        """What waits in the kernel when the tunnel opens is the tunnel's, its end included."""
        self.client.say(b"question")
        self.client.finish()
        await self.turn()
        await self.turn()
        relay = self.open()
        await self.until(lambda: self.origin.ended)
        self.assertEqual(self.origin.heard, b"question")
        self.assertTrue(relay.running)

    async def test_bulk_both_ways(self) -> None:
        """Megabytes go both ways at the same time and arrive as they were sent."""
        relay = self.open()
        for far, data in ((self.client, UP), (self.origin, DOWN)):
            far.say(data)
            far.finish()
        await self.until(lambda: self.client.ended and self.origin.ended)
        self.assertTrue(self.origin.heard == UP)
        self.assertTrue(self.client.heard == DOWN)
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (len(UP), len(DOWN)))
        await self.both_lost()
        self.assertEqual(relay.error, None)

    async def test_many_tiny_messages(self) -> None:
        """Single bytes pass one by one, each as soon as it is sent."""
        relay = self.open()
        for count in range(1, 201):
            self.client.say(b"?")
            await self.until(lambda count=count: len(self.origin.heard) == count)
            self.origin.say(b"!!")
            await self.until(lambda count=count: len(self.client.heard) == 2 * count)
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (200, 400))

    # -- half-close ---------------------------------------------------------------------------------------------------

    async def test_client_finishes_first(self) -> None:
        """The client's FIN reaches the origin; what the origin says then reaches the client, and its FIN ends it
        all.
        """
        relay = self.open()
        self.client.say(b"question")
        self.client.finish()
        await self.until(lambda: self.origin.ended)
        self.assertEqual(self.origin.heard, b"question")
        self.assertTrue(relay.running)
        self.origin.say(DOWN)
        self.origin.finish()
        await self.until(lambda: self.client.ended)
        self.assertTrue(self.client.heard == DOWN)
        await self.both_lost()
        self.ending(relay, "client", None, 8, len(DOWN))

    async def test_origin_finishes_first(self) -> None:
        """So it is the other way round."""
        relay = self.open()
        self.origin.say(b"greeting")
        self.origin.finish()
        await self.until(lambda: self.client.ended)
        self.assertTrue(relay.running)
        self.client.say(UP)
        self.client.finish()
        await self.until(lambda: self.origin.ended)
        self.assertTrue(self.origin.heard == UP)
        await self.both_lost()
        self.ending(relay, "origin", None, len(UP), 8)

    async def test_tail_behind_back_pressure(self) -> None:
        """A FIN behind bytes that the other side does not take yet waits for them."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP[:500_000])
        self.client.finish()
        await self.until_calm()
        self.assertFalse(self.origin.ended)
        self.origin.stalled = False
        await self.until(lambda: self.origin.ended)
        self.assertTrue(self.origin.heard == UP[:500_000])
        self.assertTrue(relay.running)
        self.assertEqual(relay.bytes_from_client, 500_000)

    async def test_client_closes_behind_its_request(self) -> None:
        """A client that has closed altogether is found out when it is written to."""
        relay = self.open()
        self.client.say(b"question")
        await self.turn()
        self.client.socket.close()
        self.client.stalled = True
        await self.until(lambda: self.origin.ended)
        self.assertEqual(self.origin.heard, b"question")
        self.origin.say(DOWN)
        await self.until(lambda: self.origin.reset)
        await self.both_lost()
        self.assertEqual((relay.closed_by, relay.error), ("client", ErrorType.CLIENT_DISCONNECTED))

    # -- resets -------------------------------------------------------------------------------------------------------

    async def test_client_resets(self) -> None:
        """A reset by the client is a reset for the origin."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard == b"question")
        self.client.vanish()
        await self.until(lambda: self.origin.reset)
        await self.both_lost()
        self.ending(relay, "client", ErrorType.CLIENT_DISCONNECTED, 8, 0)

    async def test_origin_resets(self) -> None:
        """A reset by the origin is a reset for the client."""
        relay = self.open()
        self.origin.say(b"half an ans")
        await self.until(lambda: self.client.heard == b"half an ans")
        self.origin.vanish()
        await self.until(lambda: self.client.reset)
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 0, 11)

    async def test_reset_after_half_close(self) -> None:
        """A reset behind the other side's FIN is one too, and no clean end."""
        relay = self.open()
        self.client.say(b"question")
        self.client.finish()
        await self.until(lambda: self.origin.ended)
        self.origin.vanish()
        await self.until(lambda: self.client.reset)
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 8, 0)

    async def test_fin_and_reset(self) -> None:
        """A FIN that can no longer be carried on, because the other side was reset meanwhile, ends with the reset."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard == b"question")
        self.client.socket.shutdown(socket.SHUT_WR)
        self.origin.vanish()
        await self.until(lambda: self.client.reset)
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 8, 0)

    async def test_stalled_origin_resets(self) -> None:
        """An origin that took nothing and then resets the connection ends the tunnel; what it did not take is lost."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP)
        await self.until_calm()
        self.origin.vanish()
        await self.until(lambda: self.client.reset)
        await self.both_lost()
        self.assertEqual((relay.closed_by, relay.error), ("origin", ErrorType.CONNECTION_TERMINATED))

    async def test_reset_behind_back_pressure(self) -> None:
        """A client that resets while nothing is read from it is noticed nevertheless."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP)
        await self.until_calm()
        self.client.vanish()
        await self.until(lambda: self.ended)
        self.origin.stalled = False
        await self.until(lambda: self.origin.reset)
        await self.both_lost()
        self.assertEqual((relay.closed_by, relay.error), ("client", ErrorType.CLIENT_DISCONNECTED))

    # -- last words ---------------------------------------------------------------------------------------------------

    async def test_last_words_of_the_origin(self) -> None:
        """What an origin says before it resets reaches a client that speaks on."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(b"question")
        await self.until(lambda: relay.bytes_from_client == 8)
        self.client.socket.send(b"and more")  # so that the reset is found by writing
        self.origin.leave(b"too much")
        await self.until(lambda: self.client.reset)
        self.assertEqual(self.client.heard, b"too much")
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 16, 8)

    async def test_last_words_of_the_client(self) -> None:
        """So it is the other way round."""
        relay = self.open()
        self.client.stalled = True
        self.origin.say(b"greeting")
        await self.until(lambda: relay.bytes_to_client == 8)
        self.origin.socket.send(b"and more")
        self.client.leave(b"no more")
        await self.until(lambda: self.origin.reset)
        self.assertEqual(self.origin.heard, b"no more")
        await self.both_lost()
        self.ending(relay, "client", ErrorType.CLIENT_DISCONNECTED, 7, 16)

    async def test_last_words_behind_a_fin(self) -> None:
        """So it is with a client that has just said FIN."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(b"question")
        await self.until(lambda: relay.bytes_from_client == 8)
        self.client.socket.shutdown(socket.SHUT_WR)
        self.origin.leave(b"too much")
        await self.until(lambda: self.client.reset)
        self.assertEqual(self.client.heard, b"too much")
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 8, 8)

    async def test_last_words_behind_back_pressure(self) -> None:
        """So it is where the origin has long taken nothing."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP)
        await self.until_calm()
        self.origin.leave(b"too much")
        await self.until(lambda: self.client.reset)
        self.assertEqual(self.client.heard, b"too much")
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, relay.bytes_from_client, 8)

    async def test_no_words_left(self) -> None:
        """A reset behind an origin's FIN ends the tunnel at once, as there is nothing more to hear of it."""
        relay = self.open()
        self.origin.stalled = True
        self.origin.say(b"greeting")
        self.origin.finish()
        await self.until(lambda: self.client.ended)
        self.client.say(b"question")
        await self.until(lambda: relay.bytes_from_client == 8)
        self.client.socket.send(b"and more")
        self.origin.vanish()
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 16, 8)

    # -- back-pressure ------------------------------------------------------------------------------------------------

    async def test_stalled_origin(self) -> None:
        """While the origin takes nothing, little is taken from the client; nothing is lost when it goes on."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP)
        await self.until_calm()
        self.assertGreater(len(self.client.unsent), 0)
        self.assertLess(relay.bytes_from_client, 1_000_000)
        self.origin.stalled = False
        await self.until(lambda: len(self.origin.heard) == len(UP))
        self.assertTrue(self.origin.heard == UP)
        self.assertEqual(relay.bytes_from_client, len(UP))

    async def test_stalled_client(self) -> None:
        """So it is the other way round, and the way from the client stays free meanwhile."""
        relay = self.open()
        self.client.stalled = True
        self.origin.say(DOWN)
        await self.until_calm()
        self.assertGreater(len(self.origin.unsent), 0)
        self.assertLess(relay.bytes_to_client, 1_000_000)
        self.client.say(b"still here")
        await self.until(lambda: self.origin.heard == b"still here")
        self.client.stalled = False
        await self.until(lambda: len(self.client.heard) == len(DOWN))
        self.assertTrue(self.client.heard == DOWN)

    async def test_slow_origin(self) -> None:
        """An origin that stalls again and again gets everything in order."""
        self.open()
        self.client.say(UP)
        while len(self.origin.heard) < len(UP):
            self.origin.stalled = not self.origin.stalled
            for _ in range(5):
                await self.turn()
        self.assertTrue(self.origin.heard == UP)

    # -- limits -------------------------------------------------------------------------------------------------------

    async def test_idle(self) -> None:
        """A tunnel in which nothing moves is reset on both sides when the idle limit is reached."""
        relay = self.open(idle=80)
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard)
        await self.pass_seconds(79)
        self.assertTrue(relay.running)
        await self.pass_seconds(15)
        await self.until(lambda: self.client.reset and self.origin.reset)
        await self.both_lost()
        self.ending(relay, "proxy", ErrorType.CONNECTION_READ_TIMEOUT, 8, 0)

    async def test_not_idle(self) -> None:
        """A byte in either direction is enough to go on."""
        relay = self.open(idle=80)
        for count in range(1, 6):
            self.client.say(b"?")
            await self.until(lambda count=count: len(self.origin.heard) == count)
            await self.pass_seconds(70)
            self.origin.say(b"!")
            await self.until(lambda count=count: len(self.client.heard) == count)
            await self.pass_seconds(70)
        self.assertTrue(relay.running)

    async def test_no_idle_limit(self) -> None:
        """Without a limit a tunnel may be quiet for ever."""
        relay = self.open(idle=0)
        await self.pass_seconds(10_000)
        self.assertTrue(relay.running)

    async def test_lifetime(self) -> None:
        """A tunnel that has reached its lifetime is reset, however busy it is."""
        relay = self.open(lifetime=100)
        for count in range(1, 10):
            self.client.say(b"?")
            await self.until(lambda count=count: len(self.origin.heard) == count)
            await self.pass_seconds(11)
        self.assertTrue(relay.running)
        await self.pass_seconds(2)
        await self.until(lambda: self.client.reset and self.origin.reset)
        await self.both_lost()
        self.ending(relay, "proxy", ErrorType.CONNECTION_TIMEOUT, 9, 0)

    async def test_rate(self) -> None:
        """What is more than the rate allows waits its time; each direction for itself."""
        relay = self.open(rate=1000)
        self.client.say(b"a" * 3000)
        await self.until(lambda: relay.bytes_from_client == 3000)
        self.client.say(b"b" * 500)
        self.origin.say(b"c" * 1000)
        await self.until_calm()
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (3000, 1000))
        await self.pass_seconds(1.75)
        await self.until_calm()
        self.assertEqual(relay.bytes_from_client, 3000)
        await self.pass_seconds(0.25)
        await self.until(lambda: relay.bytes_from_client == 3500)
        await self.until(lambda: len(self.origin.heard) == 3500)

    async def test_rate_and_end(self) -> None:
        """The end of a flow that has to pause waits with its last bytes."""
        relay = self.open(rate=1000)
        self.client.say(b"a" * 3000)
        await self.until(lambda: relay.bytes_from_client == 3000)
        self.client.say(b"b" * 100)
        self.client.finish()
        await self.until_calm()
        self.assertFalse(self.origin.ended)
        await self.pass_seconds(2)
        await self.until(lambda: len(self.origin.heard) == 3100)
        await self.until_calm()
        self.assertFalse(self.origin.ended)
        await self.pass_seconds(0.25)
        await self.until(lambda: self.origin.ended)

    async def test_rate_and_stall(self) -> None:
        """A stalled receiver and a rate hold a flow together: both have to let go of it."""
        relay = self.open(rate=50_000)
        self.origin.stalled = True
        self.client.say(UP)
        for _ in range(30):
            await self.pass_seconds(1)
        self.assertLess(relay.bytes_from_client, 1_000_000)
        self.origin.stalled = False
        await self.until_calm()
        self.assertLess(relay.bytes_from_client, 1_200_000)
        while len(self.origin.heard) < len(UP):
            await self.pass_seconds(1)
        self.assertTrue(self.origin.heard == UP)

    async def test_stopped_while_pausing(self) -> None:
        """A tunnel that ends during such a pause leaves nothing in the reactor."""
        relay = self.open(rate=1000)
        self.client.say(b"a" * 3000)
        self.origin.say(b"b" * 3000)
        await self.until(lambda: relay.bytes_from_client == relay.bytes_to_client == 3000)
        relay.abort()
        await self.both_lost()
        self.ending(relay, "proxy", None, 3000, 3000)

    # -- endings from outside -----------------------------------------------------------------------------------------

    async def test_abort(self) -> None:
        """A tunnel can be ended at any time, with a reason; both sides are reset."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard)
        relay.abort(ErrorType.HTTP_REQUEST_DENIED)
        relay.abort(ErrorType.PROXY_INTERNAL_ERROR)
        await self.until(lambda: self.client.reset and self.origin.reset)
        await self.both_lost()
        self.ending(relay, "proxy", ErrorType.HTTP_REQUEST_DENIED, 8, 0)

    async def test_abort_under_load(self) -> None:
        """So it can in the middle of a transfer; what is under way then is lost."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(UP)
        self.origin.say(DOWN)
        await self.until_calm()
        relay.abort()
        self.origin.stalled = False
        await self.until(lambda: self.client.reset and self.origin.reset)
        await self.both_lost()
        self.assertEqual(self.ended, [relay])

    async def test_counted_under_load(self) -> None:
        """What is counted then is what was taken from each side, to the byte, however much of it is lost."""
        relay = self.open()
        self.client.stalled = self.origin.stalled = True
        self.client.say(UP)
        self.origin.say(DOWN)
        await self.until_calm()
        relay.abort()
        up, down = relay.bytes_from_client, relay.bytes_to_client
        self.assertTrue(0 < up < len(UP) and 0 < down < len(DOWN))
        self.assertTrue(not_taken(self.client, self.near_client) == UP[up:])
        self.assertTrue(not_taken(self.origin, self.near_origin) == DOWN[down:])

    async def test_transport_lost(self) -> None:
        """When a transport is lost for reasons of its own, the tunnel ends, and so does the other side."""
        relay = self.open()
        self.client.say(b"question")
        await self.until(lambda: self.origin.heard)
        self.near_client.transport.connectionLost(Failure(ConnectionLost()))
        await self.until(lambda: self.origin.reset)
        await self.both_lost()
        self.ending(relay, "client", ErrorType.CLIENT_DISCONNECTED, 8, 0)

    async def test_shutdown(self) -> None:
        """At the end of the process each protocol hears of its end once, and the tunnel has ended once."""
        relay = self.open()
        self.client.say(UP)
        self.origin.stalled = True
        await self.until_calm()
        self.shut_down()
        await self.both_lost()
        self.assertEqual(self.ended, [relay])

    async def test_nobody_listens_any_more(self) -> None:
        """What still comes when a tunnel has ended is thrown away."""
        relay = self.open()
        relay.abort()
        for connection in (self.near_client, self.near_origin):
            connection.dataReceived(b"late")
            connection.readConnectionLost()
        await self.both_lost()
        self.ending(relay, "proxy", None, 0, 0)

    # -- descriptors --------------------------------------------------------------------------------------------------

    async def test_no_descriptors(self) -> None:
        """When descriptors run out, a tunnel slows down at the most; it goes on and loses nothing."""
        relay = self.open()
        await self.turn()  # the reactor needs descriptors of its own to start
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            self.client.say(UP)
            self.client.finish()
            for _ in range(CALM):
                await self.turn()
            self.assertTrue(relay.running)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await self.until(lambda: self.origin.ended)
        self.assertTrue(self.origin.heard == UP)
        self.assertEqual(relay.bytes_from_client, len(UP))


class CopyRelayTests(RelayScenarios, TestCase):
    """Bytes copied through the process, between sockets in our epoll set."""

    def prepare(self) -> None:
        """An epoll set."""
        if not Readiness.available(reactor):
            self.skipTest("there is no epoll here")
        self.readiness = Readiness(reactor)
        self.addCleanup(self.readiness.stop)

    def relay(self, limits: Limits, early: int) -> Relay:
        """A copying tunnel."""
        return CopyRelay(
            self.clock, self.deadlines, self.near_client, self.near_origin, limits, self.ended.append, early
        )

    def shut_down(self) -> None:
        """The set ends its sockets."""
        assert self.readiness is not None
        self.readiness.stop()


class PlainCopyRelayTests(CopyRelayTests):
    """Bytes copied through the process, between sockets that the reactor watches itself."""

    def prepare(self) -> None:
        """Nothing of our own."""
        self.readiness = None

    def shut_down(self) -> None:
        """The reactor ends its sockets."""
        for connection in (self.near_client, self.near_origin):
            connection.transport.connectionLost(Failure(ConnectionLost()))

    async def test_reset_behind_back_pressure(self) -> None:
        """Not so here: the reactor does not watch a socket that nobody reads."""
        self.skipTest("the reactor does not watch a socket that nobody reads")


class SpliceRelayTests(RelayScenarios, TestCase):
    """Bytes moved by the kernel."""

    pipes: Callable[[], Pipes] = Pipes

    def prepare(self) -> None:
        """An epoll set and pipes."""
        if not (Splicer.available() and Readiness.available(reactor)):
            self.skipTest("this kernel cannot splice")
        self.readiness = Readiness(reactor)
        self.splicer = Splicer(self.clock, self.readiness)
        self.splicer.pipes = self.pipes()
        self.addCleanup(self.readiness.stop)
        self.addCleanup(self.splicer.stop)

    def relay(self, limits: Limits, early: int) -> Relay:
        """A splicing tunnel."""
        return SpliceRelay(
            self.splicer, self.deadlines, self.near_client, self.near_origin, limits, self.ended.append, early
        )

    def shut_down(self) -> None:
        """The set ends its sockets."""
        assert self.readiness is not None
        self.readiness.stop()

    async def test_broken_pipe_is_not_used_again(self) -> None:
        """What was under way in a tunnel that broke never gets into another one."""
        relay = self.open()
        self.origin.stalled = True
        self.client.say(b"secret" * 500_000)
        await self.until_calm()
        relay.abort()
        await self.both_lost()
        self.ended.clear()
        self.client, self.near_client = self.connection()
        self.origin, self.near_origin = self.connection()
        again = self.open()
        self.client.say(b"question")
        self.client.finish()
        await self.until(lambda: self.origin.ended)
        self.assertEqual(self.origin.heard, b"question")
        self.assertEqual(again.bytes_from_client, 8)

    async def deaf_origin(self, **limits: Any) -> Relay:
        """A tunnel whose origin takes nothing any more, and has said much of which the client has read nothing yet."""
        relay = self.open(**limits)
        self.client.stalled = self.origin.stalled = True
        self.origin.say(DOWN)
        self.origin.finish()
        await self.until_calm()
        self.near_origin.transport.socket.shutdown(socket.SHUT_WR)  # so that the next write fails
        self.client.say(b"question")
        await self.until_calm()
        self.assertTrue(relay.running)
        return relay

    async def test_last_words_to_a_stalled_client(self) -> None:
        """A client that reads late gets what a side that is gone had said."""
        relay = await self.deaf_origin()
        self.client.stalled = False
        await self.until(lambda: self.client.reset)
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 8, len(DOWN))

    async def test_last_words_and_idle(self) -> None:
        """But not for ever: the idle limit holds."""
        relay = await self.deaf_origin(idle=80)
        await self.pass_seconds(95)
        await self.both_lost()
        self.ending(relay, "proxy", ErrorType.CONNECTION_READ_TIMEOUT, 8, relay.bytes_to_client)

    async def test_client_resets_too(self) -> None:
        """When the client leaves as well, the origin was first."""
        relay = await self.deaf_origin()
        self.client.vanish()
        await self.both_lost()
        self.ending(relay, "origin", ErrorType.CONNECTION_TERMINATED, 8, relay.bytes_to_client)

    async def test_receivers_have_no_bytes(self) -> None:
        """The connections' receivers see none of the bytes, and tolerate being told."""
        relay = self.open()
        for connection in (self.near_client, self.near_origin):
            connection.dataReceived(b"stray")
            connection.readConnectionLost()
        self.assertTrue(relay.running)
        self.assertEqual((relay.bytes_from_client, relay.bytes_to_client), (0, 0))


class SmallPipes(Pipes):
    """What a user without privileges gets once the share of pipe pages is used up: pipes of one page."""

    def take(self) -> Pipe:
        """A small pipe, not kept."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return read, write, fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)

    def give_back(self, pipe: Pipe) -> None:
        """Close it."""
        self.discard(pipe)


class SmallPipesSpliceRelayTests(SpliceRelayTests):
    """Bytes moved by the kernel through the smallest pipes there are."""

    pipes = SmallPipes


class CopyRelayPaceTests(SynchronousTestCase):
    """When a copying tunnel reads, over transports in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client, self.origin = Connection(), Connection()
        self.client.makeConnection(StringTransport())
        self.origin.makeConnection(StringTransport())
        self.relay = CopyRelay(
            self.clock, Deadlines(self.clock), self.client, self.origin, Limits(0, 0, 1, 1000), lambda relay: None
        )
        self.relay.start()

    def reads(self) -> bool:
        """Whether the client is read."""
        return bool(self.client.transport.producerState == "producing")

    def test_full_and_fast(self):
        """Reading goes on when the origin takes more and the rate allows it, whichever comes last."""
        for last in ("room", "time"):
            self.client.dataReceived(bytes(3000))
            self.origin.transport.producer.pauseProducing()
            self.assertFalse(self.reads())
            if last == "room":
                self.clock.advance(100)
                self.assertFalse(self.reads())
                self.origin.transport.producer.resumeProducing()
            else:
                self.origin.transport.producer.resumeProducing()
                self.assertFalse(self.reads())
                self.clock.advance(100)
            self.assertTrue(self.reads())

    def test_last_bytes_not_taken(self):
        """A client that does not take the tunnel's last bytes does not hold its connection for ever."""
        self.origin.transport.loseWriteConnection = lambda: None
        self.origin.dataReceived(b"answer")
        self.client.readConnectionLost()
        self.origin.readConnectionLost()
        self.assertFalse(self.relay.running)
        self.assertTrue(self.client.transport.disconnecting)
        self.clock.advance(599)
        self.assertFalse(self.client.transport.disconnected)
        self.clock.advance(2)
        self.assertTrue(self.client.transport.disconnected)

    def test_everything_is_charged(self):
        """What a transport still brings while it should pause is charged as well."""
        self.client.dataReceived(bytes(2000))
        self.client.dataReceived(bytes(3000))
        self.clock.advance(1)
        self.client.dataReceived(b"a")
        self.clock.advance(2)
        self.assertFalse(self.reads())
        self.clock.advance(2)
        self.assertTrue(self.reads())


class HeldTests(StreamCase):
    """What a tunnel holds in the process for a receiver that takes nothing, where little is allowed."""

    allowed = 32 * 1024

    def setUp(self) -> None:
        super().setUp()
        self.deadlines = Deadlines(self.reactor)

    def pair(self) -> tuple[Connection, socket.socket]:
        """A connection as the proxy makes it, with the kernel's own buffers, and the socket at its far end."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            far = socket.create_connection(listening.getsockname())
            near, _ = listening.accept()
        self.addCleanup(far.close)
        connection = Connection()
        for sock in (near, far):
            sock.setblocking(False)
        Stream(near, connection, self.reactor, self.readiness, bulk_read=bulk_read_size(self.allowed)).begin()
        return connection, far

    def secured(self, lower: Connection, far: socket.socket) -> tuple[Connection, ClientSession]:
        """The connection inside TLS, and the client's session over it."""
        folder = Path(self.mktemp())
        folder.mkdir()
        files = SelfSigned.make(["192.0.2.1"], datetime.datetime.now(datetime.UTC)).write(folder)
        context = make_context(TLSFiles(*files, None, None, ClientCertificate.NONE))
        layers: list[TLSLayer] = []
        TLSLayer(lower, context, layers.append, self.fail, self.fail)
        session = ClientSession()
        lower.transport.resumeProducing()
        far.send(session.start())
        while not layers:
            self.turn()
            session.decrypt(drained(far))
            far.send(session.outgoing())
        return layers[0].inner, session

    def tunnel(self, client: Connection, origin: Connection) -> None:
        """Join them, copying."""
        limits = Limits(600, 0, self.allowed)
        relay = CopyRelay(self.reactor, self.deadlines, client, origin, limits, lambda relay: None)
        relay.start()
        self.addCleanup(relay.abort)

    def held(self, far: socket.socket, data: bytes, sink: Connection) -> int:
        """The most that waits for a sink while its far end reads nothing and the other sends without end."""
        most, unsent, stalled = 0, memoryview(data), 0
        while stalled < CALM:
            try:
                unsent = unsent[far.send(unsent[:262144]) :]
                stalled = 0
            except BlockingIOError:
                stalled += 1
            self.turn()
            most = max(most, sink.transport.pending)
        self.assertTrue(unsent)
        self.assertTrue(most)
        return most

    def test_copied(self):
        """No more than is allowed is held where bytes are copied."""
        client, far_client = self.pair()
        origin, far_origin = self.pair()
        self.tunnel(client, origin)
        self.assertLessEqual(self.held(far_client, MUCH, origin), self.allowed)
        self.assertLessEqual(self.held(far_origin, MUCH, client), self.allowed)

    def test_tls(self):
        """So it is by TLS, but for what a record is longer than its content."""
        client, far_client = self.pair()
        origin, far_origin = self.pair()
        inner, session = self.secured(client, far_client)
        self.tunnel(inner, origin)
        self.assertLessEqual(self.held(far_client, session.encrypt(MUCH), origin), self.allowed)
        self.assertLessEqual(self.held(far_origin, MUCH, client), self.allowed + 100)


class RelayTests(SynchronousTestCase):
    """The common part alone."""

    def test_counts_nothing_itself(self):
        """How bytes are counted is said by the way they are moved."""
        clock = Clock()
        relay = Relay(clock, Deadlines(clock), Connection(), Connection(), Limits(0, 0, 1), lambda relay: None)
        with self.assertRaises(NotImplementedError):
            relay.bytes_from_client  # noqa: B018
        with self.assertRaises(NotImplementedError):
            relay.bytes_to_client  # noqa: B018
