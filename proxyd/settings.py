"""What a configuration consists of, as values that never change."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from proxyd.request import Door, IPAddress

CACHE_TIME = 60.0
"""Seconds for which a checked password counts as checked."""
REALM = "proxyd"
"""What clients are told that the password is for."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The ``[proxyd]`` section: durations in seconds, sizes in bytes.

    The reason for each default stands in ``defaults/example.ini``.
    """

    resolver: tuple[tuple[IPAddress, int], ...] = ()
    """DNS servers in the order they are tried; none: the resolver of the system."""
    resolver_timeout: float = 5.0
    dns_negative_ttl: float = 5.0
    dns_system_ttl: float = 60.0

    connect_timeout: float = 10.0
    socks_connect_timeout: float = 5.0
    attempt_delay: float = 0.25
    handshake_timeout: float = 30.0
    response_timeout: float = 120.0
    idle_timeout: float = 600.0
    keepalive_timeout: float = 300.0
    tunnel_lifetime: float = 86400.0
    """0: tunnels may last for ever."""
    drain_timeout: float = 30.0
    continue_wait: float = 0.02

    upstream_idle_timeout: float = 15.0
    upstream_idle_connections: int = 256

    head_size: int = 65536
    head_fields: int = 200
    start_line_size: int = 16384
    max_connections: int = 0
    """0: as many as the limit on open files allows."""
    max_connections_per_client: int = 2000
    """0: no limit of its own."""
    buffer_size: int = 262144

    access_log_json: str = ""
    """A path, ``-`` for standard output, empty for no such log."""
    access_log_squid: str = ""
    """As ``access_log_json``."""
    access_log_flush: float = 0.2
    access_log_buffer: int = 8388608

    via: str = ""
    """The pseudonym in ``Via``; empty: the service makes one."""
    workers: int = 1
    """Processes on the same ports; 0: one for each core."""


class ClientCertificate(enum.Enum):
    """Whether TLS clients of a listener are asked for a certificate."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """The PEM files that a listener speaks TLS with."""

    certificate: Path
    private_key: Path
    chain: Path | None
    client_ca: Path | None
    client_certificate: ClientCertificate


@dataclass(frozen=True, slots=True)
class Listener:
    """One ``[listener:NAME]``: a port we accept on, and the doors behind it."""

    name: str
    endpoint: str
    """A Twisted server endpoint string without the wrappers ``ssl:`` and ``haproxy:``, which are proxyd's own."""
    doors: frozenset[Door]
    detect: bool
    """Whether the first byte of a connection tells what it speaks: TLS, SOCKS5 or HTTP."""
    tls: TLSFiles | None
    tls_first: bool
    """Whether every connection begins with TLS: the endpoint was ``ssl:``."""
    proxy_protocol: bool
    """Whether every connection begins with a PROXY protocol header: the endpoint was ``haproxy:``."""


@dataclass(frozen=True, slots=True)
class Users:
    """The ``[users]`` section: where passwords are checked."""

    file: Path
    cache_time: float = CACHE_TIME
    realm: str = REALM
