"""Do several chains of samples agree, and how many independent samples are they worth?

Knows no sampler: it looks at series of numbers (features), each recorded along each chain.

Reference: Gelman and Rubin 1992, doi 10.1214/ss/1177011136 (potential scale reduction); Geyer 1992,
doi 10.1214/ss/1177011137 (where to cut the autocorrelations); Vehtari et al. 2021, doi 10.1214/20-BA1221 (split chains,
effective sample size over chains).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

LEAST_SAMPLES = 4
"""A chain: with less, half a chain has no variance."""


def potential_scale_reduction(
    series: Float64[Tensor, "samples chains items features"],
) -> Float64[Tensor, "items features"]:
    """R-hat with each chain split in two: the root of total over within-chain variance.

    1 when all half chains have the same mean and variance; above 1.1 they have not mixed, or one still drifts. Features
    that do not vary at all have 1, those that vary between chains only infinity. Not a number with fewer than
    `LEAST_SAMPLES` samples.
    """
    if series.shape[0] < LEAST_SAMPLES:
        return torch.full(series.shape[2:], torch.nan, dtype=torch.float64, device=series.device)
    half = series.shape[0] // 2
    split = torch.cat([series[:half], series[-half:]], dim=1)
    within, total = _variances(split)
    ratio = torch.sqrt(total / within)
    return torch.where(total == 0, 1.0, ratio)


def effective_sample_size(
    series: Float64[Tensor, "samples chains items features"],
) -> Float64[Tensor, "items features"]:
    """Number of independent samples whose mean varies as that of all chains together.

    Autocorrelations are summed in pairs of lags until a pair is not positive, none counting more than the one before.
    A feature that does not vary is worth all samples. Not a number with fewer than `LEAST_SAMPLES` samples.
    """
    samples, chains = series.shape[:2]
    if samples < LEAST_SAMPLES:
        return torch.full(series.shape[2:], torch.nan, dtype=torch.float64, device=series.device)
    _, total = _variances(series)
    covariance = _autocovariance(series).mean(1)
    within = covariance[0] * samples / (samples - 1)
    varies = total > 0
    correlation = 1 - (within - covariance) / torch.where(varies, total, 1.0)
    correlation[0] = 1
    even = samples - samples % 2
    pairs = correlation[0:even:2] + correlation[1:even:2]
    counted = torch.cumprod(pairs > 0, dim=0)
    falling = torch.cummin(pairs, dim=0).values
    time = 2 * (falling * counted).sum(0) - 1
    # Samples that alternate are worth more than independent ones; in short series that is mostly chance.
    time = time.clamp(min=1 / max(1.0, math.log10(samples * chains)))
    return samples * chains / torch.where(varies, time, 1.0)


def block_means(images: Tensor, blocks: int = 8) -> Tensor:
    """Means over `blocks x blocks` equal parts of images `(chains, items, y, x)`, as `(chains, items, features)`.

    Single pixels say little about a few dozens of samples; block means are what moves slowest.
    """
    rows, columns = images.shape[-2:]
    return adaptive_avg_pool2d(images, (min(blocks, rows), min(blocks, columns))).flatten(2)


def _variances(series: Tensor) -> tuple[Tensor, Tensor]:
    """Mean variance within a chain, and the estimate of the variance of all: the former plus that of the means."""
    samples = series.shape[0]
    within = series.var(dim=0).mean(0)
    between = series.mean(0).var(dim=0) if series.shape[1] > 1 else torch.zeros_like(within)
    return within, within * (samples - 1) / samples + between


def _autocovariance(series: Tensor) -> Tensor:
    """Of each lag along the first axis, over the number of samples, by FFT with zeros behind."""
    samples = series.shape[0]
    centred = series - series.mean(0)
    spectrum = torch.fft.rfft(centred, n=2 * samples, dim=0)
    covariance: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * samples, dim=0)[:samples]
    return covariance / samples
