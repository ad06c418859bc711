"""CONNECT: a request whose answer is a tunnel (RFC 9110 §9.3.6)."""

from __future__ import annotations

from proxyd.errors import ErrorType, ProxyError
from proxyd.frontends.answers import TUNNEL_OPEN
from proxyd.frontends.turn import Turn
from proxyd.net.connection import Connection
from proxyd.request import Destination, Door
from proxyd.wire.body import Body
from proxyd.wire.framing import Framing


class ConnectTurn(Turn):
    """One CONNECT request; what follows it belongs to the tunnel."""

    door_kind = Door.CONNECT

    def read_request(self) -> Destination:
        """The authority to connect to. A body has no meaning here, so only an empty one is understood."""
        if b"transfer-encoding" in self.head.names or any(value != b"0" for value in self.head.get(b"content-length")):
            raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, "a CONNECT request has no body")
        destination = Destination.parse_authority(self.head.target.decode("ascii"))
        self.body = Body(Framing.NONE)
        return destination

    def admitted(self) -> None:
        """Dial."""
        self.flow.connect(self.egress.settings.connect_timeout).addCallback(self._connected).addErrback(self.failed)

    def _connected(self, upstream: Connection) -> None:
        if self.over:
            upstream.transport.abortConnection()
            return
        self.over = True
        self.flow.record.status = 200
        self.flow.record.bytes_from_client = 0  # from here on the tunnel's bytes count, at every door
        client = self.door.leave()
        client.transport.write(TUNNEL_OPEN)
        self.flow.tunnel(client, upstream, self.held)
