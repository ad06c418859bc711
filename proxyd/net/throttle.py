"""Back-pressure from one transport to another, and nothing else."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class Throttle:
    """Pauses a transport's reading while another transport's buffer is full.

    A transport registered as a producer itself would be told to close when its consumer is lost; here the receivers
    decide that.
    """

    __slots__ = ("_source",)

    def __init__(self, source: Any) -> None:
        self._source = source

    def pauseProducing(self) -> None:
        """The consumer is full."""
        self._source.pauseProducing()

    def resumeProducing(self) -> None:
        """The consumer takes more."""
        self._source.resumeProducing()

    def stopProducing(self) -> None:
        """The consumer is lost; its receiver hears of that."""
