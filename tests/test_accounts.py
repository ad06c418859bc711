"""Tests for proxyd.accounts.accounts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, execute, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.accounts.accounts import Accounts
from proxyd.accounts.htpasswd import AccountsError
from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Identity

ALICE = "alice:$2b$04$8cKoJT7eU0OzaTzQ7HJVNuB1havLCeXe3venHPXz99pJRDKjRm1m.\n"
"""Her password is ``correct horse``."""
BOB = "bob:$2b$05$7UizpVeUH4DbJstFfeu6oePgDbZpKxjb9rHCIe7XsEmEXI1xvugoO\n"
"""His password is ``staple``."""
WAS_BOB = "bob:$2b$04$8cKoJT7eU0OzaTzQ7HJVNuB1havLCeXe3venHPXz99pJRDKjRm1m.\n"
"""Bob with another password, in a line as long as the other."""

T = TypeVar("T")


class Threads:
    """A pool whose threads work when they are told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, work: Callable[[], T], /) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self.waiting.append((work, result))
        return result

    def work(self) -> None:
        """Do all that is waiting, then tell what came of it; what is asked for then waits."""
        waiting, self.waiting = self.waiting, []
        for outcome, result in [(execute(work), result) for work, result in waiting]:
            outcome.chainDeferred(result)


def break_down(work: Callable[[], T], /) -> Deferred[T]:
    """A pool in which nothing can be done."""
    return fail(RuntimeError("out of memory"))


class AccountsTestCase(SynchronousTestCase):
    """A password file, and accounts that read it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = Threads()
        self.path = Path(self.mktemp())
        self.path.write_text(ALICE + BOB)

    def accounts(self, *, cache_time: float = 60, **arguments: Any) -> Accounts:
        return Accounts(self.clock, self.path, cache_time=cache_time, defer_to_pool=self.threads, **arguments)

    def started(self, **arguments: Any) -> Accounts:
        accounts = self.accounts(**arguments)
        accounts.start()
        self.addCleanup(accounts.stop)
        return accounts

    def ask(self, accounts: Accounts, name: bytes, password: bytes) -> Deferred[Identity | None]:
        """Ask for a verdict that is not known yet."""
        asker = accounts.authenticate(name, password, "basic")
        assert isinstance(asker, Deferred)
        return asker

    def answer(self, accounts: Accounts, name: bytes, password: bytes) -> Identity | None:
        """The verdict after a check."""
        asker = self.ask(accounts, name, password)
        self.assertNoResult(asker)
        self.threads.work()
        return self.successResultOf(asker)

    def look(self) -> list[str]:
        """Let a second go by and the file be looked at; returns what was logged as wrong."""
        with capturedLogs() as events:
            self.clock.advance(1)
            self.threads.work()
        return [formatEvent(event) for event in events if event["log_level"].name == "error"]


class AuthenticateTests(AccountsTestCase):
    """Tests for Accounts.authenticate."""

    def test_right_password(self) -> None:
        """The right password gives the identity, with the proof of the door."""
        self.assertEqual(self.answer(self.accounts(), b"alice", b"correct horse"), Identity("alice", "basic"))

    def test_wrong_password(self) -> None:
        """A wrong password and an unknown name give nobody."""
        accounts = self.accounts()
        for name, password in (
            (b"alice", b"staple"),
            (b"carol", b"staple"),
            (b"alice\x00", b"correct horse"),
            (b"\xff", b"staple"),
            (b"alice", b"x" * 100),
            (b"alice", b"\x00"),
        ):
            self.assertIsNone(self.answer(accounts, name, password))

    def test_remembered(self) -> None:
        """A verdict is remembered for the cache time, and for every door."""
        accounts = self.accounts(cache_time=60)
        self.answer(accounts, b"alice", b"correct horse")
        self.clock.advance(59.9)
        self.assertEqual(accounts.authenticate(b"alice", b"correct horse", "socks5"), Identity("alice", "socks5"))
        self.clock.advance(0.1)
        self.assertEqual(self.answer(accounts, b"alice", b"correct horse"), Identity("alice", "basic"))
        self.assertEqual(accounts.authenticate(b"alice", b"correct horse", "basic"), Identity("alice", "basic"))

    def test_refusal_remembered(self) -> None:
        """A refusal is remembered for five seconds."""
        accounts = self.accounts(cache_time=60)
        self.answer(accounts, b"alice", b"staple")
        self.clock.advance(4.9)
        self.assertIsNone(accounts.authenticate(b"alice", b"staple", "basic"))
        self.clock.advance(0.1)
        self.ask(accounts, b"alice", b"staple")

    def test_refusal_not_remembered_longer(self) -> None:
        """A refusal is not remembered for longer than a success."""
        accounts = self.accounts(cache_time=2)
        self.answer(accounts, b"alice", b"staple")
        self.clock.advance(2)
        self.ask(accounts, b"alice", b"staple")

    def test_nothing_remembered(self) -> None:
        """With a cache time of zero every password is checked."""
        accounts = self.accounts(cache_time=0)
        for _ in range(2):
            self.assertEqual(self.answer(accounts, b"alice", b"correct horse"), Identity("alice", "basic"))

    def test_remembered_with_password(self) -> None:
        """A verdict is that of one name and one password, wherever the one ends and the other begins."""
        accounts = self.accounts()
        self.answer(accounts, b"alice", b"correct horse")
        for name, password in ((b"alice", b"correct hors"), (b"alic", b"ecorrect horse"), (b"alicecorrect horse", b"")):
            self.assertIsNone(self.answer(accounts, name, password))

    def test_oldest_forgotten(self) -> None:
        """Beyond the limit the verdict that was reached first is forgotten."""
        accounts = self.accounts(max_verdicts=2, cache_time=5)
        self.answer(accounts, b"alice", b"correct horse")
        self.answer(accounts, b"bob", b"staple")
        self.clock.advance(5)
        self.answer(accounts, b"alice", b"correct horse")
        self.answer(accounts, b"carol", b"")
        self.assertEqual(accounts.authenticate(b"alice", b"correct horse", "basic"), Identity("alice", "basic"))
        self.assertIsNone(accounts.authenticate(b"carol", b"", "basic"))
        self.answer(accounts, b"dave", b"")
        self.assertEqual(self.answer(accounts, b"alice", b"correct horse"), Identity("alice", "basic"))

    def test_recalled(self) -> None:
        """Words that have proven somebody do so for as long as the verdict on the name and the password in them."""
        accounts = self.accounts(cache_time=60)
        self.assertIsNone(accounts.recall(b"Basic x"))
        self.answer(accounts, b"alice", b"correct horse")
        self.clock.advance(20)
        accounts.authenticate(b"alice", b"correct horse", "basic", b"Basic x")
        self.clock.advance(39.9)
        self.assertEqual(accounts.recall(b"Basic x"), Identity("alice", "basic"))
        self.assertIsNone(accounts.recall(b"Basic y"))
        self.clock.advance(0.1)
        self.assertIsNone(accounts.recall(b"Basic x"))

    def test_nobody_recalled(self) -> None:
        """Words that have proven nobody are not remembered, nor those that nobody asks for, nor any number of them."""
        accounts = self.accounts(max_verdicts=2)
        self.answer(accounts, b"alice", b"correct horse")
        self.answer(accounts, b"carol", b"")
        accounts.authenticate(b"carol", b"", "basic", b"Basic wrong")
        self.assertIsNone(accounts.recall(b"Basic wrong"))
        accounts.authenticate(b"alice", b"correct horse", "socks5")
        self.assertIsNone(accounts.recall(b""))
        for words in (b"1", b"2", b"3"):
            accounts.authenticate(b"alice", b"correct horse", "basic", words)
        self.assertEqual([accounts.recall(words) is None for words in (b"1", b"2", b"3")], [True, True, False])

    def test_joined(self) -> None:
        """Who asks for a verdict that is being reached waits for the same check."""
        accounts = self.accounts()
        first = self.ask(accounts, b"alice", b"correct horse")
        second = accounts.authenticate(b"alice", b"correct horse", "socks5")
        assert isinstance(second, Deferred)
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.work()
        self.assertEqual(self.successResultOf(first), Identity("alice", "basic"))
        self.assertEqual(self.successResultOf(second), Identity("alice", "socks5"))

    def test_cancelled(self) -> None:
        """Who leaves does not take the check away from the others."""
        accounts = self.accounts()
        first, second = (self.ask(accounts, b"alice", b"correct horse") for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.threads.work()
        self.assertEqual(self.successResultOf(second), Identity("alice", "basic"))

    def test_full_queue(self) -> None:
        """When too many checks wait, only those are answered whose verdict is known or being reached."""
        accounts = self.accounts(queue=2)
        self.answer(accounts, b"bob", b"staple")
        askers = [self.ask(accounts, name, b"") for name in (b"alice", b"carol", b"alice")]
        error = self.assertRaises(ProxyError, accounts.authenticate, b"dave", b"", "basic")
        self.assertIs(error.error, ErrorType.CONNECTION_LIMIT_REACHED)
        self.assertEqual(accounts.authenticate(b"bob", b"staple", "basic"), Identity("bob", "basic"))
        self.threads.work()
        self.assertEqual([self.successResultOf(asker) for asker in askers], [None, None, None])
        self.assertIsNone(self.answer(accounts, b"dave", b""))

    def test_broken_check(self) -> None:
        """A check that breaks is our error, logged once, and not a verdict."""
        accounts = self.accounts()
        askers = [self.ask(accounts, b"alice", b"correct horse") for _ in range(2)]
        [(_, result)] = self.threads.waiting
        result.errback(RuntimeError("out of memory"))
        for asker in askers:
            error = self.failureResultOf(asker, ProxyError).value
            self.assertIs(error.error, ErrorType.PROXY_INTERNAL_ERROR)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.ask(accounts, b"alice", b"correct horse")

    def test_no_secret(self) -> None:
        """No password is in a log event, an error or a representation."""
        with capturedLogs() as events:
            broken = Accounts(self.clock, self.path, cache_time=60, defer_to_pool=break_down)
            failure = self.failureResultOf(self.ask(broken, b"alice", b"canary-7f3a"))
            accounts = self.accounts()
            asker = self.ask(accounts, b"alice", b"canary-7f3a")
            texts = [repr(asker), repr(vars(accounts))]
            self.threads.work()
            self.answer(accounts, b"alice", b"correct horse")
            accounts.authenticate(b"alice", b"correct horse", "basic", b"canary-words")
            texts += [repr(asker), repr(vars(accounts)), str(failure), failure.getTraceback()]
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(len(events), 1)
        texts += [formatEvent(event) + repr(event) + event["log_failure"].getTraceback() for event in events]
        self.assertNotIn("canary", "".join(texts))


class FileTests(AccountsTestCase):
    """Tests for changes of the password file."""

    def test_unusable_at_start(self) -> None:
        """A file that cannot be used when the accounts are made is an error."""
        self.path.write_text("alice:plain\n")
        error = self.assertRaises(AccountsError, self.accounts)
        self.assertIn(f"{self.path}:1: user 'alice'", str(error))

    def test_missing_at_start(self) -> None:
        """A file that is not there when the accounts are made is an error."""
        self.path.unlink()
        self.assertRaises(AccountsError, self.accounts)

    def test_changed(self) -> None:
        """A changed file is read within a second, and all verdicts are forgotten."""
        accounts = self.started()
        self.answer(accounts, b"alice", b"correct horse")
        accounts.authenticate(b"alice", b"correct horse", "basic", b"Basic x")
        self.answer(accounts, b"bob", b"correct horse")
        self.path.write_text(WAS_BOB)
        self.assertEqual(self.look(), [])
        self.assertIsNone(accounts.recall(b"Basic x"))
        self.assertIsNone(self.answer(accounts, b"alice", b"correct horse"))
        self.assertEqual(self.answer(accounts, b"bob", b"correct horse"), Identity("bob", "basic"))

    def test_replaced(self) -> None:
        """A file of the same size and time but another inode is another file."""
        accounts = self.started()
        other = self.path.with_suffix(".new")
        other.write_text(ALICE + WAS_BOB)
        os.utime(other, ns=(0, self.path.stat().st_mtime_ns))
        os.replace(other, self.path)
        self.look()
        self.assertEqual(self.answer(accounts, b"bob", b"correct horse"), Identity("bob", "basic"))

    def test_unchanged(self) -> None:
        """A file whose size, time and inode are the same is not read, and the verdicts stay."""
        accounts = self.started()
        self.answer(accounts, b"alice", b"correct horse")
        before = self.path.stat().st_mtime_ns
        self.path.write_text("#" * len(ALICE + BOB))
        os.utime(self.path, ns=(0, before))
        self.look()
        self.assertEqual(accounts.authenticate(b"alice", b"correct horse", "basic"), Identity("alice", "basic"))

    def test_interval(self) -> None:
        """The file is looked at once a second, in a thread, and never twice at the same time."""
        self.started()
        self.clock.advance(0.9)
        self.assertEqual(len(self.threads.waiting), 0)
        self.clock.advance(0.1)
        self.clock.advance(1)
        self.assertEqual(len(self.threads.waiting), 1)
        self.threads.work()
        self.clock.advance(1)
        self.assertEqual(len(self.threads.waiting), 1)

    def test_broken(self) -> None:
        """A file that is broken later is logged once, and the accounts stay as they were until it is mended."""
        accounts = self.started()
        self.path.write_text("alice:canary-7f3a\n")
        [problem] = self.look()
        self.assertTrue(problem.startswith(f"{self.path}:1: user 'alice': the password is in plain text"), problem)
        self.assertNotIn("canary", problem)
        self.assertEqual(self.look(), [])
        self.assertEqual(self.answer(accounts, b"alice", b"correct horse"), Identity("alice", "basic"))
        self.path.write_text(WAS_BOB)
        self.assertEqual(self.look(), [])
        self.assertIsNone(self.answer(accounts, b"alice", b"correct horse"))

    def test_braces_in_problem(self) -> None:
        """A problem is logged as it is, whatever signs are in it."""
        self.started()
        self.path.write_text("{name}:plain\n")
        [problem] = self.look()
        self.assertIn("user '{name}'", problem)

    def test_missing(self) -> None:
        """A file that vanishes is logged once, and the accounts stay; it may come back."""
        accounts = self.started()
        content = self.path.read_text()
        self.path.unlink()
        self.assertEqual(len(self.look()), 1)
        self.assertEqual(len(self.look()), 0)
        self.assertEqual(self.answer(accounts, b"bob", b"staple"), Identity("bob", "basic"))
        self.path.write_text(content.replace(BOB, ""))
        self.look()
        self.assertIsNone(self.answer(accounts, b"bob", b"staple"))

    def test_changed_during_check(self) -> None:
        """A verdict that was reached on the file before is not given: the check is made anew."""
        accounts = self.started()
        self.path.write_text(WAS_BOB)
        self.clock.advance(1)
        asker = self.ask(accounts, b"bob", b"staple")
        self.threads.work()
        self.assertNoResult(asker)
        self.threads.work()
        self.assertIsNone(self.successResultOf(asker))

    def test_watch_broken(self) -> None:
        """Should watching break, that is logged, and the accounts go on as they are."""
        accounts = Accounts(self.clock, self.path, cache_time=60, defer_to_pool=break_down)
        accounts.start()
        self.clock.advance(1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        accounts.stop()


class StopTests(AccountsTestCase):
    """Tests for Accounts.stop."""

    def test_watch(self) -> None:
        """The file is watched no more."""
        accounts = self.accounts()
        accounts.start()
        accounts.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_started(self) -> None:
        """Accounts that were never started can be stopped."""
        self.accounts().stop()

    def test_waiting(self) -> None:
        """Who waits is sent away, and what the thread then finds is nothing that counts."""
        accounts = self.accounts()
        accounts.start()
        asker = self.ask(accounts, b"alice", b"correct horse")
        accounts.stop()
        self.assertIs(self.failureResultOf(asker, ProxyError).value.error, ErrorType.CONNECTION_LIMIT_REACHED)
        self.threads.work()
        self.assertRaises(ProxyError, accounts.authenticate, b"alice", b"correct horse", "basic")

    def test_cancelled(self) -> None:
        """Who has left is not told."""
        accounts = self.accounts()
        asker = self.ask(accounts, b"alice", b"correct horse")
        asker.cancel()
        self.failureResultOf(asker, CancelledError)
        accounts.stop()

    def test_broken_afterwards(self) -> None:
        """A check that breaks after the stop is logged still."""
        breaking: Deferred[Any] = Deferred()
        accounts = Accounts(self.clock, self.path, cache_time=60, defer_to_pool=lambda work: breaking)
        asker = self.ask(accounts, b"alice", b"correct horse")
        accounts.stop()
        self.failureResultOf(asker, ProxyError)
        breaking.errback(RuntimeError("out of memory"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class ThreadTests(TestCase):
    """Tests for the real threads, on the real reactor."""

    def started(self) -> Accounts:
        from twisted.internet import reactor  # noqa: TID251 - a test of the real pool needs the real reactor

        path = Path(self.mktemp())
        path.write_text(ALICE + BOB)
        accounts = Accounts(reactor, path, cache_time=60)
        accounts.start()
        return accounts

    def threads(self) -> int:
        return sum("accounts" in thread.name for thread in threading.enumerate())

    async def test_checks(self) -> None:
        """Checks made at once reach each its own verdict, in threads."""
        accounts = self.started()
        self.addCleanup(accounts.stop)
        for asker, expected in [
            (accounts.authenticate(name, password, "socks5"), expected)
            for name, password, expected in (
                (b"alice", b"correct horse", Identity("alice", "socks5")),
                (b"bob", b"staple", Identity("bob", "socks5")),
                (b"bob", b"correct horse", None),
                (b"carol", b"staple", None),
                (b"bob", b"staple", Identity("bob", "socks5")),
            )
        ]:
            assert isinstance(asker, Deferred)
            self.assertEqual(await asker, expected)
        self.assertIn(self.threads(), (1, 2))

    def test_stop(self) -> None:
        """A stop sends away all who wait, and ends the threads."""
        accounts = self.started()
        askers = [accounts.authenticate(b"alice", b"%d" % number, "socks5") for number in range(256)]
        accounts.stop()
        for asker in askers:
            assert isinstance(asker, Deferred)
            self.failureResultOf(asker, ProxyError)
        self.assertEqual(self.threads(), 0)
