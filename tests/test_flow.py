"""Tests for proxyd.flow: a request from decision to record, at whatever door."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, as_proxy_error
from proxyd.policy.rules import Policy, Rule
from proxyd.request import IPAddress
from proxyd.testing import Ending, Faults, Lab, Origin, Peer, Reach, RebindingResolver, StaticResolver

LISTENERS = """
[listener:http]
endpoint = tcp:8080
accept = forward connect

[listener:socks]
endpoint = tcp:1080
accept = socks5
"""
WEB = "[rule:web]\naction = allow\ndestinations = .example.com\nports = 80 443\n"
HOST = "www.example.com"
PUBLIC, OTHER, PRIVATE, LOOPBACK = "93.184.216.34", "93.184.216.35", "10.0.0.1", "127.0.0.1"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
OPEN = b"HTTP/1.1 200 Connection Established\r\n\r\n"
SOCKS_OPEN = b"\x05\x00\x05\x00\x00\x01\xc0\x00\x02\xfe"


def rule(name: str, action: str, destinations: str, **options: str) -> str:
    """A rule as text."""
    lines = [f"[rule:{name}]", f"action = {action}", f"destinations = {destinations}"]
    return "\n".join([*lines, *(f"{option} = {value}" for option, value in options.items())]) + "\n"


class EmptyResolver(StaticResolver):
    """A resolver that answers without an address, which an embedder's may do."""

    def resolve(self, name: str) -> Sequence[IPAddress]:
        return ()


class BrokenResolver(StaticResolver):
    """A resolver with a bug."""

    def resolve(self, name: str) -> Deferred[Sequence[IPAddress]]:
        return fail(KeyError(name))


class FlowTestCase(SynchronousTestCase):
    """A proxy in memory."""

    def start(self, rules: str = WEB, settings: str = "", **arguments: Any) -> None:
        """Start the lab with these rules."""
        self.lab = Lab(f"[proxyd]\n{settings}\n{LISTENERS}\n{rules}", **arguments)
        self.addCleanup(self.lab.stop)
        self.expect = self.lab.records.expect

    def ask(self, fields: str = "", method: str = "GET", host: str = HOST, client: Peer | None = None) -> Peer:
        """A client that has asked for something by HTTP forward, and not looked at the answer."""
        client = client or self.lab.connect("http")
        client.send(f"{method} http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
        return client

    def connect(self, host: str = HOST, port: int = 443) -> Peer:
        """A client that has asked for a tunnel by CONNECT, and not looked at the answer."""
        client = self.lab.connect("http")
        client.send(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        return client

    def socks(self, host: str = HOST, port: int = 443) -> Peer:
        """A client that has asked for a tunnel by SOCKS5, and not looked at the answer."""
        client = self.lab.connect("socks")
        client.send(b"\x05\x01\x00")
        client.send(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big"))
        return client

    def dialled(self) -> list[list[str]]:
        """The addresses that each dial was for."""
        return [[str(address) for address in dial.addresses] for dial in self.lab.dialer.dials]


class TunnelEndingTests(FlowTestCase):
    """However a tunnel ends, there is one record that says how."""

    def setUp(self) -> None:
        self.start(settings="idle_timeout = 60s\ntunnel_lifetime = 1h")

    def tunnel(self, faults: Faults = Faults()) -> tuple[Peer, Origin]:  # noqa: B008 - a constant
        """A tunnel through which something has gone each way."""
        origin = self.lab.origin(HOST, 443, PUBLIC, faults=faults)
        client = self.connect()
        self.assertEqual(client.received(), OPEN)
        client.send(b"hello")
        origin.reply(b"hello yourself")
        self.assertEqual((origin.received(), client.received()), (b"hello", b"hello yourself"))
        return client, origin

    def check(self, **fields: Any) -> None:
        """There is one record, which says this."""
        common = {
            "protocol": "connect",
            "method": "CONNECT",
            "destination": "www.example.com:443",
            "address": "93.184.216.34:443",
            "decision": "allow",
            "rule": "web",
            "status": 200,
            "bytes_from_client": 5,
            "bytes_to_client": 14,
            "reused": False,
        }
        self.expect(common | {"error": None} | fields)
        self.assertEqual(list(self.lab.flows), [])

    def test_client_first(self) -> None:
        """A tunnel that both ends close, the client first, was closed by the client."""
        client, origin = self.tunnel()
        client.half_close()
        self.assertIs(origin.connection.ending, Ending.FIN)
        self.expect()
        origin.close()
        self.assertIs(client.ending, Ending.FIN)
        self.check(closed_by="client")

    def test_origin_first(self) -> None:
        """The other way round it was closed by the origin."""
        client, origin = self.tunnel()
        origin.half_close()
        client.half_close()
        self.check(closed_by="origin")

    def test_client_resets(self) -> None:
        """A client that resets its connection has left; the origin's is reset too."""
        client, origin = self.tunnel()
        client.reset()
        self.assertIs(origin.connection.ending, Ending.RESET)
        self.check(error="client_disconnected", closed_by="client")

    def test_origin_resets(self) -> None:
        """An origin that resets its connection has broken the tunnel; the client's is reset too."""
        client, origin = self.tunnel()
        origin.reset()
        self.assertIs(client.ending, Ending.RESET)
        self.check(error="connection_terminated", closed_by="origin")

    def test_idle(self) -> None:
        """A tunnel in which nothing moves is cut."""
        client, origin = self.tunnel()
        self.lab.advance(50)
        self.assertEqual(len(self.lab.flows), 1)
        self.lab.advance(20)
        self.assertEqual((client.ending, origin.connection.ending), (Ending.RESET, Ending.RESET))
        self.check(error="connection_read_timeout", closed_by="proxy")

    def test_lifetime(self) -> None:
        """A tunnel that lasts too long is cut however busy it is."""
        client, _ = self.tunnel()
        for _ in range(61):
            self.lab.advance(59)
            client.send(b".")
        self.lab.advance(59)
        self.check(error="connection_timeout", closed_by="proxy", bytes_from_client=5 + 61)

    def test_reset_at_a_byte(self) -> None:
        """What came before an origin's end is passed on and counted, and nothing more."""
        client, origin = self.tunnel(Faults(reset_at=20))
        origin.reply(b"0123456789")
        self.assertEqual((client.received(), client.ending), (b"012345", Ending.RESET))
        self.check(error="connection_terminated", closed_by="origin", bytes_to_client=20)

    def test_first_byte(self) -> None:
        """The time of the origin's first byte is that since the flow began."""
        origin = self.lab.origin(HOST, 443)
        origin.connect_delay = 1
        client = self.connect()
        self.lab.advance(3)
        origin.reply(b"welcome")
        self.lab.advance(2)
        client.close()
        origin.close()
        self.expect({"connect": 1.0, "first_byte": 3.0, "duration": 5.0, "bytes_from_client": 0, "dns": 0.0})

    def test_early_bytes(self) -> None:
        """Bytes that came before the tunnel was open are the tunnel's first, and counted."""
        origin = self.lab.origin(HOST, 443)
        origin.connect_delay = 1
        client = self.connect()
        client.send(b"early")
        self.lab.advance(1)
        client.send(b" and late")
        self.assertEqual(origin.received(), b"early and late")
        client.close()
        origin.close()
        self.expect({"bytes_from_client": 14, "closed_by": "client"})

    def test_rate(self) -> None:
        """A rule's rate holds in its tunnels, in each direction."""
        self.lab.reload(LISTENERS + rule("slow", "allow", "*", rate="1000"))
        origin = self.lab.origin(HOST, 443)
        client = self.connect()
        client.received()
        for _ in range(4):
            client.send(b"x" * 1000)
        self.assertEqual(len(origin.received()), 2000)
        self.lab.advance(1)
        self.assertEqual(len(origin.received()), 1000)
        self.lab.advance(1)
        self.assertEqual(len(origin.received()), 1000)

    def test_socks(self) -> None:
        """A SOCKS5 tunnel ends in the same record, with a reply in place of a status."""
        origin = self.lab.origin(HOST, 443, PUBLIC)
        client = self.socks()
        self.assertTrue(client.received().startswith(SOCKS_OPEN))
        client.send(b"hello")
        origin.reply(b"hello yourself")
        client.close()
        origin.close()
        self.check(protocol="socks5", status=None, reply=0, closed_by="client")


class ConnectTests(FlowTestCase):
    """The way out is found within its time, or it is said why not."""

    def check(self, error: str, status: int, reply: int, *, settle: float = 0, **fields: Any) -> None:
        """Every door says this error in its own words, and so do the records."""
        clients = self.ask(), self.connect(port=80), self.socks(port=80)
        self.lab.advance(settle)
        for client in clients[:2]:
            head = client.received().split(b"\r\n\r\n")[0]
            self.assertTrue(head.startswith(b"HTTP/1.1 %d " % status), head)
            self.assertIn(b"\r\nProxy-Status: proxyd; error=" + error.encode(), head)
        self.assertEqual(clients[2].received(), b"\x05\x00\x05" + bytes([reply]) + b"\x00\x01" + bytes(6))
        common = {"error": error, "closed_by": "proxy", "destination": "www.example.com:80", "address": None} | fields
        by_protocol = {
            "socks5": {"status": None, "reply": reply},
            "connect": {"status": status, "reply": None},
            "forward": {"status": status, "reply": None},
        }
        self.expect(*[common | {"protocol": each.protocol} | by_protocol[each.protocol] for each in self.lab.records])
        self.assertEqual({each.protocol for each in self.lab.records}, set(by_protocol))

    def test_refused(self) -> None:
        """An origin that refuses is told from everything else."""
        self.start()
        self.lab.origin(HOST, 80).reach = Reach.REFUSED
        self.check("connection_refused", 502, 5, decision="allow", rule="web", dns=0.0)

    def test_unroutable(self) -> None:
        """So is one that no route leads to."""
        self.start()
        self.lab.origin(HOST, 80).reach = Reach.UNROUTABLE
        self.check("destination_ip_unroutable", 502, 3)

    def test_silent(self) -> None:
        """So is one that does not answer in the time there is: 10 s for HTTP, 5 s for SOCKS5."""
        self.start()
        self.lab.origin(HOST, 80).reach = Reach.SILENT
        self.check("connection_timeout", 504, 4, settle=10)
        self.assertEqual(sorted(record.duration for record in self.lab.records), [5.0, 10.0, 10.0])

    def test_no_such_name(self) -> None:
        """So is a name that does not exist."""
        self.start()
        self.check("dns_error", 502, 4)

    def test_no_answer(self) -> None:
        """So is a name that nobody tells anything of."""
        self.start()
        self.lab.resolver.fail(HOST, ErrorType.DNS_TIMEOUT)
        self.check("dns_timeout", 504, 4)

    def test_slow_answer(self) -> None:
        """And one whose answer comes too late: DNS is part of the time for connecting."""
        self.start()
        self.lab.resolver.delay = 11
        self.lab.origin(HOST, 80)
        self.check("dns_timeout", 504, 4, settle=10)
        self.assertEqual(self.dialled(), [])
        self.assertEqual(sorted(record.dns or 0 for record in self.lab.records), [5.0, 10.0, 10.0])

    def test_what_is_left(self) -> None:
        """Connecting has the time that DNS has left."""
        self.start()
        self.lab.resolver.delay = 3
        self.lab.origin(HOST, 443)
        client = self.connect()
        self.lab.advance(3)
        self.assertEqual(client.received(), OPEN)
        self.assertEqual([dial.timeout for dial in self.lab.dialer.dials], [7.0])

    def test_empty_answer(self) -> None:
        """A resolver that gives no address has found none."""
        self.start(resolver=EmptyResolver())
        self.check("dns_error", 502, 4)

    def test_broken_resolver(self) -> None:
        """What is a bug is told as one, and leaves a traceback in the log."""
        self.start(resolver=BrokenResolver())
        self.check("proxy_internal_error", 500, 1)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 3)

    def test_next_address(self) -> None:
        """The address that is recorded is that of the one who answered."""
        self.start()
        self.lab.origin(PUBLIC, 443).reach = Reach.REFUSED
        self.lab.origin(HOST, 443, OTHER)
        self.lab.resolver.add(HOST, PUBLIC, OTHER)
        self.assertEqual(self.connect().received(), OPEN)
        self.assertEqual([flow.record.address for flow in self.lab.flows], ["93.184.216.35:443"])

    def test_ipv6(self) -> None:
        """An IPv6 address is recorded in brackets."""
        self.start(rule("all", "allow", "*"))
        self.lab.origin("2606:4700::1", 443)
        self.lab.resolver.add(HOST, "2606:4700::1")
        for host in (HOST, "[2606:4700::1]"):
            self.assertEqual(self.connect(host).received(), OPEN)
        self.assertEqual([flow.record.address for flow in self.lab.flows], ["[2606:4700::1]:443"] * 2)


class LeavingTests(FlowTestCase):
    """A client may leave at any time; whatever was done for it then is stopped."""

    def check(self, client: Peer, **fields: Any) -> None:
        """The client leaves: there is one record, and nothing is left to be done."""
        self.lab.advance(0.5)
        client.reset()
        self.expect({"error": "client_disconnected", "closed_by": "client", "duration": 0.5, "address": None} | fields)
        self.assertEqual(list(self.lab.flows), [])
        self.lab.stop()

    def test_while_resolving(self) -> None:
        """A client leaves while its name is looked up."""
        for ask in (self.ask, self.connect, self.socks):
            self.start()
            self.lab.resolver.delay = 1
            self.lab.origin(HOST, 443)
            self.check(ask())
            self.assertEqual(self.dialled(), [])

    def test_while_connecting(self) -> None:
        """A client leaves while the origin is connected to."""
        for ask in (self.ask, self.connect, self.socks):
            self.start()
            origin = self.lab.origin(HOST, 443)
            self.lab.origin(HOST, 80).connect_delay = origin.connect_delay = 1
            self.check(ask(), dns=0.0, connect=None)
            self.assertEqual(origin.connections, [])

    def test_while_connecting_after_dns(self) -> None:
        """So it is where the name had to be looked up first."""
        for ask in (self.ask, self.connect, self.socks):
            self.start()
            self.lab.resolver.delay = 0.25
            origin = self.lab.origin(HOST, 443)
            self.lab.origin(HOST, 80).connect_delay = origin.connect_delay = 1
            self.check(ask(), dns=0.25, connect=None)
            self.assertEqual(origin.connections, [])

    def test_while_waiting(self) -> None:
        """A client leaves while its request is being answered: the origin's connection is of no more use."""
        self.start()
        origin = self.lab.origin(HOST, 80, PUBLIC)
        self.check(self.ask(), address="93.184.216.34:80", status=None, first_byte=None)
        self.assertIs(origin.connection.ending, Ending.RESET)


class ExchangeTests(FlowTestCase):
    """Forward requests end in one record each."""

    def setUp(self) -> None:
        self.start()

    def test_answered(self) -> None:
        """A request that was answered tells how long everything took."""
        self.lab.resolver.delay = 1
        origin = self.lab.origin(HOST, 80, PUBLIC)
        origin.connect_delay = 2
        client = self.ask()
        self.lab.advance(7)
        origin.reply(ANSWER)
        self.assertTrue(client.received().endswith(b"\r\n\r\nhi"))
        self.expect(
            {
                "time": 0.0,
                "listener": "http",
                "protocol": "forward",
                "client": "192.0.2.7",
                "user": None,
                "method": "GET",
                "destination": "www.example.com:80",
                "address": "93.184.216.34:80",
                "decision": "allow",
                "rule": "web",
                "status": 200,
                "reply": None,
                "error": None,
                "detail": None,
                "bytes_from_client": 63,
                "bytes_to_client": len(ANSWER),
                "policy": 0.0,
                "dns": 1.0,
                "connect": 2.0,
                "first_byte": 7.0,
                "duration": 7.0,
                "closed_by": None,
                "reused": False,
            }
        )

    def test_reused(self) -> None:
        """The next request to the same destination has the same connection, whoever asks; nothing is looked up."""
        origin = self.lab.origin(HOST, 80, PUBLIC, answer=ANSWER)
        self.ask()
        self.ask()
        self.assertEqual((len(origin.connections), self.lab.resolver.asked), (1, [HOST]))
        common = {"status": 200, "address": "93.184.216.34:80", "rule": "web"}
        self.expect(common | {"reused": False}, common | {"reused": True, "dns": None, "connect": None})

    def test_first_byte(self) -> None:
        """Of an answer in pieces the first one counts."""
        origin = self.lab.origin(HOST, 80)
        self.ask()
        self.lab.advance(1)
        origin.reply(ANSWER[:-1])
        self.lab.advance(1)
        origin.reply(ANSWER[-1:])
        self.expect({"first_byte": 1.0, "duration": 2.0, "bytes_to_client": len(ANSWER)})

    def test_broken_answer(self) -> None:
        """An answer that breaks off is passed on as far as it came, and cut."""
        self.lab.origin(HOST, 80, answer=ANSWER, faults=Faults(reset_at=len(ANSWER) - 1))
        client = self.ask()
        self.assertEqual((client.received()[-5:], client.ending), (b"\r\n\r\nh", Ending.RESET))
        self.expect({"status": 200, "error": "http_response_incomplete", "closed_by": "origin"})

    def test_no_answer(self) -> None:
        """An origin that ends without an answer is a bad gateway."""
        self.lab.origin(HOST, 80, answer=ANSWER, faults=Faults(fin_at=0))
        client = self.ask()
        self.assertTrue(client.received().startswith(b"HTTP/1.1 502 Bad Gateway\r\n"))
        self.expect({"status": 502, "error": "connection_terminated", "closed_by": "proxy"})


class DecisionTests(FlowTestCase):
    """The policy decides by name, and again by address; what it has not allowed is not connected to."""

    def test_denied_by_name(self) -> None:
        """What is denied by its name is not looked up."""
        self.start()
        self.ask(host="www.example.net")
        self.expect({"status": 403, "error": "http_request_denied", "decision": "deny", "rule": None, "dns": None})
        self.assertEqual(self.lab.resolver.asked, [])

    def test_denied_by_rule(self) -> None:
        """A record names the rule that denies."""
        self.start(rule("no", "deny", HOST) + WEB)
        self.ask()
        self.expect({"status": 403, "error": "http_request_denied", "decision": "deny", "rule": "no"})

    def test_special_address(self) -> None:
        """A name that leads to an address of special purpose is denied, whatever the rule for the name."""
        self.start()
        self.lab.origin(HOST, 443, PRIVATE)
        self.connect()
        self.expect({"status": 403, "error": "destination_ip_prohibited", "decision": "deny", "rule": "web"})
        self.assertEqual(self.dialled(), [])

    def test_special_address_allowed(self) -> None:
        """Unless that very rule allows it."""
        self.start(WEB + "special_addresses = yes\n")
        self.lab.origin(HOST, 443, PRIVATE)
        self.assertEqual(self.connect().received(), OPEN)

    def test_mixed_answer(self) -> None:
        """Of an answer with special and public addresses only the public ones are dialled."""
        self.start()
        self.lab.origin(PUBLIC, 443)
        self.lab.resolver.add(HOST, LOOPBACK, PUBLIC, PRIVATE, OTHER, "::1", "::ffff:10.0.0.1")
        self.assertEqual(self.connect().received(), OPEN)
        self.assertEqual(self.dialled(), [[PUBLIC, OTHER]])

    def test_checked_is_dialled(self) -> None:
        """The addresses that were decided on are dialled, whatever DNS says a moment later."""
        resolver = RebindingResolver()
        resolver.rebind(HOST, [PUBLIC], [LOOPBACK])
        self.start(resolver=resolver)
        origin, own = self.lab.origin(PUBLIC, 443), self.lab.origin(LOOPBACK, 443)
        self.assertEqual(self.connect().received(), OPEN)
        self.assertEqual((resolver.asked, self.dialled()), ([HOST], [[PUBLIC]]))
        self.assertTrue(self.connect().received().startswith(b"HTTP/1.1 403 Forbidden\r\n"))
        self.assertEqual((len(origin.connections), len(own.connections)), (1, 0))

    def test_decided_after_dns(self) -> None:
        """Where rules are about addresses, the name is looked up first, and then each address is decided on."""
        self.start(rule("net", "allow", "93.184.216.0/29 93.184.216.35"))
        self.lab.origin(HOST, 443, PUBLIC, OTHER)
        self.assertEqual(self.connect().received(), OPEN)
        self.assertEqual(self.dialled(), [[OTHER]])
        [flow] = self.lab.flows
        self.assertEqual((flow.rule.name if flow.rule else None, flow.record.address), ("net", "93.184.216.35:443"))

    def test_denied_after_dns(self) -> None:
        """If no address is allowed, the first decision is the answer."""
        self.start(rule("not", "deny", "93.184.216.34") + rule("net", "allow", "93.184.216.0/29"))
        self.lab.origin(HOST, 443, PUBLIC, OTHER)
        self.connect()
        self.expect({"status": 403, "error": "http_request_denied", "decision": "deny", "rule": "not", "dns": 0.0})
        self.assertEqual(self.dialled(), [])

    def test_undecided(self) -> None:
        """A flow that ends before it could be decided on has no decision."""
        self.start(rule("net", "allow", "93.184.216.0/29"))
        self.connect()
        self.expect({"status": 502, "error": "dns_error", "decision": None, "rule": None})

    def test_rules_for_addresses(self) -> None:
        """Each address has the rule that allows it: that of the one that answers is recorded, and its options count."""
        self.start(rule("one", "allow", PUBLIC) + rule("other", "allow", OTHER))
        self.lab.origin(PUBLIC, 443).reach = Reach.REFUSED
        self.lab.origin(OTHER, 443)
        self.lab.resolver.add(HOST, PUBLIC, OTHER)
        self.connect()
        [flow] = self.lab.flows
        self.assertEqual(flow.rule.name if flow.rule else None, "other")

    def test_challenge(self) -> None:
        """A request that needs a user is no error: it is asked who that is, and then recorded with the user."""
        users = Path(self.mktemp()).absolute()
        users.write_text("alice:$2b$04$ZtohShRF77OBDVMfAPRqD.XtIu2hqLreYgPsVkozy/hYAZJ8ZNXKG\n")
        self.start(WEB + f"users = alice\n[users]\nfile = {users}\n")
        self.lab.origin(HOST, 80, answer=ANSWER)
        client = self.ask()
        credentials = base64.b64encode(b"alice:wonderland").decode()
        self.ask(f"Proxy-Authorization: Basic {credentials}\r\n", client=client)
        self.expect(
            {"status": 407, "decision": "challenge", "rule": "web", "error": None, "user": None, "closed_by": "proxy"},
            {"status": 200, "decision": "allow", "rule": "web", "user": "alice", "proof": "basic"},
        )

    def test_reuse_decides_again(self) -> None:
        """A connection that waits is only used where the policy allows its address for this very request."""
        self.start(rule("read", "allow", "93.184.216.0/24", methods="GET") + rule("write", "allow", OTHER, ports="80"))
        first = self.lab.origin(PUBLIC, 80, answer=ANSWER)
        second = self.lab.origin(OTHER, 80, answer=ANSWER)
        self.lab.resolver.add(HOST, PUBLIC, OTHER)
        self.ask()
        self.ask(method="POST", fields="Content-Length: 0\r\n")
        self.ask()
        self.assertEqual((len(first.connections), len(second.connections)), (1, 1))
        self.expect(
            {"rule": "read", "address": "93.184.216.34:80", "reused": False},
            {"rule": "write", "address": "93.184.216.35:80", "reused": False},
            {"rule": "read", "reused": True},
        )

    def test_reuse_after_reload(self) -> None:
        """After a reload a connection that waits is no way round the new policy."""
        self.start()
        origin = self.lab.origin(HOST, 80, PUBLIC, answer=ANSWER)
        self.ask()
        self.lab.reload(LISTENERS + rule("no", "deny", PUBLIC) + WEB)
        self.ask()
        self.assertEqual(len(origin.connections), 1)
        self.expect({"status": 200}, {"status": 403, "rule": "no", "decision": "deny", "reused": False})

    def test_own_address(self) -> None:
        """The machine's own addresses are denied as special ones are."""
        self.start(own_addresses=[PUBLIC])
        self.lab.origin(HOST, 443, PUBLIC)
        self.connect()
        self.expect({"error": "destination_ip_prohibited", "detail": "93.184.216.34 is the proxy's own address"})


class LiveFlowTests(FlowTestCase):
    """Flows in progress can be looked at."""

    def test_while_it_lives(self) -> None:
        """A flow is there from its request to its record."""
        self.start()
        origin = self.lab.origin(HOST, 443)
        origin.connect_delay = 1
        client = self.connect()
        [flow] = self.lab.flows
        self.assertEqual((flow.address, flow.relay, flow.ended), (None, None, False))
        self.lab.advance(1)
        self.assertEqual(str(flow.address), "93.184.216.1")
        self.assertIsNotNone(flow.relay)
        client.close()
        origin.close()
        self.assertEqual((flow.ended, list(self.lab.flows), self.lab.records), (True, [], [flow.record]))

    def test_ids(self) -> None:
        """Each has an id of its own, which its client is told with a refusal."""
        self.start()
        clients = [self.ask(host="www.example.net") for _ in range(3)]
        ids = [record.id for record in self.lab.records]
        self.assertEqual(len(set(ids)), 3)
        for client, id in zip(clients, ids, strict=True):
            self.assertIn(f'; id="{id}"'.encode(), client.received())

    def test_client_name(self) -> None:
        """A client on a Unix socket has no name."""
        self.start()
        listener = self.lab.proxy._config.listeners[0]
        self.assertEqual(Client(listener, None, 0).name, "")
        self.assertEqual(Client(listener, ip_address("2001:db8::1"), 1).name, "2001:db8::1")

    def test_still_allowed(self) -> None:
        """Whether another policy would let a flow begin depends on its name and its address, once that is known."""
        self.start()
        origin = self.lab.origin(HOST, 443, PUBLIC)
        origin.connect_delay = 1
        self.connect()
        [flow] = self.lab.flows
        without = Policy([Rule("no", False, (PUBLIC,)), Rule("web", True, ("*",))], {})
        self.assertTrue(flow.still_allowed(without))
        self.lab.advance(1)
        self.assertFalse(flow.still_allowed(without))
        self.assertTrue(flow.still_allowed(Policy([Rule("web", True, ("*",))], {})))

    def test_policy_of_another_moment(self) -> None:
        """A flow that is connected after a reload is decided on by the new policy."""
        self.start()
        for reloaded, decision in ((WEB, "allow"), (rule("no", "deny", PUBLIC) + WEB, "deny")):
            origin = self.lab.origin(HOST, 443, PUBLIC)
            origin.connect_delay = 1
            client = self.connect()
            self.lab.reload(LISTENERS + reloaded)
            self.lab.advance(1)
            client.reset()
            self.assertEqual(self.lab.records[-1].decision, decision)
        self.assertIs(origin.connection.ending, Ending.RESET)


class AbortTests(FlowTestCase):
    """A flow can be ended from outside, whatever it is doing."""

    error = ProxyError(ErrorType.CONNECTION_TERMINATED, "enough")

    def abort(self) -> None:
        """End the one flow there is."""
        [flow] = self.lab.flows
        flow.abort(self.error)
        flow.abort(self.error)
        flow.end()
        self.lab.reactor.settle()

    def check(self, **fields: Any) -> None:
        """There is one record of it, and nothing is left to be done."""
        self.expect({"error": "connection_terminated", "detail": "enough", "closed_by": "proxy"} | fields)
        self.lab.stop()

    def test_tunnel(self) -> None:
        """A tunnel is reset on both sides."""
        self.start()
        origin = self.lab.origin(HOST, 443)
        client = self.connect()
        self.abort()
        self.assertEqual((client.ending, origin.connection.ending), (Ending.RESET, Ending.RESET))
        self.check(status=200)

    def test_connecting(self) -> None:
        """While it is being connected a client is told, at every door, and the attempt is stopped."""
        for ask, status, reply in ((self.ask, 502, None), (self.connect, 502, None), (self.socks, None, 1)):
            self.start()
            origin = self.lab.origin(HOST, 443)
            self.lab.origin(HOST, 80).connect_delay = origin.connect_delay = 1
            client = ask()
            self.abort()
            self.assertIn(client.received()[:4], (b"HTTP", b"\x05\x00\x05\x01"))
            self.check(status=status, reply=reply)
            self.assertEqual(origin.connections, [])

    def test_waiting(self) -> None:
        """While its answer is awaited, too; the origin's connection is reset."""
        self.start()
        origin = self.lab.origin(HOST, 80)
        client = self.ask()
        self.abort()
        self.assertTrue(client.received().startswith(b"HTTP/1.1 502 Bad Gateway\r\n"))
        self.assertIs(origin.connection.ending, Ending.RESET)
        self.check(status=502)

    def test_answering(self) -> None:
        """In the middle of an answer it is cut, so that nobody takes it for a whole one."""
        self.start()
        origin = self.lab.origin(HOST, 80)
        client = self.ask()
        origin.reply(ANSWER[:-1])
        self.abort()
        self.assertIs(client.ending, Ending.RESET)
        self.check(status=200)


class AsProxyErrorTests(SynchronousTestCase):
    """Every failure has its place in the table."""

    def check(self, raised: Exception, error: ErrorType) -> None:
        """What was raised is this error of the table."""
        self.assertIs(as_proxy_error(Failure(raised)).error, error)

    def test_errors(self) -> None:
        """An error of the table is itself, a cancelled attempt a client that left, and anything else a bug of ours."""
        self.check(ProxyError(ErrorType.DNS_TIMEOUT, "x"), ErrorType.DNS_TIMEOUT)
        self.check(CancelledError(), ErrorType.CLIENT_DISCONNECTED)
        self.check(KeyError("x"), ErrorType.PROXY_INTERNAL_ERROR)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
