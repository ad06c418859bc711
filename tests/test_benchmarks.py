"""The arithmetic of the benchmarks, and that they measure proxyd with everything switched on."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from benchmarks import options, run
from benchmarks.doors import ALL, Door
from benchmarks.field import allot
from benchmarks.load import Amount, LoadError, Outcome, Way
from benchmarks.measure import Processors, Stat, in_pipes, memory, parse_proportional, processor_time, tree
from benchmarks.peers import PEERS
from benchmarks.proxies import USER, Setup, make_certificate
from benchmarks.report import COST, ITSELF, Report, Row, aligned, cell, number, processor, tables
from benchmarks.rounds import done, spent
from benchmarks.work import Unit, scaled
from proxyd.accounts.htpasswd import set_password
from proxyd.config import Config
from proxyd.policy.rules import Policy, UserNeeded
from proxyd.settings import Settings

LINE = (
    '{"seconds": 0.5, "connections": 100, "exchanges": 400, "errors": 0, "error": "", "reopened": 0, "resumed": 0,'
    ' "p50": 120.5, "p99": 900.0}'
)
OUTCOME = Outcome(0.5, 100, 400, 0, "", 0, 0, 120.5, 900.0)


def row(**figures: list[float | None]) -> Row:
    """A row of costs with figures that proxyd and others have."""
    return Row(COST, "new", "new connection", "connect", "µs/connection", "proxyd", figures=dict(figures))


class MeasureTests(SynchronousTestCase):
    """What ``/proc`` says."""

    def test_stat(self) -> None:
        """Processor time is that of the process and of the children it has waited for, whatever its name looks like."""
        ticks = os.sysconf("SC_CLK_TCK")
        times = f"{3 * ticks} {ticks} {2 * ticks} {ticks}"
        line = f"42 (a (b) c) S 7 42 42 0 -1 4194304 100 0 0 0 {times} 20 0 1 0 12345 1000 100"
        self.assertEqual(Stat.parse(line), Stat(pid=42, parent=7, seconds=7.0))

    def test_proportional(self) -> None:
        """Memory is the proportional set size, in bytes."""
        text = "00400000-7fff0000 ---p 00000000 00:00 0    [rollup]\nRss:   2000 kB\nPss:   1500 kB\nPss_Anon: 9 kB\n"
        self.assertEqual(parse_proportional(text), 1500 * 1024)

    def test_ourselves(self) -> None:
        """We are the first of our own tree, take memory, and have used some time."""
        self.assertEqual(tree(os.getpid())[0].pid, os.getpid())
        self.assertGreater(memory(os.getpid()), 0)
        self.assertGreaterEqual(processor_time(os.getpid()), 0)

    def test_pipes(self) -> None:
        """Bytes in a pipe are counted once, at the end that reads them."""
        before = in_pipes(os.getpid())
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        os.write(write, bytes(1234))
        self.assertEqual(in_pipes(os.getpid()) - before, 1234)

    def test_processors(self) -> None:
        """The proxy has the first processor for itself, unless there is only one."""
        self.assertEqual(Processors.of(frozenset({3, 1, 2})), Processors(frozenset({1}), frozenset({2, 3})))
        self.assertEqual(Processors.of(frozenset({5})), Processors(frozenset({5}), frozenset({5})))
        self.assertEqual(Processors(frozenset({1}), frozenset({2, 3})).all, {1, 2, 3})


class WorkTests(SynchronousTestCase):
    """Amounts, and what is divided by them."""

    def test_units(self) -> None:
        """Processor time is divided by connections, by requests, or by the bytes of their bodies both ways."""
        amount = Amount(100, 10, exchanges=4, up=2_000_000, down=500_000)
        self.assertAlmostEqual(Unit.CONNECTION.cost(0.03, amount, OUTCOME), 300.0)
        self.assertAlmostEqual(Unit.REQUEST.cost(0.03, amount, OUTCOME), 75.0)
        self.assertAlmostEqual(Unit.GIGABYTE.cost(0.5, amount, OUTCOME), 500.0)

    def test_scaled(self) -> None:
        """There are fewer connections where there are many, else fewer exchanges, else fewer bytes."""
        self.assertEqual(scaled(Amount(4000, 32), 0.005), Amount(20, 20))
        self.assertEqual(scaled(Amount(16, 16, exchanges=100, up=9), 0.1), Amount(16, 16, exchanges=10, up=9))
        self.assertEqual(scaled(Amount(4, 4, up=1000, down=60), 0.01), Amount(4, 4, up=10, down=1))

    def test_outcome(self) -> None:
        """The line of the load is read, and nothing else is taken for it."""
        self.assertEqual(Outcome.parse(LINE), OUTCOME)
        for line in ("", "{}", "connect: Cannot assign requested address\n"):
            self.assertRaises(LoadError, Outcome.parse, line)

    def test_way(self) -> None:
        """TLS has a version where the door has TLS, and none elsewhere."""
        self.assertIn("tls=12", Way(80, Door("connect", tls=True), 443, tls="1.2").options())
        self.assertIn("tls=0", Way(80, Door("connect"), 443, tls="1.2").options())

    def test_done(self) -> None:
        """A figure counts while next to nothing has failed; what went differently than asked for is noted."""
        found = row()
        amount = Amount(100, 10)
        self.assertTrue(done(found, "squid", amount, OUTCOME))
        self.assertEqual(found.notes, [])
        failed = Outcome(0.5, 90, 360, 10, "response: closed", 7, 0, 1.0, 1.0)
        self.assertFalse(done(found, "squid", amount, failed))
        self.assertFalse(done(found, "squid", amount, failed))
        self.assertEqual(
            found.notes,
            [
                "squid: 10 of 100 connections failed: response: closed",
                "squid: closes connections between requests",
            ],
        )

    def test_resumed(self) -> None:
        """It is noted when a proxy resumes fewer sessions than it could: all but those that began together."""
        found, amount = row(), Amount(100, 10, resume=True)
        done(found, "squid", amount, Outcome(0.5, 100, 100, 0, "", 0, 90, 1.0, 1.0))
        self.assertEqual(found.notes, [])
        done(found, "squid", amount, OUTCOME)
        self.assertEqual(found.notes, ["squid: resumed 0 of 100 TLS sessions"])

    def test_spent(self) -> None:
        """Of several workers the time that each has used since then counts, of one that is new included."""
        self.assertEqual(spent({1: 5.0, 2: 1.0}, {1: 5.5, 2: 3.0, 3: 0.25}), [0.5, 2.0, 0.25])


class ReportTests(SynchronousTestCase):
    """Medians, ratios, tables."""

    def test_median(self) -> None:
        """The median leaves out rounds in which the work was not done."""
        self.assertEqual(row(proxyd=[3.0, None, 1.0, 100.0]).median("proxyd"), 3.0)
        self.assertIsNone(row(proxyd=[None]).median("proxyd"))
        self.assertIsNone(row().median("squid"))

    def test_ratio(self) -> None:
        """A ratio is the median of each round's own ratio, not the ratio of the medians."""
        found = row(proxyd=[10.0, 40.0, 30.0], squid=[20.0, 100.0, 30.0])
        self.assertEqual(found.ratio("squid"), 0.5)
        self.assertIsNone(found.ratio("proxyd"))

    def test_ratio_of_nothing(self) -> None:
        """Rounds that one of the two has not done, or in which the other one's cost was too small, give no ratio."""
        found = row(proxyd=[None, 4.0, 8.0], squid=[1.0, 2.0, 0.0], nginx=[None, None, None])
        self.assertEqual(found.ratio("squid"), 2.0)
        self.assertIsNone(found.ratio("nginx"))

    def test_number(self) -> None:
        """Figures have three digits, and a dash stands for none."""
        self.assertEqual([number(value) for value in (None, 0.5, 9.994, 9.996, 99.94, 99.96, 1450.4)], [
            "-", "0.50", "9.99", "10.0", "99.9", "100", "1450",
        ])  # fmt: skip
        self.assertEqual(number(-12.34), "-12.3")

    def test_cell(self) -> None:
        """Others than the subject have a ratio; one that was not measured has nothing, one that failed a dash."""
        found = row(proxyd=[300.0], squid=[600.0], nginx=[None])
        self.assertEqual(
            [cell(found, name) for name in ("proxyd", "squid", "nginx", "dante")], ["300", "600 (0.50)", "-", ""]
        )

    def test_aligned(self) -> None:
        """Names stand on the left and figures on the right."""
        self.assertEqual(
            aligned([["door", "squid"], ["connect", "1"]], left=1),
            "door     squid\n-------  -----\nconnect      1",
        )

    def test_tables(self) -> None:
        """Rows of one heading make one table, whose columns are all who were measured; notes come last, once."""
        first, second = row(proxyd=[1.0], squid=[2.0]), row(proxyd=[3.0], nginx=[4.0])
        itself = Row(ITSELF, "rules", "rules", "connect", "µs/connection", "many", {"few": [5.0], "many": [10.0]})
        first.note("squid", "is slow")
        first.note("squid", "is slow")
        printed = tables([first, itself, second])
        self.assertIn("unit           proxyd        squid        nginx\n", printed)
        self.assertIn("µs/connection  5.00 (2.00)  10.0", printed)
        self.assertTrue(printed.endswith("\n\nNotes\n\nconnect, new connection: squid: is slow"), printed)

    def test_processor(self) -> None:
        """The machine is named by the model of its processor, or else by its architecture."""
        self.assertEqual(processor("processor\t: 0\nmodel name\t: A Processor\n"), "A Processor")
        self.assertEqual(processor("CPU implementer\t: 0x41\n"), os.uname().machine)

    def test_report(self) -> None:
        """The text says what was measured on what, and what is missing; the JSON has all figures besides."""
        machine = {"processor": "A Processor", "processors": 2, "kernel": "6.1", "python": "3.11.2"}
        report = Report(machine, {"proxyd": "1.0", "squid": ""}, ["dante (apt-get install dante-server)"], 3)
        report.rows.append(row(proxyd=[1.0, 2.0, 3.0], squid=[2.0, 2.0, None]))
        text = report.as_text()
        self.assertTrue(text.startswith("Measured: proxyd 1.0, squid; medians of 3 rounds.\n"), text)
        self.assertIn("Missing: dante (apt-get install dante-server)\nMachine: A Processor, 2 processors", text)
        [read] = json.loads(report.as_json())["rows"]
        self.assertEqual(read["medians"], {"proxyd": 2.0, "squid": 2.0})
        self.assertEqual(read["ratios"], {"squid": 0.75})
        self.assertEqual(read["figures"]["squid"], [2.0, 2.0, None])

    def test_interrupted(self) -> None:
        """What has been measured is kept when the rest cannot be, and the report says so."""

        def rows() -> Iterator[Row]:
            yield row(proxyd=[1.0])
            raise LoadError("no more ports")

        report = Report({}, {}, [], 1)
        self.assertFalse(run.fill(report, rows()))
        self.assertEqual(len(report.rows), 1)
        self.assertEqual(report.missing, ["what would have come next, because of LoadError no more ports"])
        self.assertTrue(run.fill(report, iter([row(proxyd=[1.0])])))


class SetupTests(SynchronousTestCase):
    """How proxyd and the others are set up."""

    def configure(self, setup: Setup) -> Config:
        """The configuration of a setup, as proxyd reads it."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        make_certificate(folder)
        set_password(folder / "users.htpasswd", USER, b"x")
        path = folder / "proxyd.ini"
        path.write_text(setup.configuration({door.listener: port for door, port in allot(ALL).items()}, 12345))
        return Config.from_path(path)

    def test_nothing_is_switched_off(self) -> None:
        """There is an access log, every door asks for a user, and buffers are as by default."""
        config = self.configure(Setup())
        self.assertTrue(config.settings.access_log_json)
        self.assertEqual(config.settings.buffer_size, Settings().buffer_size)
        self.assertIsNotNone(config.users)
        self.assertEqual(len(config.rules), 10)
        policy = Policy(config.rules, config.groups)
        for listener in config.listeners:
            for door in listener.doors:
                needed = policy.user_needed(listener.name, door, ip_address("127.0.0.1"))
                self.assertIs(needed, UserNeeded.ALWAYS)

    def test_variations(self) -> None:
        """As many rules and workers as one wants, of which one rule leads to the origins."""
        config = self.configure(Setup(rules=500, workers=2, also=(23456,)))
        self.assertEqual((len(config.rules), config.settings.workers), (500, 2))
        self.assertEqual(config.rules[-1].ports, (range(12345, 12346), range(23456, 23457)))
        self.assertEqual([rule.name for rule in config.rules if rule.special_addresses], ["origin"])

    def test_ports(self) -> None:
        """Forward requests and CONNECT share a port, TLS and SOCKS5 have their own."""
        ports = allot(ALL)
        self.assertEqual(ports[Door("forward")], ports[Door("connect")])
        self.assertEqual(len(set(ports.values())), 4)
        self.assertEqual([str(door) for door in ALL if door.tls], ["forward+tls", "connect+tls", "socks5+tls"])


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_choices(self) -> None:
        """Doors, work and peers are chosen by name; no peer at all by a word."""
        self.assertEqual(options.doors("connect,socks5+tls"), (Door("connect"), Door("socks5", tls=True)))
        self.assertEqual(options.works("new,idle"), ("new", "idle"))
        self.assertEqual([peer.name for peer in options.peers("nginx,squid")], ["nginx", "squid"])
        self.assertEqual(options.peers("none"), ())

    def test_unknown(self) -> None:
        """What is none of them is refused, with those that there are."""
        for choose in (options.doors, options.works, options.peers):
            error = self.assertRaises(argparse.ArgumentTypeError, choose, "everything")
            self.assertIn('"everything" is none of ', str(error))

    def test_default(self) -> None:
        """Without options everything is measured at every door, beside every peer, five times."""
        chosen = run.parser().parse_args([])
        self.assertEqual((chosen.doors, chosen.only, chosen.rounds), (ALL, PEERS, 5))
