"""Scale reduction and effective sample size on series whose answers are known."""

import pytest
import torch
from torch import Tensor

from pipelines.solvers.chain_diagnostics import block_means, effective_sample_size, potential_scale_reduction


def noise(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def autoregressive(samples: int, chains: int, correlation: float) -> Tensor:
    """Chains of `x <- c x + sqrt(1 - c^2) n` from their stationary density, one item with twenty features."""
    steps = noise(samples, chains, 1, 20)
    series = [steps[0]]
    for step in steps[1:]:
        series.append(correlation * series[-1] + (1 - correlation**2) ** 0.5 * step)
    return torch.stack(series)


def test_independent_samples_have_a_scale_reduction_of_one_and_count_in_full():
    series = noise(500, 4, 1, 20)
    assert float((potential_scale_reduction(series) - 1).abs().max()) < 0.02
    assert float(effective_sample_size(series).mean()) == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_correlated_samples_count_as_few_as_their_correlation_says(correlation: float):
    size = effective_sample_size(autoregressive(4000, 4, correlation))
    assert float(size.mean()) == pytest.approx(16000 * (1 - correlation) / (1 + correlation), rel=0.1)


def test_chains_with_means_apart_have_the_scale_reduction_of_the_formula():
    # Two chains of +1 and -1, each alternating by 0.1: within 0.01 n/(n-1), variance of the four half means 4/3.
    wobble = 0.1 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10)
    series = torch.stack([1 + wobble, -1 + wobble], dim=1)[:, :, None, None]
    within = 0.01 * 10 / 9
    expected = ((within * 9 / 10 + 4 / 3) / within) ** 0.5
    assert float(potential_scale_reduction(series)) == pytest.approx(expected, rel=1e-12)
    assert float(effective_sample_size(series)) < 3


def test_chain_that_drifts_is_seen_although_all_drift_alike():
    drift = torch.linspace(0, 5, 40, dtype=torch.float64)[:, None, None, None]
    assert float(potential_scale_reduction(drift + 0.1 * noise(40, 4, 1, 1))) > 1.5


def test_features_are_judged_each_by_itself():
    good, bad = noise(100, 3, 1, 1), noise(100, 3, 1, 1) + 5 * torch.arange(3.0)[None, :, None, None]
    ratio = potential_scale_reduction(torch.cat([good, bad], dim=3))[0]
    assert float(ratio[0]) < 1.05
    assert float(ratio[1]) > 2


def test_constant_features_have_converged_unless_the_chains_differ():
    same, apart = torch.ones(8, 2, 1, 1, dtype=torch.float64), torch.ones(8, 2, 1, 1, dtype=torch.float64)
    apart[:, 1] = 2
    ratio = potential_scale_reduction(torch.cat([same, apart], dim=3))
    assert ratio.tolist() == [[1, torch.inf]]
    assert float(effective_sample_size(same)) == 16


def test_too_few_samples_give_no_number():
    series = noise(3, 4, 2, 5)
    assert bool(potential_scale_reduction(series).isnan().all())
    assert bool(effective_sample_size(series).isnan().all())


def test_block_means_are_means_of_equal_parts():
    images = noise(2, 3, 16, 24)
    means = block_means(images)
    assert means.shape == (2, 3, 64)
    torch.testing.assert_close(means[1, 2, 9], images[1, 2, 2:4, 3:6].mean())
    assert block_means(images[..., :5, :1]).shape == (2, 3, 5)
