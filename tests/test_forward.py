"""Tests for ``proxyd.frontends.forward``: one request, its body, its retry, its endings."""

from __future__ import annotations

from proxyd.errors import ErrorType
from proxyd.policy.rules import Rule
from tests.doors import ALLOW, BUFFER, GET, GOT, OK, SAID_OK, VIA, DoorCase, Memory
from tests.test_http import answers, content, status

POST = b"POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n"
LENGTH = POST + b"Content-Length: 5\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
EXPECTING = POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
POSTED = b"POST / HTTP/1.1\r\nHost: origin.example\r\n" + VIA


class BodyTests(DoorCase):
    """The body of a request on its way to the origin."""

    def test_with_head(self):
        """A body that came with its head leaves with it."""
        client = self.connect()
        client.says(LENGTH + b"hello")
        self.assertEqual(self.origin.heard, POSTED + b"Content-Length: 5\r\n\r\nhello")
        self.assertIsNone(self.origin.producer)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("bytes_from_client", "bytes_to_client"), [(len(LENGTH) + 5, len(OK))])

    def test_streamed(self):
        """A body is passed on as it comes, and never waits to be complete."""
        client = self.connect()
        client.says(LENGTH)
        self.assertEqual(self.origin.heard, POSTED + b"Content-Length: 5\r\n\r\n")
        client.says(b"hel")
        self.assertEqual(self.origin.heard, b"hel")
        client.says(b"lo" + GET)
        self.assertEqual(self.origin.heard, b"lo")
        self.assertIsNone(self.origin.producer)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()
        self.assertEqual([record.bytes_from_client for record in self.records], [len(LENGTH) + 5, len(GET)])

    def test_chunked(self):
        """Chunks are made anew, without extensions; trailers are passed on, except those that frame or route."""
        client = self.connect()
        body = b"2;ext=1\r\nhe\r\n003\r\nllo\r\n0;last\r\nX-Sum: 1\r\nContent-Length: 9\r\nHost: evil\r\n\r\n"
        client.says(CHUNKED + body)
        self.assertEqual(
            self.origin.heard, POSTED + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        )
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("bytes_from_client"), [(len(CHUNKED + body),)])

    def test_chunked_streamed(self):
        """Each piece of a chunk is a chunk of its own."""
        client = self.connect()
        client.trickles(CHUNKED)
        _ = self.origin.heard
        client.says(b"5\r\nhel")
        self.assertEqual(self.origin.heard, b"3\r\nhel\r\n")
        client.says(b"lo\r\n")
        self.assertEqual(self.origin.heard, b"2\r\nlo\r\n")
        client.says(b"0\r\n")
        self.assertEqual(self.origin.heard, b"")
        client.says(b"\r\n")
        self.assertEqual(self.origin.heard, b"0\r\n\r\n")
        client.resets()

    def test_empty_bodies(self):
        """A length of 0, no chunk at all, and no word about a body are three ways to say the same."""
        for request, expected in (
            (POST + b"Content-Length: 0\r\n\r\n", POSTED + b"Content-Length: 0\r\n\r\n"),
            (CHUNKED + b"0\r\n\r\n", POSTED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (POST + b"\r\n", POSTED + b"\r\n"),
        ):
            client = self.connect()
            client.says(request)
            self.assertEqual(self.origin.heard, expected)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)

    def test_broken_later(self):
        """Chunks that break in the middle end the request: 400 for the client, an unfinished message for the origin."""
        client = self.connect()
        client.says(CHUNKED + b"5\r\nhello\r\n")
        _ = self.origin.heard
        client.says(b"zz\r\n" + GET)
        self.assertEqual(answers(client.heard), [400])
        self.assertTrue(client.said_fin)
        self.assertTrue(self.origin.aborted)
        self.assertEqual(self.origin.heard, b"")
        self.assertEqual(self.outcome("error", "status"), [("http_request_error", 400)])

    def test_slow_origin(self):
        """While the origin does not take the body the client is not read; what waits is bounded."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10000000\r\n\r\n")
        self.origin.stalled = True
        for _ in range(10):
            client.says(b"x" * 16384)
        self.assertFalse(client.reading)
        self.assertLess(self.origin.pending, BUFFER + 2 * 16384)
        self.origin.takes()
        self.assertTrue(client.reading)
        client.resets()
        self.drained(self.origin)

    def test_long_dial(self):
        """While the origin is dialed the body is kept up to a bound, and read on afterwards."""
        self.dialer.instant = False
        client = self.connect()
        client.says(POST + b"Content-Length: 300010\r\n\r\n", b"x" * 300_000, b"y" * 10)
        self.assertFalse(client.reading)
        origin = self.dialer.connects()
        self.turn()
        self.assertEqual(len(content(origin.heard)), 300_010)
        origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)

    def test_eager(self):
        """A transport that delivers at once when it is told to read on does no harm, whatever it delivers."""
        for rest, expected in ((b"y" * 10, [200]), (b"y" * 10 + GET, [200]), (b"y", [])):
            self.dialer.instant = False
            client = self.connect(eager=True)
            client.says(POST + b"Content-Length: 300010\r\n\r\n", b"x" * 300_000, rest)
            origin = self.dialer.connects()
            self.assertTrue(content(origin.heard).endswith(rest[:10]))
            origin.says(OK) if expected else None
            self.assertEqual(answers(client.heard), expected)
            client.resets()
            self.egress.pool.close()
        client = self.connect(eager=True)
        client.says(CHUNKED, b"4e200\r\n" + b"x" * 320_000 + b"\r\n", b"broken\r\n")
        origin = self.dialer.connects()
        self.assertTrue(origin.aborted)
        self.assertEqual(answers(client.heard), [400])

    def test_half_closed(self):
        """A client that says FIN behind its body is answered, however long dialing takes."""
        for eager in (False, True):
            for instant in (False, True):
                self.dialer.instant = instant
                client = self.connect(eager=eager)
                client.says(LENGTH, b"hello")
                client.closes()
                origin = self.origin if instant else self.dialer.connects()
                self.turn()
                self.assertTrue(origin.heard.endswith(b"hello"))
                origin.says(OK)
                self.assertEqual(answers(client.heard), [200])
                self.drained(client)
                self.egress.pool.close()
        self.assertEqual({record.error for record in self.records}, {None})

    def test_half_closed_too_early(self):
        """One that says FIN in the middle of it has left: the origin must not take the part for the whole."""
        for eager in (False, True):
            for instant in (False, True):
                self.dialer.instant = instant
                client = self.connect(eager=eager)
                client.says(LENGTH + b"hel")
                client.closes()
                origin = self.origin if instant else self.dialer.connects()
                self.drained(client, origin)
                self.assertTrue(origin.aborted)
        self.assertEqual(self.outcome("error", "closed_by"), [("client_disconnected", "client")] * 4)

    def test_origin_breaks(self):
        """An origin that breaks while the body comes is a 502; the rest of the body is thrown away."""
        client = self.connect()
        client.says(LENGTH + b"hel")
        self.origin.resets()
        self.assertEqual(status(client.heard), 502)
        client.says(b"lo" + GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("error", "status"), [("connection_terminated", 502), (None, 200)])


class ContinueTests(DoorCase):
    """``Expect: 100-continue`` (RFC 9110 §10.1.1)."""

    def test_origin_says_it(self):
        """The origin's 100 goes to the client, and the body to the origin."""
        client = self.connect()
        client.says(EXPECTING)
        self.assertIn(b"\r\nExpect: 100-continue\r\n", self.origin.heard)
        self.origin.says(CONTINUE)
        self.assertEqual(client.heard, b"HTTP/1.1 100 Continue\r\n" + VIA + b"\r\n")
        self.turn(1)
        self.assertEqual(client.heard, b"")
        client.says(b"hello")
        self.assertEqual(self.origin.heard, b"hello")
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)

    def test_we_say_it(self):
        """If the origin is silent we say it within milliseconds; its own 100 is then swallowed."""
        client = self.connect()
        client.says(EXPECTING)
        self.clock.advance(0.019)
        self.assertEqual(client.heard, b"")
        self.clock.advance(0.002)
        self.assertEqual(client.heard, CONTINUE)
        self.origin.says(CONTINUE)
        self.assertEqual(client.heard, b"")
        client.says(b"hello")
        self.origin.says(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
        self.assertEqual(client.heard, b"HTTP/1.1 103 Early Hints\r\n" + VIA + b"\r\n" + SAID_OK)

    def test_body_comes_first(self):
        """Nobody says it to a client that sends its body without waiting."""
        client = self.connect()
        client.says(EXPECTING, b"hel")
        self.turn(1)
        self.assertEqual(client.heard, b"")
        client.says(b"lo")
        self.assertTrue(self.origin.heard.endswith(b"hello"))
        client.says(EXPECTING)  # waits for its turn
        self.origin.says(OK)
        self.assertEqual(client.heard, SAID_OK)
        client.resets()

    def test_body_comes_with_it(self):
        """Nor to one whose body came with the head; the expectation is the origin's to ignore."""
        client = self.connect()
        client.says(EXPECTING + b"hello")
        self.assertIn(b"\r\nExpect: 100-continue\r\n", self.origin.heard)
        self.turn(1)
        self.origin.says(CONTINUE + OK)
        self.assertEqual(answers(client.heard), [100, 200])

    def test_part_comes_with_it(self):
        """Nor to one that has begun."""
        client = self.connect()
        client.says(EXPECTING + b"hel")
        self.turn(1)
        self.assertEqual(client.heard, b"")
        client.resets()

    def test_answer_instead(self):
        """An origin that answers instead is heard; as nobody knows whether the body comes, the connection closes."""
        client = self.connect()
        client.says(EXPECTING)
        self.origin.says(OK.replace(b"200 OK", b"413 No"))
        heard = client.heard
        self.assertEqual(answers(heard), [413])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(self.origin.aborted)
        client.says(b"hello" + GET)
        self.assertEqual(client.heard, b"")
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("status", "error"), [(413, None)])

    def test_http_1_0(self):
        """HTTP/1.0 does not know of it: it is neither answered nor passed on."""
        client = self.connect()
        client.says(EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0"))
        self.assertNotIn(b"Expect", self.origin.heard)
        self.turn(1)
        self.assertEqual(client.heard, b"")
        client.says(b"hello")
        self.origin.says(CONTINUE + OK)
        self.assertEqual(answers(client.heard), [200])

    def test_no_body(self):
        """Without a body there is nothing to wait for."""
        client = self.connect()
        client.says(GET.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        self.assertEqual(self.origin.heard, GOT)
        self.turn(1)
        self.assertEqual(client.heard, b"")
        client.resets()

    def test_refused(self):
        """What is refused is refused before the body."""
        self.dialer.instant = False
        client = self.connect()
        client.says(EXPECTING)
        self.dialer.fails(ErrorType.CONNECTION_REFUSED)
        self.assertEqual(answers(client.heard), [502])
        self.assertTrue(client.said_fin)

    def test_leaves(self):
        """A client that leaves while it waits ends everything."""
        client = self.connect()
        client.says(EXPECTING)
        client.resets()
        self.turn(1)
        self.drained(self.origin)


class RetryTests(DoorCase):
    """A reused connection that turns out to be dead."""

    def idle(self) -> Memory:
        """An origin whose connection was used and is idle; and a client for the next request."""
        first = self.connect()
        first.says(GET)
        self.origin.says(OK)
        self.records.clear()
        _ = self.origin.heard
        return self.connect()

    def test_again(self):
        """What is safe to repeat is sent again, on a new connection."""
        for method in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"):
            client = self.idle()
            dead = self.origin
            client.says(GET.replace(b"GET", method))
            self.assertTrue(dead.heard)
            if method == b"PUT":
                dead.resets()
            else:
                dead.closes()
                self.drained(dead)
            self.assertIsNot(self.origin, dead)
            self.assertEqual(self.origin.heard, GOT.replace(b"GET", method))
            self.origin.says(OK.replace(b"\r\n\r\nok", b"\r\n\r\n") if method == b"HEAD" else OK)
            self.assertEqual(status(client.heard), 200)
            self.assertEqual(self.outcome("reused", "error"), [(False, None)])
            self.egress.pool.close()

    def test_post(self):
        """A POST may have been carried out: 502."""
        client = self.idle()
        client.says(LENGTH + b"hello")
        self.origin.closes()
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(len(self.dialer.origins), 1)
        self.assertEqual(self.outcome("reused", "error"), [(True, "connection_terminated")])

    def test_post_without_body(self):
        """Even without a body."""
        client = self.idle()
        client.says(POST + b"\r\n")
        self.origin.closes()
        self.assertEqual(status(client.heard), 502)

    def test_waiting_post(self):
        """One whose client waits for a 100 cannot have been carried out, even if we have told it to go on."""
        for wait in (0.0, 0.125):
            client = self.idle()
            client.says(EXPECTING)
            self.turn(wait)
            self.clock.advance(wait)
            dead = self.origin
            dead.closes()
            self.assertIsNot(self.origin, dead)
            self.assertIn(b"\r\nContent-Length: 5\r\n", self.origin.heard)
            self.turn(1)
            self.assertEqual(client.heard, CONTINUE)
            client.says(b"hello")
            self.assertEqual(self.origin.heard, b"hello")
            self.origin.says(CONTINUE + OK)
            self.assertEqual(client.heard, SAID_OK)
            self.egress.pool.close()

    def test_waited_post(self):
        """But not when some of its body is lost with the connection."""
        client = self.idle()
        client.says(EXPECTING)
        client.says(b"hel")
        self.origin.closes()
        self.assertEqual(answers(client.heard), [502])
        self.assertEqual(len(self.dialer.origins), 1)

    def test_body_meanwhile(self):
        """What the client sends while the second connection is dialed is part of the second try."""
        client = self.idle()
        client.says(EXPECTING)
        self.dialer.instant = False
        self.origin.closes()
        client.says(b"hello" + GET)
        self.dialer.connects()
        self.assertTrue(self.origin.heard.endswith(b"\r\n\r\nhello"))
        client.resets()

    def test_put_with_body(self):
        """A PUT whose body is gone cannot be sent again, safe as it may be."""
        client = self.idle()
        client.says(LENGTH.replace(b"POST", b"PUT") + b"hello")
        self.origin.closes()
        self.assertEqual(status(client.heard), 502)

    def test_new_connection(self):
        """A connection that was new was not dead: the origin does not want the request."""
        client = self.connect()
        client.says(GET)
        self.origin.closes()
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(len(self.dialer.origins), 1)
        self.drained(self.origin)

    def test_response_began(self):
        """An origin that has begun to answer has taken the request."""
        client = self.idle()
        client.says(GET)
        self.origin.says(b"HT")
        self.origin.closes()
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(self.outcome("error"), [("http_response_incomplete",)])

    def test_interim_response(self):
        """So has one that has sent an interim response."""
        client = self.idle()
        client.says(GET)
        self.origin.says(b"HTTP/1.1 102 Processing\r\n\r\n")
        self.origin.closes()
        self.assertEqual(answers(client.heard), [102, 502])

    def test_once(self):
        """There is one second try, on a connection of its own, and no third."""
        client = self.idle()
        client.says(GET)
        self.origin.closes()
        self.origin.closes()
        self.assertEqual(len(self.dialer.origins), 2)
        self.assertEqual(status(client.heard), 502)

    def test_second_try_fails(self):
        """A second try that fails is told with its own reason."""
        client = self.idle()
        client.says(GET)
        self.dialer.instant = False
        self.origin.closes()
        self.dialer.fails(ErrorType.CONNECTION_REFUSED)
        self.assertEqual(status(client.heard), 502)
        self.assertEqual(self.outcome("error"), [("connection_refused",)])

    def test_client_leaves(self):
        """A client that leaves before the second try has ended both."""
        client = self.idle()
        client.says(GET)
        self.dialer.instant = False
        self.origin.closes()
        client.resets()
        self.assertTrue(self.dialer.dialings[-1].cancelled)

    def test_connected_too_late(self):
        """An origin that is reached in the very moment when the client leaves gets nothing."""
        self.dialer.instant = False
        self.dialer.when_cancelled = self.dialer.connects
        client = self.connect()
        client.says(GET)
        client.resets()
        self.drained(self.origin)
        self.assertEqual(self.origin.heard, b"")


class PreserveHostTests(DoorCase):
    """A rule that keeps the client's Host."""

    rules = (Rule("project", True, ("203.0.113.7",), special_addresses=True, preserve_host=True), ALLOW)

    def test_by_rule(self):
        """Where the deciding rule says so the Host is the client's; nowhere else."""
        client = self.connect()
        client.says(b"GET http://203.0.113.7/ HTTP/1.1\r\nHost: project.example\r\n\r\n")
        self.assertIn(b"\r\nHost: project.example\r\n", self.origin.heard)
        self.origin.says(OK)
        client.says(b"GET http://203.0.113.8/ HTTP/1.1\r\nHost: project.example\r\n\r\n")
        self.assertIn(b"\r\nHost: 203.0.113.8\r\n", self.origin.heard)
        client.resets()


class EarlyAnswerTests(DoorCase):
    """Final responses that come while the body is still on its way."""

    def answered(self) -> Memory:
        """A client in the middle of its body, answered."""
        client = self.connect()
        client.says(LENGTH + b"hel")
        self.origin.says(OK.replace(b"200 OK", b"413 Too Large"))
        return client

    def test_relayed(self):
        """The answer is relayed at once; what the client still sends is thrown away until it has read that."""
        client = self.answered()
        heard = client.heard
        self.assertEqual(answers(heard), [413])
        self.assertIn(b"\r\nConnection: close\r\n", heard)
        self.assertTrue(client.said_fin)
        self.assertFalse(client.aborted)
        client.says(b"lo", GET)
        self.assertEqual(client.heard, b"")
        client.closes()
        self.drained(client, self.origin)
        self.assertTrue(self.origin.aborted)
        self.assertEqual(self.outcome("status", "error"), [(413, None)])

    def test_body_goes_on(self):
        """While a long answer comes the body goes on; the connection ends with the answer as it was told to."""
        client = self.connect()
        client.says(LENGTH + b"hel")
        self.origin.says(OK[:-1])
        _ = self.origin.heard
        client.says(b"lo" + GET)
        self.assertEqual(self.origin.heard, b"lo")
        self.origin.says(OK[-1:])
        self.assertEqual(answers(client.heard), [200])
        self.assertTrue(client.said_fin)

    def test_client_stops(self):
        """A client that stops its body to read the answer gets all of it."""
        for eager in (False, True):
            client = self.connect(eager=eager)
            client.says(LENGTH + b"hel")
            self.origin.says(OK[:-1])
            client.closes()
            self.assertFalse(client.closed)
            self.origin.says(OK[-1:])
            self.assertTrue(client.heard.endswith(b"\r\n\r\nok"))
            self.drained(client, self.origin)

    def test_before_body(self):
        """An origin that answers on the head alone is no different."""
        client = self.connect()
        client.says(LENGTH)
        self.origin.says(OK)
        self.assertEqual(answers(client.heard), [200])
        self.assertTrue(self.origin.aborted)
        self.assertTrue(client.said_fin)


class PoolTests(DoorCase):
    """Which upstream connections carry another request."""

    def reused(self, response: bytes, request: bytes = GET) -> bool:
        """Whether the connection that brought this response is used again."""
        client = self.connect()
        client.says(request)
        self.origin.says(response)
        _ = client.heard
        used = self.origin
        self.turn()
        again = self.connect()
        again.says(GET)
        reused = self.origin is used
        again.resets()
        self.turn()
        self.assertEqual(used.lost, True)
        return reused

    def test_reused(self):
        """A connection in step is."""
        self.assertTrue(self.reused(OK))
        self.assertTrue(self.reused(b"HTTP/1.1 204 No Content\r\n\r\n"))
        self.assertTrue(self.reused(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
        self.assertTrue(self.reused(OK, LENGTH + b"hello"))
        self.assertTrue(self.reused(OK, GET.replace(b"HTTP/1.1", b"HTTP/1.0")))

    def test_not_reused(self):
        """One that closes, is HTTP/1.0, says too much, or is somebody's own is not."""
        self.assertFalse(self.reused(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
        self.assertFalse(self.reused(OK.replace(b"HTTP/1.1", b"HTTP/1.0")))
        self.assertFalse(self.reused(OK + b"X"))
        self.assertFalse(self.reused(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"))
        self.assertFalse(self.reused(OK, GET.replace(b"\r\n\r\n", b"\r\nAuthorization: NTLM TlRM\r\n\r\n")))

    def test_slow_reader(self):
        """An origin that waited for a slow client is read on in the pool, to hear when it closes."""
        client = self.connect()
        client.stalled = True
        client.says(GET)
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + b"x" * 69_999)
        self.assertFalse(self.origin.reading)
        client.takes()
        client.stalled = True
        self.origin.says(b"x")
        self.assertTrue(self.origin.reading)
        self.origin.closes()
        self.drained(self.origin)


class TimeTests(DoorCase):
    """How long an exchange may stand still."""

    def test_no_answer(self):
        """An origin that has the whole request and does not answer is given up: 504."""
        client = self.connect()
        client.says(LENGTH + b"hello")
        self.turn(115)
        self.assertEqual(client.heard, b"")
        self.turn(40)
        self.assertEqual(status(client.heard), 504)
        self.drained(self.origin)
        self.assertEqual(self.outcome("error", "status", "closed_by"), [("connection_read_timeout", 504, "proxy")])
        client.says(GET)
        self.assertEqual(self.origin.heard, GOT)
        client.resets()

    def test_interim_counts(self):
        """An interim response shows that it is at work."""
        client = self.connect()
        client.says(GET)
        for _ in range(4):
            self.turn(100)
            self.origin.says(b"HTTP/1.1 102 Processing\r\n\r\n")
        self.assertEqual(answers(client.heard), [102] * 4)
        client.resets()

    def test_slow_body(self):
        """A body that stands still is given up after the idle timeout: 408, and the connection ends."""
        client = self.connect()
        client.says(LENGTH)
        for byte in (b"h", b"e"):
            self.turn(500)
            client.says(byte)
        self.turn(595)
        self.assertEqual(client.heard, b"")
        self.turn(40)
        self.assertEqual(status(client.heard), 408)
        self.assertTrue(client.said_fin)
        self.assertTrue(self.origin.lost)
        self.assertEqual(self.outcome("error", "status"), [("http_request_error", 408)])

    def test_stuck_origin(self):
        """If it is the origin that does not take the body, it is a 504."""
        client = self.connect()
        client.says(POST + b"Content-Length: 10000000\r\n\r\n")
        self.origin.stalled = True
        client.says(b"x" * 70_000)
        self.turn(640)
        self.assertEqual(status(client.heard), 504)
        self.assertEqual(self.outcome("error"), [("connection_write_timeout",)])

    def test_stuck_response(self):
        """A response that stands still is cut, after the longer idle timeout."""
        client = self.connect()
        client.says(GET)
        self.origin.says(OK[:-1])
        self.turn(595)
        self.assertFalse(client.closed)
        self.turn(40)
        self.drained(client, self.origin)
        self.assertTrue(client.aborted)
        self.assertEqual(
            self.outcome("error", "status", "detail"),
            [("connection_read_timeout", 200, "the origin did not go on with its response in time")],
        )

    def test_stuck_client(self):
        """If it is the client that does not read it, the record says so."""
        client = self.connect()
        client.stalled = True
        client.says(GET)
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n" + b"x" * 70_000)
        self.turn(640)
        self.drained(client, self.origin)
        self.assertEqual(self.outcome("error"), [("connection_write_timeout",)])

    def test_settings(self):
        """The timeouts are those configured, kept within a quarter."""
        self.change(response_timeout=2.0, idle_timeout=4.0)
        client = self.connect()
        client.says(GET)
        self.turn(1.75)
        self.assertEqual(client.heard, b"")
        self.turn(1.25)
        self.assertEqual(status(client.heard), 504)
