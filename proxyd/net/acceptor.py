"""Clients taken from a listening socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from proxyd.net.readiness import Readiness, Watch

MOST_ACCEPTS = 32
"""Clients taken for one readiness event; the others wait in the kernel while those that are here are served."""

MOST_SHARED_ACCEPTS = 4
"""The same where several workers share the socket: what one leaves in the kernel, another can take. Of 200 clients at
once one of two workers got up to 189 with the number above, and 60 to 140 with this one, at no more cost for each."""

NO_DESCRIPTOR_PAUSE = 0.1
"""Seconds until the next look for a descriptor when not even the spare one could be had again."""


class Acceptor:
    """Accepts for a port whose socket it shares: ``accepted`` gets each new socket, non-blocking, and its peer's name.

    The socket is its own, to be closed if it fails.
    ``most`` are taken for one readiness event; the others wait in the kernel while those that are here are served.
    """

    def __init__(
        self,
        readiness: Readiness,
        listening: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        most: int = MOST_ACCEPTS,
    ) -> None:
        self._socket = listening
        self._accepted = accepted
        self._most = most
        self._readiness = readiness
        self._spare = -1
        self._pause: IDelayedCall | None = None
        self._watch = Watch(readiness, listening.fileno(), self._broken)
        self._keep_spare()

    def _accept(self) -> None:
        for _ in range(self._most):
            try:
                sock, peer = self._socket.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:
                self._turn_away()
                return
            sock.setblocking(False)
            self._accepted(sock, peer)

    def _turn_away(self) -> None:
        """Descriptors have run out: a spare one serves to accept the client and close it, else we would be called for
        it without end."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        try:
            self._socket.accept()[0].close()
        except OSError:
            pass  # it has gone by itself
        self._keep_spare()

    def _keep_spare(self) -> None:
        """Open a spare descriptor. While there is none clients wait in the kernel, and we look again after a pause."""
        self._pause = None
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._watch.read = None
            self._pause = self._readiness.reactor.callLater(NO_DESCRIPTOR_PAUSE, self._keep_spare)
        else:
            self._watch.read = self._accept
        self._watch.apply()

    def _broken(self, failure: Failure | None) -> None:
        """The code that takes clients failed for one of them, and has closed it; the next may fare better."""

    def stop(self) -> None:
        """Accept no more; to be called before the socket is closed."""
        self._watch.close()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
