"""A group that is still being filled: its slot, what has been measured, and how far it is from complete.

Memory order is frames, z, y, coils, x, so that one readout is one contiguous block and goes into place with one copy.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import Slot
from pipelines.assembly.frame import GroupKey
from pipelines.assembly.grid import Cells, Grid
from pipelines.assembly.routing import where

Place = range | Cells

CHUNK_BYTES = 1 << 19
"""Copied before looking for NaN: half of a usual second-level cache (measured: 74 % of a bare copy, else 62 %)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a group is.

    Attributes:
        promised: lines that the header promises for this group.
        missing: those that have not been measured.
    """

    promised: int
    missing: int

    @property
    def fraction(self) -> float:
        """Part of the promised lines that is there."""
        return 1.0 - self.missing / self.promised


class OpenGroup:
    """K-space of one group while readouts arrive.

    Attributes:
        n_coils: channels of each readout.
        placed: readouts summed into the lines.
        visits: how often the stream came (back) to this group; 1 means that it has not been interleaved.
        flagged_average: average counter of the readout that carried a LAST flag, or None.
        time_span: least and greatest acquisition time stamp of the readouts.
        readout_noise: `Group.readout_noise` of the last readout.
        until_check: readouts until the group can be full, and is worth looking at.
    """

    def __init__(self, key: GroupKey, grid: Grid, slot: Slot, n_coils: int) -> None:
        z, y, x = grid.shape
        self.key = key
        self.grid = grid
        self.slot = slot
        self._rows: NDArray[np.uint8] = slot.data.reshape(z * y, n_coils, x * 8)
        self._floats: NDArray[np.float32] = slot.data.view(np.float32).reshape(z * y, n_coils, x * 2)
        self._lines: NDArray[np.complex64] = slot.data.view(np.complex64).reshape(z * y, n_coils, x)
        self._counts = np.zeros(z * y, np.float32)
        self._is_calibration = np.zeros(z * y, np.bool_)
        self._reversed: NDArray[np.float32] | None = None
        self._extent: tuple[int, int] | None = None
        self._nearest: tuple[int, NDArray[np.void]] | None = None
        self._dwell_us: np.float32 | None = None
        self._reciprocal_dwells: NDArray[np.float64] | None = None  # only once dwell times differ
        self.n_coils = n_coils
        self.placed = 0
        self.visits = 0
        self.flagged_average: int | None = None
        self.time_span = (0xFFFF_FFFF, 0)
        self.readout_noise = 1.0
        self.until_check = grid.fewest_lines * grid.averages

    # -- filling -----------------------------------------------------------------------------------------------------

    def add(self, cells: Cells, samples: NDArray[np.uint8], column: int, headers: NDArray[np.void]) -> Cells | None:
        """Sum readouts into their lines.

        Args:
            cells: `(n,)`, valid.
            samples: `(n, coils, samples * 8)` bytes of complex64 that fit into the row from `column` on.
            column: where the first sample belongs.
            headers: `(n,)`.

        Returns:
            Which of the readouts are not finite and were left out; None when all were used.
        """
        self.until_check -= len(cells)
        place, is_distinct = _place_of(cells)
        if is_distinct and not self._counts[_index(place)].any():
            finite = self._copy(place, samples, column)
            if finite is None:
                self._counts[_index(place)] = 1.0
            else:
                self._counts[cells[finite]] = 1.0
        else:
            finite = self._accumulate(cells, samples, column)
        n_used = len(cells) if finite is None else int(np.count_nonzero(finite))
        self.placed += n_used
        if n_used:
            used_cells, used_headers = (cells, headers) if finite is None else (cells[finite], headers[finite])
            self._remember(used_cells, used_headers, column, column + samples.shape[2] // 8)
        return None if finite is None else np.flatnonzero(~finite)

    def mark_calibration(self, cells: Cells) -> None:
        """Note that these lines are for calibration as well."""
        self._is_calibration[cells] = True

    def mark_reversed(self, cells: Cells) -> None:
        """Note that one readout of each of these lines, which may repeat, was reversed."""
        if self._reversed is None:
            self._reversed = np.zeros_like(self._counts)
        np.add.at(self._reversed, cells, 1.0)

    def _copy(self, place: Place, samples: NDArray[np.uint8], column: int) -> NDArray[np.bool_] | None:
        """Copy into lines not measured before; the mask of finite readouts, or None when all are."""
        first, stop = column * 8, column * 8 + samples.shape[2]
        n_at_once = max(CHUNK_BYTES // max(samples[0].nbytes, 1), 1)
        is_suspect = False
        for start in range(0, len(samples), n_at_once):
            part = _index(place[start : start + n_at_once])
            self._rows[part, :, first:stop] = samples[start : start + n_at_once]
            # A sum keeps any NaN or infinity, and reads what the copy has left in the cache.
            sums = np.einsum("ijk->i", self._floats[part, :, first // 4 : stop // 4])
            is_suspect |= not np.isfinite(sums).all()
        if not is_suspect:
            return None
        finite = np.isfinite(self._floats[_index(place), :, first // 4 : stop // 4]).all(axis=(1, 2))
        if finite.all():  # finite values, of which the sum overflowed
            return None
        wrong = np.asarray(place)[~finite]
        self._rows[wrong, :, first:stop] = 0
        return np.asarray(finite)

    def _accumulate(self, cells: Cells, samples: NDArray[np.uint8], column: int) -> NDArray[np.bool_] | None:
        """Add to lines measured before, or several times in this run."""
        values = np.ascontiguousarray(samples).view(np.complex64)
        finite = np.isfinite(values.view(np.float32)).all(axis=(1, 2))
        remaining = np.flatnonzero(finite)
        while remaining.size:  # each turn takes the first readout of every line, so that one indexed addition is exact
            _, first = np.unique(cells[remaining], return_index=True)
            now = remaining[first]
            self._lines[cells[now], :, column : column + values.shape[2]] += values[now]
            self._counts[cells[now]] += 1.0
            remaining = np.delete(remaining, first)
        return None if finite.all() else np.asarray(finite)

    def _remember(self, cells: Cells, headers: NDArray[np.void], first: int, stop: int) -> None:
        low, high = self._extent or (first, stop)
        self._extent = (min(low, first), max(high, stop))
        times = headers["acquisition_time_stamp"]
        begin, end = int(times[0]), int(times[-1])
        self.time_span = (min(self.time_span[0], begin, end), max(self.time_span[1], begin, end))
        # distance to the centre line; of two equally near the lower, so that the order of arrival does not matter
        offsets = cells - self.grid.center
        ranks = 2 * np.abs(offsets) + (offsets > 0)
        nearest = int(ranks.argmin())
        if self._nearest is None or ranks[nearest] < self._nearest[0]:
            self._nearest = (int(ranks[nearest]), headers[nearest : nearest + 1].copy())
        dwell_us = headers["sample_time_us"]
        if self._dwell_us is None:
            self._dwell_us = dwell_us[0].copy()
        if self._reciprocal_dwells is not None or (dwell_us != self._dwell_us).any():
            self._add_dwells(cells, dwell_us)

    def _add_dwells(self, cells: Cells, dwell_us: NDArray[np.float32]) -> None:
        """Sum `1 / dwell`, which the noise variance follows, from the first readout on that is unlike the first one."""
        with np.errstate(divide="ignore", invalid="ignore"):  # an unknown dwell time gives infinity or NaN
            added = 1 / np.where(dwell_us > 0, dwell_us, 0).astype(np.float64)
            if self._reciprocal_dwells is None:
                before = 1 / np.float64(max(self._dwell_us or 0, 0))
                self._reciprocal_dwells = self._counts * before  # the counts have these readouts already
                added -= before
            np.add.at(self._reciprocal_dwells, cells, added)

    # -- asking ------------------------------------------------------------------------------------------------------

    def _lattice(self) -> Cells | None:
        return self.grid.lattice(np.flatnonzero((self._counts > 0) & ~self._is_calibration))

    def progress(self) -> Progress:
        """How far the group is from what the header promises."""
        grid, lattice = self.grid, self._lattice()
        if lattice is None:
            missing = max(grid.fewest_lines - int(np.count_nonzero(self._counts)), 0)
            return Progress(grid.fewest_lines, missing)
        return Progress(max(lattice.size, 1), int(np.count_nonzero(self._counts[lattice] == 0)))

    def describe(self) -> str:
        """The group and how many of its lines came, for messages."""
        progress = self.progress()
        came = progress.promised - progress.missing
        return f"{where(astuple(self.key))}: only {came} of {progress.promised} lines came"

    def is_complete(self) -> bool:
        """Whether the group has all that the header promises, as far as the header tells.

        Lines on no regular lattice never are; where calibration lines share the grid, some of them must be there too.
        """
        if self.placed < self.grid.fewest_lines * self.grid.averages:
            return False
        lattice = self._lattice()
        if lattice is None or (self._counts[lattice] < self.grid.averages).any():
            return False
        if self.grid.is_lattice_all:
            return True
        is_between = self._is_calibration & (self._counts > 0)
        is_between[lattice] = False
        return bool(is_between.any())

    def is_full(self) -> bool:
        """Whether nothing more can be expected; sets `until_check` to the readouts still needed."""
        lattice = self._lattice() if self.grid.is_lattice_all else None
        needed = self.grid.averages - self._counts[self.grid.all_cells() if lattice is None else lattice]
        self.until_check = int(needed[needed > 0].sum())
        return self.until_check == 0

    def kspace(self) -> NDArray[np.complex64]:
        """`(1, coils, z, y, x)` on the memory of the slot."""
        z, y, x = self.grid.shape
        return self._lines.reshape(1, z, y, -1, x).transpose(0, 3, 1, 2, 4)

    def counts(self) -> NDArray[np.float32]:
        """`(1, z, y)`."""
        return self._counts.reshape(1, *self.grid.shape[:2])

    def reversed_counts(self) -> NDArray[np.float32] | None:
        """`(1, z, y)`; None when no readout was reversed."""
        return None if self._reversed is None else self._reversed.reshape(1, *self.grid.shape[:2])

    def dwell_us(self) -> NDArray[np.float32] | None:
        """`(1, z, y)`, harmonic mean over the readouts of each line, 0 where unknown; None when all are alike."""
        if self._reciprocal_dwells is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means = (self._counts / self._reciprocal_dwells).astype(np.float32)
        return np.where(np.isfinite(means) & (means > 0), means, np.float32(0)).reshape(1, *self.grid.shape[:2])

    def calibration_lines(self) -> NDArray[np.bool_]:
        """`(z, y)`."""
        return (self._is_calibration & (self._counts > 0)).reshape(self.grid.shape[:2])

    def extent(self) -> tuple[int, int]:
        """Columns measured; only of a group with at least one readout."""
        return self._extent or (0, 0)

    def headers(self) -> NDArray[np.void]:
        """`(1,)`, the readout nearest to the k-space centre; only of a group with at least one readout."""
        if self._nearest is None:
            raise RuntimeError("no readout was placed in this group")
        return self._nearest[1]


def _place_of(cells: Cells) -> tuple[Place, bool]:
    """The cells as a range when they are evenly spaced (rising or falling), and whether they are distinct."""
    first = int(cells[0])
    if len(cells) == 1:
        return range(first, first + 1), True
    step = int(cells[1]) - first
    if step and bool((cells[1:] - cells[:-1] == step).all()):
        return range(first, first + len(cells) * step, step), True
    return cells, len(np.unique(cells)) == len(cells)


def _index(place: Place) -> slice | Cells:
    """Something that selects these rows; a slice, where possible, copies much faster."""
    if isinstance(place, range):
        return slice(place.start, place.stop if place.stop >= 0 else None, place.step)
    return place
