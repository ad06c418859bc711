"""The same request has the same verdict, whatever door it comes through."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.certificates import SelfSigned
from proxyd.testing import Lab, Peer

NAMES = {
    "four.example.com": ["93.184.216.34"],
    "six.example.com": ["2606:2800:220:1::1"],
    "both.example.com": ["93.184.216.35", "2606:2800:220:1::1"],
    "inside.example.com": ["10.0.0.1"],
    "half.example.net": ["127.0.0.1", "93.184.216.34"],
    "own.example.net": ["93.184.216.99"],
}
ADDRESSES = sorted({address for addresses in NAMES.values() for address in addresses} | {"::1", "fd00::7"})
DESTINATIONS = [
    *("*", ".example.com", "four.example.com", "both.example.com", ".net", "93.184.216.34", "93.184.216.0/24"),
    *("10.0.0.0/8", "127.0.0.1", "2606:2800::/32", "2606:2800:220:1::1", "::/0", "0.0.0.0/0", "::1"),
]
PORTS = [80, 443, 8443]
CLIENTS = ["192.0.2.7", "198.51.100.9", "2001:db8::7"]
OWN = "93.184.216.99"
PASSWORDS = {"alice": "wonderland", "bob": "builder"}
USERS = (
    "alice:$2b$04$ZtohShRF77OBDVMfAPRqD.XtIu2hqLreYgPsVkozy/hYAZJ8ZNXKG\n"
    "bob:$2b$04$xMFYNJCZXYI.DjoNwAKXeuDmsNKhEA0KBdZ15/G4dGcSbmb.0jsaq\n"
)
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
LISTENER = """
[users]
file = {directory}/users

[listener:all]
endpoint = tcp:9000
accept = forward connect socks5
detect = yes
certificate = {directory}/proxyd-cert.pem
private_key = {directory}/proxyd-key.pem
"""


@dataclass(frozen=True)
class Asked:
    """What is asked for, by whom."""

    client: str
    user: str | None
    host: str
    port: int

    @property
    def authority(self) -> bytes:
        """The host, in brackets if need be, and the port."""
        return (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}").encode()

    def head(self, method: bytes, url: bytes) -> bytes:
        """An HTTP request."""
        credentials = b""
        if self.user is not None:
            basic = base64.b64encode(f"{self.user}:{PASSWORDS[self.user]}".encode())
            credentials = b"Proxy-Authorization: Basic %b\r\n" % basic
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (method, url, self.authority, credentials)

    def forward(self, client: Peer) -> None:
        """Ask by HTTP forward."""
        client.send(self.head(b"GET", b"http://%b/" % self.authority))

    def connect(self, client: Peer) -> None:
        """Ask by CONNECT."""
        client.send(self.head(b"CONNECT", self.authority))

    def socks_by_name(self, client: Peer) -> None:
        """Ask by SOCKS5, with the host as text."""
        self.socks(client, b"\x03" + bytes([len(self.host)]) + self.host.encode())

    def socks_by_address(self, client: Peer) -> None:
        """Ask by SOCKS5, with the host in binary: IPv4 or IPv6."""
        address = ip_address(self.host)
        self.socks(client, bytes([1 if address.version == 4 else 4]) + address.packed)

    def socks(self, client: Peer, host: bytes) -> None:
        if self.user is None:
            client.send(b"\x05\x01\x00")
            if client.received() == b"\x05\xff":
                return
        else:
            name, password = self.user.encode(), PASSWORDS[self.user].encode()
            client.send(b"\x05\x01\x02")
            client.send(b"\x01" + bytes([len(name)]) + name + bytes([len(password)]) + password)
        client.send(b"\x05\x01\x00" + host + self.port.to_bytes(2, "big"))

    @property
    def is_address(self) -> bool:
        """Whether the host is an address."""
        return self.host not in NAMES

    def ways(self) -> Iterator[tuple[str, bool]]:
        """The doors that this can be asked at, plain and inside TLS."""
        doors = ["forward", "connect", "socks_by_name", *(["socks_by_address"] if self.is_address else [])]
        return ((door, tls) for door in doors for tls in (False, True))


def options(name: str, values: list[str]) -> st.SearchStrategy[str]:
    """One line of a rule, or none."""
    lists = st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)
    return st.one_of(st.just(""), lists.map(lambda chosen: f"{name} = {' '.join(chosen)}\n"))


@st.composite
def rules(draw: st.DrawFn) -> str:
    """A few rules, among them one that allows."""
    text = ""
    actions = draw(st.lists(st.sampled_from(["allow", "allow", "deny"]), min_size=1, max_size=4))
    for number, action in enumerate([*actions, "allow"]):
        text += f"[rule:r{number}]\naction = {action}\n"
        text += f"destinations = {' '.join(draw(st.lists(st.sampled_from(DESTINATIONS), min_size=1, max_size=3)))}\n"
        text += draw(options("ports", ["80", "443", "8000-9000"]))
        text += draw(options("clients", ["192.0.2.0/24", "198.51.100.9", "2001:db8::/32"]))
        text += draw(options("users", ["alice"]))
        if action == "allow" and draw(st.booleans()):
            text += "special_addresses = yes\n"
    return text


asked = st.builds(
    Asked,
    client=st.sampled_from(CLIENTS),
    user=st.sampled_from([None, *PASSWORDS]),
    host=st.sampled_from([*NAMES, *ADDRESSES]),
    port=st.sampled_from(PORTS),
)


class SameVerdictTests(SynchronousTestCase):
    """The door makes no difference where no rule asks for it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        (self.directory / "users").write_text(USERS)
        SelfSigned.make(["proxy.example.com"], datetime.datetime.now(datetime.UTC)).write(self.directory)

    def lab(self, rules: str) -> Lab:
        """A proxy with these rules, and an origin at every place that there is."""
        lab = Lab(LISTENER.format(directory=self.directory) + rules, own_addresses=[OWN])
        for name, addresses in NAMES.items():
            lab.resolver.add(name, *addresses)
        for address in ADDRESSES:
            for port in PORTS:
                lab.origin(address, port, answer=ANSWER)
        return lab

    def verdict(self, lab: Lab, asked: Asked, door: str, tls: bool) -> tuple[object, ...]:
        """What the record of the request says, and whether anybody was connected to."""
        before = len(lab.dialer.dials)
        client = lab.connect("all", asked.client)
        if tls:
            client.start_tls()
        getattr(asked, door)(client)
        client.reset()
        record = lab.records.pop()
        self.assertEqual(lab.records, [])
        dialled = len(lab.dialer.dials) > before or record.reused
        self.assertEqual(dialled, record.decision == "allow")
        if door.startswith("socks") and record.reply is None:
            # Who gets nowhere without saying who that is, is refused by SOCKS5 before it is told where to.
            return ("nowhere",)
        return record.decision, record.rule, record.address, record.user if asked.user else None

    @given(rules(), st.lists(asked, min_size=1, max_size=4))
    @example("[rule:r]\naction = allow\ndestinations = *\n", [Asked(CLIENTS[0], None, "four.example.com", 80)])
    @example("[rule:r]\naction = allow\ndestinations = ::/0\nports = 80\n", [Asked(CLIENTS[0], None, "::1", 80)])
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_same_verdict(self, rules: str, requests: list[Asked]) -> None:
        """HTTP forward, CONNECT and SOCKS5 by name, IPv4 and IPv6, each plain and inside TLS, decide alike."""
        with self.lab(rules) as lab:
            for asked in requests:
                verdicts = {way: self.verdict(lab, asked, *way) for way in asked.ways()}
                distinct = set(verdicts.values())
                if ("nowhere",) in distinct:
                    distinct.remove(("nowhere",))
                    self.assertNotIn("allow", [verdict[0] for verdict in distinct], verdicts)
                self.assertEqual(len(distinct), 1, verdicts)
                event(str(next(iter(distinct))[0]))
