"""What a listener proves itself with in TLS: OpenSSL's context for its files, made anew when they change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from proxyd.settings import ClientCertificate, TLSFiles

LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at the files."""

# OpenSSL's own default list, without what needs no secret or no forward secrecy; the oldest agents (OpenSSL 1.0.2)
# have ECDHE with AES-GCM on P-256.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_PARTIAL_WRITE: Final = 0x1  # SSL_MODE_ENABLE_PARTIAL_WRITE, which pyOpenSSL sets: it costs one call for each record


def make_context(files: TLSFiles) -> SSL.Context:
    """A server's context for TLS 1.2 and 1.3 with session tickets and the ALPN protocol ``http/1.1``.

    Raises:
        OpenSSL.SSL.Error, OSError, ValueError: a file cannot be read, or the key is not the certificate's.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_RENEGOTIATION)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # an idle connection holds no record buffers
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # sessions are kept by the clients, in their tickets
    context.set_session_id(b"proxyd")
    context.set_alpn_select_callback(_select_protocol)
    _prove(context, files)
    _ask(context, files)
    return context


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _prove(context: SSL.Context, files: TLSFiles) -> None:
    """Who we are."""
    context.use_certificate_chain_file(str(files.certificate))
    _use_private_key(context, files.private_key)
    context.check_privatekey()
    if files.chain is not None:
        for certificate in x509.load_pem_x509_certificates(files.chain.read_bytes()):
            context.add_extra_chain_cert(certificate)


def _use_private_key(context: SSL.Context, file: Path) -> None:
    # OpenSSL, given the file, would ask at the terminal for a passphrase, and wait.
    key: Any
    try:
        key = load_pem_private_key(file.read_bytes(), None)
        context.use_privatekey(key)
    except TypeError as error:
        raise ValueError(f"{file} is protected by a passphrase, or not a key for TLS") from error


def _ask(context: SSL.Context, files: TLSFiles) -> None:
    """Who the client is."""
    if files.client_certificate is not ClientCertificate.NONE and files.client_ca is not None:
        context.load_verify_locations(str(files.client_ca))
        context.load_client_ca(bytes(files.client_ca))
        mode = SSL.VERIFY_PEER | SSL.VERIFY_CLIENT_ONCE
        if files.client_certificate is ClientCertificate.REQUIRED:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode)


class ServerCertificate:
    """A listener's certificate, as its files have it; when they change, the next connections get the new one."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, files: TLSFiles) -> None:
        self._clock = clock
        self._files = files
        self._seen = self._state()
        self._looked = clock.seconds()
        self._context = make_context(files)

    def current(self) -> SSL.Context:
        """The context for a new connection. Files that changed and cannot be used leave the old one in place."""
        now = self._clock.seconds()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            state = self._state()
            if state != self._seen:
                self._seen = state
                self._reload()
        return self._context

    def _reload(self) -> None:
        file = self._files.certificate
        try:
            self._context = make_context(self._files)
        except (SSL.Error, OSError, ValueError) as error:
            reason = explain(error)
            self._log.error("{file} or its key changed and cannot be used: {reason}", file=file, reason=reason)
        else:
            self._log.info("{file} was read again", file=file)

    def _state(self) -> tuple[object, ...]:
        files = (self._files.certificate, self._files.private_key, self._files.chain, self._files.client_ca)
        return tuple(_stamp(file) for file in files if file is not None)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def explain(error: Exception) -> str:
    """The reason of an error in one line, OpenSSL's without the names of its functions."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(reason[2] for reason in error.args[0] if reason[2]) or "OpenSSL does not say why"
    return str(error)
