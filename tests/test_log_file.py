"""Tests for proxyd.ledger.log_file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxyd.ledger.log_file import LogFile, Outcome, Write


class Disk:
    """A disk with so much room, and then none: ``os.write`` as it behaves there."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.writes: list[tuple[int, bytes]] = []

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = data[: self.room]
        self.room -= len(taken)
        self.writes.append((descriptor, taken))
        return os.write(descriptor, taken) if descriptor != 1 else len(taken)


class LogFileTests(SynchronousTestCase):
    """One file, and everything that can happen to it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "access.log"
        self.rotated = self.directory / "access.log.1"

    def file(self, write: Write = os.write) -> LogFile:
        """An open file at the path."""
        file = LogFile(str(self.path), write)
        file.open()
        self.addCleanup(file.close)
        return file

    def test_append(self) -> None:
        """Lines are added to those that are there."""
        self.path.write_bytes(b"old\n")
        file = self.file()

        self.assertEqual(file.append(b"a\nb\n", 0.0), Outcome(2, 0, ""))
        self.assertEqual(file.append(b"c\n", 0.2), Outcome(1, 0, ""))

        self.assertEqual(self.path.read_bytes(), b"old\na\nb\nc\n")

    def test_created_for_owner_and_group(self) -> None:
        """A new file can be read by owner and group and by nobody else, and is not inherited by programs."""
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)
        self.file()

        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)

    def test_no_lines(self) -> None:
        """Where there is nothing to write, nothing is written."""
        disk = Disk(room=0)

        self.assertEqual(self.file(disk.write).append(b"", 0.0), Outcome(0, 0, ""))

    def test_one_write_for_a_batch(self) -> None:
        """A batch is one write, so that lines of several processes do not mix."""
        disk = Disk(room=100)

        self.file(disk.write).append(b"a\nb\nc\n", 0.0)

        self.assertEqual([data for _, data in disk.writes], [b"a\nb\nc\n"])

    def test_standard_output(self) -> None:
        """The path - is standard output, which is never opened, moved or closed."""
        disk = Disk(room=100)
        file = LogFile("-", disk.write)

        file.open()
        outcome = file.append(b"a\n", 100.0, reopen=True)
        file.close()

        self.assertEqual((outcome, disk.writes), (Outcome(1, 0, ""), [(1, b"a\n")]))
        os.fstat(1)

    def test_full_disk(self) -> None:
        """A batch that a full disk refuses is lost, and the next one is written once there is room again."""
        disk = Disk(room=0)
        file = self.file(disk.write)

        self.assertEqual(file.append(b"a\nb\n", 0.0), Outcome(0, 2, "No space left on device"))
        disk.room = 100
        self.assertEqual(file.append(b"c\n", 0.2), Outcome(1, 0, ""))

        self.assertEqual(self.path.read_bytes(), b"c\n")

    def test_short_write(self) -> None:
        """What a short write left over is lost from the line that it broke, of which nothing stays in the file."""
        disk = Disk(room=6)
        file = self.file(disk.write)

        self.assertEqual(file.append(b"one\ntwo\nthree\n", 0.0), Outcome(1, 2, "only 6 of 14 bytes could be written"))
        self.assertEqual(file.append(b"four\n", 0.2), Outcome(0, 1, "No space left on device"))
        disk.room = 100
        self.assertEqual(file.append(b"five\n", 0.4), Outcome(1, 0, ""))
        self.assertEqual(file.append(b"six\n", 0.6), Outcome(1, 0, ""))

        self.assertEqual(self.path.read_bytes(), b"one\nfive\nsix\n")

    def test_short_write_between_lines(self) -> None:
        """A short write that ends with a line leaves nothing to mend."""
        disk = Disk(room=4)
        file = self.file(disk.write)

        self.assertEqual(file.append(b"one\ntwo\n", 0.0), Outcome(1, 1, "only 4 of 8 bytes could be written"))
        disk.room = 100
        file.append(b"three\n", 0.2)

        self.assertEqual(self.path.read_bytes(), b"one\nthree\n")

    def test_short_write_of_another_process(self) -> None:
        """Another process's line that a full disk broke does not spoil ours behind it."""
        other, file = self.file(Disk(room=10).write), self.file()

        other.append(b"one\nbroken\n", 0.0)
        file.append(b"two\n", 0.0)

        self.assertEqual(self.path.read_bytes(), b"one\ntwo\n")

    def test_locked(self) -> None:
        """While one process writes, and takes back what it broke, no other that heeds locks does."""
        locked: list[bool] = []

        def write(descriptor: int, data: bytes) -> int:
            locked.append(self.is_locked())
            return os.write(descriptor, data)

        self.file(write).append(b"a\n", 0.0)

        self.assertEqual((locked, self.is_locked()), ([True], False))

    def is_locked(self) -> bool:
        """Whether a process that wants the file for itself would have to wait."""
        with self.path.open("ab") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def test_somebody_else_writes(self) -> None:
        """What a program without locks has written behind a broken line stays, and the next batch begins a line."""

        def write(descriptor: int, data: bytes) -> int:
            with self.path.open("ab") as theirs:
                done = os.write(descriptor, data[:2])
                theirs.write(b" theirs")
            return done

        file = self.file(write)
        file.append(b"one\n", 0.0)
        file.append(b"two\n", 0.2)

        self.assertEqual(self.path.read_bytes(), b"on theirs\nt theirs")

    def test_cannot_be_taken_back(self) -> None:
        """In a file that may only grow the next batch ends the line that was broken."""
        growing = os.memfd_create("log", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, growing)
        fcntl.fcntl(growing, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.path.symlink_to(f"/proc/self/fd/{growing}")
        disk = Disk(room=2)
        file = self.file(disk.write)
        file.append(b"one\n", 0.0)
        disk.room = 100

        file.append(b"two\n", 0.2)

        self.assertEqual(os.pread(growing, 100, 0), b"on\ntwo\n")

    def test_broken_line_stays_behind_in_a_rotated_file(self) -> None:
        """A line that was broken in what was open before does not put a newline into what is new."""
        disk = Disk(room=2)
        file, reader = self.fifo(disk.write)
        file.append(b"one\n", 0.0)
        self.path.rename(self.rotated)
        disk.room = 100

        file.append(b"two\n", 0.2, reopen=True)

        self.assertEqual((os.read(reader, 100), self.path.read_bytes()), (b"on", b"two\n"))

    def test_nothing_written(self) -> None:
        """A write that takes nothing and does not say why loses the batch and breaks no line."""
        file = self.file(lambda descriptor, data: 0)

        self.assertEqual(file.append(b"one\n", 0.0), Outcome(0, 1, "only 0 of 4 bytes could be written"))

    def test_rotated(self) -> None:
        """A file that was moved away is noticed within a second, and a new one begun."""
        file = self.file()
        file.append(b"a\n", 10.0)
        self.path.rename(self.rotated)

        file.append(b"b\n", 10.9)
        file.append(b"c\n", 11.0)

        self.assertEqual((self.rotated.read_bytes(), self.path.read_bytes()), (b"a\nb\n", b"c\n"))

    def test_replaced(self) -> None:
        """A path that leads to another file is followed."""
        file = self.file()
        file.append(b"a\n", 10.0)
        self.path.rename(self.rotated)
        self.path.write_bytes(b"new\n")

        file.append(b"b\n", 11.0)

        self.assertEqual(self.path.read_bytes(), b"new\nb\n")

    def test_reopen(self) -> None:
        """When told to, the file is opened anew at once, lines or not, and the old one is closed."""
        file = self.file()
        file.append(b"a\n", 10.0)
        self.path.rename(self.rotated)
        count = len(os.listdir("/proc/self/fd"))

        self.assertEqual(file.append(b"", 10.1, reopen=True), Outcome(0, 0, ""))

        self.assertEqual((self.path.read_bytes(), len(os.listdir("/proc/self/fd"))), (b"", count))

    def test_cannot_be_reopened(self) -> None:
        """While the path cannot be opened, lines go on into the old file, and it is tried again each second."""
        file = self.file()
        file.append(b"a\n", 10.0)
        self.path.rename(self.rotated)
        self.path.mkdir()

        self.assertEqual(file.append(b"b\n", 11.0), Outcome(1, 0, "Is a directory"))
        self.path.rmdir()
        self.assertEqual(file.append(b"c\n", 11.5), Outcome(1, 0, "Is a directory"))
        self.assertEqual(file.append(b"d\n", 12.0), Outcome(1, 0, ""))

        self.assertEqual((self.rotated.read_bytes(), self.path.read_bytes()), (b"a\nb\nc\n", b"d\n"))

    def test_nowhere(self) -> None:
        """Lines are lost while the file has no name any more and no new one can be made."""
        file = self.file()
        file.append(b"a\n", 10.0)
        self.path.unlink()
        self.directory.rmdir()

        self.assertEqual(file.append(b"b\nc\n", 11.0), Outcome(0, 2, "No such file or directory"))
        self.assertEqual(file.append(b"d\n", 12.0), Outcome(0, 1, "No such file or directory"))
        self.directory.mkdir()
        self.assertEqual(file.append(b"e\n", 13.0), Outcome(1, 0, ""))

        self.assertEqual(self.path.read_bytes(), b"e\n")

    def test_fifo_without_reader(self) -> None:
        """A FIFO that nobody reads is an error and not a wait; with a reader, lines are written to it."""
        os.mkfifo(self.path)
        file = LogFile(str(self.path))

        self.assertEqual(self.assertRaises(OSError, file.open).errno, errno.ENXIO)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        file.open()
        self.addCleanup(file.close)
        file.append(b"a\n", 10.0)

        self.assertEqual(os.read(reader, 100), b"a\n")

    def fifo(self, write: Write) -> tuple[LogFile, int]:
        """A FIFO at the path that is open for writing, and the descriptor that reads it."""
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        return self.file(write), reader

    def test_short_write_to_a_fifo(self) -> None:
        """From a FIFO nothing can be taken back: the next batch ends the line that was broken."""
        disk = Disk(room=6)
        file, reader = self.fifo(disk.write)

        self.assertEqual(file.append(b"one\ntwo\nthree\n", 0.0), Outcome(1, 2, "only 6 of 14 bytes could be written"))
        self.assertEqual(file.append(b"four\n", 0.2), Outcome(0, 1, "No space left on device"))
        disk.room = 100
        self.assertEqual(file.append(b"five\n", 0.4), Outcome(1, 0, ""))
        self.assertEqual(file.append(b"six\n", 0.6), Outcome(1, 0, ""))

        self.assertEqual(os.read(reader, 100), b"one\ntw\nfive\nsix\n")

    def test_short_write_of_the_ending_newline(self) -> None:
        """If only the newline that ends a broken line found room, the lines behind it are lost."""
        disk = Disk(room=2)
        file, reader = self.fifo(disk.write)
        file.append(b"one\n", 0.0)
        disk.room = 1

        self.assertEqual(file.append(b"two\n", 0.2), Outcome(0, 1, "only 1 of 5 bytes could be written"))
        disk.room = 100
        file.append(b"three\n", 0.4)

        self.assertEqual(os.read(reader, 100), b"on\nthree\n")

    def test_broken_line_of_the_same_fifo(self) -> None:
        """A line that was broken is ended too after the same FIFO was opened again."""
        disk = Disk(room=2)
        file, reader = self.fifo(disk.write)
        file.append(b"one\n", 0.0)
        disk.room = 100

        file.append(b"two\n", 0.2, reopen=True)

        self.assertEqual(os.read(reader, 100), b"on\ntwo\n")

    def test_standard_output_is_not_taken_back(self) -> None:
        """Standard output is others' too, so what was written there stays."""
        disk = Disk(room=2)
        file = LogFile("-", disk.write)
        file.open()
        file.append(b"one\n", 0.0)
        disk.room = 100

        file.append(b"two\n", 0.2)

        self.assertEqual(disk.writes, [(1, b"on"), (1, b"\ntwo\n")])
