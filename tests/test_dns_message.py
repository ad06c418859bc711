"""Tests for proxyd.net.dns_message."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType
from proxyd.net.dns_message import Question, Reply, ServerFailed

# RFC 1035 §4.1: identifier, flags, four counts; then the sections. 0xC00C points to the name of the question.
QUESTION_A = b"\x01a\x07example\x00\x00\x01\x00\x01"
QUESTION_AAAA = b"\x01a\x07example\x00\x00\x1c\x00\x01"
REPLY = b"\x81\x80"
ONE_ANSWER = b"\x00\x01\x00\x01\x00\x00\x00\x00"
A_RECORD = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\xc0\x00\x02\x01"


def a(name: str, address: str, ttl: int = 300) -> dns.RRHeader:
    """An address record."""
    return dns.RRHeader(name, dns.A, ttl=ttl, payload=dns.Record_A(address))


def cname(name: str, canonical: str, ttl: int = 300) -> dns.RRHeader:
    """An alias record."""
    return dns.RRHeader(name, dns.CNAME, ttl=ttl, payload=dns.Record_CNAME(canonical))


class EncodeTests(SynchronousTestCase):
    """The query message (RFC 1035 §4.1)."""

    def test_query(self) -> None:
        """A question has a recursion-desired header, one name, its type, and class IN."""
        data = Question(b"a.example", dns.A).encode()
        self.assertEqual(data[2:], b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + QUESTION_A)

    def test_ipv6(self) -> None:
        """A question for IPv6 addresses is one for AAAA records (RFC 3596 §2.1)."""
        data = Question(b"a.example", dns.AAAA).encode()
        self.assertEqual(data[12:], QUESTION_AAAA)

    def test_random_identifier(self) -> None:
        """Identifiers differ from question to question, and stay the same when one is sent again."""
        questions = [Question(b"a.example", dns.A) for _ in range(20)]
        self.assertGreater(len({question.encode()[:2] for question in questions}), 10)
        self.assertEqual(questions[0].encode(), questions[0].encode())


class MatchTests(SynchronousTestCase):
    """Which messages are replies to a question."""

    def setUp(self) -> None:
        self.question = Question(b"a.example", dns.A)
        self.id = self.question.encode()[:2]

    def test_reply(self) -> None:
        """A reply with the identifier and the question is one."""
        message = self.question.match(self.id + REPLY + ONE_ANSWER + QUESTION_A + A_RECORD)
        assert message is not None
        self.assertEqual(self.question.read(message), Reply((IPv4Address("192.0.2.1"),), 300))

    def test_case(self) -> None:
        """Upper and lower case of a name do not matter (RFC 4343)."""
        self.assertIsNotNone(
            self.question.match(self.id + REPLY + ONE_ANSWER + b"\x01A\x07eXample\x00\x00\x01\x00\x01" + A_RECORD)
        )

    def test_other_identifier(self) -> None:
        """A message with another identifier is none."""
        other = bytes([self.id[0] ^ 1, self.id[1]])
        self.assertIsNone(self.question.match(other + REPLY + ONE_ANSWER + QUESTION_A + A_RECORD))

    def test_query_is_no_reply(self) -> None:
        """Our own query, reflected, is none."""
        self.assertIsNone(self.question.match(self.question.encode()))

    def test_other_question(self) -> None:
        """A reply to another name, type or class, or to no question, or to two, is none."""
        for text in (
            ONE_ANSWER + b"\x01b\x07example\x00\x00\x01\x00\x01" + A_RECORD,
            ONE_ANSWER + QUESTION_AAAA + A_RECORD,
            ONE_ANSWER + b"\x01a\x07example\x00\x00\x01\x00\x03" + A_RECORD,
            b"\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x02\x00\x00\x00\x00\x00\x00" + QUESTION_A + QUESTION_A,
        ):
            self.assertIsNone(self.question.match(self.id + REPLY + text), text)

    def test_cut_off(self) -> None:
        """A reply cut off at any byte, without saying so, is none."""
        whole = self.id + REPLY + ONE_ANSWER + QUESTION_A + A_RECORD
        for length in range(len(whole)):
            self.assertIsNone(self.question.match(whole[:length]), length)

    def test_truncated(self) -> None:
        """A reply that says it is truncated is one: it tells to ask over TCP."""
        message = self.question.match(self.id + b"\x83\x80" + ONE_ANSWER + QUESTION_A)
        assert message is not None
        self.assertTrue(message.trunc)

    def test_loop_in_a_name(self) -> None:
        """A name that points to itself makes a message junk."""
        self.assertIsNone(self.question.match(self.id + REPLY + ONE_ANSWER + b"\xc0\x0c\x00\x01\x00\x01"))

    @given(st.binary(max_size=200), st.binary(max_size=60))
    def test_junk(self, header: bytes, rest: bytes) -> None:
        """No bytes whatever make it fail, also behind a header that fits."""
        question = Question(b"a.example", dns.A)
        question.match(header)
        message = question.match(question.encode()[:2] + REPLY + ONE_ANSWER + QUESTION_A + rest)
        if message is not None:
            self.assertIsInstance(question.read(message), Reply)


class ReadTests(SynchronousTestCase):
    """What a reply says."""

    def read(self, *answers: dns.RRHeader, type: int = dns.A, code: int = dns.OK, soa: bool = False) -> Reply:
        message = dns.Message(answer=1, rCode=code)
        message.answers = list(answers)
        if soa:
            message.authority = [dns.RRHeader("example", dns.SOA, payload=dns.Record_SOA())]
        return Question(b"a.example", type).read(message)

    def test_order(self) -> None:
        """Addresses keep the server's order, each once; the shortest TTL counts."""
        reply = self.read(
            a("a.example", "192.0.2.2", 60), a("a.example", "192.0.2.1", 50), a("a.example", "192.0.2.2", 70)
        )
        self.assertEqual(reply, Reply((IPv4Address("192.0.2.2"), IPv4Address("192.0.2.1")), 50))

    def test_ipv6(self) -> None:
        """AAAA records are IPv6 addresses."""
        record = dns.RRHeader("a.example", dns.AAAA, ttl=9, payload=dns.Record_AAAA("2001:db8::1"))
        self.assertEqual(self.read(record, type=dns.AAAA), Reply((IPv6Address("2001:db8::1"),), 9))

    def test_alias(self) -> None:
        """Aliases are followed within the answer, in whatever order the records are."""
        reply = self.read(
            a("c.example", "192.0.2.1", 60), cname("b.example", "c.example", 40), cname("A.example", "B.example", 50)
        )
        self.assertEqual(reply, Reply((IPv4Address("192.0.2.1"),), 40))

    def test_alias_alone(self) -> None:
        """Where the answer has only the alias, its end is the name to ask for next."""
        self.assertEqual(self.read(cname("a.example", "b.example", 40)), Reply(ttl=40, alias=b"b.example"))

    def test_alias_without_address(self) -> None:
        """Where the server adds a SOA record, the alias has no address (RFC 2308 §2.2)."""
        self.assertEqual(self.read(cname("a.example", "b.example", 40), soa=True), Reply(ttl=40))

    def test_alias_loop(self) -> None:
        """Aliases that lead back to the name end there, without an address."""
        self.assertEqual(self.read(cname("a.example", "b.example"), cname("b.example", "a.example")), Reply(ttl=300))

    def test_long_chain(self) -> None:
        """Eight aliases are followed in one answer."""
        chain = [cname(f"{'n' * number}a.example", f"{'n' * (number + 1)}a.example") for number in range(9)]
        self.assertEqual(self.read(*chain).alias, b"n" * 8 + b"a.example")

    def test_records_of_others(self) -> None:
        """Records of other names, other types and other classes are not for us."""
        self.assertEqual(
            self.read(
                a("b.example", "192.0.2.1"),
                dns.RRHeader("a.example", dns.AAAA, payload=dns.Record_AAAA("2001:db8::1")),
                dns.RRHeader("a.example", dns.A, cls=dns.CH, payload=dns.Record_A("192.0.2.1")),
                dns.RRHeader("a.example", dns.CNAME, cls=dns.CH, payload=dns.Record_CNAME("b.example")),
            ),
            Reply(),
        )

    def test_no_such_name(self) -> None:
        """NXDOMAIN says that the name does not exist."""
        self.assertEqual(self.read(code=dns.ENAME), Reply(exists=False))

    def test_server_failure(self) -> None:
        """Any other code says nothing of the name, only of the server."""
        for code, text in ((2, "SERVFAIL"), (5, "REFUSED"), (9, "RCODE 9")):
            error = self.assertRaises(ServerFailed, self.read, code=code)
            self.assertEqual((error.error, error.detail), (ErrorType.DNS_ERROR, f"the DNS server said {text}"))
