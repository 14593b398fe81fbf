"""The two-block iteration against closed forms and scipy, and what it promises on problems that are not convex."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from pipelines.solvers.ipalm import Minimum, StoppedBy, ipalm

Values = Callable[[Tensor], Tensor]


def none(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], dtype=torch.float64)


def half_square(x: Tensor) -> Tensor:
    return x.abs().square().flatten(1).sum(1, dtype=torch.float64) / 2


def stay(point: Tensor, step: Tensor) -> Tensor:
    return point


def positive(point: Tensor, step: Tensor) -> Tensor:
    return point.clamp(min=0)


class Problem:
    """A problem by its values; gradients by automatic differentiation; evaluations are counted."""

    def __init__(
        self,
        coupling: Callable[[Tensor, Tensor], Tensor],
        regulariser: Values = none,
        prox_u: Callable[[Tensor, Tensor], Tensor] = stay,
        prox_v: Callable[[Tensor, Tensor], Tensor] = stay,
        penalty_v: Values = none,
    ) -> None:
        self.coupling, self._regulariser = coupling, regulariser
        self.prox_u, self.prox_v = prox_u, prox_v
        self.penalty_u, self.penalty_v = none, penalty_v
        self.calls = dict.fromkeys(("value", "gradient_u", "gradient_v", "regulariser", "regulariser_gradient"), 0)

    def value(self, u: Tensor, v: Tensor) -> Tensor:
        self.calls["value"] += 1
        return self.coupling(u, v)

    def gradient_u(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["gradient_u"] += 1
        return differentiate(lambda x: self.coupling(x, v), u)

    def gradient_v(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["gradient_v"] += 1
        return differentiate(lambda x: self.coupling(u, x), v)

    def regulariser(self, u: Tensor) -> Tensor:
        self.calls["regulariser"] += 1
        return self._regulariser(u)

    def regulariser_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        self.calls["regulariser_gradient"] += 1
        return differentiate(self._regulariser, u)


def differentiate(function: Values, at: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient; of a complex tensor the derivative by the real part plus i times that by the imaginary."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        # The term that is zero makes a function that does not depend on its argument differentiable.
        value = function(at) + 0 * half_square(at)
    return value.detach(), torch.autograd.grad(value.sum(), at)[0]


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x[..., None])[..., 0]


def objective_is_monotone(result: Minimum, rounding: float) -> bool:
    """Whether no block's step raised the objective."""
    rows = torch.empty(2 * len(result.objective) - 1, result.objective.shape[1], dtype=torch.float64)
    rows[::2], rows[1::2] = result.objective, result.objective_between
    return bool((rows[1:] <= rows[:-1] + rounding * rows[:-1].abs()).all())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_convex_quadratic_gives_the_closed_form(generator: torch.Generator, dtype: torch.dtype):
    a, b = (torch.randn(3, 12, 5, dtype=dtype, generator=generator) for _ in range(2))
    y = torch.randn(3, 12, dtype=dtype, generator=generator)
    problem = Problem(
        lambda u, v: half_square(apply(a, u) + apply(b, v) - y),
        lambda u: 0.3 * half_square(u),
        prox_v=lambda point, step: point / (1 + 0.5 * step[:, None]),
        penalty_v=lambda v: 0.5 * half_square(v),
    )
    start = torch.zeros(3, 5, dtype=dtype)
    result = ipalm(problem, start, start, iterations=3000, tolerance=1e-8)
    both = torch.cat([a, b], dim=2)
    weight = torch.diag(torch.tensor([0.3] * 5 + [0.5] * 5, dtype=torch.float64)).to(dtype)
    expected = torch.linalg.solve(both.mH @ both + weight, (both.mH @ y[..., None])[..., 0])
    torch.testing.assert_close(torch.cat([result.u, result.v], dim=1), expected, rtol=1e-6, atol=1e-7)
    assert set(result.stopped_by) == {StoppedBy.TOLERANCE}
    assert objective_is_monotone(result, 1e-14)


def test_non_negative_least_squares_equals_scipy(generator: torch.Generator):
    matrix = torch.randn(4, 15, 8, dtype=torch.float64, generator=generator)
    y = torch.randn(4, 15, dtype=torch.float64, generator=generator)
    problem = Problem(lambda u, _: half_square(apply(matrix, u) - y), prox_u=positive)
    result = ipalm(
        problem, torch.ones(4, 8, dtype=torch.float64), torch.zeros(4, 1), iterations=2000, tolerance=1e-12, fix_v=True
    )
    expected = np.stack([nnls(matrix[item].numpy(), y[item].numpy())[0] for item in range(4)])
    assert (expected == 0).any(axis=1).all()
    torch.testing.assert_close(result.u, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


def bilinear(y: Tensor) -> Problem:
    """Factors of a product, u non-negative, with a regulariser that is not convex."""
    return Problem(
        lambda u, v: half_square(u * v - y),
        lambda u: torch.log1p(u.square()).sum(1, dtype=torch.float64),
        prox_u=positive,
        prox_v=lambda point, step: point / (1 + 0.1 * step[:, None]),
        penalty_v=lambda v: 0.1 * half_square(v),
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 100), st.sampled_from([torch.float32, torch.float64]))
def test_objective_never_rises_on_a_problem_that_is_not_convex(seed: int, scale: float, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    y = scale * torch.randn(3, 6, dtype=dtype, generator=generator)
    u, v = torch.rand(3, 6, dtype=dtype, generator=generator), torch.randn(3, 6, dtype=dtype, generator=generator)
    result = ipalm(bilinear(y), u, v, iterations=40, tolerance=0.0)
    assert objective_is_monotone(result, 40 * torch.finfo(dtype).eps)
    assert bool((result.objective[-1] < result.objective[0]).all())
    assert bool((result.u >= 0).all())


def test_last_objective_is_that_of_the_result(generator: torch.Generator):
    y = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    problem = bilinear(y)
    result = ipalm(problem, torch.ones_like(y), torch.ones_like(y), iterations=25, tolerance=0.0)
    there = problem.coupling(result.u, result.v) + problem.regulariser(result.u) + problem.penalty_v(result.v)
    torch.testing.assert_close(result.objective[-1], there, rtol=1e-12, atol=0)
    assert result.objective.shape == (26, 3)
    assert result.objective_between.shape == result.constants_u.shape == result.constants_v.shape == (25, 3)


def test_each_item_gives_what_it_gives_alone():
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([3.0, 10.0, 30.0], dtype=torch.float64)[:, None]
    y = scale * torch.randn(3, 6, dtype=torch.float64, generator=generator)
    start = torch.rand(3, 6, dtype=torch.float64, generator=generator)
    together = ipalm(bilinear(y), start, start, iterations=150, tolerance=1e-3)
    assert len(set(together.iterations.tolist())) == 3
    for item in range(3):
        one = slice(item, item + 1)
        alone = ipalm(bilinear(y[one]), start[one], start[one], iterations=150, tolerance=1e-3)
        assert torch.equal(alone.u[0], together.u[item])
        assert torch.equal(alone.v[0], together.v[item])
        steps = int(alone.iterations[0])
        assert int(together.iterations[item]) == steps
        assert torch.equal(alone.objective[:, 0], together.objective[: steps + 1, item])
        assert torch.equal(alone.next_constants[0][0], together.next_constants[0][item])
        assert (int(alone.restarts[0]), int(alone.refusals[0])) == (
            int(together.restarts[item]),
            int(together.refusals[item]),
        )
        assert bool((together.objective[steps:, item] == together.objective[steps, item]).all())


def test_inertia_makes_an_ill_conditioned_problem_faster_than_plain_steps():
    # Condition number 2500: the plain gradient lowers the slowest part by exp(-150/2500) in 150 steps.
    curvature = torch.logspace(0, np.log10(2500), 30, dtype=torch.float64)[None]
    problem = Problem(lambda u, _: half_square(curvature.sqrt() * (u - 1)))
    start = torch.zeros(1, 30, dtype=torch.float64)
    result = ipalm(problem, start, torch.zeros(1, 1), iterations=150, tolerance=0.0, fix_v=True)
    plain = start.clone()
    for _ in range(150):
        plain -= curvature * (plain - 1) / 2500
    assert float(result.objective[-1, 0]) < 0.01 * float(half_square(curvature.sqrt() * (plain - 1))[0])
    assert objective_is_monotone(result, 1e-14)


def test_inertia_that_would_raise_the_objective_is_given_up():
    # The inertia that slow directions need makes fast ones swing to the other side.
    curvature = torch.linspace(1, 50, 20, dtype=torch.float64)[None]
    problem = Problem(lambda u, _: half_square(curvature.sqrt() * (u - 1)))
    start = torch.zeros(1, 20, dtype=torch.float64)
    result = ipalm(problem, start, torch.zeros(1, 1), iterations=60, tolerance=0.0, fix_v=True)
    assert int(result.restarts[0]) > 0
    assert objective_is_monotone(result, 1e-14)
    torch.testing.assert_close(result.u, torch.ones_like(start), rtol=1e-5, atol=0)


def test_fixed_block_is_neither_moved_nor_differentiated(generator: torch.Generator):
    y = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    problem = bilinear(y)
    v = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    result = ipalm(problem, torch.ones_like(y), v, iterations=10, tolerance=0.0, fix_v=True)
    assert torch.equal(result.v, v)
    assert problem.calls["gradient_v"] == 0


def test_complex_block_recovers_the_phase_of_a_product(generator: torch.Generator):
    v = torch.randn(2, 9, dtype=torch.complex64, generator=generator)
    u = 0.5 + torch.rand(2, 9, generator=generator)
    y = u * v
    problem = Problem(lambda u, v: half_square(u * v - y), prox_u=positive)
    result = ipalm(problem, torch.ones_like(u), torch.full_like(v, 0.1), iterations=300, tolerance=1e-7)
    assert result.u.dtype == torch.float32
    assert result.v.dtype == torch.complex64
    torch.testing.assert_close(result.u * result.v, y, rtol=1e-3, atol=1e-3)
    assert objective_is_monotone(result, 1e-5)


def test_evaluations_are_those_the_docstring_counts(generator: torch.Generator):
    y = torch.randn(1, 6, dtype=torch.float64, generator=generator)
    problem = bilinear(y)
    result = ipalm(problem, torch.ones_like(y), torch.ones_like(y), iterations=40, tolerance=0.0)
    calls = problem.calls
    assert calls["gradient_u"] == calls["gradient_v"] == calls["regulariser_gradient"] == 40
    # One for the start, then one a block and iteration and one more for each refusal.
    assert calls["value"] == 1 + 80 + int(result.refusals[0])
    assert 41 <= calls["regulariser"] <= 41 + int(result.refusals[0])


def test_shrinking_constants_seldom_cause_refusals(generator: torch.Generator):
    curvature = torch.logspace(0, 3, 500, dtype=torch.float64)[None]
    problem = Problem(lambda u, _: half_square(curvature.sqrt() * (u - 1)))
    start = torch.randn(1, 500, dtype=torch.float64, generator=generator)
    result = ipalm(problem, start, torch.zeros(1, 1), iterations=100, tolerance=0.0, fix_v=True)
    # Shrinking by 1.5 without regard to the curvature would cost log(1.5)/log(2) = 0.58 refusals an iteration.
    assert int(result.refusals[0]) < 25


def test_constants_carried_over_spare_the_refusals_of_a_start(generator: torch.Generator):
    y = torch.randn(1, 6, dtype=torch.float64, generator=generator)

    def steep() -> Problem:
        return Problem(lambda u, _: 1e6 * half_square(u - y))

    start = torch.zeros_like(y)
    first = ipalm(steep(), start, torch.zeros(1, 1), iterations=5, tolerance=0.0, fix_v=True)
    again = ipalm(
        steep(),
        start,
        torch.zeros(1, 1),
        iterations=5,
        tolerance=0.0,
        fix_v=True,
        start_constants=first.next_constants,
    )
    assert int(first.refusals[0]) > 5
    assert int(again.refusals[0]) <= 1


def test_constant_far_too_large_is_not_taken_for_convergence():
    problem = Problem(lambda u, _: half_square(u - 1))
    start = torch.full((1, 4), 2.0, dtype=torch.float64)
    huge = torch.full((1,), 1e9, dtype=torch.float64)
    result = ipalm(
        problem, start, torch.zeros(1, 1), iterations=500, tolerance=1e-6, fix_v=True, start_constants=(huge, huge)
    )
    assert result.stopped_by == (StoppedBy.TOLERANCE,)
    torch.testing.assert_close(result.u, torch.ones_like(start), rtol=1e-4, atol=0)


def test_start_at_the_minimum_stops_at_once():
    problem = Problem(lambda u, v: half_square(u - 1) + half_square(v))
    result = ipalm(
        problem,
        torch.ones(2, 4, dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.float64),
        iterations=50,
        tolerance=0.0,
    )
    assert result.iterations.tolist() == [1, 1]
    assert result.stopped_by == (StoppedBy.TOLERANCE,) * 2


@pytest.fixture
def answers() -> Iterator[int]:
    return count()


def test_should_stop_ends_all_items_that_still_go_on(generator: torch.Generator, answers: Iterator[int]):
    y = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    # The second item starts at a minimum.
    y[1] = 1
    problem = Problem(lambda u, v: half_square(u * v - y) + 100 * half_square(u[:, :1] - v[:, 1:2]))
    result = ipalm(
        problem,
        torch.ones_like(y),
        torch.ones_like(y),
        iterations=100,
        tolerance=0.0,
        should_stop=lambda: next(answers) >= 4,
    )
    assert result.iterations.tolist() == [4, 1]
    assert result.stopped_by == (StoppedBy.BUDGET, StoppedBy.TOLERANCE)
    assert len(result.objective) == 5


def test_stopping_before_the_first_iteration_gives_the_start():
    problem = Problem(lambda u, _: half_square(u - 1))
    start = torch.zeros(2, 4, dtype=torch.float64)
    result = ipalm(problem, start, torch.zeros(2, 1), iterations=9, tolerance=0.0, should_stop=lambda: True)
    assert torch.equal(result.u, start)
    assert result.objective.tolist() == [[2, 2]]
    assert result.constants_u.shape == (0, 2)


def test_limit_of_iterations_holds():
    problem = Problem(lambda u, _: half_square(torch.tensor([1.0, 100.0]) * (u - 1)))
    result = ipalm(problem, torch.zeros(1, 2), torch.zeros(1, 1), iterations=3, tolerance=0.0, fix_v=True)
    assert result.iterations.tolist() == [3]
    assert result.stopped_by == (StoppedBy.ITERATIONS,)


def test_values_that_are_rounded_neither_keep_an_item_from_stopping_nor_let_its_constant_run_away():
    # At 1e5 single precision resolves 0.008, which hides the last part of the way.
    curvature = torch.linspace(1, 50, 20)[None]
    problem = Problem(lambda u, _: (1e5 + half_square(curvature.sqrt() * (u - 1))).float().double())
    result = ipalm(problem, torch.zeros(1, 20), torch.zeros(1, 1), iterations=400, tolerance=1e-3, fix_v=True)
    assert result.stopped_by == (StoppedBy.TOLERANCE,)
    assert float(half_square(curvature.sqrt() * (result.u - 1))) < 1
    assert 1 < float(result.next_constants[0]) < 500
    assert objective_is_monotone(result, 16 * torch.finfo(torch.float32).eps)


def test_gradient_of_the_wrong_sign_is_reported_as_stalled():
    class Wrong(Problem):
        def gradient_u(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = super().gradient_u(u, v)
            return value, -gradient

    problem = Wrong(lambda u, _: half_square(u - 1))
    start = torch.zeros(1, 4, dtype=torch.float64)
    result = ipalm(problem, start, torch.zeros(1, 1), iterations=50, tolerance=0.0, fix_v=True)
    assert result.stopped_by == (StoppedBy.STALLED,)
    assert torch.equal(result.u, start)


def test_value_that_is_not_a_number_shortens_the_step():
    # The first step, with L = 1, lands where the logarithm is not defined.
    problem = Problem(lambda u, _: (u - 2 * torch.log(u)).sum(1, dtype=torch.float64))
    start = torch.full((1, 3), 20.0, dtype=torch.float64)
    one = torch.full((1,), 0.02, dtype=torch.float64)
    result = ipalm(
        problem, start, torch.zeros(1, 1), iterations=200, tolerance=1e-9, fix_v=True, start_constants=(one, one)
    )
    torch.testing.assert_close(result.u, torch.full_like(start, 2.0), rtol=1e-5, atol=0)
    assert int(result.refusals[0]) > 0


def test_second_block_moves_in_every_third_iteration_and_ends_where_it_would_have(generator: torch.Generator):
    def coupling(u: Tensor, v: Tensor) -> Tensor:
        return half_square(u + v - 1) + half_square(u - 2 * v)

    start = torch.randn((2, 5), dtype=torch.float64, generator=generator)
    problem = Problem(coupling)
    found = ipalm(problem, start, start.flip(0), iterations=400, tolerance=1e-12, v_every=3)
    steps = int(found.iterations.max())
    # Refused steps evaluate values, not gradients: each step of a block has one gradient.
    assert problem.calls["gradient_u"] == steps
    assert problem.calls["gradient_v"] == -(-steps // 3)
    assert found.stopped_by == (StoppedBy.TOLERANCE,) * 2
    torch.testing.assert_close(found.u, torch.full_like(start, 2 / 3), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.v, torch.full_like(start, 1 / 3), rtol=0, atol=1e-9)
    assert bool((found.objective.diff(dim=0) <= 1e-12).all())
