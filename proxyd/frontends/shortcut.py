"""The short way for the rest of a long body: from socket to socket inside the kernel."""

from __future__ import annotations

from typing import Any, Final

from proxyd.flow import Egress
from proxyd.net.splice import Owner, Transfer
from proxyd.net.transport import READ_SIZE
from proxyd.wire.body import Body

SPLICE_FROM: Final = 32 * 1024
"""Bytes still to come of a body from which the kernel moves them; fewer are cheaper to copy than to hand over."""


def take_shortcut(egress: Egress, source: Any, sink: Any, body: Body, owner: Owner) -> Transfer | None:
    """Let the kernel move the rest of a body, if it is long, of known length, and both ends are plain sockets."""
    if egress.splicer is None or body.left < SPLICE_FROM or not Transfer.possible(source, sink):
        return None
    # What comes behind a body is a head again, and of the body behind that most is to be left to the kernel.
    source.bufferSize = READ_SIZE
    transfer = Transfer(egress.splicer, source, sink, owner, chunk=egress.settings.buffer_size, length=body.left)
    transfer.start()
    return transfer
