"""Closing a connection so that its last words arrive."""

from __future__ import annotations

from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines

LINGER = 2.0
"""Seconds for the peer to read our last words and close. A close with unread bytes would be a reset, which may
destroy the answer before it is read (RFC 9112 §9.6); a SOCKS client must be rid of us within 10 s (RFC 1928 §6)."""


class Linger:
    """Has a connection that was told everything: sends FIN, throws away what still comes, and closes."""

    __slots__ = ("_connection", "_deadline")

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._deadline = deadlines.after(LINGER, self._enough)
        connection.receiver = self
        connection.transport.loseWriteConnection()
        connection.transport.resumeProducing()

    def _enough(self) -> None:
        self._connection.transport.abortConnection()

    def received(self, data: bytes) -> None:
        """Too late."""

    def read_closed(self) -> None:
        """The peer has closed too."""
        self._connection.transport.loseConnection()

    def lost(self, reason: Failure) -> None:
        """The end."""
        self._deadline.cancel()
