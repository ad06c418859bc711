"""Tests for ``proxyd.frontends.http``: the sequence of requests on one connection, and what may not become one."""

from __future__ import annotations

import re

from proxyd.errors import ErrorType, ProxyError
from proxyd.policy.rules import Rule
from proxyd.request import Door
from proxyd.wire.framing import ChunkedBody
from tests.doors import ALLOW, BUFFER, DATE, GET, GOT, OK, SAID_OK, VIA, DoorCase, Memory, listener

DENY_POST = Rule("no posts", False, ("*",), methods=frozenset({"POST"}))
POST = b"POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n"
TLS_HELLO = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1"


def status(answer: bytes) -> int:
    """The status code of one response."""
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def answers(heard: bytes) -> list[int]:
    """The status codes of several responses."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", heard)]


def content(request: bytes) -> bytes:
    """The content of one request, and nothing behind it."""
    head, _, body = request.partition(b"\r\n\r\n")
    if b"\r\nTransfer-Encoding: chunked" not in head:
        return body
    decoder = ChunkedBody()
    pieces, used = decoder.feed(body)
    assert decoder.done and used == len(body), request
    return b"".join(pieces)


class SequenceTests(DoorCase):
    """Requests, one after the other."""

    def test_one(self):
        """A request goes to its origin, the response comes back, and the connection stays."""
        client = self.connect()
        client.says(GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertFalse(client.closed)
        self.assertEqual(self.outcome("method", "destination", "status"), [("GET", "origin.example:80", 200)])

    def test_byte_by_byte(self):
        """It does not matter how a head arrives."""
        client = self.connect()
        client.trickles(GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.trickles(OK)
        self.assertEqual(client.heard, SAID_OK)

    def test_kept(self):
        """Requests to different hosts follow on one connection, each to its own: the pool of a client is the
        proxy's.
        """
        client = self.connect()
        for number, host in enumerate((b"203.0.113.1", b"203.0.113.2:8080")):
            client.says(b"GET http://" + host + b"/ HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertIn(b"\r\nHost: " + host + b"\r\n", self.origin.heard)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
            self.assertEqual(len(self.dialer.origins), number + 1)
        self.assertEqual(self.outcome("address"), [("203.0.113.1:80",), ("203.0.113.2:8080",)])

    def test_origin_kept(self):
        """The origin's connection carries the next request to the same host, of another client too."""
        for reused in (False, True):
            client = self.connect()
            client.says(GET)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
            self.assertEqual(self.records[-1].reused, reused)
        self.assertEqual(self.origin.heard, GOT + GOT)
        self.assertEqual(len(self.dialer.origins), 1)

    def test_pipelined(self):
        """Of pipelined requests one is in flight at a time, and the answers come in order."""
        client = self.connect()
        client.says(GET + GET.replace(b"e/ ", b"e/2 ") + GET.replace(b"e/ ", b"e/3 "))
        for path in (b"/ ", b"/2 ", b"/3 "):
            self.assertEqual(self.origin.heard, GOT.replace(b"/ ", path, 1))
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("status", "reused"), [(200, False), (200, True), (200, True)])

    def test_pipelined_bodies(self):
        """The end of a body is the beginning of the next request, wherever the segments end."""
        requests = (
            POST + b"Content-Length: 5\r\n\r\nhello"
            + POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            + GET
        )  # fmt: skip
        for size in (1, 7, 50, 10_000):
            client = self.connect()
            client.says(*(requests[at : at + size] for at in range(0, len(requests), size)))
            self.assertEqual(content(self.origin.heard), b"hello", size)
            self.origin.says(OK)
            self.assertEqual(content(self.origin.heard), b"hello", size)
            self.origin.says(OK)
            self.assertEqual(self.origin.heard, GOT, size)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK * 3)

    def test_pipelined_refusals(self):
        """Refusals are answers like any other; thousands of them in one segment do no harm."""
        client = self.connect()
        client.says(b"GET https://origin.example/ HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        self.assertEqual(answers(client.heard), [400])  # which closes
        client = self.connect()
        client.says(b"OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n" * 2000)
        self.assertEqual(answers(client.heard), [200] * 2000)
        client.closes()
        self.drained(client)

    def test_empty_lines(self):
        """An empty line before a request is ignored, as some clients send one behind a body (RFC 9112 §2.2)."""
        client = self.connect()
        client.says(b"\r\n" + GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        client.says(b"\r\n" + GET)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_client_leaves(self):
        """A client that leaves between two requests leaves no record."""
        client = self.connect()
        client.says(GET[:20])
        client.resets()
        self.assertEqual(self.records, [])

    def test_client_leaves_in_request(self):
        """A client that leaves while its request is under way ends it, on the origin's side too."""
        client = self.connect()
        client.says(GET)
        client.resets()
        self.drained(self.origin)
        self.assertTrue(self.origin.aborted)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")])


class PersistenceTests(DoorCase):
    """When a client's connection ends (RFC 9112 §9.3)."""

    def exchange(self, line: bytes, fields: bytes = b"") -> Memory:
        """A request that was answered."""
        client = self.connect()
        client.says(line + b"\r\nHost: origin.example\r\n" + fields + b"\r\n")
        self.origin.says(OK)
        return client

    def test_close(self):
        """A client that says close, to us or to the connection, on any line, is told close, and is closed on."""
        for fields in (
            b"Connection: close\r\n",
            b"Connection: keep-alive\r\nconnection: x, Close\r\n",
            b"Proxy-Connection: close\r\n",
        ):
            client = self.exchange(b"GET http://origin.example/ HTTP/1.1", fields)
            self.assertIn(b"\r\nConnection: close\r\n", client.heard)
            self.assertTrue(client.said_fin)
            client.closes()
            self.drained(client)

    def test_keep_alive(self):
        """A client that says keep-alive is kept, as is one that says nothing."""
        for fields in (b"", b"Connection: keep-alive\r\n", b"Proxy-Connection: Keep-Alive\r\n"):
            client = self.exchange(b"GET http://origin.example/ HTTP/1.1", fields)
            self.assertEqual(client.heard, SAID_OK)
            self.assertFalse(client.closed)

    def test_http_1_0(self):
        """HTTP/1.0 ends with the response, whatever the client says."""
        client = self.exchange(b"GET http://origin.example/ HTTP/1.0", b"Connection: keep-alive\r\n")
        heard = client.heard
        self.assertTrue(heard.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(client.said_fin)

    def test_nothing_after_close(self):
        """A request behind one that said close is not served (RFC 9112 §9.6)."""
        client = self.connect()
        client.says(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET)
        self.origin.says(OK)
        client.says(GET)
        self.assertEqual(answers(client.heard), [200])
        self.assertEqual(len(self.records), 1)
        client.closes()
        self.drained(client)

    def test_draining(self):
        """While the proxy stops, the response under way is the last one."""
        client = self.connect()
        client.says(GET)
        self.egress.draining = True
        self.origin.says(OK)
        self.assertIn(b"\r\nConnection: close\r\n", client.heard)
        self.assertTrue(client.said_fin)

    def test_draining_begins_late(self):
        """Nor does one follow a response that had promised to go on."""
        client = self.connect()
        client.says(GET)
        self.origin.says(OK[:-1])
        self.egress.draining = True
        self.origin.says(OK[-1:])
        self.assertEqual(client.heard, SAID_OK)
        self.assertTrue(client.said_fin)


class HalfCloseTests(DoorCase):
    """Clients that say FIN behind their last request."""

    def test_answered(self):
        """What was asked before the FIN is answered; then the connection closes."""
        for eager in (False, True):
            client = self.connect(eager=eager)
            client.says(GET)
            client.closes()
            self.assertFalse(client.closed)
            self.origin.says(OK)
            heard = client.heard
            self.assertIn(b"\r\nConnection: close\r\n", heard)
            self.assertTrue(heard.endswith(b"\r\n\r\nok"))
            self.drained(client)

    def test_pipelined(self):
        """All that was asked before the FIN is answered."""
        for eager in (False, True):
            client = self.connect(eager=eager)
            client.says(GET + GET)
            client.closes()
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
            self.turn()
            self.origin.says(OK)
            self.assertIn(b"\r\nConnection: close\r\n", client.heard)
            self.drained(client)
            self.records.clear()
            self.egress.pool.close()

    def test_in_head(self):
        """A head that will never be complete is no request: the connection closes."""
        client = self.connect()
        client.says(GET + GET[:30])
        client.closes()
        self.origin.says(OK)
        self.assertEqual(answers(client.heard), [200])
        self.drained(client)
        self.assertEqual(len(self.records), 1)

    def test_idle(self):
        """A client that says FIN between two requests is done."""
        client = self.connect()
        client.says(GET)
        self.origin.says(OK)
        client.closes()
        self.drained(client)
        self.assertFalse(client.aborted)

    def test_silent(self):
        """So is one that never asked for anything; it leaves no record."""
        client = self.connect()
        client.closes()
        self.drained(client)
        self.assertEqual(self.records, [])


SMUGGLING: dict[str, bytes] = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a plus": b"Content-Length: +5\r\n\r\nhello",
    "a length in hexadecimal": b"Content-Length: 0x5\r\n\r\nhello",
    "a length with an underscore": b"Content-Length: 0_5\r\n\r\nhello",
    "a length with a blank": b"Content-Length: 5 5\r\n\r\nhello",
    "a length beyond 64 bits": b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "an empty length": b"Content-Length:\r\n\r\nhello",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked with VT": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a tab before the colon": b"Content-Length\t: 5\r\n\r\nhello",
    "obsolete folding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folding of another field": b"X: a\r\n b\r\n\r\n",
    "a blank before the first field": b" X: a\r\n\r\n",
    "CR alone": b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "LF alone": b"X: a\nTransfer-Encoding: chunked\r\n\r\n",
    "a head that ends with LF LF": b"X: a\n\n",
    "NUL": b"X: a\0b\r\n\r\n",
    "no name": b": a\r\n\r\n",
    "no colon": b"X\r\n\r\n",
    "a name that is no token": b"X(Y): a\r\n\r\n",
    "a name with a letter beyond ASCII": b"X\xc3\xa4: a\r\n\r\n",
    "two Hosts": b"Host: other.example\r\n\r\n",
    "a chunk size with a prefix": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with an underscore": b"Transfer-Encoding: chunked\r\n\r\n0_5\r\nhello\r\n0\r\n\r\n",
    "a chunk size behind a blank": b"Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
    "a chunk size of 17 digits": b"Transfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n",
    "no chunk size": b"Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    "a chunk size that ends with LF": b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a chunk that is too long": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
    "a chunk that is too short": b"Transfer-Encoding: chunked\r\n\r\n5\r\nhell\r\n0\r\n\r\n",
    "a trailer that is no field": b"Transfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
}

MALFORMED: dict[str, tuple[bytes, int]] = {
    "no version": (b"GET http://origin.example/\r\n\r\n", 400),
    "HTTP/0.9": (b"GET http://origin.example/ HTTP/0.9\r\nHost: h\r\n\r\n", 505),
    "HTTP/2.0": (b"GET http://origin.example/ HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "a version with a digit more": (b"GET http://origin.example/ HTTP/1.10\r\nHost: h\r\n\r\n", 400),
    "two blanks": (b"GET  http://origin.example/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "a blank in the target": (b"GET http://origin.example/a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "a fragment": (b"GET http://origin.example/#x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "a letter beyond ASCII": (b"GET http://origin.example/\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "a method that is no token": (b"G(T http://origin.example/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "no Host": (b"GET http://origin.example/ HTTP/1.1\r\n\r\n", 400),
    "Transfer-Encoding in HTTP/1.0": (
        b"POST http://origin.example/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a compressed transfer": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "a request for an origin": (b"GET / HTTP/1.1\r\nHost: origin.example\r\n\r\n", 400),
    "https": (b"GET https://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n", 400),
    "user information": (b"GET http://alice:secret@origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n", 400),
    "an unknown expectation": (GET.replace(b"\r\n\r\n", b"\r\nExpect: 200-ok\r\n\r\n"), 417),
    "a TRACE with a body": (b"TRACE http://origin.example/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx", 400),
    "too long a line": (b"GET http://origin.example/" + b"x" * 16384 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    "too many fields": (GET[:-2] + b"X: y\r\n" * 200 + b"\r\n", 431),
    "too large a head": (GET[:-2] + b"X: " + b"y" * 65536 + b"\r\n\r\n", 431),
}


class MalformedTests(DoorCase):
    """What cannot be read is refused, never repaired; nothing of it reaches an origin."""

    def refused(self, name: str, data: bytes, expected: int) -> None:
        """One request is refused: one answer, no bytes for the origin, the connection closes, one record."""
        self.records.clear()
        self.dialer.origins.clear()
        client = self.connect()
        client.says(data)
        client.says(GET)
        heard = client.heard
        self.assertEqual(answers(heard), [expected], name)
        self.assertIn(b"\r\nConnection: close\r\n", heard, name)
        self.assertEqual([origin.heard for origin in self.dialer.origins if origin.heard], [], name)
        self.assertTrue(client.said_fin, name)
        self.assertEqual(self.outcome("status", "error"), [(expected, "http_request_error")], name)
        self.assertNotIn("secret", str(self.records), name)
        client.closes()
        self.drained(client, *self.dialer.origins)

    def test_smuggling(self):
        """A request whose end two readers could see at different places is refused with 400."""
        for name, rest in SMUGGLING.items():
            self.refused(name, POST + rest, 400)

    def test_malformed(self):
        """A request that breaks the grammar is refused with the status that tells how."""
        for name, (data, expected) in MALFORMED.items():
            self.refused(name, data, expected)

    def test_one_segment(self):
        """It does not matter whether the broken request comes with what follows it, or byte by byte."""
        for name, rest in SMUGGLING.items():
            for trickle in (False, True):
                client = self.connect()
                data = POST + rest + GET
                if trickle:
                    client.trickles(data)
                else:
                    client.says(data)
                self.assertEqual(answers(client.heard), [400], name)
                for origin in self.dialer.origins:
                    self.assertTrue(origin.aborted, name)
                self.assertNotIn(GOT, b"".join(origin.heard for origin in self.dialer.origins), name)
                self.dialer.origins.clear()

    def test_not_shown(self):
        """The record of a request that cannot be read has no method and no destination."""
        client = self.connect()
        client.says(b"GET http://alice:secret@origin.example/ HTTP/1.1\r\n x\r\n\r\n")
        self.assertEqual(
            self.outcome("protocol", "method", "destination", "bytes_from_client"), [("forward", "", "", 56)]
        )

    def test_connect_shown(self):
        """But the protocol is shown."""
        client = self.connect()
        client.says(b"CONNECT origin.example:443 HTTP/1.1\r\n\r\n")
        self.assertEqual(status(client.heard), 400)
        self.assertEqual(self.outcome("protocol", "error"), [("connect", "http_request_error")])

    def test_tls(self):
        """A client that speaks TLS to a plain port gets an alert in its own language."""
        client = self.connect()
        client.says(TLS_HELLO)
        self.assertEqual(client.heard, b"\x15\x03\x01\x00\x02\x02\x28")
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "status"), [("tls_protocol_error", None)])

    def test_settings(self):
        """The limits of a head are those configured."""
        self.change(head_fields=2)
        client = self.connect()
        client.says(GET.replace(b"\r\n\r\n", b"\r\nA: 1\r\nB: 2\r\n\r\n"))
        self.assertEqual(status(client.heard), 431)


class RefusedTests(DoorCase):
    """Refusals of sound requests keep the connection where that is cheap and safe."""

    rules = (DENY_POST, ALLOW)

    def test_without_body(self):
        """A request that is complete can be refused and followed by another."""
        client = self.connect()
        client.says(POST + b"\r\n" + GET)
        heard = client.heard
        self.assertEqual(status(heard), 403)
        self.assertNotIn(b"Connection: close", heard)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_body_in_hand(self):
        """A body that came with the head is thrown away; what is behind it is the next request."""
        for framed in (b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"):
            client = self.connect()
            client.says(POST + framed + GET)
            self.assertEqual(status(client.heard), 403)
            self.assertEqual(self.origin.heard, GOT)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)

    def test_body_to_come(self):
        """A body that is still to come is thrown away as it comes."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10\r\n\r\nhel")
        self.assertEqual(status(client.heard), 403)
        client.trickles(b"lohello" + GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)

    def test_large_body(self):
        """For a body that is long it is cheaper to close the connection, after lingering."""
        client = self.connect()
        client.says(POST + b"Content-Length: 1048577\r\n\r\n")
        heard = client.heard
        self.assertEqual(status(heard), 403)
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(client.said_fin)
        client.says(b"x" * 1000)
        self.assertTrue(client.reading)

    def test_endless_chunks(self):
        """Chunks are thrown away up to a bound, for nobody knows how many follow."""
        client = self.connect()
        client.says(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        self.assertNotIn(b"Connection: close", client.heard)
        chunk = b"ffff\r\n" + b"x" * 65535 + b"\r\n"
        for _ in range(16):
            self.assertFalse(client.closed)
            client.says(chunk)
        self.assertTrue(client.said_fin)

    def test_broken_chunks(self):
        """Where chunks are broken nobody knows where the next request begins: the connection closes."""
        client = self.connect()
        client.says(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!" + GET)
        heard = client.heard
        self.assertEqual(answers(heard), [403])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        client = self.connect()
        client.says(POST + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello!" + GET)
        self.assertEqual(answers(client.heard), [403])
        self.assertTrue(client.said_fin)
        self.assertEqual(self.dialer.origins, [])

    def test_expected(self):
        """A client that waits for a 100 may send its body or not, now that it is refused: the connection closes."""
        client = self.connect()
        client.says(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        heard = client.heard
        self.assertEqual(answers(heard), [403])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        client.says(b"hello" + GET)
        self.assertEqual(client.heard, b"")
        self.assertEqual(self.dialer.origins, [])

    def test_expected_and_sent(self):
        """One that did not wait has made clear where its request ends."""
        client = self.connect()
        client.says(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello" + GET)
        self.assertNotIn(b"Connection: close", client.heard)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_closing(self):
        """A refusal does not keep a connection that would not be kept otherwise."""
        client = self.connect()
        client.says(POST + b"Connection: close\r\n\r\n" + GET)
        self.assertIn(b"\r\nConnection: close\r\n", client.heard)
        client = self.connect()
        client.says(b"POST http://origin.example/ HTTP/1.0\r\n\r\n")
        self.assertIn(b"\r\nConnection: close\r\n", client.heard)
        self.assertEqual(self.dialer.origins, [])

    def test_head(self):
        """The refusal of a HEAD has no body."""
        self.resolver.resolve = self.no_names  # type: ignore[method-assign]
        client = self.connect()
        client.says(GET.replace(b"GET", b"HEAD"))
        heard = client.heard
        self.assertEqual(status(heard), 502)
        self.assertTrue(heard.endswith(b"\r\n\r\n"))
        self.assertNotIn(b"Content-Length: 0", heard)

    def no_names(self, name: str) -> None:
        """A resolver that knows nothing."""
        raise ProxyError(ErrorType.DNS_ERROR, "no such name")

    def test_client_leaves(self):
        """A client that leaves in the middle of a refused body has its record already."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10\r\n\r\nhel")
        client.resets()
        self.assertEqual(self.outcome("status", "error"), [(403, "http_request_denied")])

    def test_client_closes(self):
        """One that says FIN there will not complete it."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10\r\n\r\nhel")
        client.closes()
        self.drained(client)

    def test_slow_body(self):
        """One that does not complete it in time is closed on."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10\r\n\r\nhel")
        self.turn(32)
        self.drained(client)
        self.assertEqual(len(self.records), 1)

    def test_wrong_door(self):
        """A request for a door that the port does not have is refused, and so recorded."""
        self.listener = listener(Door.CONNECT)
        client = self.connect()
        client.says(GET)
        self.assertEqual(status(client.heard), 403)
        self.assertEqual(
            self.outcome("destination", "error", "decision"), [("origin.example:80", "http_request_denied", None)]
        )


class SlowReaderTests(DoorCase):
    """Clients that do not read their answers are not asked for more, nor given more."""

    def test_answers_wait(self):
        """No request begins, and no byte is read beyond a bound, while the answers before it wait for their reader."""
        self.change(buffer_size=16384)
        client = self.connect()
        client.stalled = True
        request = b"OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n"
        client.says(request * 700)
        self.assertLess(client.pending, 3 * BUFFER)
        begun = len(self.records)
        client.says(request * 700)
        self.assertFalse(client.reading)
        self.assertEqual(len(self.records), begun)
        while client.pending:
            client.takes()
        self.assertEqual(len(self.records), 1400)
        self.assertEqual(answers(client.heard), [200] * 1400)
        self.assertTrue(client.reading)

    def test_bound(self):
        """Bytes that come while the answers wait are kept up to the bound."""
        client = self.connect()
        client.stalled = True
        client.says(GET)
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000)
        self.assertEqual(self.outcome("status"), [(200,)])
        client.says(GET[:10])
        self.assertTrue(client.reading)
        client.says(b"x" * 300_000)
        self.assertFalse(client.reading)
        client.resets()

    def test_client_closes(self):
        """What was asked before the FIN is answered when the client reads again."""
        client = self.connect()
        client.stalled = True
        client.says(GET + GET)
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000)
        client.closes()
        _ = self.origin.heard
        client.takes()
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.drained(client)
        self.assertEqual(len(self.records), 2)

    def test_draining(self):
        """While the proxy stops, a client that was told to close is closed on once it has read its answers."""
        client = self.connect()
        client.stalled = True
        client.says(GET + GET)
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000)
        self.egress.draining = True
        client.loseConnection()
        self.turn()
        self.assertFalse(client.lost)
        client.takes()
        self.drained(client)
        self.assertFalse(client.aborted)
        self.assertEqual(len(self.records), 1)

    def test_never_reads(self):
        """A client that never reads what it has asked for is closed on in the end."""
        client = self.connect()
        client.stalled = True
        client.says(GET + GET[:10])
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000)
        self.clock.pump([1.0] * (300 + 10))
        self.assertTrue(client.closing)
        self.clock.pump([1.0] * (600 + 10))
        self.drained(client)
        self.assertTrue(client.aborted)
        self.assertEqual(len(self.records), 1)


class TimeTests(DoorCase):
    """How long a client may take."""

    def test_slow_head(self):
        """A head that is not complete in time is answered with 408, however steadily it drips."""
        client = self.connect()
        client.says(GET[:10])
        for at in range(10, 39):
            self.turn(1)
            client.says(GET[at : at + 1])
        self.assertEqual(client.heard, b"")
        self.turn(2)
        heard = client.heard
        self.assertEqual(status(heard), 408)
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertEqual(self.outcome("status", "error"), [(408, "http_request_error")])
        self.turn(3)
        self.drained(client)

    def test_silence(self):
        """A client that says nothing is closed on without a word, and leaves no record."""
        client = self.connect()
        self.turn(29)
        self.assertFalse(client.closed)
        self.turn(2)
        self.drained(client)
        self.assertEqual(client.heard, b"")
        self.assertEqual(self.records, [])

    def test_keepalive(self):
        """Between two requests it may be silent for longer."""
        client = self.connect()
        client.says(GET)
        self.origin.says(OK)
        self.turn(298)
        self.assertFalse(client.closed)
        self.turn(4)
        self.drained(client)
        self.assertEqual(len(self.records), 1)

    def test_next_head(self):
        """The next head has as long as the first, from its first byte, also if that came with the request before."""
        for pieces in ((GET, GET[:10]), (GET + GET[:10],)):
            client = self.connect()
            client.says(pieces[0])
            self.origin.says(OK)
            _ = client.heard
            self.turn(100 if len(pieces) > 1 else 0)
            client.says(*pieces[1:])
            self.turn(28)
            self.assertFalse(client.closed)
            self.turn(3)
            self.assertEqual(status(client.heard), 408)

    def test_short_keepalive(self):
        """A short timeout is kept as exactly as a long one."""
        self.change(keepalive_timeout=1.0)
        client = self.connect()
        client.says(GET)
        self.origin.says(OK)
        self.turn(0.5)
        self.assertFalse(client.closed)
        self.turn(1)
        self.drained(client)

    def test_dialing(self):
        """A request that is being dialed is nobody's silence."""
        self.dialer.instant = False
        client = self.connect()
        client.says(GET)
        self.turn(60)
        self.assertFalse(client.closed)
        client.resets()
        self.assertTrue(self.dialer.dialings[0].cancelled)

    def test_long_request(self):
        """Nor is one whose response takes its time."""
        client = self.connect()
        client.says(GET)
        self.turn(100)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)


class MaxForwardsTests(DoorCase):
    """Requests that we are the last to see (RFC 9110 §7.6.2)."""

    def test_trace(self):
        """A TRACE that may go no further is answered with itself, and the next request follows."""
        client = self.connect()
        trace = b"TRACE http://origin.example/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\nCookie: secret\r\n\r\n"
        client.says(trace + GET)
        heard = client.heard
        self.assertEqual(status(heard), 200)
        self.assertTrue(heard.endswith(b"\r\n\r\n" + trace.replace(b"Cookie: secret\r\n", b"")))
        self.assertEqual(self.origin.heard, GOT)
        client.resets()
        self.assertEqual(self.records[0].status, 200)
        self.assertIsNone(self.records[0].error)

    def test_trace_next(self):
        """One that may go further does so, with one hop less."""
        client = self.connect()
        client.says(b"TRACE http://origin.example/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 3\r\n\r\n")
        self.assertEqual(
            self.origin.heard, b"TRACE / HTTP/1.1\r\nHost: origin.example\r\nMax-Forwards: 2\r\n" + VIA + b"\r\n"
        )
        client.resets()

    def test_options(self):
        """An OPTIONS that may go no further is answered; with a body that is not here yet the connection closes."""
        client = self.connect()
        options = b"OPTIONS http://origin.example HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n"
        client.says(options + b"\r\n")
        self.assertTrue(client.heard.startswith(b"HTTP/1.1 200 OK\r\n" + DATE + b"Allow: "))
        client.says(options + b"Content-Length: 5\r\n\r\nhello" + GET)
        heard = client.heard
        self.assertEqual(answers(heard), [200])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertEqual(self.dialer.origins, [])

    def test_loop(self):
        """A request that comes back is refused."""
        client = self.connect()
        client.says(GET.replace(b"\r\n\r\n", b"\r\nVia: 1.1 a, 1.1 proxyd-test\r\n\r\n"))
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(self.outcome("error"), [("proxy_loop_detected",)])
        self.assertEqual(self.dialer.origins, [])
