from __future__ import annotations

import os
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.config import ClientCertificate, Config, ConfigError, Listener, Problem, Rule, Settings, TLSFiles, Users
from proxyd.config import packaged as packaged_text
from proxyd.request import Door

LISTENER = "[listener:web]\nendpoint = tcp:8080\naccept = forward connect\n"
RULE = "[rule:all]\naction = allow\ndestinations = *\n"
SMALLEST = LISTENER + RULE


class ConfigTests(SynchronousTestCase):
    def refused(self, text, *said):
        error = self.assertRaises(ConfigError, Config.from_string, text, "p.ini")
        self.assertEqual(str(error).split("\n"), list(said))

    def test_smallest(self):
        """A listener and a rule that allows are enough; all else has defaults."""
        self.assertEqual(
            Config.from_string(SMALLEST),
            Config(
                settings=Settings(),
                listeners=(
                    Listener("web", "tcp:8080", frozenset({Door.FORWARD, Door.CONNECT}), False, None, False, False),
                ),
                users=None,
                groups={},
                rules=(Rule("all", True, ("*",)),),
                path=None,
            ),
        )

    def test_every_section(self):
        """Sections come in any order; listeners and rules keep theirs."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "users").touch()
        text = "[rule:z]\naction = deny\ndestinations = a\ngroups = ops\n" + RULE
        text += "[group:ops]\nmembers = alice\n[users]\nfile = users\n[proxyd]\nworkers = 2\n"
        text += LISTENER.replace("web", "b") + LISTENER.replace("web", "a").replace("8080", "8081")
        (directory / "p.ini").write_text("\ufeff" + text, encoding="utf-8")
        config = Config.from_path(directory / "p.ini")
        self.assertEqual(config.settings, Settings(workers=2))
        self.assertEqual([listener.name for listener in config.listeners], ["b", "a"])
        self.assertEqual(config.users, Users((directory / "users").absolute()))
        self.assertEqual(config.groups, {"ops": frozenset({"alice"})})
        self.assertEqual([rule.name for rule in config.rules], ["z", "all"])
        self.assertEqual(config.path, directory / "p.ini")

    def test_from_path_as_text(self):
        """A path may be given as text, and does not change which directory relative paths are relative to."""
        directory = Path(self.mktemp())
        directory.mkdir()
        (directory / "users").touch()
        (directory / "p.ini").write_text(SMALLEST + "[users]\nfile = users\n")
        config = Config.from_path(str(directory / "p.ini"))
        self.assertEqual((config.path, config.users.file.is_absolute()), (directory / "p.ini", True))

    def test_string_is_relative_to_the_working_directory(self):
        """Relative paths in a text are relative to where the program runs."""
        place = Path(self.mktemp())
        place.touch()
        users = Config.from_string(f"{SMALLEST}[users]\nfile = {place}\n").users
        self.assertEqual(users.file, Path.cwd() / place)

    def test_unreadable(self):
        """A file that is not there, or is not text, is a problem like others."""
        place = Path(self.mktemp())
        error = self.assertRaises(ConfigError, Config.from_path, place)
        self.assertEqual(
            error.problems, [Problem(str(place), 0, None, None, "it cannot be read: No such file or directory")]
        )
        place.write_bytes(b"[proxyd]\nvia = a\nvia = \xff\n")
        error = self.assertRaises(ConfigError, Config.from_path, place)
        self.assertEqual(str(error), f"{place}:3: it is not text in UTF-8; save it as UTF-8")

    def test_empty(self):
        """Without a listener, and without a rule that allows, there is nothing to run."""
        self.refused(
            "\n\n",
            "p.ini:3: there is no listener; add [listener:NAME] with endpoint and accept",
            "p.ini:3: nothing is allowed; add [rule:NAME] with action = allow and destinations",
        )
        self.refused(
            LISTENER + RULE.replace("allow", "deny"),
            "p.ini:7: nothing is allowed; add [rule:NAME] with action = allow and destinations",
        )

    def test_all_problems_at_once(self):
        """What is wrong with syntax, sections, options and values, and between sections, is told in one go."""
        self.refused(
            "[proxyd]\nwrokers = 2\nidle_timeout = soon\n[listner:x]\n" + LISTENER + "endpoint = tcp:1\n"
            "[rule:all]\naction = allow\ndestinations = *.com\nlisteners = web wbe\ngroups = ops\nnonsense\n",
            'p.ini:2: [proxyd] wrokers: there is no such option; did you mean "workers"?',
            'p.ini:3: [proxyd] idle_timeout: "soon" is not a duration; write 250ms, 10s, 5m, 1h or 2d',
            'p.ini:4: [listner:x] there is no such section; did you mean "listener"?',
            "p.ini:8: [listener:web] endpoint: it is there already in this section; remove one of both",
            'p.ini:11: [rule:all] destinations: "*.com" is not how a domain is written; '
            "write .com for it and all its subdomains",
            'p.ini:12: [rule:all] listeners: there is no listener "wbe"; did you mean "web"?',
            "p.ini:13: [rule:all] groups: nothing tells who a client is; "
            "add [users], or client_certificate to a listener",
            "p.ini:14: it is no section, option or comment; write [section] or option = value",
        )

    def test_headers(self):
        """A section has a kind that there is, and a name exactly where the kind has one."""
        known = "known: group, listener, proxyd, rule, users"
        name = "it needs a name of letters, digits, dots and dashes; write"
        self.refused(
            SMALLEST + "[DEFAULT]\n[Proxyd]\n[proxyd:a]\n[users:]\n[group]\n[rule:]\n[rule:two words]\n[listener:ü]\n",
            f"p.ini:7: [DEFAULT] there is no such section; {known}",
            'p.ini:8: [Proxyd] there is no such section; did you mean "proxyd"?',
            "p.ini:9: [proxyd:a] it takes no name; write [proxyd]",
            "p.ini:10: [users:] it takes no name; write [users]",
            f"p.ini:11: [group] {name} [group:NAME]",
            f"p.ini:12: [rule:] {name} [rule:NAME]",
            f"p.ini:13: [rule:two words] {name} [rule:NAME]",
            f"p.ini:14: [listener:ü] {name} [listener:NAME]",
        )

    def test_rules_may_name_listeners_with_problems(self):
        """A rule is not held wrong for naming a listener or group that has problems of its own."""
        self.refused(
            "[listener:web]\nendpoint = tcp:x\naccept = connect\n[group:ops]\n[users]\nfile = none\n"
            + RULE
            + "listeners = web\ngroups = ops\n",
            "p.ini:2: [listener:web] endpoint: tcp: has no port between 0 and 65535; write tcp:8080",
            "p.ini:4: [group:ops] members: it is missing; add members = alice bob",
            f"p.ini:6: [users] file: there is no file {Path.cwd() / 'none'}; create it, or correct the path",
        )

    def test_client_certificates_prove_users(self):
        """Rules may name users where client certificates tell who a client is."""
        directory = Path(self.mktemp())
        directory.mkdir()
        for name in ("key.pem", "ca.pem"):
            (directory / name).touch()
        path = directory / "p.ini"
        path.write_text(
            "[listener:web]\nendpoint = ssl:1:key.pem\naccept = connect\n"
            + "client_certificate = required\nclient_ca = ca.pem\n"
            + RULE
            + "users = agent-1\n"
        )
        config = Config.from_path(path)
        here = directory.absolute()
        tls = TLSFiles(here / "key.pem", here / "key.pem", None, here / "ca.pem", ClientCertificate.REQUIRED)
        self.assertEqual(config.listeners[0].tls, tls)
        self.assertEqual(config.rules[0].users, frozenset({"agent-1"}))

    def test_one_listener_for_each_place(self):
        """Two listeners cannot be in one place, except that the kernel chooses a port for each."""
        two = "[listener:b]\nendpoint = {0}\naccept = connect\n[listener:a]\nendpoint = {0}\naccept = connect\n" + RULE
        self.refused(
            two.format("tcp:80"),
            "p.ini:5: [listener:a] endpoint: [listener:b] listens there; choose another port or path",
        )
        for endpoint in ("tcp:0", "tcp6:0:interface=\\:\\:1"):
            self.assertEqual(len(Config.from_string(two.format(endpoint)).listeners), 2)

    @given(st.text(st.sampled_from("[]:= \n#listeneruproxydaction*0.,ü"), max_size=200))
    def test_any_text(self, text):
        """Any text is a configuration or has problems, each in a line of the text."""
        error = self.assertRaises(ConfigError, Config.from_string, text)
        lines = text.count("\n") + 1
        self.assertTrue(all(1 <= problem.line <= lines for problem in error.problems))

    def test_many_rules(self):
        """Ten thousand destinations and a thousand rules are read."""
        names = " \n  ".join(f"n{number}.example" for number in range(10_000))
        rules = "".join(RULE.replace(":all", f":r{number}") for number in range(1_000))
        config = Config.from_string(LISTENER + RULE.replace("*", names) + rules)
        self.assertEqual((len(config.rules), len(config.rules[0].destinations)), (1_001, 10_000))


class PackagedTests(SynchronousTestCase):
    """The configurations that come with the package."""

    def test_embedded(self):
        """Without a configuration every door is open to this machine, and to nobody else."""
        config = Config.embedded()
        doors = {listener.endpoint: (set(listener.doors), listener.detect) for listener in config.listeners}
        self.assertEqual(
            doors,
            {
                "tcp:8080:interface=127.0.0.1": ({Door.FORWARD, Door.CONNECT}, False),
                "tcp:8443:interface=127.0.0.1": ({Door.CONNECT}, False),
                "tcp:1080:interface=127.0.0.1": ({Door.SOCKS5}, False),
                "tcp:9000:interface=127.0.0.1": (set(Door), True),
            },
        )
        loopback = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
        self.assertEqual(
            config.rules,
            (
                Rule(
                    "this-machine",
                    True,
                    ("localhost", "127.0.0.1", "::1"),
                    (range(8000, 8001),),
                    clients=loopback,
                    special_addresses=True,
                ),
                Rule("internet", True, ("*",), (range(80, 81), range(443, 444)), clients=loopback),
            ),
        )
        self.assertEqual(config.settings, Settings(access_log_json="-"))
        self.assertEqual((config.users, config.path), (None, None))

    def test_from_nginx(self):
        """The vendor's nginx example says the same here, directive by directive."""
        config = Config.from_string(packaged_text("from-nginx"))
        self.assertEqual(
            config.settings,
            Settings(resolver=((IPv4Address("192.168.1.2"), 53),), connect_timeout=10.0, idle_timeout=10.0),
        )
        (listener,) = config.listeners
        self.assertEqual((listener.endpoint, listener.doors), ("tcp:9000", {Door.FORWARD, Door.CONNECT}))
        https, http = config.rules
        self.assertEqual((https.doors, https.ports, https.destinations), ({Door.CONNECT}, (range(443, 444),), ("*",)))
        self.assertEqual((http.doors, http.ports, http.preserve_host), ({Door.FORWARD}, (range(80, 81),), False))

    def test_example(self):
        """The example works as it is, and what is not commented out in [proxyd] is nothing but its defaults."""
        config = Config.from_string(packaged_text("example"))
        self.assertEqual(config.settings, Settings())
        self.assertEqual([rule.destinations for rule in config.rules], [(".log.aliyuncs.com",)])

    def uncommented(self, extra):
        directory = Path(self.mktemp())
        directory.mkdir()
        for name in ("proxyd-cert.pem", "proxyd-key.pem", "client-ca.pem", "users.htpasswd"):
            (directory / name).touch()
        text = re.sub(r"^#(\[|[a-z_]+ =)", r"\1", packaged_text("example"), flags=re.MULTILINE)
        path = directory / "p.ini"
        path.write_text(extra(text), encoding="utf-8")
        return path

    def test_example_tells_the_defaults(self):
        """Every commented option of the example works, and those of [proxyd] say what the default is."""
        path = self.uncommented(lambda text: text.replace("client_certificate = none", "client_certificate = optional"))
        config = Config.from_path(path)
        self.assertEqual(config.settings, Settings())
        self.assertEqual(config.users, Users(path.absolute().parent / "users.htpasswd"))
        self.assertEqual(config.groups, {"operators": frozenset({"alice", "bob"})})
        (rule,) = config.rules
        plain = Rule("log-service", True, (".log.aliyuncs.com",), clients=rule.clients)
        given_anyway = replace(
            plain,
            ports=(range(80, 81), range(443, 444)),
            users=frozenset({"alice"}),
            groups=frozenset({"operators"}),
            listeners=frozenset({"agents"}),
            doors=frozenset(Door),
            methods=rule.methods,
        )
        self.assertEqual(rule, given_anyway)

    def test_example_has_every_option(self):
        """The example leaves no option out: those that are not in it are not there at all."""

        def misspell(text):
            return re.sub(r"^([a-z_]+) =", r"\1zzz =", text, flags=re.MULTILINE)

        error = self.assertRaises(ConfigError, Config.from_path, self.uncommented(misspell))
        known = set()
        for problem in error.problems:
            if problem.option and problem.option.endswith("zzz"):
                known.add((problem.section.partition(":")[0], problem.option.removesuffix("zzz")))
        self.assertEqual(
            known,
            {("proxyd", name) for name in Settings.__slots__}
            | {("users", name) for name in Users.__slots__}
            | {("group", "members")}
            | {
                ("listener", name)
                for name in (
                    "endpoint", "accept", "detect", "certificate", "private_key", "client_ca", "client_certificate",
                )
            }
            | {
                ("rule", name)
                for name in (
                    "action", "destinations", "ports", "clients", "users", "groups", "listeners", "protocols",
                    "methods", "special_addresses", "preserve_host", "rate",
                )
            },
        )  # fmt: skip

    def test_none_needs_a_directory(self):
        """The embedded configuration can be read from any working directory."""
        empty = self.mktemp()
        os.mkdir(empty)
        before = os.getcwd()
        os.chdir(empty)
        self.addCleanup(os.chdir, before)
        Config.embedded()
