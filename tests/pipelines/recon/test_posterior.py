"""Samples of posteriors that are Gaussian, against the dense solution."""

from itertools import count, pairwise

import pytest
import torch
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.operators.plane_data import CartesianData
from pipelines.recon.joint_problem import JointProblem, unit_maps
from pipelines.recon.posterior import LANGEVIN, QUICK, ChainLengths, Posterior, sample_posterior, smooth

ROWS, COLUMNS, COILS = 6, 5, 2
PIXELS = ROWS * COLUMNS
CENTRE = 4.0
STIFFNESS = torch.linspace(4, 9, PIXELS).view(ROWS, COLUMNS)
"""Of a prior that wants every pixel to be `CENTRE`, far from 0, where nothing is cut off."""
LONG = ChainLengths("long", 8, 60, 120, 6)


def complex_noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


MAPS = unit_maps(complex_noise(1, COILS, ROWS, COLUMNS, seed=1))


class Gaussian:
    """A prior of which everything is known."""

    @staticmethod
    def value(u: Tensor) -> Tensor:
        return (STIFFNESS * (u - CENTRE).square()).sum((1, 2), dtype=torch.float64) / 2

    @classmethod
    def value_and_gradient(cls, u: Tensor) -> tuple[Tensor, Tensor]:
        return cls.value(u), STIFFNESS * (u - CENTRE)


def measure(items: int, acceleration: int, noise_std: float) -> tuple[Tensor, Tensor]:
    """K-space and how often its points were measured; the items differ."""
    image = CENTRE + 0.3 * torch.randn((items, 1, ROWS, COLUMNS), generator=torch.Generator().manual_seed(2))
    counts = torch.zeros(items, ROWS, COLUMNS)
    counts[:, ::acceleration] = 1
    kspace = to_kspace(image * MAPS) + noise_std * complex_noise(items, COILS, ROWS, COLUMNS, seed=3)
    return kspace * counts[:, None], counts


def problem_of(kspace: Tensor, counts: Tensor, noise_std: float, weight: float) -> JointProblem:
    data = CartesianData.of_kspace(kspace, counts, noise_std)
    smoothness = torch.ones(len(kspace), dtype=torch.float64)
    maps = MAPS.expand(len(kspace), -1, -1, -1)
    return JointProblem(data, Gaussian.value_and_gradient, Gaussian.value, weight, smoothness, maps)


def curvature_of(noise_std: float, weight: float) -> float:
    return 2 / noise_std**2 + weight * float(STIFFNESS.max())


def sample(
    kspace: Tensor,
    counts: Tensor,
    noise_std: float = 0.5,
    *,
    weight: float = 1.0,
    lengths: ChainLengths = LONG,
    seeds: tuple[int, ...] | None = None,
    prior_noise: float = 0.0,
    should_stop=None,
) -> Posterior:
    items = len(kspace)
    return sample_posterior(
        problem_of(kspace, counts, noise_std, weight),
        torch.full((items, ROWS, COLUMNS), CENTRE),
        MAPS.expand(items, -1, -1, -1),
        torch.full((items,), curvature_of(noise_std, weight), dtype=torch.float64),
        lengths,
        seeds or tuple(range(items)),
        spread_by=torch.full((items,), 0.3),
        prior_noise=prior_noise,
        should_stop=should_stop,
    )


def dense(kspace: Tensor, counts: Tensor, noise_std: float, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean of the posterior and its precision, of one item."""
    unit = torch.eye(PIXELS, dtype=torch.complex128).view(PIXELS, 1, ROWS, COLUMNS)
    rows = (to_kspace(unit * MAPS) * counts).reshape(PIXELS, -1)
    stiffness = weight * torch.diag(STIFFNESS.flatten().double())
    precision = 2 / noise_std**2 * (rows.conj() @ rows.mT).real + stiffness
    towards = 2 / noise_std**2 * (rows.conj() @ kspace.flatten().to(torch.complex128)).real
    return torch.linalg.solve(precision, towards + stiffness.sum(1) * CENTRE), precision


@pytest.mark.parametrize(("acceleration", "weight"), [(1, 1.0), (2, 1.0), (3, 0.5)])
def test_mean_and_deviation_are_those_of_the_dense_posterior(acceleration: int, weight: float):
    kspace, counts = measure(1, acceleration, 0.5)
    mean, precision = dense(kspace[0], counts[0], 0.5, weight)
    found = sample(kspace, counts, weight=weight)

    # With a step of half the inverse of the largest curvature the stiffest directions are a third too wide.
    step = 0.5 / curvature_of(0.5, weight)
    wide = torch.linalg.inv(precision @ (torch.eye(PIXELS) - step / 2 * precision))
    for covariance, bound in ((wide, 0.05), (torch.linalg.inv(precision), 0.2)):
        expected = smooth(covariance.diagonal().view(1, ROWS, COLUMNS).float()).sqrt()
        torch.testing.assert_close(found.deviation, expected, rtol=bound, atol=0)
    deviation = wide.diagonal().sqrt().view(ROWS, COLUMNS)
    apart = (found.mean[0] - mean.view(ROWS, COLUMNS)) / deviation
    # About 500 independent samples: the mean is known to 0.05 deviations.
    assert float(apart.square().mean().sqrt()) < 0.1
    assert float(found.scale_reduction) < 1.05
    assert 200 < float(found.effective_size) <= 3000
    assert found.lengths == LONG


def test_images_are_freed_from_the_noise_of_the_prior():
    kspace, counts = measure(1, 2, 0.5)
    mean, precision = dense(kspace[0], counts[0], 0.5, 2.0)
    level = 0.25
    found = sample(kspace, counts, weight=2.0, prior_noise=level)
    # Tweedie's step of the prior itself, whatever its weight.
    kept = 1 - level**2 * STIFFNESS.flatten().double()
    step = 0.5 / curvature_of(0.5, 2.0)
    covariance = torch.linalg.inv(precision @ (torch.eye(PIXELS) - step / 2 * precision))
    variance = (kept.square() * covariance.diagonal()).view(1, ROWS, COLUMNS).float()
    torch.testing.assert_close(found.deviation, smooth(variance).sqrt(), rtol=0.06, atol=0)
    expected = (mean * kept + (1 - kept) * CENTRE).view(ROWS, COLUMNS).float()
    torch.testing.assert_close(found.mean[0], expected, rtol=0, atol=0.05)


def test_deviation_grows_with_noise_and_with_acceleration():
    grown: list[float] = []
    for acceleration, noise_std in ((1, 0.3), (1, 0.6), (2, 0.6), (3, 0.6)):
        kspace, counts = measure(1, acceleration, noise_std)
        found = sample(kspace, counts, noise_std, lengths=ChainLengths("short", 8, 40, 40, 5))
        grown.append(float(found.deviation.mean()))
    assert all(1.05 * before < after for before, after in pairwise(grown)), grown


def test_items_do_not_touch_each_other_and_seeds_are_their_own():
    kspace, counts = measure(3, 2, 0.5)
    short = ChainLengths("short", 3, 5, 6, 2)
    together = sample(kspace, counts, lengths=short, seeds=(4, 5, 6))
    for item in range(3):
        alone = sample(kspace[item : item + 1], counts[item : item + 1], lengths=short, seeds=(4 + item,))
        torch.testing.assert_close(alone.mean[0], together.mean[item], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.deviation[0], together.deviation[item], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.samples[:, 0], together.samples[:, item], rtol=1e-5, atol=1e-5)
    other = sample(kspace[:1], counts[:1], lengths=short, seeds=(5,))
    assert not torch.allclose(other.mean[0], together.mean[0], atol=1e-3)


def test_the_same_input_gives_the_same_bytes():
    kspace, counts = measure(2, 2, 0.5)
    one, other = (sample(kspace, counts, lengths=QUICK) for _ in range(2))
    for name in ("mean", "deviation", "samples", "scale_reduction", "effective_size"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert one.samples.shape == (QUICK.chains, 2, ROWS, COLUMNS)


@pytest.mark.parametrize("after", [0, 3, 199, 201, 215, 225])
def test_chains_that_end_early_still_tell_a_deviation_and_say_so(after: int):
    kspace, counts = measure(1, 2, 0.5)
    calls = count()
    found = sample(kspace, counts, lengths=LANGEVIN, should_stop=lambda: next(calls) >= after)
    assert found.lengths.name == "quick"
    assert found.lengths.chains == LANGEVIN.chains
    _, precision = dense(kspace[0], counts[0], 0.5)
    expected = torch.linalg.inv(precision).diagonal().sqrt().mean()
    assert float(found.deviation.mean()) == pytest.approx(float(expected), rel=0.35)
    assert bool(torch.isfinite(found.mean).all())
    assert bool(torch.isfinite(found.scale_reduction).all())


def test_nearly_finished_chains_keep_what_they_have():
    kspace, counts = measure(1, 2, 0.5)
    calls = count()
    lengths = ChainLengths("long", 4, 10, 20, 2)
    cut = sample(kspace, counts, lengths=lengths, should_stop=lambda: next(calls) >= 40)
    direct = sample(kspace, counts, lengths=ChainLengths("short", 4, 10, 15, 2))
    assert torch.equal(cut.mean, direct.mean)
    assert cut.lengths.name == "quick"


def test_without_a_prior_the_data_alone_count():
    kspace, counts = measure(1, 1, 0.5)
    found = sample(kspace, counts, weight=0.0, prior_noise=0.25, lengths=LONG)
    # Real images of unit maps: variance noise^2 / 2, a third wider.
    assert float(found.deviation.mean()) == pytest.approx(0.5 / 2**0.5 * (1 / 0.75) ** 0.5, rel=0.05)


def test_smoothing_keeps_constants_and_the_sum_of_what_is_inside():
    constant = torch.full((2, 9, 7), 0.3)
    torch.testing.assert_close(smooth(constant), constant)
    point = torch.zeros(1, 21, 21)
    point[0, 10, 10] = 1
    assert float(smooth(point).sum()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(smooth(torch.ones(1, 1, 3)), torch.ones(1, 1, 3))
