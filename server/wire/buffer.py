"""The receive buffer: one piece of memory that the transport fills and the parser reads in place.

Knows nothing of messages but how many bytes the next one needs.

    |  consumed  |  pending: the incomplete tail  |  free: writable()  |
    0          start                             end               capacity

Nothing is moved while there is room. When room is wanted only the pending bytes move, to the front; they belong to one
incomplete message, so each byte moves at most once. A message larger than the buffer makes it grow once, to the size
that the message announced (already checked against the limits); memory that was never written to costs no pages.
"""

from __future__ import annotations

import numpy as np

SMALL_TAIL = 4096
"""Pending bytes that are cheaper to move than to go on behind: the front of the buffer is still in the cache."""


class ReceiveBuffer:
    """Memory between a transport and a parser.

    Attributes:
        data: all of the memory, read-only; bytes `start` to `end` are pending.
        start: first pending byte.
        end: one past the last pending byte.
    """

    __slots__ = ("_base", "_ceiling", "_largest", "_memory", "data", "end", "start")

    def __init__(self, base: int, ceiling: int) -> None:
        """Take `base` bytes; never hold more than `ceiling` at a time."""
        self._base = _allocate(base)
        self._ceiling = ceiling
        self._memory = self._base
        self._largest = 0
        self.data = self._memory.toreadonly()
        self.start = 0
        self.end = 0

    @property
    def capacity(self) -> int:
        """Bytes of memory in use."""
        return len(self._memory)

    def writable(self, needed: int) -> memoryview:
        """Where the transport may write, at least one byte; all views of earlier data become invalid.

        Args:
            needed: bytes that the message at `start` takes, as far as known.

        Raises:
            BufferError: the buffer is full of bytes that the parser was not asked for.
        """
        pending = self.end - self.start
        if pending == 0:
            self._restart()
        elif needed > self.capacity:
            self._grow(needed, pending)
        elif self.start and (
            pending <= SMALL_TAIL
            or self.capacity - self.start < needed
            or self.capacity - self.end < self.capacity // 4
        ):  # fmt: skip
            self._memory[:pending] = self._memory[self.start : self.end]
            self.start, self.end = 0, pending
        if self.end == self.capacity:
            raise BufferError("the receive buffer is full: take events until there are none before receiving more")
        return self._memory[self.end :]

    def received(self, n: int) -> None:
        """The transport has written `n` bytes.

        Raises:
            ValueError: that is more than there was room for.
        """
        if not 0 <= n <= self.capacity - self.end:
            raise ValueError(f"{n} bytes received into room for {self.capacity - self.end}")
        self.end += n

    def consume(self, n: int, message: int) -> None:
        """The parser is done with `n` bytes, whose largest message took `message` bytes."""
        self.start += n
        self._largest = max(self._largest, message)

    def discard(self) -> None:
        """Forget what is pending."""
        self.start = self.end = 0

    def release(self) -> None:
        """Let go of the memory; nothing more will be received."""
        self._base = memoryview(bytearray())
        self._use(self._base)
        self.start = self.end = 0

    def _restart(self) -> None:
        """Begin again at the front, and give large memory back when nothing since the last time needed it."""
        self.start = self.end = 0
        if self._memory is not self._base and self._largest <= len(self._base):
            self._use(self._base)
        self._largest = 0

    def _grow(self, needed: int, pending: int) -> None:
        """Move to memory with room for the message, and some more so that the next one begins to arrive with it."""
        larger = _allocate(min(max(needed, 1 << (needed - 1).bit_length()), max(self._ceiling, needed)))
        larger[:pending] = self._memory[self.start : self.end]
        self._use(larger)
        self.start, self.end = 0, pending

    def _use(self, memory: memoryview) -> None:
        self._memory = memory
        self.data = memory.toreadonly()


def _allocate(size: int) -> memoryview:
    """Memory that is not written to beforehand, unlike a bytearray's."""
    return np.empty(size, np.uint8).data
