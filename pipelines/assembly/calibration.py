"""Separate calibration lines and noise readouts: kept on the heap until a group is handed on with a copy of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import Calibration, NoiseScan


class CalibrationStore:
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

    def add(self, y: int, z: int, samples: NDArray[np.complex64], center: int) -> None:
        """Sum one readout `(coils, samples)` into its line; `center` is the index of its centre sample, maybe outside."""
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

    def grid(self, memory: NDArray[np.uint8]) -> Calibration:
        """The lines on their grid, in zeroed `memory` of `n_grid_bytes`."""
        (y_low, _), (z_low, _) = self._span
        z, y = self._grid_shape()
        kspace = memory.view(np.complex64).reshape(self._rows.shape[1], z, y, self._width)
        counts = np.zeros((z, y), np.float32)
        for (z_counter, y_counter), row in self._row_of.items():
            kspace[:, z_counter - z_low, y_counter - y_low] = self._rows[row]
            counts[z_counter - z_low, y_counter - y_low] = self._counts[row]
        return Calibration(kspace, counts)

    def _grid_shape(self) -> tuple[int, int]:
        if not self._span:
            return 0, 0
        (y_low, y_high), (z_low, z_high) = self._span
        return z_high - z_low + 1, y_high - y_low + 1

    def _widened(self, y: int, z: int) -> list[tuple[int, int]]:
        if not self._span:
            return [(y, y), (z, z)]
        return [(min(low, value), max(high, value)) for (low, high), value in zip(self._span, (y, z), strict=True)]


class NoiseStore:
    """Noise readouts of one shape and dwell time, up to a limit: more would not make the covariance better.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[NDArray[np.complex64]] = []
        self._sample_time_us = 0.0
        self._scan: NoiseScan | None = None
        self.n_bytes = 0

    def add(self, samples: NDArray[np.complex64], sample_times_us: NDArray[np.float32]) -> int:
        """Keep those of the readouts `(n, coils, samples)` that are like the first ever kept, as long as there is room.

        Args:
            samples: finite, owned by the caller no longer.
            sample_times_us: `(n,)`.

        Returns:
            How many were kept.
        """
        if not len(samples):
            return 0
        if not self._parts:
            self._sample_time_us = float(sample_times_us[0])
        elif samples.shape[1:] != self._parts[0].shape[1:]:
            return 0
        alike = np.flatnonzero(sample_times_us == np.float32(self._sample_time_us))
        room = (self._max_bytes - self.n_bytes) // samples[0].nbytes
        kept = samples[alike[:room]]
        if len(kept):
            self._parts.append(kept)
            self.n_bytes += kept.nbytes
            self._scan = None
        return len(kept)

    def scan(self) -> NoiseScan | None:
        """All readouts kept so far; the same object until another is added."""
        if self._parts and self._scan is None:
            self._parts = [np.concatenate(self._parts)]
            self._scan = NoiseScan(self._parts[0], self._sample_time_us)
        return self._scan


def best_match(wanted: Sequence[int], keys: Iterable[tuple[int, ...]]) -> tuple[int, ...] | None:
    """Of the keys (encoding, slice, contrast, set) with the slice wanted, the one that agrees best; None without any."""
    same_slice = [key for key in keys if key[1] == wanted[1]]
    return min(same_slice, key=lambda key: ([a != b for a, b in zip(key, wanted, strict=True)], key), default=None)
