"""What a listener proves itself with in TLS: OpenSSL's settings for its files, made anew when they change."""

from __future__ import annotations

import ssl
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from proxyd.settings import ClientCertificate, TLSFiles

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at the files."""

# OpenSSL's own default list, without what needs no secret or no forward secrecy; the oldest agents (OpenSSL 1.0.2)
# have ECDHE with AES-GCM on P-256.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_VERIFICATION: Final = {
    ClientCertificate.NONE: ssl.CERT_NONE,
    ClientCertificate.OPTIONAL: ssl.CERT_OPTIONAL,
    ClientCertificate.REQUIRED: ssl.CERT_REQUIRED,
}


def make_context(files: TLSFiles) -> ssl.SSLContext:
    """A server's context for TLS 1.2 and 1.3 with session tickets and the ALPN protocol ``http/1.1``.

    Raises:
        OSError, ValueError: a file cannot be read, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])  # who offers others is served all the same
    context.options |= ssl.OP_NO_RENEGOTIATION
    for file in _all(files):
        file.open("rb").close()  # for an error that names the file
    try:
        _prove(context, files)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = _VERIFICATION[files.client_certificate]
    except ssl.SSLError as error:
        raise ValueError(explain(error)) from error
    return context


def _prove(context: ssl.SSLContext, files: TLSFiles) -> None:
    if files.chain is None:
        context.load_cert_chain(files.certificate, files.private_key, _refuse_passphrase)
        return
    # The certificate's own chain and the separate one have to come from one file.
    with NamedTemporaryFile(suffix=".pem") as together:
        for file in (files.certificate, files.chain):
            for certificate in x509.load_pem_x509_certificates(file.read_bytes()):
                together.write(certificate.public_bytes(Encoding.PEM))
        together.flush()
        context.load_cert_chain(together.name, files.private_key, _refuse_passphrase)


def _refuse_passphrase() -> str:
    # Left to itself, OpenSSL asks at the terminal, and everything waits.
    raise ValueError("the private key is protected by a passphrase; write it without one")


def _all(files: TLSFiles) -> tuple[Path, ...]:
    named = (files.certificate, files.private_key, files.chain, files.client_ca)
    return tuple(file for file in named if file is not None)


class ServerCertificate:
    """A listener's certificate, as its files have it; when they change, the next connections get the new one."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, files: TLSFiles) -> None:
        self._clock = clock
        self._files = files
        self._seen = self._used = self._state()
        self._looked = clock.seconds()
        self._context = make_context(files)

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. Files that changed and cannot be used leave the old one in place."""
        now = self._clock.seconds()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._try()
        return self._context

    def _try(self) -> None:
        try:
            self.look()
        except (OSError, ValueError) as error:
            file = self._files.certificate
            self._log.error("{file} or its key changed and cannot be used: {error}", file=file, error=error)

    def look(self) -> None:
        """Look at the files now, and use what is new in them. Without that the context stays, and its session tickets.

        Raises:
            OSError, ValueError: they changed and cannot be used; the old ones stay in use.
        """
        state = self._state()
        if state != self._used:
            self._context = make_context(self._files)
            self._seen = self._used = state
            self._log.info("{file} was read again", file=self._files.certificate)

    def _state(self) -> tuple[object, ...]:
        return tuple(map(_stamp, _all(self._files)))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def explain(error: ssl.SSLError) -> str:
    """OpenSSL's reason in one line."""
    return (error.reason or "no reason given").lower().replace("_", " ")
