from __future__ import annotations

import os
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from proxyd.ini import Problems, read_sections
from proxyd.policy.rules import Rule
from proxyd.request import Door
from proxyd.sections import Names, read_group, read_listener, read_rule, read_settings, read_users
from proxyd.settings import ClientCertificate, Listener, Settings, TLSFiles, Users


class SectionsTestCase(SynchronousTestCase):
    """Sections read alone, in a directory with the files that they name."""

    def setUp(self):
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        for name in ("cert.pem", "key.pem", "chain.pem", "ca.pem", "users"):
            self.file(name).touch()

    def file(self, name):
        return self.directory / name

    def section(self, body):
        self.problems = Problems("p.ini")
        (section,) = read_sections(f"[rule:x]\n{body}\n", self.problems)
        return section

    def said(self):
        """The problems of the section, each without file and header."""
        return [f"{problem.line} {problem.option}: {problem.message}" for problem in self.problems.found]

    def read(self, body, *arguments):
        """What the section is read as, with every option in it known."""
        section = self.section(body)
        value = self.reader(section, *arguments)
        section.finish()
        return value

    def refused(self, body, *said):
        self.read(body)
        self.assertEqual(self.said(), list(said))


class SettingsTests(SectionsTestCase):
    def reader(self, section):
        return read_settings(section, self.directory)

    def test_defaults(self):
        """An empty section has the defaults of the dataclass."""
        self.assertEqual(self.read(""), Settings())

    def test_every_option(self):
        """Every field of the settings is an option of that name."""
        found = self.read(
            """
resolver = 10.0.0.2, 10.0.0.3:5353 [::1]:53
resolver_timeout = 4s
dns_negative_ttl = 0
dns_system_ttl = 2m
connect_timeout = 9s
socks_connect_timeout = 4500ms
attempt_delay = 100ms
handshake_timeout = 20s
response_timeout = 1m
idle_timeout = 1h
keepalive_timeout = 2m
tunnel_lifetime = none
drain_timeout = 0
upstream_idle_timeout = 5s
upstream_idle_connections = 10
continue_wait = 0
head_size = 32k
head_fields = 100
start_line_size = 8k
max_connections = 5000
max_connections_per_client = 0
buffer_size = 64k
access_log_json = -
access_log_squid = squid.log
access_log_flush = 1s
access_log_buffer = 1M
via = edge-1
workers = auto
"""
        )
        self.assertEqual(self.said(), [])
        expected = Settings(
            resolver=((IPv4Address("10.0.0.2"), 53), (IPv4Address("10.0.0.3"), 5353), (IPv6Address("::1"), 53)),
            resolver_timeout=4.0,
            dns_negative_ttl=0.0,
            dns_system_ttl=120.0,
            connect_timeout=9.0,
            socks_connect_timeout=4.5,
            attempt_delay=0.1,
            handshake_timeout=20.0,
            response_timeout=60.0,
            idle_timeout=3600.0,
            keepalive_timeout=120.0,
            tunnel_lifetime=0.0,
            drain_timeout=0.0,
            upstream_idle_timeout=5.0,
            upstream_idle_connections=10,
            continue_wait=0.0,
            head_size=32768,
            head_fields=100,
            start_line_size=8192,
            max_connections=5000,
            max_connections_per_client=0,
            buffer_size=65536,
            access_log_json="-",
            access_log_squid=str(self.file("squid.log")),
            access_log_flush=1.0,
            access_log_buffer=1048576,
            via="edge-1",
            workers=0,
        )
        self.assertEqual(found, expected)
        defaults = Settings()
        changed = [
            field.name for field in fields(Settings) if getattr(found, field.name) != getattr(defaults, field.name)
        ]
        self.assertEqual(changed, [field.name for field in fields(Settings)])

    def test_system_resolver(self):
        """The system's resolver is asked for by its word, and not beside servers."""
        self.assertEqual(self.read("resolver = system"), Settings())
        self.refused(
            "resolver = system 10.0.0.2", "2 resolver: system and servers exclude each other; write one or the other"
        )
        self.refused(
            "resolver = dns1",
            '2 resolver: "dns1" is not a server address; write 10.0.0.2, 10.0.0.2:5353 or [::1]:53, or system',
        )

    def test_ranges(self):
        """What is out of range is told, with the range."""
        self.refused(
            "workers = 0\ntunnel_lifetime = 0\nattempt_delay = 5s",
            '4 attempt_delay: "5s" is out of range; write something from 10ms to 2s',
            '3 tunnel_lifetime: "0" is out of range; write something from 1s to 365d, or none',
            '2 workers: "0" is out of range; write something from 1 to 256, or auto',
        )

    def test_start_line_in_head(self):
        """A start line cannot be longer than the head that it is part of."""
        self.refused(
            "start_line_size = 65k",
            "2 start_line_size: it is more than head_size, which counts the start line too; lower it",
        )

    def test_one_log_for_each_format(self):
        """The two formats cannot go to the same place."""
        for place in ("-", "access.log"):
            self.refused(
                f"access_log_json = {place}\naccess_log_squid = {place}",
                "3 access_log_squid: it is where access_log_json goes; each format needs a file of its own",
            )

    def test_log_directory(self):
        """The directory of an access log must be there."""
        self.refused(
            "access_log_json = logs/a.log", f"2 access_log_json: there is no directory {self.file('logs')}; create it"
        )
        self.assertEqual(self.read("access_log_json =").access_log_json, "")

    def test_immutable(self):
        """Settings never change; others are made from them."""
        self.assertRaises(AttributeError, setattr, Settings(), "workers", 2)
        self.assertEqual(replace(Settings(), workers=2).workers, 2)


class ListenerTests(SectionsTestCase):
    def reader(self, section):
        return read_listener(section, self.directory)

    def listener(self, body):
        listener = self.read(body)
        self.assertEqual(self.said(), [])
        return listener

    def test_plain(self):
        """A listener has the section's name, its endpoint and its doors."""
        self.assertEqual(
            self.listener("endpoint = tcp:8080\naccept = forward, connect"),
            Listener("x", "tcp:8080", frozenset({Door.FORWARD, Door.CONNECT}), False, None, False, False),
        )

    def test_wrapped(self):
        """ssl: and haproxy: are proxyd's own; the files of ssl: are relative to the directory."""
        listener = self.listener(
            "endpoint = haproxy:ssl:443:privateKey=key.pem:certKey=cert.pem:extraCertChain=chain.pem\naccept = connect"
        )
        tls = TLSFiles(
            self.file("cert.pem"), self.file("key.pem"), self.file("chain.pem"), None, ClientCertificate.NONE
        )
        self.assertEqual(listener, Listener("x", "tcp:443", frozenset({Door.CONNECT}), False, tls, True, True))

    def test_detected_tls(self):
        """With detect, certificate and key are options; the key may be in the certificate's file."""
        body = "endpoint = unix:/a\naccept = forward connect socks5\ndetect = yes\ncertificate = cert.pem\n"
        listener = self.listener(body + "private_key = key.pem")
        tls = TLSFiles(self.file("cert.pem"), self.file("key.pem"), None, None, ClientCertificate.NONE)
        self.assertEqual(listener, Listener("x", "unix:/a", frozenset(Door), True, tls, False, False))
        self.assertEqual(self.listener(body).tls.private_key, self.file("cert.pem"))

    def test_detect_without_certificate(self):
        """Without a certificate detect is allowed: there is no TLS then."""
        self.assertIs(self.listener("endpoint = tcp:1\naccept = forward socks5\ndetect = yes").tls, None)

    def test_client_certificates(self):
        """Clients can be asked for certificates, with either way to TLS."""
        client = "\naccept = connect\nclient_ca = ca.pem\nclient_certificate = "
        first = self.listener(f"endpoint = ssl:443:privateKey=key.pem{client}optional").tls
        self.assertEqual((first.client_ca, first.client_certificate), (self.file("ca.pem"), ClientCertificate.OPTIONAL))
        detected = self.listener(f"endpoint = tcp:443\ndetect = yes\ncertificate = cert.pem{client}required").tls
        self.assertEqual(detected.client_ca, self.file("ca.pem"))
        self.assertEqual(detected.client_certificate, ClientCertificate.REQUIRED)

    def test_required(self):
        """Endpoint and doors have no defaults."""
        self.refused(
            "",
            "1 endpoint: it is missing; add endpoint = tcp:8080:interface=127.0.0.1",
            "1 accept: it is missing; add accept = forward connect socks5",
        )

    def test_bad_values(self):
        """Wrong endpoints and doors are told at once; TLS options are not held against an endpoint that is wrong."""
        self.refused(
            "endpoint = tcp:x\naccept = conect\ncertificate = cert.pem\nprivate_key = key.pem",
            "2 endpoint: tcp: has no port between 0 and 65535; write tcp:8080",
            '3 accept: there is no protocol "conect"; did you mean "connect"?',
        )

    def test_socks_beside_http(self):
        """SOCKS5 and HTTP on one port need detection, inside TLS too."""
        said = "3 accept: SOCKS5 cannot share a port with HTTP unless it is told apart; add detect = yes"
        self.refused("endpoint = tcp:1\naccept = forward socks5", said)
        self.refused("endpoint = ssl:1:key.pem\naccept = connect socks5", said)
        self.listener("endpoint = ssl:1:" + "key.pem\naccept = connect socks5\ndetect = yes")

    def test_conflicts(self):
        """Certificates that nobody would see are refused, and ones named twice."""
        self.refused(
            "endpoint = ssl:1:key.pem\naccept = connect\ncertificate = cert.pem\nprivate_key = key.pem",
            "4 certificate: the ssl: endpoint names its files; remove this, or write tcp: and detect = yes",
            "5 private_key: the ssl: endpoint names its files; remove this, or write tcp: and detect = yes",
        )
        self.refused(
            "endpoint = tcp:1\naccept = connect\ncertificate = cert.pem\nprivate_key = key.pem",
            "4 certificate: nothing here speaks TLS; add detect = yes, or write an ssl: endpoint instead",
            "5 private_key: nothing here speaks TLS; add detect = yes, or write an ssl: endpoint instead",
        )
        self.refused(
            "endpoint = tcp:1\naccept = connect\ndetect = yes\nprivate_key = key.pem",
            "5 private_key: there is no certificate to it; add certificate = FILE",
        )

    def test_client_conflicts(self):
        """Client certificates need TLS, somebody who is asked, and somebody who signs them."""
        tls = "endpoint = ssl:1:key.pem\naccept = connect\n"
        self.refused(
            tls + "client_ca = ca.pem",
            "4 client_ca: nobody is asked for a certificate; add client_certificate = optional or required",
        )
        self.refused(
            tls + "client_certificate = required",
            "4 client_certificate: nothing tells good certificates from bad ones; add client_ca = FILE",
        )
        self.refused(
            tls + "client_certificate = yes",
            '4 client_certificate: there is no choice "yes"; known: none, optional, required',
        )
        self.refused(
            "endpoint = tcp:1\naccept = connect\nclient_ca = ca.pem\nclient_certificate = optional",
            "5 client_certificate: nothing here speaks TLS; add certificate and private_key",
        )

    def test_missing_files(self):
        """Every file must be there, whoever names it."""
        said = "{} there is no file {}; create it, or correct the path"
        self.refused(
            "endpoint = tcp:1\naccept = connect\ndetect = yes\ncertificate = a\nprivate_key = b",
            said.format("5 certificate:", self.file("a")),
            said.format("6 private_key:", self.file("b")),
        )
        for endpoint in ("ssl:1:key.pem:c", "ssl:1:c:key.pem", "ssl:1:key.pem:cert.pem:extraCertChain=c"):
            self.refused(f"endpoint = {endpoint}\naccept = connect", said.format("2 endpoint:", self.file("c")))

    def test_unreadable_file(self):
        """A file must be readable for whoever checks."""
        if os.geteuid() == 0:
            self.skipTest("root reads everything")
        self.file("key.pem").chmod(0)
        self.refused(
            "endpoint = ssl:1:key.pem\naccept = connect",
            f"2 endpoint: {self.file('key.pem')} cannot be read; let the user that proxyd runs as read it",
        )


class UsersTests(SectionsTestCase):
    def reader(self, section):
        return read_users(section, self.directory)

    def test_users(self):
        """The file is relative to the directory; the rest has defaults."""
        self.assertEqual(self.read("file = users"), Users(self.file("users"), 60.0, "proxyd"))
        self.assertEqual(
            self.read("file = users\ncache_time = 5m\nrealm = Log shipping"),
            Users(self.file("users"), 300.0, "Log shipping"),
        )
        self.assertEqual(self.said(), [])

    def test_refused(self):
        """The file has to be named and be there."""
        self.refused('realm = "', "1 file: it is missing; add file = users.htpasswd",
            "2 realm: it cannot stand in a header field; write plain ASCII without quotes and backslashes",
        )  # fmt: skip
        self.refused("file = none", f"2 file: there is no file {self.file('none')}; create it, or correct the path")


class GroupTests(SectionsTestCase):
    def reader(self, section):
        return read_group(section)

    def test_members(self):
        """A group has members, at least one."""
        self.assertEqual(self.read("members = alice, bob\n  carol"), frozenset({"alice", "bob", "carol"}))
        self.refused("", "1 members: it is missing; add members = alice bob")
        self.refused("members =", "2 members: it is empty; list something, or remove the option")


class RuleTests(SectionsTestCase):
    names = Names(listeners=frozenset({"web", "lab"}), groups=frozenset({"ops"}), identities=True)

    def reader(self, section, names=None):
        return read_rule(section, names or self.names)

    def test_shortest(self):
        """A rule needs an action and destinations; no ports stands for the default ones."""
        self.assertEqual(
            self.read("action = allow\ndestinations = Example.com"), Rule("x", True, ("example.com",), ports=())
        )
        self.assertEqual(self.read("action = deny\ndestinations = *"), Rule("x", False, ("*",)))
        self.assertEqual(self.said(), [])

    def test_every_option(self):
        """Every condition and privilege has an option."""
        rule = self.read(
            """
action = allow
destinations = .example.com
  192.0.2.0/24, 2001:db8::1
ports = 443 8000-8100
clients = 10.0.0.0/8 ::1
users = alice bob
groups = ops
listeners = web lab
protocols = connect socks5
methods = GET POST
special_addresses = yes
preserve_host = yes
rate = 1M
"""
        )
        self.assertEqual(self.said(), [])
        self.assertEqual(
            rule,
            Rule(
                name="x",
                allow=True,
                destinations=(".example.com", "192.0.2.0/24", "2001:db8::1"),
                ports=(range(443, 444), range(8000, 8101)),
                listeners=frozenset({"web", "lab"}),
                doors=frozenset({Door.CONNECT, Door.SOCKS5}),
                methods=frozenset({"GET", "POST"}),
                clients=(IPv4Network("10.0.0.0/8"), IPv6Network("::1/128")),
                users=frozenset({"alice", "bob"}),
                groups=frozenset({"ops"}),
                special_addresses=True,
                preserve_host=True,
                rate=1048576,
            ),
        )

    def test_all_ports(self):
        """A star stands for every port."""
        self.assertEqual(self.read("action = allow\ndestinations = *\nports = *").ports, (range(1, 65536),))

    def test_nothing_is_permissive(self):
        """Neither action nor destinations has a default, and an empty condition is not taken for none."""
        self.refused(
            "",
            "1 action: it is missing; add action = allow",
            "1 destinations: it is missing; add destinations = .example.com 192.0.2.0/24",
        )
        for option in ("destinations", "ports", "clients", "users", "groups", "listeners", "protocols", "methods"):
            body = "action = allow\n" + ("" if option == "destinations" else "destinations = *\n") + f"{option} =\n"
            self.read(body)
            (said,) = self.said()
            self.assertIn(f"{option}: it is empty; list something, or remove the option", said)

    def test_wrong_words(self):
        """Each wrong word of each list is told, in the line in which it stands."""
        self.refused(
            "action = permit\ndestinations = *.example.com\n  fine.example\n  http://example.com\nports = 80 http\n"
            "listeners = wbe\ngroups = devs\nprotocols = udp\nclients = 10.0.0.1/8\nmethods = get\nrate = fast",
            '2 action: there is no action "permit"; known: allow, deny',
            '3 destinations: "*.example.com" is not how a domain is written; '
            "write .example.com for it and all its subdomains",
            '5 destinations: "http://example.com" is a URL; write its host alone, and its port under ports',
            '6 ports: "http" is not a port; write 443, 8000-8100 or *',
            '7 listeners: there is no listener "wbe"; did you mean "web"?',
            '9 protocols: there is no protocol "udp"; known: connect, forward, socks5',
            '11 methods: methods are told apart by case and "get" is none that is in use; write GET',
            '10 clients: "10.0.0.1/8" has bits set behind its prefix; write 10.0.0.0/8',
            '8 groups: there is no group "devs"; known: ops',
            '12 rate: "fast" is not a size; write bytes, or 64k, 8M, 1G',
        )

    def test_privileges_of_a_denial(self):
        """What only an allowed request can have is refused where nothing is allowed."""
        self.refused(
            "action = deny\ndestinations = *\nspecial_addresses = yes\npreserve_host = no\nrate = 1",
            "4 special_addresses: it says nothing in a rule that denies; remove it",
            "5 preserve_host: it says nothing in a rule that denies; remove it",
            "6 rate: it says nothing in a rule that denies; remove it",
        )

    def test_users_need_a_proof(self):
        """Users and groups are refused where nothing tells who a client is."""
        self.read(
            "action = allow\ndestinations = *\nusers = alice\ngroups = ops",
            Names(listeners=frozenset(), groups=frozenset({"ops"}), identities=False),
        )
        fix = "nothing tells who a client is; add [users], or client_certificate to a listener"
        self.assertEqual(self.said(), [f"4 users: {fix}", f"5 groups: {fix}"])
