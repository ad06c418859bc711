"""Tests for ``proxyd.frontends.heads``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.heads import (
    agrees,
    check_loop,
    client_head,
    interim_head,
    max_forwards,
    parse_target,
    persists,
    switching_head,
    upstream_head,
    wanted_upgrade,
)
from proxyd.wire.framing import Framing, request_body
from proxyd.wire.http1 import HEAD_LIMITS, RequestHead, ResponseHead, parse_request_head, parse_response_head

NOW = 784111777.0


def request(
    fields: bytes = b"", line: bytes = b"GET http://origin.example/ HTTP/1.1", host: bytes = b"h"
) -> RequestHead:
    """A parsed request."""
    return parse_request_head(line + b"\r\nHost: " + host + b"\r\n" + fields + b"\r\n", HEAD_LIMITS)


def response(fields: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> ResponseHead:
    """A parsed response."""
    return parse_response_head(line + b"\r\n" + fields + b"\r\n", HEAD_LIMITS)


def asked(head: RequestHead, *, preserve_host: bool = False, expects: bool = False, hops: int | None = None) -> bytes:
    """The head that the origin gets."""
    framing, length = request_body(head)
    return upstream_head(
        head,
        parse_target(head),
        framing,
        length,
        via="me",
        preserve_host=preserve_host,
        upgrade=wanted_upgrade(head, head.tokens(b"connection")),
        expects=expects,
        hops=hops,
    )


TARGETS: dict[bytes, tuple[str, int, bytes]] = {
    b"GET http://origin.example/": ("origin.example", 80, b"/"),
    b"GET http://origin.example": ("origin.example", 80, b"/"),
    b"GET http://origin.example?q=1": ("origin.example", 80, b"/?q=1"),
    b"GET http://origin.example/?q": ("origin.example", 80, b"/?q"),
    b"GET http://origin.example/a//b/../c;p?x=%0d%0a&y=a+b": ("origin.example", 80, b"/a//b/../c;p?x=%0d%0a&y=a+b"),
    b"GET http://origin.example/a?b?c/d://e@f": ("origin.example", 80, b"/a?b?c/d://e@f"),
    b"POST HTTP://Origin.Example:80/logstores": ("origin.example", 80, b"/logstores"),
    b"GET hTTp://origin.example:8080/": ("origin.example", 8080, b"/"),
    b"GET http://origin.example:/": ("origin.example", 80, b"/"),
    b"GET http://origin.example.:0080/": ("origin.example", 80, b"/"),
    b"GET http://192.0.2.1/": ("192.0.2.1", 80, b"/"),
    b"GET http://[2001:DB8::1]/": ("2001:db8::1", 80, b"/"),
    b"GET http://[2001:db8:0::1]:8080/x": ("2001:db8::1", 8080, b"/x"),
    b"GET http://[::ffff:192.0.2.1]/": ("192.0.2.1", 80, b"/"),
    b"OPTIONS http://origin.example": ("origin.example", 80, b"*"),
    b"OPTIONS http://origin.example:8080": ("origin.example", 8080, b"*"),
    b"OPTIONS http://origin.example/": ("origin.example", 80, b"/"),
    b"OPTIONS http://origin.example?q": ("origin.example", 80, b"/?q"),
}

REFUSED_TARGETS = [
    b"GET /path",
    b"GET /http://origin.example/",
    b"GET //origin.example/",
    b"GET *",
    b"OPTIONS *",
    b"GET origin.example",
    b"GET origin.example:80",
    b"GET http:origin.example/",
    b"GET http:/origin.example/",
    b"GET http://",
    b"GET http:///path",
    b"GET http://:80/",
    b"GET http://?q",
    b"GET https://origin.example/",
    b"GET HTTPS://origin.example:443/",
    b"GET ftp://origin.example/",
    b"GET ws://origin.example/",
    b"GET 1http://origin.example/",
    b"GET http://user@origin.example/",
    b"GET http://user:secret@origin.example/",
    b"GET http://@origin.example/",
    b"GET http://good.example\\@origin.example/",
    b"GET http://origin.example\\path",
    b"GET http://origin.example:80:80/",
    b"GET http://origin.example:+80/",
    b"GET http://origin.example:0/",
    b"GET http://origin.example:65536/",
    b"GET http://origin.example:8o/",
    b"GET http://origin%2eexample/",
    b"GET http://origin,example/",
    b"GET http://[::1/",
    b"GET http://::1/",
    b"GET http://[::1%25lo]/",
    b"GET http://[origin.example]/",
    b"GET http://127.1/",
    b"GET http://0x7f000001/",
    b"GET http://0177.0.0.1/",
    b"GET http://2130706433/",
]


class TargetTests(SynchronousTestCase):
    """`parse_target`: where a request goes, and what the origin is asked for."""

    def test_absolute_form(self):
        """The absolute-form gives host, port, and path and query as they were spelled (RFC 9112 §3.2.2, §3.2.4)."""
        for line, (host, port, path) in TARGETS.items():
            target = parse_target(request(line=line + b" HTTP/1.1"))
            self.assertEqual((target.destination.host, target.destination.port, target.path), (host, port, path), line)

    def test_refused(self):
        """Every other form, scheme and spelling is refused, user information too."""
        for line in REFUSED_TARGETS:
            with self.assertRaises(ProxyError, msg=str(line)) as caught:
                parse_target(request(line=line + b" HTTP/1.1"))
            self.assertIs(caught.exception.error, ErrorType.HTTP_REQUEST_ERROR)
            self.assertNotIn("secret", caught.exception.detail)


class MaxForwardsTests(SynchronousTestCase):
    """`max_forwards`: how far a request may go (RFC 9110 §7.6.2)."""

    def test_limited(self):
        """OPTIONS and TRACE have the number of hops that the field says, if there is one."""
        for method in (b"OPTIONS", b"TRACE"):
            line = method + b" http://origin.example/ HTTP/1.1"
            self.assertEqual(max_forwards(request(b"Max-Forwards: 0\r\n", line)), 0)
            self.assertEqual(max_forwards(request(b"Max-Forwards: 10\r\n", line)), 10)
            self.assertIsNone(max_forwards(request(b"", line)))

    def test_other_methods(self):
        """The field means nothing in other requests."""
        self.assertIsNone(max_forwards(request(b"Max-Forwards: 0\r\n")))

    def test_malformed(self):
        """What is no number, or is there twice, is refused rather than guessed."""
        for fields in (
            b"Max-Forwards:\r\n",
            b"Max-Forwards: -1\r\n",
            b"Max-Forwards: +1\r\n",
            b"Max-Forwards: 1_0\r\n",
            b"Max-Forwards: 1, 2\r\n",
            b"Max-Forwards: 1\r\nMax-Forwards: 1\r\n",
            b"Max-Forwards: 9999999999\r\n",
        ):
            with self.assertRaises(ProxyError, msg=str(fields)):
                max_forwards(request(fields, b"TRACE http://origin.example/ HTTP/1.1"))


class LoopTests(SynchronousTestCase):
    """`check_loop`: requests that have been here before (RFC 9110 §7.6.3)."""

    def test_come_back(self):
        """A request is refused if any member of any Via line was added here."""
        for fields in (
            b"Via: 1.1 me\r\n",
            b"Via: 1.0 other, 1.1 ME (comment)\r\n",
            b"Via: 1.1 other\r\nVIA: HTTP/1.1\tme\r\n",
        ):
            with self.assertRaises(ProxyError, msg=str(fields)) as caught:
                check_loop(request(fields), "me")
            self.assertIs(caught.exception.error, ErrorType.PROXY_LOOP_DETECTED)

    def test_others(self):
        """Other proxies do not matter, nor do comments and odd members."""
        check_loop(request(b"Via: 1.1 other, 1.1 me2 (me), 1.1, me\r\n"), "me")
        check_loop(request(), "me")


class UpgradeTests(SynchronousTestCase):
    """`wanted_upgrade` and `agrees`: switching to another protocol (RFC 9110 §7.8)."""

    def wanted(self, fields: bytes, line: bytes = b"GET http://origin.example/ HTTP/1.1") -> bytes | None:
        """What is asked for."""
        head = request(fields, line)
        return wanted_upgrade(head, head.tokens(b"connection"))

    def test_wanted(self):
        """An upgrade is asked for where Connection names it, also besides keep-alive and over two lines."""
        for connection in (b"Connection: Upgrade\r\n", b"Connection: keep-alive, upgrade\r\n"):
            self.assertEqual(self.wanted(connection + b"Upgrade: WebSocket\r\n"), b"websocket")
        two_lines = b"Connection: keep-alive\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.assertEqual(self.wanted(two_lines), b"websocket")
        self.assertEqual(self.wanted(b"Connection: upgrade\r\nUpgrade: a, b\r\nUpgrade: c/1\r\n"), b"a, b, c/1")

    def test_unwanted(self):
        """Without Connection, or in HTTP/1.0, the field is hop-by-hop and nothing else."""
        self.assertIsNone(self.wanted(b"Upgrade: websocket\r\n"))
        self.assertIsNone(self.wanted(b"Connection: upgrade\r\n"))
        line = b"GET http://origin.example/ HTTP/1.0"
        self.assertIsNone(self.wanted(b"Connection: upgrade\r\nUpgrade: websocket\r\n", line))

    def test_http(self):
        """An upgrade to another HTTP would carry requests that nobody decided on."""
        for offer in (b"h2c", b"H2C", b"h2c-14", b"HTTP/2.0", b"h2", b"h2c, HTTP/2.0"):
            self.assertIsNone(self.wanted(b"Connection: upgrade\r\nUpgrade: " + offer + b"\r\n"), offer)
        self.assertEqual(self.wanted(b"Connection: upgrade\r\nUpgrade: h2c, websocket\r\n"), b"websocket")

    def test_agreed(self):
        """The origin may choose among what was offered, and must say what."""
        self.assertTrue(agrees(response(b"Upgrade: WebSocket\r\n"), b"websocket"))
        self.assertTrue(agrees(response(b"Upgrade: b\r\n"), b"a, b"))
        self.assertFalse(agrees(response(b"Upgrade: h2c\r\n"), b"websocket"))
        self.assertFalse(agrees(response(b"Upgrade: websocket, h2c\r\n"), b"websocket"))
        self.assertFalse(agrees(response(), b"websocket"))
        self.assertFalse(agrees(response(b"Upgrade: websocket\r\n"), None))


class UpstreamHeadTests(SynchronousTestCase):
    """`upstream_head`: what the origin is told."""

    def test_agent(self):
        """The request of an agent loses what was for us, and keeps all else as it was, in its order."""
        sent = (
            b"POST HTTP://proj.cn-hangzhou.log.aliyuncs.com:80/logstores/ls/shards/lb HTTP/1.1\r\n"
            b"Host:proj.cn-hangzhou.log.aliyuncs.com\r\n"
            b"Proxy-Authorization: Basic dXNAZXI6cDp3\r\n"
            b"Accept: */*\r\n"
            b"Proxy-Connection: Keep-Alive\r\n"
            b"Authorization:LOG ak:sig\r\n"
            b"Content-MD5:ABCDEF\r\n"
            b"Content-Length:5000\r\n"
            b"Content-Type:application/x-protobuf\r\n"
            b"Date:Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"User-Agent:ilogtail/3.3.5 (Linux; x) ip/10.0.0.1 env/Others\r\n"
            b"x-log-apiversion:0.6.0\r\n"
            b"Expect: 100-continue\r\n"
            b"\r\n"
        )
        self.assertEqual(
            asked(parse_request_head(sent, HEAD_LIMITS), expects=True),
            b"POST /logstores/ls/shards/lb HTTP/1.1\r\n"
            b"Host: proj.cn-hangzhou.log.aliyuncs.com\r\n"
            b"Accept: */*\r\n"
            b"Authorization: LOG ak:sig\r\n"
            b"Content-MD5: ABCDEF\r\n"
            b"Content-Type: application/x-protobuf\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"User-Agent: ilogtail/3.3.5 (Linux; x) ip/10.0.0.1 env/Others\r\n"
            b"x-log-apiversion: 0.6.0\r\n"
            b"Expect: 100-continue\r\n"
            b"Via: 1.1 me\r\n"
            b"Content-Length: 5000\r\n"
            b"\r\n",
        )

    def test_host(self):
        """Host is the client's spelling where it means the target, else the target's authority (RFC 9112 §3.2.2)."""
        for target, sent, expected in (
            (b"origin.example", b"origin.example", b"origin.example"),
            (b"ORIGIN.example:80", b"Origin.Example", b"Origin.Example"),
            (b"origin.example", b"origin.example:80", b"origin.example:80"),
            (b"origin.example:8080", b"origin.example:8080", b"origin.example:8080"),
            (b"origin.example:8080", b"origin.example", b"origin.example:8080"),
            (b"origin.example:8080", b"origin.example:80", b"origin.example:8080"),
            (b"origin.example", b"other.example", b"origin.example"),
            (b"origin.example:80", b"", b"origin.example"),
            (b"192.0.2.1", b"project.192.0.2.1", b"192.0.2.1"),
            (b"[2001:DB8::1]:80", b"[2001:db8::1]", b"[2001:db8::1]"),
            (b"[2001:db8::1]:81", b"x", b"[2001:db8::1]:81"),
        ):
            head = request(line=b"GET http://" + target + b"/ HTTP/1.1", host=sent)
            self.assertEqual(asked(head).split(b"\r\n")[1], b"Host: " + expected, target)

    def test_no_host(self):
        """HTTP/1.0 needs no Host, the origin does."""
        head = parse_request_head(b"GET http://origin.example/ HTTP/1.0\r\n\r\n", HEAD_LIMITS)
        self.assertEqual(asked(head), b"GET / HTTP/1.1\r\nHost: origin.example\r\nVia: 1.0 me\r\n\r\n")

    def test_preserve_host(self):
        """Where a rule says so the client's Host is kept: agents put their project there and an address in the URL."""
        head = request(line=b"GET http://192.0.2.1/ HTTP/1.1", host=b"project.example")
        self.assertIn(b"\r\nHost: project.example\r\n", asked(head, preserve_host=True))
        empty = request(line=b"GET http://192.0.2.1/ HTTP/1.1", host=b"")
        self.assertIn(b"\r\nHost: 192.0.2.1\r\n", asked(empty, preserve_host=True))

    def test_hop_by_hop(self):
        """Fields for us alone, and those that any Connection line names, go no further; framing and Host do."""
        head = request(
            b"Connection: X-One, close\r\n"
            b"X-One: 1\r\n"
            b"Keep-Alive: 5\r\n"
            b"Proxy-Connection: keep-alive\r\n"
            b"Proxy-Authorization: Basic x\r\n"
            b"Proxy-Authenticate: x\r\n"
            b"TE: trailers\r\n"
            b"Upgrade: websocket\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"
            b"Trailer: X-Sum\r\n"
            b"CONNECTION: x-two, Host, Content-Length, Via, Transfer-Encoding\r\n"
            b"X-Two: 2\r\n"
            b"X-Three: 3\r\n"
            b"Via: 1.1 other\r\n"
            b"Content-Length: 5\r\n"
        )
        self.assertEqual(
            asked(head),
            b"GET / HTTP/1.1\r\n"
            b"Host: origin.example\r\n"
            b"Trailer: X-Sum\r\n"
            b"X-Three: 3\r\n"
            b"Via: 1.1 other\r\n"
            b"Via: 1.1 me\r\n"
            b"Content-Length: 5\r\n"
            b"\r\n",
        )

    def test_expect(self):
        """An expectation that nobody has any more is not passed on."""
        head = request(b"Expect: 100-continue\r\nContent-Length: 5\r\n")
        self.assertIn(b"Expect", asked(head, expects=True))
        self.assertNotIn(b"Expect", asked(head))

    def test_chunked(self):
        """A body without length is chunked again."""
        lines = asked(request(b"transfer-encoding: CHUNKED\r\n")).split(b"\r\n")
        self.assertEqual(lines[-3:], [b"Transfer-Encoding: chunked", b"", b""])

    def test_upgrade(self):
        """A wanted upgrade is asked for in our own name."""
        head = request(b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
        self.assertEqual(
            asked(head).split(b"\r\n")[2:],
            [b"Sec-WebSocket-Key: x", b"Via: 1.1 me", b"Connection: Upgrade", b"Upgrade: websocket", b"", b""],
        )

    def test_max_forwards(self):
        """Max-Forwards is one less for the next hop, and means nothing but its text in other requests."""
        head = request(b"Max-Forwards: 5\r\n", b"TRACE http://origin.example/ HTTP/1.1")
        self.assertIn(b"\r\nMax-Forwards: 4\r\n", asked(head, hops=5))
        self.assertIn(b"\r\nMax-Forwards: 007\r\n", asked(request(b"Max-Forwards: 007\r\n")))


class ResponseHeadTests(SynchronousTestCase):
    """What the client is told."""

    def told(self, head: ResponseHead, *, chunked: bool = False, close: bool = False) -> bytes:
        """The final head."""
        return client_head(head, via="me", now=NOW, chunked=chunked, close=close)

    def test_final(self):
        """A response keeps its fields, repeated ones too, and loses what was for us; Via and Date are added."""
        head = response(
            b"Set-Cookie: a=1\r\n"
            b"set-cookie: b=2\r\n"
            b"Connection: close, X-Hop\r\n"
            b"X-Hop: 1\r\n"
            b"Keep-Alive: timeout=5\r\n"
            b"Proxy-Authenticate: Basic\r\n"
            b"Content-Length: 5\r\n"
            b"x-log-requestid: 42\r\n",
            b"HTTP/1.0 404 Not here",
        )
        self.assertEqual(
            self.told(head),
            b"HTTP/1.1 404 Not here\r\n"
            b"Set-Cookie: a=1\r\n"
            b"set-cookie: b=2\r\n"
            b"x-log-requestid: 42\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"Via: 1.0 me\r\n"
            b"Content-Length: 5\r\n"
            b"\r\n",
        )

    def test_date(self):
        """The origin's date stays as it is: agents set their clocks by it."""
        head = response(b"DATE: yesterday\r\n")
        self.assertEqual(self.told(head), b"HTTP/1.1 200 OK\r\nDATE: yesterday\r\nVia: 1.1 me\r\n\r\n")

    def test_chunked(self):
        """A body that is sent in chunks has no length."""
        lines = self.told(response(), chunked=True, close=True).split(b"\r\n")
        self.assertEqual(lines[-4:], [b"Transfer-Encoding: chunked", b"Connection: close", b"", b""])

    def test_no_content(self):
        """A 204 has no length, whatever the origin says (RFC 9110 §8.6); a 304 tells that of the 200."""
        length = b"Content-Length: 5\r\n"
        self.assertNotIn(b"Content-Length", self.told(response(length, b"HTTP/1.1 204 No Content")))
        self.assertIn(b"Content-Length: 5", self.told(response(length, b"HTTP/1.1 304 Not Modified")))

    def test_interim(self):
        """An interim response is passed on without what frames bodies."""
        head = response(b"Link: </style>\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"HTTP/1.1 103 Hints")
        self.assertEqual(interim_head(head, "me"), b"HTTP/1.1 103 Hints\r\nLink: </style>\r\nVia: 1.1 me\r\n\r\n")

    def test_switching(self):
        """A 101 says what it switches to."""
        head = response(
            b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nContent-Length: 0\r\n",
            b"HTTP/1.1 101 Switching Protocols",
        )
        self.assertEqual(
            switching_head(head, "me"),
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Sec-WebSocket-Accept: x\r\n"
            b"Via: 1.1 me\r\n"
            b"Connection: Upgrade\r\n"
            b"Upgrade: websocket\r\n"
            b"\r\n",
        )

    def test_persists(self):
        """Only HTTP/1.1 persists, unless it says close, on any line."""
        self.assertTrue(persists(request(), response()))
        self.assertTrue(persists(request(), response(b"Connection: keep-alive\r\n")))
        self.assertFalse(persists(request(), response(b"Connection: x\r\nConnection: Close\r\n")))
        self.assertFalse(persists(request(), response(b"Connection: keep-alive\r\n", b"HTTP/1.0 200 OK")))

    def test_connection_of_somebody(self):
        """A connection that somebody has authenticated for himself must not serve others (NTLM, Negotiate)."""
        for scheme in (b"NTLM TlRMTVNTUAAB", b"negotiate YII"):
            self.assertFalse(persists(request(b"Authorization: " + scheme + b"\r\n"), response()))
        self.assertTrue(persists(request(b"Authorization: LOG ak:sig\r\n"), response()))


class FramingNameTests(SynchronousTestCase):
    """The framing that `upstream_head` is told."""

    def test_none(self):
        """A request without a body gets no framing field, as a PUT without length must not be given one."""
        head = request(line=b"PUT http://100.100.100.200/latest/api/token HTTP/1.1")
        self.assertEqual(request_body(head), (Framing.NONE, 0))
        self.assertEqual(asked(head), b"PUT /latest/api/token HTTP/1.1\r\nHost: 100.100.100.200\r\nVia: 1.1 me\r\n\r\n")
