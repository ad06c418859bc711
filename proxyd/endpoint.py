"""Twisted server endpoint strings, and what proxyd itself makes of their wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from proxyd.settings import ClientCertificate, TLSFiles
from proxyd.values import suggestion

_PART = re.compile(r"((?:\\.|[^\\:])*)(:|\Z)")
_ASSIGNMENT = re.compile(r"((?:\\.|[^\\=])*)=(.*)\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_BACKLOG = re.compile(r"[1-9][0-9]{0,4}\Z")
_MODE = re.compile(r"[0-7]{3,4}\Z")

_PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
    "ssl": (
        "port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters"
    ),
}  # fmt: skip
"""The parameters of each kind of endpoint, in the order in which Twisted takes those without a name."""

MAX_SOCKET_PATH = 107
"""Octets of the path of a Unix socket: ``sun_path`` without its final NUL, unix(7)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a listener accepts connections, and what these begin with."""

    description: str
    """What Twisted is given: no ``ssl:`` and no ``haproxy:``."""
    proxy_protocol: bool = False
    tls: TLSFiles | None = None
    """The files that an ``ssl:`` endpoint names: every connection begins with TLS."""

    @classmethod
    def parse(cls, text: str, directory: Path) -> Endpoint:
        """Take an endpoint string apart.

        Args:
            directory: What relative paths in it are relative to.

        Raises:
            ValueError: with what is wrong and how to put it right.
        """
        wrapper, _, rest = text.partition(":")
        proxy_protocol = wrapper == "haproxy"
        kind, parameters = _read(rest if proxy_protocol else text)
        _check(kind, parameters)
        if kind == "ssl":
            return cls(_tcp(parameters), proxy_protocol, _files(parameters, directory))
        if kind == "unix":
            return cls(_unix(parameters, directory), proxy_protocol)
        return cls(rest if proxy_protocol else text, proxy_protocol)


def _read(text: str) -> tuple[str, dict[str, str]]:
    kind, *parts = _split(text)
    if kind == "fd":
        raise ValueError("Twisted has no fd: endpoint for servers; write systemd:domain=INET:index=0")
    if kind not in _PARAMETERS:
        fix = suggestion(kind, {"haproxy", *_PARAMETERS} - {kind})  # haproxy: may not stand in itself
        raise ValueError(f'there is no endpoint "{kind}:" here; {fix}')
    names = _PARAMETERS[kind]
    unnamed = iter(names)
    parameters: dict[str, str] = {}
    for part in parts:
        assignment = _ASSIGNMENT.match(part)
        name = _unescape(assignment[1]) if assignment else next(unnamed, None)
        if name is None:
            raise ValueError(f"{kind}: has too many parts; write the colons of an IPv6 address or path as \\:")
        if name not in names:
            raise ValueError(f'{kind}: has no parameter "{name}"; {suggestion(name, names)}')
        if name in parameters:
            raise ValueError(f"{kind}: has {name} twice; write the colons of an IPv6 address or path as \\:")
        parameters[name] = _unescape(assignment[2] if assignment else part)
    return kind, parameters


def _split(text: str) -> list[str]:
    """The parts between colons, with their escapes."""
    parts = []
    position = 0
    while match := _PART.match(text, position):
        parts.append(match[1])
        if not match[2]:
            return parts
        position = match.end()
    raise ValueError("it ends with a backslash, which escapes the character behind it; remove it or write two")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _escape(text: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", text)


def _check(kind: str, parameters: Mapping[str, str]) -> None:
    if kind == "systemd":
        _check_inherited(parameters)
    elif _PARAMETERS[kind][0] == "port":
        _check_port(kind, parameters)
    elif not parameters.get("address"):
        raise ValueError("unix: has no path; write unix:/run/proxyd/proxyd.sock:mode=660")
    if not _BACKLOG.match(parameters.get("backlog", "50")):
        raise ValueError("backlog is not a number; write how many connections may wait, such as backlog=1024")
    if not _MODE.match(parameters.get("mode", "660")):
        raise ValueError("mode is not octal; write mode=660")
    if parameters.get("lockfile", "1") not in ("0", "1"):
        raise ValueError("lockfile is neither 0 nor 1; write one of them")
    for name in ("sslmethod", "dhParameters"):
        if name in parameters:
            raise ValueError(f"{name} cannot be chosen; remove it: TLS 1.2 and 1.3 with forward secrecy are always on")


def _check_port(kind: str, parameters: Mapping[str, str]) -> None:
    port = parameters.get("port", "")
    if not _PORT.match(port) or int(port) > 65535:
        raise ValueError(f"{kind}: has no port between 0 and 65535; write {kind}:8080")
    interface = parameters.get("interface", "")
    try:
        if interface and kind == "tcp6":
            IPv6Address(interface)
        elif interface:
            ip_address(interface)
    except ValueError:
        fix = r"interface=\:\:1" if kind == "tcp6" else r"interface=127.0.0.1 or interface=\:\:1"
        raise ValueError(f'interface "{interface}" is not an address of this machine; write {fix}') from None


def _check_inherited(parameters: Mapping[str, str]) -> None:
    if parameters.get("domain") not in ("INET", "INET6", "UNIX"):
        raise ValueError("systemd: has no domain; write systemd:domain=INET:name=proxyd (or INET6, UNIX)")
    if ("index" in parameters) == ("name" in parameters):
        raise ValueError("systemd: takes a name or an index; write systemd:domain=INET:name=proxyd")
    if not _PORT.match(parameters.get("index", "0")):
        raise ValueError("index is not a number; write index=0 for the first socket that systemd passes")


def _tcp(parameters: Mapping[str, str]) -> str:
    description = f"tcp:{parameters['port']}"
    for name in ("interface", "backlog"):
        if name in parameters:
            description += f":{name}={_escape(parameters[name])}"
    return description


def _files(parameters: Mapping[str, str], directory: Path) -> TLSFiles:
    private_key = parameters.get("privateKey")
    if not private_key:
        raise ValueError("ssl: has no private key; write ssl:8443:privateKey=key.pem:certKey=cert.pem")
    chain = parameters.get("extraCertChain")
    return TLSFiles(
        certificate=directory / parameters.get("certKey", private_key),
        private_key=directory / private_key,
        chain=directory / chain if chain else None,
        client_ca=None,
        client_certificate=ClientCertificate.NONE,
    )


def _unix(parameters: Mapping[str, str], directory: Path) -> str:
    path = str(directory / parameters["address"])
    if len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"{path} is longer than the {MAX_SOCKET_PATH} octets of a Unix socket; shorten it")
    description = f"unix:{_escape(path)}"
    for name in ("mode", "backlog", "lockfile"):
        if name in parameters:
            description += f":{name}={parameters[name]}"
    return description
