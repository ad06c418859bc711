"""The access log with a real thread, real processes, and the programs that read Squid's logs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from proxyd.ledger.access_log import AccessLog
from proxyd.ledger.formats import encode_json, encode_squid
from proxyd.ledger.record import AccessRecord

APPEND = """
import sys
from proxyd.ledger.log_file import LogFile
file = LogFile(sys.argv[1])
file.open()
lines = (sys.argv[2] * 200 + "\\n").encode("ascii") * 100
print("ready", flush=True)
sys.stdin.readline()
for batch in range(50):
    assert file.append(lines, 0.0).lost == 0
"""
"""One of several writers: 5,000 lines of 200 equal letters, in batches of 20,100 bytes."""


def a_record(number: int) -> AccessRecord:
    """Records as they come in practice: tunnels, forwarded requests, SOCKS5, denials and failures."""
    record = AccessRecord(
        time=1700000000.0 + number,
        id=str(number),
        listener="any",
        protocol=("forward", "connect", "socks5")[number % 3],
        client=f"192.0.2.{number % 10}",
        client_port=40000,
        user="zoë" if number % 5 else None,
        method="POST" if number % 3 == 0 else "CONNECT",
        destination="logs.example.com:443",
        address="198.51.100.7:443",
        decision="allow",
        status=200,
        bytes_from_client=1000,
        bytes_to_client=512,
        duration=0.25,
    )
    if number % 7 == 0:
        record.decision, record.status, record.address, record.error = "deny", 403, None, "http_request_denied"
    elif number % 11 == 0:
        record.status, record.error = 504, "connection_timeout"
    return record


class AccessLogTests(TestCase):
    """The log as the service runs it."""

    async def write(self, directory: Path) -> tuple[AccessLog, list[AccessRecord]]:
        records = [a_record(number) for number in range(1000)]
        outputs = [(str(directory / "access.json"), encode_json), (str(directory / "access.squid"), encode_squid)]
        log = AccessLog(reactor, outputs, flush=0.01, buffer=8388608)
        log.start()
        for record in records[:500]:
            log.record(record)
        await deferLater(reactor, 0.05, lambda: None)
        (directory / "access.json").rename(directory / "rotated.json")
        log.reopen()
        for record in records[500:]:
            log.record(record)
        await log.stop()
        return log, records

    async def test_every_record_once(self) -> None:
        """Across a rotation and a stop each record is written once to each file, in order."""
        directory = Path(self.mktemp())
        directory.mkdir()

        log, records = await self.write(directory)

        lines = [(directory / name).read_bytes() for name in ("rotated.json", "access.json")]
        ids = [json.loads(line)["id"] for line in b"".join(lines).splitlines()]
        self.assertEqual(ids, [record.id for record in records])
        self.assertEqual(len((directory / "access.squid").read_bytes().splitlines()), 1000)
        self.assertTrue(all(lines))
        self.assertEqual((log.written, log.dropped), (2000, 0))

    def test_several_processes(self) -> None:
        """Lines that several processes write to one file at the same time stay whole."""
        path = Path(self.mktemp()).absolute()
        command = [sys.executable, "-c", APPEND, str(path)]
        root = Path(__file__).parent.parent.parent
        writers = []
        for letter in "abc":
            writer = subprocess.Popen(
                [*command, letter], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.addCleanup(writer.communicate)
            writers.append(writer)
        for writer in writers:
            assert writer.stdout is not None
            self.assertEqual(writer.stdout.readline(), "ready\n")
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        self.assertEqual([writer.wait(60) for writer in writers], [0, 0, 0])

        lines = Counter(path.read_bytes().splitlines())

        self.assertEqual(lines, {letter * 200: 5000 for letter in (b"a", b"b", b"c")})


class SquidAnalyserTests(TestCase):
    """Programs that read Squid's native format read ours."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.path.write_bytes(b"".join(encode_squid(a_record(number)) for number in range(500)))

    def run_program(self, *command: str) -> str:
        """What a program prints, if it is installed."""
        if shutil.which(command[0]) is None:
            raise SkipTest(f"{command[0]} is not installed")
        log = self.path.read_text("ascii")
        return subprocess.run(command, input=log, capture_output=True, text=True, check=True, timeout=60).stdout

    def test_calamaris(self) -> None:
        """Calamaris takes every line, and knows methods and results."""
        report = self.run_program("calamaris", "-a")

        counts = {tuple(line.split()[:2]) for line in report.splitlines()}
        self.assertRegex(report, r"lines parsed: +lines +500 ")
        self.assertRegex(report, r"invalid lines: +lines +0 ")
        self.assertLessEqual({("CONNECT", "333"), ("POST", "167")}, counts)
        self.assertLessEqual({("TCP_TUNNEL", "285"), ("TCP_MISS", "143"), ("TCP_DENIED", "72")}, counts)

    def test_goaccess(self) -> None:
        """GoAccess takes every line, given the format and not its own name for it."""
        report = self.path.with_suffix(".json")
        self.run_program(
            "goaccess",
            str(self.path),
            "--no-global-config",
            "--no-progress",
            "--log-format=%x.%^ %~%L %h %^/%s %b %m %U %e %^",
            "--datetime-format=%s",
            f"--output={report}",
        )

        general = json.loads(report.read_text())["general"]

        self.assertEqual((general["valid_requests"], general["failed_requests"]), (500, 0))
