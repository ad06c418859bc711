"""CONNECT: a request whose answer is a tunnel (RFC 9110 §9.3.6)."""

from __future__ import annotations

from proxyd.errors import ProxyError
from proxyd.frontends.answers import TUNNEL_OPEN
from proxyd.frontends.heads import check_loop
from proxyd.frontends.turn import Turn
from proxyd.net.connection import Connection
from proxyd.net.linger import abandon
from proxyd.request import Destination, Door
from proxyd.wire.body import body_of
from proxyd.wire.framing import request_body


class ConnectTurn(Turn):
    """One CONNECT request; what follows it belongs to the tunnel."""

    __slots__ = ()

    kind = Door.CONNECT

    def read_request(self) -> Destination:
        """The authority to connect to."""
        destination = Destination.parse_authority(self.head.target.decode("ascii"))
        self.flow.record.destination = destination.authority
        self.body = body_of(*request_body(self.head))
        check_loop(self.head, self.egress.via)
        return destination

    def admitted(self) -> None:
        """Dial."""
        self.flow.connect(self.egress.settings.connect_timeout).addCallback(self._connected).addErrback(self.failed)

    def _connected(self, upstream: Connection) -> None:
        if self.over:
            abandon(upstream)
            return
        self.over = True
        self.flow.record.status = 200
        self.flow.record.bytes_from_client = 0  # from here on the tunnel's bytes count, at every door
        client = self.door.leave()
        client.transport.write(TUNNEL_OPEN)
        self.flow.tunnel(client, upstream, self.held)

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error of the table; what was meant for the tunnel must not be read as the next request."""
        self.lasting = self.lasting and not self.held
        super().refuse(error)
