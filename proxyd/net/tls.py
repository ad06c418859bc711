"""TLS to the proxy: contexts that follow their files, and the layer between a connection and its door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from proxyd.net.connection import Connection
from proxyd.settings import ClientCertificate, TLSFiles

RECORD: Final = 16 * 1024
"""Plain bytes in the largest TLS record (RFC 8446 §5.1)."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at the certificate files."""

_TLS_WANTED: Final = b"proxyd: this port speaks TLS; the proxy URL must begin with https://\n"
HTTP_ON_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    % len(_TLS_WANTED)
    + _TLS_WANTED
)

# OpenSSL's own default list, without what needs no secret or no forward secrecy; the oldest agents (OpenSSL 1.0.2)
# have ECDHE with AES-GCM on P-256.
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_RELEASE_BUFFERS: Final = 0x10  # SSL_MODE_RELEASE_BUFFERS: an idle connection holds no record buffers


def make_context(files: TLSFiles) -> SSL.Context:
    """A server context for TLS 1.2 and 1.3 with session tickets and the ALPN protocol ``http/1.1``.

    Raises:
        OpenSSL.SSL.Error, OSError: a file cannot be read, or the key is not the certificate's.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE | SSL.OP_NO_RENEGOTIATION)
    context.set_mode(_RELEASE_BUFFERS)
    context.set_alpn_select_callback(_select_protocol)
    context.set_session_id(b"proxyd")
    context.use_certificate_chain_file(str(files.certificate))
    context.use_privatekey_file(str(files.private_key))
    context.check_privatekey()
    if files.chain is not None:
        for certificate in x509.load_pem_x509_certificates(files.chain.read_bytes()):
            context.add_extra_chain_cert(certificate)
    if files.client_certificate is not ClientCertificate.NONE and files.client_ca is not None:
        context.load_verify_locations(str(files.client_ca))
        context.load_client_ca(bytes(files.client_ca))
        mode = SSL.VERIFY_PEER | SSL.VERIFY_CLIENT_ONCE
        if files.client_certificate is ClientCertificate.REQUIRED:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode)
    return context


def _select_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class TLSContext:
    """The context for a listener's files; when they change, the next connections get them."""

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
        try:
            self._context = make_context(self._files)
        except (SSL.Error, OSError, ValueError):
            self._log.failure("{file} changed and cannot be used; the old certificate stays", file=self._files.certificate)
        else:
            self._log.info("{file} was read again", file=self._files.certificate)

    def _state(self) -> tuple[object, ...]:
        files = (self._files.certificate, self._files.private_key, self._files.chain, self._files.client_ca)
        return tuple(_stamp(file) for file in files if file is not None)


def _stamp(file: Any) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class TLSLayer:
    """One TLS session: the receiver of its connection's records, the transport of the connection inside.

    OpenSSL works on memory; each read of the socket is decrypted as a whole and handed on as one piece, each write
    leaves as one. Back-pressure is the socket's own, in both directions. Of the callables one is called, once:
    ``established`` with this layer when the handshake is done, to give the connection inside its receiver; ``failed``
    with the reason when it cannot be done; ``left`` when the client goes before.
    """

    __slots__ = (
        "_established",
        "_failed",
        "_handshaking",
        "_left",
        "_lower",
        "_paused",
        "_read_closed",
        "_said_fin",
        "_tls",
        "inner",
    )

    def __init__(
        self,
        lower: Connection,
        context: SSL.Context,
        established: Callable[[TLSLayer], None],
        failed: Callable[[str], None],
        left: Callable[[], None],
    ) -> None:
        self._lower = lower
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()
        self._established = established
        self._failed = failed
        self._left = left
        self._handshaking = True
        self._paused = False
        self._read_closed = False
        self._said_fin = False
        self.inner = Connection()
        self.inner.transport = self
        lower.receiver = self

    def subject(self) -> str | None:
        """The common name of the client's verified certificate, or its whole subject where it has none."""
        certificate = self._tls.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            return None
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else certificate.subject.rfc4514_string()

    # -- the receiver of records ----------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Records from the client."""
        self._tls.bio_write(data)
        if self._handshaking and not self._handshake(data):
            return
        if not self._paused:
            self._deliver()

    def _handshake(self, data: bytes) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except SSL.Error as error:
            self._flush()  # the alert that says why
            if data[:1].isalpha():
                self._lower.transport.write(HTTP_ON_TLS)
            self._failed(_explain(error))
            return False
        self._handshaking = False
        self._flush()
        self._established(self)
        return True

    def _deliver(self) -> None:
        """Hand on what the records hold, until they are used up or the receiver wants no more."""
        pieces: list[bytes] = []
        closed = lost = False
        try:
            while True:
                pieces.append(self._tls.recv(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            closed = True
        except SSL.Error:
            lost = True
        self._flush()  # answers of the protocol itself, such as key updates
        if pieces:
            self.inner.dataReceived(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if lost:
            self._lower.transport.abortConnection()
        elif closed:
            self.read_closed()

    def read_closed(self) -> None:
        """The client has said close_notify, or just FIN."""
        if self._handshaking:
            self._lower.transport.loseConnection()
        elif not self._read_closed:
            self._read_closed = True
            self.inner.readConnectionLost()

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        if self._handshaking:
            self._left()
        else:
            self.inner.connectionLost(reason)

    # -- the transport of what is inside ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if self._said_fin:
            return
        view = memoryview(data)
        while view:
            try:
                view = view[self._tls.send(view[:RECORD]) :]
            except SSL.Error:
                self._lower.transport.abortConnection()
                return
        self._flush()

    def _flush(self) -> None:
        pieces = []
        try:
            while True:
                pieces.append(self._tls.bio_read(4 * RECORD))
        except SSL.WantReadError:
            pass
        if pieces:
            self._lower.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _say_fin(self) -> None:
        if not self._said_fin:
            self._said_fin = True
            try:
                self._tls.shutdown()
            except SSL.Error:
                return
            self._flush()

    def loseWriteConnection(self) -> None:
        """Say close_notify; the client may still send."""
        self._say_fin()

    def loseConnection(self) -> None:
        """Say close_notify and close once everything is sent."""
        self._say_fin()
        self._lower.transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection."""
        self._lower.transport.abortConnection()

    def pauseProducing(self) -> None:
        """Read no more."""
        self._paused = True
        self._lower.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on, first what is here already."""
        if self._read_closed:
            self.inner.readConnectionLost()
            return
        self._lower.transport.resumeProducing()
        if self._paused:
            self._paused = False
            self._deliver()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Whoever produces for us is throttled by the socket below."""
        self._lower.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """No more of that."""
        self._lower.transport.unregisterProducer()

    def getPeer(self) -> IAddress:
        """The client's address."""
        return self._lower.transport.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """Our address."""
        return self._lower.transport.getHost()  # type: ignore[no-any-return]


def _explain(error: SSL.Error) -> str:
    """OpenSSL's reason in one line, without its file names."""
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(reason[2] for reason in reasons if len(reason) > 2 and reason[2]) or "the TLS handshake failed"
