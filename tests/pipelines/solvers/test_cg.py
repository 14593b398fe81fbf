"""Conjugate gradients against dense solutions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.solvers.cg import conjugate_gradients


def positive_definite(generator: torch.Generator, items: int, n: int, dtype: torch.dtype, shift: float) -> Tensor:
    factor = torch.randn(items, n, n, dtype=dtype, generator=generator)
    return factor @ factor.mH / n + shift * torch.eye(n, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 12),
    st.sampled_from([torch.float32, torch.complex64, torch.float64, torch.complex128]),
    st.integers(0, 2**31),
)
def test_solution_equals_the_dense_one(items: int, n: int, dtype: torch.dtype, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = positive_definite(generator, items, n, dtype, 0.5)
    right_side = torch.randn(items, n, dtype=dtype, generator=generator)
    result = conjugate_gradients(
        lambda v: (matrix @ v[..., None])[..., 0], right_side, iterations=4 * n + 10, tolerance=1e-6
    )
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = torch.linalg.solve(matrix.to(wide), right_side.to(wide))
    # The condition number is below 30, so a relative residual of 1e-6 leaves an error of at most 3e-5.
    gap = torch.linalg.vector_norm(result.solution - expected, dim=1) / torch.linalg.vector_norm(expected, dim=1)
    assert float(gap.max()) < 1e-4


def test_each_item_stops_by_itself_and_gives_what_it_gives_alone():
    matrices = torch.stack([torch.eye(6), torch.diag(torch.arange(1.0, 7.0)), torch.eye(6)])
    right_side = torch.ones(3, 6)
    right_side[2] = 0
    together = conjugate_gradients(
        lambda v: (matrices @ v[..., None])[..., 0], right_side, iterations=20, tolerance=1e-5
    )
    assert together.iterations.tolist() == [1, 6, 0]
    assert float(together.residual.max()) <= 1e-5
    for item in range(3):
        alone = conjugate_gradients(
            lambda v, item=item: v @ matrices[item], right_side[item : item + 1], iterations=20, tolerance=1e-5
        )
        torch.testing.assert_close(alone.solution[0], together.solution[item], rtol=1e-6, atol=1e-7)


def test_zero_right_side_gives_zero_without_a_step():
    result = conjugate_gradients(lambda v: v * 0, torch.zeros(2, 5), iterations=5, tolerance=1e-3)
    assert not bool(result.solution.any())
    assert result.iterations.tolist() == [0, 0]
    assert result.residual.tolist() == [0, 0]


def test_semi_definite_system_gives_the_least_norm_solution():
    result = conjugate_gradients(
        lambda v: v * torch.tensor([2.0, 1.0, 0.0]), torch.tensor([[4.0, 3.0, 0.0]]), iterations=9, tolerance=1e-6
    )
    torch.testing.assert_close(result.solution, torch.tensor([[2.0, 3.0, 0.0]]))


def test_null_direction_ends_without_nan():
    result = conjugate_gradients(lambda v: v * 0, torch.ones(1, 3), iterations=9, tolerance=1e-6)
    assert result.solution.tolist() == [[0, 0, 0]]
    assert result.residual.tolist() == [1]


def test_limit_of_iterations_holds_and_the_residual_is_the_true_one():
    matrix = torch.diag(torch.linspace(1, 100, 40, dtype=torch.float64))
    right_side = torch.ones(1, 40, dtype=torch.float64)
    result = conjugate_gradients(lambda v: v @ matrix, right_side, iterations=5, tolerance=1e-12)
    true = torch.linalg.vector_norm(right_side - result.solution @ matrix) / torch.linalg.vector_norm(right_side)
    assert result.iterations.tolist() == [5]
    assert float(result.residual[0]) == pytest.approx(float(true), rel=1e-9)


def test_items_may_have_any_shape():
    right_side = torch.randn(3, 2, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    result = conjugate_gradients(lambda v: 2 * v, right_side, iterations=3, tolerance=1e-6)
    torch.testing.assert_close(result.solution, right_side / 2)
