"""What a refused request still sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyd.errors import ProxyError
from proxyd.wire.body import Body

if TYPE_CHECKING:
    from proxyd.frontends.http import HttpDoor

DISCARD_LIMIT = 1024 * 1024
"""Bytes of a refused request's body that are read and thrown away to keep the connection; for more it is closed."""


class Discard:
    """The rest of a refused request's body, thrown away so that the next request can be found."""

    __slots__ = ("_body", "_door", "_room")

    def __init__(self, door: HttpDoor, body: Body) -> None:
        self._door = door
        self._body = body
        self._room = DISCARD_LIMIT

    @property
    def done(self) -> bool:
        """Whether all of it has gone by."""
        return self._body.done

    @property
    def cheap(self) -> bool:
        """Whether it is worth the while."""
        return self._body.left <= DISCARD_LIMIT

    def take(self, data: bytes) -> bool:
        """Throw body bytes away; what is behind them is the next request's. False where its beginning is lost."""
        if self._body.done:
            self._door.keep(data)
            return True
        try:
            _, surplus = self._body.feed(data)
        except ProxyError:
            return False
        self._door.keep(surplus)
        self._room -= len(data) - len(surplus)
        return self._room >= 0

    def client_sent(self, data: bytes) -> None:
        """More of it."""
        if not self.take(data):
            self._door.part()
        elif self._body.done:
            self._door.discarded()

    def client_closed(self) -> None:
        """It will never be complete."""
        self._door.part()

    def client_lost(self) -> None:
        """The client is gone; its refusal is recorded already."""

    def client_full(self) -> None:
        """Nothing is being produced."""

    def client_drained(self) -> None:
        """Nothing waits for that."""
