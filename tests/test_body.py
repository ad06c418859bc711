"""Tests for ``proxyd.wire.body``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.wire.body import Body
from proxyd.wire.framing import Framing


class BodyTests(SynchronousTestCase):
    """The body of one message while it is read."""

    def test_none(self):
        """A message without a body is done before a byte is read."""
        body = Body(Framing.NONE)
        self.assertTrue(body.done)
        self.assertEqual(body.left, -1)

    def test_empty(self):
        """A body of length 0 is done as well."""
        body = Body(Framing.LENGTH, 0)
        self.assertTrue(body.done)
        self.assertEqual(body.left, 0)

    def test_length(self):
        """A body of known length counts down, and gives back what is behind its end."""
        body = Body(Framing.LENGTH, 5)
        self.assertEqual(body.feed(b"he"), ((b"he",), b""))
        self.assertEqual((body.left, body.done), (3, False))
        self.assertEqual(body.feed(b"lloGET"), ((b"llo",), b"GET"))
        self.assertEqual((body.left, body.done), (0, True))

    def test_length_exactly(self):
        """Bytes that end where the body ends are handed on as they are, without a copy."""
        body = Body(Framing.LENGTH, 5)
        data = b"hello"
        (piece,), surplus = body.feed(data)
        self.assertIs(piece, data)
        self.assertEqual(surplus, b"")
        self.assertTrue(body.done)

    def test_length_byte_by_byte(self):
        """It does not matter how the bytes of a body arrive."""
        body = Body(Framing.LENGTH, 5)
        pieces = [piece for byte in b"hello" for piece in body.feed(bytes([byte]))[0]]
        self.assertEqual(b"".join(pieces), b"hello")
        self.assertTrue(body.done)

    def test_skip(self):
        """What the kernel has moved counts as read."""
        body = Body(Framing.LENGTH, 5)
        body.skip(3)
        self.assertEqual((body.left, body.done), (2, False))
        body.skip(2)
        self.assertEqual((body.left, body.done), (0, True))

    def test_close(self):
        """A body that lasts until the connection closes is never done by its bytes."""
        body = Body(Framing.CLOSE)
        self.assertEqual(body.feed(b"anything"), ((b"anything",), b""))
        self.assertFalse(body.done)
        self.assertEqual(body.trailers, ())

    def test_chunked(self):
        """A chunked body gives its content, then its trailers, then what is behind it."""
        body = Body(Framing.CHUNKED)
        self.assertEqual(body.left, -1)
        self.assertEqual(body.feed(b"5\r\nhello\r\n3\r\nyou"), ([b"hello", b"you"], b""))
        self.assertFalse(body.done)
        self.assertEqual(body.feed(b"\r\n0\r\nX-Sum: 8\r\n\r\nGET"), ([], b"GET"))
        self.assertTrue(body.done)
        self.assertEqual(body.trailers, [(b"X-Sum", b"8")])

    def test_malformed_chunks(self):
        """Malformed chunks are the error of who sent them: the client unless the body is told otherwise."""
        with self.assertRaises(ProxyError) as caught:
            Body(Framing.CHUNKED).feed(b"5;\r\n")
        self.assertIs(caught.exception.error, ErrorType.HTTP_REQUEST_ERROR)
        with self.assertRaises(ProxyError) as caught:
            Body(Framing.CHUNKED, 0, ErrorType.HTTP_PROTOCOL_ERROR).feed(b"5;\r\n")
        self.assertIs(caught.exception.error, ErrorType.HTTP_PROTOCOL_ERROR)
