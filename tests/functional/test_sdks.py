"""Programs that people write against the log service: requests, aiohttp and the vendor's SDK, by each proxy."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import requests
from aiohttp_socks import ProxyConnector
from twisted.trial.unittest import SkipTest

from tests.functional.log_service import KEY, KEY_ID, REGION, LogService
from tests.functional.origin import INVALID_METHOD, Origin, digest, pattern
from tests.functional.running import CONTROL, PATIENCE, PROJECT, ProxydTestCase, free_ports, without_proxies

USER, PASSWORD = "us@er", "p:w"
SECRET = "us%40er:p%3Aw"
"""User and password as they stand in a URL."""

SCHEMES = ("http", "https", "socks5", "socks5h")

PUT_LOGS = """
import sys
from aliyun.log import LogClient, LogItem, PutLogsRequest

endpoint, version, key_id, key, region = sys.argv[1:]
client = LogClient(endpoint, key_id, key, source="192.0.2.1", auth_version=version, region=region)
for count, hash_key in ((1, None), (2000, None), (3, "0123456789abcdef0123456789abcdef")):
    items = [LogItem(1700000000 + number, [("content", "line %d \\u65e5\\u5fd7" % number)]) for number in range(count)]
    request = PutLogsRequest("proj", "ls", "a topic", "192.0.2.1", items, hashKey=hash_key, compress_type="lz4")
    response = client.put_logs(request)
    assert response.get_request_id() == "62591BC7C08B7BD4AA99FCD4", response.get_all_headers()
    print(count)
"""
"""A program of a user of the SDK: three log groups on one client, the last to a shard by its key."""


class SDKTestCase(ProxydTestCase):
    """One port for all schemes where everyone is served, and one where a user is needed."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.make_origin()
        self.service = self.origin.log_service = LogService()
        names = self.start_names(self.origin.address)
        self.make_certificate()
        self.authorities = self.folder / "authorities.pem"
        self.authorities.write_bytes(
            (self.folder / "proxyd-cert.pem").read_bytes() + self.origin.certificate.read_bytes()
        )
        self.add_user(USER, PASSWORD)
        self.ports = free_ports("open", "closed")
        sections = [f"resolver = 127.0.0.1:{names.port}", "[users]\nfile = users.htpasswd"]
        for name, port in self.ports.items():
            sections.append(
                f"[listener:{name}]\nendpoint = tcp:{port}:interface=127.0.0.1\naccept = forward connect socks5\n"
                "detect = yes\ncertificate = proxyd-cert.pem\nprivate_key = proxyd-key.pem"
            )
        for name, condition in (("closed", f"users = {USER}"), ("open", "preserve_host = yes")):
            sections.append(
                f"[rule:{name}]\naction = allow\nlisteners = {name}\n{condition}\n"
                f"destinations = .log.aliyuncs.com {self.origin.address}\n"
                f"ports = {self.origin.port} {self.origin.secure_port}\nspecial_addresses = yes"
            )
        self.proxyd = self.start_proxyd("\n".join(sections), self.ports)

    def make_origin(self) -> Origin:
        """Where requests go."""
        return self.start_origin()

    def proxies(self, *schemes: str) -> Iterator[str]:
        """Proxy URLs, each with a user and without."""
        for scheme in schemes:
            yield f"{scheme}://127.0.0.1:{self.ports['open']}"
            yield f"{scheme}://{SECRET}@127.0.0.1:{self.ports['closed']}"

    def urls(self, path: str, proxy: str) -> list[str]:
        """By HTTP and HTTPS; by address where the client would resolve the name itself, and cannot here."""
        host = self.origin.address if proxy.startswith("socks5:") else CONTROL
        return [f"http://{host}:{self.origin.port}{path}", f"https://{host}:{self.origin.secure_port}{path}"]


class LogSDKTestCase(SDKTestCase):
    """aliyun-log-python-sdk, which takes its proxy from the environment."""

    def put_logs(self, proxy: str, endpoint: str, version: str) -> None:
        """Put three log groups by a program of its own."""
        environment = without_proxies(http_proxy=proxy, https_proxy=proxy, REQUESTS_CA_BUNDLE=str(self.authorities))
        before = len(self.service.groups)
        program = [sys.executable, "-c", PUT_LOGS, endpoint, version, KEY_ID, KEY, REGION]

        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE)

        what = f"{proxy} {endpoint} {version}\n{done.stderr}"
        self.assertEqual((done.returncode, done.stdout.split()), (0, ["1", "2000", "3"]), what)
        groups = self.service.groups[before:]
        self.assertEqual([len(group.Logs) for group in groups], [1, 2000, 3], what)
        for group in groups:
            self.assertEqual((group.Topic, group.Source), ("a topic", "192.0.2.1"))
            for number, log in enumerate(group.Logs):
                [content] = log.Contents
                self.assertEqual((content.Key, content.Value.decode()), ("content", f"line {number} 日志"))


class LogSDKTests(LogSDKTestCase):
    """The SDK with names as endpoints."""

    def test_every_scheme(self) -> None:
        """Log groups put through each proxy scheme, with a user and without, arrive with their signatures intact."""
        endpoints = [f"http://cn-hangzhou.log.aliyuncs.com:{self.origin.port}"]
        endpoints.append(f"https://cn-hangzhou.log.aliyuncs.com:{self.origin.secure_port}")
        for proxy, endpoint in itertools.product(self.proxies("http", "https", "socks5h"), endpoints):
            # Version 4 covers Host, which the SDK sends without the port that RFC 9112 §3.2.2 wants a proxy to add.
            forwarded = proxy.startswith("http") and endpoint.startswith("http:")
            self.put_logs(proxy, endpoint, "v1" if forwarded else "v4")

        requests_ = self.origin.received
        self.assertEqual(len(requests_), 36)
        self.assertEqual({request.secure for request in requests_}, {True, False})
        routed = [request.target for request in requests_ if b"route" in request.target]
        self.assertEqual(set(routed), {b"/logstores/ls/shards/route?key=0123456789abcdef0123456789abcdef"})
        for request in requests_:
            self.assertEqual(request.values(b"proxy-authorization"), [])

    def test_signatures_are_checked(self) -> None:
        """This origin takes nothing that was signed with another key, so that the other tests tell something."""
        environment = without_proxies(http_proxy=f"http://127.0.0.1:{self.ports['open']}")
        endpoint = f"http://cn-hangzhou.log.aliyuncs.com:{self.origin.port}"
        for version in ("v1", "v4"):
            program = [sys.executable, "-c", PUT_LOGS, endpoint, version, KEY_ID, "another key", REGION]

            done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE)

            self.assertIn(f"the {version.upper()} signature", done.stderr)


class StandardPortTests(LogSDKTestCase):
    """The ports that the log service has; the SDK knows no others for an address as endpoint."""

    def make_origin(self) -> Origin:
        """An origin on the ports that the log service has."""
        try:
            return self.start_origin(address="127.80.80.82", ports=(80, 443))
        except OSError as error:
            raise SkipTest(f"127.80.80.82 ports 80 and 443 cannot be used here: {error}") from None

    def test_names(self) -> None:
        """With port 80 in the target and no port in Host, as the SDK has it, signatures of both versions stay valid."""
        for proxy, version in itertools.product(self.proxies("http", "https"), ("v1", "v4")):
            self.put_logs(proxy, "cn-hangzhou.log.aliyuncs.com", version)

        self.assertEqual({request.value(b"host") for request in self.origin.received}, {PROJECT.encode()})

    def test_local_names(self) -> None:
        """socks5:// leaves it to the client to know addresses: proxyd sees nothing else, and passes everything on."""
        self.put_logs(f"socks5://{SECRET}@127.0.0.1:{self.ports['closed']}", self.origin.address, "v4")

        hosts = {request.value(b"host").decode() for request in self.origin.received}
        self.assertEqual(hosts, {f"proj.{self.origin.address}"})
        self.assertEqual(self.proxyd.records(1)[0]["destination"], f"{self.origin.address}:80")

    def test_preserved_host(self) -> None:
        """The project stands in Host alone: it reaches the origin, signed, where the rule says preserve_host = yes."""
        self.put_logs(f"http://127.0.0.1:{self.ports['open']}", self.origin.address, "v4")
        self.put_logs(f"http://{SECRET}@127.0.0.1:{self.ports['closed']}", self.origin.address, "v1")

        hosts = [request.value(b"host").decode() for request in self.origin.received]
        self.assertEqual(hosts, [f"proj.{self.origin.address}"] * 3 + [self.origin.address] * 3)


class RequestsTests(SDKTestCase):
    """requests, with PySocks."""

    def session(self, proxy: str) -> requests.Session:
        """A session that knows nothing but this proxy, and trusts our two certificates."""
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"http": proxy, "https": proxy}
        session.verify = str(self.authorities)
        self.addCleanup(session.close)
        if proxy.startswith("https"):  # for http:// URLs requests does not tell urllib3 whom to trust as a proxy
            context = ssl.create_default_context(cafile=str(self.authorities))
            for adapter in session.adapters.values():
                adapter.proxy_manager_for(proxy, proxy_ssl_context=context, ssl_context=context)
        return session

    def test_every_scheme(self) -> None:
        """GET, and a POST of 3 MB, by one session for each scheme."""
        body = pattern(3_000_000)
        for proxy in self.proxies(*SCHEMES):
            session = self.session(proxy)
            for url in self.urls("/", proxy):
                self.assertEqual(session.get(url, timeout=PATIENCE).content, INVALID_METHOD, f"{proxy} {url}")
            for url in self.urls("/upload", proxy):
                response = session.post(url, data=body, timeout=PATIENCE)
                self.assertEqual(response.json(), {"length": len(body), "digest": digest(body)}, f"{proxy} {url}")
        self.assertEqual(len(self.origin.received), 32)

    def test_stream(self) -> None:
        """A body from a generator goes chunked, and a chunked response comes whole."""
        body = pattern(1_000_000)
        for proxy in self.proxies("http", "socks5h"):
            session = self.session(proxy)
            pieces = (body[start : start + 7000] for start in range(0, len(body), 7000))
            [url, _] = self.urls("/upload", proxy)
            self.assertEqual(session.post(url, data=pieces, timeout=PATIENCE).json()["digest"], digest(body))
            self.assertTrue(self.origin.received[-1].chunked)
            [url, _] = self.urls("/chunked/1000000", proxy)
            self.assertEqual(digest(session.get(url, timeout=PATIENCE).content), digest(body))

    def test_refused(self) -> None:
        """Without a user requests sees the 407 itself, or the error of a tunnel that is not opened."""
        proxy = f"http://127.0.0.1:{self.ports['closed']}"
        session = self.session(proxy)
        plain, secure = self.urls("/", proxy)

        self.assertEqual(session.get(plain, timeout=PATIENCE).status_code, 407)
        with self.assertRaises(requests.exceptions.ProxyError):
            session.get(secure, timeout=PATIENCE)
        with self.assertRaises(requests.exceptions.ConnectionError):
            self.session(f"socks5h://127.0.0.1:{self.ports['closed']}").get(plain, timeout=PATIENCE)
        self.assertEqual(self.origin.received, [])


class AiohttpTests(SDKTestCase):
    """aiohttp: its own HTTP proxies, and aiohttp-socks."""

    def context(self) -> ssl.SSLContext:
        """Whom to trust."""
        return ssl.create_default_context(cafile=str(self.authorities))

    async def exchange(self, session: aiohttp.ClientSession, urls: list[str], **options: object) -> None:
        """Twenty requests at the same time, with bodies both ways."""
        body = pattern(200_000)

        async def one(url: str) -> None:
            async with session.post(url, data=body, **options) as response:
                self.assertEqual(json.loads(await response.read()), {"length": len(body), "digest": digest(body)})

        await asyncio.gather(*(one(url) for url in urls * 10))

    def run_async(self, exchange: object) -> None:
        """Run a coroutine in a loop of its own, for a while at most."""

        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE):
                await exchange

        asyncio.run(bounded())

    def test_own_proxies(self) -> None:
        """aiohttp's own way to HTTP and HTTPS proxies."""

        async def exchange(proxy: str) -> None:
            connector = aiohttp.TCPConnector(ssl=self.context())
            async with aiohttp.ClientSession(connector=connector) as session:
                await self.exchange(session, self.urls("/upload", proxy), proxy=proxy)

        for proxy in self.proxies("http", "https"):
            self.run_async(exchange(proxy))
        self.assertEqual(len(self.origin.received), 80)

    def test_aiohttp_socks(self) -> None:
        """aiohttp-socks, which tunnels everything: by SOCKS5 with names and addresses, and by CONNECT."""

        async def exchange(proxy: str) -> None:
            remote = not proxy.startswith("socks5:")
            connector = ProxyConnector.from_url(proxy.replace("socks5h", "socks5"), rdns=remote, ssl=self.context())
            async with aiohttp.ClientSession(connector=connector) as session:
                await self.exchange(session, self.urls("/upload", proxy))

        for proxy in self.proxies("socks5", "socks5h", "http"):
            self.run_async(exchange(proxy))
        self.assertEqual(len(self.origin.received), 120)
