"""Which protocol a connection speaks, told by its first byte."""

from __future__ import annotations

import enum
import string


class Speaks(enum.Enum):
    """What the first byte of a connection can be the beginning of."""

    TLS = "tls"
    SOCKS5 = "socks5"
    HTTP = "http"
    UNKNOWN = "unknown"


TLS_HANDSHAKE = 0x16
"""ContentType of the record that carries a ClientHello (RFC 8446 §5.1)."""
SOCKS5_VERSION = 0x05
"""VER of a SOCKS5 greeting (RFC 1928 §3)."""
TOKEN = frozenset(f"!#$%&'*+-.^_`|~{string.digits}{string.ascii_letters}".encode())
"""tchar of RFC 9110 §5.6.2, of which a method is made."""
CARRIAGE_RETURN = 0x0D
"""Before a request an empty line is ignored (RFC 9112 §2.2)."""


def _meaning(first: int) -> Speaks:
    if first == TLS_HANDSHAKE:
        return Speaks.TLS
    if first == SOCKS5_VERSION:
        return Speaks.SOCKS5
    return Speaks.HTTP if first in TOKEN or first == CARRIAGE_RETURN else Speaks.UNKNOWN


_MEANINGS = tuple(map(_meaning, range(256)))


def speaks(first: int) -> Speaks:
    """What a connection speaks whose first byte is ``first``."""
    return _MEANINGS[first]
