"""Tests for proxyd.listening."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import socket
import ssl
from pathlib import Path
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.certificates import SelfSigned
from proxyd.config import Config
from proxyd.equipment import Equipment, Replacements
from proxyd.listening import Changes, ListenError, Listening
from proxyd.testing import LabReactor, Peer, RecordList, ScriptedDialer, StaticResolver
from tests.loopback import connect

RULE = "[rule:all]\naction = allow\ndestinations = *\n"
CLIENT = IPv4Address("TCP", "192.0.2.7", 50000)


def configured(**endpoints: str) -> Config:
    """A configuration with an HTTP listener at each of these endpoints."""
    listener = "[listener:{}]\nendpoint = {}\naccept = forward\n"
    return Config.from_string("".join(listener.format(*item) for item in endpoints.items()) + RULE)


def a_certificate(directory: Path, name: str = "proxy.example.com") -> str:
    """An ``ssl:`` endpoint for a new certificate, on port 8443."""
    directory.mkdir(exist_ok=True)
    for file in directory.glob("*.pem"):
        file.unlink()
    certificate, private_key = SelfSigned.make([name], datetime.datetime.now(datetime.UTC)).write(directory)
    return f"ssl:8443:privateKey={private_key}:certKey={certificate}"


class ChangeTests(SynchronousTestCase):
    """Listeners come, go and change."""

    def setUp(self) -> None:
        self.reactor = LabReactor()
        replacements = Replacements(RecordList(), ScriptedDialer(self.reactor), StaticResolver())
        self.equipment = Equipment(self.reactor, replacements)
        self.equipment.adopt(self.equipment.prepare(configured(a="tcp:1")))
        self.listening = Listening(self.reactor, self.equipment, {})

    def change(self, **endpoints: str) -> Changes:
        """Listen there, and nowhere else."""
        return self.listening.change(configured(**endpoints))

    def ports(self) -> dict[str, int]:
        """The port of each listener."""
        return {name: address.port for name, address in self.listening.addresses().items()}  # type: ignore[attr-defined]

    def client(self, port: int) -> Peer:
        """A client of a port."""
        client = Peer(self.reactor)
        self.reactor.connect(client, CLIENT, IPv4Address("TCP", "0.0.0.0", port))
        self.reactor.settle()
        return client

    def answered_as(self, client: Peer) -> str:
        """The name of the listener that a client's request is counted for."""
        client.send(b"nonsense\r\n\r\n")
        records = self.equipment.egress.access_log
        assert isinstance(records, RecordList)
        return records[-1].listener

    def test_open(self) -> None:
        """Every listener is opened, on the port that is asked for or one of its own, in the order of the file."""
        changes = self.change(b="tcp:8080", a="tcp:0")
        self.assertEqual(changes, Changes(added=("b", "a"), removed=(), changed=()))
        self.assertEqual(list(self.ports().items()), [("b", 8080), ("a", 49152)])

    def test_same(self) -> None:
        """Nothing happens to listeners that stay as they are, on any port."""
        self.change(a="tcp:0", b="tcp:8080")
        before = self.ports()
        self.assertEqual(self.change(a="tcp:0", b="tcp:8080"), Changes((), (), ()))
        self.assertEqual(self.ports(), before)

    def test_added_and_removed(self) -> None:
        """New ones are opened and old ones are closed."""
        self.change(a="tcp:8080", b="tcp:8081")
        self.assertEqual(self.change(b="tcp:8081", c="tcp:8082"), Changes(("c",), ("a",), ()))
        self.assertEqual(self.ports(), {"b": 8081, "c": 8082})
        self.assertRaises(ConnectionRefusedError, self.client, 8080)

    def test_moved(self) -> None:
        """A listener that moves is opened at its new place and closed at the old one."""
        self.change(a="tcp:8080")
        self.assertEqual(self.change(a="tcp:8081"), Changes((), (), ("a",)))
        self.assertEqual(self.ports(), {"a": 8081})
        self.assertRaises(ConnectionRefusedError, self.client, 8080)

    def test_renamed(self) -> None:
        """A port whose listener gets another name is never closed; its clients count for the new name from then on."""
        self.change(a="tcp:8080")
        before = self.client(8080)
        self.assertEqual(self.change(b="tcp:8080"), Changes(("b",), ("a",), ()))
        self.assertEqual(self.answered_as(self.client(8080)), "b")
        self.assertEqual(self.answered_as(before), "a")

    def test_exchanged(self) -> None:
        """Two listeners can exchange their ports."""
        self.change(a="tcp:8080", b="tcp:8081")
        self.assertEqual(self.change(a="tcp:8081", b="tcp:8080"), Changes((), (), ("a", "b")))
        self.assertEqual(self.answered_as(self.client(8080)), "b")
        self.assertEqual(self.answered_as(self.client(8081)), "a")

    def test_other_doors(self) -> None:
        """A listener whose options change keeps its port; new clients meet the new options."""
        self.change(a="tcp:8080")
        socks = Config.from_string("[listener:a]\nendpoint = tcp:8080\naccept = socks5\n" + RULE)
        self.assertEqual(self.listening.change(socks), Changes((), (), ("a",)))
        client = self.client(8080)
        client.send(b"\x05\x01\x00")
        self.assertEqual(client.received(), b"\x05\x00")

    def test_one_cannot_be_opened(self) -> None:
        """If one cannot be opened, none of the new ones is, and the old ones go on as they were."""
        self.change(a="tcp:8080", b="tcp:8081")
        self.reactor.listenTCP(8099, Factory())
        error = self.assertRaises(ListenError, self.change, b="tcp:8080", c="tcp:8082", d="tcp:8099")
        self.assertEqual(str(error), 'listener "d": cannot listen on tcp:8099: [Errno 98] Address already in use')
        self.assertEqual(self.ports(), {"a": 8080, "b": 8081})
        self.assertRaises(ConnectionRefusedError, self.client, 8082)
        self.assertEqual(self.answered_as(self.client(8080)), "a")
        self.assertEqual(self.answered_as(self.client(8081)), "b")

    def test_close(self) -> None:
        """When all are closed nobody listens any more; that takes a turn of the reactor for each, failed ones too."""
        self.change(a="tcp:8080")
        self.reactor.listenTCP(8099, Factory())
        self.assertRaises(ListenError, self.change, b="tcp:8081", c="tcp:8099")
        closed = self.listening.close()
        self.assertNoResult(closed)
        self.reactor.settle()
        self.successResultOf(closed)
        self.assertEqual(self.ports(), {})
        self.successResultOf(self.listening.close())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    # -- TLS ----------------------------------------------------------------------------------------------------------

    def name(self) -> str:
        """The name in the certificate of port 8443."""
        client = self.client(8443)
        certificate = client.start_tls().get_peer_certificate(as_cryptography=True)
        client.close()
        assert certificate is not None
        return str(certificate.subject.rfc4514_string())

    def visit(self, session: ssl.SSLSession | None = None) -> ssl.SSLObject:
        """A client of port 8443 after its handshake, which tries to resume the session."""
        answers, records = ssl.MemoryBIO(), ssl.MemoryBIO()
        visitor = self.context.wrap_bio(answers, records, session=session)
        client = self.client(8443)
        for _ in range(2):
            with contextlib.suppress(ssl.SSLWantReadError):
                visitor.do_handshake()
            client.send(records.read())
            answers.write(client.received())
        visitor.do_handshake()
        return visitor

    @functools.cached_property
    def context(self) -> ssl.SSLContext:
        """A client that believes every certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # the ticket comes with the handshake
        return context

    def test_session_tickets(self) -> None:
        """A client can resume its session after a reload that leaves the certificate alone, also on a renamed port."""
        endpoint = a_certificate(Path(self.mktemp()).absolute())
        self.change(a=endpoint)
        session = self.visit().session
        for name in ("a", "b"):
            self.change(**{name: endpoint})
            self.assertTrue(self.visit(session).session_reused)

    def test_session_tickets_of_another_certificate(self) -> None:
        """It cannot when the certificate was renewed."""
        directory = Path(self.mktemp()).absolute()
        self.change(a=a_certificate(directory))
        session = self.visit().session
        self.change(a=a_certificate(directory))
        self.assertFalse(self.visit(session).session_reused)

    def test_certificate(self) -> None:
        """A listener shows its certificate; a renewed one is shown right after a reload."""
        directory = Path(self.mktemp()).absolute()
        self.change(a=a_certificate(directory))
        self.assertEqual(self.name(), "CN=proxy.example.com")
        endpoint = a_certificate(directory, "other.example.com")
        self.assertEqual(self.change(a=endpoint), Changes((), (), ()))
        self.assertEqual(self.name(), "CN=other.example.com")

    def test_unusable_certificate(self) -> None:
        """A certificate that cannot be used is told in one line, before anything is opened or closed."""
        directory = Path(self.mktemp()).absolute()
        endpoint = a_certificate(directory)
        self.change(a="tcp:8080")
        (directory / "proxyd-cert.pem").write_text("no certificate")
        error = self.assertRaises(ListenError, self.change, b="tcp:8081", c=endpoint)
        expected = f'listener "c": the certificate {directory}/proxyd-cert.pem and its key cannot be used: '
        self.assertTrue(str(error).startswith(expected), str(error))
        self.assertEqual(len(str(error).splitlines()), 1)
        self.assertEqual(self.ports(), {"a": 8080})

    def test_renewed_unusable_certificate(self) -> None:
        """So is each time one that was renewed and cannot be used; the one before is shown."""
        directory = Path(self.mktemp()).absolute()
        endpoint = a_certificate(directory)
        self.change(a=endpoint)
        (directory / "proxyd-cert.pem").write_text("no certificate")
        for _ in range(2):
            self.assertRaises(ListenError, self.change, a=endpoint, b="tcp:8081")
        self.assertEqual(self.name(), "CN=proxy.example.com")
        self.assertEqual(self.ports(), {"a": 8443})

    def test_vanished_certificate(self) -> None:
        """So is one that is not there any more."""
        directory = Path(self.mktemp()).absolute()
        config = configured(a=a_certificate(directory))
        (directory / "proxyd-key.pem").unlink()
        self.assertRaises(ListenError, self.listening.change, config)


class SocketTests(TestCase):
    """Listeners on real sockets."""

    timeout = 20

    def setUp(self) -> None:
        self.inodes: dict[int, int] = {}
        self.equipment = Equipment(reactor, Replacements(RecordList(), resolver=StaticResolver()))
        self.equipment.adopt(self.equipment.prepare(configured(a="tcp:1")))
        self.addCleanup(self.equipment.stop)

    def listening(self, **inherited: int) -> Listening:
        """Listeners, some of which have their sockets already."""
        listening = Listening(reactor, self.equipment, inherited)
        self.addCleanup(listening.close)
        return listening

    def bound_socket(self) -> tuple[int, int]:
        """The descriptor of a socket that listens, and its port; the caller's, as if another process had passed it."""
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self.inodes[listener.fileno()] = os.fstat(listener.fileno()).st_ino
        return listener.detach(), port

    def assertClosed(self, descriptor: int) -> None:
        """The descriptor is closed; its number may be in use for something else already."""
        try:
            self.assertNotEqual(os.fstat(descriptor).st_ino, self.inodes[descriptor])
        except OSError:
            pass

    async def check_served(self, address: Any) -> None:
        """The listener answers."""
        client = await connect(address)
        client.transport.write(b"nonsense\r\n\r\n")
        self.assertIn(b"400 Bad Request", await client.until(b"\r\n\r\n"))
        client.transport.loseConnection()
        while self.equipment.crowd.present:
            await deferLater(reactor, 0.01)

    async def test_loopback(self) -> None:
        """A listener on port 0 gets a free port, and is gone when it is closed."""
        listening = self.listening()
        listening.change(configured(a="tcp:0:interface=127.0.0.1"))
        address = listening.addresses()["a"]
        await self.check_served(address)
        await listening.close()
        with socket.socket() as client:
            self.assertNotEqual(client.connect_ex(("127.0.0.1", address.port)), 0)  # type: ignore[attr-defined]

    async def test_unix(self) -> None:
        """A listener may be a Unix socket."""
        path = str(Path(self.mktemp()).absolute())
        listening = self.listening()
        listening.change(configured(a=f"unix:{path}:mode=600"))
        self.assertEqual(listening.addresses(), {"a": UNIXAddress(path.encode())})
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        await self.check_served(listening.addresses()["a"])

    async def test_address_in_use(self) -> None:
        """Of two listeners of which the second cannot be bound neither stays."""
        descriptor, port = self.bound_socket()
        self.addCleanup(os.close, descriptor)
        listening = self.listening()
        free, freed = self.bound_socket()
        os.close(free)
        config = configured(a=f"tcp:{freed}:interface=127.0.0.1", b=f"tcp:{port}:interface=127.0.0.1")
        error = self.assertRaises(ListenError, listening.change, config)
        expected = f'listener "b": cannot listen on tcp:{port}:interface=127.0.0.1: [Errno 98] Address already in use'
        self.assertEqual(str(error), expected)
        await listening.close()
        socket.create_server(("127.0.0.1", freed)).close()

    async def test_unix_in_use(self) -> None:
        """A path that somebody listens at is told as well."""
        path = str(Path(self.mktemp()).absolute())
        self.listening().change(configured(a=f"unix:{path}"))
        other = self.listening()
        error = self.assertRaises(ListenError, other.change, configured(b=f"unix:{path}"))
        self.assertTrue(str(error).startswith(f'listener "b": cannot listen on unix:{path}'), str(error))

    def test_foreign_interface(self) -> None:
        """So is an address that this machine does not have."""
        error = self.assertRaises(ListenError, self.listening().change, configured(a="tcp:0:interface=203.0.113.9"))
        self.assertIn("Cannot assign requested address", str(error))

    def test_nothing_from_systemd(self) -> None:
        """And a socket that systemd has not passed."""
        for which in ("name=proxyd", "index=7"):
            config = configured(a=f"systemd:domain=INET:{which}")
            error = self.assertRaises(ListenError, self.listening().change, config)
            self.assertIn("systemd has passed no such socket", str(error))

    async def test_inherited(self) -> None:
        """A socket that is bound already is used in place of a new one, and closed with its listener."""
        descriptor, port = self.bound_socket()
        listening = self.listening(a=descriptor)
        listening.change(configured(a="tcp:1", b="tcp:0:interface=127.0.0.1"))
        address = listening.addresses()["a"]
        self.assertEqual(address, IPv4Address("TCP", "127.0.0.1", port))
        await self.check_served(address)
        self.assertEqual(listening.change(configured(a="tcp:1")), Changes((), ("b",), ()))
        self.assertEqual(listening.addresses(), {"a": address})
        await listening.close()
        self.assertClosed(descriptor)
        with socket.socket() as client:
            self.assertNotEqual(client.connect_ex(("127.0.0.1", port)), 0)

    async def test_inherited_later(self) -> None:
        """A listener that comes with a reload may have its socket from elsewhere too."""
        listening = self.listening()
        listening.change(configured(a="tcp:0:interface=127.0.0.1"))
        descriptor, port = self.bound_socket()
        listening.inherit({"b": descriptor})
        self.assertEqual(listening.change(configured(b="tcp:1")), Changes(("b",), ("a",), ()))
        self.assertEqual(listening.addresses(), {"b": IPv4Address("TCP", "127.0.0.1", port)})
        await self.check_served(listening.addresses()["b"])

    async def test_inherited_in_a_foreign_reactor(self) -> None:
        """Without an epoll set of our own it is Twisted that takes it over."""
        if self.equipment.readiness is not None:
            self.equipment.readiness.stop()
        self.equipment.readiness = None
        descriptor, _ = self.bound_socket()
        listening = self.listening(a=descriptor)
        listening.change(configured(a="tcp:1"))
        await self.check_served(listening.addresses()["a"])

    def test_inherited_in_vain(self) -> None:
        """A descriptor of which no listener has the name is closed: nobody would ever accept its clients."""
        descriptor, _ = self.bound_socket()
        self.listening(other=descriptor).change(configured(a="tcp:0:interface=127.0.0.1"))
        self.assertClosed(descriptor)

    async def test_inherited_and_unused(self) -> None:
        """Descriptors are closed too when nothing comes of listening."""
        descriptor, _ = self.bound_socket()
        listening = self.listening(b=descriptor)
        self.assertRaises(ListenError, listening.change, configured(a="tcp:0:interface=203.0.113.9", b="tcp:1"))
        await listening.close()
        self.assertClosed(descriptor)

    def test_inherited_nonsense(self) -> None:
        """A descriptor that is no socket is told."""
        descriptor = os.open(os.devnull, os.O_RDONLY)
        listening = self.listening(a=descriptor)
        error = self.assertRaises(ListenError, listening.change, configured(a="tcp:1"))
        self.assertIn('listener "a": cannot listen on tcp:1: ', str(error))
        listening.close()
        self.assertRaises(OSError, os.fstat, descriptor)
