"""Tests for proxyd.workers.worker."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import reactor  # noqa: TID251 - the one that runs these tests
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from proxyd.accounts.htpasswd import AccountsError
from proxyd.config import Config
from proxyd.ledger.access_log import AccessLogError
from proxyd.listening import ListenError
from proxyd.service import Proxy
from proxyd.testing import RecordList, StaticResolver
from proxyd.workers.channel import Channel
from proxyd.workers.messages import Answer, Configure, ListeningSocket, LogLine, Message, Order
from proxyd.workers.worker import SUPERVISORS, Worker, ignore_signals
from tests.descriptors import no_descriptors
from tests.loopback import connect
from tests.processes import ReadingReactor


def configured(*names: str, tail: str = "") -> Config:
    """A configuration with these listeners, whose sockets come from elsewhere."""
    listener = "[listener:{}]\nendpoint = tcp:{}\naccept = forward\n"
    listeners = "".join(listener.format(name, port) for port, name in enumerate(names, 1))
    return Config.from_string(f"{listeners}[rule:all]\naction = allow\ndestinations = *\n{tail}")


class StoppableReactor(ReadingReactor):
    """A reactor that can be stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.before_shutdown: list[Callable[[], Deferred[None] | None]] = []
        self.stopped = 0
        self.drained: list[Deferred[None] | None] = []

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[[], Deferred[None] | None]) -> None:
        assert (phase, event) == ("before", "shutdown")
        self.before_shutdown.append(call)

    def stop(self) -> None:
        self.stopped += 1
        self.drained = [call() for call in self.before_shutdown]


class ScriptedProxy:
    """A proxy that notes what it is told."""

    def __init__(self, reactor: Any, config: Config, *, inherited: Mapping[str, int]) -> None:
        self.told: list[object] = [(config, sorted(inherited))]
        self.problem: Exception | None = None
        self.stopped: Deferred[None] = Deferred()
        self.close(inherited)

    def close(self, inherited: Mapping[str, int]) -> None:
        for descriptor in inherited.values():
            os.close(descriptor)

    def startService(self) -> None:
        self.told.append("start")

    def reload(self, config: Config, inherited: Mapping[str, int]) -> None:
        self.close(inherited)
        if self.problem is not None:
            raise self.problem
        self.told.append((config, sorted(inherited)))

    def reopen_logs(self) -> None:
        self.told.append("reopen logs")

    def stopService(self) -> Deferred[None]:
        self.told.append("stop")
        return self.stopped


class UnusableProxy(ScriptedProxy):
    """One that cannot be started."""

    def startService(self) -> None:
        raise ListenError("no port")


class WorkerTestCase(SynchronousTestCase):
    """A worker, and the other end of its channel."""

    def setUp(self) -> None:
        self.reactor = StoppableReactor()
        self.proxies: list[ScriptedProxy] = []
        self.heard: list[Message] = []
        ours, theirs = socket.socketpair()
        self.supervisor = Channel(ours, lambda message, _: self.heard.append(message), lambda: None, 5.0)
        self.supervisor.begin(self.reactor)
        self.addCleanup(self.supervisor.close)
        self.worker = Worker(self.reactor, theirs, self.make_proxy)  # type: ignore[arg-type]
        self.addCleanup(theirs.close)
        self.worker.begin()

    kind: type[ScriptedProxy] = ScriptedProxy

    def make_proxy(self, *arguments: Any, **named: Any) -> ScriptedProxy:
        """What the worker becomes."""
        self.proxies.append(self.kind(*arguments, **named))
        return self.proxies[-1]

    def tell(self, *messages: Message) -> None:
        """Say that to the worker."""
        for message in messages:
            with_socket = isinstance(message, ListeningSocket)
            self.supervisor.send(message, self.supervisor.fileno() if with_socket else None)
        self.reactor.settle()


class WorkerTests(WorkerTestCase):
    """What a worker does that it is told."""

    def test_configured(self) -> None:
        """Its first configuration starts a proxy on the sockets that came before; it says that this is done."""
        self.tell(ListeningSocket("a"), ListeningSocket("b"), Configure(configured("a", "b")))
        [proxy] = self.proxies
        self.assertEqual(proxy.told, [(configured("a", "b"), ["a", "b"]), "start"])
        self.assertEqual(self.heard, [Answer(None)])

    def test_reloaded(self) -> None:
        """The next one is a reload, with the sockets that came since."""
        self.tell(ListeningSocket("a"), Configure(configured("a")))
        self.tell(ListeningSocket("b"), Configure(configured("a", "b")))
        [proxy] = self.proxies
        self.assertEqual(proxy.told[2:], [(configured("a", "b"), ["b"])])
        self.assertEqual(self.heard, [Answer(None), Answer(None)])

    def test_reload_refused(self) -> None:
        """It answers with the problem, and can be told something else."""
        self.tell(Configure(configured("a")))
        [proxy] = self.proxies
        proxy.problem = AccessLogError("access log /x: no space")
        self.tell(ListeningSocket("b"), Configure(configured("b")))
        proxy.problem = None
        self.tell(Configure(configured("c")))
        self.assertEqual(self.heard, [Answer(None), Answer("access log /x: no space"), Answer(None)])
        self.assertEqual(proxy.told[2:], [(configured("c"), [])])

    def test_too_many_open_files(self) -> None:
        """So it does if a socket could not be received; those that were are closed, and it serves what it served."""
        self.tell(Configure(configured("a")))
        before = len(os.listdir("/proc/self/fd"))
        self.tell(ListeningSocket("b"))
        with no_descriptors():
            self.tell(ListeningSocket("c"))
        self.tell(Configure(configured("a", "b", "c")))
        problem = 'listener "c": its socket could not be received: too many open files'
        self.assertEqual(self.heard, [Answer(None), Answer(problem)])
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        self.tell(ListeningSocket("b"), Configure(configured("a", "b")))
        self.assertEqual(self.proxies[0].told[2:], [(configured("a", "b"), ["b"])])

    def test_bug(self) -> None:
        """If its own code fails it logs that and answers with it, and its clients go on."""
        self.tell(Configure(configured("a")))
        self.proxies[0].problem = ZeroDivisionError("by zero")
        self.tell(Configure(configured("b")))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.heard, [Answer(None), Answer("ZeroDivisionError: by zero")])
        self.assertEqual(self.reactor.stopped, 0)

    def test_reopen(self) -> None:
        """It opens its logs again, if it has any yet."""
        self.tell(Order.REOPEN_LOGS)
        self.tell(Configure(configured("a")), Order.REOPEN_LOGS)
        self.assertEqual(self.proxies[0].told[2:], ["reopen logs"])

    def check_drained(self) -> None:
        """It ends once, and that takes until the proxy has stopped."""
        self.assertEqual(self.reactor.stopped, 1)
        [drained] = self.reactor.drained
        self.assertEqual(self.proxies[0].told[-1], "stop")
        assert drained is not None
        self.assertNoResult(drained)
        self.proxies[0].stopped.callback(None)
        self.successResultOf(drained)

    def test_stop(self) -> None:
        """It drains and ends."""
        self.tell(Configure(configured("a")), Order.STOP, Order.STOP)
        self.check_drained()

    def test_orphan(self) -> None:
        """So it does when its supervisor is gone."""
        self.tell(Configure(configured("a")))
        self.supervisor.close()
        self.reactor.settle()
        self.check_drained()

    def test_stop_before_configured(self) -> None:
        """Without a proxy there is nothing to drain."""
        self.tell(Order.STOP)
        self.assertEqual(self.reactor.drained, [None])

    def test_ending_reactor(self) -> None:
        """When the reactor ends for another reason, the loss of the channel changes nothing."""
        self.reactor.stop()
        self.supervisor.close()
        self.reactor.settle()
        self.assertEqual(self.reactor.stopped, 1)


class UnusableTests(WorkerTestCase):
    """A worker that cannot start."""

    kind = UnusableProxy

    def test_refused(self) -> None:
        """It answers with the problem; it is not its own end that it decides about."""
        self.tell(Configure(configured("a")))
        self.assertEqual(self.heard, [Answer("no port")])
        self.assertEqual(self.reactor.stopped, 0)

    def test_again(self) -> None:
        """Another configuration is another start."""
        self.tell(Configure(configured("a")), Configure(configured("b")))
        self.assertEqual(len(self.proxies), 2)


class LogTests(WorkerTestCase):
    """What a worker logs."""

    def setUp(self) -> None:
        super().setUp()
        self.log = Logger("proxyd.part", observer=LogPublisher(self.worker))

    def heard_after(self, log: Callable[..., None], *arguments: Any, **fields: Any) -> list[Message]:
        """What the supervisor hears of an event."""
        log(*arguments, **fields)
        self.reactor.settle()
        return self.heard

    def test_event(self) -> None:
        """An event goes to the supervisor as text, with the part of the program and the level."""
        heard = self.heard_after(self.log.warn, "{number} clients", number=5)
        self.assertEqual(heard, [LogLine("warn", "proxyd.part#warn", "5 clients")])

    def test_traceback(self) -> None:
        """A failure has its traceback."""
        try:
            raise ZeroDivisionError("by zero")
        except ZeroDivisionError:
            [line] = self.heard_after(self.log.failure, "proxyd has a bug")
        assert isinstance(line, LogLine)
        self.assertEqual(line.level, "critical")
        self.assertIn("proxyd has a bug\nTraceback", line.text)

    def test_system(self) -> None:
        """What has a name for itself keeps it."""
        [line] = self.heard_after(self.log.info, "text", log_system="-")
        self.assertEqual(line, LogLine("info", "-", "text"))

    def test_bare_event(self) -> None:
        """An event needs to have nothing but a text; one that has none is not for reading."""
        self.worker({"log_format": "text"})
        self.worker({"log_namespace": "proxyd"})
        self.reactor.settle()
        self.assertEqual(self.heard, [LogLine("info", "-#info", "text")])


class SignalTests(SynchronousTestCase):
    """Signals are the supervisor's."""

    def test_ignored(self) -> None:
        """A worker ignores what may be sent to all processes of a group."""
        for number in SUPERVISORS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        ignore_signals()
        self.assertEqual({signal.getsignal(number) for number in SUPERVISORS}, {signal.SIG_IGN})


class InheritedTests(TestCase):
    """What a worker relies upon: a real proxy takes the sockets that it is given, and no others."""

    timeout = 20

    def bound(self) -> socket.socket:
        """A socket that listens."""
        bound = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(bound.close)
        return bound

    def start(self, config: Config, **inherited: int) -> Proxy:
        """A proxy that has these sockets."""
        proxy = Proxy(reactor, config, access_log=RecordList(), resolver=StaticResolver(), inherited=inherited)
        proxy.startService()
        self.addCleanup(proxy.stopService)
        return proxy

    async def check_served(self, bound: socket.socket) -> None:
        """The proxy has the clients of a socket."""
        client = await connect(IPv4Address("TCP", *bound.getsockname()))
        client.transport.write(b"nonsense\r\n\r\n")
        self.assertIn(b"400 Bad Request", await client.closed)

    async def test_reload(self) -> None:
        """Sockets that come with a reload are those of its new listeners; nothing is bound."""
        first, second = self.bound(), self.bound()
        proxy = self.start(configured("a"), a=os.dup(first.fileno()))
        proxy.reload(configured("a", "b"), inherited={"b": os.dup(second.fileno())})
        await self.check_served(first)
        await self.check_served(second)

    async def test_refused_reload(self) -> None:
        """If nothing comes of it they are closed, so that the port can be free."""
        proxy = self.start(configured("a"), a=os.dup(self.bound().fileno()))
        second = self.bound()
        address = second.getsockname()
        users = Path(self.mktemp()).absolute()
        users.write_text("alice:plain text\n")
        unusable = configured("b", tail=f"[users]\nfile = {users}\n")
        self.assertRaises(AccountsError, proxy.reload, unusable, inherited={"b": second.detach()})
        socket.create_server(address).close()

    async def test_removed(self) -> None:
        """A listener that is removed is left to the others who have its socket."""
        first, second = self.bound(), self.bound()
        proxy = self.start(configured("a", "b"), a=os.dup(first.fileno()), b=os.dup(second.fileno()))
        proxy.reload(configured("a"))
        await deferLater(reactor, 0)
        client = socket.create_connection(second.getsockname(), 30)
        self.addCleanup(client.close)
        second.accept()[0].close()
