"""A connection to the first of several addresses that answers (RFC 8305)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.net.deadlines import Deadline, Deadlines
from proxyd.net.readiness import Readiness, Watch
from proxyd.net.transport import BULK_READ_SIZE, Stream
from proxyd.request import IPAddress

ATTEMPT_DELAY = 0.25
"""Seconds an attempt has to itself before the next address is tried beside it (RFC 8305 §5)."""

P = TypeVar("P", bound=IProtocol)

_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)  # where it exists, that saves a system call

_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_TELLING = {
    ErrorType.CONNECTION_LIMIT_REACHED: "no more connections can be opened",
    ErrorType.CONNECTION_TIMEOUT: "no answer in time",
    ErrorType.CONNECTION_REFUSED: "connection refused",
    ErrorType.DESTINATION_IP_UNROUTABLE: "no route to the destination",
}
"""Why a connection was not made, the most telling reason first: of several addresses that fail, it names the error."""


class Dialer(Protocol):
    """Who opens connections to origins."""

    def dial(
        self, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], P], timeout: float
    ) -> Deferred[tuple[P, IPAddress]]:
        """Connect to one of the addresses within the seconds given; the protocol, connected, and the address it has.

        Fails with `ProxyError`: ``connection_refused``, ``destination_ip_unroutable``, ``connection_timeout`` or
        ``connection_limit_reached``. Cancelling it closes everything.
        """


class TCPDialer:
    """A dialer that does no more for a connection than it must: a socket, a connect, one wait.

    Without a `Readiness` the reactor itself watches the sockets.
    """

    def __init__(
        self,
        reactor: Any,
        deadlines: Deadlines,
        *,
        attempt_delay: float = ATTEMPT_DELAY,
        readiness: Readiness | None = None,
        bulk_read: int = BULK_READ_SIZE,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self.reactor = reactor
        self.deadlines = deadlines
        self.attempt_delay = attempt_delay
        self.readiness = readiness
        self.bulk_read = bulk_read
        self.make_socket = make_socket

    def dial(
        self, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], P], timeout: float
    ) -> Deferred[tuple[P, IPAddress]]:
        """Connect to one of the addresses, at least one, within the seconds given."""
        return _Dial(self, interleaved(addresses), port, protocol, timeout).start()


def family(address: IPAddress) -> int:
    """The socket family that an address belongs to."""
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET


def interleaved(addresses: Sequence[IPAddress]) -> Sequence[IPAddress]:
    """The addresses with the families taking turns, the first one's family first (RFC 8305 §4)."""
    if len(addresses) < 3:
        return addresses
    first = [address for address in addresses if address.version == addresses[0].version]
    other = [address for address in addresses if address.version != addresses[0].version]
    return [address for address in chain.from_iterable(zip_longest(first, other)) if address is not None]


class _Dial(Generic[P]):
    """One connection being sought: the addresses still to be tried, and the attempts under way."""

    __slots__ = (
        "_addresses",
        "_attempts",
        "_deadline",
        "_done",
        "_errors",
        "_port",
        "_protocol",
        "_timeout",
        "_timer",
        "_tried",
        "dialer",
    )

    def __init__(
        self, dialer: TCPDialer, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], P], timeout: float
    ) -> None:
        self.dialer = dialer
        self._addresses = addresses
        self._port = port
        self._protocol = protocol
        self._tried = 0
        self._attempts: list[_Attempt] = []
        self._errors: set[ErrorType] = set()
        self._timeout = timeout
        self._timer: IDelayedCall | None = None
        self._deadline: Deadline | None = None
        self._done: Deferred[tuple[P, IPAddress]] | None = None

    def start(self) -> Deferred[tuple[P, IPAddress]]:
        """Begin with the first address; what is not settled at once gets a deadline."""
        done = self._done = Deferred(self._release)
        self._try_next()
        if self._done is not None:
            self._deadline = self.dialer.deadlines.after(self._timeout, self._too_late)
        return done

    def _try_next(self) -> None:
        """Try the next address, and those after it as long as they fail at once."""
        self._timer = None
        while self._tried < len(self._addresses):
            address = self._addresses[self._tried]
            self._tried += 1
            code = self._attempt(address)
            if not code:
                return
            if code == errno.EINPROGRESS:
                if self._tried < len(self._addresses):
                    self._timer = self.dialer.reactor.callLater(self.dialer.attempt_delay, self._try_next)
                return
            self._note(code)
        if not self._attempts:
            self._fail()

    def _attempt(self, address: IPAddress) -> int:
        """Begin to connect: 0 if that was all, EINPROGRESS, or the error it failed with at once."""
        kind = family(address)
        try:
            sock = self.dialer.make_socket(kind, _STREAM)
        except OSError as error:
            return error.errno or errno.EMFILE
        if sock.getblocking():
            sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = sock.connect_ex((socket.inet_ntop(kind, address.packed), self._port))  # str() takes three times as long
        if not code or code == errno.EINPROGRESS:
            code = _outcome(sock)  # on the same machine it is settled already: that saves a turn of the reactor
        if code == errno.EINPROGRESS:
            self._attempts.append(_Attempt(self, sock, address))
        elif code:
            sock.close()
        else:
            self._connected(sock, address)
        return code

    def settled(self, attempt: _Attempt, code: int) -> None:
        """An attempt that was under way has connected (0) or failed."""
        self._attempts.remove(attempt)
        if not code:
            self._connected(attempt.socket, attempt.address)
            return
        attempt.socket.close()
        self._note(code)
        if self._timer is not None:
            self._timer.cancel()
        self._try_next()

    def _connected(self, sock: socket.socket, address: IPAddress) -> None:
        done = self._finish()
        try:
            protocol = self._protocol()
            dialer = self.dialer
            Stream(sock, protocol, dialer.reactor, dialer.readiness, bulk_read=dialer.bulk_read).begin()
        except Exception:  # noqa: BLE001 - whatever a caller's protocol raises is told to the caller
            done.errback(Failure())
        else:
            done.callback((protocol, address))

    def _note(self, code: int) -> None:
        if code in _REFUSED:
            self._errors.add(ErrorType.CONNECTION_REFUSED)
        elif code in _EXHAUSTED:
            self._errors.add(ErrorType.CONNECTION_LIMIT_REACHED)
            self._addresses = self._addresses[: self._tried]  # the others would meet the same
        elif code == errno.ETIMEDOUT:
            self._errors.add(ErrorType.CONNECTION_TIMEOUT)
        else:
            self._errors.add(ErrorType.DESTINATION_IP_UNROUTABLE)

    def _too_late(self) -> None:
        self._errors.add(ErrorType.CONNECTION_TIMEOUT)
        self._fail()

    def _fail(self) -> None:
        error = next(error for error in _TELLING if error in self._errors)
        tried = "1 address" if self._tried == 1 else f"{self._tried} addresses"
        self._finish().errback(ProxyError(error, f"{_TELLING[error]} ({tried} tried)"))

    def _finish(self) -> Deferred[tuple[P, IPAddress]]:
        """The Deferred, to be fired; we forget it, as a cycle for each connection would be work for the collector."""
        self._release()
        done, self._done = self._done, None
        assert done is not None
        return done

    def _release(self, cancelled: object = None) -> None:
        """Let go of everything that waits; also the way in which the Deferred is cancelled."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for attempt in self._attempts:
            attempt.close()
        self._attempts.clear()


@implementer(IWriteDescriptor)
class _Attempt:
    """A socket that is connecting to one address: it can be written to when that is settled."""

    __slots__ = ("_dial", "_fd", "_watch", "address", "socket")

    def __init__(self, dial: _Dial[Any], sock: socket.socket, address: IPAddress) -> None:
        self._dial = dial
        self._fd = sock.fileno()
        self.socket = sock
        self.address = address
        readiness = dial.dialer.readiness
        if readiness is None:
            self._watch = None
            dial.dialer.reactor.addWriter(self)
        else:
            self._watch = Watch(readiness, self._fd, _already_logged)
            self._watch.write = self.doWrite
            self._watch.apply()

    def doWrite(self) -> None:
        """The kernel has news of the socket, or of one before it that had the same number."""
        code = _outcome(self.socket)
        if code != errno.EINPROGRESS:
            self._unwatch()
            self._dial.settled(self, code)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an error and let go of the socket."""
        self._dial.dialer.reactor.addWriter(self)
        self.doWrite()

    def close(self) -> None:
        """Lost the race, or nobody wants it any more."""
        self._unwatch()
        self.socket.close()

    def _unwatch(self) -> None:
        if self._watch is None:
            self._dial.dialer.reactor.removeWriter(self)
        else:
            self._watch.close()

    def fileno(self) -> int:
        """The descriptor the reactor watches; the number stays the same when the socket is closed or handed over."""
        return self._fd

    def logPrefix(self) -> str:
        """What Twisted's log calls us."""
        return "proxyd"


def _already_logged(failure: Failure | None) -> None:
    """An attempt always waits, so its socket breaks under nobody's eyes only by a bug of ours, which is logged."""


def _outcome(sock: socket.socket) -> int:
    """What came of connecting: 0 if it is connected, EINPROGRESS while it is not, else the error."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return code
    try:
        peer = sock.getpeername()
    except OSError:  # ENOTCONN
        return errno.EINPROGRESS
    # A port of ours that nobody listens at can be the very one the kernel gives to this socket: TCP then connects it to
    # itself (simultaneous open, RFC 9293 §3.5).
    return errno.ECONNREFUSED if peer == sock.getsockname() else 0
