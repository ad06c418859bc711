"""Who is asking: names and passwords checked in threads of their own, verdicts kept for a short time."""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from proxyd.accounts.htpasswd import AccountsError, PasswordFile
from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Identity

FILE_CHECK_INTERVAL = 1.0
"""Seconds between two looks at the password file; a look waits its turn in the threads as any check does."""
REFUSAL_CACHE_TIME = 5.0
"""Seconds at most that a wrong password is remembered, so that one that was just set soon works."""

T = TypeVar("T")
Signature = tuple[int, int, int]


class DeferToPool(Protocol):
    """Calls a function in a thread that may wait; the Deferred fires in the reactor's."""

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]: ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    name: str | None
    expires: float


@dataclass(frozen=True, slots=True)
class _Proof:
    identity: Identity
    expires: float


class Accounts:
    """The accounts of a password file as the doors see it, kept up to date with the file.

    Raises:
        AccountsError: The file cannot be used.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        path: Path,
        *,
        cache_time: float,
        threads: int = 2,
        queue: int = 256,
        max_verdicts: int = 10_000,
        defer_to_pool: DeferToPool | None = None,
    ) -> None:
        """
        Args:
            cache_time: Seconds for which a right password is not checked again.
            threads: Checks made at the same time.
            queue: Checks under way or waiting; beyond them nobody is let in whose verdict is not known.
            max_verdicts: Verdicts that are remembered, a few MiB; beyond them the oldest is forgotten.
            defer_to_pool: In place of own threads.
        """
        self._reactor = reactor
        self._path = path
        self._cache_time = cache_time
        self._queue = queue
        self._max_verdicts = max_verdicts
        self._pool = ThreadPool(0, threads, "accounts")
        self._defer_to_pool = defer_to_pool or self._defer_to_own_pool
        self._watch = LoopingCall(self._reread)
        self._watch.clock = reactor
        self._stopped = False
        self._signature = _signature(path)
        self._file = PasswordFile.from_path(path)
        self._keyed_digest = blake2b(digest_size=32, key=secrets.token_bytes(32))
        self._verdicts: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._proofs: dict[bytes, _Proof] = {}
        self._checks: dict[bytes, list[Deferred[str | None]]] = {}

    def start(self) -> None:
        """Start the threads, and watch the file."""
        self._pool.start()
        watching = self._watch.start(FILE_CHECK_INTERVAL, now=False)
        watching.addErrback(lambda failure: self._log.failure("The password file is watched no more.", failure))

    def stop(self) -> None:
        """Send away whoever waits, and end the threads: a matter of the checks being made, not of those that wait."""
        self._stopped = True
        if self._watch.running:
            self._watch.stop()
        checks, self._checks = self._checks, {}
        for askers in checks.values():
            for asker in askers:
                asker.errback(_overloaded())
        self._pool.stop()

    def authenticate(
        self, name: bytes, password: bytes, proof: str, words: bytes = b""
    ) -> Identity | None | Deferred[Identity | None]:
        """Whose name and password these are; a verdict that is known comes back at once.

        Args:
            proof: How they were presented, for the identity.
            words: In what words, for `recall`.

        Raises:
            ProxyError: ``connection_limit_reached``, as too many checks are waiting.
        """
        key = self._cache_key(name, password)
        verdict = self._verdicts.get(key)
        if verdict is not None and self._reactor.seconds() < verdict.expires:
            identity = _identity(verdict.name, proof)
            if words and identity is not None:
                self._remember(words, _Proof(identity, verdict.expires))
            return identity
        return self._ask(key, name, password).addCallback(_identity, proof)

    def recall(self, words: bytes) -> Identity | None:
        """Whom these very words have proven before, if that still holds; they need not be read again then."""
        proof = self._proofs.get(self._digest(words))
        return proof.identity if proof is not None and self._reactor.seconds() < proof.expires else None

    def _remember(self, words: bytes, proof: _Proof) -> None:
        if len(self._proofs) >= self._max_verdicts:
            self._proofs.clear()
        self._proofs[self._digest(words)] = proof

    def _cache_key(self, name: bytes, password: bytes) -> bytes:
        return self._digest(b"%d:%b%b" % (len(name), name, password))

    def _digest(self, secret: bytes) -> bytes:
        # So that no secret stays in memory; keyed, so that it says nothing outside this process.
        digest = self._keyed_digest.copy()
        digest.update(secret)
        return digest.digest()

    def _ask(self, key: bytes, name: bytes, password: bytes) -> Deferred[str | None]:
        asker: Deferred[str | None] = Deferred()
        if key in self._checks:
            self._checks[key].append(asker)
            return asker
        if self._stopped or len(self._checks) >= self._queue:
            raise _overloaded()
        self._checks[key] = [asker]
        check = Deferred.fromCoroutine(self._check(name, password))
        check.addCallbacks(self._tell, self._fail, callbackArgs=(key,), errbackArgs=(key,))
        return asker

    async def _check(self, name: bytes, password: bytes) -> str | None:
        file, matches = await self._defer_to_pool(lambda: self._match(name, password))
        while file is not self._file:  # it was read anew meanwhile
            file, matches = await self._defer_to_pool(lambda: self._match(name, password))
        return name.decode() if matches else None

    def _match(self, name: bytes, password: bytes) -> tuple[PasswordFile, bool]:
        """In a thread: check against the newest file; not at all after the stop, which waits for the threads."""
        file = self._file
        return file, not self._stopped and file.verify(name, password)

    def _tell(self, name: str | None, key: bytes) -> None:
        if self._stopped:
            return  # stop() has told them
        lifetime = min(self._cache_time, REFUSAL_CACHE_TIME) if name is None else self._cache_time
        self._verdicts.pop(key, None)
        self._verdicts[key] = _Verdict(name, self._reactor.seconds() + lifetime)
        if len(self._verdicts) > self._max_verdicts:
            self._verdicts.popitem(last=False)
        for asker in self._checks.pop(key):
            asker.callback(name)

    def _fail(self, failure: Failure, key: bytes) -> None:
        self._log.failure("A password could not be checked.", failure)
        for asker in self._checks.pop(key, ()):
            asker.errback(ProxyError(ErrorType.PROXY_INTERNAL_ERROR, "the password could not be checked"))

    async def _reread(self) -> None:
        try:
            file = await self._defer_to_pool(self._read_if_changed)
        except AccountsError as error:
            self._log.error("{error}; the accounts read before stay in use.", error=str(error))
            return
        if file is not None:
            self._file = file
            self._verdicts.clear()
            self._proofs.clear()
            self._log.info("The accounts of {path} were read anew.", path=str(self._path))

    def _read_if_changed(self) -> PasswordFile | None:
        """In a thread: read the file if it is not the one that was read last, even if that one was broken."""
        signature = _signature(self._path)
        if signature == self._signature:
            return None
        self._signature = signature
        return PasswordFile.from_path(self._path)

    def _defer_to_own_pool(self, work: Callable[[], T], /) -> Deferred[T]:
        return deferToThreadPool(IReactorFromThreads(self._reactor), self._pool, work)


def _signature(path: Path) -> Signature | None:
    """What changes when the file does; ``None`` for a file that is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _identity(name: str | None, proof: str) -> Identity | None:
    return None if name is None else Identity(name, proof)


def _overloaded() -> ProxyError:
    return ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "too many passwords are waiting to be checked")
