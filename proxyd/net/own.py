"""Which addresses are this machine's own."""

from __future__ import annotations

import socket

from twisted.internet.interfaces import IReactorTime

from proxyd.request import IPAddress

REMEMBERED = 30.0
"""Seconds for which an answer holds: interfaces come and go."""

MOST_REMEMBERED = 4096
"""Answers kept; each is a few hundred bytes."""


class OwnAddresses:
    """Asks the kernel's routing table whether an address is local: a request to it would come back to this machine."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._known: dict[IPAddress, tuple[float, bool]] = {}

    def __call__(self, address: IPAddress, port: int) -> bool:
        """Whether the address is one of this machine's interfaces, whatever the port."""
        now = self._clock.seconds()
        known = self._known.get(address)
        if known is not None and now < known[0]:
            return known[1]
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        own = is_local(address)
        self._known[address] = now + REMEMBERED, own
        return own


def is_local(address: IPAddress) -> bool:
    """Whether the kernel would answer the address itself: then it is its own source. No packet is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return bool(probe.getsockname()[0] == str(address))
    except OSError:  # no route, no such family: not ours
        return False
