"""What an operator does to a running proxy, and what the machine does to it: signals, rotation, limits, full disks."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.functional.clients import Client, agent_tls, connected
from tests.functional.origin import INVALID_METHOD, pattern
from tests.functional.running import PATIENCE, PROJECT, Proxyd, ProxydTestCase, eventually, free_ports

ESTABLISHED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
LOOK = 1.0
"""Seconds for which processor time is counted."""


class OperationsTestCase(ProxydTestCase):
    """A proxy with an HTTP port, a SOCKS5 port and one for everything, whose only destination is the origin."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.start_origin()
        self.ports = free_ports("http", "socks5", "any")

    def configuration(self, *, head: str = "", tail: str = "", port: int = 0, http: str = "forward connect") -> str:
        """The text of a configuration; ``port`` is the one that is allowed, the origin's if there is none."""
        return (
            f"{head}\n[listener:http]\nendpoint = tcp:{self.ports['http']}:interface=127.0.0.1\naccept = {http}\n"
            f"[listener:socks5]\nendpoint = tcp:{self.ports['socks5']}:interface=127.0.0.1\naccept = socks5\n"
            f"[listener:any]\nendpoint = tcp:{self.ports['any']}:interface=127.0.0.1\n"
            f"accept = forward connect socks5\ndetect = yes\n{tail}\n"
            f"[rule:origin]\naction = allow\ndestinations = 127.0.0.1\nports = {port or self.origin.port}\n"
            "special_addresses = yes\n"
        )

    def start(self, **parts: str | int) -> Proxyd:
        """Start it."""
        return self.start_proxyd(self.configuration(**parts), self.ports)

    def reconfigure(self, proxyd: Proxyd, **parts: str | int) -> None:
        """Write another configuration and send SIGHUP."""
        proxyd.config.write_text(self.with_defaults(self.configuration(**parts)))
        proxyd.signal(signal.SIGHUP)

    def get(self, path: str = "/", port: int = 0) -> bytes:
        """A request for the origin."""
        return b"GET http://127.0.0.1:%d%b HTTP/1.1\r\nHost: x\r\n\r\n" % (port or self.origin.port, path.encode())

    def ask(self, path: str = "/", port: int = 0) -> int:
        """The status that a new client gets."""
        with connected(self.ports["http"]) as client:
            return client.ask(self.get(path, port)).status

    @contextmanager
    def tunnel(self) -> Iterator[Client]:
        """A tunnel to the origin."""
        with connected(self.ports["http"]) as client:
            client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % self.origin.port)
            self.assertEqual(client.read_head(), ESTABLISHED)
            yield client

    def assert_carries(self, tunnel: Client, size: int = 300_000) -> None:
        """The tunnel works."""
        response = tunnel.ask(b"GET /bytes/%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)
        self.assertEqual(response.body, pattern(size))


class ReloadTests(OperationsTestCase):
    """SIGHUP."""

    def test_new_rule(self) -> None:
        """A new rule holds for new requests, also on connections that are open; a live tunnel goes on."""
        proxyd = self.start()
        with self.tunnel() as tunnel, connected(self.ports["http"]) as client:
            self.assertEqual(client.ask(self.get()).status, 405)

            self.reconfigure(proxyd, port=self.origin.secure_port)
            proxyd.wait_for_log("reloaded")

            self.assertEqual(client.ask(self.get()).status, 403)
            self.assertEqual(self.ask(), 403)
            self.assert_carries(tunnel)
        self.assertIn("1 live flows no longer allowed", proxyd.log)

    def test_new_listener(self) -> None:
        """A listener that is added takes connections, one that is removed does not; the others never stop."""
        proxyd = self.start()
        other = free_ports("other")["other"]
        with connected(self.ports["http"]) as client:
            old = f"tcp:{self.ports['socks5']}:"
            text = self.with_defaults(self.configuration()).replace("[listener:socks5]", "[listener:more]")
            proxyd.config.write_text(text.replace(old, f"tcp:{other}:"))
            proxyd.signal(signal.SIGHUP)
            proxyd.wait_for_log("reloaded")

            with connected(other) as more:
                more.send(b"\x05\x01\x00")
                self.assertEqual(more.read(2), b"\x05\x00")
            with self.assertRaises(ConnectionRefusedError):
                connected(self.ports["socks5"]).__enter__()
            self.assertEqual(client.ask(self.get()).status, 405)

    def test_broken_file(self) -> None:
        """A file that is wrong changes nothing; one line of the log says what is wrong with it, and where."""
        proxyd = self.start()
        before = len(proxyd.log.splitlines())
        with self.tunnel() as tunnel:
            self.reconfigure(proxyd, head="idle_timeout = soon", port=self.origin.secure_port)
            proxyd.wait_for_log("not reloaded")

            self.assertEqual(self.ask(), 405)
            self.assert_carries(tunnel)
        lines = proxyd.log.splitlines()[before:]
        [line] = [line for line in lines if "reloaded" in line]
        self.assertIn(f"{proxyd.config}:", line)
        self.assertIn("[proxyd] idle_timeout", line)

        self.reconfigure(proxyd, port=self.origin.secure_port)
        eventually(lambda: self.ask() == 403, lambda: "a corrected file is taken")

    def test_port_in_use(self) -> None:
        """A listener that cannot be opened makes a reload fail as a whole: nothing changes."""
        proxyd = self.start()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            tail = f"[listener:taken]\nendpoint = tcp:{taken.getsockname()[1]}:interface=127.0.0.1\naccept = connect"
            self.reconfigure(proxyd, tail=tail, port=self.origin.secure_port)
            proxyd.wait_for_log("not reloaded")

        self.assertIn('listener "taken"', proxyd.log)
        self.assertEqual(self.ask(), 405)

    def test_many(self) -> None:
        """Many reloads leave nothing open behind them."""
        proxyd = self.start()
        self.assertEqual(self.ask(), 405)
        before = len(proxyd.descriptors())
        for number in range(20):
            self.reconfigure(proxyd, head=f"access_log_buffer = {number + 1}M\nresolver_timeout = {number + 1}s")
            eventually(lambda number=number: proxyd.log.count("reloaded:") == number + 1, lambda: "a reload")
        self.assertEqual(self.ask(), 405)

        eventually(lambda: len(proxyd.descriptors()) <= before + 4, lambda: f"{before} descriptors again")

    def test_password_file(self) -> None:
        """A password that is changed counts without any signal; the old one counts no more, even if it was cached."""
        self.add_user("alice", "old")
        proxyd = self.start(head="[users]\nfile = users.htpasswd")
        text = proxyd.config.read_text().replace("[rule:origin]", "[rule:origin]\nusers = alice")
        proxyd.config.write_text(text)
        proxyd.signal(signal.SIGHUP)
        proxyd.wait_for_log("reloaded")

        def status(password: bytes) -> int:
            secret = b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:" + password)
            with connected(self.ports["http"]) as client:
                return client.ask(self.get().replace(b"\r\n\r\n", b"\r\n" + secret + b"\r\n\r\n")).status

        self.assertEqual([status(b"old"), status(b"new")], [405, 407])

        self.add_user("alice", "new")

        eventually(lambda: status(b"new") == 405, lambda: "the new password counts")
        self.assertEqual(status(b"old"), 407)


class LogTests(OperationsTestCase):
    """The access log's files."""

    def test_rotation(self) -> None:
        """After a rename and SIGUSR1 new records go to a new file; none is lost and none is written twice."""
        proxyd = self.start()
        for number in range(5):
            self.assertEqual(self.ask(f"/before/{number}"), 200)
        proxyd.records(5)
        rotated = []
        for path in (proxyd.access_path, proxyd.squid_path):
            rotated.append(path.rename(path.with_suffix(".old")))
        proxyd.signal(signal.SIGUSR1)
        eventually(lambda: proxyd.access_path.exists() and proxyd.squid_path.exists(), lambda: "new files")
        for number in range(3):
            self.assertEqual(self.ask(f"/after/{number}"), 200)

        self.assertEqual(len(proxyd.all_records()), 3)
        self.assertEqual([len(path.read_text().splitlines()) for path in rotated], [5, 5])
        self.assertEqual(len(proxyd.squid_path.read_text().splitlines()), 3)

    def test_full_disk(self) -> None:
        """A disk that is full does not stop the proxy: the log says so once, and how many records were lost."""
        if not Path("/dev/full").exists():
            raise SkipTest("there is no /dev/full")
        proxyd = self.start(head="access_log_json = /dev/full")
        for _ in range(20):
            self.assertEqual(self.ask(), 405)
        with self.tunnel() as tunnel:
            self.assert_carries(tunnel)
        eventually(lambda: len(proxyd.squid_path.read_bytes().splitlines()) == 21, lambda: "the other log is complete")

        self.assertEqual(self.ask(), 405)
        self.assertEqual(proxyd.log.count("No space left on device"), 1)

    def test_log_of_a_fifo(self) -> None:
        """A log to a pipe that nobody reads stops neither the proxy nor its end."""
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        proxyd = self.start(head="access_log_json = fifo\naccess_log_buffer = 64k")
        for _ in range(3):
            with connected(self.ports["http"]) as client:
                for _ in range(200):
                    self.assertEqual(client.ask(self.get(port=1)).status, 403)

        self.assertEqual(self.ask(), 405)
        proxyd.stop()

    def test_permissions(self) -> None:
        """The access log can be read by its owner and group alone."""
        proxyd = self.start()

        for path in (proxyd.access_path, proxyd.squid_path):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode) & 0o007, 0)


class EndTests(OperationsTestCase):
    """SIGTERM, and starts that fail."""

    def test_drain(self) -> None:
        """A request in flight is finished, an idle connection is closed, nobody new is let in, and then it ends."""
        proxyd = self.start(head="drain_timeout = 20s")
        with connected(self.ports["http"]) as client, connected(self.ports["http"]) as idle:
            self.assertEqual(idle.ask(self.get()).status, 405)
            client.send(self.get("/held"))
            self.assertTrue(self.origin.held.arrived.wait(PATIENCE))

            proxyd.signal(signal.SIGTERM)
            eventually(self.is_closed, lambda: "the listener is closed")
            self.origin.held.open.set()

            response = client.read_response()
            self.assertEqual((response.status, response.values(b"connection")), (200, [b"close"]))
            self.assertEqual(client.read_all(), b"")
            self.assertIn(proxyd.wait(), (0, -signal.SIGTERM))
        records = proxyd.all_records()
        self.assertEqual([record.get("error") for record in records], [None, None])

    def is_closed(self) -> bool:
        """Whether nobody takes connections any more."""
        try:
            socket.create_connection(("127.0.0.1", self.ports["http"]), PATIENCE).close()
        except ConnectionRefusedError:
            return True
        return False

    def test_drain_with_an_end(self) -> None:
        """What is still going on after drain_timeout is cut, and recorded."""
        proxyd = self.start(head="drain_timeout = 500ms")
        with self.tunnel() as tunnel, connected(self.ports["http"]) as client:
            client.send(self.get("/held"))
            self.assertTrue(self.origin.held.arrived.wait(PATIENCE))
            self.assert_carries(tunnel)

            self.assertIn(proxyd.stop(), (0, -signal.SIGTERM))

        records = proxyd.all_records()
        self.assertEqual({record["protocol"] for record in records}, {"connect", "forward"})
        self.assertEqual({record["error"] for record in records}, {"connection_terminated"})
        self.assertEqual({record["closed_by"] for record in records}, {"proxy"})

    def fail_to_start(self, text: str) -> str:
        """What a twistd says that cannot start."""
        proxyd = Proxyd(self.folder, self.with_defaults(text), {})
        self.assertGreater(proxyd.wait(), 0, proxyd.log)
        self.assertNotIn("Traceback", proxyd.log)
        self.assertNotIn("Unhandled", proxyd.log)
        return proxyd.log

    def test_port_in_use(self) -> None:
        """A listener that cannot be bound makes the start fail, with one line that names it, its endpoint and why."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.ports["any"] = taken.getsockname()[1]
            log = self.fail_to_start(self.configuration())

        [line] = [line for line in log.splitlines() if "cannot listen" in line]
        self.assertIn('listener "any"', line)
        self.assertIn(f"tcp:{self.ports['any']}:interface=127.0.0.1", line)
        self.assertIn("Address already in use", line)
        self.assertTrue(self.is_closed())

    def test_broken_configuration(self) -> None:
        """All that is wrong in a configuration is told at once, a line for each."""
        text = self.configuration(head="idle_timeout = soon\nfoo = bar", tail="certificate = nowhere.pem")
        log = self.fail_to_start(text)

        for part in ("[proxyd] idle_timeout", "[proxyd] foo", "[listener:any] certificate"):
            [line] = [line for line in log.splitlines() if part in line]
            self.assertRegex(line, r"proxyd\.ini:[0-9]+: ")

    def test_unusable_files(self) -> None:
        """A password file with a weak hash, a key of another certificate, a log that is a directory: a line says it."""
        (self.folder / "users.htpasswd").write_text("alice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n")
        self.assertIn("alice", self.fail_to_start(self.configuration(head="[users]\nfile = users.htpasswd")))

        certificate = self.make_certificate()
        other = self.folder / "other"
        other.mkdir()
        self.make_certificate(folder=other)
        shutil.copy(other / "proxyd-key.pem", self.folder / "proxyd-key.pem")
        log = self.fail_to_start(self.configuration(tail=f"certificate = {certificate}\nprivate_key = proxyd-key.pem"))
        self.assertIn(str(certificate), log)

        log = self.fail_to_start(self.configuration(head=f"access_log_squid = {other}"))
        self.assertIn(f"{other}: Is a directory", log)


class DescriptorTests(OperationsTestCase):
    """Descriptors run out."""

    def crowd(self, stack: ExitStack, number: int) -> list[Client]:
        """That many clients who say nothing."""
        return [stack.enter_context(connected(self.ports["http"])) for _ in range(number)]

    def assert_calm(self, proxyd: Proxyd) -> None:
        """It does not spin."""
        before = proxyd.processor_time()
        time.sleep(LOOK)
        self.assertLess(proxyd.processor_time() - before, LOOK / 2)

    def answer(self, client: Client) -> int:
        """The status that a client gets; 0 if the connection is closed or reset without a word."""
        try:
            return client.ask(self.get()).status
        except (EOFError, ConnectionError):
            return 0

    def test_limit_of_the_machine(self) -> None:
        """Under a small limit clients beyond it get 503; a live tunnel goes on; when they have left, others come in."""
        proxyd = self.start_proxyd(self.configuration(), self.ports, descriptors=200)
        with self.tunnel() as tunnel:
            with ExitStack() as stack:
                clients = self.crowd(stack, 60)
                last = clients[-1].read_response()
                self.assertEqual(last.status, 503)
                self.assertEqual(last.values(b"connection"), [b"close"])
                self.assertIn(b"connection_limit_reached", last.values(b"proxy-status")[0])
                self.assert_carries(tunnel)
                self.assertEqual(clients[0].ask(self.get()).status, 405)
                self.assert_calm(proxyd)
            eventually(lambda: self.ask() == 405, lambda: "a new client is served")
        self.assertLessEqual(proxyd.log.count("refused"), 2)

    def test_none_left(self) -> None:
        """With no descriptor left clients get 503 or are refused, a live tunnel goes on, and nothing spins."""
        proxyd = self.start(head="max_connections = 10000")
        self.assertEqual(self.ask(), 405)
        with self.tunnel() as tunnel, self.tunnel() as unused:
            self.assert_carries(tunnel)
            with ExitStack() as stack:
                proxyd.leave_descriptors(8)
                clients = self.crowd(stack, 40)
                answers = [self.answer(client) for client in clients]
                self.assertLessEqual(set(answers), {405, 503, 0})
                self.assertIn(0, answers)
                self.assert_carries(tunnel)
                self.assert_carries(unused)
                self.assert_calm(proxyd)
            eventually(self.is_served, lambda: "a new client is served")
            self.assert_carries(tunnel)
        self.assertNotIn("proxy_internal_error", {record.get("error") for record in proxyd.all_records()})

    def is_served(self) -> bool:
        """Whether a new client gets what it wants."""
        with connected(self.ports["http"]) as client:
            return self.answer(client) == 405

    def test_none_left_for_new_tunnels(self) -> None:
        """A tunnel that is opened when nothing is left for its pipe still carries."""
        proxyd = self.start(head="max_connections = 10000")
        with ExitStack() as stack:
            tunnel = stack.enter_context(self.tunnel())
            proxyd.leave_descriptors(0)

            self.assert_carries(tunnel)

    def test_none_left_to_refuse(self) -> None:
        """Where not even one descriptor is left to accept a client and close it, as when the whole machine has none,
        nothing spins, and those who wait are served afterwards."""
        proxyd = self.start(head="max_connections = 10000")
        with connected(self.ports["http"]) as first:
            self.assertEqual(first.ask(self.get()).status, 405)
            proxyd.leave_descriptors(0)
            with connected(self.ports["http"]) as second:
                self.assertEqual(first.ask(self.get()).status, 405)
                self.assert_calm(proxyd)
                proxyd.leave_descriptors(20)

                eventually(self.is_served, lambda: "a new client is served")
                self.assertIn(self.answer(second), (405, 0))

    def test_none_left_for_the_origin(self) -> None:
        """Clients who are let in, and for whose origin no descriptor is left, get 503, or reply 1 in SOCKS."""
        proxyd = self.start(head="max_connections = 10000\nupstream_idle_timeout = 0")
        self.assertEqual(self.ask(), 405)
        with ExitStack() as stack:
            forward, connect = self.crowd(stack, 2)
            socks = stack.enter_context(connected(self.ports["socks5"]))
            socks.send(b"\x05\x01\x00")
            self.assertEqual(socks.read(2), b"\x05\x00")
            for client in (forward, connect):
                self.assertEqual(client.ask(self.get()).status, 405)
            proxyd.leave_descriptors(0)

            self.assertEqual(forward.ask(self.get()).status, 503)
            authority = b"127.0.0.1:%d" % self.origin.port
            refused = connect.ask(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority))
            self.assertEqual(refused.status, 503)
            socks.send(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + self.origin.port.to_bytes(2, "big"))
            self.assertEqual(socks.read_all()[:2], b"\x05\x01")
            proxyd.leave_descriptors(10)
            self.assertEqual(forward.ask(self.get()).status, 405)
        errors = [record["error"] for record in proxyd.all_records() if "error" in record]
        self.assertEqual(errors, ["connection_limit_reached"] * 3)

    def test_limit_per_client(self) -> None:
        """A client beyond its own limit gets 503, while others from another address are served."""
        self.start(head="max_connections_per_client = 5")
        with ExitStack() as stack:
            clients = self.crowd(stack, 6)
            self.assertEqual(clients[-1].read_response().status, 503)
            other = stack.enter_context(connected(self.ports["http"], source="127.0.0.9"))
            self.assertEqual(other.ask(self.get()).status, 405)


class SecretTests(OperationsTestCase):
    """A password that must not turn up anywhere."""

    CANARY = "cAnArY-7c9e6679"

    def test_canary(self) -> None:
        """However it comes, rightly or wrongly, a password reaches no log, no record, no answer and no origin."""
        self.add_user("alice", self.CANARY)
        tail = "[rule:users]\naction = allow\nlisteners = http socks5\nusers = alice\ndestinations = 127.0.0.1\n"
        tail += f"ports = {self.origin.port}\nspecial_addresses = yes"
        proxyd = self.start(head="[users]\nfile = users.htpasswd", tail=tail)
        answers = b"".join([*self.http_answers(), *self.socks_answers()])
        self.reconfigure(proxyd, head="[users]\nfile = users.htpasswd", tail=tail)
        proxyd.wait_for_log("reloaded")
        proxyd.stop()

        places = {path.name: path.read_bytes() for path in (proxyd.log_path, proxyd.access_path, proxyd.squid_path)}
        places["answers"] = answers
        places["origin"] = b"".join(request.head + request.body for request in self.origin.received)
        self.assertIn(b"alice", places["access.json"])
        for place, content in places.items():
            for form in self.forms():
                self.assertNotIn(form, content, place)

    def forms(self) -> list[bytes]:
        """The password as it is, and as Base64 has it, whatever stands before it."""
        secret = self.CANARY.encode()
        encoded = [base64.b64encode(b"x" * shift + secret)[4:-4] for shift in range(3)]
        return [secret, base64.b64encode(b"alice:" + secret), *encoded]

    def http_answers(self) -> Iterator[bytes]:
        """Everything that can be said by HTTP with a password in it."""
        canary, origin = self.CANARY.encode(), b"127.0.0.1:%d" % self.origin.port
        right = b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:" + canary) + b"\r\n"
        fields = [
            right,
            b"Proxy-Authorization: Basic " + base64.b64encode(b"bob:" + canary) + b"\r\n",
            b"Proxy-Authorization: Basic " + base64.b64encode(canary) + b"\r\n",
            b"Proxy-Authorization: Basic alice:" + canary + b"\r\n",
            b"Proxy-Authorization: Bearer " + canary + b"\r\n",
            b"Proxy-Authorization: " + canary + b"\r\n",
            right + right,
            right + b"Connection: Proxy-Authorization, close\r\n",
            right + b"No colon at all\r\n",
            right + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
            right + b"Expect: " + canary + b"\r\n",
            right + b"X-Long: " + b"x" * 70000 + b"\r\n",
            right + b"Via: 1.1 elsewhere\r\nMax-Forwards: 0\r\n",
        ]
        denied = b"127.0.0.1:1"
        userinfo = b"alice:" + canary + b"@" + origin
        lines = [
            b"GET http://%b/ HTTP/1.1" % origin,
            b"TRACE http://%b/ HTTP/1.1" % origin,
            b"OPTIONS http://%b HTTP/1.1" % origin,
            b"GET http://%b/ HTTP/1.0" % denied,
            b"CONNECT %b HTTP/1.1" % denied,
            b"CONNECT %b HTTP/1.1" % origin,
        ]
        for line in lines:
            for field in fields:
                yield self.say(line + b"\r\nHost: x\r\n" + field + b"\r\n")
        for line in (b"GET http://%b/", b"GET ftp://%b/", b"CONNECT %b", b"GET //%b/", b"GET %b", b"OPTIONS http://%b"):
            yield self.say(line % userinfo + b" HTTP/1.1\r\nHost: x\r\n" + right + b"\r\n")
        yield self.say(b"GET http://127.0.0.1:1/?password=%b HTTP/1.1\r\nHost: x\r\n\r\n" % canary)
        yield self.say(b"GET http://127.0.0.1:1/%b HTTP/1.1\r\nHost: x\r\n\r\n" % canary)
        yield self.say(b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n%b" % canary)
        yield self.say(canary + b"\r\n\r\n")
        yield self.say(b"GET http://alice:%b\r\n\r\n" % canary)

    def say(self, request: bytes) -> bytes:
        """Everything that is answered to a request."""
        with connected(self.ports["http"]) as client:
            client.send(request)
            client.finish()
            return self.everything(client)

    @staticmethod
    def everything(client: Client) -> bytes:
        """Up to the end, however it comes."""
        said = []
        try:
            while data := client.line.receive():
                said.append(data)
        except ConnectionError:
            pass
        return b"".join(said)

    def socks_answers(self) -> Iterator[bytes]:
        """The same by SOCKS5."""
        canary = self.CANARY.encode()
        port = self.origin.port.to_bytes(2, "big")
        request = b"\x05\x01\x00\x01\x7f\x00\x00\x01"
        credentials = [
            b"\x01\x05alice" + bytes([len(canary)]) + canary,
            b"\x01\x03bob" + bytes([len(canary)]) + canary,
            b"\x01\x00" + bytes([len(canary)]) + canary,
            b"\x02\x05alice" + bytes([len(canary)]) + canary,
        ]
        for message in credentials:
            for command in (request + port, request + b"\0\1", b"\x05\x02\x00\x01\x7f\x00\x00\x01\0\1", canary):
                with connected(self.ports["socks5"]) as client:
                    client.send(b"\x05\x01\x02" + message + command)
                    client.finish()
                    yield self.everything(client)


class CertificateTests(OperationsTestCase):
    """Certificates of the proxy and of its clients."""

    def served(self, *authorities: Path) -> bytes:
        """The certificate that a new client sees."""
        context = agent_tls(*authorities)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connected(self.ports["any"]) as client:
            certificate = client.secure(context).getpeercert(binary_form=True)
            assert certificate is not None
            return certificate

    def test_replaced(self) -> None:
        """Files that are replaced are used without a restart; connections with the old certificate go on."""
        certificate = self.make_certificate()
        proxyd = self.start(tail="certificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem")
        old = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        self.assertEqual(self.served(), old)
        renewed = self.folder / "renewed"
        renewed.mkdir()
        new = ssl.PEM_cert_to_DER_cert(self.make_certificate(folder=renewed).read_text())
        with connected(self.ports["any"]) as client:
            client.secure(agent_tls(certificate))
            for path in list(renewed.iterdir()):
                path.rename(self.folder / path.name)

            eventually(lambda: self.served() == new, lambda: "the new certificate is served")
            self.assertEqual(client.ask(self.get()).status, 405)
        self.assertEqual(proxyd.log.count("was read again"), 1)

    def test_spoilt(self) -> None:
        """A renewed file that cannot be used leaves the old certificate in place, with a word in the log."""
        certificate = self.make_certificate()
        proxyd = self.start(tail="certificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem")
        old = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        certificate.write_text("not a certificate")

        eventually(lambda: self.served() == old and "cannot be used" in proxyd.log, lambda: "a word in the log")

    def test_clients(self) -> None:
        """A client certificate says who the client is, to every rule; without one TLS fails where it is required."""
        if shutil.which("openssl") is None:
            raise SkipTest("openssl is not installed")
        certificate = self.make_certificate()
        self.make_client("alice")
        self.make_client("bob")
        authority = self.folder / "authority.pem"
        authority.write_text("".join((self.folder / f"{name}.pem").read_text() for name in ("alice", "bob")))
        tail = "certificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem\nclient_ca = authority.pem\n"
        tail += "client_certificate = required\n[rule:bob]\naction = deny\nusers = bob\ndestinations = *"
        proxyd = self.start(tail=tail)
        for name, status in (("alice", 405), ("bob", 403)):
            context = agent_tls(certificate)
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
            with connected(self.ports["any"]) as client:
                client.secure(context)
                self.assertEqual(client.ask(self.get()).status, status)
        with connected(self.ports["any"]) as client, self.assertRaises((ssl.SSLError, EOFError, ConnectionError)):
            client.secure(agent_tls(certificate))
            client.ask(self.get())

        records = proxyd.all_records()
        self.assertEqual([record.get("user") for record in records], ["alice", "bob", None])
        self.assertEqual(records[2]["error"], "tls_protocol_error")

    def make_client(self, name: str) -> None:
        """A certificate for a client, which signs itself."""
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, timeout=PATIENCE)


class OutwardTests(OperationsTestCase):
    """Name servers and origins that do not answer."""

    def silent_server(self) -> int:
        """The port of a TCP server whose queue is full: it answers no SYN, as if a firewall threw them away."""
        server = socket.socket()
        self.addCleanup(server.close)
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = socket.socket()
            self.addCleanup(client.close)
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        return int(server.getsockname()[1])

    def test_silent_origin(self) -> None:
        """An origin that does not answer is 504 after connect_timeout, and reply 4 or 6 after socks_connect_timeout."""
        port = self.silent_server()
        proxyd = self.start(head="connect_timeout = 300ms\nsocks_connect_timeout = 200ms", port=port)
        self.assertEqual(self.ask(port=port), 504)
        with connected(self.ports["http"]) as client:
            self.assertEqual(client.ask(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % port).status, 504)
        with connected(self.ports["socks5"]) as client:
            client.send(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
            self.assertIn(client.read_all()[:4], (b"\x05\x00\x05\x04", b"\x05\x00\x05\x06"))

        records = proxyd.all_records()
        self.assertEqual([record["error"] for record in records], ["connection_timeout"] * 3)

    def test_origin_that_never_answers(self) -> None:
        """A request that gets no answer is 504 after response_timeout; a tunnel in which nothing moves is closed."""
        proxyd = self.start(head="response_timeout = 1s\nidle_timeout = 1s")
        self.assertEqual(self.ask("/held"), 504)
        with self.tunnel() as tunnel:
            with self.assertRaises((ConnectionError, EOFError)):
                tunnel.read(1)

        self.assertEqual([record["error"] for record in proxyd.records(2)], ["connection_read_timeout"] * 2)
        self.origin.held.open.set()

    def test_silent_name_server(self) -> None:
        """If the first name server does not answer, or cannot be reached, the next is asked."""
        names = self.start_names()
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        closed = free_ports("closed")["closed"]
        servers = (silent.getsockname()[1], closed, names.port)
        head = "resolver = " + " ".join(f"127.0.0.1:{port}" for port in servers)
        text = self.configuration(head=f"{head}\nconnect_timeout = 20s")
        proxyd = self.start_proxyd(text.replace("127.0.0.1\nports", f"{PROJECT}\nports"), self.ports)

        with connected(self.ports["http"]) as client:
            response = client.ask(self.get().replace(b"//127.0.0.1", b"//" + PROJECT.encode()))

        self.assertEqual(response.body, INVALID_METHOD)
        self.assertEqual({name for name, _ in names.asked}, {PROJECT})
        self.assertEqual(proxyd.records(1)[0]["address"], f"127.0.0.1:{self.origin.port}")

    def test_no_name_server(self) -> None:
        """If no name server answers, that is a 504, or a 502 where nobody listens, and no other trouble."""
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        head = f"resolver = 127.0.0.1:{silent.getsockname()[1]}\nresolver_timeout = 500ms"
        text = self.configuration(head=head).replace("127.0.0.1\nports", f"{PROJECT}\nports")
        proxyd = self.start_proxyd(text, self.ports)

        with connected(self.ports["http"]) as client:
            response = client.ask(self.get().replace(b"//127.0.0.1", b"//" + PROJECT.encode()))

        self.assertEqual(response.status, 504)
        self.assertEqual(proxyd.records(1)[0]["error"], "dns_timeout")


class UnixTests(OperationsTestCase):
    """A listener on a Unix socket."""

    def test_request(self) -> None:
        """A program on this machine may come by a Unix socket; its path is gone when the proxy has ended."""
        path = self.folder / "s"
        if len(str(path)) > 100:
            raise SkipTest("the test's folder has too long a path for a Unix socket")
        proxyd = self.start(tail="[listener:unix]\nendpoint = unix:s:mode=600\naccept = forward")
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(self.get())
            self.assertIn(INVALID_METHOD, self.read_until(client, INVALID_METHOD))

        self.assertEqual(proxyd.records(1)[0]["client"], "")
        proxyd.stop()
        self.assertFalse(path.exists())

    @staticmethod
    def read_until(client: socket.socket, end: bytes) -> bytes:
        """All bytes up to these."""
        said = b""
        while end not in said:
            data = client.recv(65536)
            assert data, said
            said += data
        return said
