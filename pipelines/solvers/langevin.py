"""Samples of a density `exp(-E(x))` by the unadjusted Langevin algorithm, several chains of several items at once.

    x <- x - t grad E(x) + sqrt(2 t) n,    n standard normal.

E is in nats, so the temperature is 1. There is no acceptance test (an energy per proposal would cost more than it
corrects): with step t the stationary density is a little wide. A direction of curvature a has the variance
`1 / (a (1 - t a / 2))` instead of `1 / a`; t has to stay below 2 over the largest curvature.

Knows no MRI, and no clock: `should_stop` does.

Reference: Roberts and Tweedie 1996, doi 10.2307/3318418; Welford 1962, doi 10.1080/00401706.1962.10490022 (running
variance); Chan, Golub and LeVeque 1983, doi 10.1080/00031305.1983.10483115 (of groups of samples).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipelines.solvers.chain_diagnostics import effective_sample_size, potential_scale_reduction


@dataclass(frozen=True, slots=True)
class Samples:
    """What the chains say of the density.

    Attributes:
        mean: `(items, ...)` in float64, over all kept samples of all chains; not a number when none was kept.
        variance: the same of the variance; not a number with fewer than two samples.
        chain_means: `(chains, items, ...)`.
        last: where each chain is, `(chains, items, ...)`; more samples may start from there.
        kept: samples kept of each chain.
        scale_reduction: R-hat of each feature, see `pipelines.solvers.chain_diagnostics`.
        effective_size: effective number of samples of each feature, over all chains.
        finished: False when `should_stop` ended it early.
    """

    mean: Tensor
    variance: Tensor
    chain_means: Tensor
    last: Tensor
    kept: int
    scale_reduction: Float64[Tensor, "items features"]
    effective_size: Float64[Tensor, "items features"]
    finished: bool


def langevin(
    gradient: Callable[[Tensor], Tensor],
    start: Float[Tensor, "chains items *shape"],
    step: Float[Tensor, "items"],
    *,
    burn_in: int,
    samples: int,
    thinning: int,
    generators: Sequence[torch.Generator],
    reduction: Callable[[Tensor], Tensor],
    reflect: Callable[[Tensor], Tensor] | None = None,
    observe: Callable[[Tensor], Tensor] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Samples:
    """Run `burn_in + samples * thinning` steps of all chains.

    Args:
        gradient: grad E of all chains, `(chains, items, ...)` in and out.
        start: where the chains start; for R-hat to mean something they start further apart than the density is wide.
        step: t of each item.
        burn_in: steps before the first sample can be kept.
        samples: kept of each chain.
        thinning: steps from one kept sample to the next.
        generators: one an item, on the CPU: what an item gets depends neither on the device nor on the items beside it.
        reduction: the features whose convergence is watched, `(chains, items, ...)` to `(chains, items, features)`;
            they are kept for each sample, so for images rather `block_means` than the pixels.
        reflect: brings a chain that has left its domain back after each step (`torch.abs` for non-negative images).
        observe: what mean, variance and features are of, as a function of the chains, in their shape; the chains
            themselves by default.
        should_stop: asked before each step; True ends the chains with the samples kept so far.
    """
    x = start.clone()
    per_item = step.to(x.device, x.dtype).view(1, -1, *(1 for _ in x.shape[2:]))
    noise_size = torch.sqrt(2 * per_item)
    moments = _Moments(x)
    features: list[Tensor] = []
    finished = True
    for number in range(1, burn_in + samples * thinning + 1):
        if should_stop is not None and should_stop():
            finished = False
            break
        noise = _normal(x, generators)
        # A new tensor at first: `gradient` may have kept the one it got.
        x = torch.addcmul(x, gradient(x), per_item, value=-1).addcmul_(noise, noise_size)
        if reflect is not None:
            x = reflect(x)
        if number > burn_in and (number - burn_in) % thinning == 0:
            seen = x if observe is None else observe(x)
            moments.add(seen)
            features.append(reduction(seen).to(torch.float64))
    series = torch.stack(features) if features else reduction(x).to(torch.float64)[None][:0]
    mean, variance = moments.over_all()
    return Samples(
        mean,
        variance,
        moments.chain_means(),
        x,
        moments.kept,
        potential_scale_reduction(series),
        effective_sample_size(series),
        finished,
    )


class _Moments:
    """Running mean of each chain and sum of squared deviations over all chains, in double precision."""

    def __init__(self, like: Tensor) -> None:
        self.kept = 0
        self._chains = like.shape[0]
        self._chain_means = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        self._mean = torch.zeros(like.shape[1:], dtype=torch.float64, device=like.device)
        self._squares = torch.zeros_like(self._mean)

    def add(self, x: Tensor) -> None:
        """Count one sample of each chain."""
        wide = x.to(torch.float64)
        here = wide.mean(0)
        before = self.kept * self._chains
        self.kept += 1
        apart = here - self._mean
        self._squares += (wide - here).square().sum(0) + apart.square() * (before * self._chains / self._count)
        self._mean += apart * (self._chains / self._count)
        self._chain_means += (wide - self._chain_means) / self.kept

    @property
    def _count(self) -> int:
        return self.kept * self._chains

    def over_all(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all samples of all chains."""
        mean = self._mean if self._count > 0 else torch.full_like(self._mean, torch.nan)
        variance = self._squares / (self._count - 1) if self._count > 1 else torch.full_like(mean, torch.nan)
        return mean, variance

    def chain_means(self) -> Tensor:
        """Mean of each chain."""
        return self._chain_means if self.kept > 0 else torch.full_like(self._chain_means, torch.nan)


def _normal(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers in the shape of `(chains, items, ...)`, each item's from its own generator."""
    shape = (like.shape[0], *like.shape[2:])
    drawn = [torch.randn(shape, dtype=like.dtype, generator=generator) for generator in generators]
    return torch.stack(drawn, dim=1).to(like.device)
