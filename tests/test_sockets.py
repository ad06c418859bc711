"""Tests for proxyd.workers.sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.trial.unittest import TestCase

from proxyd.config import Config
from proxyd.listening import ListenError
from proxyd.settings import Listener
from proxyd.workers.sockets import Sockets

RULE = "[rule:all]\naction = allow\ndestinations = *\n"
LOOPBACK = "tcp:0:interface=127.0.0.1"


def listeners(**endpoints: str) -> tuple[Listener, ...]:
    """An HTTP listener at each of these endpoints."""
    listener = "[listener:{}]\nendpoint = {}\naccept = forward\n"
    return Config.from_string("".join(listener.format(*item) for item in endpoints.items()) + RULE).listeners


class SocketsTests(TestCase):
    """Sockets that are bound for others to accept from."""

    timeout = 20

    def setUp(self) -> None:
        self.sockets = Sockets(reactor)
        self.addCleanup(self.sockets.close)

    def adopt(self, **endpoints: str) -> dict[str, int]:
        """Have these sockets; the ports of those that are new."""
        prepared = self.sockets.prepare(listeners(**endpoints))
        self.sockets.adopt(prepared)
        return {name: self.port(descriptor) for name, descriptor in prepared.fresh.items()}

    def port(self, descriptor: int) -> int:
        """The port that a socket is bound to."""
        with socket.socket(fileno=os.dup(descriptor)) as bound:
            return int(bound.getsockname()[1])

    def ports(self) -> dict[str, int]:
        """The port of each listener."""
        return {name: self.port(descriptor) for name, descriptor in self.sockets.descriptors().items()}

    def listens(self, port: int) -> bool:
        """Whether clients can connect to a port."""
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    async def settled(self) -> None:
        """Ports are closed in a later turn of the reactor; this one binds nothing and waits for that."""
        closing = Sockets(reactor)
        closing.adopt(closing.prepare(listeners(x=LOOPBACK)))
        await closing.close()

    async def test_bound(self) -> None:
        """Every listener has a socket that listens; its clients wait in the kernel, as nobody accepts here."""
        fresh = self.adopt(a=LOOPBACK, b=LOOPBACK)
        self.assertEqual(self.ports(), fresh)
        with socket.create_connection(("127.0.0.1", fresh["a"]), 30) as client:
            client.setblocking(False)
            await self.settled()
            self.assertRaises(BlockingIOError, client.recv, 1)

    async def test_kept(self) -> None:
        """A reload opens what is new, and closes what is gone; the rest stays, whatever it is called."""
        fresh = self.adopt(a=LOOPBACK, b="tcp:0:interface=127.0.0.1:backlog=9")
        again = self.adopt(c=LOOPBACK, d="tcp:0:interface=127.0.0.1:backlog=8")
        self.assertEqual(list(again), ["d"])
        self.assertEqual(self.ports(), {"c": fresh["a"], "d": again["d"]})
        await self.settled()
        self.assertEqual([self.listens(fresh["a"]), self.listens(fresh["b"])], [True, False])

    async def test_dropped(self) -> None:
        """What was prepared and is not wanted is closed, and all is as before."""
        before = self.adopt(a=LOOPBACK)
        prepared = self.sockets.prepare(listeners(b="tcp:0:interface=127.0.0.1:backlog=9"))
        new = self.port(prepared.fresh["b"])
        self.sockets.drop(prepared)
        await self.settled()
        self.assertEqual(self.ports(), before)
        self.assertEqual([self.listens(before["a"]), self.listens(new)], [True, False])

    async def test_cannot_be_bound(self) -> None:
        """If one cannot be bound none is, and the old ones stay."""
        before = self.adopt(a=LOOPBACK)
        free = self.adopt(a=LOOPBACK, b="tcp:0:interface=127.0.0.1:backlog=9")["b"]
        self.adopt(a=LOOPBACK)
        await self.settled()
        new = listeners(b=f"tcp:{free}:interface=127.0.0.1", c=f"tcp:{before['a']}:interface=127.0.0.1")
        error = self.assertRaises(ListenError, self.sockets.prepare, new)
        self.assertIn('listener "c": cannot listen on', str(error))
        await self.settled()
        self.assertEqual(self.ports(), before)
        self.assertFalse(self.listens(free))

    async def test_unix(self) -> None:
        """A Unix socket has its mode from the start, and its path goes with it."""
        path = Path(self.mktemp()).absolute()
        self.sockets.adopt(self.sockets.prepare(listeners(a=f"unix:{path}:mode=600")))
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        await self.sockets.close()
        self.assertFalse(path.exists())
        self.assertEqual(self.sockets.descriptors(), {})
