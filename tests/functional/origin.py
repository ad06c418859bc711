"""An origin on loopback: HTTP and HTTPS, requests kept as they came, and as much of a log service as clients need."""

from __future__ import annotations

import datetime
import email.utils
import hashlib
import json
import re
import ssl
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Condition, Event, Thread
from typing import Any

from proxyd.certificates import SelfSigned

PATIENCE = 30.0
"""Seconds for everything that waits here."""

REQUEST_ID = "62591BC7C08B7BD4AA99FCD4"
INVALID_METHOD = (
    b'{"Error":{"Code":"OLSInvalidMethod","Message":"The script name is invalid : /",'
    b'"RequestId":"62591BC7C08B7BD4AA99FCD4"}}'
)
"""What the log service says to ``GET /``, byte for byte as in its documentation."""

PATTERN = hashlib.shake_256(b"proxyd").digest(65536)
"""What long bodies consist of, again and again."""

Field = tuple[bytes, bytes]


def pattern(size: int) -> bytes:
    """That many bytes which no error would leave as they are."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


@dataclass(frozen=True)
class Received:
    """One request as it reached the origin."""

    head: bytes
    """Everything up to the empty line, which is included."""
    body: bytes
    chunked: bool
    secure: bool
    connection: int
    """Which of the origin's connections it came by, counted from 1."""
    trailers: bytes = b""

    @property
    def method(self) -> bytes:
        """The first word."""
        return self.head.split(b" ", 1)[0]

    @property
    def target(self) -> bytes:
        """The second word."""
        return self.head.split(b" ", 2)[1]

    @property
    def fields(self) -> list[Field]:
        """Names as they came, and values without the blanks around them."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]

    def values(self, name: bytes) -> list[bytes]:
        """The values of all fields of that name, in order."""
        return [value for found, value in self.fields if found.lower() == name.lower()]

    def value(self, name: bytes) -> bytes:
        """The value of the only field of that name."""
        [value] = self.values(name)
        return value


@dataclass(frozen=True)
class Answer:
    """A response; ``pieces`` of a body that is not known as a whole go chunked, or until the end if ``close``."""

    status: str = "200 OK"
    body: bytes = b""
    fields: Sequence[tuple[str, str]] = ()
    pieces: Sequence[bytes] = ()
    trailers: Sequence[tuple[str, str]] = ()
    close: bool = False


@dataclass
class Switch:
    """Something that the test opens, and that requests wait for."""

    arrived: Event = field(default_factory=Event)
    """Set when a request has come and waits."""
    open: Event = field(default_factory=Event)


class Origin:
    """Two servers, for HTTP and HTTPS, that answer alike.

    ``GET /`` gives the log service's `INVALID_METHOD`; ``/bytes/N``, ``/chunked/N`` and ``/close/N`` bodies of N bytes;
    ``/held`` waits for `held`; ``/silent`` never says 100 and ``/refuse`` a final 413 instead; ``/logstores/`` is a
    log service's if one is given, and everything else tells size and digest of the body it got.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], address: str = "127.0.0.1", ports: tuple[int, int] = (0, 0)
    ) -> None:
        self.address = address
        self.received: list[Received] = []
        self.errors: list[BaseException] = []
        self.held = Switch()
        self.log_service: Any = None
        self._changed = Condition()
        self._connections = 0
        made = SelfSigned.make([*names, address], datetime.datetime.now(datetime.UTC))
        self.certificate, key = made.write(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self._servers = [_Server(self, (address, ports[0]), None)]
        try:
            self._servers.append(_Server(self, (address, ports[1]), context))
        except OSError:
            self._servers[0].server_close()
            raise
        self.port, self.secure_port = (server.server_address[1] for server in self._servers)
        for server in self._servers:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Stop; connections end with their clients."""
        self.held.open.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def new_connection(self) -> int:
        """The number of a connection that has just come."""
        with self._changed:
            self._connections += 1
            return self._connections

    def record(self, request: Received) -> None:
        """Keep a request."""
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Received]:
        """The requests, once there are that many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, PATIENCE), self.received
            return list(self.received)

    def answer(self, request: Received) -> Answer:
        """What a request gets."""
        path = request.target.partition(b"?")[0].decode("ascii")
        _, kind, *rest = f"{path}/".split("/")  # the target of OPTIONS may be "*"
        if path == "/":
            return Answer("405 Method Not Allowed", INVALID_METHOD, JSON)
        if kind == "logstores" and self.log_service is not None:
            status, body = self.log_service.put(request)
            return Answer(status, body, JSON)
        if kind == "bytes":
            return Answer(body=pattern(int(rest[0])))
        if kind in ("chunked", "close"):
            data = pattern(int(rest[0]))
            pieces = [data[start : start + 30000] for start in range(0, len(data), 30000)]
            return Answer(pieces=pieces, trailers=[("x-log-digest", digest(data))], close=kind == "close")
        if kind == "held":
            self.held.arrived.set()
            assert self.held.open.wait(PATIENCE)
        told = {"length": len(request.body), "digest": digest(request.body)}
        return Answer(body=json.dumps(told).encode(), fields=JSON)


JSON = (("Content-Type", "application/json"),)


def digest(data: bytes) -> str:
    """What bodies are compared by."""
    return hashlib.sha256(data).hexdigest()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, origin: Origin, address: tuple[str, int], context: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.context = context
        super().__init__(address, _Visit)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A bug of the test, or a promise that proxyd broke; clients may leave when they want."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, (ConnectionError, ssl.SSLError, TimeoutError)):
            self.origin.errors.append(error)


class _Visit(StreamRequestHandler):
    """One connection to the origin."""

    server: _Server
    timeout = PATIENCE
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.number = self.server.origin.new_connection()
        if self.server.context is not None:
            self.request.settimeout(PATIENCE)
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        while (head := self._read_head()) and self._serve(head):
            pass

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:  # the client has left
            pass
        self.request.close()  # TLS has taken the socket away from the server, which would close it

    def _read_head(self) -> bytes:
        lines = []
        for line in iter(self.rfile.readline, b""):
            lines.append(line)
            if line == b"\r\n":
                return b"".join(lines)
        if lines:
            raise AssertionError(f"half a head: {lines!r}")
        return b""

    def _serve(self, head: bytes) -> bool:
        origin = self.server.origin
        chunked, secure = bool(_field(head, b"transfer-encoding")), self.server.context is not None
        request = Received(head, b"", chunked, secure, self.number)
        if _field(head, b"expect"):
            if request.target.startswith(b"/refuse"):
                origin.record(request)
                self._say(Answer("413 Content Too Large", b"too large", close=True), request)
                return False
            if not request.target.startswith(b"/silent"):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = self._read_body(head)
        request = Received(head, body, chunked, secure, self.number, trailers)
        origin.record(request)
        answer = origin.answer(request)
        self._say(answer, request)
        return not answer.close and b"close" not in _field(head, b"connection")

    def _read_body(self, head: bytes) -> tuple[bytes, bytes]:
        if _field(head, b"transfer-encoding"):
            return b"".join(self._read_chunks()), self._read_head()
        return self._exactly(int(_field(head, b"content-length") or b"0")), b""

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self._exactly(size)
            assert self._exactly(2) == b"\r\n"

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionError("the body ended before its time")
        return data

    def _say(self, answer: Answer, request: Received) -> None:
        fields = [
            ("Server", "origin"),
            ("x-log-requestid", REQUEST_ID),
            ("Date", email.utils.formatdate(usegmt=True)),
            *answer.fields,
        ]
        if answer.pieces and not answer.close:
            fields += [("Transfer-Encoding", "chunked"), ("Trailer", ", ".join(name for name, _ in answer.trailers))]
        elif not answer.pieces:
            fields.append(("Content-Length", str(len(answer.body))))
        if answer.close:
            fields.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in fields), "", ""]
        self.wfile.write("\r\n".join(lines).encode("ascii"))
        if request.method == b"HEAD":
            return
        if not answer.pieces:
            self.wfile.write(answer.body)
        elif answer.close:
            self.wfile.writelines(answer.pieces)
        else:
            for piece in answer.pieces:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            trailers = "".join(f"{name}: {value}\r\n" for name, value in answer.trailers)
            self.wfile.write(f"0\r\n{trailers}\r\n".encode("ascii"))


def _field(head: bytes, name: bytes) -> bytes:
    match = re.search(rb"\r\n" + name + rb":[ \t]*([^\r]*)", head, re.IGNORECASE)
    return match[1].strip().lower() if match else b""
