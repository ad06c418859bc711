"""Tests for proxyd.errors."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError

TABLE = {
    "http_request_error": (400, 1),
    "http_request_denied": (403, 2),
    "destination_ip_prohibited": (403, 2),
    "destination_ip_unroutable": (502, 3),
    "dns_error": (502, 4),
    "dns_timeout": (504, 4),
    "proxy_loop_detected": (502, 1),
    "tls_certificate_error": (502, 1),
    "tls_protocol_error": (502, 1),
    "connection_refused": (502, 5),
    "connection_timeout": (504, 4),
    "connection_terminated": (502, 1),
    "connection_read_timeout": (504, None),
    "connection_write_timeout": (504, None),
    "connection_limit_reached": (503, 1),
    "http_protocol_error": (502, None),
    "http_response_incomplete": (502, None),
    "proxy_internal_error": (500, 1),
    "client_disconnected": (None, None),
}
"""The error table of the design: RFC 9209 name, HTTP status, SOCKS5 reply."""


class ErrorTypeTests(SynchronousTestCase):
    """The one table of errors."""

    def test_table(self) -> None:
        """There are these error types and no others, each with its HTTP status and its SOCKS reply."""
        self.assertEqual({error.value: (error.status, error.reply) for error in ErrorType}, TABLE)

    def test_names_are_tokens(self) -> None:
        """Every name can stand in Proxy-Status as it is: a lower-case token (RFC 8941 §3.3.4)."""
        for error in ErrorType:
            self.assertRegex(error.value, r"\A[a-z][a-z_]*\Z")

    def test_authentication_is_no_denial(self) -> None:
        """No error is answered 407: that status asks who is there, and never denies."""
        self.assertNotIn(407, {error.status for error in ErrorType})


class ProxyErrorTests(SynchronousTestCase):
    """The exception that carries an error type."""

    def test_answers_of_its_type(self) -> None:
        """An error is answered as its type says."""
        error = ProxyError(ErrorType.CONNECTION_REFUSED, "192.0.2.1 port 80 refused the connection")
        self.assertEqual((error.status, error.reply), (502, 5))
        self.assertEqual(str(error), "connection_refused: 192.0.2.1 port 80 refused the connection")

    def test_narrowed_answers(self) -> None:
        """A status or reply given with the error takes the place of its type's."""
        error = ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the target is too long", status=414, reply=7)
        self.assertEqual((error.status, error.reply), (414, 7))
        self.assertIs(error.error, ErrorType.HTTP_REQUEST_ERROR)
        self.assertEqual(error.detail, "the target is too long")
