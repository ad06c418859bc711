"""Tests for ``proxyd.frontends.turn``: who asks, and whether the request may go on."""

from __future__ import annotations

import base64

from twisted.internet.defer import Deferred

from proxyd.errors import ErrorType, ProxyError
from proxyd.policy.rules import Rule
from proxyd.request import Door, Identity
from tests.doors import ALLOW, GET, GOT, OK, SAID_OK, DoorCase, Memory, listener
from tests.test_http import answers, status

ALICE = Rule("for alice", True, ("*",), users=frozenset({"alice"}), special_addresses=True)


def basic(credentials: bytes) -> bytes:
    """The field that says who is asking."""
    return b"Proxy-Authorization: Basic " + base64.b64encode(credentials) + b"\r\n"


def with_field(field: bytes, request: bytes = GET) -> bytes:
    """The request with one field more."""
    return request.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n")


RIGHT = basic(b"alice:open sesame")

WRONG: dict[str, bytes] = {
    "nothing": b"",
    "another scheme": b"Proxy-Authorization: Bearer YWxpY2U6b3BlbiBzZXNhbWU=\r\n",
    "no scheme": b"Proxy-Authorization: YWxpY2U6b3BlbiBzZXNhbWU=\r\n",
    "no credentials": b"Proxy-Authorization: Basic\r\n",
    "an empty field": b"Proxy-Authorization:\r\n",
    "what is not base64": b"Proxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU*\r\n",
    "base64 without its padding": b"Proxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU\r\n",
    "two words": b"Proxy-Authorization: Basic YWxpY2U6b3Bl biBzZXNhbWU=\r\n",
    "no colon": basic(b"alice"),
    "no name": basic(b":open sesame"),
    "no password": basic(b"alice:"),
    "a wrong password": basic(b"alice:open sesame "),
    "a password with NUL behind it": basic(b"alice:open sesame\0"),
    "a name in another case": basic(b"Alice:open sesame"),
    "an unknown user": basic(b"bob:open sesame"),
    "the right ones twice": RIGHT + RIGHT,
    "the right ones for the origin": RIGHT.replace(b"Proxy-", b""),
}


class BasicTests(DoorCase):
    """`identify`: Basic authentication (RFC 7617) of every request."""

    rules = (ALICE,)

    def setUp(self) -> None:
        super().setUp()
        self.egress.accounts = self.accounts

    def test_right(self):
        """Who proves to be the user that a rule wants goes on; the proof goes no further."""
        client = self.connect()
        client.says(with_field(RIGHT))
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(
            self.outcome("user", "proof", "decision", "rule", "status"), [("alice", "basic", "allow", "for alice", 200)]
        )

    def test_spelling(self):
        """The scheme may have any case, and more than one blank behind it."""
        client = self.connect()
        client.says(with_field(RIGHT.replace(b"Basic ", b"bAsIC  ")))
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_colons_and_letters(self):
        """The password begins behind the first colon; all of it is bytes, UTF-8 or not."""
        client = self.connect()
        for credentials in (b"us@er:p:w:", b"us@er:p\xc3\xb6w", b"\xff:\xfe"):
            client.says(with_field(basic(credentials)))
        self.assertEqual(self.accounts.asked, [(b"us@er", b"p:w:"), (b"us@er", b"p\xc3\xb6w"), (b"\xff", b"\xfe")])
        self.assertEqual(answers(client.heard), [407] * 3)

    def test_wrong(self):
        """All else is asked to say who it is, and the connection is kept for that."""
        for name, field in WRONG.items():
            client = self.connect()
            client.says(with_field(field))
            heard = client.heard
            self.assertEqual(answers(heard), [407], name)
            self.assertIn(b'\r\nProxy-Authenticate: Basic realm="the realm", charset="UTF-8"\r\n', heard, name)
            self.assertIn(b"\r\nContent-Length: ", heard, name)
            self.assertNotIn(b"Connection: close", heard, name)
            self.assertEqual(self.dialer.dialings, [], name)
            self.assertEqual(self.resolver.asked, [], name)
            client.says(with_field(RIGHT))
            self.assertEqual(self.origin.heard, GOT, name)
            client.resets()
            self.dialer.dialings.clear()
            self.resolver.asked.clear()
        self.assertEqual(
            {(record.status, record.decision, record.error, record.user) for record in self.records[::2]},
            {(407, "challenge", None, None)},
        )
        self.assertEqual({record.destination for record in self.records}, {"origin.example:80"})
        self.assertNotIn("sesame", str(self.records))

    def test_every_request(self):
        """Every request has to prove it again: the one before proves nothing, nor does the address."""
        client = self.connect()
        client.says(with_field(RIGHT) + GET + with_field(RIGHT))
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        heard = client.heard
        self.assertTrue(heard.startswith(SAID_OK))
        self.assertEqual(answers(heard), [200, 407])
        self.assertEqual(self.origin.heard, GOT)
        client.resets()
        another = self.connect()
        another.says(GET)
        self.assertEqual(status(another.heard), 407)

    def test_http_1_0(self):
        """A request without any field is asked too."""
        client = self.connect()
        client.says(b"GET http://origin.example/ HTTP/1.0\r\n\r\n")
        self.assertEqual(status(client.heard), 407)
        self.assertEqual(self.dialer.dialings, [])

    def test_body(self):
        """A POST that is not let in does not put the connection out of step."""
        post = with_field(b"Content-Length: 5\r\n", GET.replace(b"GET", b"POST"))
        client = self.connect()
        client.says(post + b"hel", b"lo" + with_field(RIGHT, post) + b"hello")
        self.assertEqual(answers(client.heard), [407])
        self.assertTrue(self.origin.heard.endswith(b"\r\nContent-Length: 5\r\n\r\nhello"))
        client.resets()

    def test_checked_later(self):
        """While the password is checked the request waits, with what of its body is here already."""
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(with_field(RIGHT + b"Content-Length: 5\r\n", GET.replace(b"GET", b"POST")) + b"hel")
        client.says(b"lo")
        self.assertEqual(self.dialer.dialings, [])
        self.accounts.waiting.callback(Identity("alice", "basic"))
        self.assertTrue(self.origin.heard.endswith(b"\r\n\r\nhello"))
        client.resets()

    def test_found_wrong_later(self):
        """So does its refusal."""
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(with_field(RIGHT))
        self.assertEqual(client.heard, b"")
        self.accounts.waiting.callback(None)
        self.assertEqual(status(client.heard), 407)

    def test_not_checked(self):
        """Where passwords cannot be checked at the moment that is an error, and no reason to ask for another."""
        self.accounts.error = ProxyError(ErrorType.CONNECTION_LIMIT_REACHED, "too many passwords")
        client = self.connect()
        client.says(with_field(RIGHT))
        self.assertEqual(status(client.heard), 503)
        self.accounts.error = None
        self.accounts.waiting = Deferred()
        client.says(with_field(RIGHT))
        self.accounts.waiting.errback(ProxyError(ErrorType.PROXY_INTERNAL_ERROR, "it cannot be checked"))
        self.assertEqual(status(client.heard), 500)

    def test_client_leaves(self):
        """A client that leaves while its password is checked is not dialed for."""
        for proven in (Identity("alice", "basic"), None):
            self.accounts.waiting = Deferred()
            client = self.connect()
            client.says(with_field(RIGHT))
            client.resets()
            self.accounts.waiting.callback(proven)
        self.assertEqual(self.dialer.dialings, [])
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")] * 2)

    def test_bug(self):
        """A bug of ours is an internal error, logged once."""
        self.accounts.waiting = Deferred()
        client = self.connect()
        client.says(with_field(RIGHT))
        self.accounts.waiting.errback(ZeroDivisionError())
        self.assertEqual(status(client.heard), 500)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.outcome("error"), [("proxy_internal_error",)])

    def test_certificate(self):
        """A client certificate proves who asks, unless the request says somebody else."""
        client = self.connect(identity=Identity("alice", "certificate"))
        client.says(GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        client.says(with_field(basic(b"bob:x")))
        self.assertEqual(self.outcome("proof", "status"), [("certificate", 200), (None, 407)])


class NoAccountsTests(DoorCase):
    """Without accounts nobody is asked."""

    def test_ignored(self):
        """Credentials mean nothing then, and go no further all the same."""
        client = self.connect()
        client.says(with_field(b"Proxy-Authorization: anything\r\n") * 2)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()
        self.assertEqual(self.outcome("user"), [(None,)])


class RefuseTests(DoorCase):
    """Endings that come from outside."""

    rules = (Rule("no", False, (".denied.example",)), ALLOW)

    def request(self) -> Memory:
        """A client whose request is being dialed."""
        self.dialer.instant = False
        client = self.connect()
        client.says(GET)
        return client

    def test_killed(self):
        """A flow that is ended while it is dialing is refused with the reason, and dialing stops."""
        client = self.request()
        (flow,) = self.egress.flows.values()
        flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        self.assertEqual(status(client.heard), 502)
        self.assertTrue(self.dialer.dialings[0].cancelled)
        self.assertEqual(self.outcome("error", "detail"), [("connection_terminated", "proxyd is stopping")])

    def test_killed_in_answer(self):
        """One that is being answered is cut, on both sides."""
        client = self.connect()
        client.says(GET)
        self.origin.says(OK[:-1])
        (flow,) = self.egress.flows.values()
        flow.abort(ProxyError(ErrorType.CONNECTION_TERMINATED, "proxyd is stopping"))
        self.drained(client, self.origin)
        self.assertTrue(client.aborted)
        self.assertEqual(self.outcome("status", "error"), [(200, "connection_terminated")])

    def test_held(self):
        """What comes behind a request that is being dialed is kept up to a bound; then the client is not read."""
        client = self.request()
        client.says(b"x" * 262144)
        self.assertTrue(client.reading)
        client.says(b"x")
        self.assertFalse(client.reading)
        client.resets()

    def test_read_again(self):
        """It is read again when the request was refused."""
        client = self.request()
        client.says(b"OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\nX: " + b"x" * 300_000)
        self.dialer.fails(ErrorType.CONNECTION_REFUSED)
        self.assertEqual(answers(client.heard), [502, 431])

    def test_denied(self):
        """A denial by name happens before anything is looked up, and is recorded with its rule."""
        client = self.connect()
        client.says(GET.replace(b"origin.example/", b"log.denied.example:80/"))
        self.assertEqual(status(client.heard), 403)
        self.assertEqual(self.resolver.asked, [])
        self.assertEqual(
            self.outcome("destination", "decision", "rule", "error"),
            [("log.denied.example:80", "deny", "no", "http_request_denied")],
        )

    def test_errors(self):
        """Every way in which there is no way out has its status, and leaves the connection usable."""
        client = self.connect()
        self.dialer.instant = False
        for error, expected in (
            (ErrorType.CONNECTION_REFUSED, 502),
            (ErrorType.DESTINATION_IP_UNROUTABLE, 502),
            (ErrorType.CONNECTION_TIMEOUT, 504),
            (ErrorType.CONNECTION_LIMIT_REACHED, 503),
        ):
            client.says(GET)
            self.dialer.fails(error)
            heard = client.heard
            self.assertEqual(status(heard), expected)
            self.assertIn(b"Proxy-Status: proxyd; error=" + error.value.encode(), heard)
            self.assertNotIn(b"Connection: close", heard)
        client.says(GET.replace(b"origin.example", b"unknown.example"))
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(self.records[-1].error, "dns_error")

    def test_wrong_door(self):
        """A port that only tunnels says so to others."""
        self.listener = listener(Door.CONNECT)
        client = self.connect()
        client.says(GET)
        self.assertIn(b"this port does not accept forward requests", client.heard)
