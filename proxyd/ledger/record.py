"""The access record: what is known about one request or tunnel when it has ended."""

from __future__ import annotations

import msgspec


def microseconds(seconds: float) -> float:
    """Seconds with six decimals at most, as the times of a record are."""
    return (seconds * 1e6 + 0.5) // 1 / 1e6  # a quarter of what round(seconds, 6) costs, of which a record has several


class AccessRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """One request or tunnel, from first byte to last; filled in while the flow lives, written once.

    The order of the fields is the order of the keys in a line. What is ``None`` stays out of the line; every
    other field is always in it, zeros too: a default made by a factory does not count as one to msgspec.
    """

    time: float
    """When it began, in Unix seconds."""
    id: str
    listener: str
    protocol: str
    """The value of its ``Door``; empty if the client left before that was known."""
    client: str
    """The address of the client; empty on a Unix socket."""
    client_port: int
    user: str | None = None
    proof: str | None = None
    """How the user was proven: ``basic``, ``socks5`` or ``certificate``."""
    method: str = msgspec.field(default_factory=str)
    destination: str = msgspec.field(default_factory=str)
    """``host:port`` as asked; empty if no request could be read."""
    address: str | None = None
    """``address:port`` that was dialled."""
    decision: str | None = None
    """The value of its ``Verdict``; ``None`` if it never came to one."""
    rule: str | None = None
    status: int | None = None
    """The HTTP status code that the client was sent."""
    reply: int | None = None
    """The SOCKS5 reply code that the client was sent."""
    error: str | None = None
    """The value of its ``ErrorType``."""
    detail: str | None = None
    bytes_from_client: int = msgspec.field(default_factory=int)
    bytes_to_client: int = msgspec.field(default_factory=int)
    duration: float = msgspec.field(default_factory=float)
    """Seconds from the beginning to the end."""
    policy: float | None = None
    dns: float | None = None
    connect: float | None = None
    """How many seconds each of these phases took; ``None`` if it was not reached."""
    first_byte: float | None = None
    """Seconds from the beginning to the first byte that the origin sent."""
    closed_by: str | None = None
    """``client``, ``origin`` or ``proxy``."""
    reused: bool = msgspec.field(default_factory=bool)
    """Whether an upstream connection that was already open carried the request."""
