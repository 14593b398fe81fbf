"""Total variation in space and time: adjoint, and the optimality of its proximal map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.solvers.total_variation import (
    adjoint_differences,
    differences,
    shrink_total_variation,
    total_variation,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@given(
    frames=st.integers(1, 5),
    planes=st.integers(1, 3),
    y=st.integers(1, 7),
    x=st.integers(1, 7),
    temporal=st.floats(0, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_the_adjoint_is_the_adjoint(frames, planes, y, x, temporal, seed):
    images, parts = noise(frames, planes, y, x, seed=seed), noise(3, frames, planes, y, x, seed=seed + 1)
    left = torch.vdot(parts.flatten(), differences(images, temporal).flatten())
    right = torch.vdot(adjoint_differences(parts, temporal).flatten(), images.flatten())
    assert abs(left - right) <= 1e-12 * (1 + abs(left))


def test_the_value_of_a_known_series():
    images = torch.zeros(2, 1, 3, 3, dtype=torch.complex64)
    images[1, 0, 1, 1] = 2j
    # one step of 2 up in time, and in the second frame: the pixel itself has two, those before it one each
    assert float(total_variation(images, 3.0)) == pytest.approx(3 * 2 + 2 * 2**0.5 + 2 + 2)


def test_constant_series_stay_and_weights_of_time_act_on_time_alone():
    flat = torch.full((4, 1, 6, 5), 1 + 2j, dtype=torch.complex128)
    torch.testing.assert_close(shrink_total_variation(flat, 0.3, 5.0, None, iterations=20)[0], flat)
    still = noise(1, 1, 6, 5).expand(4, 1, 6, 5)
    few, many = (shrink_total_variation(still, 0.1, weight, None, iterations=2000)[0] for weight in (0.0, 5.0))
    torch.testing.assert_close(few, many, rtol=0, atol=1e-4)


def test_the_proximal_map_is_a_minimum():
    images, threshold, temporal = noise(4, 1, 8, 9), 0.4, 2.0

    def objective(at: Tensor) -> float:
        return float(threshold * total_variation(at, temporal) + (at - images).abs().square().sum() / 2)

    found, dual = shrink_total_variation(images, threshold, temporal, None, iterations=3000)
    least = objective(found)
    for seed in range(20):
        assert objective(found + 1e-2 * noise(4, 1, 8, 9, seed=seed + 10)) > least
    # No duality gap: the dual's value is |X|^2 / 2 - |X - t D^H p|^2 / 2, and |p| <= 1.
    assert float(dual.abs().square().sum(0).max()) <= 1 + 1e-12
    bound = float(images.abs().square().sum() - found.abs().square().sum()) / 2
    assert least == pytest.approx(bound, rel=1e-4)


def test_it_goes_on_from_the_dual_of_a_problem_nearby():
    images = noise(3, 1, 8, 8)
    exact, dual = shrink_total_variation(images, 0.3, 2.0, None, iterations=3000)
    nearby = images + 1e-3 * noise(3, 1, 8, 8, seed=5)
    cold = shrink_total_variation(nearby, 0.3, 2.0, None, iterations=5)[0]
    warm = shrink_total_variation(nearby, 0.3, 2.0, dual, iterations=5)[0]
    assert (warm - exact).norm() < 0.1 * (cold - exact).norm()
