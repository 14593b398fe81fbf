"""Standard deviation of the magnitude of a noisy complex value, at any signal-to-noise ratio.

With complex noise of variance v (v/2 in each part) on a signal A, the root of the sum of squares over N channels
follows a noncentral chi distribution with 2N degrees of freedom (N = 1: Rice). Far above the noise its standard
deviation is that of the part in phase with the signal, sqrt(v/2); without signal it is smaller (by 0.655 for N = 1,
0.70 for N = 8) and the value is biased upwards.

Reference: Gudbjartsson 1995, doi 10.1002/mrm.1910340618; Koay 2006, doi 10.1016/j.jmr.2006.01.016.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from scipy.special import gammaln, hyp1f1
from torch import Tensor
from torch.nn.functional import conv2d, pad

_STEPS = 512
_FAR_ABOVE = 1e4
"""Squared signal-to-noise ratio from which on a magnitude varies like its noise, whatever the exact value."""
_PLUS = ((0.0, 1.0, 0.0), (1.0, 2.0, 1.0), (0.0, 1.0, 0.0))
_BINOMIAL = tuple(tuple(float(a * b) for b in (1, 4, 6, 4, 1)) for a in (1, 4, 6, 4, 1))


def root_sum_of_squares(coils: Complex64[Tensor, "frames coils z y x"]) -> Complex64[Tensor, "frames z y x"]:
    """Magnitude of all coils together, as a complex image."""
    return coils.abs().square().sum(1).sqrt().to(torch.complex64)


def magnitude_deviation(
    magnitude: Float32[Tensor, "*frames y x"], variance: Float32[Tensor, "*frames y x"], n_channels: int | float = 1
) -> Float32[Tensor, "*frames y x"]:
    """Standard deviation of a magnitude, in its own units.

    The signal behind a magnitude m is estimated by `A^2 = m^2 - N v`, which is unbiased (unlike m itself). One pixel
    says little about its own A when signal and noise are alike, so it is averaged over those of the 5 x 5 pixels around
    it that are equally bright within the noise. Plain averaging would blur bright tissue into thin dark bone and
    overestimate the deviation there.

    Args:
        magnitude: magnitude images.
        variance: `E|n|^2` of the complex noise of one channel in each pixel; 0 where the image is zero by construction.
        n_channels: channels combined by root sum of squares; 1 for a complex image. Half of it where the noise has only
            the part in phase with the signal (folded normal instead of Rice), and in between where the other part is
            smaller; `variance` is then twice that of the part in phase.
    """
    known = variance > 0
    ratio = magnitude.square() / torch.where(known, variance, 1.0) - n_channels
    ratio = torch.where(known, ratio.clamp(max=_FAR_ABOVE), 0.0)
    y, x = ratio.shape[-2:]
    smooth = _average_alike(ratio.reshape(-1, 1, y, x), known.reshape(-1, 1, y, x).float(), n_channels)
    signal = (2 * smooth.reshape(ratio.shape)).clamp(min=0).sqrt()
    return (variance / 2).sqrt() * _lookup(signal, n_channels)


def _average_alike(
    ratio: Float32[Tensor, "n 1 y x"], known: Float32[Tensor, "n 1 y x"], n_channels: int | float
) -> Float32[Tensor, "n 1 y x"]:
    """Mean of `A^2 / v` over neighbours that have the same within its noise, whose variance is `N + 2 A^2 / v`."""
    guide = _weighted_mean(ratio, known, _PLUS)
    width = 1.2 * (n_channels + 2 * _weighted_mean(ratio, known, _BINOMIAL).clamp(min=0)).sqrt()
    total, weights = torch.zeros_like(ratio), torch.zeros_like(ratio)
    y, x = ratio.shape[-2:]
    padded = [pad(values, (2, 2, 2, 2)) for values in (ratio, guide, known)]
    for row in range(5):
        for column in range(5):
            value, its_guide, is_known = (each[..., row : row + y, column : column + x] for each in padded)
            distance = ((row - 2) ** 2 + (column - 2) ** 2) / 4
            weight = is_known * torch.exp(-((its_guide - guide) / width).square() - distance)
            total += weight * value
            weights += weight
    return total / weights.clamp(min=torch.finfo(torch.float32).tiny)


def _weighted_mean(values: Tensor, known: Tensor, kernel: Sequence[Sequence[float]]) -> Tensor:
    """Mean over a neighbourhood, of what is known."""
    weights = torch.tensor(kernel, device=values.device)[None, None]
    margin = len(kernel) // 2
    total, share = conv2d(values * known, weights, padding=margin), conv2d(known, weights, padding=margin)
    return total / share.clamp(min=torch.finfo(torch.float32).tiny)


def _lookup(signal: Tensor, n_channels: int | float) -> Tensor:
    """Factor to sqrt(v/2) at signals in units of sqrt(v/2), by linear interpolation."""
    values, reach = _factors(n_channels)
    table = torch.from_numpy(values).to(signal.device)
    position = signal.clamp(max=reach) * ((_STEPS - 1) / reach)
    lower = position.long().clamp(0, _STEPS - 2)  # not finite: stays so in `part`, and must not index outside
    part = position - lower
    return table[lower] * (1 - part) + table[lower + 1] * part


@cache
def _factors(n_channels: int | float) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], float]:
    """Standard deviation of a noncentral chi variable with parts of variance 1, on a grid of noncentralities; its end.

    `sigma_m^2 = 2N + a^2 - mean^2`, `mean = sqrt(2) Gamma(N + 1/2) / Gamma(N) * 1F1(-1/2; N; -a^2/2)`.
    """
    reach = 8 * sqrt(n_channels) + 8
    a = np.linspace(0, reach, _STEPS)
    mean = np.sqrt(2) * np.exp(gammaln(n_channels + 0.5) - gammaln(n_channels)) * hyp1f1(-0.5, n_channels, -(a**2) / 2)
    return np.sqrt(np.maximum(2 * n_channels + a**2 - mean**2, 0)).astype(np.float32), reach
