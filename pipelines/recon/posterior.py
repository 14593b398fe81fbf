"""How sure the image is: samples of the posterior of the image, given the data, the maps and the prior.

    p(u | y) = exp(-D(S u) - w R(u; s)) / Z

Langevin chains start at the most probable image with the prior's own noise added (that of the data for a prior that
knows of no noise: short chains keep much of what they start with). R is the energy of images with noise
of standard deviation s, so chains are as noisy as that; what is averaged is the image freed from it, `u - s^2 grad R`
(Tweedie), one more gradient for each kept sample.

A prior that knows of no noise (total variation) is sampled as it is.

The deviation is smoothed a little, because a few dozen samples say little about a single pixel, and scaled by what the
model's card has for this length of chains; `joint_ipalm` adds how far two priors disagree. Uncertainty of the maps is
not in it. An image without uncertainty is not finished: when a time limit leaves no time for chains, the few steps of
`QUICK` are made all the same.

Reference: Zach, Knoll, Pock 2023, doi 10.1109/TMI.2023.3288631.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor
from torch.nn.functional import conv2d, pad

from pipelines.recon.joint_problem import JointProblem
from pipelines.solvers.chain_diagnostics import block_means
from pipelines.solvers.items import spread
from pipelines.solvers.langevin import Samples, langevin

STEP_OVER_CONSTANT = 0.5
"""Step over one by the largest curvature met: the stiffest directions are a third too wide, others right."""

SMOOTHING_PIXELS = 1.5
"""Standard deviation of the Gaussian that deviations are smoothed with (their squares)."""


@dataclass(frozen=True, slots=True)
class ChainLengths:
    """How long to sample.

    Attributes:
        name: recorded with the image, and the mode of its calibration.
        chains: of each image.
        burn_in: steps before the first sample.
        samples: kept of each chain.
        thinning: steps from one to the next.
    """

    name: str
    chains: int
    burn_in: int
    samples: int
    thinning: int

    def __str__(self) -> str:
        """For the meta."""
        return f"{self.name}: {self.chains} chains, {self.burn_in} + {self.samples} x {self.thinning} steps"


LANGEVIN = ChainLengths("langevin", 8, 200, 30, 10)
QUICK = ChainLengths("quick", 4, 20, 4, 5)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What the samples say.

    Attributes:
        lengths: of the chains; those of `QUICK` where they had to end early.
        mean: of the image.
        deviation: standard deviation of a pixel, smoothed, not calibrated.
        samples: one of each chain.
        scale_reduction: R-hat of block means, the 90th percentile; not a number with too few samples.
        effective_size: effective number of samples, median of block means.
    """

    lengths: ChainLengths
    mean: Float32[Tensor, "items y x"]
    deviation: Float32[Tensor, "items y x"]
    samples: Float32[Tensor, "chains items y x"]
    scale_reduction: Float64[Tensor, "items"]
    effective_size: Float64[Tensor, "items"]


def sample_posterior(
    problem: JointProblem,
    image: Float32[Tensor, "items y x"] | Complex64[Tensor, "items y x"],
    maps: Complex64[Tensor, "items coils y x"],
    curvature: Float64[Tensor, "items"],
    lengths: ChainLengths,
    seeds: Sequence[int],
    *,
    spread_by: Float32[Tensor, "items"],
    prior_noise: float,
    should_stop: Callable[[], bool] | None = None,
) -> Posterior:
    """Sample the image (of a complex one the real part) with the maps held.

    Args:
        problem: D and w R at the smallest noise level.
        image: the most probable one; the imaginary part of a complex one is held, as the maps are.
        maps: of length 1.
        curvature: the largest curvature of D + w R.
        lengths: of the chains.
        seeds: of the random numbers of each item.
        spread_by: standard deviation of the noise that chains start with, of each item.
        prior_noise: s, 0 for a prior of images without noise.
        should_stop: ends the chains early; samples of fewer steps than `QUICK` asks for are not enough.
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = [torch.randn((lengths.chains, *image.shape[1:]), generator=generator) for generator in generators]
    real, imaginary = (image.real, image.imag) if image.is_complex() else (image, None)
    start = real + spread(spread_by, real) * torch.stack(noise, 1).to(image.device)

    def prior_gradient(chains: Tensor) -> Tensor:
        return problem.regulariser_gradient(chains.flatten(0, 1))[1].view_as(chains)

    def gradient(chains: Tensor) -> Tensor:
        data = torch.stack([problem.gradient_u(with_imaginary(chain), maps)[1].real for chain in chains])
        return data.add_(prior_gradient(chains))

    def with_imaginary(real: Tensor) -> Tensor:
        return real if imaginary is None else torch.complex(real, imaginary.expand_as(real).contiguous())

    def observe(chains: Tensor) -> Tensor:
        """What the image shows: its magnitude; the real part itself, whose sign counts, where that is all."""
        cleaned = without_noise(chains)
        return cleaned if imaginary is None else with_imaginary(cleaned.clamp(min=0)).abs()

    def without_noise(chains: Tensor) -> Tensor:
        if problem.prior_weight == 0 or prior_noise == 0:
            return chains
        return chains - prior_noise**2 / problem.prior_weight * prior_gradient(chains)

    def run(start: Tensor, lengths: ChainLengths, should_stop: Callable[[], bool] | None) -> Samples:
        return langevin(
            gradient,
            start,
            STEP_OVER_CONSTANT / curvature,
            burn_in=lengths.burn_in,
            samples=lengths.samples,
            thinning=lengths.thinning,
            generators=generators,
            reduction=block_means,
            observe=observe,
            should_stop=should_stop,
        )

    found = run(start, lengths, should_stop)
    if found.kept < min(lengths.samples, QUICK.samples):
        found = run(found.last, replace(QUICK, chains=lengths.chains), None)
    return Posterior(
        lengths if found.finished and found.kept == lengths.samples else replace(QUICK, chains=lengths.chains),
        found.mean.to(torch.float32).clamp(min=0),
        smooth(found.variance.to(torch.float32)).sqrt(),
        observe(found.last).clamp(min=0),
        _typical(found.scale_reduction, 0.9),
        _typical(found.effective_size, 0.5),
    )


def smooth(variance: Float32[Tensor, "items y x"]) -> Float32[Tensor, "items y x"]:
    """Gaussian mean over neighbours; edges are repeated."""
    reach = round(3 * SMOOTHING_PIXELS)
    reach = min(reach, variance.shape[-2] - 1, variance.shape[-1] - 1)
    distance = torch.arange(-reach, reach + 1, device=variance.device, dtype=variance.dtype)
    kernel = torch.exp(-(distance.square()) / (2 * SMOOTHING_PIXELS**2))
    kernel = kernel / kernel.sum()
    padded = pad(variance[:, None], (reach, reach, reach, reach), mode="replicate")
    return conv2d(conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def _typical(values: Float64[Tensor, "items features"], quantile: float) -> Float64[Tensor, "items"]:
    """A quantile over features; not a number where samples were too few."""
    return torch.quantile(values.clamp(max=1e9), quantile, dim=1)
