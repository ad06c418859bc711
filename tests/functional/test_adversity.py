"""Clients that leave, origins that break, requests that are no requests: each has one record, and harms nobody else."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from tests.functional.clients import Client, agent_tls, connected
from tests.functional.origin import INVALID_METHOD, pattern
from tests.functional.running import PATIENCE, ProxydTestCase, eventually, free_ports

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: close() is a reset."""


def reset(connection: socket.socket) -> None:
    """Close a connection so that the peer gets a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


class ScriptedOrigin:
    """Reads one request head on each connection, says what it was told to, and closes; politely or by a reset."""

    def __init__(self) -> None:
        self.says = b""
        self.resets = False
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(PATIENCE)
            try:
                data = b""
                while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
                    data += more
                connection.sendall(self.says)
            except OSError:
                pass
            if self.resets:
                reset(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Stop."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class AdversityTestCase(ProxydTestCase):
    """One port for everything, a good origin and a scripted one."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.start_origin()
        self.scripted = ScriptedOrigin()
        self.addCleanup(self.scripted.close)
        self.certificate = self.make_certificate()
        self.ports = free_ports("any")
        self.proxyd = self.start_proxyd(
            f"[listener:any]\nendpoint = tcp:{self.ports['any']}:interface=127.0.0.1\naccept = forward connect socks5\n"
            "detect = yes\ncertificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem\n"
            "[rule:origin]\naction = allow\ndestinations = 127.0.0.1\n"
            f"ports = {self.origin.port} {self.scripted.port}\nspecial_addresses = yes",
            self.ports,
        )

    @contextmanager
    def client(self, tls: bool = False) -> Iterator[Client]:
        """A client of the proxy."""
        with connected(self.ports["any"]) as client:
            if tls:
                client.secure(agent_tls(self.certificate))
            yield client

    def url(self, path: str = "/", port: int = 0) -> bytes:
        """At the good origin, or at another port."""
        return f"http://127.0.0.1:{port or self.origin.port}{path}".encode()

    def assert_serves(self) -> None:
        """Somebody else is served."""
        with self.client() as client:
            self.assertEqual(client.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % self.url()).body, INVALID_METHOD)

    @staticmethod
    def everything(client: Client) -> tuple[bytes, bool]:
        """What comes up to the end, and whether the end was a clean one."""
        said = b""
        try:
            while data := client.line.receive():
                said += data
        except OSError:
            return said, False
        return said, True


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

UNUSABLE = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "another protocol": b"220 mail.example ESMTP\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
    "a status of five digits": b"HTTP/1.1 20000 OK\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "a length that is no number": OK + b"Content-Length: +1\r\n\r\na",
    "a negative length": OK + b"Content-Length: -1\r\n\r\na",
    "length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": OK + b"Transfer-Encoding: snappy, chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": OK + b"Content-Length : 0\r\n\r\n",
    "NUL": OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a bare CR": OK + b"X: a\rSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "an endless head": OK + b"X: " + b"x" * 200_000,
    "endless fields": OK + b"X: x\r\n" * 20_000,
    "101, for which nobody asked": b"HTTP/1.1 101 \r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
    "hints and nothing else": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
}
"""What origins say that is no response: RFC 9112 §6.3 and §8, RFC 9110 §15.2. The client gets 502."""

INCOMPLETE = {
    "half a body": OK + b"Content-Length: 100\r\n\r\nhalf",
    "half of a long body": OK + b"Content-Length: 1000000\r\n\r\n" + b"x" * 400_000,
    "half a chunk": CHUNKED + b"ff\r\nhalf",
    "no last chunk": CHUNKED + b"4\r\nhalf\r\n",
    "a chunk size that is no number": CHUNKED + b"4\r\nhalf\r\n0x4\r\nhalf\r\n0\r\n\r\n",
    "no CRLF behind a chunk": CHUNKED + b"4\r\nhalfhalf\r\n0\r\n\r\n",
    "half of the trailers": CHUNKED + b"4\r\nhalf\r\n0\r\nX: y",
}
"""Responses that end before their time. The client can tell, whatever it was sent: RFC 9112 §8."""

ODD = {
    "204 with a body": (b"HTTP/1.1 204 No Content\r\n\r\nbody", 204, b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
    "more than its length": (OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 3\r\n\r\nbad", 200, b"ok"),
    "no reason": (b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "hints before": (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok", 200, b"ok"),
    "the same length twice": (OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", None, b""),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
}
"""Responses that are odd but sound: what is behind them reaches nobody. RFC 9112 §6.3 leaves one to us."""


class OriginTests(AdversityTestCase):
    """Origins that break."""

    def exchange(self, says: bytes, tls: bool) -> tuple[bytes, bool]:
        """All that a client gets when the origin says that."""
        self.scripted.says = says
        with self.client(tls) as client:
            url = self.url(port=self.scripted.port)
            client.send(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % url)
            return self.everything(client)

    def test_unusable(self) -> None:
        """What is no response is a 502, and nothing of it reaches the client."""
        count = 0
        for (what, says), resets in itertools.product(UNUSABLE.items(), (False, True)):
            self.scripted.resets = resets
            answer, _ = self.exchange(says, tls=False)
            count += 1

            if b"Early Hints" in says:
                answer = answer.partition(b"\r\n\r\n")[2]
            self.assertTrue(answer.startswith(b"HTTP/1.1 502 "), f"{what} {resets} {answer[:100]!r}")
        self.assert_serves()
        records = self.proxyd.all_records()
        self.assertEqual(len(records), count + 1)
        self.assertEqual({record["status"] for record in records[:-1]}, {502})
        self.assertNotIn(None, {record.get("error") for record in records[:-1]})

    def test_incomplete(self) -> None:
        """A response that is cut is never made to look complete, with TLS to the proxy as without."""
        count = 0
        for (what, says), resets, tls in itertools.product(INCOMPLETE.items(), (False, True), (False, True)):
            self.scripted.resets = resets
            answer, clean = self.exchange(says, tls)
            count += 1

            head, _, body = answer.partition(b"\r\n\r\n")
            told = f"{what} {resets} {tls} {clean} {answer[:200]!r}"
            if b"Content-Length: 1000000" in head:
                self.assertLess(len(body), 1_000_000, told)
            elif b"Content-Length: 100" in head:
                self.assertLess(len(body), 100, told)
            elif b"chunked" in head:
                self.assertFalse(body.endswith(b"0\r\n\r\n"), told)
            else:
                self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 502 "), told)
        self.assert_serves()
        records = self.proxyd.all_records()
        self.assertEqual(len(records), count + 1)
        self.assertNotIn(None, {record.get("error") for record in records[:-1]})

    def test_odd(self) -> None:
        """A response that is odd but sound is passed on alone: what stands behind it is nobody's answer."""
        for (what, (says, status, body)), tls in itertools.product(ODD.items(), (False, True)):
            self.scripted.says = says
            with self.client(tls) as client:
                client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % self.url(port=self.scripted.port))
                client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % self.url())
                first = client.read_response(bodiless=status in (204, 304))
                if first.status == 103:
                    first = client.read_response()
                second = client.read_response()

            self.assertIn(first.status, (status,) if status else (200, 502), what)
            if status:
                self.assertEqual(first.body, body, what)
            self.assertEqual(second.body, INVALID_METHOD, what)

    def test_tunnels(self) -> None:
        """In a tunnel what an origin says reaches the client up to its last byte, a reset as one."""
        self.scripted.says = pattern(300_000)
        for tls, resets in itertools.product((False, True), (False, True)):
            self.scripted.resets = resets
            with self.client(tls) as client:
                authority = b"127.0.0.1:%d" % self.scripted.port
                client.send(b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % authority)
                client.read_head()
                client.send(b"hello\r\n\r\n")
                answer, clean = self.everything(client)

            if not resets:
                self.assertEqual((len(answer), clean), (300_000, True))
            else:
                self.assertFalse(clean and len(answer) < 300_000)
        self.assertEqual(len(self.proxyd.all_records()), 4)


AMBIGUOUS = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a list of lengths": b"Content-Length: 5, 6\r\n\r\nhello!",
    "a signed length": b"Content-Length: +5\r\n\r\nhello",
    "a length with an underscore": b"Content-Length: 1_0\r\n\r\nhellohello",
    "a coding that is not chunked": b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, but not last": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a hidden coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Content-Length : 5\r\n\r\nhello",
    "a folded line": b"X: a\r\n b\r\n\r\n",
    "a bare LF": b"X: a\nContent-Length: 5\r\n\r\nhello",
    "a bare CR": b"X: a\rb\r\n\r\n",
    "NUL": b"X: a\0b\r\n\r\n",
    "no name": b": a\r\n\r\n",
    "no colon": b"X\r\n\r\n",
    "a bad name": b"X(: a\r\n\r\n",
}
"""Fields after which nobody knows where the request ends; each is refused: RFC 9112 §2.2, §5, §6.3."""

BAD_CHUNKS = (
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"\r\n\r\n",
)


class RequestTests(AdversityTestCase):
    """Requests that are no requests."""

    def test_ambiguous(self) -> None:
        """A request whose end is not certain is a 400, the connection is closed, and the origin hears of nothing."""
        for what, fields in AMBIGUOUS.items():
            smuggled = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % self.url("/smuggled")
            with self.client() as client:
                client.send(b"POST %b HTTP/1.1\r\nHost: x\r\n" % self.url("/upload") + fields + smuggled)
                answer, _ = self.everything(client)

            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), f"{what} {answer[:100]!r}")
            self.assertEqual(answer.count(b"HTTP/1.1 "), 1, f"{what} {answer!r}")
        self.assertEqual(self.origin.received, [])
        self.assertEqual(len(self.proxyd.all_records()), len(AMBIGUOUS))

    def test_bad_chunks(self) -> None:
        """A body that stops being chunked is a 400, and no request to the origin is ever complete."""
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % self.url("/upload")
        for chunks in BAD_CHUNKS:
            with self.client() as client:
                client.send(head + chunks)
                answer, _ = self.everything(client)

            self.assertTrue(answer.startswith(b"HTTP/1.1 400 "), f"{chunks!r} {answer[:100]!r}")
        self.assertEqual(self.origin.received, [])

    def test_junk(self) -> None:
        """Bytes that mean nothing are refused or ignored; others are served as before."""
        for first, size in itertools.product(range(0, 256, 5), (0, 1, 200)):
            with self.client() as client:
                client.send(bytes([first]) + pattern(200)[:size])
                client.finish()
                self.everything(client)
        self.assert_serves()


class ClientTests(AdversityTestCase):
    """Clients that leave, at any moment."""

    def test_leaving(self) -> None:
        """However and whenever clients leave there is one record for each request, and nothing stays open."""
        self.assert_serves()
        before = len(self.proxyd.descriptors())
        count = 1
        for begin, tls, leave in itertools.product(self.beginnings(), (False, True), (reset, socket.socket.close)):
            with self.client(tls) as client:
                begin(client)
                leave(client.plain.socket)
            count += 1
        self.origin.held.open.set()

        records = self.proxyd.records(count)
        eventually(lambda: len(self.proxyd.descriptors()) <= before, lambda: f"{before} descriptors again")
        self.assert_serves()
        self.assertEqual(len(self.proxyd.all_records()), count + 1)
        self.assertEqual(len({record["id"] for record in records}), count)

    def beginnings(self) -> Iterator[Callable[[Client], None]]:
        """What clients do before they leave."""
        authority = b"127.0.0.1:%d" % self.origin.port
        get = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
        post = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" % self.url("/upload")
        chunked = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % self.url("/upload")
        connect = b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n" % authority
        socks = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + self.origin.port.to_bytes(2, "big")

        def says(*data: bytes, reads: int = 0) -> Callable[[Client], None]:
            def begin(client: Client) -> None:
                client.send(data[0])
                if reads:
                    client.read(reads)
                for more in data[1:]:
                    client.send(more)

            return begin

        yield says(get % self.url("/held"))
        yield says(get % self.url("/bytes/30000000"), reads=1000)
        yield says(get % self.url("/chunked/3000000"), reads=1000)
        yield says(get % self.url("/close/3000000"), reads=1000)
        yield says(post)
        yield says(post + pattern(500_000))
        yield says(post.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), reads=25)
        yield says(chunked + b"ffff\r\nhalf")
        yield says(get % self.url(port=1))
        yield says(connect)
        yield says(connect, get % b"/bytes/30000000", reads=39)
        yield says(connect, post.replace(self.url("/upload"), b"/upload") + pattern(100_000), reads=39)
        yield says(socks)
        yield says(socks, get % b"/bytes/30000000", reads=12)

    def test_leaving_early(self) -> None:
        """Who leaves before asking for anything has no record, but for what was wrong already."""
        for begin in (b"", b"\x16\x03\x01", b"\x05", b"\x05\x01", b"GET ", b"CONNECT x:1 HTTP/1.1\r\n"):
            for leave in (reset, socket.socket.close):
                with self.client() as client:
                    client.send(begin)
                    leave(client.plain.socket)
        self.assert_serves()
        self.assertEqual(self.proxyd.all_records()[-1]["status"], 405)


class CountingTests(AdversityTestCase):
    """Bytes in the record."""

    def test_tunnel(self) -> None:
        """A tunnel's record has the bytes that client and origin said in it, and not those of its beginning."""
        for tls, size in itertools.product((False, True), (0, 100, 3_000_000)):
            with self.client(tls) as client:
                client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % self.origin.port)
                client.read_head()
                request = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + pattern(size)
                response = client.ask(request)
                self.assertEqual(response.status, 200)
            record = self.records_so_far()[-1]
            self.assertEqual(record["bytes_from_client"], len(request), f"{tls} {size}")
            self.assertEqual(record["bytes_to_client"], len(response.head + response.body), f"{tls} {size}")

    def test_forward(self) -> None:
        """A request's record has the bytes of its head and body, and those of the response as the origin sent it."""
        for tls, size in itertools.product((False, True), (0, 100, 3_000_000)):
            with self.client(tls) as client:
                url = self.url("/upload")
                request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (url, size) + pattern(size)
                response = client.ask(request)
            record = self.records_so_far()[-1]
            [via] = response.values(b"via")
            sent = len(response.head + response.body) - len(b"Via: %b\r\n" % via)
            self.assertEqual(record["bytes_from_client"], len(request), f"{tls} {size}")
            self.assertEqual(record["bytes_to_client"], sent, f"{tls} {size}")

    def records_so_far(self) -> list[dict[str, object]]:
        """The records, with that of the last client."""
        self.asked = getattr(self, "asked", 0) + 1
        return self.proxyd.records(self.asked)
