"""Separate calibration lines: kept on the heap until a group of their slice is handed on with a copy of them.

Lines of several phases and repetitions are summed, since calibration does not depend on them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import Slot, SlotSource
from pipelines.assembly.frame import Calibration, GroupKey
from pipelines.assembly.grid import Grid
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.routing import Run, finite_readouts, where
from pipelines.errors import AssemblyError, BudgetError


class CalibrationLines:
    """Calibration lines of one slice, whose counters may start anywhere.

    The grid spans the least to the greatest counter seen (as Gadgetron's BucketToBuffer does for separate and external
    mode), with its centre at n//2. Its readout is the longest part of the first readout that is symmetric about the
    centre sample.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, n_coils: int, left: int, right: int, largest_span: tuple[int, int]) -> None:
        """An empty store.

        Args:
            n_coils: coils of every readout.
            left: samples before the centre sample of the first readout.
            right: samples from the centre sample on.
            largest_span: lines along y and z that the encoded matrix has; the calibration region cannot be larger.
        """
        half = min(left, right)
        self._width = max(2 * half + (right > half), 1)
        self._largest_span = largest_span
        self._rows = np.zeros((0, n_coils, self._width), np.complex64)
        self._counts = np.zeros(0, np.float32)
        self._reversed: dict[int, int] = {}
        self._row_of: dict[tuple[int, int], int] = {}
        self._span: list[tuple[int, int]] = []

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return self._rows.nbytes

    @property
    def n_grid_bytes(self) -> int:
        """Memory of the grid that `grid` fills."""
        z, y = self._grid_shape()
        return z * y * self._rows.shape[1] * self._width * 8

    @property
    def is_empty(self) -> bool:
        """Whether no line has been measured."""
        return not self._row_of

    def bytes_after(self, n: int) -> int:
        """Upper bound of `n_bytes` once `n` more readouts are in."""
        needed = len(self._row_of) + n
        return max(len(self._rows), 2 * needed) * self._rows.shape[1] * self._width * 8

    def fits(self, y: int, z: int) -> bool:
        """Whether the region with this line is still no larger than the encoded matrix."""
        spans = self._widened(y, z)
        return all(high - low < largest for (low, high), largest in zip(spans, self._largest_span, strict=True))

    def add(self, y: int, z: int, samples: NDArray[np.complex64], center: int, *, is_reversed: bool = False) -> None:
        """Sum one readout `(coils, samples)` into its line; `center` is the index of its centre sample."""
        self._span = self._widened(y, z)
        row = self._row_of.setdefault((z, y), len(self._row_of))
        if row == len(self._rows):
            grown = np.zeros((max(8, 2 * row), *self._rows.shape[1:]), np.complex64)
            grown[:row] = self._rows
            self._rows = grown
            self._counts = np.concatenate([self._counts, np.zeros(len(grown) - row, np.float32)])
        column = self._width // 2 - center
        first, stop = max(column, 0), min(column + samples.shape[1], self._width)
        if first < stop:
            self._rows[row, :, first:stop] += samples[:, first - column : stop - column]
        self._counts[row] += 1.0
        if is_reversed:
            self._reversed[row] = self._reversed.get(row, 0) + 1

    def grid(self, memory: NDArray[np.uint8]) -> Calibration:
        """The lines on their grid, in zeroed `memory` of `n_grid_bytes`."""
        (y_low, _), (z_low, _) = self._span
        z, y = self._grid_shape()
        kspace = memory.view(np.complex64).reshape(self._rows.shape[1], z, y, self._width)
        counts, reversed_counts = np.zeros((z, y), np.float32), np.zeros((z, y), np.float32)
        for (z_counter, y_counter), row in self._row_of.items():
            kspace[:, z_counter - z_low, y_counter - y_low] = self._rows[row]
            counts[z_counter - z_low, y_counter - y_low] = self._counts[row]
            reversed_counts[z_counter - z_low, y_counter - y_low] = self._reversed.get(row, 0)
        return Calibration(kspace, counts, reversed_counts if self._reversed else None)

    def _grid_shape(self) -> tuple[int, int]:
        if not self._span:
            return 0, 0
        (y_low, y_high), (z_low, z_high) = self._span
        return z_high - z_low + 1, y_high - y_low + 1

    def _widened(self, y: int, z: int) -> list[tuple[int, int]]:
        if not self._span:
            return [(y, y), (z, z)]
        return [(min(low, value), max(high, value)) for (low, high), value in zip(self._span, (y, z), strict=True)]


class CalibrationStore:
    """Separate calibration lines of all slices, told apart by encoding space, slice, contrast and set.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, limits: AssemblyLimits, ledger: Ledger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._lines: dict[tuple[int, int, int, int], CalibrationLines] = {}
        self._slices_without: set[int] = set()
        self.n_bytes = 0

    def add(self, run: Run, grid: Grid, room: int) -> None:
        """Keep a run of calibration readouts.

        Args:
            run: readouts of one geometry and group.
            grid: of their encoding space.
            room: bytes that may still be taken.

        Raises:
            AssemblyError: the centre sample is not among the samples.
            BudgetError: more lines than the limits allow.
        """
        if not run.first <= run.center < run.stop:
            raise AssemblyError(f"{run.where}: centre sample {run.center} is not among {run.first} to {run.stop - 1}")
        samples, is_finite = finite_readouts(run)
        encoding, slice_, contrast, _, _, set_ = run.key
        key = (encoding, slice_, contrast, set_)
        lines = self._lines.get(key)
        if lines is None:
            n_z, n_y, _ = grid.shape
            lines = CalibrationLines(run.n_coils, run.center - run.first, run.stop - run.center, (n_y, n_z))
        growth = lines.bytes_after(len(run)) - lines.n_bytes
        if lines.n_bytes + growth > self._limits.max_group_bytes or growth > room:
            raise BudgetError(
                f"{run.where}: calibration lines need {lines.n_bytes + growth} bytes, "
                f"the limit is {min(self._limits.max_group_bytes, lines.n_bytes + room)}"
            )
        self._lines[key] = lines
        self.n_bytes -= lines.n_bytes
        if slice_ in self._slices_without:
            self._ledger.warn("late calibration", f"slice {slice_}: calibration lines come after images of this slice")
        for values, is_good, (y, z) in zip(samples, is_finite, run.lines.tolist(), strict=True):
            at = f"{where(run.key)}, line {y}"
            if not is_good:
                self._ledger.count(Fate.NOT_FINITE, 1, f"{at}: calibration lines with NaN or infinity are left out")
            elif not lines.fits(y, z):
                self._ledger.count(Fate.OUT_OF_RANGE, 1, f"{at}: calibration lines span more than the encoded matrix")
            else:
                lines.add(y, z, values, run.center - run.first, is_reversed=run.is_reversed)
                self._ledger.count(Fate.CALIBRATION, 1)
        self.n_bytes += lines.n_bytes

    def best_for(self, key: GroupKey, slots: SlotSource) -> tuple[Calibration, Slot] | None:
        """A copy of the lines of the same slice that agree best with a group, or None without any.

        Raises:
            BudgetError: the source of slots has no room.
        """
        wanted = (key.encoding, key.slice, key.contrast, key.set)
        candidates = [at for at, lines in self._lines.items() if at[1] == key.slice and not lines.is_empty]
        if not candidates:
            self._slices_without.add(key.slice)
            return None
        best = min(candidates, key=lambda at: ([a != b for a, b in zip(at, wanted, strict=True)], at))
        lines = self._lines[best]
        slot = slots.take(lines.n_grid_bytes)
        return replace(lines.grid(slot.data), encoding=best[0]), slot
