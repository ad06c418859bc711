"""What log agents were captured sending, byte for byte, through each door; each row of the agents' table is a test."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from aliyun.log.proto import LogGroupRaw
from twisted.trial.unittest import SkipTest

from tests.functional.clients import Client, Response, agent_tls, connected
from tests.functional.log_service import KEY_ID, LogService, compressed, signature_1
from tests.functional.origin import INVALID_METHOD, Origin, pattern
from tests.functional.running import CONTROL, OTHER_PROJECT, PROJECT, ProxydTestCase, free_ports

USER, PASSWORD = b"us@er", b"p:w"
AUTHORIZATION = b"Proxy-Authorization: Basic dXNAZXI6cDp3\r\n"
"""As captured: http_proxy=http://us%40er:p%3Aw@..."""

ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
"""Agents compare the status with 200, and some want nothing behind it."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

AGENT = b"ilogtail/3.3.5 (Linux; 5.10.0; x86_64) ip/10.0.0.1 env/Others"


def a_group(lines: int = 100, source: str = "10.0.0.1") -> LogGroupRaw:
    """Log lines as an agent collects them."""
    group = LogGroupRaw(Topic="", Source=source)
    for number in range(lines):
        log = group.Logs.add(Time=1700000000 + number)
        log.Contents.add(Key="content", Value=b"line %d \xe6\x97\xa5\xe5\xbf\x97" % number)
    return group


def agent_post(host: str, port: int, group: LogGroupRaw, *, proxied: bool, secret: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of the captured request: as a forward proxy gets it, or as an origin does inside of a tunnel."""
    body, size = compressed(group)
    fields = [
        (b"Content-MD5", hashlib.md5(body).hexdigest().upper().encode()),
        (b"Content-Length", b"%d" % len(body)),
        (b"Content-Type", b"application/x-protobuf"),
        (b"Date", b"Mon, 02 Jan 2026 15:04:05 GMT"),
        (b"User-Agent", AGENT),
        (b"x-log-apiversion", b"0.6.0"),
        (b"x-log-bodyrawsize", b"%d" % size),
        (b"x-log-compresstype", b"lz4"),
        (b"x-log-signaturemethod", b"hmac-sha1"),
    ]
    path = b"/logstores/ls/shards/lb"
    signature = signature_1(b"POST", path, fields)
    target = b"HTTP://%b:%d" % (host.encode(), port) if proxied else b""
    head = b"POST %b%b HTTP/1.1\r\nHost:%b\r\n" % (target, path, host.encode())
    head += secret + b"Accept: */*\r\n"
    if proxied:
        head += b"Proxy-Connection: Keep-Alive\r\n"
    head += f"Authorization:LOG {KEY_ID}:{signature}\r\n".encode()
    head += b"".join(b"%b:%b\r\n" % field for field in fields)
    return head + b"Expect: 100-continue\r\n\r\n", body


class ReplayTestCase(ProxydTestCase):
    """One port for everything and everybody, and one where a user is needed."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.make_origin()
        self.service = self.origin.log_service = LogService()
        self.names = self.start_names(self.origin.address)
        self.certificate = self.make_certificate()
        self.add_user(USER.decode(), PASSWORD.decode())
        self.ports = free_ports("open", "closed")
        self.proxyd = self.start_proxyd(self.configuration(), self.ports)

    def make_origin(self) -> Origin:
        """Where requests go."""
        return self.start_origin()

    def configuration(self) -> str:
        """Who may do what."""
        sections = [f"resolver = 127.0.0.1:{self.names.port}", "[users]\nfile = users.htpasswd"]
        for name, port in self.ports.items():
            sections.append(
                f"[listener:{name}]\nendpoint = tcp:{port}:interface=127.0.0.1\naccept = forward connect socks5\n"
                "detect = yes\ncertificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem"
            )
        for name, condition in (("closed", f"users = {USER.decode()}"), ("open", "")):
            sections.append(
                f"[rule:{name}]\naction = allow\nlisteners = {name}\n{condition}\n"
                f"destinations = .log.aliyuncs.com {self.origin.address}\n"
                f"ports = {self.origin.port} {self.origin.secure_port}\nspecial_addresses = yes"
            )
        return "\n".join(sections)

    @contextmanager
    def client(self, name: str = "open", *, tls: bool = False, source: str = "") -> Iterator[Client]:
        """A connection to the proxy, by TLS as the agent speaks it where asked."""
        with connected(self.ports[name], source=source) as client:
            if tls:
                agreed = client.secure(agent_tls(self.certificate))
                self.assertEqual((agreed.version(), agreed.selected_alpn_protocol()), ("TLSv1.2", None))
                self.assertIn("GCM", str(agreed.cipher()))
            yield client

    def post(self, client: Client, request: tuple[bytes, bytes]) -> Response:
        """Send a request as libcurl does: the head, and the body only after the 100."""
        head, body = request
        client.send(head)
        self.assertTrue(client.read_head().startswith(b"HTTP/1.1 100 "))
        client.send(body)
        return client.read_response()

    def assert_taken(self, response: Response, group: LogGroupRaw) -> None:
        """The log service has got this group last, and has said so."""
        self.assertEqual((response.status, response.body), (200, b""), response)
        self.assertEqual(self.service.groups[-1], group)
        self.assertEqual(response.values(b"x-log-requestid"), [b"62591BC7C08B7BD4AA99FCD4"])

    def socks(self, client: Client, destination: bytes, *, user: bool = False) -> None:
        """The handshake of the agent's libcurl: one message, one answer, and so on."""
        client.send(b"\x05\x02\x00\x02" if user else b"\x05\x01\x00")
        self.assertEqual(client.read(2), b"\x05\x02" if user else b"\x05\x00")
        if user:
            client.send(b"\x01\x05us@er\x03p:w")
            self.assertEqual(client.read(2), b"\x01\x00")
        client.send(b"\x05\x01\x00" + destination)
        self.assertEqual(client.read(10)[:4], b"\x05\x00\x00\x01")

    def tunnel(self, client: Client, host: str, port: int, *, user: bool = False) -> None:
        """The captured CONNECT."""
        authority = f"{host}:{port}".encode()
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
        client.send(head + (AUTHORIZATION if user else b"") + b"Proxy-Connection: Keep-Alive\r\n\r\n")
        self.assertEqual(client.read_head(), ESTABLISHED)


def by_name(host: str, port: int) -> bytes:
    """A destination as SOCKS5 carries names."""
    return b"\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


def by_address(address: str, port: int) -> bytes:
    """A destination as SOCKS5 carries IPv4 addresses."""
    return b"\x01" + bytes(map(int, address.split("."))) + port.to_bytes(2, "big")


class ForwardTests(ReplayTestCase):
    """The agent's POST to an HTTP endpoint."""

    def test_capture(self) -> None:
        """The captured POST, with and without TLS to the proxy and a user, is taken; nothing signed has changed."""
        for tls in (False, True):
            for name, secret in (("open", b""), ("open", AUTHORIZATION), ("closed", AUTHORIZATION)):
                group = a_group()
                with self.client(name, tls=tls) as client:
                    head, body = agent_post(PROJECT, self.origin.port, group, proxied=True, secret=secret)
                    response = self.post(client, (head, body))

                self.assert_taken(response, group)
                request = self.origin.received[-1]
                self.assertEqual((request.method, request.target), (b"POST", b"/logstores/ls/shards/lb"))
                self.assertEqual(request.body, body)
                self.assertEqual(request.value(b"user-agent"), AGENT)
                self.assertEqual(request.value(b"date"), b"Mon, 02 Jan 2026 15:04:05 GMT")
                for gone in (b"proxy-authorization", b"proxy-connection"):
                    self.assertEqual(request.values(gone), [])
        records = self.proxyd.all_records()
        self.assertEqual([record.get("user") for record in records], [None, USER.decode(), USER.decode()] * 2)
        self.assertEqual({record["destination"] for record in records}, {f"{PROJECT}:{self.origin.port}"})

    def test_host_other_than_the_target(self) -> None:
        """The Host of the capture has no port, which is no reason for a 400: the origin gets the target's authority."""
        with self.client() as client:
            self.post(client, agent_post(PROJECT, self.origin.port, a_group(), proxied=True))

        self.assertEqual(self.origin.received[-1].value(b"host"), f"{PROJECT}:{self.origin.port}".encode())

    def test_reuse_for_other_hosts(self) -> None:
        """One connection carries requests to different hosts, one after the other, as libcurl's pool sends them."""
        for tls in (False, True):
            with self.client(tls=tls) as client:
                for host in (PROJECT, OTHER_PROJECT, PROJECT, CONTROL):
                    group = a_group(source=host)
                    self.assert_taken(self.post(client, agent_post(host, self.origin.port, group, proxied=True)), group)
                    [found] = self.origin.received[-1].values(b"host")
                    self.assertTrue(found.startswith(host.encode()))
        self.assertLess(len({request.connection for request in self.origin.received}), 8)  # upstream ones are reused

    def test_100_before_the_body(self) -> None:
        """The 100 comes before any of the body is sent, from the origin or, where that is silent, from proxyd."""
        for path in (b"/upload", b"/silent"):
            with self.client() as client:
                target = b"HTTP://%b:%d%b" % (PROJECT.encode(), self.origin.port, path)
                client.send(
                    b"POST %b HTTP/1.1\r\nHost:%b\r\nContent-Length:2000\r\nExpect: 100-continue\r\n\r\n"
                    % (target, PROJECT.encode())
                )
                self.assertEqual(client.read_head().split(b"\r\n")[0], b"HTTP/1.1 100 Continue", path)
                client.send(pattern(2000))

                response = client.read_response()

                self.assertEqual(response.status, 200)
                self.assertIn(b'"length": 2000', response.body)

    def test_refusal_before_the_body(self) -> None:
        """What is refused is refused before the body is sent: by the policy, for the want of a user, by the origin."""
        denied = b"http://metadata.example:80/"
        asked = b"HTTP://%b:%d/upload" % (PROJECT.encode(), self.origin.port)
        refused = b"HTTP://%b:%d/refuse" % (PROJECT.encode(), self.origin.port)
        for name, target, status in (("open", denied, 403), ("closed", asked, 407), ("open", refused, 413)):
            with self.client(name) as client:
                response = client.ask(
                    b"POST %b HTTP/1.1\r\nHost:x\r\nContent-Length:2000\r\nExpect: 100-continue\r\n\r\n" % target
                )

                self.assertEqual(response.status, status, response)

    def test_wrong_credentials_once(self) -> None:
        """Each request is authenticated by itself: a connection that was let in is not, and it goes on after a 407."""
        with self.client("closed") as client:
            url = b"http://%b:%d/" % (PROJECT.encode(), self.origin.port)
            request = b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n"
            wrong = b"Proxy-Authorization: Basic " + base64.b64encode(b"us@er:wrong") + b"\r\n"

            answers = [client.ask(request % (url, secret)) for secret in (AUTHORIZATION, b"", wrong, AUTHORIZATION)]

        self.assertEqual([answer.status for answer in answers], [405, 407, 407, 405])
        for answer in answers[1:3]:
            [challenge] = answer.values(b"proxy-authenticate")
            self.assertTrue(challenge.startswith(b'Basic realm="'))
            self.assertEqual(answer.values(b"connection"), [])

    def test_body_in_the_same_segment(self) -> None:
        """A small body that comes with its head, and a next request with that, are answered in order."""
        with self.client() as client:
            host = f"{PROJECT}:{self.origin.port}".encode()
            post = b"POST http://%b/upload HTTP/1.1\r\nHost: %b\r\nContent-Length: 5\r\n\r\nhello" % (host, host)
            get = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (host, host)

            client.send(post + get + post)

            self.assertIn(b'"length": 5', client.read_response().body)
            self.assertEqual(client.read_response().body, INVALID_METHOD)
            self.assertIn(b'"length": 5', client.read_response().body)

    def test_endpoint_probe(self) -> None:
        """The probe of an endpoint, GET or HEAD, is answered and keeps the connection."""
        with self.client() as client:
            url = b"HTTP://%b:%d/" % (CONTROL.encode(), self.origin.port)
            get = client.ask(b"GET %b HTTP/1.1\r\nHost:%b\r\nAccept: */*\r\n\r\n" % (url, CONTROL.encode()))
            client.send(b"HEAD %b HTTP/1.1\r\nHost:%b\r\nAccept: */*\r\n\r\n" % (url, CONTROL.encode()))
            head = client.read_response(bodiless=True)
            again = client.ask(b"GET %b HTTP/1.1\r\nHost:%b\r\nAccept: */*\r\n\r\n" % (url, CONTROL.encode()))

        self.assertEqual((get.body, again.body), (INVALID_METHOD, INVALID_METHOD))
        self.assertEqual((head.status, head.values(b"content-length")), (405, [b"%d" % len(INVALID_METHOD)]))

    def test_metadata(self) -> None:
        """The metadata service is denied at once by every door, in one line: agents keep that as their token."""
        put = b"PUT http://100.100.100.200/latest/api/token HTTP/1.1\r\nHost: 100.100.100.200\r\n\r\n"
        get = b"GET http://100.100.100.200/latest/dynamic/instance-identity/document HTTP/1.1\r\nHost: x\r\n\r\n"
        with self.client() as client:
            for request in (put, get):
                response = client.ask(request)
                self.assertEqual(response.status, 403)
                self.assertEqual(response.body.count(b"\n"), 1)
                self.assertEqual(response.values(b"x-log-requestid"), [])
        for host in (b"100.100.100.200", b"169.254.169.254"):
            with self.client() as client:
                authority = host + b":%d" % self.origin.port
                response = client.ask(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority))
                self.assertEqual(response.status, 403)
        with self.client() as client:
            client.send(b"\x05\x01\x00" + b"\x05\x01\x00\x01\x64\x64\x64\xc8\x00\x50")
            self.assertEqual(client.read(12)[:4], b"\x05\x00\x05\x02")

    def test_vector(self) -> None:
        """Vector sends Authorization for the origin and Proxy-Authorization for the proxy: only the former passes."""
        with self.client("closed") as client:
            host = f"{PROJECT}:{self.origin.port}".encode()
            response = client.ask(
                b"POST http://%b/upload HTTP/1.1\r\nhost: %b\r\nauthorization: Basic b3JpZ2luOnNlY3JldA==\r\n"
                b"proxy-authorization: Basic dXNAZXI6cDp3\r\ncontent-length: 2\r\n\r\nok" % (host, host)
            )

        self.assertEqual(response.status, 200)
        self.assertEqual(self.origin.received[-1].value(b"authorization"), b"Basic b3JpZ2luOnNlY3JldA==")
        self.assertEqual(self.origin.received[-1].values(b"proxy-authorization"), [])


class StandardPortTests(ReplayTestCase):
    """The capture as it is, with port 80."""

    def make_origin(self) -> Origin:
        """An origin on the ports that the log service has."""
        try:
            return self.start_origin(address="127.80.80.81", ports=(80, 443))
        except OSError as error:
            raise SkipTest(f"127.80.80.81 ports 80 and 443 cannot be used here: {error}") from None

    def test_capture(self) -> None:
        """:80 in the target and no port in Host are the same: the client's own Host reaches the origin."""
        with self.client(source="127.0.0.7") as client:
            group = a_group()
            self.assert_taken(self.post(client, agent_post(PROJECT, 80, group, proxied=True)), group)
            bare = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (PROJECT.encode(), PROJECT.encode())
            self.assertEqual(client.ask(bare).body, INVALID_METHOD)

        for request in self.origin.received:
            self.assertEqual(request.value(b"host"), PROJECT.encode())
        self.assertEqual({request.connection for request in self.origin.received}, {1})
        self.assertEqual({record["destination"] for record in self.proxyd.records(2)}, {f"{PROJECT}:80"})


class TunnelTests(ReplayTestCase):
    """The agent's POST to an HTTPS endpoint, and other agents' CONNECT."""

    def test_capture(self) -> None:
        """The captured CONNECT opens a tunnel, also inside TLS; POSTs are taken in it, and its TLS is the origin's."""
        for tls in (False, True):
            for name, user in (("open", False), ("closed", True)):
                with self.client(name, tls=tls) as client:
                    self.tunnel(client, PROJECT, self.origin.secure_port, user=user)
                    agreed = client.secure(agent_tls(self.origin.certificate), PROJECT)
                    origins = ssl.PEM_cert_to_DER_cert(self.origin.certificate.read_text())
                    self.assertEqual(agreed.getpeercert(binary_form=True), origins)
                    for _ in range(3):
                        group = a_group(source=name)
                        request = agent_post(PROJECT, self.origin.secure_port, group, proxied=False)
                        self.assert_taken(self.post(client, request), group)
        records = self.proxyd.all_records()
        self.assertEqual(len(records), 4)
        self.assertEqual({(record["method"], record["status"]) for record in records}, {("CONNECT", 200)})

    def test_other_agents(self) -> None:
        """CONNECT as Fluent Bit, Go and old urllib3 write it is answered by the success line alone."""
        authority = f"{PROJECT}:{self.origin.port}".encode()
        requests = {
            "Fluent Bit": b"CONNECT %b HTTP/1.1\r\nProxy-Connection: KeepAlive\r\nHost: %b\r\nContent-Length: 0\r\n"
            % (authority, authority)
            + AUTHORIZATION
            + b"User-Agent: Fluent-Bit\r\n\r\n",
            "urllib3": b"CONNECT %b HTTP/1.0\r\n" % authority + AUTHORIZATION + b"\r\n",
            "Go": b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
            + AUTHORIZATION
            + b"User-Agent: Go-http-client/1.1\r\n\r\n",
        }
        for agent, request in requests.items():
            with self.client("closed") as client:
                client.send(request)
                self.assertEqual(client.read(len(ESTABLISHED)), ESTABLISHED, agent)
                self.assertEqual(client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").body, INVALID_METHOD, agent)

    def test_early_data(self) -> None:
        """What a client sends behind CONNECT before it is answered reaches the origin."""
        with self.client() as client:
            authority = f"{PROJECT}:{self.origin.port}".encode()
            client.send(
                b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\nGET / HTTP/1.1\r\nHost: early\r\n\r\n" % (authority, authority)
            )
            self.assertEqual(client.read_head(), ESTABLISHED)
            self.assertEqual(client.read_response().body, INVALID_METHOD)

    def test_half_close(self) -> None:
        """A client that has said everything still gets the answer: its FIN, or close_notify, goes on to the origin."""
        for tls in (False, True):
            for door in (self.tunnel, lambda client, host, port: self.socks(client, by_name(host, port))):
                with self.client(tls=tls) as client:
                    door(client, PROJECT, self.origin.port)
                    client.send(b"GET /bytes/400000 HTTP/1.1\r\nHost: x\r\n\r\n")
                    client.finish()

                    answer = client.read_all()

                    self.assertTrue(answer.endswith(pattern(400000)), f"{tls} {door} {len(answer)}")

    def test_denied_port(self) -> None:
        """CONNECT to a port that is not allowed is a 403 on a connection that stays."""
        with self.client() as client:
            for _ in range(2):
                response = client.ask(b"CONNECT %b:22 HTTP/1.1\r\nHost: %b:22\r\n\r\n" % ((PROJECT.encode(),) * 2))
                self.assertEqual((response.line, response.body.count(b"\n")), (b"HTTP/1.1 403 Forbidden", 1))
        self.assertEqual(self.names.asked, [])


class Socks5Tests(ReplayTestCase):
    """The agent's POST through SOCKS5."""

    def destinations(self, port: int) -> list[bytes]:
        """By name, by address as socks5:// has it, and by an address written as a name, as libcurl 7.61.1 does."""
        return [by_name(PROJECT, port), by_address(self.origin.address, port), by_name(self.origin.address, port)]

    def test_capture(self) -> None:
        """The POST is taken, with a user and without, for names and addresses, also inside TLS to the proxy."""
        for tls in (False, True):
            for name, user in (("open", False), ("closed", True)):
                for destination in self.destinations(self.origin.port):
                    with self.client(name, tls=tls) as client:
                        self.socks(client, destination, user=user)
                        for _ in range(2):
                            group = a_group()
                            request = agent_post(PROJECT, self.origin.port, group, proxied=False)
                            self.assert_taken(self.post(client, request), group)
        records = self.proxyd.all_records()
        self.assertEqual(len(records), 12)
        self.assertEqual({(record["protocol"], record["reply"]) for record in records}, {("socks5", 0)})

    def test_https_inside(self) -> None:
        """TLS to the origin inside SOCKS5, also where that is inside TLS to the proxy."""
        for tls in (False, True):
            with self.client("closed", tls=tls) as client:
                self.socks(client, by_name(PROJECT, self.origin.secure_port), user=True)
                client.secure(agent_tls(self.origin.certificate), PROJECT)
                group = a_group()
                request = agent_post(PROJECT, self.origin.secure_port, group, proxied=False)
                self.assert_taken(self.post(client, request), group)

    def test_offers(self) -> None:
        """Of the methods that clients offer the right one is chosen: never GSSAPI, a password where it is needed."""
        offers = [
            ("open", b"\x05\x01\x00", b"\x05\x00"),
            ("open", b"\x05\x02\x00\x01", b"\x05\x00"),
            ("closed", b"\x05\x02\x00\x02", b"\x05\x02"),
            ("closed", b"\x05\x03\x00\x01\x02", b"\x05\x02"),
            ("closed", b"\x05\x02\x00\x01", b"\x05\xff"),
            ("open", b"\x05\x01\x01", b"\x05\xff"),
        ]
        for name, offer, answer in offers:
            with self.client(name) as client:
                client.send(offer)
                self.assertEqual(client.read(2), answer, f"{name} {offer!r}")

    def test_refusals(self) -> None:
        """A wrong password fails in the words of RFC 1929; BIND and UDP are reply 7; a denied port is reply 2."""
        with self.client("closed") as client:
            client.send(b"\x05\x01\x02")
            self.assertEqual(client.read(2), b"\x05\x02")
            client.send(b"\x01\x05us@er\x05wrong")
            answer = client.read(2)
            self.assertEqual(answer[:1], b"\x01")
            self.assertNotEqual(answer[1:], b"\x00")
            self.assertEqual(client.read_all(), b"")
        destination = by_name(PROJECT, self.origin.port)
        asked = [
            (b"\x05\x02\x00" + destination, 7),
            (b"\x05\x03\x00" + destination, 7),
            (b"\x05\x01\x00\x05" + destination[1:], 8),
            (b"\x05\x01\x00" + by_name(PROJECT, 22), 2),
            (b"\x05\x01\x00" + by_name("nowhere.log.aliyuncs.com", self.origin.port), 4),
        ]
        for command, code in asked:
            with self.client() as client:
                client.send(b"\x05\x01\x00")
                self.assertEqual(client.read(2), b"\x05\x00")
                client.send(command)
                reply = client.read_all()
                self.assertEqual((len(reply), reply[:3]), (10, bytes([5, code, 0])), command)
        self.assertEqual(self.origin.received, [])

    def test_byte_by_byte(self) -> None:
        """A handshake that comes in single bytes, and one that comes as a whole with early data, are the same."""
        destination = by_name(PROJECT, self.origin.port)
        messages = [b"\x05\x02\x00\x02", b"\x01\x05us@er\x03p:w", b"\x05\x01\x00" + destination]
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        with self.client("closed") as client:
            for byte in b"".join(messages) + request:
                client.send(bytes([byte]))
            self.assertEqual(client.read(14)[:6], b"\x05\x02\x01\x00\x05\x00")
            self.assertEqual(client.read_response().body, INVALID_METHOD)
        with self.client("closed") as client:
            client.send(b"".join(messages) + request)
            self.assertEqual(client.read(14)[:6], b"\x05\x02\x01\x00\x05\x00")
            self.assertEqual(client.read_response().body, INVALID_METHOD)

    def test_left_after_authentication(self) -> None:
        """An agent that cannot resolve the name itself leaves after authenticating; the record says what that means."""
        with self.client("closed") as client:
            client.send(b"\x05\x01\x02")
            client.read(2)
            client.send(b"\x01\x05us@er\x03p:w")
            self.assertEqual(client.read(2), b"\x01\x00")

        [record] = self.proxyd.records(1)
        self.assertEqual((record["closed_by"], record["protocol"]), ("client", "socks5"))
        self.assertIn("resolves names itself", record["detail"])


class FleetTests(ReplayTestCase):
    """Several servers behind one proxy."""

    def ship(self, source: str, how: Callable[[Client], int]) -> int:
        """Twenty log groups from one address."""
        with ExitStack() as stack:
            client = stack.enter_context(self.client(source=source))
            port = how(client)
            proxied = port == 0
            for number in range(20):
                group = a_group(lines=number + 1, source=source)
                request = agent_post(PROJECT, port or self.origin.port, group, proxied=proxied)
                response = self.post(client, request)
                self.assertEqual(response.status, 200)
        return 20

    def through_connect(self, client: Client) -> int:
        """A tunnel with TLS inside."""
        self.tunnel(client, PROJECT, self.origin.secure_port)
        client.secure(agent_tls(self.origin.certificate), PROJECT)
        return self.origin.secure_port

    def through_socks(self, client: Client) -> int:
        """A SOCKS5 tunnel."""
        self.socks(client, by_name(PROJECT, self.origin.port))
        return self.origin.port

    def test_three_servers(self) -> None:
        """Three servers ship at the same time, each by another door; everything arrives, and is recorded as theirs."""
        ways = {"127.0.0.2": lambda _: 0, "127.0.0.3": self.through_connect, "127.0.0.4": self.through_socks}
        with ThreadPoolExecutor(3) as pool:
            self.assertEqual(sum(pool.map(self.ship, ways, ways.values())), 60)

        for source in ways:
            groups = [group for group in self.service.groups if group.Source == source]
            self.assertEqual([len(group.Logs) for group in groups], list(range(1, 21)))
        records = self.proxyd.all_records()
        protocols = {record["client"]: record["protocol"] for record in records}
        self.assertEqual(protocols, dict(zip(ways, ("forward", "connect", "socks5"), strict=True)))
        self.assertEqual(len(records), 22)

    def test_http_and_https_at_once(self) -> None:
        """One server uses HTTP and HTTPS endpoints at the same time, through the same port."""
        ways = (lambda _: 0, self.through_connect) * 2
        with ThreadPoolExecutor(4) as pool:
            self.assertEqual(sum(pool.map(self.ship, ["127.0.0.5"] * 4, ways)), 80)


class TLSTests(ReplayTestCase):
    """TLS to the proxy."""

    def test_wrong_tls(self) -> None:
        """TLS 1.1 is refused; TLS 1.3, ALPN lists with and without http/1.1, and a server name are all fine."""
        old = agent_tls(self.certificate)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with connected(self.ports["open"]) as client, self.assertRaises(ssl.SSLError):
            client.secure(old)
        modern = "http/1.1"
        for protocols, chosen in (([], None), ([modern], modern), (["h2", modern], modern), (["h2"], None)):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(self.certificate)
            if protocols:
                context.set_alpn_protocols(protocols)
            with connected(self.ports["open"]) as client:
                agreed = client.secure(context)
                self.assertEqual((agreed.version(), agreed.selected_alpn_protocol()), ("TLSv1.3", chosen))
                url = b"http://%b:%d/" % (PROJECT.encode(), self.origin.port)
                self.assertEqual(client.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % url).body, INVALID_METHOD)

    def test_rsa(self) -> None:
        """An RSA certificate serves the oldest agents."""
        self.proxyd.stop()
        self.certificate.unlink()
        (self.folder / "proxyd-key.pem").unlink()
        self.certificate = self.make_certificate(rsa=True)
        self.proxyd = self.start_proxyd(self.configuration(), self.ports)

        with self.client(tls=True) as client:
            url = b"http://%b:%d/" % (PROJECT.encode(), self.origin.port)
            self.assertEqual(client.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % url).body, INVALID_METHOD)
