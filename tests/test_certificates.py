from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from twisted.trial.unittest import SynchronousTestCase

from proxyd.certificates import SelfSigned

NOW = datetime.datetime.now(datetime.UTC)


class SelfSignedTests(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def shake_hands(self, made, name, version):
        """A TLS handshake in memory, by a client that trusts nothing but the certificate and is strict."""
        certificate, private_key = made.write(self.directory)
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(certificate, private_key)
        client_side = ssl.create_default_context(cafile=str(certificate))
        client_side.verify_flags |= ssl.VERIFY_X509_STRICT
        client_side.maximum_version = version
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_side.wrap_bio(back, there, server_hostname=name)
        server = server_side.wrap_bio(there, back, server_side=True)
        for end in (client, server) * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return client.version()

    def test_clients_accept_it(self):
        """A strict client takes the certificate for each of the proxy's addresses and names, in TLS 1.2 and 1.3."""
        names = ["192.0.2.1", "::1", "proxy.example", "bücher.example"]
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for name in ("192.0.2.1", "::1", "proxy.example", "xn--bcher-kva.example"):
                for with_rsa in (False, True):
                    self.setUp()
                    made = SelfSigned.make(names, NOW, with_rsa=with_rsa)
                    self.assertEqual(self.shake_hands(made, name, version), version.name.replace("_", "."))

    def test_other_names(self):
        """Another name is not in it."""
        made = SelfSigned.make(["192.0.2.1"], NOW)
        self.assertRaises(ssl.SSLCertVerificationError, self.shake_hands, made, "192.0.2.2", ssl.TLSVersion.TLSv1_3)

    def test_content(self):
        """The certificate has the names as subject alternative names, is no authority, and lasts ten years."""
        certificate = x509.load_pem_x509_certificate(SelfSigned.make(["Proxy.Example", "2001:DB8::1"], NOW).certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["proxy.example"])
        self.assertEqual([str(address) for address in names.get_values_for_type(x509.IPAddress)], ["2001:db8::1"])
        self.assertFalse(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
        begin = NOW.replace(microsecond=0) - datetime.timedelta(days=1)
        self.assertEqual(certificate.not_valid_before_utc, begin)
        self.assertEqual(certificate.not_valid_after_utc, begin + datetime.timedelta(days=3651))

    def test_keys(self):
        """The key is on P-256, or RSA with 2048 bits where that is asked for."""
        public = x509.load_pem_x509_certificate(SelfSigned.make(["a"], NOW).certificate).public_key()
        self.assertIsInstance(public, ec.EllipticCurvePublicKey)
        self.assertEqual(public.curve.name, "secp256r1")
        public = x509.load_pem_x509_certificate(SelfSigned.make(["a"], NOW, with_rsa=True).certificate).public_key()
        self.assertIsInstance(public, rsa.RSAPublicKey)
        self.assertEqual(public.key_size, 2048)

    def test_long_name(self):
        """A name that the subject has no room for stands among the alternative names alone."""
        name = ".".join(["label" * 5] * 5)
        certificate = x509.load_pem_x509_certificate(SelfSigned.make([name], NOW).certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), [name])

    def test_bad_name(self):
        """What is no host is refused."""
        error = self.assertRaises(ValueError, SelfSigned.make, ["https://proxy"], NOW)
        self.assertTrue(str(error).startswith('"https://proxy": '))
        self.assertTrue(str(error).endswith("; write a host name or an IP address"))

    def test_modes(self):
        """The key can be read by its owner alone."""
        certificate, private_key = SelfSigned.make(["a"], NOW).write(self.directory)
        self.assertEqual((certificate.name, private_key.name), ("proxyd-cert.pem", "proxyd-key.pem"))
        self.assertEqual(private_key.stat().st_mode & 0o777, 0o600)

    def test_never_overwrites(self):
        """Files that are there stay as they are, and none is left behind alone."""
        made = SelfSigned.make(["a"], NOW)
        for there, other in (("proxyd-cert.pem", "proxyd-key.pem"), ("proxyd-key.pem", "proxyd-cert.pem")):
            self.setUp()
            (self.directory / there).write_text("precious")
            self.assertRaises(FileExistsError, made.write, self.directory)
            self.assertEqual((self.directory / there).read_text(), "precious")
            self.assertFalse((self.directory / other).exists())
