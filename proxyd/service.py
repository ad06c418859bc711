"""The proxy as a Twisted service: listeners, reload, drain; the embedding API."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.logger import Logger

from proxyd.accounts.accounts import DeferToPool
from proxyd.config import Config
from proxyd.equipment import Equipment, Replacements
from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Flow, RecordLog
from proxyd.listening import Listening
from proxyd.net.dialer import Dialer
from proxyd.net.resolver import Resolver
from proxyd.request import IPAddress

LOOK_AGAIN = 0.1
"""Seconds between two looks at whether the last flow has ended."""

LAST_WORDS = 2.5
"""Seconds for clients to read the end of what they were told before their connections are reset; more than `LINGER`."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload changed: names of listeners, and the live flows that the new policy would not let begin."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    no_longer_allowed: tuple[Flow, ...]


class Proxy(Service):
    """One proxy: the listeners of its configuration, and everything behind them.

    For those who embed or test it, arguments replace the proxy's own parts; a reload leaves them in place, and whoever
    made them stops them.

    Args:
        access_log: Where access records go, in place of the files in the configuration.
        dialer: Who opens connections to origins.
        resolver: Who turns names into addresses.
        inherited: Descriptors of listening sockets, by the name of the listener that each is for; they are the
            proxy's from then on.
        defer_to_pool: Where passwords are checked, which takes tens of milliseconds each, in place of own threads.
        is_own: Whether an address and port are this machine's own, in place of asking the kernel.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        *,
        access_log: RecordLog | None = None,
        dialer: Dialer | None = None,
        resolver: Resolver | None = None,
        inherited: Mapping[str, int] | None = None,
        defer_to_pool: DeferToPool | None = None,
        is_own: Callable[[IPAddress, int], bool] | None = None,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._replacements = Replacements(access_log, dialer, resolver, defer_to_pool, is_own)
        self._inherited = dict(inherited or {})
        self._equipment: Equipment | None = None
        self._listening: Listening | None = None
        self._stopping: Deferred[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def listen(self) -> Deferred[dict[str, IAddress]]:
        """Open the listeners and accept clients; their names, with the addresses they are bound to.

        Fails, and leaves nothing open, with `ListenError` or with the error of a file that the configuration names.
        """
        return Deferred.fromCoroutine(self._listen())

    async def _listen(self) -> dict[str, IAddress]:
        try:
            return self._open()
        except BaseException:
            await self._take_down()
            raise

    def _open(self) -> dict[str, IAddress]:
        if self._listening is None:
            self._equipment = Equipment(self._reactor, self._replacements)
            self._equipment.adopt(self._equipment.prepare(self._config))
            inherited, self._inherited = self._inherited, {}
            self._listening = Listening(self._reactor, self._equipment, inherited)
            self._listening.change(self._config)
        return self._listening.addresses()

    def privilegedStartService(self) -> None:
        """Twisted starts us while ports below 1024 may still be bound. Raises what `listen` fails with."""
        self._open_or_take_down()
        super().privilegedStartService()

    def startService(self) -> None:
        """Twisted starts us; harmless after `listen`. Raises what `listen` fails with."""
        self._open_or_take_down()
        super().startService()

    def _open_or_take_down(self) -> None:
        try:
            self._open()
        except BaseException:
            Deferred.fromCoroutine(self._take_down())
            raise

    def stopService(self) -> Deferred[None]:
        """Stop listening, let the flows end for as long as ``drain_timeout``, abort what is left."""
        super().stopService()
        if self._stopping is not None:
            return self._stopping
        self._stopping = stopping = Deferred.fromCoroutine(self._stop())
        return stopping.addBoth(self._stopped)

    async def _stop(self) -> None:
        if self._listening is not None and self._equipment is not None:
            await self._listening.close()
            await self._drain(self._equipment)
        await self._take_down()

    def _stopped(self, result: None) -> None:
        self._stopping = None
        return result

    async def _drain(self, equipment: Equipment) -> None:
        """Let the flows end by themselves, then end them; the clients may read the last of what they were told."""
        egress, crowd = equipment.egress, equipment.crowd
        egress.draining = True
        await self._until(lambda: not egress.flows, egress.settings.drain_timeout)
        for flow in list(egress.flows.values()):
            flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        for visitor in list(crowd.present):
            visitor.dismiss()
        await self._until(lambda: not crowd.present, LAST_WORDS)
        for visitor in [*crowd.present, *crowd.turned]:
            visitor.transport.abortConnection()
        await deferLater(self._reactor, 0)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        end = self._reactor.seconds() + seconds
        while not condition() and self._reactor.seconds() < end:
            await deferLater(self._reactor, LOOK_AGAIN)

    async def _take_down(self) -> None:
        listening, self._listening = self._listening, None
        equipment, self._equipment = self._equipment, None
        if listening is not None:
            await listening.close()
        if equipment is not None:
            await equipment.stop()

    # -- while it runs ------------------------------------------------------------------------------------------------

    @property
    def flows(self) -> Collection[Flow]:
        """The requests and tunnels in progress."""
        return () if self._equipment is None else tuple(self._equipment.egress.flows.values())

    def reopen_logs(self) -> None:
        """Open the access logs again: they were rotated."""
        if self._equipment is not None:
            self._equipment.reopen_logs()

    def reload(self, config: Config, inherited: Mapping[str, int] | None = None) -> ReloadReport:
        """Go over to another configuration; live flows go on.

        Args:
            inherited: Descriptors of listening sockets for listeners that are new, as at the start.

        Raises:
            ListenError: or the error of a file that the configuration names: then nothing has changed.
            RuntimeError: the proxy does not run, or is stopping.
        """
        equipment, listening = self._equipment, self._listening
        if equipment is None or listening is None or self._stopping is not None:
            raise RuntimeError("the proxy is not listening")
        listening.inherit(inherited or {})
        try:
            furnishing = equipment.prepare(config)
            try:
                gone = tuple(flow for flow in self.flows if not flow.still_allowed(furnishing.policy))
                changes = listening.change(config)
            except BaseException:
                equipment.drop(furnishing)
                raise
        finally:
            listening.disown()
        equipment.adopt(furnishing)
        self._config = config
        self.log.info(
            "reloaded: listeners added {added}, removed {removed}, changed {changed}; "
            "{gone} live flows no longer allowed",
            added=list(changes.added),
            removed=list(changes.removed),
            changed=list(changes.changed),
            gone=len(gone),
        )
        return ReloadReport(changes.added, changes.removed, changes.changed, gone)
