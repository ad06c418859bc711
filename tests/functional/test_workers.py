"""Several workers behind one real twistd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.functional.clients import Client, agent_tls, connected
from tests.functional.origin import pattern
from tests.functional.running import PATIENCE, TWISTD, Proxyd, eventually, free_ports, without_proxies
from tests.functional.test_operations import OperationsTestCase

SERVES = re.compile(r"worker ([0-9]+) serves, process ([0-9]+)")
HAMMERS = 8
BLOWS = 150


def is_there(pid: int) -> bool:
    """Whether a process exists that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ids(records: Iterable[dict[str, Any]]) -> set[str]:
    """The processes that wrote the records: the first part of a flow's id is different in each."""
    return {record["id"].partition("-")[0] for record in records}


class WorkersTestCase(OperationsTestCase):
    """A proxy that has two workers, unless the test says otherwise."""

    def setUp(self) -> None:
        super().setUp()
        self.pids: list[int] = []
        """All processes that ever served."""
        self.addCleanup(self.check_nobody_left)

    def check_nobody_left(self) -> None:
        """When the proxy has ended so have its workers."""
        self.assertEqual([pid for pid in self.pids if is_there(pid)], [])

    def start_workers(self, workers: int | str = 2, *, head: str = "", **parts: str | int) -> Proxyd:
        """Start it."""
        proxyd = self.start(head=f"workers = {workers}\n{head}", **parts)
        self.wait_for_workers(proxyd, 2)
        return proxyd

    def wait_for_workers(self, proxyd: Proxyd, count: int) -> list[int]:
        """The processes that have served from the start until now, once there are so many."""
        eventually(lambda: len(SERVES.findall(proxyd.log)) >= count, lambda: f"{count} workers:\n{proxyd.log}")
        self.pids = [int(pid) for _, pid in SERVES.findall(proxyd.log)]
        return self.pids

    def wait_until_gone(self, pid: int) -> None:
        """Return once a process has ended."""
        eventually(lambda: not is_there(pid), lambda: f"process {pid} ends")

    def client_of_each(self, stack: ExitStack, proxyd: Proxyd) -> list[Client]:
        """Clients that are kept, one for each of two workers."""
        found: dict[str, Client] = {}

        def look() -> bool:
            client = stack.enter_context(connected(self.ports["http"]))
            count = len(proxyd.records(0))
            self.assertEqual(client.ask(self.get()).status, 405)
            found.setdefault(proxyd.records(count + 1)[-1]["id"].partition("-")[0], client)
            return len(found) == 2

        eventually(look, lambda: f"a client of each worker; there are {found}")
        return list(found.values())


class ServeTests(WorkersTestCase):
    """Both workers serve."""

    def test_both(self) -> None:
        """Both have clients, at every door; the log has both, with their numbers."""
        proxyd = self.start_workers()
        with ExitStack() as stack:
            self.client_of_each(stack, proxyd)
            for client in (connected(self.ports[name]) for name in ("socks5", "any")):
                with client as socks:
                    socks.send(b"\x05\x01\x00")
                    self.assertEqual(socks.read(2), b"\x05\x00")
            with self.tunnel() as tunnel:
                self.assert_carries(tunnel)
        self.assertEqual({number for number, _ in SERVES.findall(proxyd.log)}, {"1", "2"})
        self.assertEqual(len(ids(proxyd.all_records())), 2)

    def test_auto(self) -> None:
        """There may be one worker for each core; on a single core that is one process, and no supervisor."""
        cores = len(os.sched_getaffinity(0))
        proxyd = self.start(head="workers = auto")
        self.assertEqual(self.ask(), 405)
        self.assertEqual(len(self.wait_for_workers(proxyd, cores if cores > 1 else 0)), cores if cores > 1 else 0)

    def test_tls_and_unix(self) -> None:
        """Workers speak TLS; a Unix socket keeps its mode while there are workers, and its path ends with them."""
        directory = tempfile.mkdtemp()  # the path of a Unix socket has to be short
        self.addCleanup(shutil.rmtree, directory)
        path = Path(directory, "proxyd.sock")
        certificate = self.make_certificate()
        self.ports |= free_ports("tls")
        tls = f"endpoint = ssl:{self.ports['tls']}:interface=127.0.0.1:privateKey=proxyd-key.pem:certKey={certificate}"
        proxyd = self.start_workers(
            tail=f"[listener:unix]\nendpoint = unix:{path}:mode=600\naccept = forward\n"
            f"[listener:tls]\n{tls}\naccept = forward"
        )
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(PATIENCE)
                local.connect(str(path))
                local.sendall(self.get())
                self.assertIn(b" 405 ", local.recv(1000))
            with connected(self.ports["tls"]) as client:
                client.secure(agent_tls(certificate))
                self.assertEqual(client.ask(self.get()).status, 405)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        proxyd.stop()
        self.assertFalse(path.exists())

    def test_connections(self) -> None:
        """The limit on connections is divided: of two workers each has half."""
        self.start_workers(head="max_connections = 2")
        with ExitStack() as stack:
            statuses = []

            def look() -> bool:
                client = stack.enter_context(connected(self.ports["http"]))
                statuses.append(client.ask(self.get()).status)
                return statuses.count(405) == 2

            eventually(look, lambda: f"two clients are let in; the others get {statuses}")
            self.assertEqual(self.ask(), 503)
        self.assertEqual(set(statuses) - {503}, {405})


class DeathTests(WorkersTestCase):
    """Processes die."""

    def test_worker(self) -> None:
        """When a worker is killed new clients are served by the others, and soon by a new one."""
        proxyd = self.start_workers()
        with ExitStack() as stack:
            self.client_of_each(stack, proxyd)
        victim, survivor = self.pids
        os.kill(victim, signal.SIGKILL)
        for _ in range(20):
            self.assertEqual(self.ask(), 405)
        _, _, successor = self.wait_for_workers(proxyd, 3)
        self.assertEqual([is_there(pid) for pid in (victim, survivor, successor)], [False, True, True])
        eventually(lambda: self.ask() == 405 and len(ids(proxyd.records(0))) == 3, lambda: "the new one has clients")
        lines = [line for line in proxyd.log.splitlines() if "worker" in line and "#error" in line]
        self.assertEqual(len(lines), 1, proxyd.log)
        self.assertRegex(lines[0], "worker [12] ended, killed by SIGKILL; a new one follows in 0.5 s")

    def test_all_workers(self) -> None:
        """While there is none at all clients wait in the kernel for the next one."""
        proxyd = self.start_workers()
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            self.wait_until_gone(pid)
        self.assertEqual(self.ask(), 405)
        self.wait_for_workers(proxyd, 4)

    def test_supervisor(self) -> None:
        """When the supervisor is killed the workers drain and end by themselves, and the ports are free."""
        proxyd = self.start_workers(head="drain_timeout = 20s")
        with self.tunnel() as tunnel:
            self.assert_carries(tunnel)
            os.kill(proxyd.process.pid, signal.SIGKILL)
            proxyd.wait()
            eventually(lambda: not self.listens(), lambda: "the listener is closed")
            self.assert_carries(tunnel)
        for pid in self.pids:
            self.wait_until_gone(pid)
        [record] = proxyd.records(1)
        self.assertEqual(record["closed_by"], "client")

    def listens(self) -> bool:
        """Whether somebody takes connections."""
        try:
            socket.create_connection(("127.0.0.1", self.ports["http"]), PATIENCE).close()
        except ConnectionRefusedError:
            return False
        return True

    def test_signals_to_workers(self) -> None:
        """Workers do not care for signals that are the supervisor's: one to the whole group is obeyed once."""
        proxyd = self.start_workers()
        for pid in self.pids:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        with ExitStack() as stack:
            self.client_of_each(stack, proxyd)
        self.assertEqual([is_there(pid) for pid in self.pids], [True, True])
        self.assertEqual(len(SERVES.findall(proxyd.log)), 2)


class ReloadTests(WorkersTestCase):
    """SIGHUP."""

    def reload(self, proxyd: Proxyd, *, workers: int = 2, **parts: str | int) -> None:
        """Go over to another configuration."""
        parts["head"] = f"workers = {workers}\n{parts.get('head', '')}"
        before = proxyd.log.count(f"reloaded: {workers} workers")
        self.reconfigure(proxyd, **parts)
        eventually(lambda: proxyd.log.count(f"reloaded: {workers} workers") > before, lambda: proxyd.log)

    def test_all(self) -> None:
        """A new rule holds in every worker, also on connections that are open; a live tunnel goes on."""
        proxyd = self.start_workers()
        with ExitStack() as stack:
            clients = self.client_of_each(stack, proxyd)
            tunnel = stack.enter_context(self.tunnel())
            self.reload(proxyd, port=self.origin.secure_port)
            self.assertEqual([client.ask(self.get()).status for client in clients], [403, 403])
            self.assert_carries(tunnel)
        self.assertEqual(proxyd.log.count("1 live flows no longer allowed"), 1)
        self.assertEqual(len(SERVES.findall(proxyd.log)), 2)

    def test_listeners(self) -> None:
        """A listener that is added is every worker's, one that is removed is nobody's; the others never close."""
        proxyd = self.start_workers()
        self.ports |= free_ports("more", "free")
        text = self.with_defaults(self.configuration(head="workers = 2"))
        more = text.replace("listener:socks5", "listener:more").replace(
            f":{self.ports['socks5']}:", f":{self.ports['more']}:"
        )
        with ExitStack() as stack:
            clients = self.client_of_each(stack, proxyd)
            proxyd.config.write_text(more)
            proxyd.signal(signal.SIGHUP)
            proxyd.wait_for_log("reloaded: 2 workers")
            for _ in range(10):
                with connected(self.ports["more"]) as client:
                    client.send(b"\x05\x01\x00")
                    self.assertEqual(client.read(2), b"\x05\x00")
            with self.assertRaises(ConnectionRefusedError):
                connected(self.ports["socks5"]).__enter__()
            self.assertEqual([client.ask(self.get()).status for client in clients], [405, 405])
            os.kill(self.pids[0], signal.SIGKILL)
            self.wait_for_workers(proxyd, 3)
            with connected(self.ports["more"]) as client:
                client.send(b"\x05\x01\x00")
                self.assertEqual(client.read(2), b"\x05\x00")

    def check_kept(self, proxyd: Proxyd, reason: str) -> None:
        """Nothing has changed, and one line says why."""
        proxyd.wait_for_log("was not reloaded")
        [line] = [line for line in proxyd.log.splitlines() if "reloaded" in line]
        self.assertIn(reason, line)
        with ExitStack() as stack:
            self.client_of_each(stack, proxyd)
        self.assertEqual(len(SERVES.findall(proxyd.log)), 2)

    def test_broken_file(self) -> None:
        """A wrong file changes nothing anywhere; a worker that is started then has the old configuration."""
        proxyd = self.start_workers()
        self.reconfigure(proxyd, head="workers = 2\nidle_timeout = soon", port=self.origin.secure_port)
        self.check_kept(proxyd, "[proxyd] idle_timeout")
        os.kill(self.pids[0], signal.SIGKILL)
        self.wait_for_workers(proxyd, 3)
        with ExitStack() as stack:
            self.client_of_each(stack, proxyd)

    def test_port_in_use(self) -> None:
        """Nor does a port that cannot be bound."""
        proxyd = self.start_workers()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            tail = f"[listener:taken]\nendpoint = tcp:{taken.getsockname()[1]}:interface=127.0.0.1\naccept = connect"
            self.reconfigure(proxyd, head="workers = 2", tail=tail, port=self.origin.secure_port)
            self.check_kept(proxyd, 'listener "taken": cannot listen on')

    def test_refused_by_workers(self) -> None:
        """Nor does what only a worker finds out; a port that was bound for it is free again."""
        proxyd = self.start_workers()
        (self.folder / "users").write_text("alice:plain text\n")
        port = free_ports("other")["other"]
        tail = f"[listener:other]\nendpoint = tcp:{port}:interface=127.0.0.1\naccept = connect\n[users]\nfile = users"
        self.reconfigure(proxyd, head="workers = 2", tail=tail, port=self.origin.secure_port)
        self.check_kept(proxyd, "alice")
        socket.create_server(("127.0.0.1", port)).close()

    def test_number(self) -> None:
        """There may be more workers then, and fewer: those who are too many drain before they end."""
        proxyd = self.start_workers(head="drain_timeout = 20s")
        self.reload(proxyd, workers=3, head="drain_timeout = 20s")
        self.wait_for_workers(proxyd, 3)
        with ExitStack() as stack:
            tunnels = [stack.enter_context(self.tunnel()) for _ in range(12)]
            self.reload(proxyd, workers=1, head="drain_timeout = 20s")
            for tunnel in tunnels:
                self.assert_carries(tunnel, 1000)
            self.assertEqual(self.ask(), 405)
        by_number = {number: int(pid) for number, pid in SERVES.findall(proxyd.log)}
        for number in ("2", "3"):
            self.wait_until_gone(by_number[number])
        self.assertTrue(is_there(by_number["1"]))
        self.assertEqual(self.ask(), 405)


class LogTests(WorkersTestCase):
    """One access log."""

    def hammer(self) -> None:
        """Many requests at once, on connections of their own and on kept ones."""

        def strike(number: int) -> None:
            for blow in range(0, BLOWS, 5):
                with connected(self.ports["http"]) as client:
                    for more in range(5):
                        client.ask(self.get(f"/{number}/{blow + more}"))

        threads = [Thread(target=strike, args=(number,)) for number in range(HAMMERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    def check_complete(self, lines: list[bytes]) -> None:
        """Every line is a whole record, every request has one, and both workers have written."""
        records = [json.loads(line) for line in lines]
        self.assertEqual(len(records), HAMMERS * BLOWS)
        self.assertEqual(len({record["id"] for record in records}), HAMMERS * BLOWS)
        self.assertEqual(len(ids(records)), 2)

    def test_file(self) -> None:
        """Two workers append to the same files without tearing or losing a line."""
        proxyd = self.start_workers()
        self.hammer()
        proxyd.stop()
        self.check_complete(proxyd.access_path.read_bytes().splitlines())
        squid = proxyd.squid_path.read_bytes().splitlines()
        self.assertEqual(len(squid), HAMMERS * BLOWS)
        self.assertEqual({len(line.split()) for line in squid}, {10})

    def test_pipe(self) -> None:
        """Nor do they when it is standard output, and that a pipe; one that is full, so that both wait for room."""
        text = self.configuration(head="workers = 2\naccess_log_json = -\naccess_log_flush = 200ms")
        process = self.run_twistd("-n", "--pidfile=", text=text)
        assert process.stdout is not None
        for _ in range(2):
            while b" serves, process " not in process.stdout.readline():
                pass
        self.hammer()
        process.terminate()
        self.check_complete([line for line in process.stdout if not line.startswith(b"20")])  # a date: twistd's own

    def run_twistd(self, *options: str, text: str) -> subprocess.Popen[bytes]:
        """A twistd with other options, and its output in a pipe."""
        config = self.folder / "proxyd.ini"
        config.write_text(self.with_defaults(text))
        process = subprocess.Popen(
            [*TWISTD, *options, "proxyd", "-c", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=without_proxies(),
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End it, if it has not ended yet."""
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()

    def test_rotation(self) -> None:
        """SIGUSR1 makes every worker open the files again; no record is lost or written twice."""
        proxyd = self.start_workers()
        with ExitStack() as stack:
            clients = self.client_of_each(stack, proxyd)
            before = len(proxyd.records(2))
            old = proxyd.access_path.rename(proxyd.access_path.with_suffix(".old"))
            proxyd.signal(signal.SIGUSR1)
            eventually(proxyd.access_path.exists, lambda: "a new file")
            for client in clients:
                self.assertEqual(client.ask(self.get()).status, 405)
        records = proxyd.all_records()
        self.assertEqual(len(old.read_bytes().splitlines()) + len(records), before + 2)
        self.assertTrue(records)

    def test_daemon(self) -> None:
        """A twistd in the background has the workers' logs in its file, and tells whoever started it how that went."""
        pidfile, log = self.folder / "pid", self.folder / "log"
        text = self.configuration(head="workers = 2")
        process = self.run_twistd(f"--pidfile={pidfile}", f"--logfile={log}", text=text)
        self.assertEqual(process.wait(PATIENCE), 0)
        pid = int(pidfile.read_text())
        self.addCleanup(self.wait_until_gone, pid)
        self.addCleanup(os.kill, pid, signal.SIGTERM)
        eventually(lambda: len(SERVES.findall(log.read_text())) == 2, log.read_text)
        self.pids = [int(found) for _, found in SERVES.findall(log.read_text())]
        self.assertEqual(self.ask(), 405)
        os.kill(pid, signal.SIGHUP)
        eventually(lambda: "[worker 2: proxyd.service.Proxy#info] reloaded: " in log.read_text(), log.read_text)

        pidfile = self.folder / "pid2"
        failing = self.run_twistd(f"--pidfile={pidfile}", f"--logfile={self.folder / 'log2'}", text=text)
        self.assertEqual(failing.wait(PATIENCE), 1)  # the ports are taken


class EndTests(WorkersTestCase):
    """SIGTERM, and starts that fail."""

    def test_drain(self) -> None:
        """Nobody new is let in, what is in flight is finished, then all processes end and the port is free."""
        proxyd = self.start_workers(head="drain_timeout = 20s")
        with ExitStack() as stack:
            idle = self.client_of_each(stack, proxyd)
            with self.tunnel() as tunnel:
                self.assert_carries(tunnel)
                proxyd.signal(signal.SIGTERM)
                eventually(self.is_closed, lambda: "the listener is closed")
                tunnel.send(b"GET /bytes/300000 HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(tunnel.read_response().body, pattern(300_000))
            self.assertEqual([client.read_all() for client in idle], [b"", b""])
        self.assertIn(proxyd.wait(), (0, -signal.SIGTERM))
        self.check_nobody_left()
        socket.create_server(("127.0.0.1", self.ports["http"])).close()
        self.assertEqual({record.get("error") for record in proxyd.all_records()}, {None})

    def is_closed(self) -> bool:
        """Whether nobody takes connections any more."""
        try:
            socket.create_connection(("127.0.0.1", self.ports["http"]), PATIENCE).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # just at that moment
            pass
        return False

    def test_drain_with_an_end(self) -> None:
        """What is still going on after drain_timeout is cut, and recorded, in every worker."""
        proxyd = self.start_workers(head="drain_timeout = 500ms")
        with ExitStack() as stack:
            for client in self.client_of_each(stack, proxyd):
                client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % self.origin.port)
                client.read_head()
            self.assertIn(proxyd.stop(), (0, -signal.SIGTERM))
        cut = [record for record in proxyd.all_records() if record["protocol"] == "connect"]
        self.assertEqual([record["error"] for record in cut], ["connection_terminated"] * 2)
        self.assertEqual(len(ids(cut)), 2)

    def fail_to_start(self, text: str) -> str:
        """What a twistd says that cannot start."""
        proxyd = Proxyd(self.folder, self.with_defaults(f"workers = 2\n{text}"), {})
        self.assertGreater(proxyd.wait(), 0, proxyd.log)
        self.assertNotIn("Traceback", proxyd.log)
        self.assertNotIn("Unhandled", proxyd.log)
        for port in self.ports.values():
            socket.create_server(("127.0.0.1", port)).close()
        return proxyd.log

    def test_cannot_start(self) -> None:
        """A start that fails says why in one line, for a port as for what only workers find out, and leaves nobody."""
        (self.folder / "users").write_text("alice:plain text\n")
        log = self.fail_to_start(self.configuration(head="[users]\nfile = users"))
        self.assertEqual(len([line for line in log.splitlines() if "alice" in line]), 1, log)
        self.assertIn(" proxyd: ", log)

        log = self.fail_to_start(self.configuration(head=f"access_log_squid = {self.folder}"))
        self.assertEqual(len([line for line in log.splitlines() if "Is a directory" in line]), 1, log)

        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.ports["any"] = taken.getsockname()[1]
            text = self.configuration()
            del self.ports["any"]
            self.assertIn('listener "any": cannot listen on', self.fail_to_start(text))


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "proxyd"}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a program with a listening socket as systemd passes it (sd_listen_fds(3))."""


class PassedTests(WorkersTestCase):
    """What init systems do."""

    def test_systemd(self) -> None:
        """A socket of systemd's is every worker's; it can go with a reload, and come back with another."""
        text = self.with_defaults(self.configuration(head="workers = 2"))
        more = "[listener:passed]\nendpoint = systemd:domain=INET:name=proxyd\naccept = forward\n"
        config = self.folder / "proxyd.ini"
        config.write_text(text + more)
        log = self.folder / "log"
        with socket.create_server(("127.0.0.1", 0)) as bound, log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", AS_SYSTEMD, str(bound.fileno()), *TWISTD, "-n", "--pidfile=", "proxyd"]
                + ["-c", str(config)],
                pass_fds=[bound.fileno()],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=without_proxies(),
            )
            self.addCleanup(process.wait, PATIENCE)
            self.addCleanup(process.terminate)
            port = bound.getsockname()[1]
            for _ in range(5):
                with connected(port) as client:
                    self.assertEqual(client.ask(self.get()).status, 405)
            for count, new in enumerate((text, text + more), 1):
                config.write_text(new)
                process.send_signal(signal.SIGHUP)
                eventually(lambda count=count: log.read_text().count("reloaded: 2 workers") == count, log.read_text)
            with connected(port) as client:
                self.assertEqual(client.ask(self.get()).status, 405)
        self.pids = [int(pid) for _, pid in SERVES.findall(log.read_text())]
        self.assertEqual(len(self.pids), 2)

    def test_privileges(self) -> None:
        """Workers have the group that twistd has gone over to, and no more than it."""
        if os.getuid() != 0:
            raise SkipTest("only root can give away its privileges")
        text = self.with_defaults(self.configuration(head="workers = 2"))
        (self.folder / "proxyd.ini").write_text(text)
        log = self.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*TWISTD, "-n", "--pidfile=", "--gid=65534", "proxyd", "-c", "proxyd.ini"],
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=without_proxies(),
            )
        self.addCleanup(process.wait, PATIENCE)
        self.addCleanup(process.terminate)
        eventually(lambda: len(SERVES.findall(log.read_text())) == 2, log.read_text)
        self.pids = [int(pid) for _, pid in SERVES.findall(log.read_text())]
        for pid in (process.pid, *self.pids):
            [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Gid:")]
            self.assertEqual(set(line.split()[1:]), {"65534"})
