"""What may go wrong on a connection in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong with the bytes that one end of a connection sends."""

    delay: float = 0.0
    """Seconds that everything is under way."""
    piece: int = 0
    """Bytes that arrive at one time, 1 for a trickle; 0: as they were sent."""
    reset_at: int | None = None
    """After so many bytes the connection is reset, as by a crash; the rest is lost."""
    fin_at: int | None = None
    """After so many bytes this end says FIN; the rest is lost."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The bytes as they arrive."""
        size = self.piece or len(data) or 1
        return (data[start : start + size] for start in range(0, len(data), size))

    def end_within(self, sent: int, count: int) -> int | None:
        """How many of the next bytes still pass, where a reset or FIN comes before, or right behind, their end."""
        ends = [end for end in (self.reset_at, self.fin_at) if end is not None and end <= sent + count]
        return max(0, min(ends) - sent) if ends else None

    @property
    def resets(self) -> bool:
        """Whether the end, if there is one, is a reset."""
        return self.reset_at is not None and (self.fin_at is None or self.reset_at <= self.fin_at)


NO_FAULTS: Final = Faults()
