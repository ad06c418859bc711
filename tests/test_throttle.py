"""Tests for proxyd.net.throttle."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from proxyd.net.throttle import Throttle


class ThrottleTests(SynchronousTestCase):
    """Back-pressure from one transport to another."""

    def test_is_a_producer(self):
        """A transport takes a throttle for a push producer."""
        self.assertTrue(verifyObject(IPushProducer, Throttle(StringTransport())))

    def test_pauses(self):
        """While the consumer is full, the source is not read."""
        source = StringTransport()
        throttle = Throttle(source)
        throttle.pauseProducing()
        self.assertEqual(source.producerState, "paused")
        throttle.resumeProducing()
        self.assertEqual(source.producerState, "producing")

    def test_lost_consumer(self):
        """When the consumer is lost, the source is left alone: its receiver decides."""
        source = StringTransport()
        Throttle(source).stopProducing()
        self.assertEqual(source.producerState, "producing")
        self.assertFalse(source.disconnecting)
