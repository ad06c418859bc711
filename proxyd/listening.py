"""The bound listeners of a proxy, and how a reload changes them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.python.failure import Failure

from proxyd.config import Config
from proxyd.entrance import Entrance
from proxyd.equipment import Equipment
from proxyd.net.adopted import AdoptedPort
from proxyd.net.tls_certificate import ServerCertificate
from proxyd.settings import Listener


class ListenError(Exception):
    """A listener cannot be opened; the message names it, its endpoint and the reason."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of the listeners that a configuration has added, removed, or made different."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Bound:
    """One listener's port, and who receives its clients."""

    port: IListeningPort
    entrance: Entrance


class Listening:
    """The ports we accept on, by listener name."""

    def __init__(self, reactor: Any, equipment: Equipment, inherited: Mapping[str, int]) -> None:
        self._reactor = reactor
        self._equipment = equipment
        self._inherited = dict(inherited)
        self._bound: dict[str, _Bound] = {}
        self._closing: set[Deferred[Any]] = set()

    def addresses(self) -> dict[str, IAddress]:
        """Where each listener is bound."""
        return {name: bound.port.getHost() for name, bound in self._bound.items()}

    def change(self, config: Config) -> Changes:
        """Open, close and change listeners until they are as configured.

        Raises:
            ListenError: one cannot be opened; then all are as before.
        """
        before = {name: bound.entrance.listener for name, bound in self._bound.items()}
        contexts = {listener.name: self._context(listener) for listener in config.listeners}
        kept = self._kept(config)
        opened = self._open([listener for listener in config.listeners if listener.name not in kept], contexts)
        unwanted = [bound for bound in self._bound.values() if bound not in kept.values()]
        self._bound = {listener.name: kept.get(listener.name) or opened[listener.name] for listener in config.listeners}
        for listener in config.listeners:
            entrance = self._bound[listener.name].entrance
            entrance.listener, entrance.tls = listener, contexts[listener.name]
        for bound in unwanted:
            self._shut(bound)
        self.disown()
        return _changes(before, {listener.name: listener for listener in config.listeners})

    def _kept(self, config: Config) -> dict[str, _Bound]:
        """The ports that stay, by the name of the listener each is for."""
        names = taken_over({name: _endpoint(bound) for name, bound in self._bound.items()}, config.listeners)
        return {name: self._bound[before] for name, before in names.items()}

    def _context(self, listener: Listener) -> ServerCertificate | None:
        """What it proves itself with: the same as before where the files are, as that has the keys of its tickets.

        Files that changed are in use from now on even if nothing comes of the reload: so they would be without it.
        """
        if listener.tls is None:
            return None
        try:
            for bound in self._bound.values():
                if bound.entrance.tls is not None and bound.entrance.listener.tls == listener.tls:
                    bound.entrance.tls.look()
                    return bound.entrance.tls
            return ServerCertificate(self._reactor, listener.tls)
        except (OSError, ValueError) as error:
            reason = f"the certificate {listener.tls.certificate} and its key cannot be used: {_first_line(error)}"
            raise ListenError(f'listener "{listener.name}": {reason}') from error

    def _open(self, listeners: list[Listener], contexts: Mapping[str, ServerCertificate | None]) -> dict[str, _Bound]:
        opened: dict[str, _Bound] = {}
        try:
            for listener in listeners:
                opened[listener.name] = self._bind(listener, contexts[listener.name])
        except ListenError:
            for bound in opened.values():
                self._shut(bound)
            raise
        return opened

    def _bind(self, listener: Listener, tls: ServerCertificate | None) -> _Bound:
        entrance = Entrance(listener, self._equipment.egress, self._equipment.crowd, self._equipment.readiness, tls)
        inherited = self._inherited.pop(listener.name, None)
        shared = self._equipment.readiness is not None
        port = open_port(self._reactor, listener, entrance, inherited, shared=shared)
        entrance.accept_streams(port)
        return _Bound(port, entrance)

    def _shut(self, bound: _Bound) -> None:
        bound.entrance.stop_accepting()
        closing = maybeDeferred(bound.port.stopListening)
        self._closing.add(closing)
        closing.addBoth(lambda _: self._closing.discard(closing))

    def inherit(self, descriptors: Mapping[str, int]) -> None:
        """Have these sockets, by listener name, for what the next change opens."""
        self._inherited |= descriptors

    def disown(self) -> None:
        """Close the sockets that no listener was opened with."""
        while self._inherited:
            os.close(self._inherited.popitem()[1])

    def close(self) -> Deferred[Any]:
        """Stop listening; fires when every port is closed."""
        bound, self._bound = list(self._bound.values()), {}
        for each in bound:
            self._shut(each)
        self.disown()
        return gatherResults(self._closing)


def open_port(
    reactor: Any, listener: Listener, factory: IProtocolFactory, inherited: int | None = None, *, shared: bool
) -> IListeningPort:
    """Bind a listener's port, or take one that is bound already, by systemd or whoever started us.

    Args:
        inherited: The descriptor of one that is bound; it is closed, as the port has its own.
        shared: Whether others have such a port too: it becomes an `AdoptedPort`, from which Twisted does not accept.

    Raises:
        ListenError: that cannot be done.
    """
    try:
        if inherited is not None and shared:
            try:
                return AdoptedPort(inherited)
            finally:
                os.close(inherited)
        place = _place(reactor, listener, inherited)
        if isinstance(place, AdoptedStreamServerEndpoint) and shared:
            return AdoptedPort(place.fileno)
        outcome: list[Any] = []
        place.listen(factory).addBoth(outcome.append)
        [port] = outcome  # endpoints of every kind that can be configured are bound at once
        if isinstance(port, Failure):
            port.raiseException()
    except (CannotListenError, OSError, ValueError) as error:
        reason = error.socketError if isinstance(error, CannotListenError) else error
        raise ListenError(
            f'listener "{listener.name}": cannot listen on {listener.endpoint}: {_first_line(reason)}'
        ) from error
    return port  # type: ignore[no-any-return]


def _place(reactor: Any, listener: Listener, inherited: int | None) -> IStreamServerEndpoint:
    if inherited is not None:
        bound = socket.socket(fileno=inherited)
        return AdoptedStreamServerEndpoint(reactor, bound.detach(), bound.family)
    try:
        return serverFromString(reactor, listener.endpoint)  # type: ignore[no-any-return]
    except (LookupError, TypeError):
        raise ValueError("systemd has passed no such socket") from None


def taken_over(endpoints: Mapping[str, str], listeners: Sequence[Listener]) -> dict[str, str]:
    """Which listener has the port of which before it: its own, or the one at its endpoint that has lost its listener.

    Args:
        endpoints: Where the listeners were until now, by name.
    """
    free, taken = dict(endpoints), {}
    for listener in listeners:
        if free.get(listener.name) == listener.endpoint:
            taken[listener.name] = listener.name
            del free[listener.name]
    names = {endpoint: name for name, endpoint in free.items()}
    for listener in listeners:
        if listener.name not in taken and listener.endpoint in names:
            taken[listener.name] = names.pop(listener.endpoint)
    return taken


def _endpoint(bound: _Bound) -> str:
    return bound.entrance.listener.endpoint


def _changes(before: Mapping[str, Listener], after: Mapping[str, Listener]) -> Changes:
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name in after if name in before and before[name] != after[name]),
    )


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
