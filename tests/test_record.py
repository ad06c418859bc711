"""Tests for proxyd.ledger.record."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from proxyd.ledger.record import AccessRecord, microseconds


class AccessRecordTests(SynchronousTestCase):
    """The record of one request or tunnel."""

    def test_beginning(self) -> None:
        """A record begins with what is known of every connection; the rest is unknown or zero."""
        record = AccessRecord(1700000000.5, "1-1", "forward", "", "192.0.2.1", 40000)

        self.assertEqual((record.method, record.destination), ("", ""))
        self.assertEqual((record.bytes_from_client, record.bytes_to_client, record.duration), (0, 0, 0.0))
        self.assertIs(record.reused, False)
        unknown = (
            "user proof address decision rule status reply error detail policy dns connect first_byte closed_by".split()
        )
        self.assertEqual({getattr(record, name) for name in unknown}, {None})

    def test_filled_while_alive(self) -> None:
        """A flow fills its record in as it goes along."""
        record = AccessRecord(1700000000.5, "1-1", "forward", "connect", "192.0.2.1", 40000)

        record.bytes_to_client += 512
        record.decision = "allow"

        self.assertEqual((record.bytes_to_client, record.decision), (512, "allow"))

    def test_no_room_for_secrets(self) -> None:
        """The fields are these and no others: none of them can hold a credential, a path or a query."""
        self.assertEqual(
            " ".join(AccessRecord.__struct_fields__),
            "time id listener protocol client client_port user proof method destination address decision rule status "
            "reply error detail bytes_from_client bytes_to_client duration policy dns connect first_byte closed_by "
            "reused",
        )


class MicrosecondsTests(SynchronousTestCase):
    """How exactly the times of a record are told."""

    def test_rounded(self) -> None:
        """Times have six decimals at most, and are rounded to the nearest."""
        for seconds, told in (
            (1700000000.1234567, 1700000000.123457),
            (0.012345675607299805, 0.012346),
            (1.9999996, 2),
        ):
            self.assertEqual(microseconds(seconds), told)
        self.assertEqual(microseconds(0.0), 0)
        self.assertEqual(repr(microseconds(0.1 + 0.2)), "0.3")
