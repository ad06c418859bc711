from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from proxyd.endpoint import Endpoint
from proxyd.settings import ClientCertificate, TLSFiles

ETC = Path("/etc/proxyd")


def files(certificate, private_key, chain=None):
    return TLSFiles(
        ETC / certificate, ETC / private_key, None if chain is None else ETC / chain, None, ClientCertificate.NONE
    )


class EndpointTests(SynchronousTestCase):
    def test_plain(self):
        """What needs nothing of proxyd is given to Twisted as it is."""
        for text in (
            "tcp:8080",
            "tcp:8080:interface=127.0.0.1:backlog=1024",
            "tcp:port=0",
            "tcp:8080:\\:\\:1",
            "tcp6:8080:interface=\\:\\:1",
            "unix:/run/proxyd.sock:mode=660:lockfile=0",
            "systemd:domain=INET:name=proxyd",
            "systemd:INET6:0",
        ):
            self.assertEqual(Endpoint.parse(text, ETC), Endpoint(text, False, None))

    def test_haproxy(self):
        """The PROXY protocol wrapper is taken off, whatever is behind it."""
        self.assertEqual(Endpoint.parse("haproxy:tcp:80", ETC), Endpoint("tcp:80", True, None))
        self.assertEqual(Endpoint.parse("haproxy:unix:/a", ETC), Endpoint("unix:/a", True, None))
        wrapped = Endpoint.parse("haproxy:ssl:443:privateKey=k.pem", ETC)
        self.assertEqual(wrapped, Endpoint("tcp:443", True, files("k.pem", "k.pem")))

    def test_ssl(self):
        """An ssl: endpoint is a tcp: one, with the files that it names relative to the directory."""
        self.assertEqual(
            Endpoint.parse(
                "ssl:8443:privateKey=k.pem:certKey=/c.pem:extraCertChain=x.pem:interface=\\:\\:1:backlog=9", ETC
            ),
            Endpoint("tcp:8443:interface=\\:\\:1:backlog=9", False, files("/c.pem", "k.pem", "x.pem")),
        )
        self.assertEqual(
            Endpoint.parse("ssl:8443:both.pem", ETC), Endpoint("tcp:8443", tls=files("both.pem", "both.pem"))
        )

    def test_escapes(self):
        """A backslash takes the meaning from the character behind it, as in Twisted."""
        parsed = Endpoint.parse("ssl:443:privateKey=a\\:b\\=c\\\\d=e", ETC)
        self.assertEqual(parsed.tls, files("a:b=c\\d=e", "a:b=c\\d=e"))

    def test_relative_socket(self):
        """The path of a Unix socket is relative to the directory too."""
        self.assertEqual(Endpoint.parse("unix:p.sock:mode=660", ETC).description, "unix:/etc/proxyd/p.sock:mode=660")

    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40))
    def test_socket_path_round_trip(self, name):
        """Twisted listens on the path that was meant, whatever characters it has."""
        escaped = "".join(f"\\{sign}" if sign in "\\:=" else sign for sign in name)
        reactor = MemoryReactor()
        description = Endpoint.parse(f"unix:{escaped}:lockfile=0", ETC).description
        self.successResultOf(serverFromString(reactor, description).listen(Factory()))
        path, _, _, mode, want_pid = reactor.unixServers[0]
        self.assertEqual((path, mode, want_pid), (str(ETC / name), 0o666, False))

    def test_ssl_is_what_twisted_listens_on(self):
        """Twisted takes the description of an ssl: endpoint for the TCP port and interface that it names."""
        reactor = MemoryReactor()
        description = Endpoint.parse("ssl:443:privateKey=k:backlog=7:interface=\\:\\:1", ETC).description
        self.successResultOf(serverFromString(reactor, description).listen(Factory()))
        port, _, backlog, interface = reactor.tcpServers[0]
        self.assertEqual((port, backlog, interface), (443, 7, "::1"))

    def test_refused(self):
        """What Twisted could not listen on is refused, with the fix."""
        either = "systemd: takes a name or an index; write systemd:domain=INET:name=proxyd"
        colons = "write the colons of an IPv6 address or path as \\:"
        for text, message in {
            "": 'there is no endpoint ":" here; known: haproxy, ssl, systemd, tcp, tcp6, unix',
            "8080": 'there is no endpoint "8080:" here; known: haproxy, ssl, systemd, tcp, tcp6, unix',
            "tpc:8080": 'there is no endpoint "tpc:" here; did you mean "tcp"?',
            "haproxy:haproxy:tcp:80": 'there is no endpoint "haproxy:" here; known: ssl, systemd, tcp, tcp6, unix',
            "fd:3": "Twisted has no fd: endpoint for servers; write systemd:domain=INET:index=0",
            "tcp:": "tcp: has no port between 0 and 65535; write tcp:8080",
            "tcp": "tcp: has no port between 0 and 65535; write tcp:8080",
            "tcp:http": "tcp: has no port between 0 and 65535; write tcp:8080",
            "ssl:70000": "ssl: has no port between 0 and 65535; write ssl:8080",
            "tcp:80:interface=::1": f"tcp: has interface twice; {colons}",
            "tcp:80:interface=2001:db8::1": f"tcp: has interface twice; {colons}",
            "tcp:80:\\:\\:1:50:x": f"tcp: has too many parts; {colons}",
            "tcp:80:port=81": f"tcp: has port twice; {colons}",
            "tcp:80:interfaec=127.0.0.1": 'tcp: has no parameter "interfaec"; did you mean "interface"?',
            "tcp:80:interface=eth0": (
                'interface "eth0" is not an address of this machine; write interface=127.0.0.1 or interface=\\:\\:1'
            ),
            "tcp6:80:interface=127.0.0.1": (
                'interface "127.0.0.1" is not an address of this machine; write interface=\\:\\:1'
            ),
            "tcp:80:backlog=0": "backlog is not a number; write how many connections may wait, such as backlog=1024",
            "tcp:80\\": "it ends with a backslash, which escapes the character behind it; remove it or write two",
            "unix:": "unix: has no path; write unix:/run/proxyd/proxyd.sock:mode=660",
            "unix:/a:mode=rw": "mode is not octal; write mode=660",
            "unix:/a:lockfile=no": "lockfile is neither 0 nor 1; write one of them",
            "systemd:name=a": "systemd: has no domain; write systemd:domain=INET:name=proxyd (or INET6, UNIX)",
            "systemd:domain=INET": either,
            "systemd:domain=INET:index=1:name=a": either,
            "systemd:domain=INET:index=x": (
                "index is not a number; write index=0 for the first socket that systemd passes"
            ),
            "ssl:443": "ssl: has no private key; write ssl:8443:privateKey=key.pem:certKey=cert.pem",
            "ssl:443:privateKey=k:sslmethod=TLSv1_METHOD": (
                "sslmethod cannot be chosen; remove it: TLS 1.2 and 1.3 with forward secrecy are always on"
            ),
            "ssl:443:privateKey=k:dhParameters=dh.pem": (
                "dhParameters cannot be chosen; remove it: TLS 1.2 and 1.3 with forward secrecy are always on"
            ),
        }.items():
            self.assertEqual(str(self.assertRaises(ValueError, Endpoint.parse, text, ETC)), message)

    def test_long_socket_path(self):
        """A path that no socket address can hold is refused, counted in octets."""
        self.assertEqual(len(Endpoint.parse("unix:/" + "a" * 106, ETC).description), 5 + 107)
        refused = self.assertRaises(ValueError, Endpoint.parse, "unix:/" + "ü" * 54, ETC)
        self.assertIn("is longer than the 107 octets of a Unix socket; shorten it", str(refused))
