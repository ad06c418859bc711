"""SOCKS5: a handshake whose answer is a tunnel (RFC 1928, RFC 1929)."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress, Flow, Refused, as_proxy_error
from proxyd.frontends.turn import wrong_credentials
from proxyd.net.connection import Connection
from proxyd.net.linger import Closing, Linger, abandon
from proxyd.policy.rules import Decision, UserNeeded, Verdict
from proxyd.request import Door, Identity, IPAddress, Request, parse_ip
from proxyd.wire.socks5 import Command, CommandCode, Credentials, Greeting, Method, Reply, Socks5Server, State

_NO_REQUEST = "the client left before its request: with socks5:// it resolves names itself, which may have failed"


class Socks5Door:
    """Has one client's connection until its tunnel is open, or refused."""

    __slots__ = (
        "_codec",
        "_deadline",
        "_egress",
        "_flow",
        "_half_closed",
        "_identity",
        "_over",
        "_verifying",
        "client",
        "connection",
    )

    def __init__(self, connection: Connection, client: Client, egress: Egress, began: float) -> None:
        self.connection = connection
        self.client = client
        self._egress = egress
        self._codec = Socks5Server()
        self._identity = client.identity
        self._flow: Flow | None = None
        self._verifying = False  # whether a password is being checked
        self._half_closed = False
        self._over = False  # whether the connection is somebody else's by now, or lost
        left = began + egress.settings.handshake_timeout - egress.clock.seconds()
        self._deadline = egress.deadlines.after(left, self._overdue)

    # -- the connection -----------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the handshake, or of the tunnel that is not open yet."""
        try:
            messages = self._codec.feed(data)
        except ProxyError as error:
            self._refuse(error)
            return
        for message in messages:
            if isinstance(message, Greeting):
                self._greeted(message)
            elif isinstance(message, Credentials):
                self._credentials(message)
            else:
                self._asked(message)
        if not self._over and len(self._codec.unread) > self._egress.settings.buffer_size:
            self.connection.transport.pauseProducing()

    def read_closed(self) -> None:
        """The client will send no more; what it has asked is still done."""
        self._half_closed = True
        self._part_if_pointless()

    def _part_if_pointless(self) -> None:
        if self._half_closed and not self._over and not self._verifying and self._codec.state is not State.DONE:
            self._left()
            Closing(self.connection, self._egress.deadlines)

    def lost(self, reason: Failure) -> None:
        """The client is gone."""
        self._left()

    def _left(self) -> None:
        self._over = True
        self._deadline.cancel()
        if self._flow is not None:
            self._flow.cancel_dialing()
        elif self._codec.state is State.REQUEST:
            self._begin_flow().record.detail = _NO_REQUEST
        if self._flow is not None:
            self._flow.end(ErrorType.CLIENT_DISCONNECTED, closed_by="client")

    # -- the handshake ------------------------------------------------------------------------------------------------

    def _greeted(self, greeting: Greeting) -> None:
        method = self._choose(greeting.methods)
        if method is Method.NO_ACCEPTABLE_METHODS:
            detail = "the client offers no authentication method that is accepted here"
            self._refuse(Refused(Decision(Verdict.CHALLENGE, None, detail, None)), self._codec.select(method))
        else:
            self._answer(self._codec.select(method))

    def _choose(self, offered: frozenset[int]) -> Method:
        """Ask for a password where a rule may want a user, even if the client would rather not; never without need."""
        policy, accounts = self._egress.policy, self._egress.accounts
        needed = policy.user_needed(self.client.listener.name, Door.SOCKS5, self.client.address)
        if self._identity is not None:
            needed = UserNeeded.NEVER
        free = Method.NO_AUTHENTICATION_REQUIRED in offered
        asks = accounts is not None and needed is not UserNeeded.NEVER
        if Method.USERNAME_PASSWORD in offered and (asks or not free):
            return Method.USERNAME_PASSWORD
        if free and needed is not UserNeeded.ALWAYS:
            return Method.NO_AUTHENTICATION_REQUIRED
        return Method.NO_ACCEPTABLE_METHODS

    def _credentials(self, credentials: Credentials) -> None:
        accounts = self._egress.accounts
        if accounts is None:  # nobody is asked here, so that nothing is proven, and nothing is refused
            self._answer(self._codec.verdict(True))
            return
        if not credentials.name or not credentials.password:  # RFC 1929 §2: each has 1 to 255 octets
            self._refuse(wrong_credentials(), self._codec.verdict(False))
            return
        try:
            identity = accounts.authenticate(credentials.name, credentials.password, "socks5")
        except ProxyError as error:
            self._refuse(error)
            return
        if isinstance(identity, Deferred):
            self._verifying = True
            identity.addCallback(self._identified).addErrback(self._failed)
        else:
            self._identified(identity)

    def _identified(self, identity: Identity | None) -> None:
        self._verifying = False
        if self._over:
            return
        if identity is None:
            self._refuse(wrong_credentials(), self._codec.verdict(False))
        else:
            self._identity = identity
            self._answer(self._codec.verdict(True))

    def _answer(self, data: bytes) -> None:
        self.connection.transport.write(data)
        self.received(b"")  # the next message may be here already
        self._part_if_pointless()

    # -- the request --------------------------------------------------------------------------------------------------

    def _begin_flow(self, method: str = "", asked: str = "") -> Flow:
        self._flow = Flow(self._egress, self.client, Door.SOCKS5, method, asked)
        self._flow.on_kill(self._refuse)
        return self._flow

    def _asked(self, command: Command) -> None:
        destination = command.destination
        asked = "" if destination is None else destination.authority
        flow = self._begin_flow(_method(command.command), asked)
        try:
            if Door.SOCKS5 not in self.client.listener.doors:
                raise ProxyError(ErrorType.HTTP_REQUEST_DENIED, "this port does not accept SOCKS5")
            if command.command != CommandCode.CONNECT or destination is None:
                detail = f"the SOCKS command {command.command} is not supported"
                raise ProxyError(ErrorType.HTTP_REQUEST_ERROR, detail, reply=Reply.COMMAND_NOT_SUPPORTED)
            client = self.client
            flow.admit(
                Request(
                    client.listener.name,
                    Door.SOCKS5,
                    client.address,
                    client.port,
                    self._identity,
                    "CONNECT",
                    destination,
                )
            )
        except ProxyError as error:
            self._refuse(error)
            return
        timeout = self._egress.settings.socks_connect_timeout
        flow.connect(timeout).addCallback(self._connected).addErrback(self._failed)

    def _connected(self, upstream: Connection) -> None:
        flow = self._flow
        if self._over:
            abandon(upstream)
            return
        assert flow is not None
        self._over = True
        self._deadline.cancel()
        flow.record.reply = Reply.SUCCEEDED
        self.connection.transport.write(self._codec.reply(Reply.SUCCEEDED, *_bound(upstream.transport.getHost())))
        flow.tunnel(self.connection, upstream, self._codec.unread)

    def _failed(self, failure: Failure) -> None:
        self._verifying = False
        if not self._over:
            self._refuse(as_proxy_error(failure))

    def _refuse(self, error: ProxyError, answer: bytes | None = None) -> None:
        """Say no in the words of the message that waits for an answer, and close."""
        self._over = True
        self._deadline.cancel()
        flow = self._flow or self._begin_flow()
        flow.cancel_dialing()
        if isinstance(error, Refused) and flow.decision is None:
            flow.decision = error.decision
        if answer is None:
            code = error.reply or Reply.GENERAL_FAILURE
            if self._codec.state in (State.REQUEST, State.DONE):
                flow.record.reply = code
            answer = self._codec.refuse(code)
        if answer:
            self.connection.transport.write(answer)
        if isinstance(error, Refused) and error.challenge:
            flow.record.detail = error.detail
            flow.end(closed_by="proxy")
        else:
            flow.fail(error)
        Linger(self.connection, self._egress.deadlines)

    def _overdue(self) -> None:
        if self._flow is not None:
            return  # dialing has a time limit of its own
        if self._codec.state is State.GREETING and not self._codec.unread:
            self._over = True
            Closing(self.connection, self._egress.deadlines)  # silence is no request, and gets no record
        else:
            self._refuse(ProxyError(ErrorType.HTTP_REQUEST_ERROR, "the SOCKS handshake did not come in time"))


def _method(command: int) -> str:
    """How the record calls a command; one that RFC 1928 does not know has no name."""
    return CommandCode(command).name if command in CommandCode.__members__.values() else ""


def _bound(address: IAddress) -> tuple[IPAddress | None, int]:
    """BND.ADDR and BND.PORT: where the origin sees us."""
    return parse_ip(getattr(address, "host", "")), getattr(address, "port", 0)
