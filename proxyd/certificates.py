"""Certificates for TLS to the proxy where no authority issues one: self-signed, for the names and addresses it has."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxyd.errors import ProxyError
from proxyd.request import Destination

CERTIFICATE = "proxyd-cert.pem"
PRIVATE_KEY = "proxyd-key.pem"
LIFETIME = datetime.timedelta(days=3650)
"""Nothing renews the certificate by itself, and every client has to be told of a new one."""
CLOCK_SKEW = datetime.timedelta(days=1)
"""Clients whose clock is slow take the certificate too."""
MAX_COMMON_NAME = 64
"""RFC 5280, appendix A.1: ub-common-name."""

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class SelfSigned:
    """A certificate that is its own authority, and its private key, both as PEM."""

    certificate: bytes
    private_key: bytes

    @classmethod
    def make(cls, names: Sequence[str], now: datetime.datetime, *, with_rsa: bool = False) -> SelfSigned:
        """Make a key and a certificate.

        Args:
            names: Host names and IP addresses of the proxy, as its clients write them.
            with_rsa: For clients that know nothing of elliptic curves: RSA with 2048 bits instead of P-256.

        Raises:
            ValueError: one of the names is not a name.
        """
        key = rsa.generate_private_key(65537, 2048) if with_rsa else ec.generate_private_key(ec.SECP256R1())
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return cls(_certificate(names, now, key).public_bytes(serialization.Encoding.PEM), encoded)

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write ``proxyd-cert.pem``, and ``proxyd-key.pem`` for its owner alone; never over files that are there.

        Raises:
            FileExistsError: one of the files is there.
        """
        certificate, private_key = directory / CERTIFICATE, directory / PRIVATE_KEY
        _create(private_key, self.private_key, 0o600)
        try:
            _create(certificate, self.certificate, 0o644)
        except OSError:
            private_key.unlink()
            raise
        return certificate, private_key


def _certificate(names: Sequence[str], now: datetime.datetime, key: _PrivateKey) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:MAX_COMMON_NAME])])
    public = key.public_key()
    # No key usage: OpenSSL up to 1.1.1 does not take a certificate for self-signed whose key usage forbids signing
    # certificates, and the strict checks of OpenSSL 3 refuse one that allows it without being an authority's.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        host = Destination.parse(name, 443).host
    except ProxyError as error:
        raise ValueError(f'"{name}": {error.detail}; write a host name or an IP address') from None
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _create(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
