"""Noise readouts of the scan: summed into a covariance as they come, up to a limit, and handed on with every group.

Whitening sets the units of the images. So that all images of a scan have the same, what the first group was handed on
with holds for the others: noise readouts that come later are not used. A scan without noise readouts of its own may
have been given the covariance of an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import NoiseCovariance, add_products
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.routing import Route, Run, finite_readouts, runs
from pipelines.mrd import Acquisitions


class NoiseCollector:
    """Sums noise readouts of one shape and dwell time; more than the limit would not make the covariance better.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, max_bytes: int, ledger: Ledger, dependency: NoiseCovariance | None = None) -> None:
        """A collector without any readout.

        Args:
            max_bytes: of noise readouts that are summed, which bounds the work; and of the sums.
            ledger: where readouts are counted.
            dependency: taken where the scan brings no noise readouts of its own.
        """
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._dependency = dependency
        self._sums: NDArray[np.complex128] | None = None
        self._shape = (0, 0)
        self._sample_time_us = 0.0
        self._summed_bytes = 0
        self._covariance: NoiseCovariance | None = None
        self._is_final = False

    @property
    def n_bytes(self) -> int:
        """Memory of the sums."""
        return 0 if self._sums is None else self._sums.nbytes

    def add(self, run: Run) -> None:
        """Sum those readouts that are like the first ever summed, up to the limit."""
        if self._is_final:
            text = "noise readouts after the first images are not used: they would change the units of the scan"
            self._ledger.count(Fate.NOISE_UNUSED, len(run), text)
            return
        samples, is_finite = finite_readouts(run)
        n_finite = int(np.count_nonzero(is_finite))
        if n_finite < len(run):
            self._ledger.count(Fate.NOT_FINITE, len(run) - n_finite, "noise readouts with NaN or infinity are left out")
        n_summed = self._sum(samples[is_finite], run.headers["sample_time_us"][is_finite])
        self._ledger.count(Fate.NOISE, n_summed)
        if n_summed < n_finite:
            self._ledger.count(
                Fate.NOISE_UNUSED,
                n_finite - n_summed,
                f"noise readouts beyond {self._max_bytes} bytes, or unlike the first one, are not used",
            )

    def covariance(self) -> NoiseCovariance | None:
        """Of the scan's own readouts so far; the same object until another is added."""
        if self._sums is not None and self._covariance is None:
            sums = self._sums.copy()
            sums.setflags(write=False)
            n_samples = self._summed_bytes // (8 * self._shape[0])
            self._covariance = NoiseCovariance(sums, n_samples, self._sample_time_us)
        return self._covariance

    def final(self, n_coils: int) -> NoiseCovariance | None:
        """What to whiten readouts of so many coils with, which from now on stays the same."""
        self._is_final = True
        own = self.covariance()
        if own is not None or self._dependency is None:
            return own
        if self._dependency.n_coils != n_coils:
            self._ledger.warn(
                "dependency",
                f"the noise measured before this scan has {self._dependency.n_coils} coils and the scan {n_coils}; "
                "it is not used, the noise is estimated from the data",
            )
            return None
        return self._dependency

    def _sum(self, samples: NDArray[np.complex64], sample_times_us: NDArray[np.float32]) -> int:
        if not len(samples):
            return 0
        shape, n_bytes = (samples.shape[1], samples.shape[2]), samples[0].nbytes
        if self._sums is None:
            if n_bytes > self._max_bytes or 16 * shape[0] ** 2 > self._max_bytes:
                return 0
            self._sums = np.zeros((shape[0], shape[0]), np.complex128)
            self._shape = shape
            self._sample_time_us = float(sample_times_us[0])
        elif shape != self._shape:
            return 0
        # two unknown dwell times (NaN) are alike
        alike = np.flatnonzero(np.isclose(sample_times_us, self._sample_time_us, rtol=0, atol=0, equal_nan=True))
        room = (self._max_bytes - self._summed_bytes) // n_bytes
        for number in alike[:room].tolist():
            add_products(self._sums, samples[number])
            self._summed_bytes += n_bytes
            self._covariance = None
        return min(len(alike), int(room))


class NoiseMeasurement:
    """A scan of which only the noise readouts matter; anything else is counted and left out."""

    def __init__(self, limits: AssemblyLimits) -> None:
        self._ledger = Ledger()
        self._collector = NoiseCollector(limits.max_noise_bytes, self._ledger)

    def add(self, batch: Acquisitions) -> None:
        """Sum the noise readouts of a batch; nothing of it is kept.

        Raises:
            AssemblyError: compressed samples.
        """
        if not len(batch):
            return
        if batch.n_coils == 0 or batch.n_samples == 0:
            self._ledger.count(Fate.EMPTY, len(batch), "readouts without samples or channels are left out")
            return
        for run in runs(batch):
            if run.first >= run.stop:
                text = "readouts whose samples are all to be discarded are left out"
                self._ledger.count(Fate.EMPTY, len(run), text)
            elif run.route is Route.NOISE:
                self._collector.add(run)
            else:
                text = "readouts without the noise flag are left out of a noise measurement"
                self._ledger.count(Fate.KEPT_OUT, len(run), text)

    def covariance(self) -> NoiseCovariance | None:
        """Of all that came so far; None without one usable noise readout."""
        return self._collector.covariance()

    def take_warnings(self) -> list[str]:
        """Sentences for the scanner since the last call, each kind once."""
        return self._ledger.take_warnings()

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them."""
        return {fate.value: number for fate, number in self._ledger.counts.items()}
