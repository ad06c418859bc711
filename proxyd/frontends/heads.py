"""The heads that are passed on: generated from parsed fields, never copied."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Destination
from proxyd.wire.date import http_date
from proxyd.wire.framing import Framing
from proxyd.wire.http1 import Field, RequestHead, ResponseHead, encode_request_head, encode_response_head, end_to_end_fields

_ABSOLUTE_FORM = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)\Z")

_REQUEST_DROPS = frozenset({b"host", b"content-length", b"max-forwards"})
_RESPONSE_DROPS = frozenset({b"content-length"})
_NO_UPGRADES = frozenset({b"h2c", b"http2-settings"})
"""An upgrade to HTTP/2 would carry requests that nobody decided on."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a forward request: where it goes, and what the origin is to see."""

    destination: Destination
    path: bytes


def parse_target(head: RequestHead) -> Target:
    """Read the absolute-form (RFC 9112 §3.2.2).

    Raises:
        ProxyError: ``http_request_error`` for every other form, and for schemes other than ``http``.
    """
    match = _ABSOLUTE_FORM.match(head.target)
    if match is None:
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "a proxy wants the whole URL: this is a request to an origin server")
    scheme, authority, path = match.groups()
    if scheme.lower() != b"http":
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "only http URLs are forwarded; https goes through CONNECT")
    destination = Destination.parse_authority(authority.decode("ascii"), 80)
    if not path:
        path = b"*" if head.method == b"OPTIONS" else b"/"
    elif path.startswith(b"?"):
        path = b"/" + path
    return Target(destination, path)


def max_forwards(head: RequestHead) -> int | None:
    """The hops that OPTIONS or TRACE may still make (RFC 9110 §7.6.2), ``None`` without limit."""
    if head.method not in (b"OPTIONS", b"TRACE"):
        return None
    values = head.get(b"max-forwards")
    if not values:
        return None
    if len(values) > 1 or not re.match(rb"[0-9]{1,9}\Z", values[0]):
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "Max-Forwards is not a number")
    return int(values[0])


def check_loop(head: RequestHead, via: str) -> None:
    """Refuse a request that has been here before.

    Raises:
        ProxyError: ``proxy_loop_detected``.
    """
    ours = via.lower().encode("ascii")
    for member in head.tokens(b"via"):
        if member.split()[1:2] == [ours]:
            raise ProxyError(ErrorType.PROXY_LOOP_DETECTED, "the request has come back to this proxy")


def wanted_upgrade(head: RequestHead) -> bytes | None:
    """The ``Upgrade`` that the client asks for and that may be passed on."""
    if head.version == (1, 0) or b"upgrade" not in head.tokens(b"connection"):
        return None
    offers = [offer for offer in head.tokens(b"upgrade") if offer not in _NO_UPGRADES]
    return b", ".join(offers) or None


def upstream_head(
    head: RequestHead,
    target: Target,
    framing: Framing,
    length: int,
    *,
    via: str,
    preserve_host: bool,
    upgrade: bytes | None,
    expects: bool,
    hops: int | None,
) -> bytes:
    """The request head for the origin."""
    drops = _REQUEST_DROPS if expects else _REQUEST_DROPS | {b"expect"}
    fields: list[Field] = [(b"Host", _host(head, target.destination, preserve_host))]
    fields += end_to_end_fields(head, drops)
    if hops is not None:
        fields.append((b"Max-Forwards", b"%d" % (hops - 1)))
    elif b"max-forwards" in head.names:
        fields += [(b"Max-Forwards", value) for value in head.get(b"max-forwards")]
    fields.append((b"Via", b"%d.%d %b" % (*head.version, via.encode("ascii"))))
    if framing is Framing.LENGTH:
        fields.append((b"Content-Length", b"%d" % length))
    elif framing is Framing.CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if upgrade is not None:
        fields += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    return encode_request_head(head.method, target.path, fields)


def _host(head: RequestHead, destination: Destination, preserve: bool) -> bytes:
    """The client's own spelling where it means the target, for signatures may cover it; else the target's authority."""
    ours = destination.host_field(80).encode("ascii")
    sent = head.get(b"host")
    if sent and (preserve or sent[0].lower().removesuffix(b":80") == ours):
        return sent[0]
    return ours


def interim_head(head: ResponseHead, via: str) -> bytes:
    """A 1xx response on its way to the client."""
    fields = end_to_end_fields(head, _RESPONSE_DROPS)
    return encode_response_head(head.status, head.reason, [*fields, _via(head, via)])


def switching_head(head: ResponseHead, via: str) -> bytes:
    """The 101 response that turns the connection into a tunnel."""
    fields = end_to_end_fields(head, _RESPONSE_DROPS)
    upgrade = [(b"Upgrade", value) for value in head.get(b"upgrade")]
    return encode_response_head(head.status, head.reason, [*fields, _via(head, via), (b"Connection", b"Upgrade"), *upgrade])


def client_head(head: ResponseHead, framing: Framing, *, via: str, now: float, chunked: bool, close: bool) -> bytes:
    """The final response head for the client; ``chunked`` says how the body will be sent where its length is unknown."""
    fields = end_to_end_fields(head, _RESPONSE_DROPS)
    if b"date" not in head.names:
        fields.append((b"Date", http_date(now)))
    fields.append(_via(head, via))
    if chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    else:
        # Of known length, or without a body: then it tells what a GET would have brought (RFC 9110 §8.6).
        fields += [(b"Content-Length", value) for value in head.get(b"content-length")]
    if close:
        fields.append((b"Connection", b"close"))
    return encode_response_head(head.status, head.reason, fields)


def _via(head: ResponseHead, via: str) -> Field:
    return b"Via", b"%d.%d %b" % (*head.version, via.encode("ascii"))


def traced(head: RequestHead) -> bytes:
    """The body of an answer to TRACE: the request as it came, without what is secret (RFC 9110 §9.3.8)."""
    secret = (b"authorization", b"proxy-authorization", b"cookie")
    fields = [field for name, field in zip(head.names, head.fields, strict=True) if name not in secret]
    return encode_request_head(head.method, head.target, fields)
