"""Which slices of a scan are next to each other in space.

1. By the positions of the slices along their normal, when readouts have them: slice counters often follow the order of
   measurement, even slices before odd ones. Nothing fits between two slices that are less than two slice thicknesses
   apart; otherwise who is next is known once all slices that the header promises have been seen.
2. By the slice counter otherwise. Without limits of it the slices are those that come.

Only slices that are parallel are neighbours. More slices than `MAX_POSITIONS` are ordered by counter. Knows readouts'
headers, no samples and no groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.scan_header import Encoding

MAX_POSITIONS = 512
"""Slices ordered by position, far more than a stack has: each new slice costs as much time as there are slices."""

_PARALLEL = 0.999
_LEAST_DISTANCE_MM = 1e-3


class SliceOrder:
    """The slices of one encoding space that have been seen."""

    def __init__(self, encoding: Encoding) -> None:
        limit = encoding.limits.get("slice")
        self._promised = range(limit.minimum, limit.maximum + 1) if limit else None
        self._thickness_mm = encoding.encoded.field_of_view_mm[2]
        self._normals: dict[int, NDArray[np.float64]] = {}
        self._positions: dict[int, NDArray[np.float64]] = {}
        self._arrays: tuple[NDArray[np.int_], NDArray[np.float64], NDArray[np.float64]] | None = None
        self._known: dict[int, tuple[tuple[int, ...], bool]] = {}

    @property
    def seen(self) -> set[int]:
        """Slices of which a readout came."""
        return set(self._positions)

    def see(self, slice_: int, header: NDArray[np.void]) -> bool:
        """Take note of a readout; whether its slice is a new one (of every slice the first readout counts)."""
        if slice_ in self._positions:
            return False
        read, phase, normal, position = (
            np.asarray(header[name], np.float64) for name in ("read_dir", "phase_dir", "slice_dir", "position")
        )
        if not np.isfinite([read, phase, normal, position]).all():
            normal = position = np.zeros(3)
        elif not normal.any():
            normal = np.cross(read, phase)
        length = float(np.linalg.norm(normal))
        self._normals[slice_] = normal / length if length > 0 else np.zeros(3)
        self._positions[slice_] = position
        self._known.clear()
        self._arrays = None
        return True

    def neighbours(self, slice_: int) -> tuple[tuple[int, ...], bool]:
        """The slices next to one that was seen, in the order of their counters, and whether this is certain by now."""
        found = self._known.get(slice_)
        if found is None:
            found = self._by_position(slice_) if self._have_positions() else self._by_counter(slice_)
            self._known[slice_] = found
        return found

    def _have_positions(self) -> bool:
        """Whether readouts tell where slices lie: some differ along the normal, and every slice has a normal."""
        if len(self._positions) > MAX_POSITIONS:
            return False
        if self._arrays is None:
            numbers = np.array(list(self._positions))
            self._arrays = numbers, np.array(list(self._positions.values())), np.array(list(self._normals.values()))
        _, positions, normals = self._arrays
        along = (positions - positions[0]) @ normals[0]
        return bool(normals.any(axis=1).all() and (np.abs(along) > _LEAST_DISTANCE_MM).any())

    def _is_parallel(self, one: int, other: int) -> bool:
        one_normal, other_normal = self._normals[one], self._normals[other]
        return not (one_normal.any() and other_normal.any()) or abs(float(one_normal @ other_normal)) > _PARALLEL

    def _by_position(self, slice_: int) -> tuple[tuple[int, ...], bool]:
        if self._arrays is None:
            raise RuntimeError("no positions")
        numbers, positions, normals = self._arrays
        normal = self._normals[slice_]
        offsets = (positions - self._positions[slice_]) @ normal
        is_parallel = np.abs(normals @ normal) > _PARALLEL
        found: list[int] = []
        distances: list[float] = []
        for side in (-1, 1):
            ahead = np.flatnonzero(is_parallel & (side * offsets > _LEAST_DISTANCE_MM))
            if ahead.size:
                nearest = ahead[np.abs(offsets[ahead]).argmin()]
                found.append(int(numbers[nearest]))
                distances.append(abs(float(offsets[nearest])))
        are_all_seen = self._promised is not None and len(self._positions) >= len(self._promised)
        is_between = len(found) == 2 and max(distances) < 2 * self._thickness_mm
        return tuple(sorted(found)), are_all_seen or is_between

    def _by_counter(self, slice_: int) -> tuple[tuple[int, ...], bool]:
        around = [
            other
            for other in (slice_ - 1, slice_ + 1)
            if other >= 0 and (other not in self._normals or self._is_parallel(slice_, other))
        ]
        if self._promised is None:
            return tuple(other for other in around if other in self._positions), all(
                other in self._positions for other in around
            )
        found = tuple(other for other in around if other in self._promised)
        # a second slice shows whether there are positions after all
        return found, len(self._positions) > 1 or len(self._promised) == 1
