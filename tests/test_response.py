"""Tests for ``proxyd.frontends.response``: what an origin says, and what its client is told."""

from __future__ import annotations

from tests.doors import BUFFER, DATE, GET, GOT, OK, SAID_OK, VIA, DoorCase, Memory
from tests.test_http import answers, content, status

HEAD = GET.replace(b"GET", b"HEAD")
OLD = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
CHUNKED = b"HTTP/1.1 200 OK\r\n" + DATE + b"Transfer-Encoding: chunked\r\n\r\n"
SAID_CHUNKED = b"HTTP/1.1 200 OK\r\n" + DATE + VIA + b"Transfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n" + DATE + b"\r\n"
UPGRADE = GET.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SAID_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n" + VIA + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class ResponseCase(DoorCase):
    """A request whose response is to come."""

    def asked(self, request: bytes = GET, *, eager: bool = False) -> Memory:
        """A client that has asked."""
        client = self.connect(eager=eager)
        client.says(request)
        _ = self.origin.heard
        return client


class FramingTests(ResponseCase):
    """Where a response ends, and how its client is told."""

    def test_length(self):
        """A response of known length keeps it, and streams."""
        client = self.asked()
        self.origin.says(OK[:-1])
        self.assertEqual(client.heard, SAID_OK[:-1])
        self.assertEqual(self.records, [])
        self.origin.says(OK[-1:])
        self.assertEqual(client.heard, SAID_OK[-1:])
        self.assertEqual(self.outcome("bytes_to_client", "closed_by"), [(len(OK), None)])

    def test_byte_by_byte(self):
        """It does not matter how a response arrives."""
        for response, said in (
            (OK, SAID_OK),
            (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", SAID_CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
            (b"HTTP/1.1 103 x\r\n\r\n" + OK, b"HTTP/1.1 103 x\r\n" + VIA + b"\r\n" + SAID_OK),
        ):
            client = self.asked()
            self.origin.trickles(response)
            self.assertEqual(client.heard, said)
            client.resets()
            self.turn()

    def test_chunked(self):
        """Chunks are made anew; trailers are passed on, but none that frame."""
        client = self.asked()
        body = b"2;x=y\r\nok\r\n02\r\n!!\r\n0\r\nX-Sum: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.origin.says(CHUNKED + body)
        self.assertEqual(client.heard, SAID_CHUNKED + b"4\r\nok!!\r\n0\r\nX-Sum: 4\r\n\r\n")
        self.assertEqual(self.outcome("bytes_to_client"), [(len(CHUNKED + body),)])

    def test_chunked_for_http_1_0(self):
        """HTTP/1.0 gets the content alone, and the end of the connection as its end."""
        client = self.asked(OLD)
        self.origin.says(CHUNKED + b"2\r\nok\r\n", b"0\r\nX-Sum: 2\r\n\r\n")
        head, _, body = client.heard.partition(b"\r\n\r\n")
        self.assertEqual(body, b"ok")
        self.assertNotIn(b"Transfer-Encoding", head)
        self.assertIn(b"\r\nConnection: close", head)
        self.assertTrue(client.said_fin)

    def test_until_close(self):
        """A response that lasts until the origin closes becomes chunks, and the client's connection stays."""
        client = self.asked()
        self.origin.says(UNTIL_CLOSE + b"ok", b"!")
        self.assertEqual(client.heard, SAID_CHUNKED + b"2\r\nok\r\n1\r\n!\r\n")
        self.origin.closes()
        self.assertEqual(client.heard, b"0\r\n\r\n")
        self.drained(self.origin)
        self.assertFalse(client.closed)
        self.assertEqual(self.outcome("status", "error"), [(200, None)])

    def test_until_close_for_http_1_0(self):
        """For HTTP/1.0 it lasts until we close."""
        client = self.asked(OLD)
        self.origin.says(UNTIL_CLOSE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"ok")
        self.origin.closes()
        self.assertTrue(client.heard.endswith(b"\r\nConnection: close\r\n\r\nok"))
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "closed_by"), [(None, "proxy")])

    def test_no_body(self):
        """HEAD, 204 and 304 have no body, whatever their fields say; what comes behind is not passed on."""
        for request, response in (
            (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            (HEAD, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (HEAD, b"HTTP/1.1 200 OK\r\n\r\n"),
            (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
            (GET, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
            (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
            (GET, b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ):
            for surplus in (b"", b"hello"):
                client = self.asked(request)
                used = self.origin
                self.origin.says(response + surplus)
                heard = client.heard
                self.assertEqual(len(answers(heard)), 1)
                self.assertTrue(heard.endswith(b"\r\n\r\n"), heard)
                self.assertNotIn(b"Transfer-Encoding", heard)
                self.turn()
                self.assertEqual(used.closed, bool(surplus), response)
                client.says(GET)
                self.origin.says(OK)
                self.assertEqual(client.heard, SAID_OK)
                self.egress.pool.close()

    def test_splitting(self):
        """What an origin says behind its response answers nobody: neither this client nor the next."""
        for behind in (OK.replace(b"ok", b"no"), b"HTTP/1.1 200 OK\r\n"):
            client = self.asked(GET + GET)
            first = self.origin
            first.says(OK + behind)
            self.assertEqual(client.heard, SAID_OK)
            self.assertIsNot(self.origin, first)
            self.assertEqual(self.origin.heard, GOT)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
            self.egress.pool.close()

    def test_repeated_fields(self):
        """Fields that come twice are passed on twice."""
        client = self.asked()
        self.origin.says(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n")
        self.assertIn(b"\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n", client.heard)


INVALID: dict[str, bytes] = {
    "no status line": b"hello\r\n\r\n",
    "HTTP/0.9": b"<html>",
    "another protocol": b"ICY 200 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "a status of five digits": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status beyond 599": b"HTTP/1.1 600 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "two equal lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "ambiguous fields without a body": b"HTTP/1.1 304 x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "a bad first chunk": CHUNKED + b"zz\r\nok\r\n0\r\n\r\n",
    "a bad last chunk": CHUNKED + b"2\r\nok\r\n0\r\n bad: trailer\r\n\r\n",
    "obsolete folding": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "CR alone": b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "LF alone": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
    "a blank before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "no name": b"HTTP/1.1 200 OK\r\n: a\r\n\r\n",
    "a head that never ends": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 66_000,
    "another protocol that nobody asked for": SWITCHING,
}


class InvalidTests(ResponseCase):
    """Responses that cannot be passed on."""

    def test_refused(self):
        """An invalid response is a 502, and its connection is done with; the client's goes on."""
        for name, response in INVALID.items():
            for trickle in (False, True):
                if trickle and name in ("a bad first chunk", "a bad last chunk"):
                    continue  # the head is on its way by then
                client = self.asked()
                if trickle:
                    self.origin.trickles(response)
                else:
                    self.origin.says(response)
                heard = client.heard
                self.assertEqual(answers(heard), [502], name)
                self.assertIn(b"Proxy-Status: proxyd; error=http_protocol_error", heard, name)
                self.assertTrue(self.origin.aborted, name)
                client.says(GET)
                self.assertEqual(self.origin.heard, GOT, name)
                client.resets()
        self.assertEqual({(r.status, r.error) for r in self.records[::2]}, {(502, "http_protocol_error")})

    def test_broken_later(self):
        """Chunks that break when their head is passed on already cut the response: no last chunk, a reset."""
        client = self.asked()
        self.origin.says(CHUNKED + b"2\r\nok\r\n", b"zz\r\n")
        self.assertEqual(client.heard, SAID_CHUNKED + b"2\r\nok\r\n")
        self.drained(client, self.origin)
        self.assertTrue(client.aborted)
        self.assertEqual(self.outcome("status", "error", "closed_by"), [(200, "http_protocol_error", "proxy")])


class TruncatedTests(ResponseCase):
    """A response that is not complete is never made to look so."""

    def cut(self, request: bytes, response: bytes, *, reset: bool = False) -> bytes:
        """What a client has of a response that breaks off, before its connection does too."""
        client = self.asked(request)
        self.origin.says(response)
        if reset:
            self.origin.resets()
        else:
            self.origin.closes()
        heard = client.heard
        self.drained(client, self.origin)
        self.assertTrue(client.aborted)
        self.assertEqual(self.records[-1].error, "http_response_incomplete")
        self.assertEqual(self.records[-1].closed_by, "origin")
        self.assertEqual(self.records[-1].status, 200)
        return heard

    def test_length(self):
        """The connection breaks where bytes are missing."""
        self.assertEqual(self.cut(GET, OK[:-1]), SAID_OK[:-1])
        self.assertEqual(self.cut(GET, OK[:-1], reset=True), SAID_OK[:-1])

    def test_chunked(self):
        """No last chunk is made up."""
        for end in (b"2\r\nok", b"2\r\nok\r\n", b"2\r\nok\r\n0\r\n"):
            self.assertEqual(self.cut(GET, CHUNKED + end), SAID_CHUNKED + b"2\r\nok\r\n")

    def test_until_close(self):
        """A reset is no end of a response that lasts until the connection closes, for either version."""
        self.assertEqual(self.cut(GET, UNTIL_CLOSE + b"ok", reset=True), SAID_CHUNKED + b"2\r\nok\r\n")
        self.assertTrue(self.cut(OLD, UNTIL_CLOSE + b"ok", reset=True).endswith(b"\r\n\r\nok"))

    def test_chunked_for_http_1_0(self):
        """For HTTP/1.0 only the reset tells it from an end."""
        self.assertTrue(self.cut(OLD, CHUNKED + b"2\r\nok\r\n").endswith(b"\r\n\r\nok"))

    def test_in_head(self):
        """A head that breaks off is a 502."""
        for response in (b"H", b"HTTP/1.1 200 OK\r\nContent-"):
            client = self.asked()
            self.origin.says(response)
            self.origin.closes()
            self.assertEqual(status(client.heard), 502)
            self.assertEqual(self.records[-1].error, "http_response_incomplete")

    def test_no_response(self):
        """So is silence."""
        for close in (Memory.closes, Memory.resets):
            client = self.asked()
            close(self.origin)
            self.assertEqual(status(client.heard), 502)
            self.assertEqual(self.records[-1].error, "connection_terminated")
            client.says(GET)
            self.assertEqual(self.origin.heard, GOT)
            client.resets()
            self.turn()


class InterimTests(ResponseCase):
    """1xx responses (RFC 9110 §15.2)."""

    def test_relayed(self):
        """Interim responses are passed on as they come, however many."""
        client = self.asked()
        for code, fields in ((102, b""), (103, b"Link: </a>\r\n"), (103, b"Link: </b>\r\n"), (199, b"")):
            self.origin.says(b"HTTP/1.1 %d x\r\n%b\r\n" % (code, fields))
            self.assertEqual(client.heard, b"HTTP/1.1 %d x\r\n%b" % (code, fields) + VIA + b"\r\n")
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("status"), [(200,)])

    def test_http_1_0(self):
        """HTTP/1.0 gets none."""
        client = self.asked(OLD)
        self.origin.says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\n\r\n" + OK)
        self.assertEqual(answers(client.heard), [200])

    def test_flood(self):
        """An origin that floods a client with them has to wait for it."""
        client = self.asked()
        client.stalled = True
        while self.origin.reading:
            self.origin.says(b"HTTP/1.1 103 x\r\nLink: " + b"x" * 10_000 + b"\r\n\r\n")
        self.assertLess(client.pending, BUFFER + 11_000)
        client.takes()
        self.assertTrue(self.origin.reading)
        client.resets()


class UpgradeTests(ResponseCase):
    """Responses that turn into tunnels."""

    def test_switched(self):
        """After a 101 bytes go both ways, those that were early too."""
        client = self.asked(UPGRADE + b"early")
        self.assertIn(b"", self.origin.heard)
        self.origin.says(SWITCHING + b"at once")
        self.assertEqual(client.heard, SAID_SWITCHING + b"at once")
        self.assertEqual(self.origin.heard, b"early")
        client.says(b"ping")
        self.assertEqual(self.origin.heard, b"ping")
        self.origin.says(b"pong")
        self.assertEqual(client.heard, b"pong")
        self.origin.closes()
        self.assertTrue(client.said_fin)
        client.closes()
        self.drained(client, self.origin)
        self.assertEqual(
            self.outcome("protocol", "method", "status", "bytes_from_client", "bytes_to_client", "error"),
            [("forward", "GET", 101, len(UPGRADE) + 9, len(SWITCHING) + 11, None)],
        )

    def test_without_early(self):
        """It needs no early bytes."""
        client = self.asked(UPGRADE)
        self.origin.says(b"HTTP/1.1 102 x\r\n\r\n", SWITCHING)
        self.assertEqual(client.heard, b"HTTP/1.1 102 x\r\n" + VIA + b"\r\n" + SAID_SWITCHING)
        client.resets()
        self.drained(self.origin)

    def test_not_switched(self):
        """An origin that answers instead is heard, and the connection goes on."""
        client = self.asked(UPGRADE + GET)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_h2c(self):
        """HTTP/2 is not asked for, and not switched to."""
        client = self.connect()
        client.says(UPGRADE.replace(b"websocket", b"h2c"))
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(SWITCHING.replace(b"websocket", b"h2c"))
        self.assertEqual(status(client.heard), 502)

    def test_something_else(self):
        """Nor is anything else that was not asked for."""
        client = self.asked(UPGRADE)
        self.origin.says(SWITCHING.replace(b"websocket", b"h2c"))
        self.assertEqual(status(client.heard), 502)

    def test_before_body(self):
        """Nor before the request is complete."""
        client = self.asked(UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"))
        self.origin.says(SWITCHING)
        self.assertEqual(status(client.heard), 502)


class BackPressureTests(ResponseCase):
    """Slow clients."""

    def test_slow_client(self):
        """While the client does not read its response the origin is not read; what waits is bounded."""
        client = self.asked()
        client.stalled = True
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        for _ in range(10):
            self.origin.says(b"x" * 16384)
        self.assertFalse(self.origin.reading)
        self.assertLess(client.pending, BUFFER + 2 * 16384)
        client.takes()
        self.assertTrue(self.origin.reading)
        client.resets()
        self.drained(self.origin)

    def test_large(self):
        """A megabyte arrives as it was, through any number of pauses."""
        client = self.asked()
        client.stalled = True
        body = bytes(range(256)) * 4096
        self.origin.says(CHUNKED, *(b"4000\r\n" + body[at : at + 16384] + b"\r\n" for at in range(0, len(body), 16384)))
        self.origin.says(b"0\r\n\r\n")
        heard = b""
        while not self.records or client.pending:
            client.takes()
            heard += client.heard
            client.stalled = True
            self.turn()
        self.assertEqual(content(heard), body)

    def test_client_leaves(self):
        """A client that leaves in the middle ends it, with a record of what the origin has sent by then."""
        client = self.asked()
        self.origin.says(OK[:-1])
        client.resets()
        self.drained(self.origin)
        self.assertEqual(
            self.outcome("status", "error", "bytes_to_client"), [(200, "client_disconnected", len(OK) - 1)]
        )

    def test_unwanted(self):
        """Whatever an origin says to a request that has ended is heard by nobody."""
        client = self.asked()
        connection = self.origin.protocol
        client.resets()
        connection.dataReceived(OK)
        connection.readConnectionLost()
        self.assertEqual(len(self.records), 1)
