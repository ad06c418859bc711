"""Tests for proxyd.policy.rules."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.errors import ErrorType
from proxyd.policy.addresses import special_purpose
from proxyd.policy.rules import NO_RULE, Decision, Policy, Rule, UserNeeded, Verdict
from proxyd.request import Destination, Door, Identity, IPAddress, Request

GROUPS = {"staff": frozenset({"alice", "bob"}), "nobody": frozenset[str]()}
ALICE = Identity("alice", "basic")
EVE = Identity("eve", "socks5")
PUBLIC = IPv4Address("8.8.8.8")
PRIVATE = IPv4Address("10.1.2.3")
OWN = IPv4Address("8.8.4.4")


def rule(destinations: str, allow: bool = True, name: str = "it", **conditions: Any) -> Rule:
    """A rule, its destinations given with blanks between them."""
    return Rule(name, allow, tuple(destinations.split()), **conditions)


def deny(destinations: str, **conditions: Any) -> Rule:
    """A rule that denies."""
    return rule(destinations, allow=False, **conditions)


def users(*names: str) -> dict[str, Any]:
    """The condition that one of these users is asking."""
    return {"users": frozenset(names)}


EVERY_PORT = (range(1, 65536),)


def request(
    host: str = "www.example.com",
    port: int = 443,
    identity: Identity | None = None,
    client: str | None = "172.16.0.9",
    listener: str = "main",
    door: Door = Door.CONNECT,
    method: str = "CONNECT",
) -> Request:
    """A request of an anonymous client, unless it is said who asks."""
    address = None if client is None else ip_address(client)
    return Request(listener, door, address, 50000, identity, method, Destination.parse(host, port))


def is_own(address: IPAddress, port: int) -> bool:
    """Whether it is the one address and port that the tests call the proxy's own."""
    return (address, port) == (OWN, 8080)


def policy(*rules: Rule) -> Policy:
    """A policy with the groups and the own address of these tests."""
    return Policy(rules, GROUPS, is_own)


ALLOW, DENY, CHALLENGE, UNDECIDED = Verdict.ALLOW, Verdict.DENY, Verdict.CHALLENGE, Verdict.UNDECIDED
GET = request(door=Door.FORWARD, method="GET")
SOCKS = request(door=Door.SOCKS5)

CASES: dict[str, tuple[Sequence[Rule], Request, IPAddress | None, Verdict]] = {
    "without rules nothing is allowed": ([], request(), None, DENY),
    "without rules no address is allowed": ([], request(), PUBLIC, DENY),
    "a rule for the name allows before DNS": ([rule("www.example.com")], request(), None, ALLOW),
    "a rule for the name allows its address": ([rule("www.example.com")], request(), PUBLIC, ALLOW),
    "a rule for the domain allows": ([rule(".example.com")], request(), None, ALLOW),
    "a rule for a domain allows the domain itself": ([rule(".example.com")], request("example.com"), None, ALLOW),
    "a domain does not match names that end alike": ([rule(".example.com")], request("badexample.com"), None, DENY),
    "a name does not match its subdomains": ([rule("example.com")], request(), None, DENY),
    "everything matches a name": ([rule("*")], request(), None, ALLOW),
    "everything matches an address": ([rule("*")], request("8.8.8.8"), None, ALLOW),
    "the first rule decides, allowing": ([rule("*"), deny("www.example.com")], request(), None, ALLOW),
    "the first rule decides, denying": ([deny(".com"), rule("www.example.com")], request(), None, DENY),
    "a rule for another name is passed over": ([deny("example.net"), rule("*")], request(), None, ALLOW),
    # conditions
    "an allow rule without ports is about 443": ([rule("*")], request(), None, ALLOW),
    "an allow rule without ports is about 80": ([rule("*")], request(port=80), None, ALLOW),
    "an allow rule without ports is about no other port": ([rule("*")], request(port=22), None, DENY),
    "a deny rule without ports is about every port": (
        [deny("*"), rule("*", ports=(range(1, 65536),))], request(port=22), None, DENY),
    "a listed port matches": ([rule("*", ports=(range(443, 444),))], request(), None, ALLOW),
    "a port in one of several ranges matches": (
        [rule("*", ports=(range(80, 81), range(400, 500)))], request(), None, ALLOW),
    "a port behind a range does not match": ([rule("*", ports=(range(400, 443),))], request(), None, DENY),
    "a port in none of several ranges does not match": (
        [rule("*", ports=(range(80, 81), range(444, 500)))], request(), None, DENY),
    "a listed listener matches": ([rule("*", listeners=frozenset({"main"}))], request(), None, ALLOW),
    "another listener does not match": ([rule("*", listeners=frozenset({"lab"}))], request(), None, DENY),
    "a listed door matches": ([rule("*", doors=frozenset({Door.SOCKS5, Door.CONNECT}))], request(), None, ALLOW),
    "another door does not match": ([rule("*", doors=frozenset({Door.FORWARD}))], request(), None, DENY),
    "a listed method matches": ([rule("*", methods=frozenset({"GET", "HEAD"}))], GET, None, ALLOW),
    "another method does not match": ([rule("*", methods=frozenset({"POST"}))], GET, None, DENY),
    "SOCKS5 has the method CONNECT": ([rule("*", methods=frozenset({"CONNECT"}))], SOCKS, None, ALLOW),
    "methods are case-sensitive": (
        [rule("*", methods=frozenset({"GET"}))], request(door=Door.FORWARD, method="get"), None, DENY),
    "a client in a listed network matches": (
        [rule("*", clients=(ip_network("172.16.0.0/12"),))], request(), None, ALLOW),
    "a client in the second network matches": (
        [rule("*", clients=(ip_network("10.0.0.0/8"), ip_network("172.16.0.9")))], request(), None, ALLOW),
    "a client elsewhere does not match": ([rule("*", clients=(ip_network("10.0.0.0/8"),))], request(), None, DENY),
    "an IPv6 client in a listed network matches": (
        [rule("*", clients=(ip_network("fd00::/8"),))], request(client="fd00::5"), None, ALLOW),
    "a mapped client is the IPv4 client": (
        [rule("*", clients=(ip_network("10.0.0.0/8"),))], request(client="::ffff:10.0.0.1"), None, ALLOW),
    "a Unix socket is in no network": (
        [rule("*", clients=(ip_network("0.0.0.0/0"),))], request(client=None), None, DENY),
    "a Unix socket is no matter without networks": ([rule("*")], request(client=None), None, ALLOW),
    "networks are kept apart by rule": (
        [deny("*", clients=(ip_network("10.0.0.0/8"),)), rule("*", clients=(ip_network("172.16.0.0/12"),))],
        request(), None, ALLOW),
    "all conditions must match": (
        [rule("*", ports=(range(443, 444),), listeners=frozenset({"lab"}))], request(), None, DENY),
    # users
    "a listed user matches": ([rule("*", **users("alice"))], request(identity=ALICE), None, ALLOW),
    "another user does not match": ([rule("*", **users("alice"))], request(identity=EVE), None, DENY),
    "a member of a listed group matches": (
        [rule("*", groups=frozenset({"staff"}))], request(identity=ALICE), None, ALLOW),
    "who is in no listed group does not match": (
        [rule("*", groups=frozenset({"staff", "nobody"}))], request(identity=EVE), None, DENY),
    "an empty group has no members": ([rule("*", groups=frozenset({"nobody"}))], request(identity=ALICE), None, DENY),
    "users or groups suffice, by user": (
        [rule("*", groups=frozenset({"staff"}), **users("eve"))], request(identity=EVE), None, ALLOW),
    "users or groups suffice, by group": (
        [rule("*", groups=frozenset({"staff"}), **users("eve"))], request(identity=ALICE), None, ALLOW),
    "an unlisted user goes on to the next rule": (
        [deny("*", **users("alice")), rule("*")], request(identity=EVE), None, ALLOW),
    "nobody is challenged where no user is needed": ([rule("*"), rule("*", **users("alice"))], request(), None, ALLOW),
    "a rule with users challenges": ([rule("*", **users("alice"))], request(), None, CHALLENGE),
    "a rule with groups challenges": ([rule("*", groups=frozenset({"nobody"}))], request(), None, CHALLENGE),
    "a denying rule with users challenges too": ([deny("*", **users("eve")), rule("*")], request(), None, CHALLENGE),
    "a rule for another name does not challenge": (
        [rule("a.example", **users("alice")), rule("*")], request(), None, ALLOW),
    "a rule for another port does not challenge": (
        [rule("*", ports=(range(80, 81),), **users("alice"))], request(), None, DENY),
    "a denial before does not challenge": ([deny("*"), rule("*", **users("alice"))], request(), None, DENY),
    "a challenge comes with an address too": ([rule("*", **users("alice"))], request(), PUBLIC, CHALLENGE),
    # addresses
    "an address matches itself": ([rule("8.8.8.8")], request("8.8.8.8"), None, ALLOW),
    "an address matches its network": ([rule("8.8.0.0/16")], request("8.8.8.8"), None, ALLOW),
    "an address outside does not match": ([rule("8.8.4.0/24")], request("8.8.8.8"), None, DENY),
    "an IPv6 address matches its network": ([rule("2400::/12")], request("[2400::1]"), None, ALLOW),
    "a resolved address matches": ([rule("8.8.8.0/24")], request(), PUBLIC, ALLOW),
    "a resolved address outside does not match": ([rule("8.8.4.0/24")], request(), PUBLIC, DENY),
    "the name still counts with an address": ([deny("8.8.4.0/24"), rule("www.example.com")], request(), PUBLIC, ALLOW),
    "a mapped address is the IPv4 address": (
        [deny("8.8.8.8"), rule("*")], request(), IPv6Address("::ffff:8.8.8.8"), DENY),
    "a mapped public address is allowed as IPv4": ([rule("8.8.8.8")], request(), IPv6Address("::ffff:8.8.8.8"), ALLOW),
    # a name before DNS, with rules for addresses
    "an allowing rule for addresses leaves a name open": ([rule("8.8.8.0/24")], request(), None, UNDECIDED),
    "a denying rule for addresses leaves an allowed name open": (
        [deny("8.8.8.8"), rule("*")], request(), None, UNDECIDED),
    "an allowing rule for addresses leaves a denied name open": (
        [rule("8.8.8.8"), deny("*")], request(), None, UNDECIDED),
    "a rule for names and addresses leaves other names open": ([rule("a.example 8.8.8.8")], request(), None, UNDECIDED),
    "a rule for names and addresses decides its name": ([rule("www.example.com 8.8.8.8")], request(), None, ALLOW),
    "a rule for addresses behind the decision does not matter": ([rule("*"), deny("8.8.8.8")], request(), None, ALLOW),
    "a name is denied at once before rules for addresses": ([deny(".com"), rule("0.0.0.0/0")], request(), None, DENY),
    "a name no address of which is allowed is denied at once": ([deny("8.8.8.8"), deny("*")], request(), None, DENY),
    "a denying rule for addresses alone denies at once": ([deny("8.8.8.8")], request(), None, DENY),
    "a rule for addresses and other ports does not matter": (
        [deny("8.8.8.8", ports=(range(80, 81),)), rule("*")], request(), None, ALLOW),
    "a rule for addresses and other users does not matter": (
        [deny("8.8.8.8", **users("eve")), rule("*")], request(identity=ALICE), None, ALLOW),
    "a rule for addresses and users leaves an allowed name open": (
        [deny("8.8.8.8", **users("eve")), rule("*")], request(), None, UNDECIDED),
    "an allowing rule for addresses comes before a challenge": (
        [rule("8.8.8.8"), rule("*", **users("alice"))], request(), None, UNDECIDED),
    "who must say who it is says it before DNS": (
        [deny("8.8.8.8"), rule("*", **users("alice"))], request(), None, CHALLENGE),
    "who must say who it is for any address says it before DNS": (
        [rule("8.8.8.8", **users("alice"))], request(), None, CHALLENGE),
    "nobody is challenged where no address can be allowed": ([deny("8.8.8.8", **users("eve"))], request(), None, DENY),
    "a second rule for addresses counts if it has another port": (
        [rule("8.8.8.8", ports=(range(80, 81),)), rule("8.8.8.8", ports=(range(443, 444),))],
        request(), None, UNDECIDED),
    "a second rule for addresses counts if it has another listener": (
        [rule("8.8.8.8", listeners=frozenset({"lab"})), rule("8.8.8.8", listeners=frozenset({"main"}))],
        request(), None, UNDECIDED),
    "a second rule for addresses counts if it has another door": (
        [rule("8.8.8.8", doors=frozenset({Door.FORWARD})), rule("8.8.8.8", doors=frozenset({Door.SOCKS5}))],
        SOCKS, None, UNDECIDED),
    "a second rule for addresses counts if it has another method": (
        [rule("8.8.8.8", methods=frozenset({"POST"})), rule("8.8.8.8", methods=frozenset({"GET"}))],
        GET, None, UNDECIDED),
    "a second rule for addresses counts if it has another client": (
        [rule("8.8.8.8", clients=(ip_network("10.0.0.0/8"),)), rule("8.8.8.8", clients=(ip_network("172.16.0.0/16"),))],
        request(), None, UNDECIDED),
    "a second rule for addresses counts if it has another user": (
        [rule("8.8.8.8", **users("eve")), rule("8.8.8.8", **users("alice"))], request(identity=ALICE), None, UNDECIDED),
    "a second rule for addresses counts if it has another group": (
        [rule("8.8.8.8", groups=frozenset({"nobody"})), rule("8.8.8.8", groups=frozenset({"staff"}))],
        request(identity=ALICE), None, UNDECIDED),
    "a second rule for addresses counts if it allows": ([deny("8.8.8.8"), rule("8.8.4.4")], request(), None, UNDECIDED),
    "the second of two open rules can allow": (
        [rule("8.8.8.8", **users("alice")), rule("8.8.4.0/24")], request(), None, UNDECIDED),
    # special-purpose and own addresses
    "a private address is not allowed with the rest": ([rule("*")], request("10.0.0.1"), None, DENY),
    "a private address is not allowed by a rule for it": ([rule("10.0.0.0/8")], request("10.0.0.1"), None, DENY),
    "a private address is allowed where the rule says so": (
        [rule("10.0.0.0/8", special_addresses=True)], request("10.0.0.1"), None, ALLOW),
    "a rule behind does not open it": ([rule("*"), rule("*", special_addresses=True)], request("10.0.0.1"), None, DENY),
    "a name may resolve to anything until it is resolved": ([rule("*")], request(), None, ALLOW),
    "a name that resolves to a private address is denied": ([rule("*")], request(), PRIVATE, DENY),
    "a name that resolves to a private address is allowed where the rule says so": (
        [rule(".example.com", special_addresses=True)], request(), PRIVATE, ALLOW),
    "a denying rule with special addresses denies": ([deny("*", special_addresses=True)], request(), PRIVATE, DENY),
    "a mapped loopback address is denied": ([rule("*")], request("[::ffff:127.0.0.1]"), None, DENY),
    "the proxy's own address is denied": ([rule("*", ports=EVERY_PORT)], request("8.8.4.4", port=8080), None, DENY),
    "the proxy's own address is denied when a name leads there": (
        [rule("*", ports=EVERY_PORT)], request(port=8080), OWN, DENY),
    "the proxy's own address in mapped form is denied": (
        [rule("*", ports=EVERY_PORT)], request(port=8080), IPv6Address("::ffff:8.8.4.4"), DENY),
    "the proxy's own address is allowed where the rule says so": (
        [rule("*", ports=EVERY_PORT, special_addresses=True)], request("8.8.4.4", port=8080), None, ALLOW),
    "another port at the proxy's own address is allowed": ([rule("*")], request("8.8.4.4"), None, ALLOW),
}  # fmt: skip


class DecideTests(SynchronousTestCase):
    """Decisions, case by case."""

    def test_table(self) -> None:
        """Each case ends with the verdict that stands beside it."""
        wrong = {
            case: policy(*rules).decide(asked, address).verdict
            for case, (rules, asked, address, verdict) in CASES.items()
            if policy(*rules).decide(asked, address).verdict is not verdict
        }
        self.assertEqual(wrong, {})

    def test_allowed(self) -> None:
        """A decision to allow names its rule and has no error."""
        logs = rule("*", name="logs")
        decision = policy(logs).decide(request())
        self.assertEqual(decision, Decision(Verdict.ALLOW, logs, 'rule "logs" allows', None))
        self.assertTrue(decision.allow)

    def test_denied(self) -> None:
        """A decision to deny names its rule and is http_request_denied."""
        lab = deny("*", name="lab")
        decision = policy(lab).decide(request())
        self.assertEqual(decision, Decision(Verdict.DENY, lab, 'rule "lab" denies', ErrorType.HTTP_REQUEST_DENIED))
        self.assertFalse(decision.allow)

    def test_no_rule(self) -> None:
        """Where no rule matches, the decision says so, and is http_request_denied."""
        expected = Decision(Verdict.DENY, None, "no rule allows", ErrorType.HTTP_REQUEST_DENIED)
        self.assertEqual(policy().decide(request()), expected)
        self.assertEqual(policy(rule("a.example")).decide(request(), PUBLIC), expected)

    def test_prohibited(self) -> None:
        """A special-purpose address is destination_ip_prohibited, with the rule that would have allowed the rest."""
        logs = rule("*", name="logs")
        for text, reason in {
            "10.0.0.1": "10.0.0.1 is private use",
            "100.100.100.200": "100.100.100.200 is metadata service",
            "[::ffff:127.0.0.1]": "127.0.0.1 is loopback",
            "[64:ff9b::10.0.0.1]": "64:ff9b::a00:1 is IPv4 embedded: private use",
        }.items():
            expected = Decision(Verdict.DENY, logs, reason, ErrorType.DESTINATION_IP_PROHIBITED)
            self.assertEqual(policy(logs).decide(request(text)), expected)
            address = Destination.parse(text, 443).address
            self.assertEqual(policy(logs).decide(request(), address), expected)

    def test_own_address(self) -> None:
        """The proxy's own address and port is destination_ip_prohibited."""
        decision = policy(rule("*", ports=EVERY_PORT)).decide(request("8.8.4.4", port=8080))
        self.assertEqual(decision.reason, "8.8.4.4 is the proxy's own address")
        self.assertIs(decision.error, ErrorType.DESTINATION_IP_PROHIBITED)

    def test_no_own_address(self) -> None:
        """Without being told, a policy takes no address for the proxy's own."""
        self.assertIs(
            Policy([rule("*", ports=EVERY_PORT)], {}).decide(request("8.8.4.4", port=8080)).verdict, Verdict.ALLOW
        )

    def test_challenged(self) -> None:
        """A challenge names the rule that needs a user, and is no error."""
        staff = rule("*", name="staff", **users("alice"))
        expected = Decision(Verdict.CHALLENGE, staff, 'rule "staff" needs a user', None)
        self.assertEqual(policy(deny("192.0.2.0/24"), staff).decide(request()), expected)

    def test_undecided(self) -> None:
        """A decision that waits for the address names the first rule that does, and is no error."""
        lab = deny("8.8.8.0/24", name="lab")
        expected = Decision(Verdict.UNDECIDED, lab, 'rule "lab" depends on the address', None)
        self.assertEqual(policy(lab, rule("*")).decide(request()), expected)
        self.assertFalse(expected.allow)

    def test_unknown_group(self) -> None:
        """A rule for a group that does not exist makes no policy."""
        self.assertRaises(KeyError, policy, rule("*", groups=frozenset({"guests"})))

    def test_malformed_destination(self) -> None:
        """A rule for something that is almost a network makes no policy."""
        self.assertRaises(ValueError, policy, deny("10.0.0.1/8"))


class UserNeededTests(SynchronousTestCase):
    """Whether to ask a client who it is before its request is known."""

    def assert_needed(
        self, expected: UserNeeded, *rules: Rule, door: Door = Door.SOCKS5, client: str | None = None
    ) -> None:
        """The rules need a user of a client at the main listener."""
        address = None if client is None else ip_address(client)
        self.assertIs(policy(*rules).user_needed("main", door, address), expected)

    def test_never(self) -> None:
        """No user is needed where no rule that could match names one."""
        self.assert_needed(UserNeeded.NEVER)
        self.assert_needed(UserNeeded.NEVER, rule("*"), deny("*"))
        self.assert_needed(UserNeeded.NEVER, rule("*"), rule("*", listeners=frozenset({"lab"}), **users("alice")))
        self.assert_needed(UserNeeded.NEVER, rule("*"), rule("*", doors=frozenset({Door.CONNECT}), **users("alice")))

    def test_always(self) -> None:
        """A user is always needed where every allowing rule that could match names one."""
        staff = rule(".example.com", groups=frozenset({"staff"}))
        self.assert_needed(UserNeeded.ALWAYS, staff)
        self.assert_needed(UserNeeded.ALWAYS, deny("192.0.2.1"), staff, rule("*", **users("eve")), deny("*"))
        self.assert_needed(UserNeeded.ALWAYS, staff, rule("*", listeners=frozenset({"lab"})))
        self.assert_needed(UserNeeded.ALWAYS, staff, rule("*", doors=frozenset({Door.FORWARD, Door.CONNECT})))

    def test_maybe(self) -> None:
        """A user may be needed where some rule that could match names one, and others allow without."""
        self.assert_needed(UserNeeded.MAYBE, rule("*", **users("alice")), rule("a.example"))
        self.assert_needed(UserNeeded.MAYBE, deny("*", **users("alice")), rule("*"))
        self.assert_needed(UserNeeded.MAYBE, deny("*", **users("alice")))

    def test_client(self) -> None:
        """Rules for other client networks do not matter; a client on a Unix socket is in none."""
        rules = (rule("*", clients=(ip_network("10.0.0.0/8"),)), rule("*", **users("alice")))
        self.assert_needed(UserNeeded.MAYBE, *rules, client="10.0.0.1")
        self.assert_needed(UserNeeded.ALWAYS, *rules, client="172.16.0.1")
        self.assert_needed(UserNeeded.ALWAYS, *rules)

    def test_each_audience(self) -> None:
        """Rules that differ in listener, door, client network or method alone count each for itself."""
        here: dict[str, Any] = {
            "listeners": frozenset({"main"}),
            "doors": frozenset({Door.SOCKS5}),
            "clients": (ip_network("10.0.0.0/8"),),
            "methods": frozenset({"CONNECT"}),
        }
        elsewhere: dict[str, Any] = {
            "listeners": frozenset({"lab"}),
            "doors": frozenset({Door.FORWARD}),
            "clients": (ip_network("192.168.0.0/16"),),
            "methods": frozenset({"GET"}),
        }
        for condition in here:
            one = rule("*", **users("alice"), **here)
            other = rule("*", **users("alice"), **{**here, condition: elsewhere[condition]})
            self.assert_needed(UserNeeded.ALWAYS, one, other, client="10.0.0.1")
            self.assert_needed(UserNeeded.ALWAYS, other, one, client="10.0.0.1")
            self.assert_needed(UserNeeded.NEVER, other, client="10.0.0.1")

    def test_method(self) -> None:
        """Rules for methods that the door never has do not matter: only a tunnel has the method CONNECT."""
        rules = (
            rule("*", methods=frozenset({"GET", "POST"}), **users("alice")),
            rule("*", methods=frozenset({"CONNECT"})),
        )
        self.assert_needed(UserNeeded.ALWAYS, *rules, door=Door.FORWARD)
        self.assert_needed(UserNeeded.NEVER, *rules, door=Door.CONNECT)
        self.assert_needed(UserNeeded.NEVER, *rules, door=Door.SOCKS5)


NAMES = ("example.com", "www.example.com", "a.b.example.com", "badexample.com", "example.net", "localhost")
ADDRESSES = tuple(
    ip_address(text)
    for text in ("8.8.8.8", "8.8.8.9", "8.8.4.4", "9.9.9.9", "10.1.2.3", "2400::1", "2400:1::1", "fd00::1", "::1")
)
DESTINATIONS = (
    "*", "example.com", ".example.com", ".com", "www.example.com", "localhost", "8.8.8.8", "8.8.8.0/24", "8.0.0.0/8",
    "0.0.0.0/0", "10.0.0.0/8", "127.0.0.1", "2400::/16", "2400::1", "::/0", "fd00::/8",
)  # fmt: skip
CLIENTS = (None, IPv4Address("172.16.0.9"), IPv4Address("192.168.0.9"), IPv6Address("fd00::9"))
NETWORKS = tuple(map(ip_network, ("172.16.0.0/12", "192.168.0.0/16", "0.0.0.0/0", "fd00::/8", "172.16.0.9")))
PORTS = (range(80, 81), range(443, 444), range(8000, 9000), range(1, 65536))


def some(values: Sequence[Any]) -> st.SearchStrategy[frozenset[Any]]:
    """Mostly no condition, otherwise one of a few values."""
    return st.just(frozenset[Any]()) | st.just(frozenset[Any]()) | st.frozensets(st.sampled_from(values), max_size=2)


def rules(doors: bool = True) -> st.SearchStrategy[list[Rule]]:
    """Some rules, with or without conditions on door and method."""
    each = st.builds(
        Rule,
        name=st.sampled_from(("one", "two", "three")),
        allow=st.booleans(),
        destinations=st.lists(st.sampled_from(DESTINATIONS), min_size=1, max_size=3, unique=True).map(tuple),
        ports=some(PORTS).map(tuple),
        listeners=some(("main", "lab")),
        doors=some(tuple(Door)) if doors else st.just(frozenset()),
        methods=some(("CONNECT", "GET")) if doors else st.just(frozenset()),
        clients=some(NETWORKS).map(tuple),
        users=some(("alice", "eve")),
        groups=some(("staff", "nobody")),
        special_addresses=st.booleans(),
    )
    return st.lists(each, max_size=8)


hosts = st.sampled_from(NAMES) | st.sampled_from(ADDRESSES).map(str)
requests = st.builds(
    request,
    host=hosts,
    port=st.sampled_from((80, 443, 8080)),
    identity=st.sampled_from((None, ALICE, EVE)),
    client=st.sampled_from(CLIENTS).map(lambda client: client and str(client)),
    listener=st.sampled_from(("main", "lab")),
    door=st.sampled_from(tuple(Door)),
    method=st.sampled_from(("CONNECT", "GET", "POST")),
)


def lists_name(rule: Rule, name: str) -> bool:
    """Whether a rule lists a name."""
    return any(
        each == "*" or name == each or (each.startswith(".") and ("." + name).endswith(each))
        for each in rule.destinations
    )


def lists_address(rule: Rule, address: IPAddress) -> bool:
    """Whether a rule lists an address."""
    return any(
        each == "*" or ("/" in each and address in ip_network(each)) or each == str(address)
        for each in rule.destinations
    )


def is_about(rule: Rule, asked: Request) -> bool:
    """Whether all conditions match but those on the destination's host and on the user."""
    return (
        listed_port(rule, asked.destination.port)
        and (not rule.listeners or asked.listener in rule.listeners)
        and (not rule.doors or asked.door in rule.doors)
        and (not rule.methods or asked.method in rule.methods)
        and (not rule.clients or any(asked.client is not None and asked.client in each for each in rule.clients))
    )


def listed_port(rule: Rule, port: int) -> bool:
    """Whether a rule's condition on the port matches; an allow rule without one means 80 and 443."""
    if not rule.ports:
        return port in (80, 443) or not rule.allow
    return any(port in ports for ports in rule.ports)


def needs_user(rule: Rule) -> bool:
    """Whether a rule has a condition on the user."""
    return bool(rule.users or rule.groups)


def is_for(rule: Rule, identity: Identity) -> bool:
    """Whether a rule's condition on the user matches."""
    return (
        not needs_user(rule)
        or identity.name in rule.users
        or any(identity.name in GROUPS[group] for group in rule.groups)
    )


def scan_address(listed: Sequence[Rule], asked: Request, address: IPAddress) -> tuple[Verdict, Rule | None]:
    """What the first matching rule says about an address, found by looking at all rules in order."""
    for each in listed:
        if is_about(each, asked) and (lists_name(each, asked.destination.host) or lists_address(each, address)):
            if needs_user(each) and asked.identity is None:
                return Verdict.CHALLENGE, each
            if asked.identity is None or is_for(each, asked.identity):
                closed = special_purpose(address) or is_own(address, asked.destination.port)
                allowed = each.allow and (each.special_addresses or not closed)
                return (Verdict.ALLOW if allowed else Verdict.DENY), each
    return Verdict.DENY, None


def scan_name(listed: Sequence[Rule], asked: Request) -> Verdict:
    """What can be said about a name, from the set of all that rules may say about its addresses."""
    possible: list[tuple[Verdict, bool]] = []
    for each in listed:
        sure = lists_name(each, asked.destination.host)
        if not is_about(each, asked) or not (
            sure or any("/" in each or each[-1].isdigit() for each in each.destinations)
        ):
            continue
        if asked.identity is None and needs_user(each):
            possible.append((Verdict.CHALLENGE, each.allow or sure))
        elif asked.identity is None or is_for(each, asked.identity):
            possible.append((Verdict.ALLOW if each.allow else Verdict.DENY, True))
        else:
            continue
        if sure:
            break
    else:
        possible.append((Verdict.DENY, True))
    if (Verdict.ALLOW, True) in possible:
        return Verdict.UNDECIDED if len(possible) > 1 else Verdict.ALLOW
    return Verdict.CHALLENGE if (Verdict.CHALLENGE, True) in possible else Verdict.DENY


class PropertyTests(SynchronousTestCase):
    """What holds for all rules and requests."""

    @settings(deadline=None, max_examples=200)
    @given(rules(), requests, st.sampled_from(ADDRESSES))
    def test_like_a_scan_of_addresses(self, listed: list[Rule], asked: Request, address: IPAddress) -> None:
        """The decision on an address is that of the first matching rule in a plain scan of all rules."""
        if asked.destination.address is not None:
            address = asked.destination.address
        decision = policy(*listed).decide(asked, address)
        self.assertEqual((decision.verdict, decision.rule), scan_address(listed, asked, address))

    @settings(deadline=None, max_examples=200)
    @given(rules(), requests)
    def test_like_a_scan_of_names(self, listed: list[Rule], asked: Request) -> None:
        """The decision before DNS is what a plain scan of all rules finds possible."""
        decision = policy(*listed).decide(asked)
        if asked.destination.address is None:
            self.assertIs(decision.verdict, scan_name(listed, asked))
        else:
            self.assertEqual(decision, policy(*listed).decide(asked, asked.destination.address))

    @settings(deadline=None, max_examples=200)
    @given(rules(), requests)
    def test_phases_agree(self, listed: list[Rule], asked: Request) -> None:
        """After a denial or challenge by name no address is allowed; an allowed name loses closed addresses only."""
        decided = policy(*listed)
        by_name = decided.decide(asked)
        for address in ADDRESSES if asked.destination.address is None else [asked.destination.address]:
            decision = decided.decide(asked, address)
            self.assertIsNot(decision.verdict, Verdict.UNDECIDED)
            if by_name.verdict in (Verdict.DENY, Verdict.CHALLENGE):
                self.assertFalse(decision.allow)
            if by_name.allow and not decision.allow:
                self.assertIs(decision.error, ErrorType.DESTINATION_IP_PROHIBITED)
                self.assertEqual(decision.rule, by_name.rule)

    @settings(deadline=None, max_examples=200)
    @given(rules(doors=False), requests, st.sampled_from((None, *ADDRESSES)), st.sampled_from(("GET", "POST", "PUT")))
    def test_same_at_every_door(
        self, listed: list[Rule], asked: Request, address: IPAddress | None, method: str
    ) -> None:
        """The same client, identity, host and port get the same decision at every door."""
        decided = policy(*listed)
        authority, port = asked.destination.authority, asked.destination.port
        if asked.destination.address is None:
            by_socks = Destination.parse(asked.destination.host + ".", port)
        else:
            by_socks = Destination.of_address(asked.destination.address, port)
        decisions = [
            decided.decide(Request(asked.listener, door, asked.client, 1, asked.identity, verb, destination), address)
            for door, verb, destination in (
                (Door.FORWARD, method, Destination.parse_authority(authority, 80)),
                (Door.CONNECT, "CONNECT", Destination.parse_authority(authority.upper())),
                (Door.SOCKS5, "CONNECT", by_socks),
            )
        ]
        self.assertEqual(decisions, [decisions[0]] * 3)

    @settings(deadline=None)
    @given(rules(), requests)
    def test_remembered(self, listed: list[Rule], asked: Request) -> None:
        """A decision is the same the second time, and without rules it is the one that denies."""
        decided = policy(*listed)
        self.assertEqual(decided.decide(asked), decided.decide(asked))
        self.assertIs(policy().decide(asked), NO_RULE)

    @settings(deadline=None)
    @given(rules(), requests)
    def test_user_needed_agrees(self, listed: list[Rule], asked: Request) -> None:
        """Where a user is always needed nothing is allowed without; where never, nobody is challenged."""
        method = "GET" if asked.door is Door.FORWARD else "CONNECT"
        anonymous = Request(asked.listener, asked.door, asked.client, 1, None, method, asked.destination)
        decided = policy(*listed)
        needed = decided.user_needed(asked.listener, asked.door, asked.client)
        for address in (None, *ADDRESSES):
            verdict = decided.decide(anonymous, address).verdict
            if needed is UserNeeded.ALWAYS:
                self.assertIn(verdict, (Verdict.DENY, Verdict.CHALLENGE))
            if needed is UserNeeded.NEVER:
                self.assertIsNot(verdict, Verdict.CHALLENGE)
