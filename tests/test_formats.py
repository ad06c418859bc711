"""Tests for proxyd.ledger.formats."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType
from proxyd.ledger.formats import encode_json, encode_squid
from proxyd.ledger.record import AccessRecord

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=40)
"""Text of any code points, halves of surrogate pairs too."""


def a_record(**changes: Any) -> AccessRecord:
    """A tunnel that went well, with changes."""
    record = AccessRecord(
        time=1700000000.123456,
        id="7-42",
        listener="connect",
        protocol="connect",
        client="192.0.2.15",
        client_port=51234,
        user="alice",
        proof="basic",
        method="CONNECT",
        destination="logs.example.com:443",
        address="198.51.100.7:443",
        decision="allow",
        rule="logs",
        status=200,
        bytes_from_client=160234,
        bytes_to_client=512,
        duration=0.25,
        policy=0.000012,
        dns=0.001234,
        connect=0.012345,
        first_byte=0.023456,
        closed_by="client",
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


class EncodeJSONTests(SynchronousTestCase):
    """JSON lines."""

    def test_whole_line(self) -> None:
        """A line is one object with its keys in the order of the fields, and what is not known is left out."""
        self.assertEqual(
            encode_json(a_record()),
            b'{"time":1700000000.123456,"id":"7-42","listener":"connect","protocol":"connect","client":"192.0.2.15",'
            b'"client_port":51234,"user":"alice","proof":"basic","method":"CONNECT",'
            b'"destination":"logs.example.com:443","address":"198.51.100.7:443","decision":"allow","rule":"logs",'
            b'"status":200,"bytes_from_client":160234,"bytes_to_client":512,"duration":0.25,"policy":0.000012,'
            b'"dns":0.001234,"connect":0.012345,"first_byte":0.023456,"closed_by":"client","reused":false}\n',
        )

    def test_nothing_but_a_connection(self) -> None:
        """Text, counts and times that every record has are in the line even if they are empty or zero."""
        record = AccessRecord(1700000000.0, "7-43", "forward", "", "192.0.2.15", 51235)

        self.assertEqual(
            encode_json(record),
            b'{"time":1700000000.0,"id":"7-43","listener":"forward","protocol":"","client":"192.0.2.15",'
            b'"client_port":51235,"method":"","destination":"","bytes_from_client":0,"bytes_to_client":0,'
            b'"duration":0.0,"reused":false}\n',
        )

    def test_phases_not_reached(self) -> None:
        """Each phase that was not reached is left out, whichever of the others there are."""
        for phase in ("policy", "dns", "connect", "first_byte"):
            line = json.loads(encode_json(a_record(**{phase: None})))
            self.assertEqual({"policy", "dns", "connect", "first_byte"} - set(line), {phase})

    def test_hostile_text(self) -> None:
        """Line ends, escapes, DEL, letters beyond ASCII, U+2028 and half a surrogate pair are all escaped."""
        record = a_record(user='a\r\n\x1b[31m"\\\x7f\u2028é\U0001f600\udc80', id="x")

        line = encode_json(record)

        self.assertIn(b'"user":"a\\r\\n\\u001b[31m\\"\\\\\\u007f\\u2028\\u00e9\\ud83d\\ude00\\udc80"', line)

    def test_hostile_text_without_surrogates(self) -> None:
        """The same goes for text that is valid Unicode, and for DEL alone."""
        self.assertIn(b'"user":"\\u007f"', encode_json(a_record(user="\x7f")))
        self.assertIn(b'"user":"\\u2028\\u00e9"', encode_json(a_record(user="\u2028é")))

    @given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
    def test_one_line_of_printable_ascii(self, user: str, method: str, destination: str, detail: str) -> None:
        """Whatever the text, the line is printable ASCII with one newline, at its end, and reads back the same."""
        record = a_record(user=user, method=method, destination=destination, detail=detail)

        line = encode_json(record)

        self.assertTrue(line.endswith(b"\n"))
        self.assertEqual(set(line[:-1]) - set(range(0x20, 0x7F)), set())
        self.assertEqual(json.loads(line), {**msgspec.to_builtins(record)})


class EncodeSquidTests(SynchronousTestCase):
    """Squid's native format: one table of records and lines, whose keys are sentences."""

    lines: dict[str, tuple[AccessRecord, bytes]] = {
        "a tunnel is logged by host and port": (
            a_record(),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/200 512 CONNECT logs.example.com:443 alice "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "a forwarded request is logged by scheme, host and port, without its path": (
            a_record(protocol="forward", method="POST", destination="logs.example.com:8080", user=None),
            b"1700000000.373    250 192.0.2.15 TCP_MISS/200 512 POST http://logs.example.com:8080/ - "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "port 80 is left out of a forwarded request's URL": (
            a_record(protocol="forward", method="GET", destination="logs.example.com:80", status=304),
            b"1700000000.373    250 192.0.2.15 TCP_MISS/304 512 GET http://logs.example.com/ alice "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "an IPv6 upstream has no brackets": (
            a_record(destination="[2001:db8::7]:443", address="[2001:db8::7]:443", client="2001:db8::15"),
            b"1700000000.373    250 2001:db8::15 TCP_TUNNEL/200 512 CONNECT [2001:db8::7]:443 alice "
            b"HIER_DIRECT/2001:db8::7 -\n",
        ),
        "a denial went nowhere": (
            a_record(decision="deny", status=403, error="http_request_denied", address=None),
            b"1700000000.373    250 192.0.2.15 TCP_DENIED/403 512 CONNECT logs.example.com:443 alice HIER_NONE/- -\n",
        ),
        "a challenge is a denial with its status": (
            a_record(decision="challenge", status=407, user=None, address=None),
            b"1700000000.373    250 192.0.2.15 TCP_DENIED/407 512 CONNECT logs.example.com:443 - HIER_NONE/- -\n",
        ),
        "what SOCKS5 let through counts as 200": (
            a_record(protocol="socks5", status=None, reply=0),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/200 512 CONNECT logs.example.com:443 alice "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "what SOCKS5 refused has the status of the same error in HTTP": (
            a_record(protocol="socks5", status=None, reply=5, error="connection_refused", address=None),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/502 512 CONNECT logs.example.com:443 alice HIER_NONE/- -\n",
        ),
        "a failed SOCKS5 login is a challenge": (
            a_record(protocol="socks5", decision="challenge", status=None, destination="", method="", address=None),
            b"1700000000.373    250 192.0.2.15 TCP_DENIED/407 512 - error:invalid-request alice HIER_NONE/- -\n",
        ),
        "a request that could not be read has no method, no URL and no result": (
            AccessRecord(
                1700000000.0, "1", "f", "forward", "192.0.2.15", 1, status=400, error="http_request_error", duration=0.5
            ),
            b"1700000000.500    500 192.0.2.15 NONE_NONE/400 0 - error:invalid-request - HIER_NONE/- -\n",
        ),
        "a client on a Unix socket that left without a request has nothing at all": (
            AccessRecord(1700000000.0, "1", "forward", "", "", 0, error="client_disconnected"),
            b"1700000000.000      0 - NONE_NONE_ABORTED/000 0 - error:transaction-end-before-headers - HIER_NONE/- -\n",
        ),
        "a client that leaves before the answer aborts": (
            a_record(protocol="forward", method="GET", status=None, error="client_disconnected", duration=1234.5),
            b"1700001234.623 1234500 192.0.2.15 TCP_MISS_ABORTED/000 512 GET http://logs.example.com:443/ alice "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "what failed before the policy could decide on the address was no denial": (
            a_record(decision="undecided", status=504, error="dns_timeout", address=None),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/504 512 CONNECT logs.example.com:443 alice HIER_NONE/- -\n",
        ),
        "no status is 000": (
            a_record(status=None),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/000 512 CONNECT logs.example.com:443 alice "
            b"HIER_DIRECT/198.51.100.7 -\n",
        ),
        "blanks, controls, quotes, percent and what is not ASCII are percent-encoded": (
            a_record(user="a b\r\n\x1b\"'%\\\u2028é\udc80", method="G\tT", destination='x" "y:1'),
            b"1700000000.373    250 192.0.2.15 TCP_TUNNEL/200 512 G%09T x%22%20%22y:1 "
            b"a%20b%0D%0A%1B%22%27%25%5C%E2%80%A8%C3%A9%ED%B2%80 HIER_DIRECT/198.51.100.7 -\n",
        ),
    }

    def test_lines(self) -> None:
        """Each record gives the line that Squid would have written."""
        for sentence, (record, line) in self.lines.items():
            self.assertEqual(encode_squid(record), line, sentence)

    def test_every_error_has_a_status(self) -> None:
        """Every error of the table gives a line with a status of three digits."""
        for error in ErrorType:
            line = encode_squid(a_record(protocol="socks5", status=None, reply=1, error=error.value))
            self.assertEqual(line.split()[3].decode("ascii")[-4:], f"/{error.status or 0:03}")

    @given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.sampled_from(["forward", "connect", "socks5"]))
    def test_ten_fields(self, client: str, user: str, method: str, destination: str, protocol: str) -> None:
        """Whatever the text, a line has ten fields of printable ASCII and one newline, at its end."""
        record = a_record(client=client, user=user, method=method, destination=destination, protocol=protocol)

        line = encode_squid(record)

        self.assertTrue(line.endswith(b"\n"))
        self.assertEqual(set(line[:-1]) - set(range(0x20, 0x7F)), set())
        self.assertEqual(len(line.split()), 10)
