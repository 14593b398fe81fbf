"""How messages are read whose length only shows on the way: step by step, checking before memory is taken.

Gadgetron's messages to external nodes are made of parts that say their own size. A walk is a generator that yields how
many bytes of the message it has to see next, is resumed when they are there, and ends with the event. Every count is
checked before it is used, so the receive buffer never grows for an announcement over the limits; Python's integers do
not overflow, so no product is ever wrong.

    array    u64 rank, rank x u64 sizes (fastest first), elements in column-major order
    list     u64 count, entries
    optional u8 0, or u8 1 and the entry

Source: Gadgetron `core/io/primitives.hpp`.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.gadgetron import Bucket, ImageArray, ReconData
from server.errors import LimitError, ProtocolError
from server.wire.messages import WireLimits

ID_BYTES: Final = 2

Message = ReconData | ImageArray | Bucket
Steps = Generator[int, memoryview, Message]
Place = tuple[int, tuple[int, ...]]
"""Where an array begins in the message, and its shape row-major."""


class Walk:
    """How far the message at the front of the receive buffer has been looked at.

    Attributes:
        needed: bytes of the message that have to be there for the next step.
    """

    __slots__ = ("_steps", "needed")

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.needed = next(steps)

    def look(self, message: memoryview) -> Message | None:
        """Go on as far as the bytes allow; the event when all are there.

        Args:
            message: from its id on, as far as it has come; what is behind it is left alone.

        Raises:
            LimitError: a size is over a limit.
            ProtocolError: sizes contradict each other, or a flag is neither 0 nor 1.
        """
        try:
            while len(message) >= self.needed:
                self.needed = self._steps.send(message)
        except StopIteration as end:
            event: Message = end.value
            return event
        return None


class Cursor:
    """Where a walk is; `at` bytes of the message are accounted for."""

    def __init__(self, what: str, limits: WireLimits) -> None:
        self.what = what
        self.limits = limits
        self.at = ID_BYTES

    def reserve(self, n_bytes: int, field: str) -> int:
        """Account for bytes; where they begin."""
        start, self.at = self.at, self.at + n_bytes
        if self.at > self.limits.message_bytes:
            raise LimitError(
                f"the peer announced {self.what} whose {field} needs {n_bytes} bytes after {start}; the limit is "
                f"{self.limits.message_bytes}"
            )
        return start

    def numbers(self, count: int, field: str) -> Generator[int, memoryview, tuple[int, ...]]:
        """Read unsigned 64-bit numbers."""
        start = self.reserve(8 * count, field)
        message = yield self.at
        return struct.unpack_from(f"<{count}Q", message, start)

    def count(self, field: str, most: int) -> Generator[int, memoryview, int]:
        """Read how many entries a list has."""
        (count,) = yield from self.numbers(1, field)
        if count > most:
            raise LimitError(f"the peer announced {self.what} with {count} entries of {field}; the limit is {most}")
        return count

    def is_there(self, field: str) -> Generator[int, memoryview, bool]:
        """Read whether something optional follows."""
        start = self.reserve(1, field)
        flag = (yield self.at)[start]
        if flag > 1:
            raise ProtocolError(
                f"the peer sent {self.what} in which the flag before {field} is {flag}, not 0 or 1", kind="bad_header"
            )
        return flag == 1

    def array(self, item_bytes: int, rank: int, field: str) -> Generator[int, memoryview, Place]:
        """Read the sizes of an array and account for its elements; missing sizes are 1, no sizes mean no elements."""
        (given,) = yield from self.numbers(1, field)
        if given > rank:
            raise LimitError(
                f"the peer announced {self.what} whose {field} has {given} dimensions; the limit is {rank}"
            )
        sizes = yield from self.numbers(given, field)
        n_items = prod(sizes) if sizes else 0
        start = self.reserve(n_items * item_bytes, field)
        return start, ((1,) * (rank - given) + sizes[::-1] if n_items else (0,) * rank)

    def optional_array(self, item_bytes: int, rank: int, field: str) -> Generator[int, memoryview, Place | None]:
        """Read a flag, and the sizes of an array when it is set."""
        if not (yield from self.is_there(field)):
            return None
        return (yield from self.array(item_bytes, rank, field))


def view(message: memoryview, place: Place, dtype: Any) -> NDArray[Any]:
    """An array where it lies."""
    start, shape = place
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, message, start)
