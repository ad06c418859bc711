"""Tests for proxyd.net.system_resolver."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.resolver import Answer, NameNotFound
from proxyd.net.system_resolver import MAX_WAITING, THREADS, SystemResolver


def found(*addresses: str) -> list[Any]:
    """What getaddrinfo returns for a stream socket and no port."""
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0))
        if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
        for address in addresses
    ]


class Library:
    """A C library that knows what the test lets it know."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.known: dict[bytes, list[Any] | OSError] = {b"a.example": found("192.0.2.1")}

    def getaddrinfo(self, *asked: Any) -> list[Any]:
        self.asked.append(asked)
        answer = self.known[asked[0]]
        if isinstance(answer, OSError):
            raise answer
        return answer


class Threads(Clock):
    """A reactor and its threads, which run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: list[Callable[[], None]] = []

    def start(self, work: Callable[[], None]) -> None:
        self.hanging.append(work)

    def finish(self) -> None:
        self.hanging.pop(0)()

    def callFromThread(self, call: Callable[..., None], *args: object) -> None:
        call(*args)


class SystemResolverTests(SynchronousTestCase):
    """Look-ups in threads, without the threads."""

    def setUp(self) -> None:
        self.threads = Threads()
        self.library = Library()
        self.resolver = self.make()

    def make(self, threads: int = THREADS) -> SystemResolver:
        return SystemResolver(
            self.threads,
            timeout=5,
            ttl=60,
            threads=threads,
            getaddrinfo=self.library.getaddrinfo,
            start_thread=self.threads.start,
        )

    def error(self, looked_up: Deferred[Answer]) -> ProxyError:
        return self.failureResultOf(looked_up, ProxyError).value

    def test_answer(self) -> None:
        """The library's addresses are the answer, for the configured TTL."""
        looked_up = self.resolver.lookup("a.example")
        self.assertNoResult(looked_up)
        self.threads.finish()
        self.assertEqual(self.successResultOf(looked_up), Answer((IPv4Address("192.0.2.1"),), 60))
        self.assertEqual(self.library.asked, [(b"a.example", None, socket.AF_UNSPEC, socket.SOCK_STREAM)])
        self.assertEqual(self.threads.getDelayedCalls(), [])

    def test_order(self) -> None:
        """Addresses keep the library's order, each once, without the zone of a link-local one."""
        self.library.known[b"a.example"] = found("fe80::1%1", "192.0.2.1", "fe80::1%2")
        looked_up = self.resolver.lookup("a.example")
        self.threads.finish()
        addresses = self.successResultOf(looked_up).addresses
        self.assertEqual(addresses, (IPv6Address("fe80::1"), IPv4Address("192.0.2.1")))

    def test_most(self) -> None:
        """Sixteen addresses are used."""
        self.library.known[b"a.example"] = found(*(f"192.0.2.{number}" for number in range(20)))
        looked_up = self.resolver.lookup("a.example")
        self.threads.finish()
        self.assertEqual(len(self.successResultOf(looked_up).addresses), 16)

    def test_no_such_name(self) -> None:
        """A name that the library does not find does not exist."""
        for code in socket.EAI_NONAME, socket.EAI_NODATA:
            self.library.known[b"a.example"] = socket.gaierror(code, "Name or service not known")
            looked_up = self.resolver.lookup("a.example")
            self.threads.finish()
            error = self.failureResultOf(looked_up, NameNotFound).value
            self.assertEqual((error.error, error.detail), (ErrorType.DNS_ERROR, 'no such name: "a.example"'))

    def test_failure(self) -> None:
        """Any other error says nothing of the name."""
        self.library.known[b"a.example"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        looked_up = self.resolver.lookup("a.example")
        self.threads.finish()
        error = self.error(looked_up)
        self.assertNotIsInstance(error, NameNotFound)
        self.assertEqual(error.error, ErrorType.DNS_ERROR)
        self.assertEqual(error.detail, 'the name "a.example" was not resolved: Temporary failure in name resolution')

    def test_timeout(self) -> None:
        """Nobody waits longer than the timeout; what the thread then brings is dropped."""
        looked_up = self.resolver.lookup("a.example")
        self.threads.advance(5)
        error = self.error(looked_up)
        self.assertEqual(
            (error.error, error.detail), (ErrorType.DNS_TIMEOUT, 'the name "a.example" was not resolved in time')
        )
        self.threads.finish()

    def test_cancel(self) -> None:
        """Cancelling leaves the thread to itself, and no timer."""
        looked_up = self.resolver.lookup("a.example")
        looked_up.cancel()
        self.failureResultOf(looked_up, CancelledError)
        self.threads.finish()
        self.assertEqual(self.threads.getDelayedCalls(), [])

    def test_hanging_names(self) -> None:
        """Sixty names that hang do not keep another one waiting."""
        hanging = [self.resolver.lookup("a.example") for _ in range(60)]
        other = self.resolver.lookup("a.example")
        self.threads.hanging.pop()()
        self.successResultOf(other)
        self.threads.advance(5)
        for looked_up in hanging:
            self.assertEqual(self.error(looked_up).error, ErrorType.DNS_TIMEOUT)

    def test_bounded_threads(self) -> None:
        """Beyond the most threads look-ups wait their turn; one that was given up is never made."""
        self.resolver = self.make(threads=1)
        first, given_up, second = (self.resolver.lookup("a.example") for _ in range(3))
        self.assertEqual(len(self.threads.hanging), 1)
        given_up.cancel()
        self.failureResultOf(given_up, CancelledError)
        self.threads.finish()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.threads.finish()
        self.successResultOf(second)
        self.assertEqual(self.threads.hanging, [])

    def test_bounded_waiting(self) -> None:
        """When too many wait already a look-up is refused; those that time out make room."""
        self.resolver = self.make(threads=1)
        waiting = [self.resolver.lookup("a.example") for _ in range(MAX_WAITING + 1)]
        self.assertEqual(self.error(self.resolver.lookup("a.example")).error, ErrorType.CONNECTION_LIMIT_REACHED)
        self.threads.advance(5)
        for looked_up in waiting:
            self.error(looked_up)
        self.assertNoResult(self.resolver.lookup("a.example"))

    def test_no_thread(self) -> None:
        """When the system has no more threads the look-up fails as one more than there may be, and the next may not."""

        def start(work: Callable[[], None]) -> None:
            raise RuntimeError("can't start new thread")

        self.resolver = SystemResolver(self.threads, timeout=5, ttl=60, threads=1, start_thread=start)
        for _ in range(2):
            self.assertEqual(self.error(self.resolver.lookup("a.example")).error, ErrorType.CONNECTION_LIMIT_REACHED)


class ThreadTests(TestCase):
    """Look-ups in real threads."""

    timeout = 10

    async def test_daemon(self) -> None:
        """A look-up runs in a thread of its own that does not hold up the exit."""
        seen: list[threading.Thread] = []

        def getaddrinfo(*asked: object) -> list[Any]:
            seen.append(threading.current_thread())
            return found("192.0.2.1")

        resolver = SystemResolver(reactor, timeout=5, ttl=60, getaddrinfo=getaddrinfo)
        self.assertEqual((await resolver.lookup("a.example")).addresses, (IPv4Address("192.0.2.1"),))
        self.assertEqual([thread.daemon for thread in seen], [True])
