"""Which subjects training leaves out, for validation and for figures: one rule for training and for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

HELD_OUT_SHARE: Final = 10
"""One of so many subjects of a file or directory is left out."""


def held_out(subjects: Iterable[str]) -> frozenset[str]:
    """Every tenth of the sorted subjects; of three to nine the last, of fewer none."""
    names = sorted(set(subjects))
    if 2 < len(names) < HELD_OUT_SHARE:
        return frozenset(names[-1:])
    return frozenset(names[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE])
