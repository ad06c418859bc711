"""Tests for proxyd.net.tls: a client in memory, whose records the test carries."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from proxyd.certificates import SelfSigned
from proxyd.net.connection import Connection
from proxyd.net.tls import TLSLayer
from proxyd.net.tls_certificate import make_context
from proxyd.settings import ClientCertificate, TLSFiles
from proxyd.testing.tls import ClientSession

NOW = datetime.datetime.now(datetime.UTC)

VERSIONS = (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION)

NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 69\r\n"
    b"Connection: close\r\n"
    b"\r\n"
    b"proxyd: this port speaks TLS; the proxy URL must begin with https://\n"
)

MEGABYTE = bytes(range(256)) * 4096


class Below(StringTransport):
    """The transport below a TLS layer."""

    reading = True
    aborted = False

    def pauseProducing(self) -> None:
        """Read no more."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read on."""
        self.reading = True

    def abortConnection(self) -> None:
        """Reset."""
        self.aborted = True


class Inside:
    """The receiver inside TLS: keeps what it hears, and does what the test wants meanwhile."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.meanwhile: Callable[[], object] = lambda: None

    @property
    def data(self) -> bytes:
        """The bytes."""
        return b"".join(what for what in self.heard if isinstance(what, bytes))

    def received(self, data: bytes) -> None:
        """Bytes came."""
        self.heard.append(data)
        self.meanwhile()

    def read_closed(self) -> None:
        """No more will."""
        self.heard.append("read closed")

    def lost(self, reason: Failure) -> None:
        """The end."""
        self.heard.append(reason.type)


class Meeting:
    """A client and our layer, with what happened between them."""

    def __init__(self, server: Any, client: SSL.Context | None = None) -> None:
        self.client = ClientSession(client)
        self.below = Below(peerAddress=IPv4Address("TCP", "192.0.2.9", 4711))
        self.lower = Connection()
        self.lower.makeConnection(self.below)
        self.inside = Inside()
        self.outcome: list[str] = []
        self.at_once: Callable[[], object] = lambda: None
        """Done as soon as the session is established."""
        self.heard = b""
        """What the client has heard."""
        self.layer = TLSLayer(
            self.lower, server, self._established, self.outcome.append, lambda: self.outcome.append("left")
        )

    def _established(self, layer: TLSLayer) -> None:
        assert layer is self.layer
        self.outcome.append("established")
        layer.inner.receiver = self.inside
        self.at_once()

    def bring(self, records: bytes) -> None:
        """Carry the client's records, and carry back until nobody has anything to say."""
        while records:
            self.lower.dataReceived(records)
            records = self.carry_back()

    def carry_back(self) -> bytes:
        """Carry our records to the client; what it has to say to them."""
        records = self.below.value()
        self.below.clear()
        if records:
            self.heard += self.client.decrypt(records)
        return self.client.outgoing()

    def shake_hands(self) -> Meeting:
        """Do the whole handshake."""
        self.bring(self.client.start())
        return self

    def say(self, data: bytes) -> None:
        """Send bytes from the client."""
        self.bring(self.client.encrypt(data))

    def answer(self, data: bytes) -> None:
        """Send bytes to the client."""
        self.layer.write(data)
        self.bring(self.carry_back())


class TLSCase(SynchronousTestCase):
    """Tests with a certificate."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.files = SelfSigned.make(["192.0.2.1"], NOW).write(self.folder)

    def server(self, ca: Path | None = None, wish: ClientCertificate = ClientCertificate.NONE) -> Any:
        """What our side has."""
        return make_context(TLSFiles(*self.files, None, ca, wish))

    def client(self, version: int | None = None) -> SSL.Context:
        """What a client has that trusts our certificate, for any TLS version or just one."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.load_verify_locations(str(self.files[0]))
        context.set_verify(SSL.VERIFY_PEER)
        if version is not None:
            context.set_min_proto_version(version)
            context.set_max_proto_version(version)
        return context

    def contexts(self) -> Iterator[ssl.SSLContext]:
        """A client of the standard library for each version."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=str(self.files[0]))
            context.check_hostname = False
            context.minimum_version = context.maximum_version = version
            yield context

    def meet(self, version: int | None = None) -> Meeting:
        """An established session."""
        return Meeting(self.server(), self.client(version)).shake_hands()


class HandshakeTests(TLSCase):
    """How a session begins, or does not."""

    def test_versions(self):
        """TLS 1.2 and 1.3 are spoken."""
        for version, name in zip(VERSIONS, ("TLSv1.2", "TLSv1.3"), strict=True):
            meeting = self.meet(version)
            self.assertEqual(meeting.outcome, ["established"])
            self.assertEqual(meeting.client.connection.get_protocol_version_name(), name)
            meeting.say(b"question")
            meeting.answer(b"answer")
            self.assertEqual((meeting.inside.heard, meeting.heard), ([b"question"], b"answer"))

    def test_old_versions(self):
        """TLS 1.1 is refused with an alert, and the reason is told."""
        context = self.client(SSL.TLS1_1_VERSION)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        meeting = Meeting(self.server(), context)
        hello = meeting.client.start()
        if not hello:
            self.skipTest("the client cannot speak TLS 1.1 either")
        meeting.lower.dataReceived(hello)
        self.assertEqual(meeting.outcome, ["unsupported protocol"])
        self.assertEqual(meeting.below.value(), b"\x15\x03\x02\x00\x02\x02\x46")  # alert, fatal, protocol_version

    def test_certificate_for_an_address(self):
        """A client that names no server gets the certificate, which is for an address."""
        meeting = self.meet()
        certificate = meeting.client.connection.get_peer_certificate(as_cryptography=True)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual([str(name) for name in names.get_values_for_type(x509.IPAddress)], ["192.0.2.1"])
        self.assertEqual(meeting.client.connection.get_servername(), None)

    def test_any_server_name(self):
        """A client that names a server, whatever name, gets the same."""
        meeting = Meeting(self.server(), self.client())
        meeting.client.connection.set_tlsext_host_name(b"proxy.example")
        meeting.shake_hands()
        self.assertEqual(meeting.outcome, ["established"])

    def test_byte_by_byte(self):
        """Records may come in pieces of any size, in the handshake and after it."""
        for version in VERSIONS:
            meeting = Meeting(self.server(), self.client(version))
            records = meeting.client.start()
            while records:
                for byte in records:
                    meeting.lower.dataReceived(bytes([byte]))
                records = meeting.carry_back()
            self.assertEqual(meeting.outcome, ["established"])
            for byte in meeting.client.encrypt(b"question"):
                meeting.lower.dataReceived(bytes([byte]))
            self.assertEqual(meeting.inside.data, b"question")

    def test_request_with_the_last_flight(self):
        """What the client sends together with the end of its handshake is handed on, behind the news of it."""
        meeting = Meeting(self.server(), self.client())
        meeting.client.encrypt(b"question")
        meeting.shake_hands()
        self.assertEqual((meeting.outcome, meeting.inside.heard), (["established"], [b"question"]))

    def test_request_with_the_last_flight_and_no_wish(self):
        """If the receiver has paused at once, it waits until the receiver wants it."""
        meeting = Meeting(self.server(), self.client())
        meeting.at_once = meeting.layer.pauseProducing
        meeting.client.encrypt(b"question")
        meeting.shake_hands()
        self.assertEqual((meeting.inside.heard, meeting.below.reading), ([], False))
        meeting.say(b" and more")
        self.assertEqual(meeting.inside.heard, [])
        meeting.layer.resumeProducing()
        self.assertEqual((meeting.inside.data, meeting.below.reading), (b"question and more", True))

    def test_garbage(self):
        """Garbage that begins like TLS is answered with an alert."""
        meeting = Meeting(self.server())
        meeting.lower.dataReceived(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
        self.assertEqual(len(meeting.outcome), 1)
        self.assertEqual(meeting.below.value()[:1], b"\x15")

    def test_other_garbage(self):
        """Garbage that does not is not answered at all."""
        for garbage in (b"\x05\x01\x00", b"\x80\x2e\x01\x03\x01", b"\0" * 1000, b"\x15\x03\x03\x00\x02\x02\x28"):
            meeting = Meeting(self.server())
            meeting.lower.dataReceived(garbage)
            self.assertEqual((meeting.outcome, meeting.below.value()), (["the client does not speak TLS"], b""))

    def test_plain_http(self):
        """Who speaks plain HTTP is told in plain HTTP that this port wants TLS, whatever the method."""
        for start in (b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"DELETE /x HTTP/1.0\r\n", b"P"):
            meeting = Meeting(self.server())
            meeting.lower.dataReceived(start)
            self.assertEqual((meeting.outcome, meeting.below.value()), (["the client does not speak TLS"], NOT_TLS))

    def test_plain_http_after_tls(self):
        """Text in the middle of a handshake is no HTTP, and is not answered as such."""
        meeting = Meeting(self.server(), self.client())
        meeting.lower.dataReceived(meeting.client.start())
        meeting.below.clear()
        meeting.lower.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual(len(meeting.outcome), 1)
        self.assertNotIn(b"HTTP", meeting.below.value())

    def test_nothing_after_a_failure(self):
        """After a failed handshake nothing more is said or told, unless the owner takes care of it."""
        meeting = Meeting(self.server())
        meeting.lower.dataReceived(b"GET")
        meeting.below.clear()
        meeting.lower.dataReceived(b" / HTTP/1.1\r\n\r\n")
        meeting.lower.readConnectionLost()
        meeting.lower.connectionLost(Failure(ConnectionDone()))
        self.assertEqual((len(meeting.outcome), meeting.below.value()), (1, b""))

    def test_client_refuses(self):
        """A client that does not trust our certificate says so, and that is the reason."""
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_PEER)
        for version in VERSIONS:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(version)
            context.set_verify(SSL.VERIFY_PEER)
            meeting = Meeting(self.server(), context).shake_hands()
            self.assertEqual(meeting.outcome, ["tlsv1 alert unknown ca"])

    def test_no_common_cipher(self):
        """Without a cipher with forward secrecy there is no session."""
        context = self.client(SSL.TLS1_2_VERSION)
        context.set_cipher_list(b"AES128-GCM-SHA256:AES128-SHA")
        meeting = Meeting(self.server(), context).shake_hands()
        self.assertEqual(meeting.outcome, ["no shared cipher"])

    def test_left(self):
        """A client that goes before the end of the handshake has left."""
        meeting = Meeting(self.server(), self.client())
        meeting.lower.dataReceived(meeting.client.start()[:50])
        meeting.lower.readConnectionLost()
        self.assertTrue(meeting.below.disconnecting)
        self.assertEqual(meeting.outcome, [])
        meeting.lower.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(meeting.outcome, ["left"])

    def test_left_without_a_word(self):
        """So has one that never said anything."""
        meeting = Meeting(self.server())
        meeting.lower.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(meeting.outcome, ["left"])


class ApplicationProtocolTests(TLSCase):
    """ALPN (RFC 7301)."""

    def agreed(self, *offered: bytes) -> bytes:
        """What is agreed on when the client offers these."""
        context = self.client()
        context.set_alpn_protos(list(offered))
        meeting = Meeting(self.server(), context).shake_hands()
        self.assertEqual(meeting.outcome, ["established"])
        return meeting.client.connection.get_alpn_proto_negotiated()

    def test_http(self):
        """Of what a client offers, http/1.1 is chosen."""
        self.assertEqual(self.agreed(b"http/1.1"), b"http/1.1")
        self.assertEqual(self.agreed(b"h2", b"http/1.1"), b"http/1.1")

    def test_others(self):
        """Others are not chosen, and do no harm."""
        self.assertEqual(self.agreed(b"h2"), b"")
        self.assertEqual(self.agreed(b"acme-tls/1", b"spdy/2"), b"")

    def test_none(self):
        """Nor does it to offer none."""
        self.assertEqual(self.meet().client.connection.get_alpn_proto_negotiated(), b"")


class ReceivingTests(TLSCase):
    """What the client sends."""

    def test_many_records(self):
        """Several records that come together are handed on as one piece."""
        meeting = self.meet()
        records = b"".join(meeting.client.encrypt(piece) for piece in (b"one ", b"two ", b"three"))
        meeting.lower.dataReceived(records)
        self.assertEqual(meeting.inside.heard, [b"one two three"])

    def test_bulk(self):
        """Megabytes arrive as they were sent, whatever the reads."""
        for version in VERSIONS:
            meeting = self.meet(version)
            records = meeting.client.encrypt(MEGABYTE)
            for start in range(0, len(records), 50_001):
                meeting.lower.dataReceived(records[start : start + 50_001])
            self.assertTrue(meeting.inside.data == MEGABYTE)

    def test_incomplete_record(self):
        """Of a record that is not complete nothing is handed on, not even emptiness."""
        meeting = self.meet()
        records = meeting.client.encrypt(b"question")
        meeting.lower.dataReceived(records[:-1])
        self.assertEqual(meeting.inside.heard, [])
        meeting.lower.dataReceived(records[-1:])
        self.assertEqual(meeting.inside.heard, [b"question"])

    def test_pause(self):
        """A receiver that pauses stops the reading of the socket; resuming goes on."""
        meeting = self.meet()
        meeting.layer.pauseProducing()
        self.assertFalse(meeting.below.reading)
        meeting.layer.resumeProducing()
        self.assertTrue(meeting.below.reading)
        meeting.say(b"question")
        self.assertEqual(meeting.inside.heard, [b"question"])

    def test_pause_and_resume_meanwhile(self):
        """A receiver may do both while it is given bytes; none is lost or doubled."""
        meeting = self.meet()

        def pause_and_resume() -> None:
            meeting.layer.pauseProducing()
            meeting.layer.resumeProducing()

        meeting.inside.meanwhile = pause_and_resume
        meeting.bring(meeting.client.encrypt(b"question") + meeting.client.close())
        self.assertEqual(meeting.inside.heard, [b"question", "read closed"])

    def test_altered_record(self):
        """A record that was altered on its way resets the connection; what came before it is handed on."""
        for version in VERSIONS:
            meeting = self.meet(version)
            sound, altered = meeting.client.encrypt(b"question"), meeting.client.encrypt(b"altered")
            meeting.lower.dataReceived(sound + altered[:-1] + bytes([altered[-1] ^ 1]))
            self.assertEqual((meeting.inside.heard, meeting.below.aborted), ([b"question"], True))
            self.assertIn(meeting.below.value()[:1], (b"\x15", b"\x17"))  # the alert

    def test_write_after_altered_record(self):
        """What is written to such a session cannot be sent."""
        meeting = self.meet()
        meeting.lower.dataReceived(b"\x17\x03\x03\x00\x20" + bytes(32))
        meeting.below.clear()
        meeting.below.aborted = False
        meeting.layer.write(b"answer")
        meeting.layer.loseConnection()
        self.assertEqual((meeting.below.value(), meeting.below.aborted), (b"", True))

    def test_renegotiation(self):
        """A TLS 1.2 client that wants to shake hands again is refused, and the session goes on."""
        meeting = self.meet(SSL.TLS1_2_VERSION)
        connection = meeting.client.connection
        try:
            connection.renegotiate()
            connection.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            self.skipTest("the client does not renegotiate")
        meeting.lower.dataReceived(meeting.client.outgoing())
        self.assertEqual(meeting.below.value()[:3], b"\x15\x03\x03")  # an alert (no_renegotiation, encrypted)
        self.assertEqual(len(meeting.below.value()), 5 + 8 + 2 + 16)
        self.assertEqual((meeting.inside.heard, meeting.below.aborted), ([], False))
        meeting.layer.write(b"answer")
        self.assertFalse(meeting.below.aborted)


class ClosingTests(TLSCase):
    """close_notify and FIN, in both directions."""

    def test_client_closes(self):
        """The client's close_notify is told as a half-close, once, behind its bytes; we may still answer."""
        for version in VERSIONS:
            meeting = self.meet(version)
            meeting.bring(meeting.client.encrypt(b"question") + meeting.client.close())
            meeting.lower.readConnectionLost()
            self.assertEqual(meeting.inside.heard, [b"question", "read closed"])
            meeting.layer.write(b"answer")
            self.assertNotEqual(meeting.below.value(), b"")
            self.assertFalse(meeting.below.disconnecting)

    def test_fin_alone(self):
        """A FIN without close_notify is a half-close too; agents do not always say it."""
        meeting = self.meet()
        meeting.say(b"question")
        meeting.lower.readConnectionLost()
        self.assertEqual(meeting.inside.heard, [b"question", "read closed"])
        meeting.answer(b"answer")
        self.assertEqual(meeting.heard, b"answer")

    def test_bytes_behind_the_end(self):
        """What follows the client's close_notify is ignored."""
        meeting = self.meet()
        meeting.bring(meeting.client.close())
        meeting.lower.dataReceived(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertEqual((meeting.inside.heard, meeting.below.aborted), (["read closed"], False))

    def test_end_is_told_again(self):
        """A receiver that comes later hears of the end when it resumes reading."""
        meeting = self.meet()
        meeting.bring(meeting.client.close())
        later = Inside()
        meeting.layer.inner.receiver = later
        meeting.layer.resumeProducing()
        self.assertEqual((meeting.inside.heard, later.heard), (["read closed"], ["read closed"]))

    def test_end_with_the_last_flight(self):
        """A client that says everything with the end of its handshake, and goes, is heard."""
        meeting = Meeting(self.server(), self.client())
        meeting.client.encrypt(b"question")
        hello = meeting.client.start()
        meeting.lower.dataReceived(hello)
        last = meeting.carry_back()
        meeting.bring(last + meeting.client.close())
        self.assertEqual(meeting.inside.heard, [b"question", "read closed"])

    def test_we_finish(self):
        """Our half-close is a close_notify behind what was written; the client may still send."""
        for version in VERSIONS:
            meeting = self.meet(version)
            meeting.layer.write(b"answer")
            meeting.layer.loseWriteConnection()
            meeting.layer.loseWriteConnection()
            meeting.layer.write(b"too late")
            meeting.carry_back()
            self.assertEqual((meeting.heard, meeting.client.said_close), (b"answer", True))
            self.assertFalse(meeting.below.disconnecting)
            meeting.say(b"tail")
            meeting.bring(meeting.client.close())
            self.assertEqual(meeting.inside.heard, [b"tail", "read closed"])

    def test_we_close(self):
        """Our close says close_notify and closes the connection below once all is sent."""
        meeting = self.meet()
        meeting.layer.write(b"answer")
        meeting.layer.loseConnection()
        meeting.carry_back()
        self.assertEqual((meeting.heard, meeting.client.said_close), (b"answer", True))
        self.assertTrue(meeting.below.disconnecting)

    def test_we_close_after_the_client(self):
        """So it does when the client has closed before."""
        meeting = self.meet()
        meeting.bring(meeting.client.close())
        meeting.layer.loseConnection()
        meeting.carry_back()
        self.assertTrue(meeting.client.said_close)

    def test_abort(self):
        """An abort is the connection's."""
        meeting = self.meet()
        meeting.layer.abortConnection()
        self.assertTrue(meeting.below.aborted)
        self.assertEqual(meeting.below.value(), b"")

    def test_lost(self):
        """When the connection is lost, the receiver inside hears that last, whatever is tried then."""
        meeting = self.meet()
        meeting.lower.connectionLost(Failure(ConnectionLost()))
        meeting.layer.resumeProducing()
        meeting.layer.inner.dataReceived(b"late")
        meeting.layer.inner.readConnectionLost()
        self.assertEqual(meeting.inside.heard, [ConnectionLost])

    def test_lost_meanwhile(self):
        """So it is when the receiver's own doing loses it, with more in the same read."""
        meeting = self.meet()
        meeting.inside.meanwhile = lambda: meeting.lower.connectionLost(Failure(ConnectionDone()))
        meeting.bring(meeting.client.encrypt(b"question") + meeting.client.close())
        self.assertEqual(meeting.inside.heard, [b"question", ConnectionDone])


class SendingTests(TLSCase):
    """What we send, and the transport's other sides."""

    def test_interfaces(self):
        """To what is inside, the layer is a consumer and a push producer."""
        for interface in (IConsumer, IPushProducer):
            for name in interface.names():
                if name != "stopProducing":
                    self.assertTrue(callable(getattr(self.meet().layer, name)))

    def test_large_write(self):
        """A large write leaves at once, as a whole."""
        for version in VERSIONS:
            meeting = self.meet(version)
            meeting.layer.write(MEGABYTE)
            self.assertGreater(len(meeting.below.value()), len(MEGABYTE))
            meeting.carry_back()
            self.assertTrue(meeting.heard == MEGABYTE)

    def test_one_write_below(self):
        """However many records it takes, the connection below is written to once."""
        meeting = self.meet()
        written: list[bytes] = []
        meeting.below.write = written.append
        meeting.layer.write(MEGABYTE[:200_000])
        meeting.layer.write(b"")
        self.assertEqual(len(written), 1)

    def test_back_pressure(self):
        """Who produces for the client is throttled by the socket."""
        meeting = self.meet()
        producer = object()
        meeting.layer.registerProducer(producer, True)
        self.assertEqual((meeting.below.producer, meeting.below.streaming), (producer, True))
        meeting.layer.unregisterProducer()
        self.assertEqual(meeting.below.producer, None)

    def test_addresses(self):
        """The addresses are the connection's."""
        meeting = self.meet()
        self.assertEqual(meeting.layer.getPeer(), IPv4Address("TCP", "192.0.2.9", 4711))
        self.assertEqual(meeting.layer.getHost(), meeting.below.getHost())


class Visit:
    """A session of a client of the standard library, which knows whether it was resumed."""

    def __init__(self, server: Any, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        self._records, self._answers = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(self._answers, self._records, session=session)
        self.below = StringTransport()
        lower = Connection()
        lower.makeConnection(self.below)
        self.inside = Inside()
        self.layer = TLSLayer(lower, server, self._established, lambda reason: None, lambda: None)
        for step in (self.client.do_handshake, self.client.do_handshake, lambda: self.client.write(b"question")):
            self._do(step)
            lower.dataReceived(self._records.read())
            self._answers.write(self.below.value())
            self.below.clear()
        self._do(self.client.read)  # takes the tickets of TLS 1.3

    def _established(self, layer: TLSLayer) -> None:
        layer.inner.receiver = self.inside

    @staticmethod
    def _do(step: Callable[[], object]) -> None:
        try:
            step()
        except ssl.SSLWantReadError:
            pass


class ResumptionTests(TLSCase):
    """Session tickets: a client that comes again need not shake hands in full."""

    def test_resumed(self):
        """A second connection resumes the first one's session."""
        server = self.server()
        for context in self.contexts():
            first = Visit(server, context)
            second = Visit(server, context, first.client.session)
            self.assertEqual((first.client.session_reused, second.client.session_reused), (False, True))
            self.assertEqual((first.inside.data, second.inside.data), (b"question", b"question"))

    def test_another_server(self):
        """A ticket of another process, or of the time before a new certificate, leads to a full handshake."""
        for context in self.contexts():
            session = Visit(self.server(), context).client.session
            second = Visit(self.server(), context, session)
            self.assertEqual((second.client.session_reused, second.inside.data), (False, b"question"))


def signed(name: x509.Name, issuer: x509.Name, public_key: Any, key: Any, *, ca: bool) -> x509.Certificate:
    """A certificate."""
    builder = x509.CertificateBuilder(issuer, name, public_key, x509.random_serial_number())
    builder = builder.not_valid_before(NOW - datetime.timedelta(1)).not_valid_after(NOW + datetime.timedelta(1))
    return builder.add_extension(x509.BasicConstraints(ca, None), critical=True).sign(key, SHA256())


def named(**parts: str) -> x509.Name:
    """A subject's name."""
    oids = {"common": NameOID.COMMON_NAME, "organisation": NameOID.ORGANIZATION_NAME}
    return x509.Name([x509.NameAttribute(oids[part], value) for part, value in parts.items()])


class ClientCertificateTests(TLSCase):
    """Who the client says it is, signed by an authority that we trust."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = ec.generate_private_key(ec.SECP256R1())
        self.issuer = named(common="Our authority")
        certificate = signed(self.issuer, self.issuer, self.authority.public_key(), self.authority, ca=True)
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(Encoding.PEM))

    def holder(self, subject: x509.Name, version: int | None = None, key: Any = None) -> SSL.Context:
        """A client with a certificate, signed by the authority unless another key is given."""
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = signed(subject, self.issuer, own.public_key(), key or self.authority, ca=False)
        (self.folder / "user.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (self.folder / "user.key").write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        context = self.client(version)
        context.use_certificate_file(str(self.folder / "user.pem"))
        context.use_privatekey_file(str(self.folder / "user.key"))
        return context

    def test_not_asked(self):
        """Where certificates are not asked for, none is known."""
        meeting = Meeting(self.server(), self.holder(named(common="alice"))).shake_hands()
        self.assertEqual(meeting.layer.subject(), None)

    def test_common_name(self):
        """The common name of a verified certificate is who the client is."""
        for wish in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
            for version in VERSIONS:
                client = self.holder(named(organisation="Example", common="alice"), version)
                meeting = Meeting(self.server(self.ca, wish), client).shake_hands()
                self.assertEqual((meeting.outcome, meeting.layer.subject()), (["established"], "alice"))

    def test_no_common_name(self):
        """Without a common name it is the whole subject; without a subject it is nobody."""
        server = self.server(self.ca, ClientCertificate.REQUIRED)
        meeting = Meeting(server, self.holder(named(organisation="Example"))).shake_hands()
        self.assertEqual(meeting.layer.subject(), "O=Example")
        meeting = Meeting(server, self.holder(x509.Name([]))).shake_hands()
        self.assertEqual((meeting.outcome, meeting.layer.subject()), (["established"], None))

    def test_optional(self):
        """An optional certificate may be missing."""
        meeting = Meeting(self.server(self.ca, ClientCertificate.OPTIONAL), self.client()).shake_hands()
        self.assertEqual((meeting.outcome, meeting.layer.subject()), (["established"], None))

    def test_required(self):
        """A required one may not."""
        for version in VERSIONS:
            server = self.server(self.ca, ClientCertificate.REQUIRED)
            meeting = Meeting(server, self.client(version)).shake_hands()
            self.assertEqual(meeting.outcome, ["peer did not return a certificate"])
            self.assertNotEqual(meeting.client.error, "")

    def test_another_authority(self):
        """One that is not signed by our authority is refused, also where it is optional."""
        stranger = ec.generate_private_key(ec.SECP256R1())
        for wish in (ClientCertificate.OPTIONAL, ClientCertificate.REQUIRED):
            client = self.holder(named(common="alice"), key=stranger)
            meeting = Meeting(self.server(self.ca, wish), client).shake_hands()
            self.assertEqual(meeting.outcome, ["certificate verify failed"])

    def test_resumed(self):
        """A resumed session still knows whose certificate the first one has seen."""
        self.holder(named(common="alice"))
        server = self.server(self.ca, ClientCertificate.REQUIRED)
        for context in self.contexts():
            context.load_cert_chain(self.folder / "user.pem", self.folder / "user.key")
            first = Visit(server, context)
            second = Visit(server, context, first.client.session)
            self.assertEqual((first.client.session_reused, second.client.session_reused), (False, True))
            self.assertEqual((first.layer.subject(), second.layer.subject()), ("alice", "alice"))
