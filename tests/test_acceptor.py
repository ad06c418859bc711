"""Tests for proxyd.net.acceptor."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from proxyd.net.acceptor import MOST_ACCEPTS, MOST_SHARED_ACCEPTS, NO_DESCRIPTOR_PAUSE, Acceptor
from proxyd.net.readiness import Readiness
from tests.descriptors import no_descriptors
from tests.processes import ReadingReactor


class AcceptorTests(SynchronousTestCase):
    """Clients are taken from a listening socket."""

    accepted_fails = False

    def setUp(self) -> None:
        self.reactor = ReadingReactor()
        self.readiness = Readiness(self.reactor)  # type: ignore[arg-type]
        self.addCleanup(self.readiness.stop)
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.listening.setblocking(False)
        self.addCleanup(self.listening.close)
        self.clients: list[tuple[socket.socket, Any]] = []

    def acceptor(self, most: int = MOST_ACCEPTS) -> Acceptor:
        """One that takes so many at a time."""
        acceptor = Acceptor(self.readiness, self.listening, self.accepted, most)
        self.addCleanup(acceptor.stop)
        return acceptor

    def accepted(self, sock: socket.socket, peer: Any) -> None:
        """A client is taken."""
        self.addCleanup(sock.close)
        if self.accepted_fails:
            raise ZeroDivisionError
        self.clients.append((sock, peer))

    def connect(self, count: int) -> list[socket.socket]:
        """So many clients connect."""
        found = [socket.create_connection(self.listening.getsockname(), 30) for _ in range(count)]
        for client in found:
            self.addCleanup(client.close)
        return found

    def test_accepted(self) -> None:
        """Clients are taken, with their names and as sockets that do not block."""
        self.acceptor()
        [client] = self.connect(1)
        self.readiness.doRead()
        [(sock, peer)] = self.clients
        self.assertEqual(peer, client.getsockname())
        self.assertFalse(sock.getblocking())

    def check_portions(self, most: int) -> None:
        """So many are taken at one time; the next ones at the next."""
        self.acceptor(most)
        self.connect(most + 1)
        self.readiness.doRead()
        self.assertEqual(len(self.clients), most)
        self.readiness.doRead()
        self.assertEqual(len(self.clients), most + 1)

    def test_portions(self) -> None:
        """A crowd is taken in portions, so that those who are here are served between."""
        self.check_portions(MOST_ACCEPTS)

    def test_shared(self) -> None:
        """Smaller ones where other processes may take the rest."""
        self.check_portions(MOST_SHARED_ACCEPTS)

    def test_taken_by_another(self) -> None:
        """A client that somebody else was quicker to take is not missed."""
        self.acceptor()
        self.connect(1)
        self.listening.accept()[0].close()
        self.readiness.doRead()
        self.assertEqual(self.clients, [])

    def check_serves(self) -> None:
        """A client that comes now is taken."""
        before = len(self.clients)
        self.connect(1)
        self.readiness.doRead()
        self.assertEqual(len(self.clients), before + 1)

    def test_descriptors_run_out(self) -> None:
        """While there are no descriptors clients are closed, so that none waits in vain; later ones are served."""
        self.acceptor()
        [client] = self.connect(1)
        with no_descriptors():
            self.readiness.doRead()
        self.assertEqual(self.clients, [])
        self.assertEqual(client.recv(1), b"")
        self.check_serves()

    def test_not_even_a_spare_one(self) -> None:
        """Where there is no descriptor even for that, clients wait in the kernel until there is one."""
        with no_descriptors():
            self.acceptor()
            self.reactor.advance(NO_DESCRIPTOR_PAUSE)
        self.connect(1)
        self.readiness.doRead()
        self.assertEqual(self.clients, [])
        self.reactor.advance(NO_DESCRIPTOR_PAUSE)
        self.readiness.doRead()
        self.assertEqual(len(self.clients), 1)

    def test_stopped_while_it_waits(self) -> None:
        """Nothing is left to be called when it is stopped in that state."""
        with no_descriptors():
            acceptor = self.acceptor()
        acceptor.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_shut_down(self) -> None:
        """A socket that its owner has shut down for all who share it gives no clients, and no trouble."""
        self.acceptor()
        self.listening.shutdown(socket.SHUT_RDWR)
        self.readiness.doRead()
        self.assertEqual(self.clients, [])

    def test_failing(self) -> None:
        """If the code that gets a client fails, the next one is taken none the less."""
        self.acceptor()
        self.connect(1)
        self.accepted_fails = True
        self.readiness.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.accepted_fails = False
        self.check_serves()

    def test_stop(self) -> None:
        """After the end nobody is taken, and the spare descriptor is closed."""
        before = len(os.listdir("/proc/self/fd"))
        acceptor = Acceptor(self.readiness, self.listening, self.accepted)
        acceptor.stop()
        acceptor.stop()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.connect(1)
        self.readiness.doRead()
        self.assertEqual(self.clients, [])
