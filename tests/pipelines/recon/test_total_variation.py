"""The smooth total variation against its definition and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.recon.total_variation import TotalVariation


def noise(*shape: int, seed: int = 6) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(image: Tensor, weight: float, epsilon: float) -> float:
    """One image, pixel by pixel, in double precision."""
    total, rows = 0.0, image.to(torch.float64).tolist()
    for y, row in enumerate(rows):
        for x, here in enumerate(row):
            down = rows[y + 1][x] - here if y + 1 < len(rows) else 0.0
            right = row[x + 1] - here if x + 1 < len(row) else 0.0
            total += (down**2 + right**2 + epsilon**2) ** 0.5 - epsilon
    return weight * total


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.01, 1), st.integers(0, 2**31))
def test_value_is_the_definition(rows: int, columns: int, epsilon: float, seed: int):
    images = noise(2, rows, columns, seed=seed)
    prior = TotalVariation(3.0, epsilon)
    expected = torch.tensor([by_definition(image, 3.0, epsilon) for image in images], dtype=torch.float64)
    torch.testing.assert_close(prior.value(images), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(prior(images)[0], prior.value(images))


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_gradient_is_that_of_finite_differences(epsilon: float):
    prior, image = TotalVariation(2.0, epsilon), noise(1, 6, 5)
    gradient = prior(image)[1]
    for y in range(6):
        for x in range(5):
            moved = image[0].to(torch.float64).repeat(2, 1, 1)
            moved[0, y, x] += 1e-5
            moved[1, y, x] -= 1e-5
            slope = (by_definition(moved[0], 2.0, epsilon) - by_definition(moved[1], 2.0, epsilon)) / 2e-5
            assert float(gradient[0, y, x]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_gradient_is_single_and_value_double_precision():
    value, gradient = TotalVariation(1.0, 0.1)(noise(3, 8, 9))
    assert (value.dtype, gradient.dtype) == (torch.float64, torch.float32)
    assert gradient.shape == (3, 8, 9)


def test_constant_image_costs_nothing_and_an_edge_its_length_times_its_height():
    prior = TotalVariation(1.0, 1e-6)
    image = torch.zeros(2, 10, 8)
    image[1, :, 4:] = 0.5
    value, gradient = prior(image)
    assert float(value[0]) == 0
    assert float(value[1]) == pytest.approx(10 * 0.5, rel=1e-4)
    assert not bool(gradient[0].any())


def test_tiny_slopes_keep_their_digits():
    # 1e-4 over an epsilon of 1: the excess 5e-9 is below the resolution of float32 at 1.
    image = (1e-4 * torch.arange(10.0)).expand(1, 10, 10).contiguous()
    assert float(TotalVariation(1.0, 1.0).value(image)) == pytest.approx(90 * 0.5e-8, rel=1e-3)


def test_lipschitz_constant_of_the_gradient_is_reached_by_small_checkerboards():
    prior = TotalVariation(3.0, 0.5)
    board = 1e-4 * (-1.0) ** (torch.arange(40)[:, None] + torch.arange(40))
    ratio = torch.linalg.vector_norm(prior(board[None])[1]) / torch.linalg.vector_norm(board)
    assert 0.95 * 8 * 3.0 / 0.5 < float(ratio) <= 8 * 3.0 / 0.5
