"""However much passes through, and however slowly it is read, the proxy's memory stays as it is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from tests.functional.clients import Client, Line, agent_tls, connected
from tests.functional.origin import PATTERN
from tests.functional.running import PATIENCE, ProxydTestCase, eventually, free_ports

MIB = 1024 * 1024
SIZE = 256 * MIB
"""What passes in each direction of each door, but one."""
LARGE = 1024 * MIB
"""What passes in that one."""

GROWTH = 16 * MIB
"""By how much the resident memory may grow at its peak."""
HELD = 96 * MIB
"""How much may be on its way while nobody reads, the buffers of the kernel's four sockets included."""

STALLED = 0.3
"""Seconds without progress after which a sender counts as stalled."""

_THRICE = PATTERN * 3


class Sender(Thread):
    """Sends so much of the pattern by a line; ``sent`` tells how far it is."""

    def __init__(self, line: Line, size: int, *, chunked: bool = False) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.error: Exception | None = None
        self._line = line
        self._size = size
        self._chunked = chunked

    def run(self) -> None:
        piece = b"%x\r\n%b\r\n" % (len(PATTERN), PATTERN) if self._chunked else PATTERN
        try:
            while self.sent < self._size:
                self._line.send(piece)
                self.sent += len(PATTERN)
            if self._chunked:
                self._line.send(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 - the test's thread will raise it
            self.error = error

    def wait_until_stalled(self) -> None:
        """Return when it has begun, and makes no more progress."""
        seen, since = -1, time.monotonic()

        def stalled() -> bool:
            nonlocal seen, since
            if self.sent != seen:
                seen, since = self.sent, time.monotonic()
            return (seen > 0 and time.monotonic() - since > STALLED) or not self.is_alive()

        eventually(stalled, lambda: "the sender stalls")


class Reader:
    """Checks that what comes by a line is the pattern."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._at = 0

    def read(self, size: int) -> None:
        """So much of it, as it comes."""
        end = self._at + size
        while self._at < end:
            self._check(self._client.read_some(end - self._at))

    def read_chunks(self) -> int:
        """A chunked body; its length."""
        while length := int(self._client.read_line(), 16):
            self.read(length)
            assert self._client.read(2) == b"\r\n"
        assert self._client.read(2) == b"\r\n"
        return self._at

    def _check(self, data: bytes) -> None:
        place = self._at % len(PATTERN)
        while data:
            expected = _THRICE[place : place + min(len(data), len(PATTERN))]
            assert data[: len(expected)] == expected, f"other bytes behind {self._at}"
            self._at += len(expected)
            data = data[len(expected) :]


class MemoryTests(ProxydTestCase):
    """One direction of one door each: a sender that sends as fast as it can, a reader that does not read at first."""

    def setUp(self) -> None:
        super().setUp()
        self.certificate = self.make_certificate()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.listener.settimeout(PATIENCE)
        self.port = self.listener.getsockname()[1]
        ports = free_ports("any")
        self.proxyd = self.start_proxyd(
            f"[listener:any]\nendpoint = tcp:{ports['any']}:interface=127.0.0.1\naccept = forward connect socks5\n"
            "detect = yes\ncertificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem\n"
            f"[rule:origin]\naction = allow\ndestinations = 127.0.0.1\nports = {self.port}\nspecial_addresses = yes",
            ports,
        )
        self.proxy_port = ports["any"]

    # -- both ends ----------------------------------------------------------------------------------------------------

    @contextmanager
    def client(self, tls: bool) -> Iterator[Client]:
        """A client of the proxy."""
        with connected(self.proxy_port) as client:
            if tls:
                client.secure(agent_tls(self.certificate))
            yield client

    @contextmanager
    def origin(self) -> Iterator[Client]:
        """The origin's side of the connection that proxyd has made."""
        accepted, _ = self.listener.accept()
        end = Client(accepted)
        try:
            yield end
        finally:
            end.close()

    @contextmanager
    def forwarded(self, tls: bool, head: bytes) -> Iterator[tuple[Client, Client]]:
        """Both ends of a forward request, of which the origin has read the head."""
        with self.client(tls) as client:
            client.send(head.replace(b" /", b" http://127.0.0.1:%d/" % self.port, 1))
            with self.origin() as origin:
                origin.read_head()
                yield client, origin

    @contextmanager
    def connected(self, tls: bool) -> Iterator[tuple[Client, Client]]:
        """Both ends of a CONNECT tunnel."""
        with self.client(tls) as client:
            client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % self.port)
            with self.origin() as origin:
                client.read_head()
                yield client, origin

    @contextmanager
    def by_socks(self, tls: bool) -> Iterator[tuple[Client, Client]]:
        """Both ends of a SOCKS5 tunnel."""
        with self.client(tls) as client:
            client.send(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + self.port.to_bytes(2, "big"))
            with self.origin() as origin:
                self.assertEqual(client.read(12)[:4], b"\x05\x00\x05\x00")
                yield client, origin

    # -- what is measured ---------------------------------------------------------------------------------------

    def pass_on(self, sender: Sender, read: Callable[[], object]) -> None:
        """Send, wait until that stalls, read everything; the peak of the resident memory stays where it was."""
        Path(f"/proc/{self.proxyd.process.pid}/clear_refs").write_text("5")  # the peak is the present value now
        before = self.proxyd.status("VmHWM")

        sender.start()
        sender.wait_until_stalled()
        self.assertLess(sender.sent, HELD)
        read()

        sender.join(PATIENCE)
        self.assertIsNone(sender.error)
        growth = (self.proxyd.status("VmHWM") - before) * 1024
        self.assertLess(growth, GROWTH)

    def pass_both_ways(self, client: Client, origin: Client, size: int = SIZE) -> None:
        """Through a tunnel: up, then down."""
        for source, sink in ((client, origin), (origin, client)):
            reader = Reader(sink)
            self.pass_on(Sender(source.line, size), lambda reader=reader: reader.read(size))

    def upload(self, tls: bool) -> None:
        """A body of known length to the origin."""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE
        with self.forwarded(tls, head) as (client, origin):
            self.pass_on(Sender(client.line, SIZE), lambda: Reader(origin).read(SIZE))
            origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            self.assertEqual(client.read_response().status, 200)

    def download(self, tls: bool) -> None:
        """A body of known length to the client."""
        with self.forwarded(tls, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as (client, origin):
            origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            client.read_head()
            self.pass_on(Sender(origin.line, SIZE), lambda: Reader(client).read(SIZE))

    # -- tests --------------------------------------------------------------------------------------------------

    def test_forward_upload(self) -> None:
        """A request body."""
        self.upload(tls=False)

    def test_forward_upload_by_tls(self) -> None:
        """A request body by TLS to the proxy."""
        self.upload(tls=True)

    def test_forward_chunked_upload(self) -> None:
        """A chunked request body."""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        with self.forwarded(False, head) as (client, origin):
            reader = Reader(origin)
            self.pass_on(Sender(client.line, SIZE, chunked=True), lambda: self.assertEqual(reader.read_chunks(), SIZE))

    def test_forward_download(self) -> None:
        """A response body."""
        self.download(tls=False)

    def test_forward_download_by_tls(self) -> None:
        """A response body by TLS to the proxy."""
        self.download(tls=True)

    def test_forward_chunked_download(self) -> None:
        """A chunked response body."""
        with self.forwarded(False, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as (client, origin):
            origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.read_head()
            reader = Reader(client)
            self.pass_on(Sender(origin.line, SIZE, chunked=True), lambda: self.assertEqual(reader.read_chunks(), SIZE))

    def test_forward_download_until_close(self) -> None:
        """A response body without a length."""
        with self.forwarded(False, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as (client, origin):
            origin.send(b"HTTP/1.1 200 OK\r\n\r\n")
            client.read_head()
            reader = Reader(client)

            def send_and_close() -> None:
                Sender.run(sender)
                origin.finish()

            sender = Sender(origin.line, SIZE)
            sender.run = send_and_close  # type: ignore[method-assign]
            self.pass_on(sender, lambda: self.assertEqual(reader.read_chunks(), SIZE))

    def test_connect(self) -> None:
        """A CONNECT tunnel, with the largest amount."""
        with self.connected(tls=False) as (client, origin):
            self.pass_both_ways(client, origin, LARGE)

    def test_connect_by_tls(self) -> None:
        """A CONNECT tunnel by TLS to the proxy."""
        with self.connected(tls=True) as (client, origin):
            self.pass_both_ways(client, origin)

    def test_socks5(self) -> None:
        """A SOCKS5 tunnel."""
        with self.by_socks(tls=False) as (client, origin):
            self.pass_both_ways(client, origin)

    def test_socks5_by_tls(self) -> None:
        """A SOCKS5 tunnel by TLS to the proxy."""
        with self.by_socks(tls=True) as (client, origin):
            self.pass_both_ways(client, origin)

    def test_early_data(self) -> None:
        """What a client sends before its tunnel is open, or behind a request that is not answered yet, is not kept."""
        head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        with self.forwarded(False, head) as (client, _):
            sender = Sender(client.line, SIZE)
            Path(f"/proc/{self.proxyd.process.pid}/clear_refs").write_text("5")
            before = self.proxyd.status("VmHWM")
            sender.start()
            sender.wait_until_stalled()
            self.assertLess(sender.sent, HELD)
            self.assertLess((self.proxyd.status("VmHWM") - before) * 1024, GROWTH)
        sender.join(PATIENCE)
