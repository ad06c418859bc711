"""Tests for ``proxyd.frontends.arrival``: from a connection to its door."""

from __future__ import annotations

import datetime
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxyd.certificates import SelfSigned
from proxyd.net.tls_certificate import ServerCertificate
from proxyd.policy.rules import Rule
from proxyd.request import Door
from proxyd.settings import ClientCertificate, TLSFiles
from tests.doors import GET, GOT, OK, SAID_OK, DoorCase, Memory, listener
from tests.test_connect_door import CONNECT as HTTP_CONNECT
from tests.test_connect_door import OPEN as HTTP_OPEN
from tests.test_http import answers, status
from tests.test_socks5_door import CONNECT, FREE, OPEN

HANDSHAKE_FAILURE = b"\x15\x03\x01\x00\x02\x02\x28"
HELLO = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
PROXY = b"PROXY TCP4 198.51.100.9 192.0.2.1 4321 8080\r\n"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


class DetectTests(DoorCase):
    """One port for everything, told apart by the first byte."""

    listener = listener(detect=True)

    def test_http(self):
        """A letter begins HTTP."""
        for request in (GET, GET.replace(b"GET", b"get")):
            client = self.connect()
            client.trickles(request)
            self.assertIn(b"\r\nHost: origin.example\r\n", self.origin.heard)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
        client = self.connect()
        client.says(HTTP_CONNECT)
        self.assertEqual(client.heard, HTTP_OPEN)
        client.resets()

    def test_socks(self):
        """A five begins SOCKS5."""
        for trickle in (False, True):
            client = self.connect()
            (client.trickles if trickle else client.says)(FREE + CONNECT + b"ping")
            self.assertEqual(client.heard, b"\x05\x00" + OPEN)
            self.assertEqual(self.origin.heard, b"ping")
            client.resets()

    def test_tls(self):
        """Without a certificate TLS is refused in its own language."""
        client = self.connect()
        client.says(HELLO)
        self.assertEqual(client.heard, HANDSHAKE_FAILURE)
        self.assertTrue(client.said_fin)
        self.assertEqual(
            self.outcome("protocol", "method", "destination", "error", "decision"),
            [("", "", "", "tls_protocol_error", None)],
        )

    def test_nothing_known(self):
        """Anything else is closed on, without a word, but with a record."""
        for first in (b"\0", b"\x04", b" ", b"{", b"\xff", b"(", b"\x80"):
            client = self.connect()
            client.says(first + b"hello")
            self.assertEqual(client.heard, b"", first)
            self.assertTrue(client.said_fin, first)
        self.assertEqual(
            {(record.protocol, record.error, record.bytes_from_client) for record in self.records},
            {("", "http_request_error", 6)},
        )

    def test_came_and_went(self):
        """A client that says nothing is no matter of record: it closes, resets, or is cut after a while."""
        client = self.connect()
        client.closes()
        self.drained(client)
        client = self.connect()
        client.resets()
        client = self.connect()
        self.turn(29)
        self.assertFalse(client.closed)
        self.turn(2)
        self.drained(client)
        self.assertEqual(self.records, [])

    def test_one_deadline(self):
        """The time until the first byte counts towards the head, and towards the SOCKS handshake."""
        for first, answer in ((b"GET", 408), (b"\x05", None)):
            client = self.connect()
            self.turn(20)
            client.says(first)
            self.turn(9)
            self.assertFalse(client.closed)
            self.turn(2)
            if answer:
                self.assertEqual(status(client.heard), answer)
            self.assertTrue(client.said_fin)

    def test_half_closed(self):
        """A client that says everything and FIN is answered."""
        client = self.connect()
        client.says(GET)
        client.closes()
        self.origin.says(OK)
        self.assertEqual(answers(client.heard), [200])
        self.drained(client)


class PlainTests(DoorCase):
    """Ports for one protocol need no first byte."""

    def test_http(self):
        """A port for HTTP is HTTP from the start: its deadline runs, and garbage is answered in HTTP."""
        client = self.connect()
        client.says(b"\x05\x01\x00")
        self.assertEqual(status(client.heard), 400)

    def test_socks(self):
        """A port for SOCKS5 is SOCKS5 from the start."""
        self.listener = listener(Door.SOCKS5)
        client = self.connect()
        client.says(FREE)
        self.assertEqual(client.heard, b"\x05\x00")
        client.resets()


class ProxyProtocolTests(DoorCase):
    """Behind a balancer that tells who is calling."""

    listener = listener(Door.FORWARD, proxy_protocol=True)
    rules = (Rule("one", True, ("*",), clients=(), special_addresses=True),)

    def test_address(self):
        """The client is who the balancer says, however the header arrives."""
        for trickle in (False, True):
            client = self.connect()
            (client.trickles if trickle else client.says)(PROXY + GET)
            self.assertEqual(self.origin.heard, GOT)
            self.origin.says(OK)
            self.assertEqual(client.heard, SAID_OK)
        self.assertEqual(self.outcome("client", "client_port"), [("198.51.100.9", 4321)] * 2)

    def test_local(self):
        """A connection of the balancer's own has its own address."""
        client = self.connect()
        client.says(LOCAL)
        client.says(GET)
        self.origin.says(OK)
        self.assertEqual(self.outcome("client", "client_port"), [("192.0.2.9", 50000)])

    def test_detect(self):
        """Behind the header there is still a first byte to look at."""
        self.listener = listener(detect=True, proxy_protocol=True)
        for pieces in ((PROXY + FREE,), (PROXY, FREE)):
            client = self.connect()
            client.says(*pieces)
            self.assertEqual(client.heard, b"\x05\x00")
            client.resets()

    def test_missing(self):
        """Who connects without the header is not listened to."""
        client = self.connect()
        client.says(GET)
        self.assertEqual(client.heard, b"")
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "client"), [("http_request_error", "192.0.2.9")])
        self.assertEqual(self.dialer.dialings, [])

    def test_incomplete(self):
        """Nor who does not complete it in time."""
        client = self.connect()
        client.says(PROXY[:10])
        self.turn(31)
        self.drained(client)
        self.assertEqual(self.records, [])


class TLSPeer:
    """The other side of a TLS connection in memory."""

    def __init__(self, client: Memory, context: ssl.SSLContext) -> None:
        self.client = client
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        self.ended = False
        self._step(self._tls.do_handshake)
        self._step(self._tls.do_handshake)

    def _step(self, step: Any, *args: Any) -> Any:
        result = None
        try:
            result = step(*args)
        except ssl.SSLWantReadError:
            pass
        records = self._out.read()
        if records:
            self.client.says(records)
        self._in.write(self.client.heard)
        return result

    def says(self, data: bytes) -> None:
        """Send through TLS."""
        self._step(self._tls.write, data)

    @property
    def heard(self) -> bytes:
        """What came through TLS."""
        self._in.write(self.client.heard)
        pieces = []
        try:
            while piece := self._tls.read(65536):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)


def user_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a certificate that says who a client is, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    lifetime = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    certificate, private_key = folder / "user.pem", folder / "user.key"
    certificate.write_bytes(lifetime.sign(key, SHA256()).public_bytes(Encoding.PEM))
    private_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, private_key


class TLSTests(DoorCase):
    """TLS to the proxy, first thing or by the first byte."""

    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.mktemp())
        folder.mkdir()
        self.files = SelfSigned.make(["192.0.2.1"], datetime.datetime.now(datetime.UTC)).write(folder)
        self.user = user_certificate(folder, "alice")

    def certificate(self, wish: ClientCertificate = ClientCertificate.NONE) -> ServerCertificate:
        """What the listener proves itself with."""
        ca = None if wish is ClientCertificate.NONE else self.user[0]
        return ServerCertificate(self.clock, TLSFiles(*self.files, None, ca, wish))

    def peer(self, *, detect: bool = True, wish: ClientCertificate = ClientCertificate.NONE) -> TLSPeer:
        """A client that speaks TLS."""
        self.listener = listener(detect=detect, tls_first=not detect, tls=object())
        context = ssl.create_default_context(cafile=str(self.files[0]))
        context.check_hostname = False
        if wish is not ClientCertificate.NONE:
            context.load_cert_chain(*map(str, self.user))
        return TLSPeer(self.connect(tls=self.certificate(wish)), context)

    def test_first(self):
        """A listener with an ssl: endpoint speaks TLS from the first byte."""
        self.listener = listener(Door.FORWARD, tls_first=True, tls=object())
        peer = self.peer(detect=False)
        peer.says(GET + GET)
        self.assertEqual(self.origin.heard, GOT)
        self.origin.says(OK)
        self.assertEqual(peer.heard, SAID_OK)
        self.origin.says(OK)
        self.assertEqual(peer.heard, SAID_OK)

    def test_all_doors(self):
        """All doors work inside."""
        for request, answer in ((GET, b""), (HTTP_CONNECT, HTTP_OPEN), (FREE + CONNECT, b"\x05\x00" + OPEN)):
            peer = self.peer()
            peer.says(request)
            self.assertEqual(peer.heard, answer)
            peer.client.resets()
        self.assertEqual(self.outcome("protocol"), [("forward",), ("connect",), ("socks5",)])

    def test_half_closed(self):
        """A client that says close_notify behind its request gets its answer, and ours behind that."""
        peer = self.peer()
        peer.says(GET + GET)
        peer._step(peer._tls.unwrap)
        self.origin.says(OK)
        self.turn()
        self.origin.says(OK)
        self.assertEqual(answers(peer.heard), [200, 200])
        self.assertTrue(peer.ended)
        self.drained(peer.client)

    def test_slow_reader(self):
        """Back-pressure reaches the origin through TLS."""
        peer = self.peer()
        peer.says(GET)
        peer.client.stalled = True
        self.origin.says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        self.assertFalse(self.origin.reading)
        peer.client.takes()
        self.assertTrue(self.origin.reading)
        peer.client.resets()

    def test_subject(self):
        """A client's certificate says who it is."""
        for wish in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
            peer = self.peer(wish=wish)
            peer.says(GET)
            self.origin.says(OK)
            self.assertEqual(peer.heard, SAID_OK)
        self.assertEqual(self.outcome("user", "proof"), [("alice", "certificate")] * 2)

    def test_tls_in_tls(self):
        """There is no second layer of TLS to us."""
        peer = self.peer()
        peer.says(HELLO)
        self.assertEqual(peer.heard, b"")
        self.assertTrue(peer.ended)
        self.assertEqual(self.outcome("error"), [("http_request_error",)])

    def test_failed(self):
        """A handshake that cannot be done is recorded, and the connection closes with an alert."""
        self.listener = listener(detect=True, tls=object())
        client = self.connect(tls=self.certificate())
        client.says(HELLO)
        self.assertEqual(client.heard[:1], b"\x15")
        self.assertTrue(client.said_fin)
        self.assertEqual(self.outcome("error", "protocol"), [("tls_protocol_error", "")])

    def test_plain_http(self):
        """Plain HTTP on a port that begins with TLS is told so."""
        self.listener = listener(Door.FORWARD, tls_first=True, tls=object())
        client = self.connect(tls=self.certificate())
        client.says(GET)
        self.assertIn(b"this port speaks TLS", client.heard)
        self.assertEqual(self.outcome("error"), [("tls_protocol_error",)])

    def test_left(self):
        """A client that leaves in the handshake leaves no record, whichever way."""
        self.listener = listener(Door.FORWARD, tls_first=True, tls=object())
        for leave in (Memory.closes, Memory.resets):
            client = self.connect(tls=self.certificate())
            client.says(b"\x16\x03")
            leave(client)
            self.drained(client)
        client = self.connect(tls=self.certificate())
        client.says(b"\x16\x03")
        self.turn(31)
        self.drained(client)
        self.assertEqual(self.records, [])

    def test_proxy_protocol(self):
        """The balancer's header comes before TLS, in the clear."""
        self.listener = listener(Door.FORWARD, tls_first=True, proxy_protocol=True, tls=object())
        client = self.connect(tls=self.certificate())
        client.says(PROXY)
        context = ssl.create_default_context(cafile=str(self.files[0]))
        context.check_hostname = False
        peer = TLSPeer(client, context)
        peer.says(GET)
        self.origin.says(OK)
        self.assertEqual(peer.heard, SAID_OK)
        self.assertEqual(self.record.client, str(ip_address("198.51.100.9")))
