"""Dwell times of the lines of a frame, kept one by one only where they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.layout import Cells


class DwellTimes:
    """Sums `1 / dwell` of each line, which the noise variance follows, from the first readout unlike the first one."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._reciprocals: NDArray[np.float64] | None = None

    @property
    def are_alike(self) -> bool:
        """Whether all readouts so far have the dwell time of the first."""
        return self._reciprocals is None

    def add(self, cells: Cells, dwell_us: NDArray[np.float32], counts: NDArray[np.float32]) -> None:
        """Take note of readouts.

        Args:
            cells: their lines, `(n,)`.
            dwell_us: `(n,)`.
            counts: readouts of each line, these included.
        """
        if self._first is None:
            self._first = float(dwell_us[0])
        if self._reciprocals is None and not (dwell_us != np.float32(self._first)).any():
            return
        with np.errstate(divide="ignore", invalid="ignore"):  # an unknown dwell time gives infinity or NaN
            added = 1 / np.where(dwell_us > 0, dwell_us, 0).astype(np.float64)
            if self._reciprocals is None:
                before = 1 / np.float64(max(self._first, 0.0))
                self._reciprocals = counts * before  # the counts have these readouts already
                added -= before
            if len(self._reciprocals) < len(counts):
                grown = np.zeros(len(counts))
                grown[: len(self._reciprocals)] = self._reciprocals
                self._reciprocals = grown
            np.add.at(self._reciprocals, cells, added)

    def means(self, counts: NDArray[np.float32]) -> NDArray[np.float32]:
        """The harmonic mean over the readouts of each line, 0 where unknown or nothing was measured, like `counts`."""
        if self._reciprocals is None:
            return np.where(counts > 0, np.float32(max(self._first or 0.0, 0.0)), np.float32(0))
        reciprocals = np.zeros(len(counts))
        n = min(len(counts), len(self._reciprocals))
        reciprocals[:n] = self._reciprocals[:n]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            means = (counts / reciprocals).astype(np.float32)
        return np.where(np.isfinite(means) & (means > 0), means, np.float32(0))
