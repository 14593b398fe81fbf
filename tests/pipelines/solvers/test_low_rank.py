"""Thresholding of singular values and of the temporal spectrum, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.solvers.low_rank import nuclear_norm, shrink_singular_values, shrink_temporal_spectrum, temporal_l1


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
def test_singular_values_are_those_of_the_decomposition_less_the_threshold(dtype: torch.dtype):
    matrices, threshold = noise(3, 5, 40, dtype=dtype), torch.tensor([0.0, 3.0, 100.0])
    shrunk = shrink_singular_values(matrices, threshold)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    expected = (left * (values - threshold[:, None]).clamp(min=0)[:, None]) @ right
    torch.testing.assert_close(shrunk, expected, rtol=0, atol=1e-9)
    assert not bool(shrunk[2].any())
    torch.testing.assert_close(nuclear_norm(matrices), values.sum(1), rtol=1e-10, atol=0)


def test_a_matrix_without_full_rank_or_of_zeros_is_no_trouble():
    low = noise(1, 4, 1) @ noise(1, 1, 30, seed=1)
    shrunk = shrink_singular_values(torch.cat([low, 0 * low]), torch.tensor([0.5, 0.5]))
    size = torch.linalg.matrix_norm(low)[0]
    torch.testing.assert_close(shrunk[0], low[0] * (1 - 0.5 / size), rtol=0, atol=1e-7)
    assert not bool(shrunk[1].any())


def test_single_precision_is_near_double_precision():
    matrices = noise(1, 24, 2000)
    shrunk = shrink_singular_values(matrices.to(torch.complex64), torch.tensor([30.0]))
    expected = shrink_singular_values(matrices, torch.tensor([30.0]))
    torch.testing.assert_close(shrunk.to(torch.complex128), expected, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0.01, 5), size=st.floats(1e-4, 1))
def test_no_matrix_nearby_has_a_lower_objective(seed: int, threshold: float, size: float):
    point, change = noise(1, 4, 9, seed=seed), size * noise(1, 4, 9, seed=seed + 1)
    limit = torch.tensor([threshold], dtype=torch.float64)

    def of_rank(z: Tensor) -> float:
        return float(threshold * nuclear_norm(z) + (z - point).abs().square().sum() / 2)

    def of_spectrum(z: Tensor) -> float:
        return float(threshold * temporal_l1(z) + (z - point).abs().square().sum() / 2)

    low, sparse = shrink_singular_values(point, limit), shrink_temporal_spectrum(point, limit)
    assert of_rank(low) <= of_rank(low + change) + 1e-6
    assert of_spectrum(sparse) <= of_spectrum(sparse + change) + 1e-9
    free = shrink_temporal_spectrum(point, limit, without_mean=True)
    moving = change - change.mean(1, keepdim=True)
    assert of_spectrum(free) <= of_spectrum(free + moving) + 1e-9
    assert float(free.mean(1).abs().max()) < 1e-12


def test_a_constant_has_one_temporal_frequency():
    frames = torch.full((1, 9, 4), 2.0 + 0j)
    assert float(temporal_l1(frames)) == pytest.approx(2.0 * 3 * 4)
    shrunk = shrink_temporal_spectrum(frames, torch.tensor([1.5]))
    torch.testing.assert_close(shrunk, torch.full_like(frames, 1.5))
