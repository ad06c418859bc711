"""Sockets that systemd has bound and passes to a real twistd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
TWISTD = "from twisted.scripts.twistd import run; run()"
PASSED = 3
"""The number of the first descriptor that systemd passes, sd_listen_fds(3)."""
AS_SYSTEMD = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=proxyd exec "$@"'
RULE = "[rule:all]\naction = allow\ndestinations = *\n"


class SystemdSocketTests(SynchronousTestCase):
    """A listener may have its socket from systemd."""

    def start(self, bound: socket.socket, domain: str) -> subprocess.Popen[bytes]:
        """Start a twistd that is passed this socket."""
        config = Path(self.mktemp()).absolute()
        config.write_text(f"[listener:a]\nendpoint = systemd:domain={domain}:name=proxyd\naccept = forward\n" + RULE)
        # In the child, Popen has closed everything but what is passed; the shell puts it where systemd would have it.
        script = AS_SYSTEMD if bound.fileno() == PASSED else f"exec {PASSED}<&{bound.fileno()}; " + AS_SYSTEMD
        twistd = [sys.executable, "-c", TWISTD, "-n", "--pidfile=", "proxyd", "--config", str(config)]
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", *twistd],
            cwd=ROOT,
            pass_fds=[bound.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(self.stop, process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> bytes:
        """Stop it as systemd does; its log."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=30)[0] if process.stdout and not process.stdout.closed else b""

    def answer(self, client: socket.socket) -> bytes:
        """What a client is told who speaks nonsense; the socket is bound, so it may come before there is a twistd."""
        with client:
            client.settimeout(30)
            client.sendall(b"nonsense\r\n\r\n")
            return client.recv(1000)

    def test_inet(self) -> None:
        """A TCP socket is accepted from."""
        with socket.create_server(("127.0.0.1", 0)) as bound:
            process = self.start(bound, "INET")
            answer = self.answer(socket.create_connection(bound.getsockname()))
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            log = self.stop(process)
            self.assertNotIn(b"Traceback", log)

    def test_unix(self) -> None:
        """So is a Unix socket, whose path stays as it is: with the mode it has, and there for the next start."""
        directory = tempfile.mkdtemp()  # the path of a Unix socket has to be short
        self.addCleanup(shutil.rmtree, directory)
        path = f"{directory}/proxyd.sock"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
            os.chmod(path, 0o600)
            bound.listen()
            process = self.start(bound, "UNIX")
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            answer = self.answer(client)
            self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
            self.assertNotIn(b"Traceback", self.stop(process))
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            again = socket.socket(socket.AF_UNIX)
            self.addCleanup(again.close)
            again.connect(path)
