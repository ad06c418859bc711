"""Tests for proxyd.ledger.access_log."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxyd.ledger.access_log import STOP_PATIENCE, AccessLog, AccessLogError, Encode
from proxyd.ledger.record import AccessRecord

R = TypeVar("R")


class ThreadClock(Clock):
    """A clock that takes calls from threads, as a reactor does."""

    def callFromThread(self, function: Callable[..., object], *args: object) -> None:
        function(*args)


class HeldPool:
    """A thread pool whose one thread works when told to."""

    def __init__(self) -> None:
        self.running = False
        self.work: list[Callable[[], None]] = []

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        assert not self.work, "a real pool would wait for its thread here"
        self.running = False

    def callInThreadWithCallback(self, on_result: Callable[[bool, Any], None], f: Callable[..., R], *args: Any) -> None:
        assert self.running

        def work() -> None:
            try:
                result = f(*args)
            except BaseException:  # noqa: BLE001 (as the real one does)
                on_result(False, Failure())
            else:
                on_result(True, result)

        self.work.append(work)

    def do_work(self) -> None:
        """Let the thread do all that it was given, and what comes of that."""
        while self.work:
            self.work.pop(0)()


class Disk:
    """Whether the disk works: ``os.write``, or an error."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def write(self, descriptor: int, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        return os.write(descriptor, data)


@implementer(ILogObserver)
class Messages:
    """What proxyd itself logs, as text."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event["log_namespace"].startswith("proxyd."):
            self.messages.append(formatEvent(event))


def encode_id(record: AccessRecord) -> bytes:
    return f"{record.id}\n".encode("ascii")


def encode_client(record: AccessRecord) -> bytes:
    return f"{record.client}\n".encode("ascii")


def a_record(id: str) -> AccessRecord:
    return AccessRecord(0.0, id, "forward", "forward", "192.0.2.1", 40000)


class AccessLogTests(SynchronousTestCase):
    """The access log with a clock, a thread that works when told to, and files."""

    def setUp(self) -> None:
        self.clock = ThreadClock()
        self.pool = HeldPool()
        self.disk = Disk()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "access.log"
        self.observer = Messages()
        globalLogPublisher.addObserver(self.observer)
        self.addCleanup(globalLogPublisher.removeObserver, self.observer)

    @property
    def messages(self) -> list[str]:
        """What the access log said about itself."""
        return [message.replace(str(self.path), "PATH") for message in self.observer.messages]

    def log(self, outputs: Sequence[tuple[Path, Encode]] | None = None, buffer: int = 1000) -> AccessLog:
        """A started log with one file of ids, or with these outputs."""
        paths = [(str(path), encode) for path, encode in outputs or [(self.path, encode_id)]]
        log = AccessLog(self.clock, paths, flush=0.2, buffer=buffer, pool=self.pool, write=self.disk.write)  # type: ignore[arg-type]
        log.start()
        return log

    def stop(self, log: AccessLog) -> None:
        """Stop a log whose thread works."""
        stopped = log.stop()
        self.pool.do_work()
        self.successResultOf(stopped)

    def flush(self) -> None:
        """Let the time of one flush pass, and the thread work."""
        self.clock.advance(0.2)
        self.pool.do_work()

    def test_written_after_flush_time(self) -> None:
        """Records wait until the flush time of the first has passed, then the thread writes them all."""
        log = self.log()
        log.record(a_record("1"))
        self.clock.advance(0.1)
        log.record(a_record("2"))
        self.assertEqual(self.pool.work, [])

        self.clock.advance(0.1)
        self.pool.do_work()

        self.assertEqual((self.path.read_bytes(), log.written, log.dropped), (b"1\n2\n", 2, 0))
        self.stop(log)

    def test_no_timer_without_records(self) -> None:
        """While nothing waits nothing is scheduled."""
        log = self.log()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        log.record(a_record("1"))
        self.flush()

        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.stop(log)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_encoded_once_for_each_format(self) -> None:
        """Files of the same format share its line; each file counts as one line of its own."""
        encoded = []

        def encode(record: AccessRecord) -> bytes:
            encoded.append(record.id)
            return encode_id(record)

        paths = [self.directory / name for name in ("a", "b", "c")]
        log = self.log([(paths[0], encode), (paths[1], encode_client), (paths[2], encode)])
        log.record(a_record("1"))
        self.stop(log)

        self.assertEqual([path.read_bytes() for path in paths], [b"1\n", b"192.0.2.1\n", b"1\n"])
        self.assertEqual((encoded, log.written), (["1"], 3))

    def test_records_while_writing(self) -> None:
        """What comes while the thread writes is the next batch, a flush time after the thread has ended."""
        log = self.log()
        log.record(a_record("1"))
        self.clock.advance(0.2)
        log.record(a_record("2"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.pool.do_work()
        self.assertEqual(self.path.read_bytes(), b"1\n")

        self.flush()

        self.assertEqual(self.path.read_bytes(), b"1\n2\n")
        self.stop(log)

    def test_bounded(self) -> None:
        """What does not fit the buffer is dropped and counted, those lines included that the thread has in hand."""
        log = self.log(buffer=6)
        for id in "123":
            log.record(a_record(id))
        self.clock.advance(0.2)
        log.record(a_record("4"))
        log.record(a_record("5"))
        self.assertEqual((log.written, log.dropped), (0, 2))
        self.pool.do_work()

        log.record(a_record("6"))
        self.flush()

        self.assertEqual((self.path.read_bytes(), log.written, log.dropped), (b"1\n2\n3\n6\n", 4, 2))
        self.assertEqual(
            self.messages,
            [
                "The access log's buffer of 6 bytes is full: records are lost.",
                "The access log keeps up again; 2 records were lost.",
            ],
        )
        self.stop(log)

    def test_full_disk(self) -> None:
        """A full disk is logged once, loses what it refuses, and is logged again when lines can be written."""
        log = self.log()
        self.disk.error = OSError(28, "No space left on device")
        for id in "12":
            log.record(a_record(id))
            self.flush()
        self.disk.error = None
        for id in "34":
            log.record(a_record(id))
            self.flush()

        self.assertEqual((self.path.read_bytes(), log.written, log.dropped), (b"3\n4\n", 2, 2))
        self.assertEqual(
            self.messages,
            ["Access log PATH: No space left on device", "Access log PATH is written again; 2 lines were lost."],
        )
        self.stop(log)

    def test_one_of_two_disks_is_full(self) -> None:
        """A file that cannot be written leaves the others alone."""
        log = self.log([(Path("/dev/full"), encode_id), (self.path, encode_id)])
        log.record(a_record("1"))
        self.flush()

        self.assertEqual((self.path.read_bytes(), log.written, log.dropped), (b"1\n", 1, 1))
        self.assertEqual(self.messages, ["Access log /dev/full: No space left on device"])
        self.stop(log)

    def test_bug_in_the_writer(self) -> None:
        """An error that is our own is logged as one, and the log goes on."""
        log = self.log()
        self.disk.error = ZeroDivisionError("a bug")
        log.record(a_record("1"))
        self.flush()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

        self.disk.error = None
        log.record(a_record("2"))
        self.flush()

        self.assertEqual(self.path.read_bytes(), b"2\n")
        self.stop(log)

    def test_reopen(self) -> None:
        """The files are opened anew at once, and what waited goes into the new one."""
        log = self.log()
        log.record(a_record("1"))
        self.flush()
        log.record(a_record("2"))
        self.path.rename(self.directory / "old")

        log.reopen()
        self.pool.do_work()

        self.assertEqual(((self.directory / "old").read_bytes(), self.path.read_bytes()), (b"1\n", b"2\n"))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.stop(log)

    def test_reopen_while_writing(self) -> None:
        """If the thread is at work, the files are opened anew as soon as it has ended."""
        log = self.log()
        log.record(a_record("1"))
        self.clock.advance(0.2)
        log.reopen()
        work = self.pool.work.pop()
        work()
        self.path.rename(self.directory / "old")

        self.pool.do_work()

        self.assertEqual(self.path.read_bytes(), b"")
        self.stop(log)

    def test_stop_writes_what_waits(self) -> None:
        """Stopping writes what waits, and what comes meanwhile, then closes the files and ends the thread."""
        log = self.log()
        descriptors = len(os.listdir("/proc/self/fd"))
        log.record(a_record("1"))

        stopped = log.stop()
        log.record(a_record("2"))
        self.assertNoResult(stopped)
        self.pool.do_work()

        self.successResultOf(stopped)
        self.assertEqual(self.path.read_bytes(), b"1\n2\n")
        self.assertEqual((len(os.listdir("/proc/self/fd")), self.pool.running), (descriptors - 1, False))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_after_stop(self) -> None:
        """Once stopped, records are dropped and counted, and to open anew or to stop again does nothing."""
        log = self.log()
        self.stop(log)

        log.record(a_record("1"))
        log.reopen()
        self.successResultOf(log.stop())

        self.assertEqual((log.dropped, self.path.read_bytes(), self.messages), (1, b"", []))

    def test_stop_gives_up(self) -> None:
        """A write that hangs holds up the stop for the time of patience only, and may end later."""
        log = self.log()
        log.record(a_record("1"))
        stopped = log.stop()
        self.clock.advance(STOP_PATIENCE - 0.1)
        self.assertNoResult(stopped)

        self.clock.advance(0.1)

        self.successResultOf(stopped)
        self.assertEqual(self.messages, ["The access log's writer hangs: 2 bytes of records are lost."])
        self.pool.do_work()
        self.assertEqual(self.path.read_bytes(), b"1\n")

    def test_cannot_be_opened(self) -> None:
        """A log that cannot be opened does not start: the error names the path, and no other file stays open."""
        descriptors = len(os.listdir("/proc/self/fd"))

        error = self.assertRaises(AccessLogError, self.log, [(self.path, encode_id), (self.directory, encode_id)])

        self.assertEqual(str(error), f"access log {self.directory}: Is a directory")
        self.assertEqual(len(os.listdir("/proc/self/fd")), descriptors)

    def test_no_outputs(self) -> None:
        """Without any file records go nowhere, and nothing waits for them."""
        log = AccessLog(self.clock, [], flush=0.2, buffer=1000, pool=self.pool)  # type: ignore[arg-type]
        log.start()

        log.record(a_record("1"))

        self.assertEqual((self.clock.getDelayedCalls(), log.dropped), ([], 0))
        self.stop(log)
