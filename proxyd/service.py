"""The proxy as a Twisted service: listeners, reload, drain; the embedding API."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxyd.config import Config
from proxyd.equipment import Equipment, Replacements
from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Flow, RecordLog
from proxyd.listening import Listening
from proxyd.net.dialer import Dialer
from proxyd.net.resolver import Resolver

DRAIN_LOOK = 0.1
"""Seconds between two looks at whether the last flow has ended."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload changed: names of listeners, and the live flows that the new policy would not let begin."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    no_longer_allowed: tuple[Flow, ...]


class Proxy(Service):
    """One proxy: the listeners of its configuration, and everything behind them.

    ``access_log``, ``dialer`` and ``resolver`` replace the proxy's own, for those who embed or test it. ``inherited`` maps
    listener names to descriptors of sockets that are bound already.
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
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._replacements = Replacements(access_log, dialer, resolver)
        self._inherited = dict(inherited or {})
        self._equipment: Equipment | None = None
        self._listening: Listening | None = None
        self._stopping: Deferred[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------------

    def listen(self) -> Deferred[dict[str, IAddress]]:
        """Open the listeners and accept clients; their names, with the addresses they are bound to.

        Fails, and leaves nothing open, with `ListenError` or with the error of a file that the configuration names.
        """
        try:
            self._start()
        except Exception:
            failure = Failure()
            return ensureDeferred(self._take_down()).addCallback(lambda _: failure)
        assert self._listening is not None
        return succeed(self._listening.addresses())

    def _start(self) -> None:
        if self._listening is None:
            self._equipment = Equipment(self._reactor, self._replacements)
            self._equipment.adopt(self._equipment.prepare(self._config))
            self._listening = Listening(self._reactor, self._equipment, self._inherited)
            self._listening.change(self._config)

    def privilegedStartService(self) -> None:
        """Twisted starts us while ports below 1024 may still be bound. Raises what `listen` fails with."""
        super().privilegedStartService()
        self.listen().addErrback(Failure.raiseException)

    def startService(self) -> None:
        """Twisted starts us; harmless after `listen`."""
        super().startService()
        self.listen().addErrback(Failure.raiseException)

    def stopService(self) -> Deferred[None]:
        """Stop listening, let the flows end for as long as ``drain_timeout``, abort what is left."""
        super().stopService()
        if self._stopping is None:
            self._stopping = ensureDeferred(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        if self._listening is not None and self._equipment is not None:
            await self._listening.close()
            await self._drain(self._equipment)
        await self._take_down()

    async def _drain(self, equipment: Equipment) -> None:
        egress = equipment.egress
        egress.draining = True
        end = self._reactor.seconds() + egress.settings.drain_timeout
        while egress.flows and self._reactor.seconds() < end:
            await deferLater(self._reactor, DRAIN_LOOK)
        for flow in list(egress.flows.values()):
            flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        for visitor in list(equipment.crowd.present):
            visitor.transport.abortConnection()
        await deferLater(self._reactor, 0)

    async def _take_down(self) -> None:
        listening, self._listening = self._listening, None
        equipment, self._equipment = self._equipment, None
        if listening is not None:
            await listening.close()
        if equipment is not None:
            await equipment.stop()

    # -- while it runs --------------------------------------------------------------------------------------------------------

    @property
    def flows(self) -> Collection[Flow]:
        """The requests and tunnels in progress."""
        return () if self._equipment is None else tuple(self._equipment.egress.flows.values())

    def reopen_logs(self) -> None:
        """Open the access logs again: they were rotated."""
        if self._equipment is not None:
            self._equipment.reopen_logs()

    def reload(self, config: Config) -> ReloadReport:
        """Go over to another configuration; live flows go on.

        Raises:
            ListenError, or the error of a file that the configuration names: then nothing has changed.
        """
        equipment, listening = self._equipment, self._listening
        if equipment is None or listening is None:
            raise RuntimeError("the proxy is not listening")
        furnishing = equipment.prepare(config)
        try:
            added, removed, changed = listening.change(config)
        except Exception:
            equipment.drop(furnishing)
            raise
        equipment.adopt(furnishing)
        self._config = config
        policy = equipment.egress.policy
        gone = tuple(flow for flow in self.flows if not flow.still_allowed(policy))
        report = ReloadReport(added, removed, changed, gone)
        self.log.info(
            "reloaded: listeners added {added}, removed {removed}, changed {changed}; {gone} live flows no longer allowed",
            added=list(added),
            removed=list(removed),
            changed=list(changed),
            gone=len(gone),
        )
        return report
