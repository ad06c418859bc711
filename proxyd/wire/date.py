"""Dates as HTTP writes them (RFC 9110 §5.6.7)."""

from __future__ import annotations

import functools
from email.utils import formatdate


def http_date(now: float) -> bytes:
    """The IMF-fixdate for a time in Unix seconds."""
    return _http_date(int(now))


@functools.lru_cache(maxsize=2)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
