"""How an access record becomes one line: JSON, or the native format of Squid."""

from __future__ import annotations

import functools
import json
import re

import msgspec

from proxyd.errors import ErrorType
from proxyd.ledger.record import AccessRecord
from proxyd.request import Door

_ENCODER = msgspec.json.Encoder()
_UNSAFE = re.compile(r"[^!#$&(-\[\]-~]")
_ABORTED = ErrorType.CLIENT_DISCONNECTED.value
_FORWARD = Door.FORWARD.value
_STATUS = {error.value: error.status or 0 for error in ErrorType}


def encode_json(record: AccessRecord) -> bytes:
    """One JSON object, in printable ASCII whatever the client sent, and a newline."""
    try:
        line = _ENCODER.encode(record)
    except UnicodeEncodeError:  # half of a surrogate pair, out of bytes that are no UTF-8
        return _encode_json_ascii(record)
    if not line.isascii() or b"\x7f" in line:
        return _encode_json_ascii(record)
    return line + b"\n"


def _encode_json_ascii(record: AccessRecord) -> bytes:
    # Three times slower than msgspec, which leaves DEL, U+2028 and all letters beyond ASCII as they are.
    text = json.dumps(msgspec.to_builtins(record), separators=(",", ":"))
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def encode_squid(record: AccessRecord) -> bytes:
    """One line of Squid's ``squid`` logformat: ``%ts.%03tu %6tr %>a %Ss/%03>Hs %<st %rm %ru %[un %Sh/%<a %mt``.

    Squid's time is that of the end. The media type is always ``-``, and a URL has no path: it may hold secrets.
    """
    hierarchy = f"HIER_DIRECT/{_host(record.address)}" if record.address else "HIER_NONE/-"
    ended = int((record.time + record.duration) * 1000)
    return (
        f"{ended // 1000}.{ended % 1000:03} {int(record.duration * 1000):6} {_quoted(record.client)} "
        f"{_result(record)}/{_status(record):03} {record.bytes_to_client} {_quoted(record.method)} {_url(record)} "
        f"{_quoted(record.user)} {hierarchy} -\n"
    ).encode("ascii")


@functools.lru_cache(maxsize=1024)
def _quoted(text: str | None) -> str:
    """Text as one field: blanks, quotes and all that is not printable ASCII in percent-encoding, ``-`` for none."""
    return _UNSAFE.sub(_percent_encoded, text) if text else "-"


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in match[0].encode("utf-8", "surrogatepass"))


def _host(authority: str) -> str:
    return authority.rpartition(":")[0].strip("[]")


def _result(record: AccessRecord) -> str:
    if record.decision is None:
        result = "NONE_NONE"
    elif record.decision in ("deny", "challenge"):
        result = "TCP_DENIED"
    else:
        result = "TCP_MISS" if record.protocol == _FORWARD else "TCP_TUNNEL"
    return result + "_ABORTED" if record.error == _ABORTED else result


def _status(record: AccessRecord) -> int:
    """The status code; for SOCKS5 the one that HTTP would have had, 0 if no answer was sent."""
    if record.status is not None:
        return record.status
    if record.reply == 0:
        return 200
    if record.decision == "challenge":
        return 407
    return _STATUS[record.error] if record.error else 0


def _url(record: AccessRecord) -> str:
    if not record.destination:
        return "error:transaction-end-before-headers" if record.error == _ABORTED else "error:invalid-request"
    destination = _quoted(record.destination)
    return f"http://{destination.removesuffix(':80')}/" if record.protocol == _FORWARD else destination
