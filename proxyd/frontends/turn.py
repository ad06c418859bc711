"""One request of an HTTP connection, up to the point where forward and CONNECT part."""

from __future__ import annotations

import binascii
import math
from typing import TYPE_CHECKING, ClassVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress, Flow, Refused, as_proxy_error
from proxyd.policy.rules import Decision, Verdict
from proxyd.request import Destination, Door, Identity, Request
from proxyd.wire.body import Body
from proxyd.wire.http1 import HTTP_1_1, RequestHead

if TYPE_CHECKING:
    from proxyd.frontends.http import HttpDoor


def wrong_credentials() -> Refused:
    """Who you say you are is not proven."""
    return Refused(Decision(Verdict.CHALLENGE, None, "the user name or the password is wrong", None))


def identify(head: RequestHead, client: Client, egress: Egress) -> Identity | None | Deferred[Identity | None]:
    """Who is asking: by ``Proxy-Authorization`` (RFC 7617) where accounts are configured, else by certificate.

    Raises:
        Refused: for credentials that cannot be read.
    """
    accounts, places = egress.accounts, head.names.at.get(b"proxy-authorization")
    if accounts is None or places is None:
        return client.identity
    words = head.fields[places[0]][1]
    if len(places) == 1 and (identity := accounts.recall(words)) is not None:
        return identity
    scheme, _, encoded = words.partition(b" ")
    if len(places) > 1 or scheme.lower() != b"basic":
        raise Refused(Decision(Verdict.CHALLENGE, None, "only Basic authentication is offered", None))
    try:
        name, colon, password = binascii.a2b_base64(encoded.strip(), strict_mode=True).partition(b":")
    except binascii.Error:
        raise wrong_credentials() from None
    if not colon:
        raise wrong_credentials()
    return accounts.authenticate(name, password, "basic", words)


class Turn:
    """One request of an HTTP connection: who asks, whether it may go on, and the refusal if not."""

    __slots__ = ("body", "door", "egress", "flow", "head", "held", "lasting", "options", "over")

    kind: ClassVar[Door]

    def __init__(self, door: HttpDoor, head: RequestHead) -> None:
        self.door = door
        self.egress = door.egress
        self.head = head
        self.over = False  # then nothing that was asked for before matters any more: passwords, connections
        self.body: Body | None = None  # None until the request is understood
        self.held = b""  # what the client has sent behind the head, while the way out is being found
        self.options = head.tokens(b"connection")
        # A client of HTTP/1.0 may wait for the end of the connection, whatever it says.
        self.lasting = (
            head.version == HTTP_1_1
            and b"close" not in self.options
            and b"close" not in head.tokens(b"proxy-connection")
        )
        self.flow = flow = Flow(door.egress, door.client, self.kind, head.method.decode("ascii"), "")
        flow.on_kill(self.refuse)
        flow.record.bytes_from_client = head.size

    def start(self) -> None:
        """Read the target, find out who asks, decide."""
        try:
            destination = self.read_request()
            identity = identify(self.head, self.door.client, self.egress)
            if not isinstance(identity, Deferred):
                self._admit(identity, destination)
                return
        except ProxyError as error:
            self.refuse(error)
            return
        identity.addCallback(self._identified, destination).addErrback(self.failed)

    def _identified(self, identity: Identity | None, destination: Destination) -> None:
        if not self.over:
            self._admit(identity, destination)

    def _admit(self, identity: Identity | None, destination: Destination) -> None:
        client, kind = self.door.client, self.kind
        if identity is None and self.egress.accounts is not None and b"proxy-authorization" in self.head.names.at:
            raise wrong_credentials()
        listener = client.listener
        if kind not in listener.doors:
            raise ProxyError(ErrorType.HTTP_REQUEST_DENIED, f"this port does not accept {kind.value} requests")
        method = self.flow.record.method
        self.flow.admit(Request(listener.name, kind, client.address, client.port, identity, method, destination))
        self.admitted()

    def read_request(self) -> Destination:
        """Check what is particular to this kind of request; sets ``body`` and the record's destination.

        Raises:
            ProxyError: the request cannot be understood, or must not be.
        """
        raise NotImplementedError

    def admitted(self) -> None:
        """The request may go on by what its client named: find the way out."""
        raise NotImplementedError

    def failed(self, failure: Failure) -> None:
        """Something on the way went wrong."""
        if not self.over:
            self.refuse(as_proxy_error(failure))

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error of the table, and be done."""
        self.over = True
        self.flow.cancel_dialing()
        challenge = isinstance(error, Refused) and error.challenge
        self.flow.record.status = 407 if challenge else error.status
        if isinstance(error, Refused) and self.flow.decision is None:
            self.flow.decision = error.decision
        if challenge:
            self.flow.record.detail = error.detail
            self.flow.end(closed_by="proxy")
        else:
            self.flow.fail(error)
        self.door.refused(self, error)

    # -- the client ---------------------------------------------------------------------------------------------------

    def hold(self, data: bytes) -> None:
        """Keep what the client sends too early, up to the bound; then stop reading it."""
        self.held += data
        if len(self.held) > self.egress.settings.buffer_size:
            self.door.connection.transport.pauseProducing()

    def client_sent(self, data: bytes) -> None:
        """The client sent bytes behind the head."""
        self.hold(data)

    def client_closed(self) -> None:
        """The client will send nothing more: what it has sent is still answered."""

    def client_lost(self) -> None:
        """The client is gone."""
        self.over = True
        self.flow.cancel_dialing()
        self.flow.end(ErrorType.CLIENT_DISCONNECTED, closed_by="client")

    def client_full(self) -> None:
        """What was written to the client waits for it to read: produce no more."""

    def client_drained(self) -> None:
        """The client has read what was written to it."""

    # -- time ---------------------------------------------------------------------------------------------------------

    def moved(self) -> int:
        """The bytes that have moved so far, both ways."""
        return 0

    def patience(self) -> float:
        """Seconds without a byte moving after which the turn is overdue; checking and dialing end by themselves."""
        return math.inf
