"""The ways into a proxy that are measured."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("forward", "connect", "socks5")


@dataclass(frozen=True, slots=True)
class Door:
    """A protocol that clients speak to the proxy, in the clear or inside TLS."""

    kind: str
    """One of `KINDS`, or ``direct`` for no proxy at all."""
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.kind}+tls" if self.tls else self.kind

    @property
    def listener(self) -> str:
        """The port it is behind: forward requests and CONNECT share one."""
        kind = "socks5" if self.kind == "socks5" else "http"
        return f"{kind}-tls" if self.tls else kind


DIRECT = Door("direct")
PLAIN = tuple(Door(kind) for kind in KINDS)
TLS = tuple(Door(kind, tls=True) for kind in KINDS)
ALL = PLAIN + TLS
TUNNELS = tuple(door for door in ALL if door.kind != "forward")
FORWARD = tuple(door for door in ALL if door.kind == "forward")
