"""A client's side of TLS, in memory."""

from __future__ import annotations

from OpenSSL import SSL

RECORD = 16 * 1024
"""Plain bytes in the largest TLS record (RFC 8446 §5.1)."""


class ClientSession:
    """One TLS session of a client: plain bytes on one side, records on the other, no socket below."""

    def __init__(self, context: SSL.Context | None = None) -> None:
        self.connection = SSL.Connection(context or SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.connection.set_connect_state()
        self.error = ""
        """Why the session has failed, if it has."""
        self.said_close = False
        """Whether the server has said close_notify."""
        self._established = False
        self._early = b""

    def start(self) -> bytes:
        """The first records: a ClientHello."""
        self._handshake()
        return self.outgoing()

    def _handshake(self) -> None:
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            self.error = f"the TLS handshake failed: {error}"
        else:
            self._established = True
            early, self._early = self._early, b""
            self._encrypt(early)

    def encrypt(self, data: bytes) -> bytes:
        """The records for these bytes; during the handshake they are kept until its end."""
        if self._established:
            self._encrypt(data)
        else:
            self._early += data
        return self.outgoing()

    def _encrypt(self, data: bytes) -> None:
        for start in range(0, len(data), RECORD):
            self.connection.send(data[start : start + RECORD])

    def decrypt(self, records: bytes) -> bytes:
        """The bytes in these records."""
        self.connection.bio_write(records)
        if not self._established and not self.error:
            self._handshake()
        plain: list[bytes] = []
        while self._established and self._decrypt(plain):
            pass
        return b"".join(plain)

    def _decrypt(self, plain: list[bytes]) -> bool:
        try:
            plain.append(self.connection.recv(RECORD))
        except SSL.WantReadError:
            return False
        except SSL.ZeroReturnError:
            self.said_close = True
            return False
        except SSL.Error as error:  # an alert; with TLS 1.3 also one that refuses our certificate
            self.error = f"the TLS session failed: {error}"
            return False
        return True

    def close(self) -> bytes:
        """The records that end this side: close_notify, if there is a session to end."""
        if self._established and not self.error:
            self.connection.shutdown()
        return self.outgoing()

    def outgoing(self) -> bytes:
        """Records that are ready to be sent."""
        records = []
        try:
            while True:
                records.append(self.connection.bio_read(1 << 20))
        except SSL.WantReadError:
            return b"".join(records)
