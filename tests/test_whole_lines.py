"""Tests for proxyd.ledger.whole_lines."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxyd.ledger.whole_lines import UNDIVIDED, portions, write_whole_lines


def lines(count: int, length: int) -> bytes:
    """So many lines, each of this length and all different."""
    return b"".join(b"%0*d\n" % (length - 1, number) for number in range(count))


class PortionsTests(SynchronousTestCase):
    """How lines are put together."""

    def test_all(self) -> None:
        """All is there, in order, in as few portions of whole lines as a pipe takes undivided."""
        data = lines(100, 100)
        found = list(portions(data))
        self.assertEqual(b"".join(found), data)
        self.assertTrue(all(len(portion) <= UNDIVIDED and portion.endswith(b"\n") for portion in found))
        self.assertEqual(len(found), -(-100 // (UNDIVIDED // 100)))

    def test_exact(self) -> None:
        """A portion may be as large as a pipe takes, and no larger."""
        data = b"x" * (UNDIVIDED - 1) + b"\n"
        self.assertEqual(list(portions(data)), [data])
        self.assertEqual(list(portions(data + b"\n")), [data, b"\n"])
        self.assertEqual(list(portions(b"\n" + data)), [b"\n", data])

    def test_long_line(self) -> None:
        """A line that is longer is alone."""
        long = b"x" * UNDIVIDED + b"\n"
        self.assertEqual(list(portions(b"a\n" + long + b"b\n")), [b"a\n", long, b"b\n"])

    def test_no_end(self) -> None:
        """What has no line end is given too."""
        self.assertEqual(list(portions(b"")), [])
        self.assertEqual(list(portions(b"a\nb")), [b"a\n", b"b"])


class WriteTests(SynchronousTestCase):
    """What is written where."""

    def pipe(self) -> tuple[int, int]:
        """Both ends of a pipe that never blocks."""
        ends = os.pipe2(os.O_NONBLOCK)
        for end in ends:
            self.addCleanup(os.close, end)
        return ends

    def test_file(self) -> None:
        """All is appended to a file."""
        path = Path(self.mktemp())
        data = lines(1000, 100)
        with path.open("ab", 0) as file:
            self.assertEqual(write_whole_lines(file.fileno(), data), len(data))
        self.assertEqual(path.read_bytes(), data)

    def test_pipe(self) -> None:
        """All goes into a pipe that has room."""
        reader, writer = self.pipe()
        data = lines(300, 100)
        self.assertEqual(write_whole_lines(writer, data), len(data))
        self.assertEqual(os.read(reader, 100_000), data)

    def test_full_pipe(self) -> None:
        """What a pipe has no room for is not counted; no line in it is cut."""
        reader, writer = self.pipe()
        written = write_whole_lines(writer, lines(10_000, 100))
        self.assertEqual(os.read(reader, 10_000_000), lines(10_000, 100)[:written])
        self.assertEqual(written % 100, 0)

    def test_no_room(self) -> None:
        """It is an error if nothing at all could be written."""
        _, writer = self.pipe()
        write_whole_lines(writer, lines(10_000, 100))
        self.assertRaises(BlockingIOError, write_whole_lines, writer, lines(1, 100))

    def test_cut_line(self) -> None:
        """Where a long line is cut, what is behind it is not written: the next batch begins a line."""
        reader, writer = self.pipe()
        data = b"x" * 1_000_000 + b"\nb\n"
        written = write_whole_lines(writer, data)
        self.assertLess(written, 1_000_000)
        self.assertEqual(os.read(reader, 10_000_000), data[:written])
