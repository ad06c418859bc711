"""Which addresses are this machine's own."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import IPAddress

REMEMBERED = 30.0
"""Seconds for which an answer holds: interfaces come and go."""

MOST_REMEMBERED = 4096
"""Answers kept; each is a few hundred bytes."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class OwnAddresses:
    """Asks the kernel's routing table whether an address is local: a request to it would come back to this machine."""

    def __init__(self, clock: IReactorTime, make_socket: Callable[[int, int], socket.socket] = socket.socket) -> None:
        self._clock = clock
        self._make_socket = make_socket
        self._known: dict[IPAddress, tuple[float, bool]] = {}

    def __call__(self, address: IPAddress, port: int) -> bool:
        """Whether the address is one of this machine's interfaces, whatever the port.

        While the kernel cannot be asked, the last answer holds.

        Raises:
            ProxyError: ``connection_limit_reached``, as descriptors have run out and there is no last answer.
        """
        now = self._clock.seconds()
        known = self._known.get(address)
        if known is not None and now < known[0]:
            return known[1]
        try:
            own = self._is_local(address)
        except OSError:
            if known is not None:
                return known[1]
            raise ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "no more sockets can be opened") from None
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[address] = now + REMEMBERED, own
        return own

    def _is_local(self, address: IPAddress) -> bool:
        """Whether the kernel would answer the address itself: then it is its own source. No packet is sent."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            with self._make_socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((str(address), 9))
                return bool(probe.getsockname()[0] == str(address))
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            return False  # no route, no such family: not ours
