"""Post to an origin that reads nothing, through each door of proxyd, and tell how much the proxy holds meanwhile.

What it holds are the growth of its memory and the bytes in its pipes. What the kernel keeps in the buffers of sockets
is bounded by the system (net.ipv4.tcp_rmem, tcp_wmem) and not counted. The bound is the option buffer_size, in the one
direction that is used, and an allowance for all that a connection is besides.
"""

from __future__ import annotations

import base64
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import options
from benchmarks.doors import Door
from benchmarks.field import Field, prepared
from benchmarks.load import LoadError
from benchmarks.measure import in_pipes, memory
from benchmarks.options import prepare_process
from benchmarks.program import ProgramError
from benchmarks.proxies import PASSWORD, PROXYD, USER, Proxy, Setup
from benchmarks.report import aligned
from proxyd.settings import Settings

POSTS = 22
"""As many as an agent has in flight."""
BODY = 8 * 1024 * 1024
BUFFER = Settings().buffer_size
ORIGIN_BUFFER = 64 * 1024
ALLOWANCE = 64 * 1024
"""Objects, TLS, and the allocator's rounding, for each post."""

STALLED = 1.0
"""Seconds without a byte taken after which nothing more will be."""
LIMIT = 30.0
LOOK_AGAIN = 0.02
PIECE = bytes(256 * 1024)
PATIENCE = 10.0

HEAD = ("door", "posts", "taken MiB", "memory MiB", "in pipes MiB", "bound MiB", "")


@dataclass
class Post:
    """One request with a long body, and how much of it the proxy has taken."""

    connection: socket.socket
    taken: int = 0

    def send(self) -> bool:
        """Send what can be sent at once; whether there was anything."""
        before = self.taken
        try:
            while self.taken < BODY:
                self.taken += self.connection.send(PIECE[: BODY - self.taken])
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        return self.taken > before


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was held at a time, in bytes."""

    memory: int
    pipes: int

    @property
    def held(self) -> int:
        """Both together."""
        return self.memory + self.pipes


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each door; the exit status is 1 if one holds more than the bound."""
    parser = options.parser("stalled.py", __doc__)
    parser.add_argument("--posts", type=int, default=POSTS, help="at the same time (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    prepare_process()
    try:
        with prepared() as field:
            lines = [stall(field, door, chosen.posts) for door in chosen.doors]
    except (LoadError, ProgramError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(aligned([HEAD, *lines], left=1) + "\n")
    return int(any(line[-1] != "within" for line in lines))


def stall(field: Field, door: Door, count: int) -> tuple[str, ...]:
    """One line of the table, from a proxy that has served nothing else."""
    with ExitStack() as stack:
        origin = stack.enter_context(stalled_origin(count))
        proxy = stack.enter_context(field.setup(Setup(also=(origin.getsockname()[1],)), PROXYD))
        before = memory(proxy.program.pid)
        posts = [Post(stack.enter_context(connected(proxy, door, origin.getsockname()[1]))) for _ in range(count)]
        peak = watched(proxy.program.pid, posts, before)
    bound = count * (BUFFER + ALLOWANCE)
    taken = sum(post.taken for post in posts)
    verdict = "within" if peak.held <= bound else "BEYOND"
    return (
        str(door),
        str(count),
        *(f"{size / 2**20:.1f}" for size in (taken, peak.memory, peak.pipes, bound)),
        verdict,
    )


def stalled_origin(connections: int) -> socket.socket:
    """So many connections are made by the kernel, and nobody ever accepts them. It takes little for each."""
    origin = socket.socket()
    origin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ORIGIN_BUFFER)
    origin.bind(("127.0.0.1", 0))
    origin.listen(2 * connections)
    return origin


def watched(pid: int, posts: Sequence[Post], before: int) -> Peak:
    """Send until nothing more is taken."""
    peak = Peak(0, 0)
    start = progress = time.monotonic()
    while (now := time.monotonic()) - progress < STALLED and now - start < LIMIT:
        if any([post.send() for post in posts]):
            progress = now
        peak = max(peak, Peak(memory(pid) - before, in_pipes(pid)), key=lambda each: each.held)
        time.sleep(LOOK_AGAIN)
    return peak


def connected(proxy: Proxy, door: Door, origin: int) -> socket.socket:
    """A connection through a door on which a request's head has been sent; it does not block any more."""
    connection = socket.create_connection(("127.0.0.1", proxy.ports[door]), PATIENCE)
    if door.tls:
        unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        connection = unchecked.wrap_socket(connection)
    place = f"127.0.0.1:{origin}"
    credentials = f"Proxy-Authorization: Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}\r\n"
    if door.kind == "connect":
        connection.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{credentials}\r\n".encode())
        expect(connection, b"HTTP/1.1 200", b"\r\n\r\n")
    elif door.kind == "socks5":
        log_in(connection, origin)
    url = f"http://{place}/0" if door.kind == "forward" else "/0"
    fields = f"Host: {place}\r\nContent-Length: {BODY}\r\n{credentials if door.kind == 'forward' else ''}"
    connection.sendall(f"POST {url} HTTP/1.1\r\n{fields}\r\n".encode())
    connection.setblocking(False)
    return connection


def log_in(connection: socket.socket, origin: int) -> None:
    """Authenticate and connect (RFC 1928, RFC 1929)."""
    connection.sendall(b"\x05\x01\x02")
    expect(connection, b"\x05\x02", b"")
    name, password = USER.encode(), PASSWORD.encode()
    connection.sendall(b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password)
    expect(connection, b"\x01\x00", b"")
    connection.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + origin.to_bytes(2, "big"))
    expect(connection, b"\x05\x00\x00\x01", b"")


def expect(connection: socket.socket, start: bytes, end: bytes) -> None:
    """Receive an answer that begins and ends like this.

    Raises:
        LoadError: it does not.
    """
    answer = connection.recv(4096)  # on loopback it comes at once, or not at all
    if not answer.startswith(start) or not answer.endswith(end):
        raise LoadError(f"the proxy said {answer!r}")


if __name__ == "__main__":
    sys.exit(main())
