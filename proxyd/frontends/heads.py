"""The heads that are passed on: generated from parsed fields, never copied."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import msgspec

from proxyd.errors import ErrorType, ProxyError
from proxyd.request import Destination
from proxyd.wire.date import http_date
from proxyd.wire.framing import Framing
from proxyd.wire.http1 import (
    HTTP_1_0,
    HTTP_1_1,
    Field,
    RequestHead,
    ResponseHead,
    Version,
    encode_request_head,
    encode_response_head,
    end_to_end_fields,
)

_ABSOLUTE_FORM = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)\Z")

# What these say is said anew, as far as it is passed on; HTTP2-Settings belongs to an upgrade that is not.
_EXPECTING_DROPS = frozenset({b"host", b"content-length", b"max-forwards", b"http2-settings"})
_REQUEST_DROPS = _EXPECTING_DROPS | {b"expect"}
_RESPONSE_DROPS = frozenset({b"content-length"})

_HTTP_ITSELF = (b"h2", b"http/")
"""How upgrades begin that would carry requests nobody decided on: h2c, HTTP/2.0."""

_OF_CONNECTIONS = (b"ntlm", b"negotiate")
"""Authentication schemes that prove who a connection belongs to, not a request."""


class ForwardUrl(msgspec.Struct, frozen=True, gc=False):
    """The target of a forward request: where it goes, and what the origin is to see."""

    destination: Destination
    path: bytes


def parse_target(head: RequestHead) -> ForwardUrl:
    """Read the absolute-form (RFC 9112 §3.2.2).

    Raises:
        ProxyError: ``http_request_error`` for every other form, and for schemes other than ``http``.
    """
    match = _ABSOLUTE_FORM.match(head.target)
    if match is None:
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "a proxy wants the whole URL; this is what an origin is asked")
    scheme, authority, path = match.groups()
    if scheme.lower() != b"http":
        raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "only http URLs are forwarded; https goes through CONNECT")
    destination = Destination.parse_authority(authority.decode("ascii"), 80)
    if not path:
        path = b"*" if head.method == b"OPTIONS" else b"/"
    elif path.startswith(b"?"):
        path = b"/" + path
    return ForwardUrl(destination, path)


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
    if b"via" in head.names.at:
        ours = via.lower().encode("ascii")
        if any(member.split()[1:2] == [ours] for member in head.tokens(b"via")):
            raise ProxyError(ErrorType.PROXY_LOOP_DETECTED, "the request has come back to this proxy")


def wanted_upgrade(head: RequestHead, options: Sequence[bytes]) -> bytes | None:
    """The ``Upgrade`` that the client asks for and that may be passed on; ``options`` are those of ``Connection``."""
    if b"upgrade" not in options or head.version == HTTP_1_0:
        return None
    offers = [offer for offer in head.tokens(b"upgrade") if not offer.startswith(_HTTP_ITSELF)]
    return b", ".join(offers) or None


def agrees(head: ResponseHead, upgrade: bytes | None) -> bool:
    """Whether a 101 response switches to what was asked for (RFC 9110 §7.8)."""
    chosen = head.tokens(b"upgrade")
    return upgrade is not None and bool(chosen) and set(chosen) <= set(upgrade.split(b", "))


def persists(request: RequestHead, response: ResponseHead) -> bool:
    """Whether the origin's connection may carry another request, perhaps of another client, after these heads."""
    if response.version != HTTP_1_1:
        return False
    if b"connection" in response.names.at and b"close" in response.tokens(b"connection"):
        return False
    if b"authorization" not in request.names.at:
        return True
    return not any(value.lower().startswith(_OF_CONNECTIONS) for value in request.get(b"authorization"))


def upstream_head(
    head: RequestHead,
    target: ForwardUrl,
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
    fields: list[Field] = [
        (b"Host", _host(head, target.destination, preserve_host)),
        *end_to_end_fields(head, _EXPECTING_DROPS if expects else _REQUEST_DROPS),
    ]
    if hops is not None:
        fields.append((b"Max-Forwards", b"%d" % (hops - 1)))
    elif b"max-forwards" in head.names.at:
        fields += [(b"Max-Forwards", value) for value in head.get(b"max-forwards")]
    fields.append(_via(head.version, via))
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
    places = head.names.at.get(b"host")
    if places is None:
        return ours
    sent = head.fields[places[0]][1]
    return sent if sent == ours or (sent and (preserve or sent.lower().removesuffix(b":80") == ours)) else ours


def interim_head(head: ResponseHead, via: str) -> bytes:
    """A 1xx response on its way to the client."""
    fields = end_to_end_fields(head, _RESPONSE_DROPS)
    return encode_response_head(head.status, head.reason, [*fields, _via(head.version, via)])


def switching_head(head: ResponseHead, via: str) -> bytes:
    """The 101 response that turns the connection into a tunnel."""
    fields = end_to_end_fields(head, _RESPONSE_DROPS)
    upgrade = [(b"Upgrade", value) for value in head.get(b"upgrade")]
    ours = [_via(head.version, via), (b"Connection", b"Upgrade"), *upgrade]
    return encode_response_head(head.status, head.reason, [*fields, *ours])


def client_head(head: ResponseHead, *, via: str, now: float, chunked: bool, close: bool) -> bytes:
    """The final response head for the client; ``chunked`` where the body has no length that could be told."""
    fields = list(end_to_end_fields(head, _RESPONSE_DROPS))
    if b"date" not in head.names.at:
        fields.append((b"Date", http_date(now)))
    fields.append(_via(head.version, via))
    if chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif head.status != 204:
        # Of known length, or without a body: then it tells what a GET would have brought (RFC 9110 §8.6).
        fields += [(b"Content-Length", value) for value in head.get(b"content-length")]
    if close:
        fields.append((b"Connection", b"close"))
    return encode_response_head(head.status, head.reason, fields)


@functools.lru_cache(maxsize=16)
def _via(version: Version, via: str) -> Field:
    return b"Via", b"%d.%d %b" % (*version, via.encode("ascii"))
