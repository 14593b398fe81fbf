"""A frame on the Cartesian grid: readouts summed into its lines, what was measured, how far it is from complete."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.grid import Grid
from pipelines.assembly.group_buffer import GroupBuffer
from pipelines.assembly.layout import Cells, Key
from pipelines.assembly.open_frame import OpenFrame, Part, Progress

Place = range | Cells

CHUNK_BYTES = 1 << 19
"""Copied before looking for NaN: half of a usual second-level cache (measured: 74 % of a bare copy, else 62 %)."""


class CartesianFrame(OpenFrame):
    """One frame of lines; the readout that speaks for it is the one nearest to the k-space centre."""

    def __init__(self, key: Key, place: int, grid: Grid) -> None:
        super().__init__(key, place)
        self.grid = grid
        self._counts = np.zeros(grid.n_cells, np.float32)
        self._is_calibration = np.zeros(grid.n_cells, np.bool_)
        self._extent: tuple[int, int] | None = None
        self._nearest: tuple[int, NDArray[np.void]] | None = None
        self.until_check = grid.fewest_readouts

    def attach(self, buffer: GroupBuffer) -> None:
        """Use the frame's rows of this buffer, `(lines, coils, x * 8)` bytes."""
        self._rows: NDArray[np.uint8] = buffer.samples[self.place]
        self._floats: NDArray[np.float32] = self._rows.view(np.float32)
        self._lines: NDArray[np.complex64] = self._rows.view(np.complex64)

    # -- filling -----------------------------------------------------------------------------------------------------

    def add(self, part: Part) -> Cells | None:
        """Sum readouts into their lines.

        Returns:
            Which of them are not finite and were left out; None when all were used.
        """
        cells, samples, column, headers = part.cells, part.samples, part.column, part.headers
        if part.is_calibration is not None:
            self._is_calibration[cells[part.is_calibration]] = True
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
        self.left_out += len(cells) - n_used
        if n_used:
            used_cells, used_headers = (cells, headers) if finite is None else (cells[finite], headers[finite])
            self._remember(used_cells, used_headers, column, column + samples.shape[2] // 8)
            self._note(part, used_cells, used_headers)
        return None if finite is None else np.flatnonzero(~finite)

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
        # distance to the centre line; of two equally near the lower, so that the order of arrival does not matter
        offsets = cells - self.grid.center
        ranks = 2 * np.abs(offsets) + (offsets > 0)
        nearest = int(ranks.argmin())
        if self._nearest is None or ranks[nearest] < self._nearest[0]:
            self._nearest = (int(ranks[nearest]), headers[nearest : nearest + 1].copy())

    # -- asking ------------------------------------------------------------------------------------------------------

    def _lattice(self) -> Cells | None:
        if not self.grid.is_accelerated:
            return self.grid.all_cells()
        return self.grid.lattice(np.flatnonzero((self._counts > 0) & ~self._is_calibration))

    def progress(self) -> Progress:
        """How far the frame is from what the header promises."""
        grid, lattice = self.grid, self._lattice()
        if lattice is None:
            missing = max(grid.fewest - int(np.count_nonzero(self._counts)), 0)
            return Progress(grid.fewest, missing)
        return Progress(max(lattice.size, 1), int(np.count_nonzero(self._counts[lattice] == 0)))

    def settled(self) -> Progress:
        """The same where a LAST flag says that nothing more was planned: rule 3 of `grid.py`."""
        progress = self.progress()
        if progress.missing == 0 or self.left_out:
            return progress
        promised = self.grid.lines_by_design(self._counts > 0, self._lattice())
        return progress if promised is None else Progress(promised, 0)

    def is_complete(self) -> bool:
        """Whether the frame has all that the header promises, as far as the header tells.

        Lines on no regular lattice never are; where calibration lines share the grid, some of them must be there too.
        """
        if self.placed < self.grid.fewest_readouts:
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
        """Whether nothing more can be expected; sets `until_check` to the readouts still needed at least."""
        grid, lattice = self.grid, self._lattice() if self.grid.is_lattice_all else None
        needed = grid.averages - self._counts[grid.all_cells() if lattice is None else lattice]
        self.until_check = int(needed[needed > 0].sum())
        if self.until_check and lattice is not None and grid.may_shift:
            # few lines fit several patterns, of which another than the one taken may need fewer
            self.until_check = min(self.until_check, max(grid.fewest_readouts - self.placed, 1))
        return self.until_check == 0

    def counts(self) -> NDArray[np.float32]:
        """Readouts in each line, `(lines,)`."""
        return self._counts

    def calibration_lines(self) -> NDArray[np.bool_]:
        """Lines measured as calibration lines, `(lines,)`."""
        return np.asarray(self._is_calibration & (self._counts > 0))

    def extent(self) -> tuple[int, int]:
        """Columns measured; only of a frame with at least one readout."""
        return self._extent or (0, 0)

    def header(self) -> NDArray[np.void]:
        """`(1,)`, the readout nearest to the k-space centre; only of a frame with at least one readout."""
        if self._nearest is None:
            raise RuntimeError("no readout was placed in this frame")
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
