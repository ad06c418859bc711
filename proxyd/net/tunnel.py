"""Which way a tunnel's bytes go: through the kernel where both ends are plain sockets, else through us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxyd.net.connection import Connection
from proxyd.net.copy_relay import CopyRelay
from proxyd.net.deadlines import Deadlines
from proxyd.net.relay import Limits, Relay
from proxyd.net.splice import Splicer, plain
from proxyd.net.splice_relay import SpliceRelay


def open_tunnel(
    clock: Any,
    splicer: Splicer | None,
    deadlines: Deadlines,
    client: Connection,
    upstream: Connection,
    limits: Limits,
    ended: Callable[[Relay], None],
    early: bytes = b"",
) -> Relay:
    """Start moving bytes between two connections; ``early`` is what the client sent behind its handshake."""
    if early:
        upstream.transport.write(early)
    relay: Relay
    if splicer is not None and plain(client.transport) and plain(upstream.transport):
        relay = SpliceRelay(splicer, deadlines, client, upstream, limits, ended, len(early))
    else:
        relay = CopyRelay(clock, deadlines, client, upstream, limits, ended, len(early))
    relay.start()
    return relay
