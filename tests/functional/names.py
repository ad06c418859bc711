"""A DNS server on loopback, in a thread of its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from threading import Thread

from twisted.names import dns


class NameServer:
    """Knows the IPv4 addresses of a few names; ``asked`` tells what it was asked for, in order."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = dict(addresses)
        self.asked: list[tuple[str, int]] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(4096)
            if not data:
                return
            self._socket.sendto(self.reply(data), client)

    def reply(self, data: bytes) -> bytes:
        """The reply to one question: an address, none of that type, or that there is no such name."""
        message = dns.Message()
        message.fromStr(data)
        [query] = message.queries
        name = query.name.name.decode("ascii").lower()
        self.asked.append((name, query.type))
        message.answer, message.recAv = 1, 1
        address = self.addresses.get(name)
        if address is None:
            message.rCode = dns.ENAME
        elif query.type == dns.A:
            message.answers = [dns.RRHeader(name, dns.A, ttl=60, payload=dns.Record_A(address, 60))]
        return message.toStr()

    def close(self) -> None:
        """Stop the thread, by a datagram that is no question."""
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()
