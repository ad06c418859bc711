"""Tests for ``proxyd.frontends.answers``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Flow, Refused
from proxyd.frontends.answers import last_hop_answer, quoted, reason_phrase, refusal, simple_answer
from proxyd.policy.rules import Decision, Rule, Verdict
from proxyd.request import Door
from proxyd.wire.http1 import HEAD_LIMITS, RequestHead, parse_request_head
from tests.doors import NOW, DoorCase, listener


def request(line: bytes, fields: bytes = b"") -> RequestHead:
    """A parsed request."""
    return parse_request_head(line + b" HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n", HEAD_LIMITS)


class ReasonPhraseTests(SynchronousTestCase):
    """`reason_phrase`."""

    def test_registered(self):
        """A status has its registered phrase."""
        self.assertEqual(reason_phrase(407), b"Proxy Authentication Required")

    def test_unknown(self):
        """One that is not registered has none."""
        self.assertEqual(reason_phrase(599), b"")


class QuotedTests(SynchronousTestCase):
    """`quoted`: Strings of Structured Fields (RFC 8941 §3.3.3)."""

    def test_escaped(self):
        """Quotes and backslashes are escaped, what a String cannot hold becomes a question mark."""
        self.assertEqual(quoted('a "b" \\ c\r\n\té'), r'"a \"b\" \\ c????"')


class SimpleAnswerTests(SynchronousTestCase):
    """`simple_answer`: complete responses of our own."""

    def test_kept(self):
        """An answer has a date and a length."""
        self.assertEqual(
            simple_answer(NOW, 200, b"hi", [(b"X", b"y")], close=False),
            b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nX: y\r\nContent-Length: 2\r\n\r\nhi",
        )

    def test_head(self):
        """The answer to a HEAD has the length, and no body; one that ends the connection says so."""
        answer = simple_answer(NOW, 200, b"hi", [], close=True, bodiless=True)
        self.assertTrue(answer.endswith(b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"), answer)


class RefusalTests(DoorCase):
    """`refusal`: errors of the table, as HTTP says them."""

    def flow(self) -> Flow:
        """A flow to be refused."""
        client = Client(listener(), None, 0)
        flow = Flow(self.egress, client, Door.FORWARD, "GET", "")
        flow.record.id = "7f-1"
        self.egress.flows.clear()
        return flow

    def test_error(self):
        """An error has its status, Proxy-Status (RFC 9209) and one short line that says the same."""
        error = ProxyError(ErrorType.CONNECTION_REFUSED, "connection refused (1 address tried)")
        self.assertEqual(
            refusal(NOW, error, self.flow(), "r", close=False),
            b"HTTP/1.1 502 Bad Gateway\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\n"
            b'Proxy-Status: proxyd; error=connection_refused; details="connection refused (1 address tried)"; id="7f-1"'
            b"\r\n"
            b"Content-Length: 75\r\n"
            b"\r\n"
            b"proxyd: connection_refused: connection refused (1 address tried) (id 7f-1)\n",
        )

    def test_rule(self):
        """A denial names the rule."""
        flow = self.flow()
        rule = Rule("no metadata", False, ("*",))
        flow.decision = Decision(Verdict.DENY, rule, 'rule "no metadata" denies', ErrorType.HTTP_REQUEST_DENIED)
        answer = refusal(NOW, Refused(flow.decision), flow, "r", close=True)
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 Forbidden\r\n"))
        self.assertIn(b'; rule="no metadata"; details="rule \\"no metadata\\" denies"; id="7f-1"\r\n', answer)
        self.assertIn(b"\r\nConnection: close\r\n", answer)
        self.assertNotIn(b"Proxy-Authenticate", answer)

    def test_challenge(self):
        """Who has to say who he is gets a 407, which says how, and no error."""
        decision = Decision(Verdict.CHALLENGE, None, "who are you?", None)
        answer = refusal(NOW, Refused(decision), self.flow(), 'the "realm"', close=False)
        self.assertTrue(answer.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n"))
        self.assertIn(b'\r\nProxy-Authenticate: Basic realm="the \\"realm\\"", charset="UTF-8"\r\n', answer)
        self.assertIn(b'\r\nProxy-Status: proxyd; details="who are you?"; id="7f-1"\r\n', answer)
        self.assertTrue(answer.endswith(b"proxyd: proxy authentication required: who are you? (id 7f-1)\n"))

    def test_no_status(self):
        """An error that HTTP cannot meet is our own."""
        error = ProxyError(ErrorType.CLIENT_DISCONNECTED, "the client left")
        self.assertTrue(refusal(NOW, error, self.flow(), "r", close=True).startswith(b"HTTP/1.1 500 "))

    def test_text(self):
        """Whatever the detail is, the answer stays ASCII, and its body one line."""
        error = ProxyError(ErrorType.DNS_ERROR, "bücher\r\nX-Injected: 1")
        head, _, body = refusal(NOW, error, self.flow(), "r", close=True).partition(b"\r\n\r\n")
        self.assertNotIn(b"\nX-Injected", head)
        self.assertEqual(body, b"proxyd: dns_error: b?cher??X-Injected: 1 (id 7f-1)\n")


class LastHopTests(SynchronousTestCase):
    """`last_hop_answer`: requests that may go no further (RFC 9110 §7.6.2)."""

    def test_options(self):
        """OPTIONS is told what there is."""
        answer = last_hop_answer(NOW, request(b"OPTIONS http://origin.example/"), close=False)
        self.assertEqual(
            answer,
            b"HTTP/1.1 200 OK\r\n"
            b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
            b"Allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH, CONNECT\r\n"
            b"Content-Length: 0\r\n"
            b"\r\n",
        )

    def test_trace(self):
        """TRACE is shown what arrived here, without what is secret (RFC 9110 §9.3.8)."""
        secrets = b"Cookie: a=secret\r\nAuthorization: secret\r\nProxy-Authorization: Basic secret\r\n"
        head = request(b"TRACE http://origin.example/x", b"Max-Forwards: 0\r\n" + secrets + b"X-Mine: 1\r\n")
        head_told, _, body = last_hop_answer(NOW, head, close=True).partition(b"\r\n\r\n")
        self.assertIn(b"\r\nContent-Type: message/http\r\n", head_told)
        self.assertEqual(
            body, b"TRACE http://origin.example/x HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\nX-Mine: 1\r\n\r\n"
        )
