"""The other proxies, as Debian packages them: how each is configured to do the same work, with a log and no cache.

They have an easier time than proxyd: no users, one rule that allows everything, and a log in plain text.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.doors import Door
from benchmarks.proxies import TUNNELS, Proxy, make_certificate, started

SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin"
"""Where proxies are that the path of an ordinary user does not lead to."""

FORWARD, CONNECT, SOCKS5 = Door("forward"), Door("connect"), Door("socks5")
FORWARD_TLS, CONNECT_TLS = Door("forward", tls=True), Door("connect", tls=True)

NGINX_CONNECT = b"proxy_connect_module"

Ports = Mapping[str, int]
"""The port of each listener that a peer has: ``http``, ``http-tls``, ``socks5``."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that proxyd is compared with."""

    name: str
    program: str
    package: str
    """Debian's; empty if it has none."""
    doors: tuple[Door, ...]
    command: Callable[[str, Path, Ports], list[str]]
    """Given its program, a folder that is its own and its ports: writes its configuration; how to start it."""
    module: bytes = b""
    """What its ``-V`` names if it was built with the module that gives it more doors."""
    more: tuple[Door, ...] = ()
    """These."""

    def path(self) -> str | None:
        """Where the program is, if it is installed."""
        return shutil.which(self.program, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATHS}")

    def present(self) -> tuple[Door, ...]:
        """The doors of the program that is installed; none if it is missing."""
        path = self.path()
        if path is None:
            return ()
        return self.doors + self.more if self.module and _says(path, self.module) else self.doors

    def version(self) -> str:
        """The version of the package, as far as the program is from it."""
        path = self.path() or ""
        if not self.package or not path.startswith(("/usr/bin/", "/usr/sbin/")) or not shutil.which("dpkg-query"):
            return ""
        command = ["dpkg-query", "--show", "--showformat=${Version}", self.package]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def start(self, folder: Path, ports: Mapping[Door, int], processors: frozenset[int]) -> Proxy:
        """Start it."""
        path = self.path()
        assert path is not None
        make_certificate(folder)
        listeners = {door.listener: port for door, port in ports.items()}
        return started(self.name, self.command(path, folder, listeners), folder, ports, processors)


def _says(path: str, words: bytes) -> bool:
    return words in subprocess.run([path, "-V"], capture_output=True, check=False).stderr


def _write(folder: Path, text: str) -> str:
    path = folder / "config"
    path.write_text(text)
    return str(path)


def _squid(program: str, folder: Path, ports: Ports) -> list[str]:
    # "-N" keeps it one process. It refuses to stay root, and becomes Debian's user "proxy" then.
    if os.geteuid() == 0:
        shutil.chown(folder, "proxy")
    config = _write(
        folder,
        f"""
http_port 127.0.0.1:{ports["http"]}
https_port 127.0.0.1:{ports["http-tls"]} tls-cert={folder}/proxyd-cert.pem tls-key={folder}/proxyd-key.pem
acl everything port 1-65535
http_access allow everything
access_log stdio:{folder}/access.log squid
cache_log {folder}/cache.log
cache deny all
cache_mem 8 MB
pid_filename none
coredump_dir {folder}
cache_effective_user proxy
max_filedescriptors {3 * TUNNELS}
visible_hostname benchmark
shutdown_lifetime 1 seconds
pinger_enable off
""",
    )
    return [program, "-N", "-n", "benchmark", "-f", config]


def _nginx(program: str, folder: Path, ports: Ports) -> list[str]:
    (folder / "logs").mkdir()
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    connect = "proxy_connect; proxy_connect_allow all;" if _says(program, NGINX_CONNECT) else ""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = _write(
        folder,
        f"""
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile {3 * TUNNELS};
{user}
events {{ worker_connections {2 * TUNNELS}; }}
http {{
    access_log {folder}/access.log;
    {temporary}
    server {{
        listen 127.0.0.1:{ports["http"]} backlog=4096;
        listen 127.0.0.1:{ports["http-tls"]} ssl backlog=4096;
        ssl_certificate {folder}/proxyd-cert.pem; ssl_certificate_key {folder}/proxyd-key.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        {connect}
        client_max_body_size 0; keepalive_requests 10000000; resolver 127.0.0.1;
        location / {{
            proxy_pass http://$http_host; proxy_set_header Host $http_host;
            proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off;
        }}
    }}
}}
""",
    )
    return [program, "-p", str(folder), "-c", config]


def _tinyproxy(program: str, folder: Path, ports: Ports) -> list[str]:
    config = _write(
        folder,
        f"""
Port {ports["http"]}
Listen 127.0.0.1
MaxClients {TUNNELS}
LogFile "{folder}/access.log"
LogLevel Connect
Timeout 600
""",
    )
    return [program, "-d", "-c", config]


def _dante(program: str, folder: Path, ports: Ports) -> list[str]:
    user = getpass.getuser()
    config = _write(
        folder,
        f"""
logoutput: {folder}/access.log
internal: 127.0.0.1 port = {ports["socks5"]}
external: lo
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: connect disconnect }}
""",
    )
    return [program, "-f", config]


def _microsocks(program: str, folder: Path, ports: Ports) -> list[str]:
    return [program, "-i", "127.0.0.1", "-p", str(ports["socks5"])]


def _threeproxy(program: str, folder: Path, ports: Ports) -> list[str]:
    config = _write(
        folder,
        f"""
log {folder}/access.log
maxconn {TUNNELS}
auth none
proxy -p{ports["http"]} -i127.0.0.1
socks -p{ports["socks5"]} -i127.0.0.1
""",
    )
    return [program, config]


SQUID = Peer("squid", "squid", "squid-openssl", (FORWARD, CONNECT, FORWARD_TLS, CONNECT_TLS), _squid)
NGINX = Peer("nginx", "nginx", "nginx", (FORWARD, FORWARD_TLS), _nginx, NGINX_CONNECT, (CONNECT, CONNECT_TLS))
TINYPROXY = Peer("tinyproxy", "tinyproxy", "tinyproxy-bin", (FORWARD, CONNECT), _tinyproxy)
DANTE = Peer("dante", "danted", "dante-server", (SOCKS5,), _dante)
MICROSOCKS = Peer("microsocks", "microsocks", "microsocks", (SOCKS5,), _microsocks)
THREEPROXY = Peer("3proxy", "3proxy", "", (FORWARD, CONNECT, SOCKS5), _threeproxy)

PEERS = (SQUID, NGINX, TINYPROXY, DANTE, MICROSOCKS, THREEPROXY)
"""Debian has no 3proxy and no nginx that can CONNECT; such ones are used if the search path leads to them."""
