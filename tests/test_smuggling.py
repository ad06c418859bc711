"""Whatever a client or an origin sends: what comes out at the other side is HTTP/1.1, one message at a time."""

from __future__ import annotations

from typing import Any

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doors import GET, OK, SAID_OK, DoorCase, Memory

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=300)

LINES = [
    b"GET http://origin.example/ HTTP/1.1",
    b"POST http://origin.example/ HTTP/1.1",
    b"POST http://origin.example/ HTTP/1.0",
    b"HEAD http://origin.example/x HTTP/1.1",
]
FIELDS = [
    b"Host: origin.example",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 5, 5",
    b"Content-Length : 5",
    b"content-length:\t5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked ",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding:\x0bchunked",
    b"Connection: Content-Length, Transfer-Encoding, Host",
    b"Connection: close",
    b"Expect: 100-continue",
    b"Trailer: X",
    b" folded",
    b"X: a\nContent-Length: 9",
    b"X: a\rY: b",
    b"X\0: a",
]
BODIES = [
    b"",
    b"hello",
    b"hello, and more",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x=y\r\nhello\r\n00\r\nX: y\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
]

messages = st.builds(
    lambda line, fields, body: b"\r\n".join([line, *fields, b"", b""]) + body,
    st.sampled_from(LINES),
    st.lists(st.sampled_from(FIELDS), max_size=4).map(lambda fields: [FIELDS[0], *fields]),
    st.sampled_from(BODIES),
)

ANSWERS = [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 103 Hints", b"HTTP/1.1 999 No"]

responses = st.builds(
    lambda line, fields, body: b"\r\n".join([line, *fields, b"", b""]) + body,
    st.sampled_from(ANSWERS),
    st.lists(st.sampled_from(FIELDS[1:]), max_size=3),
    st.sampled_from(BODIES),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes in pieces."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


class Oracle:
    """What another implementation makes of the bytes it gets: whole messages, or the beginning of one."""

    def __init__(self, role: Any) -> None:
        self.connection = h11.Connection(role, max_incomplete_event_size=100_000)
        self.bodies: list[bytes] = []

    def feed(self, data: bytes) -> list[Any]:
        """The events in these bytes; raises what h11 raises for anything that is not HTTP/1.1."""
        self.connection.receive_data(data)
        events: list[Any] = []
        while (event := self.connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
            if isinstance(event, h11.ConnectionClosed):
                break
        return events


class OriginsViewTests(DoorCase):
    """What origins see."""

    @reproducible
    @given(st.lists(messages, min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=4))
    def test_well_formed(self, sent: list[bytes], cuts: list[int]) -> None:
        """Each origin gets the beginning of one well-formed request at a time, and nothing behind its end."""
        client = self.connect()
        for piece in split(b"".join(sent), cuts):
            client.says(piece)
        while self.dialer.origins:
            origins, self.dialer.origins = self.dialer.origins, []
            for origin in origins:
                self.hears_one(origin)
        client.resets()
        self.turn()
        self.egress.pool.close()

    def hears_one(self, origin: Memory) -> None:
        """One request, as often as it is answered."""
        for _ in range(4):
            oracle = Oracle(h11.SERVER)
            events = oracle.feed(origin.heard)
            self.assertLessEqual(sum(isinstance(event, h11.Request) for event in events), 1)
            if not any(isinstance(event, h11.EndOfMessage) for event in events):
                break
            self.assertEqual(oracle.connection.trailing_data[0], b"")
            origin.says(OK)


class ClientsViewTests(DoorCase):
    """What clients see."""

    @reproducible
    @given(st.lists(responses, min_size=1, max_size=2), st.lists(st.integers(0, 10_000), max_size=3), st.booleans())
    def test_well_formed(self, sent: list[bytes], cuts: list[int], closes: bool) -> None:
        """A client gets one well-formed response, or the beginning of one and a reset; and the next one is its own."""
        client = self.connect()
        client.says(GET)
        origin = self.origin
        for piece in split(b"".join(sent), cuts):
            origin.says(piece)
        if closes:
            origin.closes()
        oracle = Oracle(h11.CLIENT)
        oracle.connection.send(h11.Request(method="GET", target="/", headers=[("Host", "origin.example")]))
        oracle.connection.send(h11.EndOfMessage())
        events = oracle.feed(client.heard)
        complete = any(isinstance(event, h11.EndOfMessage) for event in events)
        self.assertEqual(complete, bool(self.records) and not client.aborted)
        if complete:
            self.assertEqual(oracle.connection.trailing_data[0], b"")
            self.next_is_its_own(client)
        client.resets()
        self.turn()
        self.records.clear()
        self.egress.pool.close()

    def next_is_its_own(self, client: Memory) -> None:
        """What the origin said too much is not taken for the answer to the next request."""
        if not client.closed:
            client.says(GET)
            self.assertEqual(client.heard, b"")
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
