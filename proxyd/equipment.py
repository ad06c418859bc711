"""What a proxy is furnished with for its configuration, made and exchanged as a whole."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from proxyd.accounts.accounts import Accounts, DeferToPool
from proxyd.config import Config
from proxyd.entrance import Crowd
from proxyd.flow import Egress, RecordLog
from proxyd.ledger.access_log import AccessLog
from proxyd.ledger.formats import encode_json, encode_squid
from proxyd.ledger.whole_lines import write_whole_lines
from proxyd.net.deadlines import Deadlines
from proxyd.net.dialer import Dialer, TCPDialer
from proxyd.net.dns import ServerResolver
from proxyd.net.own import OwnAddresses
from proxyd.net.pool import IdlePool
from proxyd.net.readiness import Readiness
from proxyd.net.resolver import CachingResolver, Resolver
from proxyd.net.splice import Splicer
from proxyd.net.system_resolver import SystemResolver
from proxyd.net.transport import bulk_read_size
from proxyd.policy.rules import Policy
from proxyd.request import IPAddress
from proxyd.settings import REALM, Settings

RESERVED_DESCRIPTORS = 128
"""Kept from the clients for listeners, logs, DNS and the pool of pipes, where ``max_connections`` follows the limit on
descriptors."""

DESCRIPTORS_PER_CLIENT = 2
"""A client's connection and its upstream's. The pipes of stalled transfers are not counted: few flows stall at the same
time, and those for which none is left are copied."""


@dataclass(frozen=True, slots=True)
class Replacements:
    """What an embedder brings instead of the proxy's own; `Proxy` says what each is."""

    access_log: RecordLog | None = None
    dialer: Dialer | None = None
    resolver: Resolver | None = None
    defer_to_pool: DeferToPool | None = None
    is_own: Callable[[IPAddress, int], bool] | None = None


@dataclass(slots=True)
class Furnishing:
    """What depends on the configuration."""

    config: Config
    policy: Policy
    accounts: Accounts | None
    resolver: Resolver
    dialer: Dialer
    access_log: RecordLog


class Equipment:
    """Everything behind the listeners of one proxy; the `Egress` in it is what the doors see.

    A reload prepares what the new configuration needs, which may fail, and then adopts it, which cannot.
    """

    def __init__(self, reactor: Any, replacements: Replacements) -> None:
        self._reactor = reactor
        self._replacements = replacements
        self._is_own = replacements.is_own or OwnAddresses(reactor)
        kernel = Readiness.available(reactor)
        self.readiness = Readiness(reactor) if kernel else None
        self.splicer = Splicer(reactor, self.readiness) if self.readiness is not None and Splicer.available() else None
        self.deadlines = Deadlines(reactor)
        self.crowd = Crowd(reactor, 0, 0)
        self._current: Furnishing | None = None
        self.egress: Egress

    def prepare(self, config: Config) -> Furnishing:
        """Make what is new in this configuration; what it says nothing new about stays in use.

        Raises:
            AccountsError, AccessLogError: a file cannot be used; then nothing is left behind.
        """
        furnishing = Furnishing(
            config,
            Policy(config.rules, config.groups, self._is_own),
            self._accounts(config),
            self._resolver(config),
            self._dialer(config.settings),
            self._access_log(config),  # last: the others need no stopping if it cannot be opened
        )
        if furnishing.accounts is not None and not self._stays(furnishing.accounts):
            furnishing.accounts.start()
        return furnishing

    def adopt(self, new: Furnishing) -> None:
        """Go over to what was prepared, and stop what it replaces."""
        old, self._current = self._current, new
        settings, users = new.config.settings, new.config.users
        realm, via = users.realm if users is not None else REALM, settings.via or pseudonym()
        if old is None:
            self.egress = Egress(
                clock=self._reactor,
                settings=settings,
                policy=new.policy,
                accounts=new.accounts,
                realm=realm,
                resolver=new.resolver,
                dialer=new.dialer,
                deadlines=self.deadlines,
                pool=IdlePool(self._reactor, self.deadlines),
                splicer=self.splicer,
                access_log=new.access_log,
                via=via,
            )
        egress = self.egress
        egress.settings, egress.policy, egress.accounts, egress.realm = settings, new.policy, new.accounts, realm
        egress.resolver, egress.dialer, egress.access_log, egress.via = new.resolver, new.dialer, new.access_log, via
        egress.pool.idle_timeout = settings.upstream_idle_timeout
        egress.pool.size = settings.upstream_idle_connections if settings.upstream_idle_timeout else 0
        self.crowd.most = settings.max_connections or most_connections()
        self.crowd.most_per_client = settings.max_connections_per_client
        if old is not None:
            self._stop_parts(old)

    def drop(self, prepared: Furnishing) -> None:
        """Stop what was prepared and is not wanted after all."""
        self._stop_parts(prepared)

    def _stop_parts(self, unwanted: Furnishing) -> Deferred[Any]:
        """Stop the parts that are neither in use nor an embedder's; fires when the last record is written."""
        return gatherResults(
            maybeDeferred(part.stop)
            for part in (unwanted.accounts, unwanted.resolver, unwanted.access_log)
            if isinstance(part, (Accounts, CachingResolver, AccessLog)) and not self._stays(part)
        )

    def _stays(self, part: object) -> bool:
        parts: list[object] = [self._replacements.resolver, self._replacements.access_log]
        if self._current is not None:
            parts += [self._current.accounts, self._current.resolver, self._current.access_log]
        return any(part is other for other in parts)

    def _unless_new(self, config: Config, aspect: Callable[[Config], object]) -> Furnishing | None:
        """What is in use, if the configuration says the same about this aspect."""
        current = self._current
        return current if current is not None and aspect(current.config) == aspect(config) else None

    def _accounts(self, config: Config) -> Accounts | None:
        users = config.users
        if users is None:
            return None
        current = self._unless_new(config, _checking)
        if current is not None:
            return current.accounts
        return Accounts(
            self._reactor,
            users.file,
            cache_time=users.cache_time,
            defer_to_pool=self._replacements.defer_to_pool,
        )

    def _resolver(self, config: Config) -> Resolver:
        if self._replacements.resolver is not None:
            return self._replacements.resolver
        current = self._unless_new(config, _resolving)
        if current is not None:
            return current.resolver
        settings = config.settings
        source: ServerResolver | SystemResolver
        if settings.resolver:
            source = ServerResolver(self._reactor, settings.resolver, timeout=settings.resolver_timeout)
        else:
            source = SystemResolver(self._reactor, timeout=settings.resolver_timeout, ttl=settings.dns_system_ttl)
        return CachingResolver(self._reactor, source, negative_ttl=settings.dns_negative_ttl)

    def _dialer(self, settings: Settings) -> Dialer:
        return self._replacements.dialer or TCPDialer(
            self._reactor,
            self.deadlines,
            attempt_delay=settings.attempt_delay,
            readiness=self.readiness,
            bulk_read=bulk_read_size(settings.buffer_size),
        )

    def _access_log(self, config: Config) -> RecordLog:
        if self._replacements.access_log is not None:
            return self._replacements.access_log
        current = self._unless_new(config, _logging)
        if current is not None:
            return current.access_log
        settings = config.settings
        outputs = [(settings.access_log_json, encode_json), (settings.access_log_squid, encode_squid)]
        log = AccessLog(
            self._reactor,
            [(path, encode) for path, encode in outputs if path],
            flush=settings.access_log_flush,
            buffer=settings.access_log_buffer,
            write=write_whole_lines,
        )
        log.start()
        return log

    def reopen_logs(self) -> None:
        """Open the access log's files again."""
        log = None if self._current is None else self._current.access_log
        if isinstance(log, AccessLog):
            log.reopen()

    async def stop(self) -> None:
        """Stop everything; the access log last, when the last record is in it."""
        current, self._current = self._current, None
        if current is not None:
            self.egress.pool.close()
            await self._stop_parts(current)
        self.deadlines.stop()
        if self.readiness is not None:
            self.readiness.stop()
        if self.splicer is not None:
            self.splicer.stop()


def _checking(config: Config) -> object:
    return (config.users.file, config.users.cache_time) if config.users is not None else None


def _resolving(config: Config) -> object:
    settings = config.settings
    return settings.resolver, settings.resolver_timeout, settings.dns_negative_ttl, settings.dns_system_ttl


def _logging(config: Config) -> object:
    settings = config.settings
    files = settings.access_log_json, settings.access_log_squid
    return files, settings.access_log_flush, settings.access_log_buffer


def most_connections() -> int:
    """How many clients the limit on open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CLIENT)


def pseudonym() -> str:
    """Our name in ``Via``: the same after a restart, different on every machine, and telling nobody the host's name."""
    return "proxyd-" + blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
