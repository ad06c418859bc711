"""The listening sockets that all workers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory

from proxyd.listening import ListenError, open_port, taken_over
from proxyd.settings import Listener


@dataclass(frozen=True, slots=True)
class Bound:
    """One listener's port."""

    endpoint: str
    port: Any
    """An `IListeningPort` that has its ``socket`` for an attribute, as those of Twisted and our own have."""

    @property
    def descriptor(self) -> int:
        """The descriptor of its socket."""
        return int(self.port.socket.fileno())


@dataclass(frozen=True, slots=True)
class Prepared:
    """The ports of a new configuration by listener name, and the descriptors of those that are new."""

    bound: Mapping[str, Bound]
    fresh: Mapping[str, int]


class Sockets:
    """The bound ports of a supervisor, which leaves it to its workers to accept from them.

    A reload prepares what the new configuration needs, which may fail, and then adopts or drops it.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._bound: Mapping[str, Bound] = {}
        self._closing: set[Deferred[Any]] = set()

    def descriptors(self) -> dict[str, int]:
        """The descriptor of each listener's socket."""
        return {name: bound.descriptor for name, bound in self._bound.items()}

    def prepare(self, listeners: Sequence[Listener]) -> Prepared:
        """Bind what is new among these listeners; workers find out in the same way which of theirs stay.

        Raises:
            ListenError: one cannot be bound; then none is.
        """
        kept = taken_over({name: bound.endpoint for name, bound in self._bound.items()}, listeners)
        opened: dict[str, Bound] = {}
        try:
            for listener in listeners:
                if listener.name not in kept:
                    opened[listener.name] = self._bind(listener)
        except ListenError:
            self._close(opened)
            raise
        bound = {listener.name: opened.get(listener.name) or self._bound[kept[listener.name]] for listener in listeners}
        return Prepared(bound, {name: new.descriptor for name, new in opened.items()})

    def _bind(self, listener: Listener) -> Bound:
        port: Any = open_port(self._reactor, listener, _Nobody(listener), shared=True)
        if hasattr(port, "stopReading"):
            port.stopReading()  # clients wait in the kernel for a worker
        return Bound(listener.endpoint, port)

    def adopt(self, prepared: Prepared) -> None:
        """Go over to what was prepared, and close what is in use no more."""
        old, self._bound = self._bound, prepared.bound
        stays = [bound.port for bound in prepared.bound.values()]
        self._close({name: bound for name, bound in old.items() if bound.port not in stays})

    def drop(self, prepared: Prepared) -> None:
        """Close what was prepared and is not wanted after all."""
        self._close({name: prepared.bound[name] for name in prepared.fresh})

    def close(self) -> Deferred[Any]:
        """Close all; fires when that is done."""
        bound, self._bound = self._bound, {}
        self._close(bound)
        return gatherResults(self._closing)

    def _close(self, ports: Mapping[str, Bound]) -> None:
        for bound in ports.values():
            closing = maybeDeferred(bound.port.stopListening)
            self._closing.add(closing)
            closing.addBoth(self._closed, closing)

    def _closed(self, result: Any, closing: Deferred[Any]) -> None:
        self._closing.discard(closing)


class _Nobody(Factory):
    """Who would serve a listener's clients, if the supervisor accepted any."""

    noisy = False

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def logPrefix(self) -> str:
        """What Twisted's log calls the port."""
        return f'listener "{self._listener.name}"'
