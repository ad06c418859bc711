"""Lines into a pipe that several processes write to."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator

UNDIVIDED = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes as a whole, whoever else writes at that moment; 512 is what POSIX promises everywhere."""


def write_whole_lines(descriptor: int, data: bytes) -> int:
    """Write like ``os.write``, but into anything that is not a file in portions of whole lines.

    A file takes whatever one call appends as a whole. A pipe, and the socket of a journal, divide what is large, so
    that lines of several workers would get into each other. A line alone may still be too long for that.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.write(descriptor, data)
    written = 0
    for portion in portions(data):
        try:
            count = os.write(descriptor, portion)
        except OSError:
            if not written:
                raise
            break
        written += count
        if count < len(portion):
            break
    return written


def portions(data: bytes) -> Iterator[bytes]:
    """Whole lines, as many together as a pipe takes undivided; a longer one alone."""
    start = 0
    while start < len(data):
        end = data.rfind(b"\n", start, start + UNDIVIDED) + 1 or data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
