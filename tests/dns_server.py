"""A DNS server on loopback that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

from twisted.internet.defer import DeferredQueue
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver
from twisted.trial.unittest import TestCase

Say = Callable[[dns.Message], bytes | None]
"""Makes the reply to a query; ``None`` is silence."""


def records(*lines: str) -> list[dns.RRHeader]:
    """Records in the manner of a zone file: ``"a.example 60 A 192.0.2.1"``."""
    made = []
    for line in lines:
        name, ttl, kind, data = line.split()
        payload = getattr(dns, f"Record_{kind}")(data)
        made.append(dns.RRHeader(name, payload.TYPE, ttl=int(ttl), payload=payload))
    return made


def say(*lines: str, code: int = dns.OK, truncated: bool = False) -> Say:
    """Reply with these records, whatever the name."""

    def make(query: dns.Message) -> bytes:
        message = dns.Message(query.id, answer=1, recDes=1, recAv=1, rCode=code, trunc=truncated, maxSize=0)
        message.queries = query.queries
        message.answers = records(*lines)
        return message.toStr()

    return make


def silence(query: dns.Message) -> None:
    """No reply."""


class DNSServer(DatagramProtocol):
    """Replies by name and type over UDP and by ``over_tcp`` over TCP; names it was not told of do not exist."""

    noisy = False

    def __init__(self) -> None:
        self.replies: dict[tuple[str, int], Say] = {}
        self.default = say(code=dns.ENAME)
        self.over_tcp: Say = silence
        self.asked: list[tuple[str, int]] = []
        self.heard: DeferredQueue[dns.Message] = DeferredQueue()

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        query = self.read(datagram)
        asked = (query.queries[0].name.name.decode(), query.queries[0].type)
        self.asked.append(asked)
        reply = self.replies.get(asked, self.default)(query)
        if reply is not None:
            self.transport.write(reply, addr)
        self.heard.put(query)

    @staticmethod
    def read(data: bytes) -> dns.Message:
        query = dns.Message()
        query.fromStr(data)
        return query

    def listen(self, test: TestCase, reactor: Any) -> tuple[IPv4Address, int]:
        """Start on a free port, until the test ends."""
        factory = Factory.forProtocol(lambda: _Stream(self))
        factory.noisy = False
        return listen(test, reactor, self, factory)


def listen(test: TestCase, reactor: Any, datagrams: DatagramProtocol, streams: Factory) -> tuple[IPv4Address, int]:
    """Listen on one free port for both UDP and TCP, until the test ends."""
    for _ in range(20):
        stream = reactor.listenTCP(0, streams, interface="127.0.0.1")
        test.addCleanup(stream.stopListening)
        port = stream.getHost().port
        try:
            datagram = reactor.listenUDP(port, datagrams, interface="127.0.0.1")
        except CannotListenError:
            continue  # the UDP port of that number is somebody else's
        test.addCleanup(datagram.stopListening)
        return IPv4Address("127.0.0.1"), port
    raise AssertionError("no port is free")


class _Stream(Int16StringReceiver):
    """One connection over TCP."""

    def __init__(self, server: DNSServer) -> None:
        self.server = server

    def stringReceived(self, string: bytes) -> None:
        query = self.server.read(string)
        reply = self.server.over_tcp(query)
        if reply is None:
            self.transport.loseConnection()
        else:
            self.sendString(reply)
        self.server.heard.put(query)


class OwnTime(Clock):
    """A reactor whose sockets are the real one's, and whose time is the test's."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.addReader = reactor.addReader
        self.removeReader = reactor.removeReader
        self.connectTCP = reactor.connectTCP
