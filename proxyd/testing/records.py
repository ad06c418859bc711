"""The access log of a lab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxyd.ledger.record import AccessRecord


class RecordList(list[AccessRecord]):
    """An access log that keeps its records, in the order in which they were written."""

    def record(self, record: AccessRecord) -> None:
        """Take one finished record. Raises AssertionError if it was taken before."""
        if any(record.id == other.id for other in self):
            raise AssertionError(f"a second record for {record.id}")
        self.append(record)

    def expect(self, *expected: Mapping[str, Any]) -> None:
        """Check that these are the records, all of them: for each the fields to look at, and their values.

        Raises:
            AssertionError: there are more or fewer records, or one has other values.
            AttributeError: a record has no such field.
        """
        seen = [
            {name: getattr(record, name) for name in wanted} for record, wanted in zip(self, expected, strict=False)
        ]
        seen += [_told(record) for record in self[len(expected) :]]
        if seen != [dict(wanted) for wanted in expected]:
            raise AssertionError("\n  ".join(["the records are", *map(str, seen), "and not", *map(str, expected)]))


def _told(record: AccessRecord) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(record).items() if value is not None}
