"""How many bytes wait for reconstruction or for being sent, of all sessions; who reads too fast is paused.

Only a session that has jobs under way is ever paused: its jobs end, so it goes on. Sessions cannot wait for each other
in a circle, whatever they hold.
"""

from __future__ import annotations

from typing import Protocol


class Reader(Protocol):
    """A session that may be paused."""

    def reconsider(self) -> None:
        """Go on reading if there is room again."""
        ...


class Waiting:
    """Bytes that wait, of all sessions together.

    Attributes:
        limit_bytes: above it, sessions that have jobs under way stop reading.
        total_bytes: now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.total_bytes = 0
        self._paused: dict[Reader, None] = {}

    @property
    def is_over(self) -> bool:
        """Whether too much is waiting."""
        return self.total_bytes > self.limit_bytes

    def change(self, n_bytes: int) -> None:
        """More or less is waiting."""
        self.total_bytes += n_bytes
        if n_bytes <= 0 and self._paused and not self.is_over:
            paused, self._paused = self._paused, {}
            for reader in paused:
                reader.reconsider()

    def tell_when_less(self, reader: Reader) -> None:
        """Call `reader.reconsider` once when there is room again."""
        self._paused[reader] = None

    def forget(self, reader: Reader) -> None:
        """The session has ended."""
        self._paused.pop(reader, None)
