"""What the sections of ``proxyd.ini`` mean, one function for each kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxyd.endpoint import Endpoint
from proxyd.ini import Section
from proxyd.policy.rules import Rule
from proxyd.request import Door, IPAddress
from proxyd.settings import CACHE_TIME, REALM, ClientCertificate, Listener, Settings, TLSFiles, Users
from proxyd.values import (
    Read,
    destination,
    duration,
    network,
    number,
    one_of,
    or_word,
    ports,
    pseudonym,
    quotable,
    server,
    size,
    token,
    within,
    yes_no,
)

DOORS = tuple(door.value for door in Door)

# The limits keep out what cannot be meant (a time-out of 10000 s that was to be milliseconds), and what cannot work.
_SETTINGS: Mapping[str, Read[float] | Read[int]] = {
    "resolver_timeout": within(duration, "100ms", "1m"),
    "dns_negative_ttl": within(duration, "0", "1h"),
    "dns_system_ttl": within(duration, "0", "1d"),
    "connect_timeout": within(duration, "100ms", "5m"),
    "socks_connect_timeout": within(duration, "100ms", "5m"),
    "attempt_delay": within(duration, "10ms", "2s"),  # RFC 8305 §5
    "handshake_timeout": within(duration, "1s", "10m"),
    "response_timeout": within(duration, "1s", "1d"),
    "idle_timeout": within(duration, "1s", "7d"),
    "keepalive_timeout": within(duration, "1s", "1d"),
    "tunnel_lifetime": or_word("none", 0.0, within(duration, "1s", "365d")),
    "drain_timeout": within(duration, "0", "1d"),
    "continue_wait": within(duration, "0", "1s"),
    "upstream_idle_timeout": within(duration, "0", "10m"),
    "upstream_idle_connections": within(number, "0", "65536"),
    "head_size": within(size, "8k", "1M"),
    "head_fields": within(number, "20", "10000"),
    "start_line_size": within(size, "8000", "1M"),  # RFC 9112 §3 recommends to take 8000 octets at least
    "max_connections": within(number, "0", "1000000"),
    "max_connections_per_client": within(number, "0", "1000000"),
    "buffer_size": within(size, "32k", "64M"),  # two reads where bytes are copied
    "access_log_flush": within(duration, "0", "1m"),
    "access_log_buffer": within(size, "64k", "1G"),
    "workers": or_word("auto", 0, within(number, "1", "256")),
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the rules of a configuration can refer to."""

    listeners: frozenset[str]
    groups: frozenset[str]
    identities: bool
    """Whether anything proves who a client is: a users file, or client certificates."""


def read_settings(section: Section, directory: Path) -> Settings:
    """The ``[proxyd]`` section."""
    defaults = Settings()
    numbers: dict[str, Any] = {
        option: section.take(option, read, getattr(defaults, option)) for option, read in _SETTINGS.items()
    }
    settings = replace(
        defaults,
        resolver=_read_resolver(section),
        access_log_json=section.take("access_log_json", _log_path(directory), ""),
        access_log_squid=section.take("access_log_squid", _log_path(directory), ""),
        via=section.take("via", pseudonym, ""),
        **numbers,
    )
    if settings.start_line_size > settings.head_size:
        section.problem("it is more than head_size, which counts the start line too; lower it", "start_line_size")
    if settings.access_log_json and settings.access_log_json == settings.access_log_squid:
        section.problem("it is where access_log_json goes; each format needs a file of its own", "access_log_squid")
    return settings


def _read_resolver(section: Section) -> tuple[tuple[IPAddress, int], ...]:
    system: tuple[tuple[IPAddress, int], ...] = ()
    wishes = section.take_list("resolver", or_word("system", system, lambda text: (server(text),)))
    if system in wishes and len(wishes) > 1:
        section.problem("system and servers exclude each other; write one or the other", "resolver")
    return tuple(itertools.chain.from_iterable(wishes))


def _log_path(directory: Path) -> Read[str]:
    def log_path(text: str) -> str:
        if text in ("", "-"):
            return text
        path = directory / text
        if not path.parent.is_dir():
            raise ValueError(f"there is no directory {path.parent}; create it")
        return str(path)

    return log_path


def _file(directory: Path) -> Read[Path]:
    def file(text: str) -> Path:
        path = directory / text
        _check_file(path)
        return path

    return file


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; create it, or correct the path")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read; let the user that proxyd runs as read it")


def read_listener(section: Section, directory: Path) -> Listener | None:
    """A ``[listener:NAME]`` section, or ``None`` if it is not good enough to go on with."""
    section.require("endpoint", "tcp:8080:interface=127.0.0.1")
    section.require("accept", "forward connect socks5")
    endpoint = section.take("endpoint", _endpoint(directory), None)
    doors = frozenset(map(Door, section.take_list("accept", one_of(DOORS, "protocol"))))
    detect = section.take("detect", yes_no, False)
    tls = _read_tls(section, directory, endpoint, detect)
    if Door.SOCKS5 in doors and len(doors) > 1 and not detect:
        section.problem("SOCKS5 cannot share a port with HTTP unless it is told apart; add detect = yes", "accept")
    if endpoint is None:
        return None
    return Listener(
        name=section.name,
        endpoint=endpoint.description,
        doors=doors,
        detect=detect,
        tls=tls,
        tls_first=endpoint.tls is not None,
        proxy_protocol=endpoint.proxy_protocol,
    )


def _endpoint(directory: Path) -> Read[Endpoint]:
    def endpoint(text: str) -> Endpoint:
        parsed = Endpoint.parse(text, directory)
        if parsed.tls is not None:
            for path in filter(None, (parsed.tls.certificate, parsed.tls.private_key, parsed.tls.chain)):
                _check_file(path)
        return parsed

    return endpoint


def _read_tls(section: Section, directory: Path, endpoint: Endpoint | None, detect: bool) -> TLSFiles | None:
    certificate = section.take("certificate", _file(directory), None)
    private_key = section.take("private_key", _file(directory), certificate)
    client_ca = section.take("client_ca", _file(directory), None)
    words = one_of([wish.value for wish in ClientCertificate], "choice")
    wish = ClientCertificate(section.take("client_certificate", words, ClientCertificate.NONE.value))
    if endpoint is not None:
        _check_tls(section, endpoint.tls is not None, detect, wish)
    if endpoint is not None and endpoint.tls is not None:
        return replace(endpoint.tls, client_ca=client_ca, client_certificate=wish)
    if certificate is None or private_key is None:
        return None
    return TLSFiles(certificate, private_key, None, client_ca, wish)


def _check_tls(section: Section, first: bool, detect: bool, wish: ClientCertificate) -> None:
    for option in ("certificate", "private_key"):
        if option in section and first:
            section.problem("the ssl: endpoint names its files; remove this, or write tcp: and detect = yes", option)
        elif option in section and not detect:
            section.problem("nothing here speaks TLS; add detect = yes, or write an ssl: endpoint instead", option)
    if "private_key" in section and "certificate" not in section and not first:
        section.problem("there is no certificate to it; add certificate = FILE", "private_key")
    if "client_ca" in section and wish is ClientCertificate.NONE:
        section.problem("nobody is asked for a certificate; add client_certificate = optional or required", "client_ca")
    if wish is not ClientCertificate.NONE:
        if "client_ca" not in section:
            section.problem("nothing tells good certificates from bad ones; add client_ca = FILE", "client_certificate")
        if not first and "certificate" not in section:
            section.problem("nothing here speaks TLS; add certificate and private_key", "client_certificate")


def read_users(section: Section, directory: Path) -> Users | None:
    """The ``[users]`` section, or ``None`` if it names no file."""
    section.require("file", "users.htpasswd")
    file = section.take("file", _file(directory), None)
    cache_time = section.take("cache_time", within(duration, "0", "1d"), CACHE_TIME)
    realm = section.take("realm", quotable, REALM)
    return Users(file, cache_time, realm) if file is not None else None


def read_group(section: Section) -> frozenset[str]:
    """The members of a ``[group:NAME]``."""
    section.require("members", "alice bob")
    return frozenset(section.take_list("members", str))


def read_rule(section: Section, names: Names) -> Rule:
    """A ``[rule:NAME]`` section."""
    section.require("action", "allow")
    section.require("destinations", ".example.com 192.0.2.0/24")
    action = section.take("action", one_of(("allow", "deny"), "action"), None)
    if action == "deny":
        _refuse_privileges(section)
    return Rule(
        name=section.name,
        allow=action == "allow",
        destinations=section.take_list("destinations", destination),
        ports=section.take_list("ports", ports),
        listeners=frozenset(section.take_list("listeners", one_of(names.listeners, "listener"))),
        doors=frozenset(map(Door, section.take_list("protocols", one_of(DOORS, "protocol")))),
        methods=frozenset(section.take_list("methods", token)),
        clients=section.take_list("clients", network),
        users=frozenset(section.take_list("users", _person(names, str))),
        groups=frozenset(section.take_list("groups", _person(names, one_of(names.groups, "group")))),
        special_addresses=section.take("special_addresses", yes_no, False),
        preserve_host=section.take("preserve_host", yes_no, False),
        rate=section.take("rate", size, 0),
    )


def _refuse_privileges(section: Section) -> None:
    for option in ("special_addresses", "preserve_host", "rate"):
        if option in section:
            section.problem("it says nothing in a rule that denies; remove it", option)


def _person(names: Names, read: Read[str]) -> Read[str]:
    def person(text: str) -> str:
        if not names.identities:
            raise ValueError("nothing tells who a client is; add [users], or client_certificate to a listener")
        return read(text)

    return person
