"""The ``proxyd`` command: start it, check its configuration, set passwords, make a certificate, show examples."""

from __future__ import annotations

import argparse
import datetime
import getpass
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from twisted.scripts import twistd

from proxyd import __version__
from proxyd.accounts.htpasswd import AccountsError, PasswordFile, set_password
from proxyd.certificates import SelfSigned
from proxyd.config import Config, ConfigError, packaged

EXAMPLES = {"default": "proxyd", "full": "example", "nginx": "from-nginx"}
"""What ``example-config`` prints, by the name of the packaged file."""

FAILED = 1
INVALID = 2
"""Exit status where a configuration, or the command line, is wrong; argparse has the same."""


class CommandError(Exception):
    """A command cannot do what it was asked for; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown and options.run is not run:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.twistd_options = unknown
    try:
        status: int = options.run(options)
    except OSError as error:
        sys.stderr.write(f"proxyd: {error.filename}: {error.strerror}\n")
    except (AccountsError, CommandError, ValueError) as error:
        sys.stderr.write(f"proxyd: {error}\n")
    except (EOFError, KeyboardInterrupt):  # the person at the prompt thought better of it
        sys.stderr.write("\n")
    else:
        return status
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="proxyd", description="Egress proxy for HTTP, CONNECT and SOCKS5.")
    parser.add_argument("--version", action="version", version=f"proxyd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], usage: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, usage=f"proxyd {usage}", allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    text = "Run the proxy in the foreground; options that are not its own are passed on to twistd."
    added = command("run", run, "run [--config FILE] [TWISTD OPTIONS]", text)
    added.add_argument(
        "-c", "--config", metavar="FILE", help="without it an embedded configuration on loopback is used"
    )

    text = "Tell everything that is wrong in a configuration."
    added = command("check-config", check_config, "check-config FILE", text)
    added.add_argument("file", metavar="FILE", type=Path)

    added = command("passwd", passwd, "passwd FILE USER", "Set a user's password in an htpasswd file.")
    added.add_argument("file", metavar="FILE", type=Path)
    added.add_argument("user", metavar="USER")

    text = "Make a self-signed certificate for TLS to the proxy."
    added = command("make-certificate", make_certificate, "make-certificate [--rsa] DIRECTORY NAME_OR_ADDRESS...", text)
    added.add_argument("--rsa", action="store_true", help="RSA 2048 instead of P-256, for very old clients")
    added.add_argument("directory", metavar="DIRECTORY", type=Path)
    added.add_argument("names", metavar="NAME_OR_ADDRESS", nargs="+", help="how clients name the proxy")

    text = "Print a configuration: every option explained (full), the embedded one, or the vendor's nginx example."
    added = command("example-config", example_config, "example-config [full|default|nginx] [--certificate]", text)
    added.add_argument("--certificate", action="store_true", help="default alone: use the files of make-certificate")
    added.add_argument("name", nargs="?", choices=sorted(EXAMPLES), default="full")
    return parser


def twistd_command(config: str | None, twistd_options: Sequence[str]) -> list[str]:
    """The twistd command line that ``proxyd run`` stands for."""
    own = ["--config", config] if config is not None else []
    return ["twistd", "--nodaemon", "--pidfile=", *twistd_options, "proxyd", *own]


def run(options: argparse.Namespace) -> int:
    """Become ``twistd -n --pidfile= proxyd``."""
    sys.argv = twistd_command(options.config, options.twistd_options)
    twistd.run()
    return 0


def check_config(options: argparse.Namespace) -> int:
    """Print every problem of a configuration and its users file, or one line that sums it up."""
    try:
        config = Config.from_path(options.file)
        if config.users is not None:
            PasswordFile.from_path(config.users.file)
    except (ConfigError, AccountsError) as error:
        sys.stderr.write(f"{error}\n")
        return INVALID
    listeners = ", ".join(f"{listener.name} ({listener.endpoint})" for listener in config.listeners)
    users = config.users.file if config.users is not None else "none"
    sys.stdout.write(f"{options.file}: ok: listeners: {listeners}; rules: {len(config.rules)}; users: {users}\n")
    return 0


def passwd(options: argparse.Namespace) -> int:
    """Set a password: asked for twice on a terminal, else the first line of standard input."""
    set_password(options.file, options.user, read_password(sys.stdin, getpass.getpass).encode())
    return 0


def read_password(stdin: TextIO, ask: Callable[[str], str]) -> str:
    """A new password, from the person at the terminal or from a pipe.

    Raises:
        CommandError: the two answers differ.
    """
    if not stdin.isatty():
        return stdin.readline().removesuffix("\n")
    password = ask("New password: ")
    if ask("Once more: ") != password:
        raise CommandError("these were two different passwords; nothing is changed")
    return password


def make_certificate(options: argparse.Namespace) -> int:
    """Write a self-signed certificate and its key, unless there are some."""
    made = SelfSigned.make(options.names, datetime.datetime.now(datetime.UTC), with_rsa=options.rsa)
    certificate, private_key = made.write(options.directory)
    sys.stdout.write(f"{certificate}\n{private_key}\n")
    return 0


def example_config(options: argparse.Namespace) -> int:
    """Print a packaged configuration."""
    text = packaged(EXAMPLES[options.name])
    if options.certificate:
        if options.name != "default":
            raise CommandError("--certificate goes with default alone")
        text = text.replace("#certificate =", "certificate =").replace("#private_key =", "private_key =")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
