"""Addresses from the system's resolver."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from ipaddress import ip_address
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred, fail

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.resolver import MAX_ADDRESSES, Answer, NameNotFound

THREADS = 64
"""Look-ups at one time. A name whose servers are silent holds its thread for as long as the C library tries (5 to
30 s), so this is how many such names there may be before others have to wait. A thread is made when it is needed."""

MAX_WAITING = 256
"""Look-ups that wait for a thread before new ones are refused."""

_NOT_FOUND = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})


def _start_daemon(work: Callable[[], None]) -> None:
    Thread(target=work, name="proxyd look-up", daemon=True).start()


class SystemResolver:
    """A source that asks the C library, and so the hosts file and whatever the system is set up to use.

    Each look-up has a thread of its own while it lasts, as nothing can make the C library give up: after our timeout
    the thread lingers and counts, but nobody waits for it. The threads are daemons, so they do not hold up the exit.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        timeout: float,
        ttl: float,
        threads: int = THREADS,
        getaddrinfo: Callable[..., list[Any]] = socket.getaddrinfo,
        start_thread: Callable[[Callable[[], None]], None] = _start_daemon,
    ) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._ttl = ttl
        self._idle = threads
        self._getaddrinfo = getaddrinfo
        self._start_thread = start_thread
        self._waiting: dict[Deferred[Answer], str] = {}

    def lookup(self, name: str) -> Deferred[Answer]:
        """Ask in a thread, as soon as there may be one more."""

        def time_is_up(result: object, timeout: float) -> Answer:
            raise ProxyError(ErrorType.DNS_TIMEOUT, f'the name "{name}" was not resolved in time')

        if len(self._waiting) >= MAX_WAITING:
            return fail(ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "too many names are being looked up"))
        done: Deferred[Answer] = Deferred(self._forget)
        done.addTimeout(self._timeout, self._reactor, onTimeoutCancel=time_is_up)
        self._waiting[done] = name
        self._work()
        return done

    def _forget(self, done: Deferred[Answer]) -> None:
        self._waiting.pop(done, None)

    def _work(self) -> None:
        while self._idle and self._waiting:
            done = next(iter(self._waiting))
            name = self._waiting.pop(done)
            try:
                self._start_thread(functools.partial(self._ask, name, done))
            except RuntimeError:
                done.errback(ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "no thread for looking up names"))
            else:
                self._idle -= 1

    def _ask(self, name: str, done: Deferred[Answer]) -> None:
        """Called in a thread."""
        outcome: Answer | ProxyError
        try:
            # As bytes: a str would go through Python's own IDNA codec, with its own limits.
            found = self._getaddrinfo(name.encode("ascii"), None, socket.AF_UNSPEC, socket.SOCK_STREAM)
        except OSError as error:
            outcome = _why(error, name)
        else:
            addresses = dict.fromkeys(ip_address(entry[4][0].partition("%")[0]) for entry in found)
            outcome = Answer(tuple(addresses)[:MAX_ADDRESSES], self._ttl)
        self._reactor.callFromThread(self._asked, done, outcome)

    def _asked(self, done: Deferred[Answer], outcome: Answer | ProxyError) -> None:
        self._idle += 1
        self._work()
        if done.called:
            return
        if isinstance(outcome, Answer):
            done.callback(outcome)
        else:
            done.errback(outcome)


def _why(error: OSError, name: str) -> ProxyError:
    if error.errno in _NOT_FOUND:
        return NameNotFound(f'no such name: "{name}"')
    return ProxyError(ErrorType.DNS_ERROR, f'the name "{name}" was not resolved: {error.strerror}')
