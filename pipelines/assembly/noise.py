"""Noise readouts of the scan: kept on the heap, up to a limit, and handed on with every group.

Whitening sets the units of the images. So that all images of a scan have the same, what the first group was handed on
with holds for the others: noise readouts that come later are not used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import NoiseScan
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.routing import Run, finite_readouts


class NoiseStore:
    """Noise readouts of one shape and dwell time, up to a limit: more would not make the covariance better.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, max_bytes: int, ledger: Ledger) -> None:
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._parts: list[NDArray[np.complex64]] = []
        self._sample_time_us = 0.0
        self._scan: NoiseScan | None = None
        self._is_final = False
        self.n_bytes = 0

    def add(self, run: Run) -> None:
        """Keep those readouts that are like the first ever kept, as long as there is room."""
        if self._is_final:
            text = "noise readouts after the first images are not used: they would change the units of the scan"
            self._ledger.count(Fate.NOISE_UNUSED, len(run), text)
            return
        samples, is_finite = finite_readouts(run)
        n_finite = int(np.count_nonzero(is_finite))
        if n_finite < len(run):
            self._ledger.count(Fate.NOT_FINITE, len(run) - n_finite, "noise readouts with NaN or infinity are left out")
        kept = self._keep(samples[is_finite], run.headers["sample_time_us"][is_finite])
        self._ledger.count(Fate.NOISE, kept)
        if kept < n_finite:
            self._ledger.count(
                Fate.NOISE_UNUSED,
                n_finite - kept,
                f"noise readouts beyond {self._max_bytes} bytes, or unlike the first one, are not used",
            )

    def scan(self) -> NoiseScan | None:
        """All readouts kept so far; the same object until another is added."""
        if self._parts and self._scan is None:
            self._parts = [np.concatenate(self._parts)]
            self._scan = NoiseScan(self._parts[0], self._sample_time_us)
        return self._scan

    def final_scan(self) -> NoiseScan | None:
        """All readouts kept, which from now on stay the same."""
        self._is_final = True
        return self.scan()

    def _keep(self, samples: NDArray[np.complex64], sample_times_us: NDArray[np.float32]) -> int:
        if not len(samples):
            return 0
        if not self._parts:
            self._sample_time_us = float(sample_times_us[0])
        elif samples.shape[1:] != self._parts[0].shape[1:]:
            return 0
        alike = np.flatnonzero(sample_times_us == np.float32(self._sample_time_us))
        kept = samples[alike[: (self._max_bytes - self.n_bytes) // samples[0].nbytes]]
        if len(kept):
            self._parts.append(kept)
            self.n_bytes += kept.nbytes
            self._scan = None
        return len(kept)
