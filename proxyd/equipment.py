"""What a proxy is furnished with for its configuration, made and exchanged as a whole."""

from __future__ import annotations

import resource
import socket
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from proxyd.accounts.accounts import Accounts
from proxyd.config import Config
from proxyd.entrance import Crowd
from proxyd.flow import Egress, RecordLog
from proxyd.ledger.access_log import AccessLog
from proxyd.ledger.formats import encode_json, encode_squid
from proxyd.net.deadlines import Deadlines
from proxyd.net.dialer import Dialer, TCPDialer
from proxyd.net.dns import ServerResolver
from proxyd.net.own import OwnAddresses
from proxyd.net.pool import IdlePool
from proxyd.net.readiness import Readiness
from proxyd.net.resolver import CachingResolver, Resolver
from proxyd.net.splice import Splicer
from proxyd.net.system_resolver import SystemResolver
from proxyd.policy.rules import Policy
from proxyd.settings import Settings

RESERVED_DESCRIPTORS = 128
"""Kept from the clients for listeners, logs, DNS and pipes, where ``max_connections`` follows the descriptor limit."""

DESCRIPTORS_PER_CLIENT = 2
"""A client's connection and its upstream's."""


@dataclass(frozen=True, slots=True)
class Replacements:
    """What an embedder brings instead of the proxy's own."""

    access_log: RecordLog | None = None
    dialer: Dialer | None = None
    resolver: Resolver | None = None


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
        self._own = OwnAddresses(reactor)
        kernel = Readiness.available(reactor)
        self.readiness = Readiness(reactor) if kernel else None
        self.splicer = Splicer(reactor, self.readiness) if self.readiness is not None and Splicer.available() else None
        self.deadlines = Deadlines(reactor)
        self.crowd = Crowd(reactor, 0, 0)
        self._current: Furnishing | None = None
        self.egress: Egress

    def prepare(self, config: Config) -> Furnishing:
        """Make what is new in this configuration.

        Raises:
            AccountsError, AccessLogError: a file cannot be used; then nothing is left behind.
        """
        accounts = None
        if config.users is not None:
            accounts = Accounts(self._reactor, config.users.file, cache_time=config.users.cache_time)
        furnishing = Furnishing(
            config,
            Policy(config.rules, config.groups, self._own),
            accounts,
            self._resolver(config.settings),
            self._dialer(config.settings),
            self._access_log(config.settings),
        )
        if accounts is not None:
            accounts.start()
        return furnishing

    def adopt(self, new: Furnishing) -> None:
        """Go over to what was prepared, and stop what it replaces."""
        old, self._current = self._current, new
        settings = new.config.settings
        self.crowd.most = settings.max_connections or most_connections()
        self.crowd.most_per_client = settings.max_connections_per_client
        if old is None:
            self.egress = Egress(
                clock=self._reactor,
                settings=settings,
                policy=new.policy,
                accounts=new.accounts,
                realm="",
                resolver=new.resolver,
                dialer=new.dialer,
                deadlines=self.deadlines,
                pool=IdlePool(self.deadlines),
                splicer=self.splicer,
                access_log=new.access_log,
                via="",
            )
        egress = self.egress
        egress.settings, egress.policy, egress.accounts = settings, new.policy, new.accounts
        egress.resolver, egress.dialer, egress.access_log = new.resolver, new.dialer, new.access_log
        egress.realm = new.config.users.realm if new.config.users is not None else "proxyd"
        egress.via = settings.via or pseudonym()
        egress.pool.idle_timeout, egress.pool.size = settings.upstream_idle_timeout, settings.upstream_idle_connections
        if old is not None:
            self._stop_parts(old, new)

    def drop(self, new: Furnishing) -> None:
        """Stop what was prepared and is not wanted after all."""
        assert self._current is not None
        self._stop_parts(new, self._current)

    def _stop_parts(self, unwanted: Furnishing, kept: Furnishing) -> None:
        if unwanted.accounts is not None:
            unwanted.accounts.stop()
        for mine, theirs in ((unwanted.resolver, kept.resolver), (unwanted.access_log, kept.access_log)):
            if mine is not theirs and isinstance(mine, (CachingResolver, AccessLog)):
                mine.stop()

    def _resolver(self, settings: Settings) -> Resolver:
        if self._replacements.resolver is not None:
            return self._replacements.resolver
        current = self._current
        if current is not None and _resolving(current.config.settings) == _resolving(settings):
            return current.resolver
        source: ServerResolver | SystemResolver
        if settings.resolver:
            source = ServerResolver(self._reactor, settings.resolver, timeout=settings.resolver_timeout)
        else:
            source = SystemResolver(self._reactor, timeout=settings.resolver_timeout, ttl=settings.dns_system_ttl)
        return CachingResolver(self._reactor, source, negative_ttl=settings.dns_negative_ttl)

    def _dialer(self, settings: Settings) -> Dialer:
        return self._replacements.dialer or TCPDialer(
            self._reactor, self.deadlines, attempt_delay=settings.attempt_delay, readiness=self.readiness
        )

    def _access_log(self, settings: Settings) -> RecordLog:
        if self._replacements.access_log is not None:
            return self._replacements.access_log
        current = self._current
        if current is not None and _logging(current.config.settings) == _logging(settings):
            return current.access_log
        outputs = [(settings.access_log_json, encode_json), (settings.access_log_squid, encode_squid)]
        log = AccessLog(
            self._reactor,
            [(path, encode) for path, encode in outputs if path],
            flush=settings.access_log_flush,
            buffer=settings.access_log_buffer,
        )
        log.start()
        return log

    def reopen_logs(self) -> None:
        """Open the access log's files again."""
        if self._current is not None and isinstance(self._current.access_log, AccessLog):
            self._current.access_log.reopen()

    async def stop(self) -> None:
        """Stop everything; the access log last, when the last record is in it."""
        current, self._current = self._current, None
        if current is not None:
            self.egress.pool.close()
            if current.accounts is not None:
                current.accounts.stop()
            if isinstance(current.resolver, CachingResolver):
                current.resolver.stop()
            if isinstance(current.access_log, AccessLog):
                await current.access_log.stop()
        self.deadlines.stop()
        if self.splicer is not None:
            self.splicer.stop()
        if self.readiness is not None:
            self.readiness.stop()


def _resolving(settings: Settings) -> tuple[object, ...]:
    return settings.resolver, settings.resolver_timeout, settings.dns_negative_ttl, settings.dns_system_ttl


def _logging(settings: Settings) -> tuple[object, ...]:
    files = settings.access_log_json, settings.access_log_squid
    return *files, settings.access_log_flush, settings.access_log_buffer


def most_connections() -> int:
    """How many clients the limit on open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CLIENT)


def pseudonym() -> str:
    """Our name in ``Via``: the same after a restart, different on every machine, and telling nobody the host's name."""
    return "proxyd-" + blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
