"""Langevin chains on densities whose moments are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
import torch
from torch import Tensor

from pipelines.solvers.langevin import Samples, langevin


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def per_pixel(x: Tensor) -> Tensor:
    return x.flatten(2)


def sample_gaussian(
    curvature: Tensor, centre: float, step: Sequence[float], seeds: Sequence[int], samples: int = 20
) -> Samples:
    """Chains on `E = curvature (x - centre)^2 / 2`, one curvature an item, from the centre; 600 pixels."""
    start = torch.full((8, len(curvature), 20, 30), centre)
    return langevin(
        lambda x: curvature.view(1, -1, 1, 1) * (x - centre),
        start,
        torch.tensor(step),
        burn_in=30,
        samples=samples,
        thinning=3,
        generators=seeded(*seeds),
        reduction=per_pixel,
    )


def test_gaussian_has_the_mean_and_the_variance_of_the_discrete_chain():
    curvature, step = torch.tensor([1.0, 25.0]), (0.5, 0.02)
    result = sample_gaussian(curvature, 3.0, step, (1, 2), samples=100)
    for item in range(2):
        a, t = float(curvature[item]), step[item]
        expected = 1 / (a * (1 - t * a / 2))
        assert float(result.variance[item].mean()) == pytest.approx(expected, rel=0.03)
        # Mean of 600 pixels, 8 chains, 100 samples that are correlated over at most two.
        assert float(result.mean[item].mean()) == pytest.approx(3.0, abs=4 * (2 * expected / 480_000) ** 0.5)


def test_mean_and_variance_are_those_of_all_kept_samples():
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.clone())
        return per_pixel(x)

    result = langevin(
        lambda x: x - 100,
        torch.full((3, 2, 4, 5), 100.0),
        torch.tensor([0.1, 0.2]),
        burn_in=2,
        samples=7,
        thinning=2,
        generators=seeded(1, 2),
        reduction=keep,
    )
    everything = torch.stack(kept).to(torch.float64)
    assert result.kept == len(everything) == 7
    torch.testing.assert_close(result.mean, everything.mean((0, 1)))
    torch.testing.assert_close(result.variance, everything.flatten(0, 1).var(0))
    torch.testing.assert_close(result.chain_means, everything.mean(0))
    assert torch.equal(result.last, kept[-1])


def test_mixed_chains_have_a_scale_reduction_near_one():
    result = sample_gaussian(torch.tensor([1.0]), 0.0, (0.5,), (3,), samples=100)
    assert float(result.scale_reduction.mean()) == pytest.approx(1, abs=0.01)
    assert float(result.scale_reduction.max()) < 1.1
    assert result.finished


def test_chains_stuck_in_two_wells_are_seen():
    # E = 50 (x^2 - 1)^2: a barrier of 50 nats between the wells at 1 and -1.
    start = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(4, 1, 1, 1).expand(4, 1, 3, 3)
    result = langevin(
        lambda x: 200 * x * (x.square() - 1),
        start,
        torch.tensor([5e-4]),
        burn_in=50,
        samples=50,
        thinning=2,
        generators=seeded(5),
        reduction=per_pixel,
    )
    assert float(result.scale_reduction.min()) > 1.5
    assert float(result.effective_size.max()) < 0.1 * 4 * 50


def test_same_seeds_give_the_same_bytes_and_others_do_not():
    curvature = torch.tensor([1.0, 4.0])
    first, second = (sample_gaussian(curvature, 0.0, (0.3, 0.1), (1, 2)) for _ in range(2))
    other = sample_gaussian(curvature, 0.0, (0.3, 0.1), (1, 3))
    assert torch.equal(first.last, second.last)
    assert torch.equal(first.variance, second.variance)
    assert torch.equal(first.mean[0], other.mean[0])
    assert not torch.equal(first.mean[1], other.mean[1])


def test_each_item_gives_what_it_gives_alone():
    together = sample_gaussian(torch.tensor([1.0, 4.0, 9.0]), 2.0, (0.3, 0.1, 0.05), (1, 2, 3))
    alone = sample_gaussian(torch.tensor([4.0]), 2.0, (0.1,), (2,))
    assert torch.equal(alone.last[:, 0], together.last[:, 1])
    # Sums over tensors of other shapes are taken in another order.
    for name in ("mean", "variance", "scale_reduction", "effective_size"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[1], rtol=1e-9, atol=1e-12)


def test_reflection_at_zero_gives_the_half_normal_density():
    result = langevin(
        lambda x: x,
        torch.ones(8, 1, 20, 30),
        torch.tensor([0.05]),
        burn_in=100,
        samples=60,
        thinning=5,
        generators=seeded(4),
        reduction=per_pixel,
        reflect=torch.abs,
    )
    assert bool((result.last >= 0).all())
    assert float(result.mean.mean()) == pytest.approx((2 / torch.pi) ** 0.5, rel=0.03)
    assert float(result.variance.mean()) == pytest.approx(1 - 2 / torch.pi, rel=0.06)


def test_start_is_left_as_it_is():
    start = torch.ones(2, 1, 3, 3)
    langevin(
        lambda x: x,
        start,
        torch.tensor([0.1]),
        burn_in=0,
        samples=4,
        thinning=1,
        generators=seeded(1),
        reduction=per_pixel,
    )
    assert torch.equal(start, torch.ones(2, 1, 3, 3))


@pytest.mark.parametrize(("steps", "kept"), [(20, 5), (12, 1), (3, 0), (0, 0)])
def test_should_stop_ends_with_what_was_kept(steps: int, kept: int):
    asked = count()
    result = langevin(
        lambda x: x,
        torch.ones(2, 1, 3, 3),
        torch.tensor([0.1]),
        burn_in=10,
        samples=50,
        thinning=2,
        generators=seeded(1),
        reduction=per_pixel,
        should_stop=lambda: next(asked) >= steps,
    )
    assert not result.finished
    assert result.kept == kept
    assert bool(result.mean.isnan().any()) == (kept == 0)
    assert result.scale_reduction.shape == (1, 9)
    assert bool(result.scale_reduction.isnan().all()) == (kept < 4)
