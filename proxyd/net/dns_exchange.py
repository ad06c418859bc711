"""One question to one DNS server: over UDP, and over TCP when the reply is too long for that (RFC 7766)."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IReadDescriptor, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.dialer import family
from proxyd.net.dns_message import Question, Reply
from proxyd.request import IPAddress

Server = tuple[IPAddress, int]
"""Address and port of a DNS server."""

RESEND = 1.0
"""Seconds until a question is sent again over UDP: datagrams get lost."""

LONGEST_DATAGRAM = 4096
"""Bytes taken of a reply over UDP: more than the 512 that a question without EDNS allows."""

LONGEST_MESSAGE = 16384
"""Bytes taken of a reply over TCP: hundreds of addresses. Reading a name costs the square of its length, so a hostile
server could keep us busy with the 64 KiB that the format allows."""


class ServerUnreachable(ProxyError):
    """A server gave no reply in time, or the network none for it."""


async def exchange(reactor: Any, server: Server, question: Question, seconds: float) -> Reply:
    """The server's reply, within these seconds.

    Raises:
        ServerUnreachable: there was none.
        ServerFailed: the server said that it cannot answer.
    """
    end = reactor.seconds() + seconds
    try:
        message = await _Datagrams(reactor, server, question, end).done
        if message.trunc:
            message = await _over_tcp(reactor, server, question, end)
    except (OSError, ConnectError) as error:
        raise ServerUnreachable(ErrorType.DNS_ERROR, f"the DNS server {_text(server)}: {error}") from error
    return question.read(message)


def _silent(server: Server) -> ServerUnreachable:
    return ServerUnreachable(ErrorType.DNS_TIMEOUT, f"no reply from the DNS server {_text(server)}")


def _text(server: Server) -> str:
    return f"{server[0]} port {server[1]}"


@implementer(IReadDescriptor)
class _Datagrams:
    """A question over UDP, from a random port, repeated until a reply comes or time is up.

    The socket is connected: the kernel passes only what comes from the server, and tells when nobody listens there.
    (Twisted's own UDP port would write two log lines for each question.)
    """

    def __init__(self, reactor: Any, server: Server, question: Question, end: float) -> None:
        self._reactor = reactor
        self._server = server
        self._question = question
        self._data = question.encode()
        self._end = end
        self._timer: Any = None
        self.done: Deferred[dns.Message] = Deferred(self._close)
        self._socket = socket.socket(family(server[0]), socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect((str(server[0]), server[1]))
        except OSError:
            self._socket.close()
            raise
        reactor.addReader(self)
        self._send()

    def _send(self) -> None:
        left = self._end - self._reactor.seconds()
        if left <= 0:
            self._timer = None
            self._fail(_silent(self._server))
            return
        self._timer = self._reactor.callLater(min(RESEND, left), self._send)
        try:
            self._socket.send(self._data)
        except OSError as error:
            self._fail(error)

    def doRead(self) -> None:
        """Something came; what is no reply to our question is not for us."""
        try:
            message = self._question.match(self._socket.recv(LONGEST_DATAGRAM))
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if message is not None:
            self._close()
            self.done.callback(message)

    def _fail(self, error: Exception) -> None:
        self._close()
        self.done.errback(error)

    def _close(self, cancelled: object = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.removeReader(self)
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor the reactor watches."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """What Twisted's log calls us."""
        return "proxyd"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an error pending at the socket and let go of it; reading tells which."""
        if not self.done.called:
            self._reactor.addReader(self)
            self.doRead()


def _over_tcp(reactor: Any, server: Server, question: Question, end: float) -> Deferred[dns.Message]:
    def time_is_up(result: object, timeout: float) -> dns.Message:
        raise _silent(server)

    asked = Deferred.fromCoroutine(_ask_over_tcp(reactor, server, question))
    return asked.addTimeout(max(0.0, end - reactor.seconds()), reactor, onTimeoutCancel=time_is_up)


async def _ask_over_tcp(reactor: Any, server: Server, question: Question) -> dns.Message:
    make_endpoint = TCP6ClientEndpoint if server[0].version == 6 else TCP4ClientEndpoint
    stream: _Stream = await connectProtocol(make_endpoint(reactor, str(server[0]), server[1]), _Stream(question))
    try:
        return await stream.done
    finally:
        stream.transport.abortConnection()


class _Stream(Int16StringReceiver):
    """A connection to a DNS server for one question."""

    MAX_LENGTH = LONGEST_MESSAGE
    transport: ITCPTransport

    def __init__(self, question: Question) -> None:
        self._question = question
        self.done: Deferred[dns.Message] = Deferred()

    def connectionMade(self) -> None:
        """Ask."""
        self.sendString(self._question.encode())

    def stringReceived(self, string: bytes) -> None:
        """The reply, if it is to our question and whole."""
        message = self._question.match(string)
        if message is not None and not message.trunc and not self.done.called:
            self.done.callback(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Without a reply this is a failure."""
        if not self.done.called:
            self.done.errback(ConnectError(string="closed without a reply"))
