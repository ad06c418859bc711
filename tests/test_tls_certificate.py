"""Tests for proxyd.net.tls_certificate."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from proxyd.certificates import SelfSigned
from proxyd.net.tls_certificate import LOOK_AGAIN, ServerCertificate, explain, make_context
from proxyd.settings import ClientCertificate, TLSFiles

NOW = datetime.datetime.now(datetime.UTC)


def shown(context: ssl.SSLContext) -> Sequence[bytes]:
    """The certificates, as DER, that a TLS 1.2 client is shown; in TLS 1.3 they would be encrypted."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = client_context.wrap_bio(back, there)
    server = context.wrap_bio(there, back, server_side=True)
    for end in (client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    return certificates_in(back.read())


def certificates_in(flight: bytes) -> list[bytes]:
    """Those of the Certificate message in a server's first flight (RFC 5246 §7.4.2)."""
    messages = b""
    while flight:
        length = int.from_bytes(flight[3:5])
        messages += flight[5 : 5 + length]
        flight = flight[5 + length :]
    while messages[0] != 11:
        messages = messages[4 + int.from_bytes(messages[1:4]) :]
    chain, found = messages[7 : 7 + int.from_bytes(messages[4:7])], []
    while chain:
        length = int.from_bytes(chain[:3])
        found.append(chain[3 : 3 + length])
        chain = chain[3 + length :]
    return found


def der(pem: bytes) -> bytes:
    """A certificate without its armour."""
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


class FilesCase(SynchronousTestCase):
    """Tests with certificate files."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.made = SelfSigned.make(["192.0.2.1"], NOW)
        self.certificate, self.private_key = self.made.write(self.folder)

    def files(self, **changes: Path) -> TLSFiles:
        """The files of a listener."""
        values = {"certificate": self.certificate, "private_key": self.private_key, "chain": None, "client_ca": None}
        return TLSFiles(**{**values, **changes}, client_certificate=ClientCertificate.NONE)

    def write(self, name: str, content: bytes) -> Path:
        """A file."""
        path = self.folder / name
        path.write_bytes(content)
        return path


class MakeContextTests(FilesCase):
    """Files become what TLS is spoken with."""

    def test_certificate(self):
        """The certificate is the one in the file."""
        self.assertEqual(shown(make_context(self.files())), [der(self.made.certificate)])

    def test_rsa(self):
        """Keys may be of RSA, for clients that know nothing else."""
        made = SelfSigned.make(["192.0.2.1"], NOW, with_rsa=True)
        files = self.files(
            certificate=self.write("rsa.pem", made.certificate), private_key=self.write("rsa.key", made.private_key)
        )
        self.assertEqual(shown(make_context(files)), [der(made.certificate)])

    def test_one_file(self):
        """Certificate and key may be in one file, in any order."""
        for content in (
            self.made.certificate + self.made.private_key,
            self.made.private_key + self.made.certificate,
        ):
            both = self.write("both.pem", content)
            context = make_context(self.files(certificate=both, private_key=both))
            self.assertEqual(shown(context), [der(self.made.certificate)])

    def test_chain(self):
        """The rest of the chain comes from the certificate's own file, from a separate one, or from both."""
        others = [SelfSigned.make([f"ca{number}.example"], NOW).certificate for number in range(3)]
        inside = self.write("inside.pem", self.made.certificate + others[0])
        separate = self.write("chain.pem", others[1] + others[2])
        expected = [der(self.made.certificate), der(others[0])]
        self.assertEqual(shown(make_context(self.files(certificate=inside))), expected)
        context = make_context(self.files(certificate=inside, chain=separate))
        self.assertEqual(shown(context), expected + [der(others[1]), der(others[2])])

    def test_chain_and_one_file(self):
        """A separate chain goes with a file that has certificate and key."""
        both = self.write("both.pem", self.made.private_key + self.made.certificate)
        chain = SelfSigned.make(["ca.example"], NOW).certificate
        context = make_context(self.files(certificate=both, private_key=both, chain=self.write("chain.pem", chain)))
        self.assertEqual(shown(context), [der(self.made.certificate), der(chain)])

    def test_missing(self):
        """A file that is missing is named."""
        missing = self.folder / "missing.pem"
        for name in ("certificate", "private_key", "chain", "client_ca"):
            with self.assertRaises(FileNotFoundError) as raised:
                make_context(self.files(**{name: missing}))
            self.assertEqual(raised.exception.filename, str(missing))

    def test_not_a_certificate(self):
        """A file that holds something else is refused, whichever it is."""
        junk = self.write("junk.pem", b"junk\n")
        for name in ("certificate", "private_key", "chain", "client_ca"):
            with self.assertRaises(ValueError):
                make_context(self.files(**{name: junk}))

    def test_another_key(self):
        """The key has to be the certificate's."""
        other = self.write("other.key", SelfSigned.make(["192.0.2.1"], NOW).private_key)
        with self.assertRaises(ValueError) as raised:
            make_context(self.files(private_key=other))
        self.assertEqual(str(raised.exception), "key values mismatch")

    def test_passphrase(self):
        """A key with a passphrase is refused; nobody is asked for it."""
        key = load_pem_private_key(self.made.private_key, None)
        encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        with self.assertRaises(ValueError) as raised:
            make_context(self.files(private_key=self.write("encrypted.key", encrypted)))
        self.assertIn("passphrase", str(raised.exception))

    def test_no_reason(self):
        """Where OpenSSL gives no reason, that is said."""
        error = ssl.SSLError()
        for given, told in ((None, "no reason given"), ("TLSV1_ALERT_UNKNOWN_CA", "tlsv1 alert unknown ca")):
            error.reason = given
            self.assertEqual(explain(error), told)


class ServerCertificateTests(FilesCase):
    """A certificate that follows its files."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.events: list[dict] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.server = ServerCertificate(self.clock, self.files())

    def replace(self, path: Path, content: bytes) -> None:
        """Put another file in the place of one, as those do who renew certificates."""
        new = self.write("new", content)
        os.replace(new, path)

    def renew(self) -> SelfSigned:
        """Another certificate and its key."""
        made = SelfSigned.make(["192.0.2.1"], NOW)
        self.replace(self.certificate, made.certificate)
        self.replace(self.private_key, made.private_key)
        return made

    def logged(self) -> list[LogLevel]:
        """The levels of what was logged."""
        return [event["log_level"] for event in self.events if "certificate" in event["log_namespace"]]

    def test_unchanged(self):
        """While nothing changes, connections share one context, and with it their session tickets."""
        first = self.server.current()
        self.clock.advance(1000)
        self.assertIs(self.server.current(), first)
        self.assertEqual(self.logged(), [])

    def test_renewed(self):
        """New files are in use for new connections soon after, and the log says so."""
        made = self.renew()
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(shown(self.server.current()), [der(made.certificate)])
        self.assertEqual(self.logged(), [LogLevel.info])

    def test_not_at_every_connection(self):
        """The files are not looked at for every connection."""
        self.renew()
        self.assertEqual(shown(self.server.current()), [der(self.made.certificate)])

    def test_broken(self):
        """A new file that cannot be used leaves the old certificate in place, and is reported once, in one line."""
        self.replace(self.certificate, b"junk\n")
        for _ in range(5):
            self.clock.advance(LOOK_AGAIN)
            self.assertEqual(shown(self.server.current()), [der(self.made.certificate)])
        self.assertEqual(self.logged(), [LogLevel.error])
        self.assertNotIn("log_failure", self.events[-1])

    def test_half_renewed(self):
        """A certificate whose key comes a little later is in use when the key has come."""
        made = SelfSigned.make(["192.0.2.1"], NOW)
        self.replace(self.certificate, made.certificate)
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(shown(self.server.current()), [der(self.made.certificate)])
        self.replace(self.private_key, made.private_key)
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(shown(self.server.current()), [der(made.certificate)])
        self.assertEqual(self.logged(), [LogLevel.error, LogLevel.info])

    def test_missing_for_a_while(self):
        """A file that is missing for a while does no harm."""
        self.certificate.unlink()
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(shown(self.server.current()), [der(self.made.certificate)])
        made = self.renew()
        self.clock.advance(LOOK_AGAIN)
        self.assertEqual(shown(self.server.current()), [der(made.certificate)])

    def test_looked_at(self):
        """When told to look, new files are in use at once, and the log says so."""
        made = self.renew()
        self.server.look()
        self.assertEqual(shown(self.server.current()), [der(made.certificate)])
        self.assertEqual(self.logged(), [LogLevel.info])

    def test_looked_at_in_vain(self):
        """While nothing changes, a look changes nothing, and the session tickets stay good."""
        first = self.server.current()
        self.server.look()
        self.assertIs(self.server.current(), first)
        self.assertEqual(self.logged(), [])

    def test_looked_at_while_broken(self):
        """Each look at files that cannot be used says so to who asked for it; the old certificate stays in place."""
        self.replace(self.certificate, b"junk\n")
        self.clock.advance(LOOK_AGAIN)
        self.server.current()
        for _ in range(2):
            self.assertRaises(ValueError, self.server.look)
        self.assertEqual(shown(self.server.current()), [der(self.made.certificate)])

    def test_unusable_from_the_start(self):
        """A listener does not start with files that cannot be used."""
        self.replace(self.certificate, b"junk\n")
        with self.assertRaises(ValueError):
            ServerCertificate(self.clock, self.files())
