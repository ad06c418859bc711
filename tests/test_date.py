"""Tests for ``proxyd.wire.date``."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.wire.date import http_date


class HTTPDateTests(SynchronousTestCase):
    """Dates as HTTP writes them."""

    def test_fixdate(self):
        """A date is an IMF-fixdate, always GMT: the example of RFC 9110 §5.6.7."""
        self.assertEqual(http_date(784111777), b"Sun, 06 Nov 1994 08:49:37 GMT")

    def test_one_digit_day(self):
        """Days and hours below ten have a leading zero, as the grammar wants two digits."""
        self.assertEqual(http_date(0), b"Thu, 01 Jan 1970 00:00:00 GMT")

    def test_fraction(self):
        """Fractions of a second are cut off, not rounded: a date is never in the future."""
        self.assertEqual(http_date(784111777.999), http_date(784111777))

    def test_next_second(self):
        """The next second has another date."""
        self.assertEqual(http_date(784111778), b"Sun, 06 Nov 1994 08:49:38 GMT")
