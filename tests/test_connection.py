"""Tests for proxyd.net.connection."""

from __future__ import annotations

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxyd.net.connection import Connection


class Notes:
    """A receiver that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard.append(data)

    def read_closed(self) -> None:
        """No more will."""
        self.heard.append("read closed")

    def lost(self, reason: Failure) -> None:
        """The end."""
        self.heard.append(reason.type)


class ConnectionTests(SynchronousTestCase):
    """A connection and its receiver."""

    def test_interfaces(self):
        """It is a protocol that hears of half-closes."""
        connection = Connection()
        self.assertTrue(verifyObject(IProtocol, connection))
        self.assertTrue(verifyObject(IHalfCloseableProtocol, connection))

    def test_passes_on(self):
        """All that happens to a connection is told to its receiver, in order."""
        notes = Notes()
        connection = Connection(notes)
        transport = StringTransport()
        connection.makeConnection(transport)
        connection.dataReceived(b"abc")
        connection.writeConnectionLost()
        connection.readConnectionLost()
        connection.connectionLost(Failure(ConnectionLost()))
        self.assertIs(connection.transport, transport)
        self.assertEqual(notes.heard, [b"abc", "read closed", ConnectionLost])

    def test_changes_hands(self):
        """From the moment another receiver is set, that one hears everything, and the old one nothing."""
        old, new = Notes(), Notes()
        connection = Connection(old)
        connection.dataReceived(b"old")
        connection.receiver = new
        connection.dataReceived(b"new")
        connection.readConnectionLost()
        self.assertEqual((old.heard, new.heard), ([b"old"], [b"new", "read closed"]))

    def test_receiver_later(self):
        """A dialled connection gets its receiver from whoever dialled."""
        connection = Connection()
        connection.receiver = Notes()
        connection.dataReceived(b"abc")
        self.assertEqual(connection.receiver.heard, [b"abc"])
