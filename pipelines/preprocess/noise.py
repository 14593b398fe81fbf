"""How much noise the coils have, and the matrix that makes it white.

Knows noise covariances and dwell times; nothing of images, sessions or where the noise was measured.

Convention: after whitening, `E|n|^2 = 1` for every complex sample of an image readout (real and imaginary part 1/2
each).

The factor: receivers sample a flat noise density `N0` seen through a filter that falls off at the edges of the band.
The variance of a sample is density times bandwidth, and the bandwidth is one over the dwell time. A noise readout
keeps the whole band, of which the filter passes the fraction `b = relativeReceiverNoiseBandwidth` (0.793 on Siemens),
so its mean variance is `b N0 / dwell_noise`. Of an image readout only the flat middle of the band survives the
removal of readout oversampling, with variance `N0 / dwell` a sample. With `L L^H` the covariance of the noise
readouts, `L^-1 n` of an image readout therefore has variance `dwell_noise / (dwell b)`, and `sqrt(b dwell /
dwell_noise) L^-1` brings it to one. Gadgetron multiplies by a further `sqrt(2)` because it wants unit variance in
each of the real and imaginary parts (NoiseAdjustGadget); we do not. On a 3 T scanner's file (dwell 20 us and 2.4 us)
the whitened variance in signal-free columns next to the field of view is 1.0 to 1.1.

Reference: Roemer 1990, doi 10.1002/mrm.1910160203; Kellman and McVeigh 2005, doi 10.1002/mrm.20713.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log, sqrt

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from numpy.typing import NDArray
from torch import Tensor

from pipelines.assembly.frame import NoiseCovariance

FEWEST_SAMPLES = 16
"""Samples a coil, below which not even the variances are worth using."""

SMALLEST_EIGENVALUE = 1e-6
"""Relative to the largest of the correlation matrix; below it, coils carry the same noise: regularised."""


@dataclass(frozen=True, slots=True)
class NoiseModel:
    """Whitening of one scan.

    Attributes:
        whitening: `(whitened, coils)` complex64; inverse Cholesky factor of the covariance of the noise readouts.
            Coils without noise are dead and have no row.
        dwell_us: dwell time of the noise readouts; 0 when the scan did not say.
        bandwidth: relative receiver noise bandwidth.
    """

    whitening: NDArray[np.complex64]
    dwell_us: float
    bandwidth: float

    def scale(self, dwell_us: float) -> float:
        """Factor that brings whitened readouts of that dwell time to unit variance; 1 when a dwell time is unknown."""
        if not (_is_positive(dwell_us) and _is_positive(self.dwell_us)):
            return 1.0
        return sqrt(self.bandwidth * dwell_us / self.dwell_us)


def estimate_noise_model(noise: NoiseCovariance, n_coils: int, bandwidth: float) -> tuple[NoiseModel | None, list[str]]:
    """Whitening from noise readouts, with a sentence for everything that was not as it should be.

    The covariance is `sum n n^H / (samples - 1)` over all samples. Too few samples for a covariance give the
    variances only; coils without noise are left out; a singular covariance is regularised. The result is finite
    whatever comes in.

    Args:
        noise: what the noise readouts say.
        n_coils: coils of the image readouts.
        bandwidth: relative receiver noise bandwidth of the header, where the noise has none of its own.

    Returns:
        The model, or None when the noise cannot be used, and warnings.
    """
    warnings: list[str] = []
    if noise.n_coils != n_coils:
        return None, [f"The noise scan has {noise.n_coils} coils and the image {n_coils}; it is not used."]
    if noise.n_samples < FEWEST_SAMPLES:
        few = f"The noise scan has {noise.n_samples} samples; at least {FEWEST_SAMPLES} are needed, it is not used."
        return None, [few]
    covariance = noise.sums / (noise.n_samples - 1)
    variance = covariance.diagonal().real
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = variance.astype(np.float32)  # what whitened k-space has to be computed in
        alive = single > 1e-10 * single.max()
    if not alive.any() or not np.isfinite(covariance).all() or not np.isfinite(single).all():
        return None, ["The noise scan holds no noise, or values far too large; it is not used."]
    if not alive.all():
        warnings.append(f"{int((~alive).sum())} of {n_coils} coils carry no noise and are left out as dead.")
    kept = np.flatnonzero(alive)
    deviation = np.sqrt(variance[kept])
    correlation = covariance[np.ix_(kept, kept)] / np.outer(deviation, deviation)
    if noise.n_samples < 4 * len(kept):
        warnings.append(
            f"The noise scan has {noise.n_samples} samples for {len(kept)} coils: scaled, not decorrelated."
        )
        correlation = np.eye(len(kept), dtype=np.complex128)
    whitening = np.zeros((len(kept), n_coils), np.complex128)
    whitening[:, kept] = np.linalg.inv(np.linalg.cholesky(_regularised(correlation, warnings))) / deviation
    bandwidth = bandwidth if noise.bandwidth is None else noise.bandwidth
    if not (isfinite(bandwidth) and bandwidth > 0):
        warnings.append("The receiver noise bandwidth of the header is not positive; 1 is used.")
        bandwidth = 1.0
    if not _is_positive(noise.sample_time_us):
        warnings.append(
            "The dwell time of the noise scan is not known: the noise level is not scaled to the image readouts."
        )
    return NoiseModel(whitening.astype(np.complex64), float(noise.sample_time_us), float(bandwidth)), warnings


def whiten(
    kspace: Complex64[Tensor, "frames coils z y x"], model: NoiseModel, scale: Float32[Tensor, "frames"]
) -> Complex64[Tensor, "frames whitened z y x"]:
    """Apply the whitening to whole frames, each with the factor of its own dwell time.

    Args:
        kspace: frames as measured.
        model: whitening of the scan.
        scale: `model.scale(dwell)` of each frame.
    """
    matrix = torch.from_numpy(model.whitening).to(kspace.device) * scale[:, None, None]
    frames, coils, *grid = kspace.shape
    return (matrix @ kspace.reshape(frames, coils, -1)).reshape(frames, -1, *grid)


def noise_level_in_margin(columns: Complex64[Tensor, "readouts coils columns"]) -> float:
    """Noise level from image columns beyond the field of view, which readout oversampling measures for nothing.

    Args:
        columns: readouts transformed along x, only columns without signal.

    Returns:
        Standard deviation of the complex noise, root of `E|n|^2`; the median over columns, so that some may hold
        signal after all.
    """
    power = columns.abs().square().mean((0, 1))
    return float(power.median().sqrt())


def noise_level_at_edges(readouts: Complex64[Tensor, "readouts coils samples"]) -> float:
    """Noise level from the outermost samples of k-space, where signal is weakest: an upper bound.

    Args:
        readouts: the measured lines farthest from the centre of k-space.

    Returns:
        Standard deviation of the complex noise. The median of an exponential distribution is `ln 2` times its mean,
        and signal moves it less than it moves the mean.
    """
    n = readouts.shape[-1]
    edge = max(1, n // 10)
    outer = torch.cat([readouts[..., :edge], readouts[..., n - edge :]], -1)
    return sqrt(float(outer.abs().square().median()) / log(2.0))


def _regularised(correlation: NDArray[np.complex128], warnings: list[str]) -> NDArray[np.complex128]:
    """The correlation matrix with a little of the identity added when it is close to singular."""
    smallest, largest = np.linalg.eigvalsh(correlation)[[0, -1]]
    if smallest >= SMALLEST_EIGENVALUE * largest:
        return correlation
    warnings.append("The noise covariance is singular (coils carry the same noise); it was regularised.")
    loading = SMALLEST_EIGENVALUE * float(largest) + max(0.0, -float(smallest))
    return np.asarray(correlation + loading * np.eye(len(correlation)))


def _is_positive(value: float) -> bool:
    return isfinite(value) and value > 0
