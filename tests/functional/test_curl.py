"""curl through every door: what an operator types to see whether the proxy works, and what libcurl's agents do."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from tests.functional.clients import agent_tls, connected
from tests.functional.origin import INVALID_METHOD, Origin, digest, pattern
from tests.functional.running import (
    CONTROL,
    MONITORING,
    PATIENCE,
    PROJECT,
    ProxydTestCase,
    free_ports,
    without_proxies,
)

SCHEMES = ("http", "https", "socks5", "socks5h")
USER, PASSWORD = "us@er", "p:w"
"""As in the capture of a real agent: what has to be escaped in a URL, and a colon behind the first."""

COULD_NOT_CONNECT, RECEIVE_ERROR, PROXY_ERROR = 7, 56, 97
"""curl's exit codes for what proxies refuse."""


@dataclass(frozen=True)
class Done:
    """What curl did."""

    exit: int
    body: bytes
    told: dict[str, Any]
    """Its own variables: http_code, http_connect, num_connects and so on."""
    errors: str

    @property
    def status(self) -> int:
        """The status of the response, 0 if there was none."""
        return int(self.told["http_code"])

    def __str__(self) -> str:
        return f"exit {self.exit}, status {self.status}, {self.errors}, {self.body[:200]!r}"


class CurlTestCase(ProxydTestCase):
    """Ports that serve everyone, and ports that serve who has a password; on one of each everything is told apart."""

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("curl") is None:
            raise SkipTest("curl is not installed")
        self.origin = self.start_origin()
        self.names = self.start_names()
        self.certificate = self.make_certificate()
        self.add_user(USER, PASSWORD)
        self.start()

    def start(self) -> None:
        """Start the proxy."""
        kinds = ("any", "http", "https", "socks5")
        names = [f"{who}-{kind}" for who, kind in itertools.product(("open", "closed"), kinds)]
        self.ports = free_ports(*names, "open-balanced")
        self.proxyd = self.start_proxyd(self.configuration(), self.ports)

    def configuration(self) -> str:
        """Which listener is for whom."""
        tls = "certificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem"
        sections = [f"resolver = 127.0.0.1:{self.names.port}", "[users]\nfile = users.htpasswd"]
        for name, port in self.ports.items():
            kind = name.partition("-")[2]
            endpoint = f"tcp:{port}:interface=127.0.0.1"
            accept = {"any": "forward connect socks5", "socks5": "socks5"}.get(kind, "forward connect")
            if kind == "https":
                endpoint = f"ssl:{port}:interface=127.0.0.1:certKey=proxyd-cert.pem:privateKey=proxyd-key.pem"
            if kind == "balanced":
                endpoint = "haproxy:" + endpoint
            sections.append(f"[listener:{name}]\nendpoint = {endpoint}\naccept = {accept}")
            if kind == "any":
                sections.append(f"detect = yes\n{tls}")
        for who, condition in (("open", ""), ("closed", "users = " + USER)):
            listeners = " ".join(name for name in self.ports if name.startswith(who))
            sections.append(
                f"[rule:{who}]\naction = allow\nlisteners = {listeners}\n{condition}\n"
                f"destinations = .log.aliyuncs.com {self.origin.address}\n"
                f"ports = {self.origin.port} {self.origin.secure_port}\nspecial_addresses = yes"
            )
        return "\n".join(sections)

    def doors(self, who: str) -> Iterator[tuple[str, int]]:
        """Every scheme with the ports that speak it: the one for everything, and its own."""
        for scheme in SCHEMES:
            yield scheme, self.ports[f"{who}-any"]
            yield scheme, self.ports[f"{who}-{scheme.removesuffix('h')}"]

    def urls(self, path: str = "/", host: str = CONTROL) -> list[str]:
        """The same path by HTTP and HTTPS."""
        return [f"http://{host}:{self.origin.port}{path}", f"https://{host}:{self.origin.secure_port}{path}"]

    def curl(self, proxy: str, url: str, *options: str | Path, user: str = "") -> Done:
        """Run curl by a proxy."""
        output = self.folder / "curl-output"
        output.unlink(missing_ok=True)
        host, _, port = url.split("/")[2].partition(":")
        command = ["curl", "-q", "-sS", "--max-time", "25", "--output", output, "--write-out", "%{json}"]
        command += ["--proxy", proxy, "--proxy-cacert", self.certificate, "--cacert", self.origin.certificate]
        if proxy.startswith("socks5:"):  # which has curl itself resolve names
            command += ["--resolve", f"{host}:{port}:{self.origin.address}"]
        if user:
            command += ["--proxy-user", user]
        done = subprocess.run([*command, *options, url], capture_output=True, env=without_proxies(), timeout=PATIENCE)
        body = output.read_bytes() if output.exists() else b""
        return Done(done.returncode, body, json.loads(done.stdout), done.stderr.decode())

    def assert_answered(self, done: Done, status: int = 200) -> None:
        """curl got an origin's answer."""
        self.assertEqual((done.exit, done.status), (0, status), str(done))


class DoorTests(CurlTestCase):
    """Who comes in, by which door."""

    def test_every_door(self) -> None:
        """Every scheme reaches HTTP and HTTPS origins, on its own port and on one for all, with and without a user."""
        count = 0
        for who, user in (("open", ""), ("open", f"{USER}:{PASSWORD}"), ("closed", f"{USER}:{PASSWORD}")):
            for (scheme, port), url in itertools.product(self.doors(who), self.urls()):
                done = self.curl(f"{scheme}://127.0.0.1:{port}", url, user=user)
                count += 1

                self.assert_answered(done, 405)
                self.assertEqual(done.body, INVALID_METHOD, f"{who} {scheme} {url}")

        records = self.proxyd.all_records()
        self.assertEqual(len(records), count)
        self.assertEqual({record["decision"] for record in records}, {"allow"})
        self.assertEqual({record.get("user") for record in records if record["rule"] == "closed"}, {USER})
        self.assertEqual(
            {record["destination"] for record in records if record["address"].endswith(f":{self.origin.port}")}
            - {f"127.0.0.1:{self.origin.port}"},
            {f"{CONTROL}:{self.origin.port}"},
        )
        self.assertEqual(len(self.proxyd.squid_path.read_bytes().splitlines()), count)

    def test_credentials_in_the_url(self) -> None:
        """The agent's way to name a user, escaped in the proxy URL, works with every scheme."""
        for (scheme, port), url in itertools.product(self.doors("closed"), self.urls()):
            done = self.curl(f"{scheme}://us%40er:p%3Aw@127.0.0.1:{port}", url)

            self.assert_answered(done, 405)

    def test_nothing_without_credentials(self) -> None:
        """Where a user is needed, who names none gets 407, or is refused in SOCKS; the origin hears of nothing."""
        self.assert_refused("")

        records = self.proxyd.all_records()
        self.assertEqual(len(records), 16)
        self.assertEqual({record["decision"] for record in records}, {"challenge"})
        self.assertEqual({record.get("status") for record in records}, {407, None})

    def test_nothing_with_a_wrong_password(self) -> None:
        """A wrong password is refused with every scheme, like an unknown user."""
        self.assert_refused(f"{USER}:wrong")
        self.assert_refused(f"nobody:{PASSWORD}")

    def assert_refused(self, user: str) -> None:
        """Nobody comes in as this user."""
        for (scheme, port), url in itertools.product(self.doors("closed"), self.urls()):
            done = self.curl(f"{scheme}://127.0.0.1:{port}", url, user=user)
            what = f"{scheme} {url} {done}"

            if scheme.startswith("socks"):
                self.assertEqual(done.exit, PROXY_ERROR, what)
            elif url.startswith("https"):
                self.assertEqual((done.exit, done.told["http_connect"]), (RECEIVE_ERROR, 407), what)
            else:
                self.assertEqual((done.exit, done.status), (0, 407), what)
                self.assertEqual(done.body.count(b"\n"), 1, what)
        self.assertEqual(self.origin.received, [])

    def test_wrong_password_where_none_is_needed(self) -> None:
        """Who says a wrong password is told so by HTTP even where nobody is asked for one."""
        done = self.curl(f"http://127.0.0.1:{self.ports['open-http']}", self.urls()[0], user=f"{USER}:wrong")

        self.assertEqual(done.status, 407)

    def test_any_authentication(self) -> None:
        """--proxy-anyauth finds that Basic is offered, and asks again on the same connection."""
        for scheme, url in itertools.product(("http", "https"), self.urls()):
            proxy = f"{scheme}://127.0.0.1:{self.ports['closed-any']}"

            done = self.curl(proxy, url, "--proxy-anyauth", user=f"{USER}:{PASSWORD}")

            self.assert_answered(done, 405)
            self.assertEqual(done.told["num_connects"], 1, f"{scheme} {url}")

    def test_any_authentication_with_a_body(self) -> None:
        """--proxy-anyauth with a body: it goes to the origin once, after the challenge."""
        body = self.folder / "body"
        body.write_bytes(pattern(3_000_000))
        for url in self.urls("/upload"):
            proxy = f"http://127.0.0.1:{self.ports['closed-http']}"

            done = self.curl(proxy, url, "--proxy-anyauth", "--data-binary", f"@{body}", user=f"{USER}:{PASSWORD}")

            self.assert_answered(done)
            self.assertEqual(json.loads(done.body)["digest"], digest(body.read_bytes()))
        self.assertEqual(len(self.origin.received), 2)

    def test_no_door_where_none_is(self) -> None:
        """A port refuses the protocols that it does not accept, at once and without a word to the origin."""
        http, socks5 = self.ports["open-http"], self.ports["open-socks5"]
        for proxy in (f"socks5h://127.0.0.1:{http}", f"http://127.0.0.1:{socks5}", f"https://127.0.0.1:{http}"):
            done = self.curl(proxy, self.urls()[0])

            self.assertNotEqual((done.exit, done.status), (0, 405), proxy)
        self.assertEqual(self.origin.received, [])

    def test_certificates(self) -> None:
        """curl sees the proxy's certificate on the way, and behind CONNECT the origin's own, unchanged."""
        url, proxy = self.urls()[1], f"https://127.0.0.1:{self.ports['open-any']}"

        done = self.curl(proxy, url, "--verbose")

        self.assert_answered(done, 405)
        self.assertEqual((done.told["proxy_ssl_verify_result"], done.told["ssl_verify_result"]), (0, 0))
        mixed = self.curl(proxy, url, "--proxy-cacert", self.origin.certificate)
        self.assertEqual(mixed.exit, 60)

    def test_half_a_tunnel_for_http(self) -> None:
        """--proxytunnel reaches a plain HTTP origin by CONNECT, as Fluent Bit does."""
        done = self.curl(f"http://127.0.0.1:{self.ports['open-http']}", self.urls()[0], "--proxytunnel")

        self.assert_answered(done, 405)
        self.assertEqual(self.proxyd.records(1)[0]["method"], "CONNECT")

    def test_http_and_https_together(self) -> None:
        """One port carries HTTP and HTTPS of many clients at the same time."""
        proxy = f"http://127.0.0.1:{self.ports['open-any']}"
        command = ["curl", "-q", "-sS", "--no-progress-meter", "--fail", "--parallel", "--max-time", "25"]
        command += ["--proxy", proxy, "--cacert", str(self.origin.certificate)]
        for url in self.urls("/bytes/100000") * 20:
            command += ["--output", "/dev/null", url]

        subprocess.run(command, check=True, env=without_proxies(), timeout=PATIENCE)

        self.assertEqual(len(self.origin.received), 40)
        self.assertEqual({request.secure for request in self.origin.received}, {True, False})


class RequestTests(CurlTestCase):
    """What curl sends, and what must come of it at the origin."""

    def each(self) -> Iterator[tuple[str, str]]:
        """Each scheme, with HTTP and HTTPS."""
        for scheme in SCHEMES:
            for kind in (0, 1):
                yield f"{scheme}://127.0.0.1:{self.ports['open-any']}", self.urls("/upload?a=%2F&b=x%20y;z=1&&c")[kind]

    def test_expected_body(self) -> None:
        """A POST of more than 1 MiB, for which curl asks with Expect, arrives whole by every way."""
        body = self.folder / "body"
        body.write_bytes(pattern(1_600_000))
        for proxy, url in self.each():
            done = self.curl(proxy, url, "--data-binary", f"@{body}", "--expect100-timeout", "20")

            self.assert_answered(done)
            request = self.origin.received[-1]
            self.assertEqual(request.value(b"expect"), b"100-continue")
            self.assertEqual(request.value(b"content-length"), b"1600000")
            self.assertEqual(request.target, b"/upload?a=%2F&b=x%20y;z=1&&c")
            self.assertEqual(digest(request.body), digest(body.read_bytes()))

    def test_expectation_of_a_silent_origin(self) -> None:
        """Where the origin says no 100, proxyd does: curl, which would wait for 20 s here, sends the body."""
        body = self.folder / "body"
        body.write_bytes(pattern(1_600_000))
        proxy, url = f"http://127.0.0.1:{self.ports['open-http']}", self.urls("/silent")[0]

        done = self.curl(proxy, url, "--data-binary", f"@{body}", "--expect100-timeout", "20", "--max-time", "15")

        self.assert_answered(done)

    def test_refused_expectation(self) -> None:
        """A final answer instead of 100 reaches curl as it is, and no body is sent."""
        body = self.folder / "body"
        body.write_bytes(pattern(1_600_000))
        for scheme in ("http", "https"):
            proxy, url = f"{scheme}://127.0.0.1:{self.ports['open-any']}", self.urls("/refuse")[0]

            done = self.curl(proxy, url, "--data-binary", f"@{body}", "--expect100-timeout", "20")

            self.assertEqual((done.status, done.body), (413, b"too large"), str(done))
            self.assertLess(done.told["size_upload"], 1_600_000)

    def test_large_put(self) -> None:
        """12 MB are put by every way; nothing has a size limit."""
        body = self.folder / "body"
        body.write_bytes(pattern(12_000_000))
        for proxy, url in self.each():
            done = self.curl(proxy, url, "--upload-file", body)

            self.assert_answered(done)
            self.assertEqual(json.loads(done.body), {"length": 12_000_000, "digest": digest(body.read_bytes())})

    def test_put_without_length(self) -> None:
        """A PUT with neither length nor body is one without a body: no 411, no waiting."""
        for proxy, url in self.each():
            done = self.curl(proxy, url, "--request", "PUT")

            self.assert_answered(done)
            request = self.origin.received[-1]
            self.assertEqual((request.method, request.body, request.chunked), (b"PUT", b"", False))
            self.assertIn(request.values(b"content-length"), ([], [b"0"]))

    def test_chunked_upload(self) -> None:
        """A chunked body of unknown length arrives whole, and chunked."""
        body = self.folder / "body"
        body.write_bytes(pattern(700_000))
        for proxy, url in self.each():
            done = self.curl(proxy, url, "--header", "Transfer-Encoding: chunked", "--data-binary", f"@{body}")

            self.assert_answered(done)
            request = self.origin.received[-1]
            self.assertEqual((request.chunked, request.values(b"content-length")), (True, []))
            self.assertEqual(digest(request.body), digest(body.read_bytes()))

    def test_head(self) -> None:
        """HEAD gives the fields of a GET, the length among them, and no body."""
        for proxy, url in self.each():
            done = self.curl(proxy, url.partition("/upload")[0] + "/bytes/5000", "--head")

            self.assert_answered(done)
            self.assertIn(b"\r\nContent-Length: 5000\r\n", done.body)
            self.assertEqual(self.origin.received[-1].method, b"HEAD")

    def test_old_http(self) -> None:
        """An HTTP/1.0 client gets what it can read: no chunks, the end by closing."""
        for proxy, url in self.each():
            for path in ("/bytes/70000", "/chunked/70000"):
                if "https" in url and "chunked" in path:
                    continue  # the origin's own answer, which proxyd does not see
                done = self.curl(proxy, url.partition("/upload")[0] + path, "--http1.0")
                if proxy.startswith("socks") and "chunked" in path:
                    continue  # the same

                self.assert_answered(done)
                self.assertEqual(digest(done.body), digest(pattern(70000)), f"{proxy} {path}")

    def test_downloads(self) -> None:
        """Bodies of known length, chunked ones and those that end with the connection arrive whole by every way."""
        for proxy, url in self.each():
            for path in ("/bytes/3000000", "/chunked/3000000", "/close/3000000"):
                if path.startswith("/close") and url.startswith("https"):
                    continue  # without a length TLS would have to say the end, which this origin does not
                done = self.curl(proxy, url.partition("/upload")[0] + path)

                self.assert_answered(done)
                self.assertEqual(digest(done.body), digest(pattern(3_000_000)), f"{proxy} {path}")

    def test_fields(self) -> None:
        """What is the client's and the origin's passes unchanged; what is between them and the proxy does not."""
        proxy, [url, _] = f"http://127.0.0.1:{self.ports['open-http']}", self.urls("/upload")
        fields = ["x-log-apiversion: 0.6.0", "Date: Mon, 02 Jan 2006 15:04:05 GMT", "Content-MD5: rUfB", "X-Empty;"]
        fields += ["Connection: X-Secret", "X-Secret: 1", "Proxy-Connection: Keep-Alive", "X-Log-Bodyrawsize:  4096  "]
        options = itertools.chain.from_iterable(("--header", field) for field in fields)

        done = self.curl(proxy, url, *options, "--dump-header", self.folder / "fields", user=f"{USER}:{PASSWORD}")

        self.assert_answered(done)
        request = self.origin.received[-1]
        self.assertEqual(request.value(b"host"), f"{CONTROL}:{self.origin.port}".encode())
        self.assertEqual(request.value(b"x-log-apiversion"), b"0.6.0")
        self.assertEqual(request.value(b"date"), b"Mon, 02 Jan 2006 15:04:05 GMT")
        self.assertEqual(request.value(b"content-md5"), b"rUfB")
        self.assertEqual(request.value(b"x-empty"), b"")
        self.assertEqual(request.value(b"x-log-bodyrawsize"), b"4096")
        for gone in (b"proxy-connection", b"proxy-authorization", b"x-secret", b"connection"):
            self.assertNotIn(b"X-Secret", b", ".join(request.values(gone)))
            self.assertEqual(request.values(gone), [], gone)
        self.assertEqual(len(request.values(b"via")), 1)
        answer = (self.folder / "fields").read_bytes()
        for line in (b"x-log-requestid: 62591BC7C08B7BD4AA99FCD4\r\n", b"Server: origin\r\n", b"Via: 1.1 "):
            self.assertIn(line, answer)

    def test_proxy_protocol(self) -> None:
        """Behind a balancer the record tells the client that it names; without its header nobody is served."""
        proxy = f"http://127.0.0.1:{self.ports['open-balanced']}"

        done = self.curl(proxy, self.urls()[0], "--haproxy-protocol")
        self.assert_answered(done, 405)
        bare = self.curl(proxy, self.urls()[0])
        self.assertNotEqual((bare.exit, bare.status), (0, 405))

        record = self.proxyd.records(1)[0]
        self.assertEqual((record["client"], record["client_port"]), ("127.0.0.1", done.told["local_port"]))
        self.assertEqual(len(self.origin.received), 1)


class VendorTests(CurlTestCase):
    """What the vendor tells people to try."""

    def test_verification(self) -> None:
        """The four requests of the vendor's page give its JSON, byte for byte, by each scheme."""
        for scheme in SCHEMES:
            proxy = f"{scheme}://127.0.0.1:{self.ports['open-any']}"
            for host, kind in ((CONTROL, 0), (CONTROL, 1), (PROJECT, 0), (MONITORING, 0)):
                done = self.curl(proxy, self.urls("/", host)[kind])

                self.assertEqual((done.exit, done.body), (0, INVALID_METHOD), f"{scheme} {host} {done}")
                self.assertEqual(self.origin.received[-1].secure, bool(kind))
                self.assertTrue(self.origin.received[-1].value(b"host").startswith(host.encode()))
        self.assertIn(CONTROL, {name for name, _ in self.names.asked})

    def test_verification_as_printed(self) -> None:
        """The same with the URLs as they stand there, without ports, and with the proxy taken from the environment."""
        address = "127.80.80.80"
        try:
            origin = Origin(self.subfolder("ports"), (CONTROL, PROJECT, MONITORING), address, (80, 443))
        except OSError as error:
            raise SkipTest(f"{address} ports 80 and 443 cannot be used here: {error}") from None
        self.addCleanup(origin.close)
        self.names.addresses = dict.fromkeys(self.names.addresses, address)
        self.proxyd.stop()
        self.proxyd.access_path.unlink()
        ports = f"ports = {self.origin.port} {self.origin.secure_port}"
        self.proxyd = self.start_proxyd(self.configuration().replace(ports, "ports = 80 443"), self.ports)
        urls = (f"http://{CONTROL}", f"https://{CONTROL}", f"http://{PROJECT}", f"http://{MONITORING}")
        for scheme, url in itertools.product(("http", "https", "socks5h"), urls):
            command = ["curl", "-q", "-sS", "--proxy-cacert", self.certificate, "--cacert", origin.certificate, url]
            environment = without_proxies(ALL_PROXY=f"{scheme}://127.0.0.1:{self.ports['open-any']}")

            done = subprocess.run(command, capture_output=True, env=environment, timeout=PATIENCE)

            self.assertEqual((done.stdout, done.stderr), (INVALID_METHOD, b""), f"{scheme} {url}")
        self.assertEqual(len(origin.received), 12)
        hosts = {request.value(b"host").decode() for request in origin.received}
        self.assertEqual(hosts, {CONTROL, PROJECT, MONITORING})

    def subfolder(self, name: str) -> Path:
        """A folder in the test's own."""
        folder = self.folder / name
        folder.mkdir()
        return folder


class PolicyTests(CurlTestCase):
    """What rules say about addresses and ports, at every door alike."""

    def configuration(self) -> str:
        """A name that leads to this machine, a rule that forgets that, and one for one port alone."""
        return super().configuration().replace("special_addresses = yes", "special_addresses = no", 1)

    def test_special_addresses(self) -> None:
        """A name that leads to loopback is refused, unless the very rule says special_addresses = yes."""
        for (scheme, port), url in itertools.product(self.doors("open"), self.urls()):
            if scheme == "socks5" or url.startswith("https") and scheme.startswith("http"):
                continue
            done = self.curl(f"{scheme}://127.0.0.1:{port}", url)

            if scheme == "socks5h":
                self.assertEqual(done.exit, PROXY_ERROR, str(done))
                self.assertIn("(2)", done.errors)  # RFC 1928 §6: connection not allowed by ruleset
            else:
                self.assertEqual((done.exit, done.status), (0, 403), str(done))
        records = self.proxyd.all_records()
        self.assertEqual({record["error"] for record in records}, {"destination_ip_prohibited"})
        self.assertEqual({record["rule"] for record in records}, {"open"})
        self.assertEqual(self.origin.received, [])

    def test_special_addresses_by_rule(self) -> None:
        """The rule for users has special_addresses = yes: the same name works there."""
        for (scheme, port), url in itertools.product(self.doors("closed"), self.urls()):
            done = self.curl(f"{scheme}://127.0.0.1:{port}", url, user=f"{USER}:{PASSWORD}")

            self.assert_answered(done, 405)

    def test_ports(self) -> None:
        """A port that the rule does not name is denied at every door, before anybody is asked for the name."""
        user = f"{USER}:{PASSWORD}"
        other = free_ports("other")["other"]
        for scheme, port in self.doors("closed"):
            if scheme == "socks5":
                continue
            for url in (f"http://{CONTROL}:{other}/", f"https://{CONTROL}:{other}/"):
                done = self.curl(f"{scheme}://127.0.0.1:{port}", url, user=user)

                if scheme == "socks5h":
                    self.assertEqual(done.exit, PROXY_ERROR, str(done))
                    self.assertIn("(2)", done.errors)
                elif url.startswith("https"):
                    self.assertEqual((done.exit, done.told["http_connect"]), (RECEIVE_ERROR, 403), str(done))
                else:
                    self.assertEqual((done.exit, done.status), (0, 403), str(done))
        self.assertEqual(self.names.asked, [])

    def test_unknown_name(self) -> None:
        """A name that does not exist is a 502, or reply 4 in SOCKS, and is recorded as a matter of DNS."""
        url, user = f"http://nowhere.log.aliyuncs.com:{self.origin.port}/", f"{USER}:{PASSWORD}"

        forward = self.curl(f"http://127.0.0.1:{self.ports['closed-any']}", url, user=user)
        socks = self.curl(f"socks5h://127.0.0.1:{self.ports['closed-any']}", url, user=user)

        self.assertEqual((forward.exit, forward.status), (0, 502), str(forward))
        self.assertEqual(socks.exit, PROXY_ERROR, str(socks))
        self.assertIn("(4)", socks.errors)
        self.assertEqual([record["error"] for record in self.proxyd.records(2)], ["dns_error", "dns_error"])

    def test_nobody_listens(self) -> None:
        """A refused connection is a 502, or reply 5 in SOCKS."""
        self.origin.close()
        user = f"{USER}:{PASSWORD}"

        forward = self.curl(f"http://127.0.0.1:{self.ports['closed-any']}", self.urls()[0], user=user)
        connect = self.curl(f"http://127.0.0.1:{self.ports['closed-any']}", self.urls()[1], user=user)
        socks = self.curl(f"socks5h://127.0.0.1:{self.ports['closed-any']}", self.urls()[0], user=user)

        self.assertEqual((forward.exit, forward.status), (0, 502), str(forward))
        self.assertEqual((connect.exit, connect.told["http_connect"]), (RECEIVE_ERROR, 502), str(connect))
        self.assertIn("(5)", socks.errors, str(socks))
        self.assertEqual({record["error"] for record in self.proxyd.records(3)}, {"connection_refused"})


class IPv6Tests(ProxydTestCase):
    """The proxy on an IPv6 address."""

    def test_every_scheme(self) -> None:
        """A listener on ::1 serves HTTP, SOCKS5 and TLS, whose certificate has that address."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            raise SkipTest(f"no IPv6 on loopback: {error}") from None
        origin, certificate = self.start_origin(), self.make_certificate()
        ports = free_ports("any")
        proxyd = self.start_proxyd(
            f"[listener:any]\nendpoint = tcp6:{ports['any']}:interface=\\:\\:1\naccept = forward connect socks5\n"
            f"detect = yes\ncertificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem\n"
            f"[rule:origin]\naction = allow\nclients = ::1\ndestinations = 127.0.0.1\nports = {origin.port}\n"
            "special_addresses = yes",
            ports,
            host="::1",
        )
        for scheme in SCHEMES:
            if scheme == "https":
                continue  # curl 7.88 looks for the address in the certificate only if the origin's is IPv6 too
            command = ["curl", "-q", "-sS", "--proxy-cacert", certificate]
            command += ["--proxy", f"{scheme}://[::1]:{ports['any']}", f"http://127.0.0.1:{origin.port}/"]

            done = subprocess.run(command, capture_output=True, env=without_proxies(), timeout=PATIENCE)

            self.assertEqual(done.stdout, INVALID_METHOD, f"{scheme} {done.stderr!r}")
        with connected(ports["any"], host="::1") as client:
            client.secure(agent_tls(certificate), "::1")
            response = client.ask(b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % origin.port)
        self.assertEqual(response.body, INVALID_METHOD)
        self.assertEqual({record["client"] for record in proxyd.records(4)}, {"::1"})
