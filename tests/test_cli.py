from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path

from twisted.scripts import twistd
from twisted.trial.unittest import SynchronousTestCase

from proxyd import __version__
from proxyd.accounts.htpasswd import PasswordFile
from proxyd.cli import CommandError, main, read_password, twistd_command
from proxyd.config import Config, packaged

INI = "[listener:web]\nendpoint = tcp:8080\naccept = connect\n[rule:all]\naction = allow\ndestinations = *\n"


class Terminal(io.StringIO):
    """Standard input with a person at it."""

    def isatty(self):
        return True


class CommandTestCase(SynchronousTestCase):
    def setUp(self):
        self.directory = Path(self.mktemp())
        self.directory.mkdir()

    def proxyd(self, *arguments, stdin=""):
        """The exit status, standard output and standard error of a command."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdin", io.StringIO(stdin))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as left:
                status = left.code
        return status, out.getvalue(), err.getvalue()


class CommandLineTests(CommandTestCase):
    def test_wrong(self):
        """A command line that is not understood ends with 2 and says why."""
        for arguments in (
            (),
            ("start",),
            ("check-config",),
            ("check-config", "a", "b"),
            ("passwd", "a", "b", "--force"),
        ):
            status, out, err = self.proxyd(*arguments)
            self.assertEqual((status, out), (2, ""))
            self.assertIn(": error: ", err)

    def test_version(self):
        """The version is that of the package."""
        self.assertEqual(self.proxyd("--version"), (0, f"proxyd {__version__}\n", ""))

    def test_help(self):
        """Help names every command."""
        status, out, err = self.proxyd("--help")
        self.assertEqual((status, err), (0, ""))
        for command in ("run", "check-config", "passwd", "make-certificate", "example-config"):
            self.assertIn(command, out)


class RunTests(CommandTestCase):
    def test_twistd_command(self):
        """proxyd run is twistd in the foreground without a pid file; --config goes to proxyd, the rest to twistd."""
        self.assertEqual(twistd_command(None, []), ["twistd", "--nodaemon", "--pidfile=", "proxyd"])
        self.assertEqual(
            twistd_command("p.ini", ["--logfile=-"]),
            ["twistd", "--nodaemon", "--pidfile=", "--logfile=-", "proxyd", "--config", "p.ini"],
        )

    def test_run(self):
        """Options may stand in any order; twistd sees its command line and does the rest."""
        seen = []
        self.patch(sys, "argv", ["proxyd"])
        self.patch(twistd, "run", lambda: seen.append(sys.argv))
        self.assertEqual(self.proxyd("run", "--logfile", "-", "-c", "p.ini", "-r", "epoll"), (0, "", ""))
        self.assertEqual(
            seen,
            [["twistd", "--nodaemon", "--pidfile=", "--logfile", "-", "-r", "epoll", "proxyd", "--config", "p.ini"]],
        )


class CheckConfigTests(CommandTestCase):
    def test_good(self):
        """A good configuration is summed up in one line."""
        path = self.directory / "p.ini"
        path.write_text(INI)
        self.assertEqual(
            self.proxyd("check-config", path),
            (0, f"{path}: ok: listeners: web (tcp:8080); rules: 1; users: none\n", ""),
        )

    def test_bad(self):
        """Every problem is a line, and the exit status is 2."""
        path = self.directory / "p.ini"
        path.write_text(INI + "prots = 1\nusers = alice\n")
        self.assertEqual(
            self.proxyd("check-config", path),
            (
                2,
                "",
                f'{path}:7: [rule:all] prots: there is no such option; did you mean "ports"?\n'
                f"{path}:8: [rule:all] users: nothing tells who a client is; "
                "add [users], or client_certificate to a listener\n",
            ),
        )
        status, _, err = self.proxyd("check-config", self.directory / "none.ini")
        self.assertEqual(
            (status, err), (2, f"{self.directory / 'none.ini'}: it cannot be read: No such file or directory\n")
        )

    def test_users(self):
        """The users file is checked too."""
        path = self.directory / "p.ini"
        path.write_text(INI + "[users]\nfile = users\n")
        users = self.directory.absolute() / "users"
        users.write_text("")
        status, out, _ = self.proxyd("check-config", path)
        self.assertEqual((status, out.rpartition("users: ")[2]), (0, f"{users}\n"))
        users.write_text("alice:secret\n")
        status, _, err = self.proxyd("check-config", path)
        self.assertEqual(status, 2)
        self.assertIn(f"{users}:1: ", err)
        self.assertNotIn("secret", err)


class PasswdTests(CommandTestCase):
    def test_pipe(self):
        """The first line from a pipe becomes the password, blanks and all."""
        path = self.directory / "users"
        self.assertEqual(self.proxyd("passwd", path, "alice", stdin=" s3 cret \nmore\n"), (0, "", ""))
        accounts = PasswordFile.from_path(path)
        self.assertTrue(accounts.verify(b"alice", b" s3 cret "))
        self.assertFalse(accounts.verify(b"alice", b"s3 cret"))

    def test_refused(self):
        """What cannot be a password or a name, and a place that cannot be written, are told in one line."""
        path = self.directory / "users"
        self.assertEqual(self.proxyd("passwd", path, "alice", stdin=""), (1, "", "proxyd: the password is empty\n"))
        status, _, err = self.proxyd("passwd", path, "a:b", stdin="s\n")
        self.assertEqual((status, err.count("\n")), (1, 1))
        status, _, err = self.proxyd("passwd", self.directory / "none" / "users", "alice", stdin="s\n")
        self.assertEqual((status, err.count("\n")), (1, 1))
        self.assertIn("No such file or directory", err)
        self.assertEqual(os.listdir(self.directory), [])

    def test_terminal(self):
        """A person is asked twice, and both answers must be the same."""
        asked = []

        def answers(*given):
            remaining = iter(given)

            def ask(prompt):
                asked.append(prompt)
                return next(remaining)

            return ask

        self.assertEqual(read_password(Terminal(), answers("s", "s")), "s")
        self.assertEqual(asked, ["New password: ", "Once more: "])
        error = self.assertRaises(CommandError, read_password, Terminal(), answers("s", "t"))
        self.assertEqual(str(error), "these were two different passwords; nothing is changed")

    def test_no_answer(self):
        """Somebody who breaks off at the prompt sees no traceback, and nothing is changed."""

        def leave():
            raise KeyboardInterrupt

        self.patch(twistd, "run", leave)
        self.assertEqual(self.proxyd("run"), (1, "", "\n"))


class MakeCertificateTests(CommandTestCase):
    def test_made(self):
        """Certificate and key are written where they are asked for, and named."""
        status, out, err = self.proxyd("make-certificate", self.directory, "127.0.0.1", "::1", "localhost")
        files = [self.directory / "proxyd-cert.pem", self.directory / "proxyd-key.pem"]
        self.assertEqual((status, out, err), (0, "".join(f"{file}\n" for file in files), ""))
        self.assertTrue(files[0].read_text().startswith("-----BEGIN CERTIFICATE-----"))
        self.assertTrue(files[1].read_text().startswith("-----BEGIN PRIVATE KEY-----"))

    def test_there_already(self):
        """What is there is not overwritten; the refusal names it."""
        self.proxyd("make-certificate", "--rsa", self.directory, "127.0.0.1")
        before = (self.directory / "proxyd-key.pem").read_bytes()
        self.assertEqual(
            self.proxyd("make-certificate", self.directory, "127.0.0.1"),
            (1, "", f"proxyd: {self.directory / 'proxyd-key.pem'}: File exists\n"),
        )
        self.assertEqual((self.directory / "proxyd-key.pem").read_bytes(), before)

    def test_bad_name(self):
        """A name that is none is refused before anything is written."""
        status, _, err = self.proxyd("make-certificate", self.directory, "*.example.com")
        self.assertEqual(status, 1)
        self.assertIn('"*.example.com": the host is not a valid name', err)
        self.assertEqual(os.listdir(self.directory), [])


class ExampleConfigTests(CommandTestCase):
    def test_packaged(self):
        """Each example is printed as it is packaged; without a name it is the one with every option."""
        for name, file in {"default": "proxyd", "full": "example", "nginx": "from-nginx"}.items():
            self.assertEqual(self.proxyd("example-config", name), (0, packaged(file), ""))
        self.assertEqual(self.proxyd("example-config"), (0, packaged("example"), ""))

    def test_certificate(self):
        """The default can be printed for use with the files that make-certificate writes beside it."""
        self.proxyd("make-certificate", self.directory, "127.0.0.1")
        _, text, _ = self.proxyd("example-config", "default", "--certificate")
        (self.directory / "proxyd.ini").write_text(text)
        config = Config.from_path(self.directory / "proxyd.ini")
        self.assertEqual(
            {listener.name: listener.tls is not None for listener in config.listeners},
            {"http": False, "connect": False, "socks5": False, "all": True},
        )
        self.assertEqual(config.rules, Config.embedded().rules)

    def test_certificate_elsewhere(self):
        """The other examples have no such files."""
        self.assertEqual(
            self.proxyd("example-config", "nginx", "--certificate"),
            (1, "", "proxyd: --certificate goes with default alone\n"),
        )
