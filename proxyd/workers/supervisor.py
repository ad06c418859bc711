"""The service of a proxy that is several processes: it binds, starts them, tells them, and waits for their end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.logger import Logger

from proxyd.config import Config
from proxyd.settings import Settings
from proxyd.workers.channel import wait
from proxyd.workers.post import Post
from proxyd.workers.process import ANSWER_PATIENCE
from proxyd.workers.sockets import Sockets


class WorkerError(Exception):
    """A worker cannot do what a configuration says; the message names it and the reason."""


class Supervisor(Service):
    """One proxy that is several processes on the same listeners.

    It accepts no clients and moves no bytes. It has the bound sockets and the configuration, and gives both to its
    workers; whoever of them ends by itself is replaced.
    """

    log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self._reactor = reactor
        self._config = share(config)
        self._sockets = Sockets(reactor)
        self._bound = False
        self._posts: list[Post] = []
        self._former: set[Post] = set()
        """Posts there are too many of, while their last processes drain."""
        self._turn = DeferredLock()

    # -- start --------------------------------------------------------------------------------------------------------

    def privilegedStartService(self) -> None:
        """Twisted starts us while ports below 1024 may still be bound. Raises ListenError."""
        self._bind()
        super().privilegedStartService()

    def startService(self) -> None:
        """Start the workers, and wait until they serve: twistd is told of a start that fails while it listens to that.

        Raises:
            ListenError: a listener cannot be bound.
            WorkerError: a worker cannot serve; then none is left.
        """
        self._bind()
        try:
            self._man()
        except WorkerError:
            for post in self._posts:
                post.kill()
            self._sockets.close()
            raise
        super().startService()

    def _bind(self) -> None:
        if not self._bound:
            self._sockets.adopt(self._sockets.prepare(self._config.listeners))
            self._bound = True

    def _man(self) -> None:
        answers: list[str | None] = []
        try:
            started = [self._add_post().fill() for _ in range(self._config.settings.workers)]
        except OSError as error:
            raise WorkerError(f"worker {len(self._posts)} cannot be started: {error}") from None
        for process in started:
            process.configure(*self._duty()).addCallback(answers.append)
        channels = [process.channel for process in started]
        wait(channels, lambda: len(answers) == len(started) or any(answers), ANSWER_PATIENCE)
        problems = [answer for answer in answers if answer is not None]
        if problems or len(answers) < len(started):
            raise WorkerError(problems[0] if problems else "a worker does not answer")

    def _add_post(self) -> Post:
        post = Post(self._reactor, len(self._posts) + 1, self._duty)
        self._posts.append(post)
        return post

    def _duty(self) -> tuple[Config, Mapping[str, int]]:
        return self._config, self._sockets.descriptors()

    # -- while it runs ------------------------------------------------------------------------------------------------

    def reopen_logs(self) -> None:
        """Let every worker open its access logs again: they were rotated."""
        for post in [*self._posts, *self._former]:
            post.reopen_logs()

    def reload(self, config: Config) -> Deferred[None]:
        """Go over to another configuration; live flows go on. One reload follows another.

        Fails with `ListenError` or `WorkerError`: then nothing has changed.
        """
        return self._turn.run(lambda: Deferred.fromCoroutine(self._reload(share(config))))

    async def _reload(self, config: Config) -> None:
        if not self.running:
            raise WorkerError("proxyd is stopping")
        prepared = self._sockets.prepare(config.listeners)
        try:
            await self._spread(config, prepared.fresh)
        except WorkerError:
            self._sockets.drop(prepared)
            raise
        self._sockets.adopt(prepared)
        self._config = config
        self._refill()
        self.log.info("reloaded: {workers} workers", workers=len(self._posts))

    async def _spread(self, config: Config, fresh: Mapping[str, int]) -> None:
        """Tell one worker after the other. What the first refuses is wrong, and then no other hears of it."""
        taken = False
        for post in self._posts:
            process = post.process
            if process is None or process.serves_since is None:
                continue
            problem = await process.configure(config, fresh)
            if not self.running:
                raise WorkerError("proxyd is stopping")
            if problem is None:
                taken = True
            elif taken:
                self.log.error("a worker is replaced, as it could not be configured: {problem}", problem=problem)
            else:
                if process.config is None:  # whatever it does, and will do
                    post.refill()
                raise WorkerError(problem)

    def _refill(self) -> None:
        """Have as many workers as there should be, all with the configuration that is in force."""
        while len(self._posts) > self._config.settings.workers:
            self._retire(self._posts.pop())
        for post in self._posts:
            if post.process is None or post.process.config is not self._config:
                post.refill()
        while len(self._posts) < self._config.settings.workers:
            self._add_post().refill()

    def _retire(self, post: Post) -> None:
        self._former.add(post)
        post.leave().addCallback(lambda _: self._former.discard(post))

    # -- end ----------------------------------------------------------------------------------------------------------

    def stopService(self) -> Deferred[Any]:
        """Accept nobody any more, let all workers drain, and wait for their end."""
        super().stopService()
        left = [post.leave() for post in [*self._posts, *self._former]]
        self._bound = False
        return gatherResults([*left, self._sockets.close()])


def share(config: Config) -> Config:
    """What one of the workers of a configuration is to serve: ``max_connections`` is divided among them."""
    settings = config.settings
    workers = processes(settings)
    most = -(-settings.max_connections // workers)
    return replace(config, settings=replace(settings, workers=workers, max_connections=most))


def processes(settings: Settings) -> int:
    """How many processes are to serve: as configured, or one for each core that we may use."""
    if settings.workers:
        return settings.workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
