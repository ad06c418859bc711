"""What the tests of the doors stand on: an egress without a proxy, its ways out scripted, its connections in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from proxyd.errors import ErrorType, ProxyError
from proxyd.flow import Client, Egress
from proxyd.frontends.arrival import arrive
from proxyd.ledger.record import AccessRecord
from proxyd.net.connection import Connection
from proxyd.net.deadlines import Deadlines
from proxyd.net.pool import IdlePool
from proxyd.policy.rules import Policy, Rule
from proxyd.request import Door, Identity, IPAddress
from proxyd.settings import Listener, Settings

NOW = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110 §5.6.7."""
DATE = b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
VIA = b"Via: 1.1 proxyd-test\r\n"

ORIGIN = ip_address("203.0.113.7")
NAMES: dict[str, Sequence[IPAddress]] = {"origin.example": (ip_address("198.18.0.7"),)}

GET = b"GET http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n"
GOT = b"GET / HTTP/1.1\r\nHost: origin.example\r\n" + VIA + b"\r\n"
"""What the origin gets of it."""
OK = b"HTTP/1.1 200 OK\r\n" + DATE + b"Content-Length: 2\r\n\r\nok"
SAID_OK = b"HTTP/1.1 200 OK\r\n" + DATE + VIA + b"Content-Length: 2\r\n\r\nok"
"""What the client gets of that."""

BUFFER = 65536
"""Bytes that wait for a reader before the memory transport's producer has to pause."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class Memory:
    """A transport whose other side is the test, as particular about its use as Twisted's.

    ``eager``: bytes that wait are delivered within `resumeProducing`, as the TLS layer does it.
    """

    def __init__(self, clock: Clock, protocol: Connection, *, eager: bool = False) -> None:
        self._clock = clock
        self._eager = eager
        self._incoming: list[bytes] = []
        self._ended = False
        self._written: list[bytes] = []
        self._pending = 0
        self._taken = b""
        self.protocol = protocol
        self.host: Any = IPv4Address("TCP", "192.0.2.1", 40000)
        self.reading = False
        self.stalled = False
        self.producer: Any = None
        self.producer_paused = False
        self.saying_fin = self.closing = False
        self.said_fin = self.aborted = self.lost = False

    # -- what the other side does -------------------------------------------------------------------------------------

    def says(self, *pieces: bytes) -> None:
        """Send bytes, each piece a segment."""
        self._incoming += pieces
        self._deliver()

    def trickles(self, data: bytes) -> None:
        """Send bytes one by one."""
        self.says(*(data[at : at + 1] for at in range(len(data))))

    def closes(self) -> None:
        """Send FIN."""
        self._ended = True
        self._deliver()

    def resets(self) -> None:
        """Break the connection."""
        self._lose(Failure(ConnectionLost()))

    def takes(self) -> None:
        """Read all that was sent, after it had stopped reading (``stalled``)."""
        self.stalled = False
        self._taken += b"".join(self._written)
        self._written.clear()
        if self.producer_paused and self.producer is not None:
            self.producer_paused = False
            self.producer.resumeProducing()
        elif self.closing or self.saying_fin:
            self._written_all()

    @property
    def heard(self) -> bytes:
        """What it has got since it was asked last."""
        heard, self._taken = self._taken, b""
        return heard

    @property
    def pending(self) -> int:
        """Bytes that wait for it to read."""
        return sum(map(len, self._written))

    @property
    def closed(self) -> bool:
        """Whether it has seen the end, or will when it has read everything."""
        return self.said_fin or self.closing or self.aborted or self.lost

    def _deliver(self) -> None:
        while self.reading and self._incoming and not self.lost:
            self.protocol.dataReceived(self._incoming.pop(0))
        if self.reading and self._ended and not self.lost:
            self.reading = False
            self.protocol.readConnectionLost()

    def _lose(self, reason: Failure) -> None:
        if not self.lost:
            self.lost = True
            self.reading = False
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(reason)

    def _written_all(self) -> None:
        if self.closing:
            self._clock.callLater(0, self._lose, Failure(ConnectionDone()))
        else:
            self.said_fin = True

    # -- what its user may do -----------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send."""
        assert type(data) is bytes
        if self.lost or self.aborted or self.saying_fin or self.closing:
            return
        if not self.stalled:
            self._taken += data
            return
        self._written.append(data)
        if self.producer is not None and self.pending > BUFFER:
            self.producer_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send."""
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """Say FIN behind what was written."""
        if not self.saying_fin:
            self.saying_fin = True
            if not self.pending:
                self._written_all()

    def loseConnection(self) -> None:
        """Close behind what was written."""
        if not self.closing and not self.lost:
            self.closing = True
            self.reading = False
            if not self.pending:
                self._written_all()

    def abortConnection(self) -> None:
        """Reset."""
        if not self.aborted and not self.lost:
            self.aborted = True
            self.reading = False
            self._clock.callLater(0, self._lose, Failure(ConnectionAborted()))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Be told when to pause."""
        if self.producer is not None:
            raise RuntimeError("a producer is registered already")
        assert streaming
        self.producer = producer
        if self.lost:
            producer.stopProducing()

    def unregisterProducer(self) -> None:
        """Be told no more."""
        self.producer = None
        if self.closing and not self.lost and not self.pending:
            self._written_all()

    def pauseProducing(self) -> None:
        """Read no more."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read on."""
        if self.lost or self.closing or self.aborted:
            return
        self.reading = True
        if self._eager:
            self._deliver()
        else:
            self._clock.callLater(0, self._deliver)

    def stopProducing(self) -> None:
        """Close."""
        self.loseConnection()

    def getHost(self) -> Any:
        """Our address."""
        return self.host

    def getPeer(self) -> IPv4Address:
        """The other side's."""
        return IPv4Address("TCP", "192.0.2.9", 50000)

    def getTcpNoDelay(self) -> bool:
        """Nothing is delayed."""
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is delayed."""

    def getTcpKeepAlive(self) -> bool:
        """Nothing dies unseen."""
        return False

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nothing dies unseen."""


@dataclass
class Dialing:
    """One connection that was asked for."""

    addresses: Sequence[IPAddress]
    port: int
    timeout: float
    deferred: Deferred[tuple[Connection, IPAddress]]
    cancelled: bool = False


@dataclass
class Dialer:
    """Does what the test tells it; ``instant``: connects at once; ``when_cancelled``: what happens just then."""

    clock: Clock
    instant: bool = True
    eager: bool = False
    when_cancelled: Callable[[], object] = field(default=lambda: None)
    dialings: list[Dialing] = field(default_factory=list)
    origins: list[Memory] = field(default_factory=list)

    def dial(
        self, addresses: Sequence[IPAddress], port: int, protocol: Callable[[], Connection], timeout: float
    ) -> Deferred[tuple[Connection, IPAddress]]:
        """Asked by the flow."""
        dialing = Dialing(addresses, port, timeout, Deferred(self._cancelled))
        self.dialings.append(dialing)
        if self.instant:
            self.connects()
        return dialing.deferred

    def _cancelled(self, deferred: Deferred[Any]) -> None:
        next(each for each in self.dialings if each.deferred is deferred).cancelled = True
        self.when_cancelled()

    def connects(self, host: Any = None) -> Memory:
        """The last one that was asked for is there; ``host``: the address that we have towards it."""
        dialing = self.dialings[-1]
        connection = Connection()
        origin = Memory(self.clock, connection, eager=self.eager)
        origin.host = host or origin.host
        connection.makeConnection(origin)
        self.origins.append(origin)
        dialing.deferred.callback((connection, dialing.addresses[0]))
        return origin

    def fails(self, error: ErrorType, detail: str = "as scripted") -> None:
        """The last one that was asked for is not to be had."""
        self.dialings[-1].deferred.errback(ProxyError(error, detail))


class Resolver:
    """Knows a few names; others do not exist. ``waiting``: answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waiting: Deferred[Sequence[IPAddress]] | None = None

    def resolve(self, name: str) -> Sequence[IPAddress] | Deferred[Sequence[IPAddress]]:
        """Asked by the flow."""
        self.asked.append(name)
        if self.waiting is not None:
            return self.waiting
        if name not in NAMES:
            raise ProxyError(ErrorType.DNS_ERROR, "the name does not exist")
        return NAMES[name]


class Accounts:
    """One user: ``alice`` with the password ``open sesame``. ``waiting``: answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.waiting: Deferred[Identity | None] | None = None
        self.error: ProxyError | None = None

    def recall(self, words: bytes) -> Identity | None:
        """Asked by the doors; every proof is as good as new."""
        return None

    def authenticate(
        self, name: bytes, password: bytes, proof: str, words: bytes = b""
    ) -> Identity | None | Deferred[Identity | None]:
        """Asked by the doors."""
        self.asked.append((name, password))
        if self.error is not None:
            raise self.error
        if self.waiting is not None:
            return self.waiting
        return Identity("alice", proof) if (name, password) == (b"alice", b"open sesame") else None


class Records(list[AccessRecord]):
    """Takes access records."""

    def record(self, record: AccessRecord) -> None:
        """One more has ended."""
        self.append(record)


ALLOW = Rule("all", True, ("*",), ports=(range(1, 65536),), special_addresses=True)
EVERYWHERE = frozenset(Door)


def listener(
    *doors: Door, detect: bool = False, tls_first: bool = False, proxy_protocol: bool = False, tls: Any = None
) -> Listener:
    """A listener for some doors, all of them if none is named."""
    return Listener("test", "tcp:0", frozenset(doors) or EVERYWHERE, detect, tls, tls_first, proxy_protocol)


class DoorCase(SynchronousTestCase):
    """A test of something behind a listener; at its end every flow has ended, in exactly one record."""

    rules: tuple[Rule, ...] = (ALLOW,)
    settings = Settings(continue_wait=0.02)
    listener = listener(Door.FORWARD, Door.CONNECT)
    splicer: Any = None

    def setUp(self) -> None:
        self.clock = self.make_clock()
        self.clock.rightNow = NOW
        self.records = Records()
        self.resolver = Resolver()
        self.dialer = Dialer(self.clock)
        self.accounts = Accounts()
        self.deadlines = Deadlines(self.clock)
        self.began = 0
        self.egress = Egress(
            clock=self.clock,
            settings=self.settings,
            policy=Policy(self.rules, {}),
            accounts=None,
            realm="the realm",
            resolver=self.resolver,
            dialer=self.dialer,
            deadlines=self.deadlines,
            pool=IdlePool(self.clock, self.deadlines, idle_timeout=15, size=8),
            splicer=self.splicer,
            access_log=self.records,
            via="proxyd-test",
        )
        self.addCleanup(self.check_flows)

    def make_clock(self) -> Clock:
        """The time, and whatever else a test needs of a reactor."""
        return Clock()

    def check_flows(self) -> None:
        """Whatever happened in the test, no flow is left without its record, and none has two."""
        self.assertEqual(self.egress.flows, {})
        self.assertEqual(len({record.id for record in self.records}), len(self.records))

    def connect(self, *, eager: bool = False, tls: Any = None, identity: Identity | None = None) -> Memory:
        """A client that has just connected."""
        connection = Connection()
        client = Memory(self.clock, connection, eager=eager)
        connection.makeConnection(client)
        arrive(connection, Client(self.listener, ip_address("192.0.2.9"), 50000, identity), self.egress, tls)
        client.reading = True
        return client

    def change(self, **settings: Any) -> None:
        """Have other settings from now on."""
        values = {name: getattr(self.egress.settings, name) for name in Settings.__slots__}
        self.egress.settings = Settings(**values | settings)

    def turn(self, seconds: float = 0) -> None:
        """Let time pass in small steps, so that deadlines come in order."""
        self.clock.pump([0.125] * int(seconds * 8) or [0])

    def drained(self, *transports: Memory) -> None:
        """All of these connections are closed, and nobody holds on to them."""
        self.turn()
        for transport in transports:
            self.assertTrue(transport.lost)
            self.assertIsNone(transport.producer)

    @property
    def origin(self) -> Memory:
        """The connection to an origin that was opened last."""
        return self.dialer.origins[-1]

    @property
    def record(self) -> AccessRecord:
        """The one record there is."""
        (record,) = self.records
        return record

    def outcome(self, *names: str) -> list[tuple[Any, ...]]:
        """These fields of all records."""
        return [tuple(getattr(record, name) for name in names) for record in self.records]
