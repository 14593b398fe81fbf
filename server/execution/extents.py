"""Which ranges of an address space are free: taken from the lowest address, merged when given back.

Pure arithmetic: knows no memory. Lowest address first keeps the same few pages in use, so that they stay mapped and
warm.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Extents:
    """Free ranges of `[0, size)`, kept sorted and never adjacent."""

    def __init__(self, size: int) -> None:
        self._starts = [0] if size else []
        self._ends = [size] if size else []

    def take(self, n_bytes: int) -> int | None:
        """Start of the lowest free range of `n_bytes`, now taken; None when no free range is long enough."""
        for i, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
            if end - start > n_bytes:
                self._starts[i] = start + n_bytes
                return start
            if end - start == n_bytes:
                del self._starts[i], self._ends[i]
                return start
        return None

    def give(self, start: int, n_bytes: int) -> None:
        """Make a taken range free again.

        Raises:
            ValueError: part of the range is free already, which means that two owners believed it theirs.
        """
        end = start + n_bytes
        i = bisect_left(self._starts, start)
        if (i > 0 and self._ends[i - 1] > start) or (i < len(self._starts) and self._starts[i] < end):
            raise ValueError(f"range {start} to {end} overlaps a free range")
        joins_before = i > 0 and self._ends[i - 1] == start
        joins_after = i < len(self._starts) and self._starts[i] == end
        if joins_before and joins_after:
            self._ends[i - 1] = self._ends[i]
            del self._starts[i], self._ends[i]
        elif joins_before:
            self._ends[i - 1] = end
        elif joins_after:
            self._starts[i] = start
        else:
            self._starts.insert(i, start)
            self._ends.insert(i, end)

    @property
    def free(self) -> Sequence[tuple[int, int]]:
        """Free ranges as start and end, in order."""
        return list(zip(self._starts, self._ends, strict=True))
