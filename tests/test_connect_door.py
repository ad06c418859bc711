"""Tests for ``proxyd.frontends.connect``."""

from __future__ import annotations

from proxyd.errors import ErrorType
from proxyd.policy.rules import Rule
from tests.doors import ALLOW, GET, DoorCase, Memory
from tests.test_http import answers, status
from tests.test_turn import RIGHT, with_field

CONNECT = b"CONNECT origin.example:443 HTTP/1.1\r\nHost: origin.example:443\r\n\r\n"
OPEN = b"HTTP/1.1 200 Connection Established\r\n\r\n"


class ConnectTests(DoorCase):
    """Requests whose answer is a tunnel."""

    rules = (Rule("no", False, (".denied.example",)), ALLOW)

    def test_tunnel(self):
        """The success reply comes alone and first; from then on bytes go both ways, and FIN after FIN."""
        client = self.connect()
        client.says(CONNECT)
        self.assertEqual(client.heard, OPEN)
        client.says(b"\x16\x03\x01 hello")
        self.assertEqual(self.origin.heard, b"\x16\x03\x01 hello")
        self.origin.says(b"hello back")
        self.assertEqual(client.heard, b"hello back")
        client.closes()
        self.assertTrue(self.origin.said_fin)
        self.origin.says(b", and the tail")
        self.origin.closes()
        self.assertEqual(client.heard, b", and the tail")
        self.drained(client, self.origin)
        self.assertEqual(
            self.outcome(
                "protocol", "method", "destination", "status", "bytes_from_client", "bytes_to_client", "error"
            ),
            [("connect", "CONNECT", "origin.example:443", 200, 9, 24, None)],
        )

    def test_spellings(self):
        """The oddities of agents work: HTTP/1.0 without Host, an empty body, IPv6 without brackets."""
        for head in (
            b"CONNECT origin.example:443 HTTP/1.0\r\n\r\n",
            b"CONNECT origin.example:443 HTTP/1.0\r\nProxy-Authorization: Basic x\r\n\r\n",
            b"CONNECT origin.example:443 HTTP/1.1\r\nProxy-Connection: KeepAlive\r\n"
            b"Host: x\r\nContent-Length: 0\r\n\r\n",
            b"CONNECT ORIGIN.example.:443 HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n",
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n",
            b"CONNECT 2001:db8::1:443 HTTP/1.1\r\nHost: 2001:db8::1:443\r\n\r\n",
        ):
            client = self.connect()
            client.trickles(head)
            self.assertEqual(client.heard, OPEN, head)
            client.resets()
        self.assertEqual({record.error for record in self.records}, {"client_disconnected"})

    def test_early_data(self):
        """What comes right behind the head is the tunnel's, from the first byte, however large."""
        self.dialer.instant = False
        early = b"GET / HTTP/1.1\r\n\r\n" * 20_000
        client = self.connect()
        client.says(CONNECT + early[:5], early[5:])
        self.assertFalse(client.reading)
        origin = self.dialer.connects()
        self.assertEqual(client.heard, OPEN)
        self.assertEqual(origin.heard, early)
        self.assertTrue(client.reading)
        client.resets()
        self.assertEqual(self.outcome("bytes_from_client"), [(len(early),)])

    def test_half_closed(self):
        """A client that has said all before the tunnel is open still gets the answer."""
        for eager in (False, True):
            self.dialer.instant = False
            client = self.connect(eager=eager)
            client.says(CONNECT + b"hello")
            client.closes()
            origin = self.dialer.connects()
            self.turn()
            self.assertEqual(origin.heard, b"hello")
            self.assertTrue(origin.said_fin)
            origin.says(b"hello back")
            origin.closes()
            self.assertEqual(client.heard, OPEN + b"hello back")
            self.drained(client, origin)
        self.assertEqual({record.error for record in self.records}, {None})

    def test_client_leaves(self):
        """A client that leaves stops the dialing."""
        self.dialer.instant = False
        client = self.connect()
        client.says(CONNECT)
        client.resets()
        self.assertTrue(self.dialer.dialings[0].cancelled)
        self.assertEqual(self.outcome("error"), [("client_disconnected",)])

    def test_connected_too_late(self):
        """An origin that is reached in the very moment when the client leaves is left alone."""
        self.dialer.instant = False
        self.dialer.when_cancelled = self.dialer.connects
        client = self.connect()
        client.says(CONNECT)
        client.resets()
        self.drained(self.origin)
        self.assertEqual(self.origin.heard, b"")
        self.assertEqual(self.outcome("error"), [("client_disconnected",)])

    def test_refused(self):
        """A refusal is an ordinary response, and the connection can be used for the next try."""
        client = self.connect()
        client.says(CONNECT.replace(b"origin.example", b"log.denied.example"))
        heard = client.heard
        self.assertEqual(status(heard), 403)
        self.assertNotIn(b"Connection: close", heard)
        self.dialer.instant = False
        client.says(CONNECT)
        self.dialer.fails(ErrorType.CONNECTION_REFUSED)
        self.assertEqual(status(client.heard), 502)
        client.says(CONNECT)
        self.dialer.connects()
        self.assertEqual(client.heard, OPEN)
        client.resets()

    def test_early_data_of_refused(self):
        """What was meant for a tunnel that did not come about is never read as a request."""
        client = self.connect()
        client.says(CONNECT.replace(b"origin.example", b"log.denied.example") + GET)
        heard = client.heard
        self.assertEqual(answers(heard), [403])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertEqual(self.dialer.dialings, [])
        self.assertTrue(client.said_fin)

    def test_challenged(self):
        """After a 407 the second try comes on the same connection, as curl does it."""
        self.rules = (Rule("alice", True, ("*",), users=frozenset({"alice"}), special_addresses=True),)
        self.setUp()
        self.egress.accounts = self.accounts
        client = self.connect()
        client.says(CONNECT)
        heard = client.heard
        self.assertEqual(status(heard), 407)
        self.assertNotIn(b"Connection: close", heard)
        client.says(with_field(RIGHT, CONNECT))
        self.assertEqual(client.heard, OPEN)
        client.resets()
        self.assertEqual(self.outcome("status", "decision"), [(407, "challenge"), (200, "allow")])

    def malformed(self, *heads: bytes) -> None:
        """Heads that are refused with 400."""
        for head in heads:
            client = self.connect()
            client.says(head)
            self.assertEqual(answers(client.heard), [400], head)
            self.assertTrue(client.said_fin, head)
        self.assertEqual(self.dialer.dialings, [])
        self.assertNotIn("secret", str(self.records))

    def test_malformed(self):
        """Anything but host and port is refused."""
        self.malformed(
            b"CONNECT origin.example HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT origin.example: HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT :443 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT origin.example:0 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT origin.example:65536 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT origin.example:https HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT origin.example:443/ HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT http://origin.example:443/ HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT alice:secret@origin.example:443 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"CONNECT * HTTP/1.1\r\nHost: h\r\n\r\n",
        )

    def test_body(self):
        """A body would be content to one reader and tunnel to the next (RFC 9110 §9.3.6)."""
        head = CONNECT[:-2]
        self.malformed(
            head + b"Content-Length: 5\r\n\r\nhello",
            head + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
            head + b"Content-Length: -0\r\n\r\n",
            head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            head + b"Transfer-Encoding: identity\r\n\r\n",
        )

    def test_loop(self):
        """A request that comes back through another proxy is refused."""
        client = self.connect()
        client.says(with_field(b"Via: 1.1 proxyd-test\r\n", CONNECT))
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(self.outcome("error"), [("proxy_loop_detected",)])

    def test_long_dial(self):
        """A request that is being dialed is nobody's silence: dialing has limits of its own."""
        self.dialer.instant = False
        client = self.connect()
        client.says(CONNECT)
        self.turn(60)
        self.assertFalse(client.closed)
        self.dialer.connects()
        self.assertEqual(client.heard, OPEN)
        client.resets()

    def tunnel(self) -> Memory:
        """A client with an open tunnel."""
        client = self.connect()
        client.says(CONNECT)
        self.assertEqual(client.heard, OPEN)
        return client

    def test_idle(self):
        """A tunnel is no longer a matter of request timeouts, only of its own."""
        client = self.tunnel()
        self.turn(500)
        self.assertFalse(client.closed)
        self.turn(200)
        self.drained(client, self.origin)
        self.assertEqual(self.outcome("error", "closed_by"), [("connection_read_timeout", "proxy")])
