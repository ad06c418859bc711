"""Tests for ``proxyd.wire.http1``."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.wire.http1 import (
    HEAD_LIMITS,
    Head,
    HeadLimits,
    RequestHead,
    ResponseHead,
    encode_request_head,
    encode_response_head,
    end_to_end_fields,
    find_head,
    parse_request_head,
    parse_response_head,
)

SMALL = HeadLimits(size=100, fields=3, start_line=40)

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def read_request(data: bytes, step: int, limits: HeadLimits = HEAD_LIMITS) -> RequestHead | None:
    """What a connection makes of bytes that arrive ``step`` at a time; ``None`` if it still waits for more."""
    length = arrive(data, step, limits, ErrorType.HTTP_REQUEST_ERROR)
    return parse_request_head(data[:length], limits) if length else None


def read_response(data: bytes, step: int, limits: HeadLimits = HEAD_LIMITS) -> ResponseHead | None:
    """The same for a connection to an origin."""
    length = arrive(data, step, limits, ErrorType.HTTP_PROTOCOL_ERROR)
    return parse_response_head(data[:length], limits) if length else None


def arrive(data: bytes, step: int, limits: HeadLimits, error: ErrorType) -> int:
    """Search for the head each time that bytes arrive, as a connection does."""
    buffer = bytearray()
    for position in range(0, len(data), step):
        seen = len(buffer)
        buffer += data[position : position + step]
        if length := find_head(buffer, limits, seen, error):
            return length
    return 0


AGENT_POST = (
    b"POST HTTP://proj.cn-hangzhou.log.aliyuncs.com:80/logstores/ls/shards/lb HTTP/1.1\r\n"
    b"Host:proj.cn-hangzhou.log.aliyuncs.com\r\n"
    b"Proxy-Authorization: Basic dXNAZXI6cDp3\r\n"
    b"Accept: */*\r\n"
    b"Proxy-Connection: Keep-Alive\r\n"
    b"Authorization:LOG ak:sig\r\n"
    b"Content-Length:5000\r\n"
    b"User-Agent:ilogtail/3.3.5 (Linux; x86_64) ip/10.0.0.1 env/Others\r\n"
    b"x-log-apiversion:0.6.0\r\n"
    b"Expect: 100-continue\r\n"
    b"\r\n"
)

# What must work: sentence -> head, method, target, version, fields.
ACCEPTED_REQUESTS: dict[str, tuple[bytes, bytes, bytes, tuple[int, int], list[tuple[bytes, bytes]]]] = {
    "an agent's POST with an upper-case scheme, and a Host without a blank": (
        AGENT_POST,
        b"POST",
        b"HTTP://proj.cn-hangzhou.log.aliyuncs.com:80/logstores/ls/shards/lb",
        (1, 1),
        [
            (b"Host", b"proj.cn-hangzhou.log.aliyuncs.com"),
            (b"Proxy-Authorization", b"Basic dXNAZXI6cDp3"),
            (b"Accept", b"*/*"),
            (b"Proxy-Connection", b"Keep-Alive"),
            (b"Authorization", b"LOG ak:sig"),
            (b"Content-Length", b"5000"),
            (b"User-Agent", b"ilogtail/3.3.5 (Linux; x86_64) ip/10.0.0.1 env/Others"),
            (b"x-log-apiversion", b"0.6.0"),
            (b"Expect", b"100-continue"),
        ],
    ),
    "an agent's PUT to the metadata service, without a length": (
        b"PUT http://100.100.100.200/latest/api/token HTTP/1.1\r\nHost: 100.100.100.200\r\n\r\n",
        b"PUT",
        b"http://100.100.100.200/latest/api/token",
        (1, 1),
        [(b"Host", b"100.100.100.200")],
    ),
    "a CONNECT of HTTP/1.0 without Host": (
        b"CONNECT example.com:443 HTTP/1.0\r\n\r\n",
        b"CONNECT",
        b"example.com:443",
        (1, 0),
        [],
    ),
    "a CONNECT with an empty content": (
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT",
        b"example.com:443",
        (1, 1),
        [(b"Host", b"example.com:443"), (b"Content-Length", b"0")],
    ),
    "a CONNECT to an IPv6 address without brackets": (
        b"CONNECT 2001:db8::1:443 HTTP/1.1\r\nHost: 2001:db8::1:443\r\n\r\n",
        b"CONNECT",
        b"2001:db8::1:443",
        (1, 1),
        [(b"Host", b"2001:db8::1:443")],
    ),
    "a Host with an IPv6 address and a port": (
        b"GET http://[2001:db8::1]:8080/ HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n",
        b"GET",
        b"http://[2001:db8::1]:8080/",
        (1, 1),
        [(b"Host", b"[2001:db8::1]:8080")],
    ),
    "an empty Host, as its grammar allows": (
        b"GET http://a.example/ HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET",
        b"http://a.example/",
        (1, 1),
        [(b"Host", b"")],
    ),
    "a Host that differs from the target": (
        b"GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        b"GET",
        b"http://a.example/",
        (1, 1),
        [(b"Host", b"b.example")],
    ),
    "a method that nobody knows, in lower case": (
        b"m-search http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"m-search",
        b"http://a.example/",
        (1, 1),
        [(b"Host", b"a.example")],
    ),
    "OPTIONS of the server as a whole": (
        b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n",
        b"OPTIONS",
        b"*",
        (1, 1),
        [(b"Host", b"a.example")],
    ),
    "one empty line before the request line": (
        b"\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET",
        b"/",
        (1, 0),
        [],
    ),
    "two empty lines before the request line": (
        b"\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET",
        b"/",
        (1, 0),
        [],
    ),
    "values with tabs, obs-text and blanks around them": (
        b"GET / HTTP/1.0\r\nA: \t one\ttwo \t\r\nB:caf\xc3\xa9\r\nC:\t \r\nD:\r\n\r\n",
        b"GET",
        b"/",
        (1, 0),
        [(b"A", b"one\ttwo"), (b"B", b"caf\xc3\xa9"), (b"C", b""), (b"D", b"")],
    ),
    "a name of every character that a token may have": (
        b"GET / HTTP/1.0\r\n!#$%&'*+-.^_`|~09azAZ: :\r\n\r\n",
        b"GET",
        b"/",
        (1, 0),
        [(b"!#$%&'*+-.^_`|~09azAZ", b":")],
    ),
    "repeated fields, in their order": (
        b"GET / HTTP/1.0\r\nCookie: a=1\r\nX: 1\r\nCookie: b=2\r\n\r\n",
        b"GET",
        b"/",
        (1, 0),
        [(b"Cookie", b"a=1"), (b"X", b"1"), (b"Cookie", b"b=2")],
    ),
    "a query with characters that URIs should not have": (
        b'GET /?a={b}|"c"<d>\\^`[e]%zz HTTP/1.0\r\n\r\n',
        b"GET",
        b'/?a={b}|"c"<d>\\^`[e]%zz',
        (1, 0),
        [],
    ),
    "a request line of 8000 octets": (
        b"GET /" + b"a" * 7981 + b" HTTP/1.0\r\n\r\n",
        b"GET",
        b"/" + b"a" * 7981,
        (1, 0),
        [],
    ),
}


def with_line(line: bytes) -> bytes:
    """A request whose second field line is the given one."""
    return b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n" + line + b"\r\nX: 1\r\n\r\n"


def with_start(line: bytes) -> bytes:
    """A request with the given request line."""
    return line + b"\r\nHost: a.example\r\n\r\n"


def with_host(value: bytes) -> bytes:
    """A request with the given Host."""
    return b"GET http://a.example/ HTTP/1.1\r\nHost: " + value + b"\r\n\r\n"


# What must never pass: sentence -> head, status.
REFUSED_REQUESTS: dict[str, tuple[bytes, int]] = {
    # RFC 9112 §3: the request line
    "the method is missing": (with_start(b" / HTTP/1.1"), 400),
    "the request line begins with a blank": (with_start(b" GET / HTTP/1.1"), 400),
    "the method has a colon": (with_start(b"GE:T / HTTP/1.1"), 400),
    "the method has a slash": (with_start(b"GET/ / HTTP/1.1"), 400),
    "the method is quoted": (with_start(b'"GET" / HTTP/1.1'), 400),
    "the method is not ASCII": (with_start(b"G\xc3\x8bT / HTTP/1.1"), 400),
    "the method has a control character": (with_start(b"GE\x01T / HTTP/1.1"), 400),
    "the method has a NUL before it": (with_start(b"\x00GET / HTTP/1.1"), 400),
    "two blanks follow the method": (with_start(b"GET  / HTTP/1.1"), 400),
    "a tab follows the method": (with_start(b"GET\t/ HTTP/1.1"), 400),
    "a form feed follows the method": (with_start(b"GET\x0c/ HTTP/1.1"), 400),
    "a no-break space follows the method": (with_start(b"GET\xa0/ HTTP/1.1"), 400),
    "the target is missing": (with_start(b"GET HTTP/1.1"), 400),
    "the target is empty": (with_start(b"GET  HTTP/1.1"), 400),
    "the target has a blank": (with_start(b"GET /a b HTTP/1.1"), 400),
    "the target has a tab": (with_start(b"GET /a\tb HTTP/1.1"), 400),
    "the target has a vertical tab": (with_start(b"GET /a\x0bb HTTP/1.1"), 400),
    "the target has a NUL": (with_start(b"GET /a\x00b HTTP/1.1"), 400),
    "the target has a DEL": (with_start(b"GET /a\x7fb HTTP/1.1"), 400),
    "the target is not ASCII": (with_start(b"GET /caf\xc3\xa9 HTTP/1.1"), 400),
    "the target has a fragment": (with_start(b"GET /a#b HTTP/1.1"), 400),
    "the target has a CR": (with_start(b"GET /a\rb HTTP/1.1"), 400),
    "the target has a LF": (with_start(b"GET /a\nb HTTP/1.1"), 400),
    "two blanks precede the version": (with_start(b"GET /  HTTP/1.1"), 400),
    "a blank follows the version": (with_start(b"GET / HTTP/1.1 "), 400),
    "something follows the version": (with_start(b"GET / HTTP/1.1 HTTP/1.1"), 400),
    "the version is missing, as in HTTP/0.9": (b"GET /\r\n", 400),
    "the version is in lower case": (with_start(b"GET / http/1.1"), 400),
    "the version has no minor number": (with_start(b"GET / HTTP/1"), 400),
    "the version has an empty minor number": (with_start(b"GET / HTTP/1."), 400),
    "the minor version has two digits": (with_start(b"GET / HTTP/1.10"), 400),
    "the major version has a leading zero": (with_start(b"GET / HTTP/01.1"), 400),
    "the version has a comma": (with_start(b"GET / HTTP/1,1"), 400),
    "the version has a sign": (with_start(b"GET / HTTP/+1.1"), 400),
    "the version has a blank": (with_start(b"GET / HTTP/ 1.1"), 400),
    "the version names another protocol": (with_start(b"GET / HTTPS/1.1"), 400),
    "the version is 0.9": (with_start(b"GET / HTTP/0.9"), 505),
    "the version is 1.2": (with_start(b"GET / HTTP/1.2"), 505),
    "the version is 2.0": (with_start(b"GET / HTTP/2.0"), 505),
    "the version is 3.0": (with_start(b"GET / HTTP/3.0"), 505),
    "the connection preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "the request line ends with LF alone": (b"GET / HTTP/1.1\nHost: a.example\r\n\r\n", 400),
    "the request line ends with CR alone": (b"GET / HTTP/1.1\rHost: a.example\r\n\r\n", 400),
    "the request line ends with LF and CR": (b"GET / HTTP/1.1\n\rHost: a.example\r\n\r\n", 400),
    "the request line ends with two CRs and LF": (b"GET / HTTP/1.1\r\r\nHost: a.example\r\n\r\n", 400),
    "three empty lines precede the request line": (b"\r\n\r\n\r\nGET / HTTP/1.0\r\n\r\n", 400),
    "nothing but empty lines arrives": (b"\r\n\r\n\r\n\r\n", 400),
    "a LF precedes the request line": (b"\nGET / HTTP/1.0\r\n\r\n", 400),
    "a CR precedes the request line": (b"\rGET / HTTP/1.0\r\n\r\n", 400),
    "a line with a blank precedes the request line": (b" \r\nGET / HTTP/1.0\r\n\r\n", 400),
    "a response arrives where requests do": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    "a TLS client hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a SOCKS5 greeting": (b"\x05\x01\x00", 400),
    "text that is no request": (b"hello world\r\n", 400),
    # RFC 9112 §2.2 and §5: field lines
    "every line ends with LF alone": (b"GET / HTTP/1.1\nHost: a.example\n\n", 400),
    "a field line ends with LF alone": (with_line(b"A: 1\nB: 2"), 400),
    "a field line ends with CR alone": (with_line(b"A: 1\rB: 2"), 400),
    "a field line ends with LF and CR": (with_line(b"A: 1\n\rB: 2"), 400),
    "a field line ends with two CRs and LF": (with_line(b"A: 1\r"), 400),
    "the last line is LF alone": (b"GET / HTTP/1.1\r\nHost: a.example\r\n\n", 400),
    "the last line is a CR and something else": (b"GET / HTTP/1.1\r\nHost: a.example\r\n\rX", 400),
    "a name follows a CR": (with_line(b"A: 1\rTransfer-Encoding: chunked"), 400),
    "a value has a NUL": (with_line(b"A: 1\x002"), 400),
    "a value has a SOH": (with_line(b"A: 1\x012"), 400),
    "a value has a backspace": (with_line(b"A: 1\x082"), 400),
    "a value begins with a vertical tab": (with_line(b"A:\x0b1"), 400),
    "a value ends with a form feed": (with_line(b"A: 1\x0c"), 400),
    "a value has an escape": (with_line(b"A: \x1b[31m"), 400),
    "a value has a unit separator": (with_line(b"A: 1\x1f2"), 400),
    "a value has a DEL": (with_line(b"A: 1\x7f2"), 400),
    "a name has a NUL": (with_line(b"A\x00: 1"), 400),
    "a name has a DEL": (with_line(b"A\x7f: 1"), 400),
    "a name is empty": (with_line(b": 1"), 400),
    "a name is empty and a blank precedes the colon": (with_line(b" : 1"), 400),
    "a name is not ASCII": (with_line(b"Caf\xc3\xa9: 1"), 400),
    "a name has a blank": (with_line(b"A B: 1"), 400),
    "a blank precedes the colon": (with_line(b"Content-Length : 1"), 400),
    "a tab precedes the colon": (with_line(b"Transfer-Encoding\t: chunked"), 400),
    "a no-break space precedes the colon": (with_line(b"Content-Length\xa0: 1"), 400),
    "a vertical tab precedes the colon": (with_line(b"Content-Length\x0b: 1"), 400),
    "a name has parentheses": (with_line(b"A(B): 1"), 400),
    "a name has a slash": (with_line(b"A/B: 1"), 400),
    "a name has a comma": (with_line(b"A,B: 1"), 400),
    "a name has a semicolon": (with_line(b"A;B: 1"), 400),
    "a name has an equals sign": (with_line(b"A=B: 1"), 400),
    "a name is quoted": (with_line(b'"A": 1'), 400),
    "a name has brackets": (with_line(b"A[1]: 1"), 400),
    "a name has braces": (with_line(b"A{1}: 1"), 400),
    "a name has a backslash": (with_line(b"A\\B: 1"), 400),
    "a name has an at sign": (with_line(b"A@B: 1"), 400),
    "a line has no colon": (with_line(b"A"), 400),
    "a line with a known name has no colon": (with_line(b"Host"), 400),
    "a line is folded with a blank": (with_line(b"A: 1\r\n 2"), 400),
    "a line is folded with a tab": (with_line(b"A: 1\r\n\t2"), 400),
    "a line is folded and looks like a field": (with_line(b"A: 1\r\n Content-Length: 5"), 400),
    "the first field line begins with a blank": (b"GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", 400),
    "the first field line begins with a tab": (b"GET / HTTP/1.1\r\n\tHost: a.example\r\n\r\n", 400),
    "a line has only a blank": (with_line(b" "), 400),
    "a Host is folded": (with_host(b"a.example\r\n\tb.example"), 400),
    # RFC 9112 §3.2: Host
    "HTTP/1.1 has no Host": (b"GET http://a.example/ HTTP/1.1\r\n\r\n", 400),
    "HTTP/1.1 has no Host but other fields": (b"GET http://a.example/ HTTP/1.1\r\nX-Host: a.example\r\n\r\n", 400),
    "CONNECT of HTTP/1.1 has no Host": (b"CONNECT a.example:443 HTTP/1.1\r\n\r\n", 400),
    "there are two Hosts": (with_line(b"Host: b.example"), 400),
    "there are two equal Hosts": (with_line(b"Host: a.example"), 400),
    "there are two Hosts, one in upper case": (with_line(b"HOST: b.example"), 400),
    "there are two Hosts, one of them empty": (with_line(b"Host:"), 400),
    "HTTP/1.0 has two Hosts": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "HTTP/1.0 has an invalid Host": (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
    "the Host has user information": (with_host(b"me@a.example"), 400),
    "the Host has a blank": (with_host(b"a.example b.example"), 400),
    "the Host has a tab": (with_host(b"a.example\tb.example"), 400),
    "the Host has a comma": (with_host(b"a.example,b.example"), 400),
    "the Host has a slash": (with_host(b"a.example/x"), 400),
    "the Host has a backslash": (with_host(b"a.example\\x"), 400),
    "the Host is a URI": (with_host(b"http://a.example"), 400),
    "the Host has a query": (with_host(b"a.example?x"), 400),
    "the Host has a fragment": (with_host(b"a.example#x"), 400),
    "the Host is not ASCII": (with_host(b"caf\xc3\xa9.example"), 400),
    "the Host has angle brackets": (with_host(b"<a.example>"), 400),
    "the Host's port is not a number": (with_host(b"a.example:http"), 400),
    "the Host's port has a sign": (with_host(b"a.example:+80"), 400),
    "the Host has two ports": (with_host(b"a.example:80:80"), 400),
    "the Host's bracket is not closed": (with_host(b"[::1"), 400),
    "the Host has something behind the bracket": (with_host(b"[::1]a"), 400),
    "the Host has empty brackets": (with_host(b"[]"), 400),
    "the Host has a zone": (with_host(b"[fe80::1%25eth0]"), 400),
    "the Host is an IPv6 address without brackets": (with_host(b"2001:db8::1"), 400),
    # limits
    "the request line is one octet too long": (with_start(b"GET /" + b"a" * 16371 + b" HTTP/1.1"), 414),
    "the request line never ends": (b"GET /" + b"a" * 20000, 414),
    "the head is one octet too large": (with_line(b"A: " + b"a" * (65537 - len(with_line(b"A: ")))), 431),
    "the head never ends": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 11000, 431),
    "the head has one field too many": (with_line(b"A: 1\r\n" * 198 + b"A: 1"), 431),
}


class RequestHeadTests(SynchronousTestCase):
    """What is read as a request, and what is refused."""

    def test_accepted(self) -> None:
        """What agents send and the RFC allows is understood, however it arrives."""
        for sentence, (data, method, target, version, fields) in ACCEPTED_REQUESTS.items():
            for step in (1, 7, len(data)):
                with self.subTest(sentence, step=step):
                    head = read_request(data, step)
                    assert head is not None
                    self.assertEqual((head.method, head.target, head.version), (method, target, version))
                    self.assertEqual(head.fields, fields)
                    self.assertEqual(head.names.in_order, tuple(name.lower() for name, _ in fields))
                    self.assertEqual(head.size, len(data))

    def test_refused(self) -> None:
        """What the RFC rejects is refused with the status it names, at the latest with the last byte."""
        for sentence, (data, status) in REFUSED_REQUESTS.items():
            for step in (1, 1000, len(data)):
                with self.subTest(sentence, step=step):
                    error = self.assertRaises(ProxyError, read_request, data, step)
                    self.assertEqual((error.error, error.status), (ErrorType.HTTP_REQUEST_ERROR, status))

    def test_largest_accepted(self) -> None:
        """A head that just fits into every limit is accepted."""
        line = b"A: " + b"a" * (65536 - len(with_line(b"A: ")))
        head = read_request(with_line(line), 65536)
        assert head is not None
        self.assertEqual(head.size, 65536)
        head = read_request(with_start(b"GET /" + b"a" * 16370 + b" HTTP/1.1"), 1)
        assert head is not None
        self.assertEqual(len(head.target), 16371)
        head = read_request(with_line(b"A: 1\r\n" * 197 + b"A: 1"), 65536)
        assert head is not None
        self.assertEqual(len(head.fields), 200)

    def test_not_one_head(self) -> None:
        """What is not exactly one complete head is refused, for it was not measured by find_head."""
        for data in (
            b"",
            b"\r\n",
            b"GET / HTTP/1.0",
            b"GET / HTTP/1.0\r\n",
            b"GET / HTTP/1.0\r\nA: 1\r\n",
            b"GET / HTTP/1.0\r\nA: 1",
            b"GET / HTTP/1.0\r\n\r\nbody",
            b"GET / HTTP/1.0\r\n\r\n\r\n",
        ):
            with self.subTest(data):
                self.assertRaises(ProxyError, parse_request_head, data, HEAD_LIMITS)

    def test_many_names(self) -> None:
        """More different names than are remembered are still understood, and so are very long ones."""
        for number in range(3000):
            name = b"X-%d" % number
            head = parse_request_head(b"GET / HTTP/1.0\r\n" + name + b": 1\r\n\r\n", HEAD_LIMITS)
            self.assertEqual(head.names.in_order, (name.lower(),))
        name = b"X" * 1000
        head = parse_request_head(b"GET / HTTP/1.0\r\n" + name + b": 1\r\n\r\n", HEAD_LIMITS)
        self.assertEqual(head.names.in_order, (b"x" * 1000,))

    def test_bad_name_twice(self) -> None:
        """A name that was refused once is refused again."""
        for _ in range(2):
            self.assertRaises(ProxyError, read_request, with_line(b"Bad Name: 1"), 1000)

    @reproducible
    @given(st.binary(max_size=200), st.integers(1, 50))
    def test_junk(self, data: bytes, step: int) -> None:
        """No bytes whatever make the parser fail in another way than with its own error."""
        for junk in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost:" + data + b"\r\n\r\n"):
            try:
                head = read_request(junk, step)
            except ProxyError as error:
                self.assertIs(error.error, ErrorType.HTTP_REQUEST_ERROR)
            else:
                self.assertTrue(head is None or len(head.fields) == len(head.names.in_order))

    @reproducible
    @given(st.sampled_from([case[0] for case in REFUSED_REQUESTS.values() if len(case[0]) < 500]), st.data())
    def test_refused_however_split(self, data: bytes, draw: st.DataObject) -> None:
        """A malformed head is refused wherever the bytes are split between two reads."""
        cut = draw.draw(st.integers(0, len(data)))
        seen = 0
        try:
            for until in (cut, len(data)):
                if length := find_head(data[:until], HEAD_LIMITS, seen):
                    parse_request_head(data[:length], HEAD_LIMITS)
                seen = until
        except ProxyError:
            return
        self.fail("accepted")


class FindHeadTests(SynchronousTestCase):
    """How the end of a head is found."""

    def test_length(self) -> None:
        """The length is that of the head alone; the body and further requests do not count."""
        head = b"GET / HTTP/1.0\r\nA: 1\r\n\r\n"
        for behind in (b"", b"body", b"\r\n\r\n", head, b"\x00\n\r\xff"):
            for buffer in (head + behind, bytearray(head + behind)):
                self.assertEqual(find_head(buffer, HEAD_LIMITS), len(head))

    def test_unfinished(self) -> None:
        """Every beginning of a head asks for more bytes."""
        for data, *_ in ACCEPTED_REQUESTS.values():
            for length in range(0, len(data), 1 + len(data) // 300):
                self.assertEqual(find_head(data[:length], HEAD_LIMITS), 0)

    def test_empty_lines_count(self) -> None:
        """Empty lines before the request line count as a part of the head."""
        self.assertEqual(find_head(b"\r\n\r\nGET / HTTP/1.0\r\n\r\nbody", HEAD_LIMITS), 22)
        self.assertEqual(find_head(b"\r\n\r\n", HEAD_LIMITS), 0)
        self.assertRaises(ProxyError, find_head, b"\r\n\r\n\r", HEAD_LIMITS)

    def test_end_split(self) -> None:
        """The end is found when its four octets arrive one by one, or all but the last were seen before."""
        data = b"GET / HTTP/1.0\r\nA: 1\r\n\r\n"
        for seen in range(len(data)):
            self.assertEqual(find_head(data, HEAD_LIMITS, seen), len(data))

    def test_limits(self) -> None:
        """Sizes of the start line and of the whole head are limited while the end is not there yet."""
        for data, status in (
            (b"GET /" + b"a" * 37, 414),
            (b"GET /" + b"a" * 200, 414),
            (b"GET / HTTP/1.0\r\nA:" + b"a" * 82, 431),
            (b"GET / HTTP/1.0\r\nA:" + b"a" * 79 + b"\r\n\r\n", 431),
        ):
            with self.subTest(data):
                error = self.assertRaises(ProxyError, find_head, data, SMALL)
                self.assertEqual(error.status, status)
        self.assertEqual(find_head(b"GET /" + b"a" * 36, SMALL), 0)
        self.assertEqual(find_head(b"GET / HTTP/1.0\r\nA:" + b"a" * 78 + b"\r\n\r\n", SMALL), 100)

    def test_response_errors(self) -> None:
        """On the origin's side every refusal is the origin's fault, and has no status of a request."""
        for data in (
            b"HTTP/1.1 200 " + b"a" * 40,
            b"HTTP/1.1 200\r\nA:" + b"a" * 90,
            b"HTTP/1.1 200\r\nA: \x00",
            b"junk",
        ):
            with self.subTest(data):
                error = self.assertRaises(ProxyError, find_head, data, SMALL, 0, ErrorType.HTTP_PROTOCOL_ERROR)
                self.assertEqual((error.error, error.status), (ErrorType.HTTP_PROTOCOL_ERROR, 502))


ACCEPTED_RESPONSES: dict[str, tuple[bytes, tuple[int, int], int, bytes, list[tuple[bytes, bytes]]]] = {
    "a plain response": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        (1, 1),
        200,
        b"OK",
        [(b"Content-Length", b"3")],
    ),
    "HTTP/1.0": (b"HTTP/1.0 404 Not Found\r\n\r\n", (1, 0), 404, b"Not Found", []),
    "an empty reason": (b"HTTP/1.1 200 \r\n\r\n", (1, 1), 200, b"", []),
    "no reason, and no blank before it": (b"HTTP/1.1 200\r\n\r\n", (1, 1), 200, b"", []),
    "a reason with a tab and obs-text": (b"HTTP/1.1 200 \tcaf\xe9 \r\n\r\n", (1, 1), 200, b"\tcaf\xe9 ", []),
    "an interim response": (b"HTTP/1.1 100 Continue\r\n\r\n", (1, 1), 100, b"Continue", []),
    "the highest status": (b"HTTP/1.1 599 Odd\r\n\r\n", (1, 1), 599, b"Odd", []),
    "cookies in their order, and values with obs-text": (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: \xff\xfe\r\nset-cookie: b=2\r\nSet-Cookie: a=1\r\n\r\n",
        (1, 1),
        200,
        b"OK",
        [(b"Set-Cookie", b"a=1"), (b"X", b"\xff\xfe"), (b"set-cookie", b"b=2"), (b"Set-Cookie", b"a=1")],
    ),
}

REFUSED_RESPONSES: dict[str, bytes] = {
    "a response of HTTP/0.9": b"<html>hello</html>",
    "an empty line precedes the status line": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "the version is 2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "the version is 1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "the version is in lower case": b"http/1.1 200 OK\r\n\r\n",
    "another protocol answers": b"ICY 200 OK\r\n\r\n",
    "a mail server answers": b"220 mail.example ESMTP\r\n",
    "a blank precedes the version": b" HTTP/1.1 200 OK\r\n\r\n",
    "the status is missing": b"HTTP/1.1\r\n\r\n",
    "the status is empty": b"HTTP/1.1  OK\r\n\r\n",
    "the status has two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "the status has four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "the status has five digits": b"HTTP/1.1 99999 OK\r\n\r\n",
    "the status is below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "the status is 000": b"HTTP/1.1 000 OK\r\n\r\n",
    "the status is 600": b"HTTP/1.1 600 OK\r\n\r\n",
    "the status is 999": b"HTTP/1.1 999 OK\r\n\r\n",
    "the status has a sign": b"HTTP/1.1 +20 OK\r\n\r\n",
    "the status has an underscore": b"HTTP/1.1 2_0 OK\r\n\r\n",
    "the status has a letter": b"HTTP/1.1 20x OK\r\n\r\n",
    "the status has digits of another script": "HTTP/1.1 \u0662\u0660\u0660 OK\r\n\r\n".encode(),
    "two blanks precede the status": b"HTTP/1.1  200 OK\r\n\r\n",
    "a tab precedes the status": b"HTTP/1.1\t200 OK\r\n\r\n",
    "a tab follows the status": b"HTTP/1.1 200\tOK\r\n\r\n",
    "the reason has a control character": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "the reason has a NUL": b"HTTP/1.1 200 O\x00K\r\n\r\n",
    "the reason has a CR": b"HTTP/1.1 200 O\rK\r\n\r\n",
    "the status line ends with LF alone": b"HTTP/1.1 200 OK\nA: 1\r\n\r\n",
    "every line ends with LF alone": b"HTTP/1.1 200 OK\nA: 1\n\n",
    "a field is folded": b"HTTP/1.1 200 OK\r\nA: 1\r\n 2\r\n\r\n",
    "a name is empty": b"HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
    "a name has a blank": b"HTTP/1.1 200 OK\r\nA B: 1\r\n\r\n",
    "a blank precedes the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
    "a line has no colon": b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
    "a value has a NUL": b"HTTP/1.1 200 OK\r\nA: 1\x00\r\n\r\n",
    "a value has a CR": b"HTTP/1.1 200 OK\r\nA: 1\rSet-Cookie: a=1\r\n\r\n",
    "a value has a LF": b"HTTP/1.1 200 OK\r\nA: 1\nSet-Cookie: a=1\r\n\r\n",
    "a value has a vertical tab": b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\x0bchunked\r\n\r\n",
    "the status line is too long": b"HTTP/1.1 200 " + b"a" * 16400 + b"\r\n\r\n",
    "the head is too large": b"HTTP/1.1 200 OK\r\n" + b"A: " + b"a" * 65536 + b"\r\n\r\n",
    "the head has too many fields": b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * 201 + b"\r\n",
}


class ResponseHeadTests(SynchronousTestCase):
    """What is read as a response, and what makes it an error of the origin."""

    def test_accepted(self) -> None:
        """What origins send and the RFC allows is understood, however it arrives."""
        for sentence, (data, version, status, reason, fields) in ACCEPTED_RESPONSES.items():
            for step in (1, 5, len(data)):
                with self.subTest(sentence, step=step):
                    head = read_response(data, step)
                    assert head is not None
                    self.assertEqual((head.version, head.status, head.reason), (version, status, reason))
                    self.assertEqual(head.fields, fields)
                    self.assertEqual(head.names.in_order, tuple(name.lower() for name, _ in fields))
                    self.assertEqual(head.size, len(data))

    def test_refused(self) -> None:
        """What the RFC rejects is a protocol error of the origin, at the latest with the last byte."""
        for sentence, data in REFUSED_RESPONSES.items():
            for step in (1, 1000, len(data)):
                with self.subTest(sentence, step=step):
                    error = self.assertRaises(ProxyError, read_response, data, step)
                    self.assertEqual((error.error, error.status), (ErrorType.HTTP_PROTOCOL_ERROR, 502))


class HeadTests(SynchronousTestCase):
    """How a head is asked."""

    def test_get(self) -> None:
        """All values of a name are given in order, whatever the case of the name was."""
        head = request_with([(b"A", b"1"), (b"B", b"2"), (b"a", b"3")])
        self.assertEqual(head.get(b"a"), [b"1", b"3"])
        self.assertEqual(head.get(b"b"), [b"2"])
        self.assertEqual(head.get(b"c"), [])

    def test_tokens(self) -> None:
        """The lines of a list field make up one list, in lower case, without blanks and empty members."""
        head = request_with([(b"Connection", b" Close ,\t,KEEP-alive"), (b"connection", b","), (b"CONNECTION", b"x")])
        self.assertEqual(head.tokens(b"connection"), (b"close", b"keep-alive", b"x"))
        self.assertEqual(head.tokens(b"te"), ())


def request_with(fields: list[tuple[bytes, bytes]]) -> Head:
    """A parsed request with these fields behind its Host."""
    return parse_request_head(encode_request_head(b"GET", b"/", [(b"Host", b"h"), *fields]), HEAD_LIMITS)


class EndToEndFieldsTests(SynchronousTestCase):
    """Which fields are passed on (RFC 9110 §7.6.1)."""

    def passed_on(self, fields: list[tuple[bytes, bytes]], *drop: bytes) -> list[tuple[bytes, bytes]]:
        """What is left of the fields of a request, but for its Host."""
        return list(end_to_end_fields(request_with(fields), frozenset({b"host", *drop})))

    def test_hop_by_hop(self) -> None:
        """Fields for one hop are left out, in any case."""
        self.assertEqual(
            self.passed_on(
                [
                    (b"CONNECTION", b"close"),
                    (b"Keep-Alive", b"timeout=5"),
                    (b"Proxy-Connection", b"keep-alive"),
                    (b"Proxy-Authenticate", b"Basic"),
                    (b"Proxy-Authorization", b"Basic c2VjcmV0"),
                    (b"proxy-authentication-info", b"x"),
                    (b"TE", b"trailers"),
                    (b"Transfer-Encoding", b"chunked"),
                    (b"Upgrade", b"websocket"),
                ]
            ),
            [],
        )

    def test_end_to_end(self) -> None:
        """Everything else is kept byte for byte, in order and number; Trailer too."""
        fields = [
            (b"Set-Cookie", b"a=1"),
            (b"x-log-apiversion", b"0.6.0"),
            (b"Set-Cookie", b"b=2"),
            (b"Trailer", b"Digest"),
            (b"Authorization", b"LOG ak:sig"),
            (b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
            (b"Content-MD5", b"\xff"),
        ]
        self.assertEqual(self.passed_on(fields), fields)

    def test_dropped(self) -> None:
        """The caller's own choice is left out as well, even where Connection could not name it."""
        self.assertEqual(
            self.passed_on([(b"Via", b"1.1 a"), (b"A", b"1"), (b"Connection", b"via")], b"via"), [(b"A", b"1")]
        )

    def test_named_by_connection(self) -> None:
        """Fields that any of several Connection lines names are left out, in any case."""
        self.assertEqual(
            self.passed_on(
                [
                    (b"X-First", b"1"),
                    (b"Connection", b"x-first, close"),
                    (b"X-Second", b"2"),
                    (b"connection", b"X-SECOND"),
                    (b"X-Third", b"3"),
                ]
            ),
            [(b"X-Third", b"3")],
        )

    def test_named_by_a_long_connection(self) -> None:
        """It makes no difference how long the Connection line is."""
        self.assertEqual(
            self.passed_on([(b"Connection", b"a," * 1000 + b"b"), (b"A", b"1"), (b"B", b"2"), (b"C", b"3")]),
            [(b"C", b"3")],
        )

    def test_long_connections_are_not_remembered(self) -> None:
        """What many long Connection lines name takes no memory when they are gone."""
        self.passed_on([(b"Connection", b"close")])
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(32):
            self.passed_on([(b"Connection", b"%05d" % number * 10_000)])
        after, _ = tracemalloc.get_traced_memory()
        self.assertLess(after - before, 50_000)

    def test_never_named(self) -> None:
        """A Connection line cannot remove what routes or frames the message, or is meant for everybody."""
        fields = [
            (b"Content-Length", b"3"),
            (b"Via", b"1.1 a"),
            (b"Date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
            (b"Cache-Control", b"no-store"),
        ]
        connection = (b"Connection", b"Host, Content-Length, Transfer-Encoding, Via, Date, Cache-Control")
        head = request_with([connection, *fields])
        self.assertEqual(list(end_to_end_fields(head, frozenset())), [(b"Host", b"h"), *fields])

    def test_none_and_one(self) -> None:
        """Of one field, or of none, as of many."""
        self.assertEqual(self.passed_on([]), [])
        self.assertEqual(self.passed_on([(b"A", b"1")]), [(b"A", b"1")])

    def test_same_names(self) -> None:
        """Heads with the same names are told apart by what their Connection lines name, however often they come."""
        for number in range(100):
            value = b"%d" % number
            self.assertEqual(
                self.passed_on([(b"Connection", b"x-%d" % (number % 3)), (b"X-1", value), (b"x-2", value)]),
                [(b"X-1", value), (b"x-2", value)] if number % 3 == 0 else [((b"x-2", b"X-1")[number % 3 - 1], value)],
            )


class EncodeTests(SynchronousTestCase):
    """How heads are written."""

    def test_request(self) -> None:
        """A request head is HTTP/1.1, with its fields in order."""
        self.assertEqual(
            encode_request_head(b"POST", b"/a?b", [(b"Host", b"a.example"), (b"x-log-bodyrawsize", b"4096")]),
            b"POST /a?b HTTP/1.1\r\nHost: a.example\r\nx-log-bodyrawsize: 4096\r\n\r\n",
        )

    def test_response(self) -> None:
        """A response head is HTTP/1.1, and has the blank before an empty reason."""
        self.assertEqual(
            encode_response_head(200, b"OK", iter([(b"Content-Length", b"0")])),
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        )
        self.assertEqual(encode_response_head(204, b"", []), b"HTTP/1.1 204 \r\n\r\n")

    def test_round_trip(self) -> None:
        """What was read is read again in the same way after it was written."""
        for data, method, target, _, fields in ACCEPTED_REQUESTS.values():
            fields = [(b"Host", b"h"), *(field for field in fields if field[0] != b"Host")]
            head = read_request(encode_request_head(method, target, fields), 1)
            assert head is not None, data
            self.assertEqual((head.method, head.target, head.fields), (method, target, fields))
