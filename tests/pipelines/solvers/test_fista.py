"""The accelerated proximal gradient against closed forms, scipy, and the rate it is known for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from pipelines.solvers.fista import Minimum, fista

Gradient = Callable[[Tensor], Tensor]
Proximal = Callable[[Tensor, Tensor], Tensor]


def least_squares(matrices: Tensor, right: Tensor) -> tuple[Gradient, Tensor]:
    """Gradient of `|A x - b|^2 / 2` of each item, and its Lipschitz constants."""

    def gradient(x: Tensor) -> Tensor:
        residual = (matrices @ x[..., None])[..., 0] - right
        return (matrices.mH @ residual[..., None])[..., 0]

    return gradient, torch.linalg.matrix_norm(matrices, 2).square().double()


def soft(weight: float) -> Proximal:
    """Proximal map of `weight |x|_1`."""

    def proximal(point: Tensor, step: Tensor) -> Tensor:
        size = point.abs()
        return point * ((size - weight * step[:, None]).clamp(min=0) / size.clamp(min=1e-30))

    return proximal


def positive(point: Tensor, step: Tensor) -> Tensor:
    return point.clamp(min=0)


def free(point: Tensor, step: Tensor) -> Tensor:
    return point


def solve(
    gradient: Gradient,
    proximal: Proximal,
    start: Tensor,
    curvature: Tensor,
    iterations: int = 2000,
    tolerance: float = 1e-12,
) -> Minimum:
    return fista(gradient, proximal, start, curvature=curvature, iterations=iterations, tolerance=tolerance)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_soft_threshold_solves_the_lasso_of_an_orthonormal_matrix(generator: torch.Generator, dtype: torch.dtype):
    matrix, _ = torch.linalg.qr(torch.randn((2, 12, 12), dtype=dtype, generator=generator))
    right = torch.randn((2, 12), dtype=dtype, generator=generator)
    gradient, curvature = least_squares(matrix, right)
    found = solve(gradient, soft(0.3), torch.zeros_like(right), curvature)
    expected = soft(0.3)((matrix.mH @ right[..., None])[..., 0], torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-10)
    assert bool(found.has_converged.all())


def test_non_negative_least_squares_equals_scipy(generator: torch.Generator):
    matrix = torch.randn((3, 20, 8), dtype=torch.float64, generator=generator)
    right = torch.randn((3, 20), dtype=torch.float64, generator=generator)
    gradient, curvature = least_squares(matrix, right)
    found = solve(gradient, positive, torch.zeros((3, 8), dtype=torch.float64), curvature, iterations=20_000)
    for item in range(3):
        expected, _ = nnls(matrix[item].numpy(), right[item].numpy())
        np.testing.assert_allclose(found.x[item], expected, atol=1e-8)


def test_optimality_of_an_ill_conditioned_lasso(generator: torch.Generator):
    matrix = torch.randn((1, 40, 60), dtype=torch.float64, generator=generator) * torch.logspace(0, -2, 60)
    right = torch.randn((1, 40), dtype=torch.float64, generator=generator)
    gradient, curvature = least_squares(matrix, right)
    found = solve(gradient, soft(0.1), torch.zeros((1, 60), dtype=torch.float64), curvature, iterations=50_000)
    slope = gradient(found.x)[0]
    is_zero = found.x[0] == 0
    # 0 lies in grad f + 0.1 sign(x).
    assert float((slope[is_zero].abs() - 0.1).max()) < 1e-8
    torch.testing.assert_close(slope[~is_zero], -0.1 * found.x[0][~is_zero].sign(), rtol=0, atol=1e-8)


def test_it_keeps_its_bound_and_is_faster_than_plain_steps(generator: torch.Generator):
    scales = torch.logspace(0, -3, 200, dtype=torch.float64)[None]
    right = torch.randn((1, 200), dtype=torch.float64, generator=generator)

    def objective(x: Tensor) -> float:
        return float((scales * x - right).square().sum() / 2)

    def gradient(x: Tensor) -> Tensor:
        return scales * (scales * x - right)

    start, curvature = torch.zeros_like(right), torch.ones(1, dtype=torch.float64)
    distance = float((right / scales).square().sum())
    for k in (1, 10, 30, 100):
        found = solve(gradient, free, start, curvature, iterations=k, tolerance=0.0)
        assert objective(found.x) <= 2 * distance / (k + 1) ** 2
    plain = start
    for _ in range(100):
        plain = plain - gradient(plain)
    assert objective(found.x) < 0.75 * objective(plain)


def test_an_item_that_turns_begins_anew_and_converges_linearly(generator: torch.Generator):
    scales = torch.linspace(0.03, 1, 50, dtype=torch.float64)[None]
    right = torch.randn((1, 50), dtype=torch.float64, generator=generator)

    def gradient(x: Tensor) -> Tensor:
        return scales * (scales * x - right)

    found = solve(gradient, free, torch.zeros_like(right), torch.ones(1, dtype=torch.float64), iterations=1000)
    assert int(found.restarts) > 0
    # Without restarts 5e-3 after as many iterations.
    torch.testing.assert_close(found.x, right / scales, rtol=1e-8, atol=0)


def test_each_item_gives_what_it_gives_alone(generator: torch.Generator):
    matrix = torch.randn((3, 10, 6), dtype=torch.float64, generator=generator)
    right = torch.randn((3, 10), dtype=torch.float64, generator=generator) * torch.tensor([[1.0], [10.0], [0.0]])
    gradient, curvature = least_squares(matrix, right)
    zeros = torch.zeros((3, 6), dtype=torch.float64)
    together = solve(gradient, soft(0.2), zeros, curvature, tolerance=1e-6)
    for item in range(3):
        one, constant = least_squares(matrix[item : item + 1], right[item : item + 1])
        alone = solve(one, soft(0.2), zeros[:1], constant, tolerance=1e-6)
        torch.testing.assert_close(together.x[item], alone.x[0], rtol=0, atol=1e-12)
        assert together.iterations[item] == alone.iterations[0]
    assert together.x[2].tolist() == [0.0] * 6


def test_it_stops_when_told(generator: torch.Generator):
    right = torch.randn((1, 4), dtype=torch.float64, generator=generator)
    gradient, curvature = least_squares(torch.eye(4, dtype=torch.float64)[None] * 0.5, right)
    answers = iter([False, False, True])
    found = fista(
        gradient, free, torch.zeros_like(right), curvature=4 * curvature, iterations=9, tolerance=0.0,
        should_stop=lambda: next(answers),
    )  # fmt: skip
    assert found.iterations.tolist() == [2]
    assert not bool(found.has_converged)
