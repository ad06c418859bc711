"""What an HTTP client is told by the proxy itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from proxyd.errors import ProxyError
from proxyd.flow import Flow, Refused
from proxyd.wire.date import http_date
from proxyd.wire.http1 import Field, encode_response_head

TUNNEL_OPEN: Final = b"HTTP/1.1 200 Connection Established\r\n\r\n"
"""The whole success reply to CONNECT: agents compare its status with 200, and some want nothing behind it."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

TLS_REFUSED: Final = b"\x15\x03\x01\x00\x02\x02\x28"
"""A TLS alert, fatal handshake_failure: what a TLS client understands on a port that has no certificate (RFC 8446 §6)."""


def reason_phrase(status: int) -> bytes:
    """The registered reason phrase, which is what many agents show their users."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def quoted(text: str) -> str:
    """A String of Structured Fields (RFC 8941 §3.3.3); what it cannot hold becomes ``?``."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def simple_answer(now: float, status: int, body: bytes, fields: list[Field], *, close: bool, bodiless: bool = False) -> bytes:
    """A complete response of our own; ``bodiless`` where the request was a HEAD."""
    head = [(b"Date", http_date(now)), *fields]
    head.append((b"Content-Length", b"%d" % len(body)))
    if close:
        head.append((b"Connection", b"close"))
    return encode_response_head(status, reason_phrase(status), head) + (b"" if bodiless else body)


def refusal(now: float, error: ProxyError, flow: Flow, realm: str, *, close: bool, bodiless: bool = False) -> bytes:
    """The answer for an error of the table: its status, ``Proxy-Status`` (RFC 9209) and one line of text.

    The line is short and plain because agents keep it: one stores the body of any answer as its metadata token.
    """
    challenge = isinstance(error, Refused) and error.challenge
    status = 407 if challenge else error.status or 500
    params = "" if challenge else f"; error={error.error.value}"
    if flow.rule is not None:
        params += f"; rule={quoted(flow.rule.name)}"
    fields: list[Field] = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Proxy-Status", f'proxyd{params}; details={quoted(error.detail)}; id="{flow.record.id}"'.encode("ascii")),
    ]
    if challenge:
        fields.append((b"Proxy-Authenticate", f'Basic realm={quoted(realm)}, charset="UTF-8"'.encode("ascii")))
    name = "proxy authentication required" if challenge else error.error.value
    line = f"proxyd: {name}: {error.detail} (id {flow.record.id})\n".encode("ascii", "replace")
    return simple_answer(now, status, line, fields, close=close, bodiless=bodiless)
