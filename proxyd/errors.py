"""The one table of what can go wrong, and how each door says it."""

from __future__ import annotations

import enum


class ErrorType(enum.Enum):
    """A proxy error type of RFC 9209 §2.3, with its answer at every door.

    The value is the registered name, as it stands in ``Proxy-Status`` and in the access record's ``error``.
    ``status`` is the HTTP status code, ``reply`` the SOCKS5 reply code (RFC 1928 §6); ``None`` where a door
    can never meet the error.
    """

    status: int | None
    reply: int | None

    def __new__(cls, name: str, status: int | None, reply: int | None) -> ErrorType:
        member = object.__new__(cls)
        member._value_ = name
        member.status = status
        member.reply = reply
        return member

    HTTP_REQUEST_ERROR = "http_request_error", 400, 1
    HTTP_REQUEST_DENIED = "http_request_denied", 403, 2
    DESTINATION_IP_PROHIBITED = "destination_ip_prohibited", 403, 2
    DESTINATION_IP_UNROUTABLE = "destination_ip_unroutable", 502, 3
    DNS_ERROR = "dns_error", 502, 4
    DNS_TIMEOUT = "dns_timeout", 504, 4
    PROXY_LOOP_DETECTED = "proxy_loop_detected", 502, 1
    TLS_CERTIFICATE_ERROR = "tls_certificate_error", 502, 1
    TLS_PROTOCOL_ERROR = "tls_protocol_error", 502, 1
    CONNECTION_REFUSED = "connection_refused", 502, 5
    CONNECTION_TIMEOUT = "connection_timeout", 504, 4
    CONNECTION_TERMINATED = "connection_terminated", 502, 1
    CONNECTION_READ_TIMEOUT = "connection_read_timeout", 504, None
    CONNECTION_WRITE_TIMEOUT = "connection_write_timeout", 504, None
    CONNECTION_LIMIT_REACHED = "connection_limit_reached", 503, 1
    HTTP_PROTOCOL_ERROR = "http_protocol_error", 502, None
    HTTP_RESPONSE_INCOMPLETE = "http_response_incomplete", 502, None
    PROXY_INTERNAL_ERROR = "proxy_internal_error", 500, 1
    CLIENT_DISCONNECTED = "client_disconnected", None, None
    """For records only: the client left, so nobody is there to be answered."""


class ProxyError(Exception):
    """A request or tunnel ended for a reason that the error table knows.

    ``detail`` is one line of plain text for the person who reads the answer or the log; it never holds a secret.
    ``status`` and ``reply`` are the answers of the doors; ``status`` may be narrowed where HTTP has a more exact
    code of the same class (414, 431, 408, 405, 501, 505).
    """

    def __init__(self, error: ErrorType, detail: str, *, status: int | None = None, reply: int | None = None) -> None:
        super().__init__(f"{error.value}: {detail}")
        self.error = error
        self.detail = detail
        self.status = error.status if status is None else status
        self.reply = error.reply if reply is None else reply
