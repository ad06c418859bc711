"""Closing a connection so that its last words arrive."""

from __future__ import annotations

from typing import Final

from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines

LINGER: Final = 2.0
"""Seconds of silence after which a peer has read our last words, or never will. A close with unread bytes would be a
reset, which may destroy the answer before it is read (RFC 9112 §9.6)."""

ROUNDS: Final = 4
"""Times `LINGER` that a peer may go on sending: a SOCKS client must be rid of us within 10 s (RFC 1928 §6)."""

FLUSH: Final = 600.0
"""Seconds for a slow client to take what waits in our buffer, behind the megabytes that may wait in the kernel's."""

ORIGIN_FLUSH: Final = 10.0
"""Seconds for an origin, which has said all that we want of it, to take the rest of what we had to say."""


class Gone:
    """Has a connection that was told to close: nobody wants its bytes any more."""

    __slots__ = ()

    def received(self, data: bytes) -> None:
        """Too late."""

    def read_closed(self) -> None:
        """Known."""

    def lost(self, reason: Failure) -> None:
        """As told."""


GONE: Final = Gone()


def abandon(connection: Connection) -> None:
    """Reset a connection that nobody wants any more."""
    connection.receiver = GONE
    connection.transport.abortConnection()


class Closing(Gone):
    """Has a connection that closes as soon as its peer has taken what was written, by force if that takes too long."""

    __slots__ = ("_deadline",)

    def __init__(self, connection: Connection, deadlines: Deadlines, patience: float = FLUSH) -> None:
        self._deadline = deadlines.after(patience, connection.transport.abortConnection)
        connection.receiver = self
        connection.transport.loseConnection()

    def lost(self, reason: Failure) -> None:
        """As told."""
        self._deadline.cancel()


class Linger:
    """Has a connection that was told everything: sends FIN, throws away what still comes, and closes."""

    __slots__ = ("_connection", "_deadline", "_deadlines", "_heard", "_rounds")

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._deadlines = deadlines
        self._heard = False
        self._rounds = ROUNDS
        self._deadline = deadlines.after(LINGER, self._look)
        connection.receiver = self
        connection.transport.loseWriteConnection()
        connection.transport.resumeProducing()

    def _look(self) -> None:
        self._rounds -= 1
        if self._heard and self._rounds:
            self._heard = False
            self._deadline = self._deadlines.after(LINGER, self._look)
        else:
            Closing(self._connection, self._deadlines)

    def received(self, data: bytes) -> None:
        """Too late, but whoever sends has not read our words yet."""
        self._heard = True

    def read_closed(self) -> None:
        """The peer has closed too."""
        self._deadline.cancel()
        Closing(self._connection, self._deadlines)

    def lost(self, reason: Failure) -> None:
        """The end."""
        self._deadline.cancel()
