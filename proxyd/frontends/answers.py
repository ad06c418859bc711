"""What an HTTP client is told by the proxy itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from proxyd.errors import ProxyError
from proxyd.flow import Flow, Refused
from proxyd.wire.date import http_date
from proxyd.wire.http1 import Field, RequestHead, encode_request_head, encode_response_head

TUNNEL_OPEN: Final = b"HTTP/1.1 200 Connection Established\r\n\r\n"
"""The whole success reply to CONNECT: agents compare its status with 200, and some want nothing behind it."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

TLS_REFUSED: Final = b"\x15\x03\x01\x00\x02\x02\x28"
"""A TLS alert, fatal handshake_failure: what a TLS client understands on a port without certificate (RFC 8446 §6)."""


def reason_phrase(status: int) -> bytes:
    """The registered reason phrase, which is what many agents show their users."""
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


def plain(text: str) -> str:
    """The text in printable ASCII, on one line; all else becomes ``?``."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)


def quoted(text: str) -> str:
    """A String of Structured Fields (RFC 8941 §3.3.3)."""
    return '"' + plain(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def simple_answer(
    now: float, status: int, body: bytes, fields: list[Field], *, close: bool, bodiless: bool = False
) -> bytes:
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
    line = f"proxyd: {name}: {plain(error.detail)} (id {flow.record.id})\n".encode("ascii")
    return simple_answer(now, status, line, fields, close=close, bodiless=bodiless)


_ALLOW: Final = b"GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH, CONNECT"
_SECRET: Final = frozenset({b"authorization", b"proxy-authorization", b"cookie"})


def last_hop_answer(now: float, head: RequestHead, *, close: bool) -> bytes:
    """The answer to an OPTIONS or TRACE that may go no further (RFC 9110 §7.6.2)."""
    if head.method == b"TRACE":
        return simple_answer(now, 200, _traced(head), [(b"Content-Type", b"message/http")], close=close)
    return simple_answer(now, 200, b"", [(b"Allow", _ALLOW)], close=close)


def _traced(head: RequestHead) -> bytes:
    """The request as it came, without what is secret (RFC 9110 §9.3.8)."""
    fields = head.names.all_but(_SECRET)(head.fields)
    return encode_request_head(head.method, head.target, fields)
