"""The bound listeners of a proxy, and how a reload changes them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.python.failure import Failure

from proxyd.config import Config
from proxyd.entrance import Entrance
from proxyd.equipment import Equipment
from proxyd.net.tls import TLSContext
from proxyd.settings import Listener


class ListenError(Exception):
    """A listener cannot be opened; the message names it, its endpoint and the reason."""


@dataclass(slots=True)
class _Bound:
    """One listener and its port."""

    port: IListeningPort
    entrance: Entrance


class Listening:
    """The ports we accept on, by listener name."""

    def __init__(self, reactor: Any, equipment: Equipment, inherited: dict[str, int]) -> None:
        self._reactor = reactor
        self._equipment = equipment
        self._inherited = inherited
        self._bound: dict[str, _Bound] = {}

    def addresses(self) -> dict[str, IAddress]:
        """Where each listener is bound."""
        return {name: bound.port.getHost() for name, bound in self._bound.items()}

    def change(self, config: Config) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Open, close and change listeners until they are as configured; names of those added, removed, changed.

        Raises:
            ListenError: one cannot be opened; then all are as before.
        """
        wanted = {listener.name: listener for listener in config.listeners}
        contexts = {listener.name: self._context(listener) for listener in config.listeners}
        new = [listener for listener in config.listeners if not self._same_endpoint(listener)]
        opened: dict[str, _Bound] = {}
        try:
            for listener in new:
                opened[listener.name] = self._bind(listener, contexts[listener.name])
        except ListenError:
            for bound in opened.values():
                bound.port.stopListening()
            raise
        old = {name: bound for name, bound in self._bound.items() if name not in wanted or name in opened}
        changed = [name for name in opened if name in self._bound]
        for name, bound in self._bound.items():
            if name not in old and (bound.entrance.listener != wanted[name] or contexts[name] is not None):
                if bound.entrance.listener != wanted[name]:
                    changed.append(name)
                bound.entrance.listener, bound.entrance.tls = wanted[name], contexts[name]
        for name, bound in old.items():
            bound.port.stopListening()
            del self._bound[name]
        added = tuple(name for name in opened if name not in changed)
        self._bound.update(opened)
        return added, tuple(name for name in old if name not in wanted), tuple(changed)

    def _same_endpoint(self, listener: Listener) -> bool:
        bound = self._bound.get(listener.name)
        return bound is not None and bound.entrance.listener.endpoint == listener.endpoint

    def _context(self, listener: Listener) -> TLSContext | None:
        if listener.tls is None:
            return None
        try:
            return TLSContext(self._reactor, listener.tls)
        except (SSL.Error, OSError, ValueError) as error:
            reason = f"the certificate {listener.tls.certificate} and its key cannot be used: {_first_line(error)}"
            raise ListenError(f'listener "{listener.name}": {reason}') from error

    def _bind(self, listener: Listener, tls: TLSContext | None) -> _Bound:
        entrance = Entrance(listener, self._equipment.egress, self._equipment.crowd, self._equipment.readiness, tls)
        try:
            port = self._listen(listener, entrance)
        except (CannotListenError, OSError, ValueError, LookupError, TypeError) as error:
            reason = error.socketError if isinstance(error, CannotListenError) else error
            raise ListenError(
                f'listener "{listener.name}": cannot listen on {listener.endpoint}: {_first_line(reason)}'
            ) from error
        entrance.use_streams(port)
        return _Bound(port, entrance)

    def _listen(self, listener: Listener, entrance: Entrance) -> IListeningPort:
        inherited = self._inherited.pop(listener.name, None)
        if inherited is not None:
            family = socket.socket(fileno=os.dup(inherited)).family
            port = self._reactor.adoptStreamPort(inherited, family, entrance)
            os.close(inherited)
            return port  # type: ignore[no-any-return]
        results: list[Any] = []
        endpoint = serverFromString(self._reactor, listener.endpoint)
        maybeDeferred(endpoint.listen, entrance).addBoth(results.append)
        if not results:
            raise ValueError("this kind of endpoint does not bind at once")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]  # type: ignore[no-any-return]

    def close(self) -> Deferred[Any]:
        """Stop listening."""
        bound, self._bound = list(self._bound.values()), {}
        return gatherResults([maybeDeferred(each.port.stopListening) for each in bound])


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
