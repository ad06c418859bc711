"""Tests for ``proxyd.wire.framing``, and of both codecs against h11 and httptools."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.wire.framing import (
    LAST_CHUNK,
    MAX_CHUNK_LINE,
    MAX_TRAILERS,
    ChunkedBody,
    Framing,
    encode_chunk,
    encode_last_chunk,
    request_body,
    response_body,
)
from proxyd.wire.http1 import (
    HEAD_LIMITS,
    RequestHead,
    ResponseHead,
    find_head,
    parse_request_head,
    parse_response_head,
)

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=500)


def request(fields: bytes, start: bytes = b"POST / HTTP/1.1") -> RequestHead:
    """A parsed request with these field lines behind its Host."""
    return parse_request_head(start + b"\r\nHost: a.example\r\n" + fields + b"\r\n", HEAD_LIMITS)


def response(fields: bytes, start: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    """A parsed response with these field lines."""
    return parse_response_head(start + b"\r\n" + fields + b"\r\n", HEAD_LIMITS)


FRAMED_REQUESTS: dict[str, tuple[bytes, Framing, int]] = {
    "nothing tells a length": (b"", Framing.NONE, 0),
    "an empty content": (b"Content-Length: 0\r\n", Framing.LENGTH, 0),
    "a length": (b"Content-Length:5000\r\n", Framing.LENGTH, 5000),
    "a length with leading zeros": (b"Content-Length: 005\r\n", Framing.LENGTH, 5),
    "the largest length": (b"Content-Length: 9223372036854775807\r\n", Framing.LENGTH, 9223372036854775807),
    "chunks": (b"Transfer-Encoding: chunked\r\n", Framing.CHUNKED, 0),
    "chunks, in another case": (b"TRANSFER-ENCODING:CHUNKED\t\r\n", Framing.CHUNKED, 0),
    "TE does not matter": (b"TE: chunked\r\n", Framing.NONE, 0),
    "fields of similar names do not matter": (
        b"Content_Length: 5\r\nX-Transfer-Encoding: chunked\r\n",
        Framing.NONE,
        0,
    ),
}

REFUSED_FRAMING: dict[str, bytes] = {
    "both length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "both chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "an empty content and chunks": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    "a length and an empty coding": b"Content-Length: 5\r\nTransfer-Encoding:\r\n",
    "a length and the identity coding": b"Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
    "a malformed length and chunks": b"Content-Length: x\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "two lengths in different case": b"Content-Length: 5\r\nCONTENT-LENGTH: 5\r\n",
    "a list of equal lengths": b"Content-Length: 5, 5\r\n",
    "a list of lengths": b"Content-Length: 5,6\r\n",
    "an empty length": b"Content-Length:\r\n",
    "a blank length": b"Content-Length: \t \r\n",
    "a length with a plus": b"Content-Length: +5\r\n",
    "a length with a minus": b"Content-Length: -5\r\n",
    "a negative zero": b"Content-Length: -0\r\n",
    "a length with an underscore": b"Content-Length: 1_0\r\n",
    "a length with a blank inside": b"Content-Length: 1 0\r\n",
    "a hexadecimal length": b"Content-Length: 0x5\r\n",
    "a length in letters": b"Content-Length: five\r\n",
    "a length with a fraction": b"Content-Length: 5.0\r\n",
    "a length with an exponent": b"Content-Length: 1e1\r\n",
    "a length with a unit": b"Content-Length: 5b\r\n",
    "a length with a parameter": b"Content-Length: 5;a=b\r\n",
    "a quoted length": b'Content-Length: "5"\r\n',
    "a length in digits of another script": "Content-Length: \u0665\r\n".encode(),
    "a length in superscript digits of Latin-1": b"Content-Length: \xb2\r\n",
    "a length with a no-break space": b"Content-Length: \xa05\r\n",
    "a length of 2**63": b"Content-Length: 9223372036854775808\r\n",
    "a length of 2**64": b"Content-Length: 18446744073709551616\r\n",
    "a length of 20 digits": b"Content-Length: 00000000000000000005\r\n",
    "a length of 5000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n",
    "two codings in two lines": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "chunks in two lines": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "an empty coding and chunks in two lines": b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
    "chunks twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "an empty coding": b"Transfer-Encoding:\r\n",
    "the identity coding": b"Transfer-Encoding: identity\r\n",
    "chunks before identity": b"Transfer-Encoding: chunked, identity\r\n",
    "identity before chunks": b"Transfer-Encoding: identity, chunked\r\n",
    "an unknown coding": b"Transfer-Encoding: cow\r\n",
    "an unknown coding before chunks": b"Transfer-Encoding: cow, chunked\r\n",
    "a known coding without chunks": b"Transfer-Encoding: gzip\r\n",
    "chunks that are not the last coding": b"Transfer-Encoding: chunked, gzip\r\n",
    "a coding that only begins like chunked": b"Transfer-Encoding: chunkedx\r\n",
    "a coding that only ends like chunked": b"Transfer-Encoding: xchunked\r\n",
    "a coding with a minus before it": b"Transfer-Encoding: -chunked\r\n",
    "chunks with a parameter": b"Transfer-Encoding: chunked;a=b\r\n",
    "chunks and a comma": b"Transfer-Encoding: chunked,\r\n",
    "a comma and chunks": b"Transfer-Encoding: ,chunked\r\n",
    "quoted chunks": b'Transfer-Encoding: "chunked"\r\n',
    "chunks in single quotes": b"Transfer-Encoding: 'chunked'\r\n",
    "chunks with a blank inside": b"Transfer-Encoding: chun ked\r\n",
    "chunks with a no-break space": b"Transfer-Encoding: \xa0chunked\r\n",
    "chunks with a Kelvin sign": "Transfer-Encoding: chun\u212aed\r\n".encode(),
    "chunks after a colon": b"Transfer-Encoding: : chunked\r\n",
}


class RequestBodyTests(SynchronousTestCase):
    """How the content of a request is delimited (RFC 9112 §6.3)."""

    def test_framed(self) -> None:
        """What is unambiguous is taken at its word."""
        for sentence, (fields, framing, length) in FRAMED_REQUESTS.items():
            with self.subTest(sentence):
                self.assertEqual(request_body(request(fields)), (framing, length))

    def test_refused(self) -> None:
        """What two readers could frame differently is a bad request."""
        for sentence, fields in REFUSED_FRAMING.items():
            with self.subTest(sentence):
                error = self.assertRaises(ProxyError, request_body, request(fields))
                self.assertEqual((error.error, error.status), (ErrorType.HTTP_REQUEST_ERROR, 400))

    def test_compressed(self) -> None:
        """A coding that is known, but not to us, is not implemented (RFC 9112 §6.1)."""
        for coding in (b"gzip, chunked", b"x-gzip\t,deflate ,CHUNKED", b"compress,chunked"):
            error = self.assertRaises(ProxyError, request_body, request(b"Transfer-Encoding: " + coding + b"\r\n"))
            self.assertEqual((error.error, error.status), (ErrorType.HTTP_REQUEST_ERROR, 501))

    def test_http_1_0(self) -> None:
        """HTTP/1.0 may tell a length, but has no transfer codings."""
        head = request(b"Content-Length: 5\r\n", b"POST / HTTP/1.0")
        self.assertEqual(request_body(head), (Framing.LENGTH, 5))
        head = request(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.0")
        error = self.assertRaises(ProxyError, request_body, head)
        self.assertEqual(error.status, 400)

    def test_connect(self) -> None:
        """CONNECT has no content; saying that it has some is refused, for it could be the tunnel's first bytes."""
        connect = b"CONNECT a.example:443 HTTP/1.1"
        for fields in (b"", b"Content-Length: 0\r\n"):
            self.assertEqual(request_body(request(fields, connect)), (Framing.NONE, 0))
        for fields in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: x\r\n"):
            error = self.assertRaises(ProxyError, request_body, request(fields, connect))
            self.assertEqual(error.status, 400)

    def test_any_method(self) -> None:
        """The content of a GET or HEAD is delimited like that of any other method."""
        for method in (b"GET", b"HEAD", b"DELETE", b"TRACE", b"SEARCH"):
            head = request(b"Content-Length: 5\r\n", method + b" / HTTP/1.1")
            self.assertEqual(request_body(head), (Framing.LENGTH, 5))


class ResponseBodyTests(SynchronousTestCase):
    """How the content of a response is delimited (RFC 9112 §6.3)."""

    def test_framed(self) -> None:
        """Chunks come before a length, and the end of the connection is the last resort."""
        for fields, expected in (
            (b"Transfer-Encoding: Chunked\r\n", (Framing.CHUNKED, 0)),
            (b"Content-Length: 5\r\n", (Framing.LENGTH, 5)),
            (b"Content-Length: 0\r\n", (Framing.LENGTH, 0)),
            (b"", (Framing.CLOSE, 0)),
        ):
            self.assertEqual(response_body(response(fields), b"GET"), expected)
        self.assertEqual(response_body(response(b"", b"HTTP/1.0 200 OK"), b"GET"), (Framing.CLOSE, 0))
        self.assertEqual(
            response_body(response(b"Content-Length: 5\r\n", b"HTTP/1.0 200 OK"), b"GET"), (Framing.LENGTH, 5)
        )

    def test_no_content(self) -> None:
        """Some methods and statuses have no content, whatever the fields say."""
        for fields in (b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
            for status in (
                b"100 Continue",
                b"101 Switching Protocols",
                b"103 Early Hints",
                b"204 No",
                b"304 Not Modified",
            ):
                head = response(fields, b"HTTP/1.1 " + status)
                self.assertEqual(response_body(head, b"GET"), (Framing.NONE, 0))
            for status in (b"200 OK", b"404 Not Found"):
                head = response(fields, b"HTTP/1.1 " + status)
                self.assertEqual(response_body(head, b"HEAD"), (Framing.NONE, 0))

    def test_connect(self) -> None:
        """A 2xx to CONNECT begins the tunnel whatever its fields say; a refusal has content."""
        for fields in (b"", b"Content-Length: 5\r\n", b"Content-Length: x\r\n", b"Transfer-Encoding: gzip\r\n"):
            self.assertEqual(response_body(response(fields, b"HTTP/1.1 299 Odd"), b"CONNECT"), (Framing.NONE, 0))
        self.assertEqual(
            response_body(response(b"Content-Length: 5\r\n", b"HTTP/1.1 407 No"), b"CONNECT"), (Framing.LENGTH, 5)
        )
        self.assertEqual(response_body(response(b"", b"HTTP/1.1 300 Odd"), b"CONNECT"), (Framing.CLOSE, 0))

    def test_refused(self) -> None:
        """What two readers could frame differently is a protocol error, also where no content follows."""
        for sentence, fields in REFUSED_FRAMING.items():
            for status in (b"200 OK", b"204 No Content", b"304 Not Modified"):
                for method in (b"GET", b"HEAD"):
                    with self.subTest(sentence, status=status, method=method):
                        head = response(fields, b"HTTP/1.1 " + status)
                        error = self.assertRaises(ProxyError, response_body, head, method)
                        self.assertEqual((error.error, error.status), (ErrorType.HTTP_PROTOCOL_ERROR, 502))

    def test_refused_codings(self) -> None:
        """A coding that is not ours to undo, and any in HTTP/1.0, is a protocol error."""
        for head in (
            response(b"Transfer-Encoding: gzip, chunked\r\n"),
            response(b"Transfer-Encoding: chunked\r\n", b"HTTP/1.0 200 OK"),
        ):
            error = self.assertRaises(ProxyError, response_body, head, b"GET")
            self.assertEqual((error.error, error.status), (ErrorType.HTTP_PROTOCOL_ERROR, 502))


# Sentence -> encoded body, content, trailers.
CHUNKED_BODIES: dict[str, tuple[bytes, bytes, list[tuple[bytes, bytes]]]] = {
    "an empty body": (b"0\r\n\r\n", b"", []),
    "one chunk": (b"5\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "two chunks": (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", []),
    "sizes in either case": (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789", []),
    "sizes with leading zeros": (b"0005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello", []),
    "content that looks like framing": (b"9\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n\r\n", []),
    "extensions": (
        b'5;a;b=c;d="e;\\"\t\xff\\\xff";f=""\r\nhello\r\n0;last\r\n\r\n',
        b"hello",
        [],
    ),
    "extensions with the blanks that the grammar tolerates": (b"5 ; a\t= b ;c\r\nhello\r\n0\r\n\r\n", b"hello", []),
    "trailers": (
        b"5\r\nhello\r\n0\r\nDigest: x\r\nx-sum:\tcaf\xe9 \r\n\r\n",
        b"hello",
        [(b"Digest", b"x"), (b"x-sum", b"caf\xe9")],
    ),
    "trailers that would frame or route the message, which are dropped": (
        b"0\r\nContent-Length: 5\r\nA: 1\r\nTransfer-Encoding: chunked\r\nHOST: b\r\nConnection: a\r\nTE: x\r\n"
        b"Trailer: x\r\nUpgrade: h2c\r\nProxy-Authorization: Basic c2VjcmV0\r\nB: 2\r\n\r\n",
        b"",
        [(b"A", b"1"), (b"B", b"2")],
    ),
}

# Sentence -> beginning of a body that is refused at its last byte, at the latest.
REFUSED_CHUNKS: dict[str, bytes] = {
    "a size that is missing": b"\r\n",
    "a size that is missing before an extension": b";a=b\r\n",
    "a size with 0x": b"0x5\r\n",
    "a size with a plus": b"+5\r\n",
    "a size with a minus": b"-5\r\n",
    "a size with an underscore": b"1_0\r\n",
    "a size with a blank before it": b" 5\r\n",
    "a size with a blank behind it": b"5 \r\n",
    "a size with a tab behind it": b"5\t\r\n",
    "a size with a blank inside": b"1 0\r\n",
    "a size in letters": b"five\r\n",
    "a size with a h": b"5h\r\n",
    "a size with a comma": b"5,5\r\n",
    "a size with a fraction": b"5.0\r\n",
    "a size with a vertical tab": b"5\x0b\r\n",
    "a size with a NUL": b"5\x00\r\n",
    "a size with a no-break space": b"5\xa0\r\n",
    "a size in digits of another script": "\u0665\r\n".encode(),
    "a size of 17 digits": b"00000000000000005\r\n",
    "a size of 17 digits that wraps to a small one": b"10000000000000005\r\n",
    "a second size of 17 digits": b"5\r\nhello\r\n00000000000000005\r\n",
    "a size that never ends": b"0" * 5000,
    "a size that ends with LF alone": b"5\n",
    "a size that ends with CR alone": b"5\rhello\r\n",
    "a size that ends with two CRs": b"5\r\r\n",
    "an empty extension": b"5;\r\n",
    "an empty extension among others": b"5;a;;b\r\n",
    "an extension without a semicolon": b"5 a=b\r\n",
    "an extension without a name": b"5;=b\r\n",
    "an extension without a value": b"5;a=\r\n",
    "an extension with two values": b"5;a=b=c\r\n",
    "an extension with a blank at its end": b"5;a \r\n",
    "an extension with a LF": b"5;a\nb\r\n",
    "an extension that ends with LF alone": b"5;a\n",
    "an extension with a CR": b"5;a\rb\r\n",
    "an extension with a NUL": b"5;a=\x00\r\n",
    "an extension with a DEL": b"5;a=\x7f\r\n",
    "an extension with a control character in quotes": b'5;a="\x01"\r\n',
    "an extension with a LF in quotes": b'5;a="\n"\r\n',
    "an extension with a CRLF in quotes": b'5;a="\r\nhello\r\n0\r\n\r\n"\r\n',
    "an extension whose quotes are not closed": b'5;a="b\r\n',
    "an extension that is not ASCII": b"5;caf\xe9\r\n",
    "an extension that is too long": b"5;" + b"a" * 5000,
    "many extensions that are too long together": b"5" + b";a" * 3000 + b"\r\n",
    "a chunk longer than its size": b"5\r\nhellos\r\n",
    "a chunk that goes on behind its size": b"5\r\nhellos",
    "a chunk that is followed by the next size": b"5\r\nhello0\r\n\r\n",
    "a chunk that ends with LF alone": b"5\r\nhello\n0\r\n\r\n",
    "a chunk that ends with CR alone": b"5\r\nhello\r0",
    "a chunk that ends with two CRs": b"5\r\nhello\r\r\n",
    "a chunk that ends with two CRLFs": b"5\r\nhello\r\n\r\n",
    "a chunk that is shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "a last chunk that ends with LF alone": b"0\n\r\n",
    "a last chunk followed by LF alone": b"0\r\n\n",
    "a last chunk with content": b"0\r\nhello\r\n\r\n",
    "a second chunk that is malformed": b"5\r\nhello\r\n0x0\r\n",
    "a trailer without a colon": b"0\r\nDigest\r\n",
    "a trailer with a blank before the colon": b"0\r\nDigest : x\r\n",
    "a trailer without a name": b"0\r\n: x\r\n",
    "a trailer whose name has a blank": b"0\r\nA B: x\r\n",
    "a trailer that is folded": b"0\r\nA: x\r\n y\r\n",
    "a trailer that begins with a fold": b"0\r\n A: x\r\n",
    "a trailer with a NUL": b"0\r\nA: \x00\r\n",
    "a trailer with a CR": b"0\r\nA: x\ry\r\n",
    "a trailer that ends with LF alone": b"0\r\nA: x\n",
    "a dropped trailer that is malformed": b"0\r\nHost : x\r\n",
    "a request behind a last chunk without its empty line": b"0\r\nGET / HTTP/1.1\r\n",
}


def decode(data: bytes, step: int, error: ErrorType = ErrorType.HTTP_REQUEST_ERROR) -> tuple[bytes, ChunkedBody, int]:
    """Feed a body ``step`` bytes at a time; gives the content, the decoder, and how much it took."""
    body = ChunkedBody(error)
    content = []
    position = 0
    while position < len(data) and not body.done:
        pieces, taken = body.feed(data[position : position + step])
        content += pieces
        position += taken
    return b"".join(content), body, position


class ChunkedBodyTests(SynchronousTestCase):
    """How chunked content is decoded (RFC 9112 §7.1)."""

    def test_decoded(self) -> None:
        """Content and trailers come out the same however the bytes arrive, and what follows is left alone."""
        for sentence, (data, content, trailers) in CHUNKED_BODIES.items():
            for step in (1, 2, 3, 1000):
                for behind in (b"", b"GET / HTTP/1.1\r\n", b"\r\n"):
                    with self.subTest(sentence, step=step, behind=behind):
                        decoded, body, taken = decode(data + behind, step)
                        self.assertEqual((decoded, body.trailers, taken), (content, trailers, len(data)))
                        self.assertTrue(body.done)

    def test_refused(self) -> None:
        """What is not chunked content to the letter is refused, at the latest with its last byte."""
        for sentence, data in REFUSED_CHUNKS.items():
            for step in (1, 3, 10000):
                with self.subTest(sentence, step=step):
                    error = self.assertRaises(ProxyError, decode, data, step)
                    self.assertEqual((error.error, error.status), (ErrorType.HTTP_REQUEST_ERROR, 400))

    def test_refused_response(self) -> None:
        """In a response the same is the origin's error, whatever was malformed."""
        for data in (b"5\n", b"0" * 5000, b"5\r\nhellos", b"0\r\nA\r\n", b"0\r\nA: " + b"x" * 20000):
            error = self.assertRaises(ProxyError, decode, data, 1000, ErrorType.HTTP_PROTOCOL_ERROR)
            self.assertEqual((error.error, error.status), (ErrorType.HTTP_PROTOCOL_ERROR, 502))

    def test_line_limit(self) -> None:
        """A chunk-size line of just the limit is accepted, one octet more is refused, however it arrives."""
        longest = b"0;" + b"a" * (MAX_CHUNK_LINE - 4) + b"\r\n"
        for step in (1, 1000, 10000):
            self.assertTrue(decode(longest + b"\r\n", step)[1].done)
            self.assertRaises(ProxyError, decode, longest[:1] + longest, step)

    def test_trailer_limit(self) -> None:
        """Trailers that just fit are accepted, one octet more is refused as too large, however they arrive."""
        lines = b"A: 1\r\n" * 100
        longest = lines + b"B: " + b"b" * (MAX_TRAILERS - len(lines) - 7) + b"\r\n\r\n"
        for step in (1, 1000, 100000):
            self.assertEqual(len(decode(b"0\r\n" + longest, step)[1].trailers), 101)
            for line in (b"B: " + longest, b"A: 1\r\n" * 5000):
                error = self.assertRaises(ProxyError, decode, b"0\r\n" + line, step)
                self.assertEqual((error.error, error.status), (ErrorType.HTTP_REQUEST_ERROR, 431))

    def test_not_done(self) -> None:
        """A body that was cut at any byte is not done."""
        data = b"5;a=b\r\nhello\r\n0\r\nDigest: x\r\n\r\n"
        for length in range(len(data)):
            decoded, body, taken = decode(data[:length], 1000)
            self.assertFalse(body.done)
            self.assertEqual(taken, length)

    def test_chunk_end_split(self) -> None:
        """A CR that ended the last read counts: another one behind it is refused."""
        body = ChunkedBody()
        body.feed(b"5\r\nhello\r")
        self.assertRaises(ProxyError, body.feed, b"\r\n5\r\nhello")

    def test_early(self) -> None:
        """Content is given out as soon as it arrives, without waiting for the end of the chunk."""
        body = ChunkedBody()
        self.assertEqual(body.feed(b"a\r\nhell"), ([b"hell"], 7))
        self.assertEqual(body.feed(b"o"), ([b"o"], 1))
        self.assertEqual(body.feed(b" wor"), ([b" wor"], 4))
        self.assertEqual(body.feed(b""), ([], 0))

    def test_largest_size(self) -> None:
        """A size of 16 digits is believed, but nothing is set aside for it."""
        body = ChunkedBody()
        self.assertEqual(body.feed(b"ffffffffffffffff\r\nhello"), ([b"hello"], 23))

    def test_not_copied(self) -> None:
        """Bytes that are all content are passed on as they are."""
        body = ChunkedBody()
        body.feed(b"1000000\r\n")
        data = b"x" * 65536
        (piece,), _ = body.feed(data)
        self.assertIs(piece, data)

    def test_memoryview(self) -> None:
        """A part of a larger buffer is decoded like bytes, and the pieces do not keep the buffer."""
        data = b'5\r\nhello\r\n6;a="b"\r\n world\r\n0\r\nA: 1\r\n\r\nGET'
        body = ChunkedBody()
        pieces, taken = body.feed(memoryview(data))
        self.assertEqual((b"".join(pieces), body.trailers, data[taken:]), (b"hello world", [(b"A", b"1")], b"GET"))
        self.assertEqual({type(piece) for piece in pieces}, {bytes})

    def test_done(self) -> None:
        """A body that is done takes nothing more."""
        body = ChunkedBody()
        body.feed(b"0\r\n\r\n")
        self.assertEqual(body.feed(b"0\r\n\r\n"), ([], 0))

    @reproducible
    @given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(1, 30), min_size=1))
    def test_round_trip(self, chunks: list[bytes], steps: list[int]) -> None:
        """What was encoded is decoded again, for every way of splitting it."""
        data = b"".join(encode_chunk([chunk]) for chunk in chunks) + encode_last_chunk([(b"A", b"1")]) + b"behind"
        body = ChunkedBody()
        content, position, turn = [], 0, 0
        while not body.done:
            pieces, taken = body.feed(data[position : position + steps[turn % len(steps)]])
            content += pieces
            position += taken
            turn += 1
        self.assertEqual((b"".join(content), body.trailers), (b"".join(chunks), [(b"A", b"1")]))
        self.assertEqual(data[position:], b"behind")

    @reproducible
    @given(st.sampled_from([case[0] for case in CHUNKED_BODIES.values()]), st.data())
    def test_split_makes_no_difference(self, data: bytes, draw: st.DataObject) -> None:
        """A damaged body is decoded, refused or waited for in the same way at once and byte by byte."""
        position = draw.draw(st.integers(0, len(data)))
        damaged = data[:position] + draw.draw(st.binary(max_size=3)) + data[position + draw.draw(st.integers(0, 2)) :]
        self.assertEqual(outcome(damaged, 1), outcome(damaged, 10000))


def outcome(data: bytes, step: int) -> tuple[bytes, bool, int] | str:
    """What becomes of a body."""
    try:
        content, body, taken = decode(data, step)
    except ProxyError as error:
        return error.detail
    return content, body.done, taken


class EncodeTests(SynchronousTestCase):
    """How chunks are written."""

    def test_chunk(self) -> None:
        """All the pieces make up one chunk."""
        self.assertEqual(encode_chunk([b"hello", b"", b" world"]), b"b\r\nhello world\r\n")

    def test_no_content(self) -> None:
        """No content makes no chunk, for an empty one would be the last."""
        self.assertEqual(encode_chunk([]), b"")
        self.assertEqual(encode_chunk([b"", b""]), b"")

    def test_last_chunk(self) -> None:
        """The last chunk is followed by the trailers and an empty line."""
        self.assertEqual(encode_last_chunk([]), LAST_CHUNK)
        self.assertEqual(
            encode_last_chunk([(b"Digest", b"x"), (b"A", b"1")]),
            b"0\r\nDigest: x\r\nA: 1\r\n\r\n",
        )


@dataclass(frozen=True, slots=True)
class Message:
    """A message as one reader understands it; ``start`` is what its start line says."""

    start: tuple[bytes, ...]
    fields: list[tuple[bytes, bytes]]
    content: bytes


def plain(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Fields in a form that all readers share; h11 rewrites the framing fields, which the content stands for."""
    named = [(name.lower(), value.strip(b" \t")) for name, value in fields]
    return [field for field in named if field[0] not in (b"content-length", b"transfer-encoding")]


def our_request(data: bytes) -> tuple[Message, int] | None:
    """The first request and its size, or ``None`` if it is refused or incomplete."""
    try:
        length = find_head(data, HEAD_LIMITS)
        if not length:
            return None
        head = parse_request_head(data[:length], HEAD_LIMITS)
        content = our_content(data, length, *request_body(head))
    except ProxyError:
        return None
    if content is None:
        return None
    version = b"%d.%d" % head.version
    return Message((head.method, head.target, version), plain(head.fields), content[0]), content[1]


def our_response(data: bytes, method: bytes) -> tuple[Message, int] | None:
    """The first response and its size, or ``None`` if it is refused or incomplete."""
    try:
        length = find_head(data, HEAD_LIMITS, 0, ErrorType.HTTP_PROTOCOL_ERROR)
        if not length:
            return None
        head = parse_response_head(data[:length], HEAD_LIMITS)
        content = our_content(data, length, *response_body(head, method))
    except ProxyError:
        return None
    if content is None:
        return None
    start = (b"%d" % head.status, b"%d.%d" % head.version)
    return Message(start, plain(head.fields), content[0]), content[1]


def our_content(data: bytes, position: int, framing: Framing, length: int) -> tuple[bytes, int] | None:
    """The content and where it ends, or ``None`` if it is incomplete."""
    match framing:
        case Framing.NONE:
            return b"", position
        case Framing.LENGTH:
            end = position + length
            return (data[position:end], end) if end <= len(data) else None
        case Framing.CHUNKED:
            content, body, taken = decode(data[position:], 10000)
            return (content, position + taken) if body.done else None
        case Framing.CLOSE:
            return data[position:], len(data)


def h11_message(connection: h11.Connection, data: bytes, closes: bool = False) -> tuple[Message, bytes] | None:
    """The message that h11 sees and the bytes that it leaves, or ``None`` if it refuses them."""
    start: tuple[bytes, ...] = ()
    fields: list[tuple[bytes, bytes]] = []
    content = b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA and closes:
                connection.receive_data(b"")
                closes = False
            elif isinstance(event, h11.Request):
                start, fields = (event.method, event.target, event.http_version), list(event.headers)
            elif isinstance(event, h11.InformationalResponse | h11.Response):
                start, fields = (b"%d" % event.status_code, event.http_version), list(event.headers)
                if event.status_code < 200:
                    return Message(start, plain(fields), b""), connection.trailing_data[0]
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Message(start, plain(fields), content), connection.trailing_data[0]
            else:
                raise AssertionError(f"h11 still waits for more: {event!r}")
    except h11.RemoteProtocolError:
        return None


def h11_request(data: bytes) -> tuple[Message, bytes] | None:
    """What h11 makes of a request."""
    return h11_message(h11.Connection(h11.SERVER, max_incomplete_event_size=100000), data)


def h11_response(data: bytes, method: bytes, closes: bool) -> tuple[Message, bytes] | None:
    """What h11 makes of the response to such a request."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=100000)
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"Host", b"a.example")]))
    connection.send(h11.EndOfMessage())
    return h11_message(connection, data, closes)


class Listener:
    """What httptools tells about messages."""

    def __init__(self) -> None:
        self.begun = 0
        self.complete = 0
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.content = b""

    def on_message_begin(self) -> None:
        """A message begins."""
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field; trailers too, which come after the content."""
        self.fields.append((name, value))

    def on_body(self, content: bytes) -> None:
        """A part of the content."""
        self.content += content

    def on_message_complete(self) -> None:
        """The message ends."""
        self.complete += 1


def httptools_request(data: bytes) -> tuple[Message, Listener] | None:
    """What httptools makes of a request, or ``None`` if it refuses it."""
    listener = Listener()
    parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # its way to say that a CONNECT is complete
    except httptools.HttpParserError:
        return None
    start = (parser.get_method(), listener.target, parser.get_http_version().encode())
    return Message(start, plain(listener.fields), listener.content), listener


def httptools_response(data: bytes) -> tuple[Message, Listener] | None:
    """What httptools makes of a response to anything but HEAD, or ``None`` if it refuses it."""
    listener = Listener()
    parser = httptools.HttpResponseParser(listener)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return None
    start = (b"%d" % parser.get_status_code(), parser.get_http_version().encode())
    return Message(start, plain(listener.fields), listener.content), listener


REQUESTS = [
    b"GET http://a.example/x?y HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n",
    b"POST HTTP://a.example:80/ HTTP/1.1\r\nHost:a.example\r\nContent-Length:5\r\nExpect: 100-continue\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\n123\r\n0\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a.example\r\nX:  1\t2 \r\n\r\n",
    b"HEAD / HTTP/1.0\r\nContent-Length: 00\r\n\r\n",
    b"POST / HTTP/1.0\r\nContent-Length: 12\r\n\r\nhello\r\nworld",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\nContent-Length: 0\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.0\r\n\r\n",
]

RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\n123\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n\r\n",
    b"HTTP/1.1 200\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\nuntil the end",
    b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
]

ODDITIES = [
    *(bytes([octet]) for octet in b'\r\n\t :;,\x00\x01\x0b\x7f\x80\xa0\xff+-_0159aAxX"#/@[]%='),
    b"\r\n",
    b"\r\n\r\n",
    b"\n\r",
    b"0x",
    b"0\r\n\r\n",
    b"Content-Length: 3\r\n",
    b"Content-Length: 5\r\n",
    b"content-length:0\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding\t: chunked\r\n",
    b"Host: b.example\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"A: b\r\n c\r\n",
    b';a="b"',
    b" ;a",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"204",
    b"HEAD",
    b"CONNECT",
]


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A good message in which one to three things were put in, replaced or taken out."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        starts = [0, *(index + 2 for index in range(len(data)) if data.startswith(b"\r\n", index))]
        position = draw(st.sampled_from(starts) | st.integers(0, len(data)))
        removed = draw(st.sampled_from([0, 0, 0, 1, 1, 2, 5]))
        data = data[:position] + draw(st.sampled_from([b"", *ODDITIES])) + data[position + removed :]
    return data


class OracleTests(SynchronousTestCase):
    """Whatever we accept, h11 and httptools frame alike, or refuse."""

    def check_request(self, data: bytes) -> None:
        """Compare the three readings of the first request in the data."""
        ours = our_request(data)
        if ours is None:
            return
        message, size = ours
        theirs = h11_request(data)
        if theirs is not None:
            self.assertEqual(theirs, (message, data[size:]))
        judged = httptools_request(data[:size])
        if judged is not None:
            self.assert_same(judged, message)

    def check_response(self, data: bytes, method: bytes) -> None:
        """Compare the three readings of the first response in the data."""
        ours = our_response(data, method)
        if ours is None:
            return
        message, size = ours
        closes = size == len(data)
        theirs = h11_response(data, method, closes)
        if theirs is not None:
            self.assertEqual(theirs, (message, data[size:]))
        # httptools is not told of the method, and takes the length of a response to HEAD for content.
        judged = None if method == b"HEAD" else httptools_response(data[:size])
        if judged is not None:
            self.assert_same(judged, message, closes)

    def assert_same(self, judged: tuple[Message, Listener], message: Message, closes: bool = False) -> None:
        """httptools has seen this message, complete and alone; the fields it tells of end with the trailers."""
        theirs, listener = judged
        self.assertEqual((theirs.start, theirs.content), (message.start, message.content))
        self.assertEqual(theirs.fields[: len(message.fields)], message.fields)
        self.assertEqual(listener.begun, 1)
        self.assertTrue(listener.complete == 1 or closes)

    def test_good_messages(self) -> None:
        """The messages that the other tests damage are accepted by all three."""
        for data in REQUESTS:
            with self.subTest(data):
                self.assertIsNotNone(our_request(data))
                self.assertIsNotNone(h11_request(data))
                self.assertIsNotNone(httptools_request(data))
                self.check_request(data)
        for data in RESPONSES:
            with self.subTest(data):
                self.assertIsNotNone(our_response(data, b"GET"))
                self.assertIsNotNone(h11_response(data, b"GET", True))
                self.assertIsNotNone(httptools_response(data))
                self.check_response(data, b"GET")

    @reproducible
    @given(damaged(REQUESTS), st.sampled_from([b"", REQUESTS[0], b"\x00"]))
    def test_requests(self, data: bytes, behind: bytes) -> None:
        """Method, target, fields and content of every request are read alike, and so is where it ends."""
        self.check_request(data + behind)

    @reproducible
    @given(damaged(RESPONSES), st.sampled_from([b"GET", b"HEAD"]))
    def test_responses(self, data: bytes, method: bytes) -> None:
        """Status, fields and content of every response are read alike, and so is where it ends."""
        self.check_response(data, method)
