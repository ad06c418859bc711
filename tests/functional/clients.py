"""Raw clients: bytes as an agent sends them, layer by layer, and no more read than what is there to be read."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PATIENCE = 30.0
"""Seconds for each wait of a client."""

READ = 65536


class Line(Protocol):
    """Something that carries bytes both ways."""

    def send(self, data: bytes) -> None:
        """Send all of it."""

    def receive(self) -> bytes:
        """What has come, at least one byte; none at the end."""

    def finish(self) -> None:
        """Say that no more will be sent."""


class Plain:
    """A TCP connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def receive(self) -> bytes:
        """What has come, at least one byte; none at the end."""
        return self.socket.recv(READ)

    def finish(self) -> None:
        """Say FIN."""
        self.socket.shutdown(socket.SHUT_WR)


class Secure:
    """TLS over a line, which may be TLS itself."""

    def __init__(self, line: Line, context: ssl.SSLContext, host: str) -> None:
        self._line = line
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        while not self._shake_hands():
            pass
        self._flush()

    def _shake_hands(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            self._fill()
            return False
        return True

    def _flush(self) -> None:
        if self._out.pending:
            self._line.send(self._out.read())

    def _fill(self) -> None:
        data = self._line.receive()
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        self._flush()

    def receive(self) -> bytes:
        """What has come, at least one byte; none at the end, which has to be said by TLS."""
        while True:
            try:
                return self.tls.read(READ)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def finish(self) -> None:
        """Say close_notify."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()


@dataclass(frozen=True)
class Response:
    """What an HTTP client got."""

    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        """The code."""
        return int(self.head.split(b" ", 2)[1])

    @property
    def line(self) -> bytes:
        """The first line."""
        return self.head.partition(b"\r\n")[0]

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name."""
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [value.strip() for found, _, value in lines if found.lower() == name.lower()]


class Client:
    """One connection, and what was read of it too early."""

    def __init__(self, connection: socket.socket) -> None:
        self.plain = Plain(connection)
        self.line: Line = self.plain
        self._unread = b""

    def secure(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> ssl.SSLObject:
        """Speak TLS from here on, inside of what is spoken already; what TLS agreed on."""
        assert not self._unread, self._unread
        layer = Secure(self.line, context, host)
        self.line = layer
        return layer.tls

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.line.send(data)

    def finish(self) -> None:
        """Send no more."""
        self.line.finish()

    def close(self) -> None:
        """Leave."""
        self.plain.socket.close()

    def read(self, size: int) -> bytes:
        """Exactly that many bytes."""
        while len(self._unread) < size:
            self._more()
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def read_some(self, size: int) -> bytes:
        """What has come, but no more than that."""
        if not self._unread:
            self._more()
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    def read_line(self) -> bytes:
        """Up to CRLF, which is left out."""
        return self._read_until(b"\r\n")[:-2]

    def read_head(self) -> bytes:
        """Up to the empty line, which is included."""
        return self._read_until(b"\r\n\r\n")

    def _read_until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            self._more()
        end = self._unread.index(mark) + len(mark)
        data, self._unread = self._unread[:end], self._unread[end:]
        return data

    def read_all(self) -> bytes:
        """Up to the end, which must not be a reset."""
        while data := self.line.receive():
            self._unread += data
        data, self._unread = self._unread, b""
        return data

    def read_response(self, *, bodiless: bool = False) -> Response:
        """A response of known length."""
        response = Response(self.read_head(), b"")
        if bodiless or response.status < 200:
            return response
        [length] = response.values(b"content-length")
        return Response(response.head, self.read(int(length)))

    def ask(self, request: bytes) -> Response:
        """Send a request, read its response."""
        self.send(request)
        return self.read_response()

    def _more(self) -> None:
        data = self.line.receive()
        if not data:
            raise EOFError(f"the end came after {self._unread!r}")
        self._unread += data


@contextmanager
def connected(port: int, *, host: str = "127.0.0.1", source: str = "") -> Iterator[Client]:
    """A client that is closed afterwards."""
    client = Client(socket.create_connection((host, port), PATIENCE, (source, 0) if source else None))
    try:
        yield client
    finally:
        client.close()


def agent_tls(*authorities: Path) -> ssl.SSLContext:
    """What the agent's OpenSSL 1.0.2 can do: TLS 1.2, AES-GCM, P-256, no ALPN; no SNI either for a proxy's address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        context.load_verify_locations(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    context.set_ecdh_curve("prime256v1")
    return context
