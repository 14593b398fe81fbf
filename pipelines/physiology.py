"""Heartbeats in an ECG or pulse signal; knows samples, not waveforms, scans or time of day. Numpy only.

The chain of Pan and Tompkins 1985 (doi:10.1109/TBME.1985.325532): band pass, derivative, squaring, integration over a
moving window, an adaptive threshold, a refractory time, and the rule that tells a T wave from a QRS complex. Other than
theirs, filters are symmetric (a beat is found where it is, without delay) and the threshold comes from the signal
before and after, since seconds of delay do no harm here: from the median over `2 CONTEXT + 1` blocks of the greatest
energy of each block. Isolated artefacts therefore do not raise it, and a signal without beats, whose greatest energy
is close to its usual energy, has none found in it.

Signals are cut into blocks counted from their start, so that what is found does not depend on how they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_S: Final = 2.0
"""A block has a heartbeat in it at 30 beats a minute and more."""
CONTEXT: Final = 2
"""Blocks on either side that a threshold comes from."""
THRESHOLD: Final = 0.25
"""Of the median greatest energy."""
REFRACTORY_S: Final = 0.25
T_WAVE_S: Final = 0.36
"""A weaker peak so soon after a beat is its T wave."""
T_WAVE_ENERGY: Final = 0.5
LEAST_SLOPE: Final = 1e-4
"""Change from sample to sample, relative to the range of the signal, that is more than rounding."""
MAX_SAMPLE_TIME_S: Final = 0.02
"""Slower signals show no QRS complex and no steep pulse wave."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a heartbeat looks like.

    Attributes:
        smoothing_s: of the moving average that ends the band above; 20 ms is one period of mains hum.
        baseline_s: of the moving average that is subtracted, and so ends the band below.
        energy_s: window over which the energy is summed.
        is_upstroke: whether only rising parts count.
        peak_over_usual: least ratio of the greatest energy of a block to the median energy.
    """

    smoothing_s: float
    baseline_s: float
    energy_s: float
    is_upstroke: bool
    peak_over_usual: float


class Kind(Enum):
    """Signals that heartbeats can be found in."""

    ECG = Shape(0.020, 0.120, 0.100, is_upstroke=False, peak_over_usual=8.0)
    PULSE = Shape(0.060, 0.600, 0.160, is_upstroke=True, peak_over_usual=5.0)


class BeatDetector:
    """Finds the beats of one signal without gaps, block by block.

    A beat of an ECG is the middle of its QRS complex; that of a pulse is the steepest part of its wave, which comes 0.2
    to 0.5 s later.

    Attributes:
        beats: samples at which beats are, in their order.
        known: samples before this one have no other beats.
    """

    def __init__(self, sample_time_s: float, kind: Kind) -> None:
        """A detector that has seen nothing.

        Raises:
            ValueError: the sample time is not positive, or too long for heartbeats.
        """
        if not 1e-5 <= sample_time_s <= MAX_SAMPLE_TIME_S:
            raise ValueError(f"sample time must lie in 0.00001 to {MAX_SAMPLE_TIME_S} s, not {sample_time_s}")
        self.beats: list[int] = []
        self.known = 0
        self._shape = kind.value
        self._smoothing, self._baseline, self._window = (
            2 * round(seconds / sample_time_s / 2) + 1  # odd, so that nothing is shifted by half a sample
            for seconds in (self._shape.smoothing_s, self._shape.baseline_s, self._shape.energy_s / 2)
        )
        self._block = round(BLOCK_S / sample_time_s)
        self._refractory = round(REFRACTORY_S / sample_time_s)
        self._t_wave = round(T_WAVE_S / sample_time_s)
        self._margin = 2 * self._smoothing + self._baseline + 2 * self._window + 2
        self._signal: NDArray[np.float64] | None = None
        self._first = 0  # number of the first sample in `_signal`
        self._stop = 0
        self._energies: list[NDArray[np.float64]] = []
        self._n_judged = 0
        self._candidate: tuple[int, float] | None = None
        self._last_energy = 0.0

    def add(self, samples: NDArray[np.float64]) -> None:
        """Take the next samples, `(leads, n)`."""
        self._signal = samples if self._signal is None else np.concatenate([self._signal, samples], axis=1)
        self._stop += samples.shape[1]
        while (len(self._energies) + 1) * self._block + self._margin <= self._stop:
            self._measure((len(self._energies) + 1) * self._block)
        while self._n_judged + CONTEXT < len(self._energies):
            self._judge()

    def finish(self) -> None:
        """Take note that the signal has ended."""
        while len(self._energies) * self._block < self._stop:
            self._measure(min((len(self._energies) + 1) * self._block, self._stop))
        while self._n_judged < len(self._energies):
            self._judge()
        self._settle(self._stop + self._refractory)
        self.known = self._stop

    def _measure(self, stop: int) -> None:
        """Energy of the next block, which ends before sample `stop`."""
        if self._signal is None:
            return
        start = len(self._energies) * self._block
        first = max(start - self._margin, 0)
        part = self._signal[:, first - self._first : stop + self._margin - self._first]
        band = _smooth(part, self._smoothing) - _smooth(part, self._baseline)
        smooth = np.pad(_smooth(band, self._smoothing), ((0, 0), (1, 1)), mode="edge")
        slope = (smooth[:, 2:] - smooth[:, :-2]) / 2
        if self._shape.is_upstroke:
            slope = np.maximum(slope, 0)
        # twice the half window makes a triangle, whose peak is where the beat is; a box would have a plateau
        energy = _smooth((slope**2).sum(axis=0, keepdims=True), self._window)
        energy = _smooth(energy, self._window)[0, start - first : stop - first]
        energy[energy < (LEAST_SLOPE * np.ptp(part, axis=1).max()) ** 2] = 0
        self._energies.append(energy)
        keep = max(stop - self._margin, 0)
        self._signal, self._first = self._signal[:, keep - self._first :], keep

    def _judge(self) -> None:
        """Find the beats of the next block, all blocks of its context being there or the signal having ended."""
        number = self._n_judged
        context = [block for block in self._energies[max(number - CONTEXT, 0) : number + CONTEXT + 1] if len(block)]
        greatest = float(np.median([block.max() for block in context]))
        usual = float(np.median(np.concatenate(context)))
        energy, start = self._energies[number], number * self._block
        if greatest > self._shape.peak_over_usual * usual:
            before = self._energies[number - 1][-1:] if number else energy[:1]
            after = self._energies[number + 1][:1] if number + 1 < len(self._energies) else energy[-1:]
            padded = np.concatenate([before, energy, after])
            is_peak = (energy >= padded[:-2]) & (energy > padded[2:]) & (energy > THRESHOLD * greatest)
            for at in np.flatnonzero(is_peak).tolist():
                self._consider(start + at, float(energy[at]))
        self._n_judged += 1
        if number >= CONTEXT + 1:
            self._energies[number - CONTEXT - 1] = energy[:0]
        self._settle(start + len(energy))
        self.known = start + len(energy) if self._candidate is None else self._candidate[0]

    def _consider(self, at: int, energy: float) -> None:
        """Take a peak as the next candidate, unless a greater one is too close."""
        self._settle(at)
        if self._candidate is not None:
            if energy > self._candidate[1]:
                self._candidate = (at, energy)
            return
        since = at - self.beats[-1] if self.beats else self._t_wave
        if since >= self._t_wave or energy > T_WAVE_ENERGY * self._last_energy:
            self._candidate = (at, energy)

    def _settle(self, now: int) -> None:
        """Make the candidate a beat, if nothing at `now` or later can be too close to it."""
        if self._candidate is not None and now - self._candidate[0] >= self._refractory:
            self.beats.append(self._candidate[0])
            self._last_energy = self._candidate[1]
            self._candidate = None


def _smooth(signal: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Centred moving average along the last axis; the ends are repeated beyond the signal."""
    left = width // 2
    padded = np.pad(signal, ((0, 0), (left + 1, width - 1 - left)), mode="edge")
    sums = np.cumsum(padded - padded[:, :1], axis=1)
    return np.asarray((sums[:, width:] - sums[:, :-width]) / width + padded[:, :1])
