"""Extrapolated ADMM against closed forms and its own theorem, with priors that are exact, overshoot or never help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from torch import Tensor

from pipelines.solvers.admm import REDOS, Decomposition, admm

ROWS, COLUMNS = 3, 5


@dataclass
class Problem:
    """A dense `A` of norm 1 with a null space, and what it measures of `(rows, columns)`."""

    matrix: Tensor
    y: Tensor

    def normal(self, x: Tensor) -> Tensor:
        return (self.matrix.mH @ (self.matrix @ x.flatten())).view(x.shape)

    @property
    def right_side(self) -> Tensor:
        return (self.matrix.mH @ self.y).view(ROWS, COLUMNS)

    def data(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.flatten() - self.y).abs().square().sum() / 2


@dataclass
class Ridge:
    """`r(p) = sum_i weight_i |p_i|^2 / 2`; a step goes `overshoot * rate_scale` times the way to the minimiser."""

    current: Tensor
    weights: Tensor
    overshoot: float = 1.0
    saved: Tensor = field(default_factory=lambda: torch.zeros(()))
    steps: list[tuple[Tensor, float]] = field(default_factory=list)

    def parts(self) -> Tensor:
        return self.current

    def value(self) -> float:
        return float((self.weights * self.current.abs().square()).sum() / 2)

    def step(self, targets: Tensor, rho: float, rate_scale: float) -> None:
        self.steps.append((targets, rate_scale))
        best = rho * targets / (rho + self.weights)
        way = self.overshoot * rate_scale if self.overshoot != 1 else 1.0
        self.current = self.current + way * (best - self.current)

    def save(self) -> None:
        self.saved = self.current

    def restore(self) -> None:
        self.current = self.saved


WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)[:, None, None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def problem() -> Problem:
    matrix = noise(9, ROWS * COLUMNS)
    return Problem(matrix / torch.linalg.matrix_norm(matrix, 2), noise(9, seed=1))


def ridge(overshoot: float = 1.0) -> Ridge:
    return Ridge(noise(2, ROWS, COLUMNS, seed=2), WEIGHTS, overshoot)


def solve(
    problem: Problem,
    priors: Ridge,
    mode: Literal["theory", "fast"] = "theory",
    iterations: int = 400,
    *,
    tolerance: float = 0.0,
    average_last: int = 1,
    should_stop: Callable[[], bool] | None = None,
    on_iterate: Callable[[Tensor], bool] | None = None,
) -> Decomposition:
    return admm(
        problem.normal, problem.right_side, priors, noise(2, ROWS, COLUMNS, seed=3), curvature=1.0, mode=mode,
        iterations=iterations, tolerance=tolerance, inner_iterations=40, inner_tolerance=1e-13,
        average_last=average_last, should_stop=should_stop, on_iterate=on_iterate,
    )  # fmt: skip


def lagrangian(problem: Problem, split: Tensor, parts: Tensor, dual: Tensor, rho: float) -> Tensor:
    """The augmented one, as its definition has it."""
    ties = (parts - split + dual).abs().square().sum() - 2 * dual.abs().square().sum()
    prior = (WEIGHTS * parts.abs().square()).sum() / 2
    return problem.data(split.sum(0)) + prior + rho / 2 * ties


@pytest.mark.parametrize("mode", ["theory", "fast"])
def test_it_reaches_the_closed_form_of_quadratic_priors(problem: Problem, mode: Literal["theory", "fast"]):
    found = solve(problem, ridge(), mode, 3000, tolerance=1e-11)
    # Both parts share the slope A^H (y - A X), each divided by its own weight.
    shares = (1 / WEIGHTS).sum()
    normal = problem.matrix.mH @ problem.matrix
    system = normal + torch.eye(ROWS * COLUMNS, dtype=normal.dtype) / shares
    x = torch.linalg.solve(system, problem.right_side.flatten()).view(ROWS, COLUMNS)
    expected = x / shares / WEIGHTS
    # Comparing values cannot tell points apart that are nearer than the root of their precision.
    nearest = 1e-6 if mode == "theory" else 1e-9
    torch.testing.assert_close(torch.stack([found.low_rank, found.sparse]), expected, rtol=0, atol=nearest)
    torch.testing.assert_close(found.parts, expected, rtol=0, atol=nearest)
    assert found.has_converged
    assert found.iterations < 3000


@pytest.mark.parametrize("iterations", [0, 1, 2, 7])
@pytest.mark.parametrize("mode", ["theory", "fast"])
def test_both_duals_are_the_slope_of_the_data(problem: Problem, mode: Literal["theory", "fast"], iterations: int):
    rho = 3.0 if mode == "theory" else 0.5
    found = solve(problem, ridge(), mode, iterations)
    slope = problem.normal(found.solution) - problem.right_side
    torch.testing.assert_close(found.dual, slope / rho, rtol=0, atol=1e-11)
    if iterations:
        before = solve(problem, ridge(), mode, iterations - 1).dual
        torch.testing.assert_close(before + found.parts[0] - found.low_rank, found.dual, rtol=0, atol=1e-12)
        torch.testing.assert_close(before + found.parts[1] - found.sparse, found.dual, rtol=0, atol=1e-12)


def test_the_data_step_is_the_minimiser(problem: Problem):
    before, after = (solve(problem, ridge(), iterations=n) for n in (4, 5))
    split = torch.stack([after.low_rank, after.sparse]).requires_grad_()
    (gradient,) = torch.autograd.grad(lagrangian(problem, split, after.parts, before.dual, 3.0), split)
    assert float(gradient.abs().max()) < 1e-11


def test_values_are_those_of_the_lyapunov_function(problem: Problem):
    runs = [solve(problem, ridge(), iterations=n) for n in range(5)]
    splits = [torch.stack([run.low_rank, run.sparse]) for run in runs]
    constant = problem.y.abs().square().sum() / 2
    for n, (run, split) in enumerate(zip(runs, splits, strict=True)):
        step = (split - splits[max(n - 1, 0)]).abs().square().sum()
        expected = lagrangian(problem, split, run.parts, run.dual, 3.0) + (3 / 2 - 4 / 3) / 2 * step - constant
        assert float(runs[-1].values[n]) == pytest.approx(float(expected), rel=1e-12)
    assert runs[-1].values.shape == (5,)
    assert runs[-1].iterations == 4


@pytest.mark.parametrize("overshoot", [1.0, 1.9, 3.0, 9.0, -1.0])
def test_the_lyapunov_function_never_rises_whatever_a_prior_step_does(problem: Problem, overshoot: float):
    found = solve(problem, ridge(overshoot), iterations=60)
    assert float(found.values.diff().max()) <= 1e-13
    assert float(found.values.diff()[:5].max()) < -1e-3
    if abs(overshoot - 1) > 1:
        assert bool((found.undone[:5] > 0).all())


def test_in_the_fast_mode_the_same_steps_make_it_rise(problem: Problem):
    found = solve(problem, ridge(3.0), "fast", 20)
    assert float(found.values.diff().max()) > 1
    assert found.undone.tolist() == [0] * 20


def test_a_step_is_made_again_from_the_snapshot_at_half_the_rate_and_without_extrapolation(problem: Problem):
    priors = ridge()
    solve(problem, priors, iterations=3)
    good = len(priors.steps)
    kept = priors.current
    priors.overshoot = -1.0  # away from the minimiser: no step helps
    found = admm(
        problem.normal, problem.right_side, priors, noise(2, ROWS, COLUMNS, seed=3), curvature=1.0, mode="theory",
        iterations=2,
    )  # fmt: skip
    assert torch.equal(found.parts, kept)
    assert found.undone.tolist() == [REDOS + 1] * 2
    assert found.kept == 0
    assert [scale for _, scale in priors.steps[good:]] == [1, 0.5, 0.25, 0.125] * 2
    first, *again = [targets for targets, _ in priors.steps[good + 4 :]]
    # The iteration after one without a step is not extrapolated either.
    assert all(torch.equal(first, each) for each in again)


def test_a_redone_step_aims_at_the_split_itself(problem: Problem):
    priors, aims = ridge(1.9), []
    runs = [solve(problem, ridge(1.9), iterations=n) for n in range(12)]
    found = solve(problem, priors, iterations=12)
    steps = iter(priors.steps)
    for before, undone in zip(runs, found.undone.tolist(), strict=True):
        own = torch.stack([before.low_rank, before.sparse]) - before.dual
        tried = [next(steps)[0] for _ in range(min(undone, REDOS) + 1)]
        assert all(torch.equal(own, each) for each in tried[1:])
        aims.append((undone, torch.equal(own, tried[0])))
    assert any(undone and not plain for undone, plain in aims)
    assert found.restarts == sum(undone > 0 and not plain for undone, plain in aims)


def test_extrapolation_follows_the_sequence_and_its_limit(problem: Problem):
    priors, places = Ridge(noise(2, ROWS, COLUMNS, seed=2), WEIGHTS / 10), [noise(2, ROWS, COLUMNS, seed=3).sum(0)]
    parts = [priors.parts()]

    def look(x: Tensor) -> bool:
        places.append(x)
        parts.append(priors.parts())
        return False

    found = solve(problem, priors, "fast", 80, on_iterate=look)
    duals = [(problem.normal(x) - problem.right_side) / 0.5 for x in places]
    splits = [noise(2, ROWS, COLUMNS, seed=3)]
    splits += [p + before - after for p, before, after in zip(parts[1:], duals, duals[1:], strict=False)]
    t, momenta = 1.0, []
    for k, (targets, _) in enumerate(priors.steps):
        following = (1 + math.sqrt(1 + 4 * t**2)) / 2
        momenta.append(min((t - 1) / following, 0.9))
        expected = splits[k] + momenta[-1] * (splits[k] - splits[max(k - 1, 0)]) - duals[k]
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-10)
        t = 1.0 if found.values[k + 1] > found.values[k] else following
    assert momenta[0] == 0
    assert max(momenta) == 0.9
    assert found.restarts > 0
    assert momenta[int((found.values.diff() > 0).nonzero()[0]) + 1] == 0


def test_the_average_is_that_of_the_last_iterates(problem: Problem):
    seen: list[Tensor] = []

    def look(x: Tensor) -> bool:
        seen.append(x)
        return len(seen) == 9

    found = solve(problem, ridge(), iterations=50, average_last=4, on_iterate=look)
    assert found.iterations == 9
    torch.testing.assert_close(found.average, torch.stack(seen[-4:]).mean(0), rtol=0, atol=1e-15)
    torch.testing.assert_close(found.solution, seen[-1], rtol=0, atol=1e-14)
    short = solve(problem, ridge(), iterations=2, average_last=4)
    torch.testing.assert_close(short.average, torch.stack(seen[:2]).mean(0), rtol=0, atol=1e-15)


def test_it_stops_when_told(problem: Problem):
    answers = iter([False, False, True])
    found = solve(problem, ridge(), should_stop=lambda: next(answers))
    assert found.iterations == 2
    assert not found.has_converged
    none = solve(problem, ridge(), should_stop=lambda: True)
    start = noise(2, ROWS, COLUMNS, seed=3)
    assert torch.equal(none.low_rank, start[0])
    torch.testing.assert_close(none.average, start.sum(0))


@pytest.mark.parametrize(("curvature", "rho"), [(1.0, 2.8), (0.0, None), (-1.0, 3.0), (1.0, math.nan)])
def test_constants_without_a_theorem_are_refused(problem: Problem, curvature: float, rho: float | None):
    with pytest.raises(ValueError, match="rho is above"):
        admm(
            problem.normal, problem.right_side, ridge(), noise(2, ROWS, COLUMNS), curvature=curvature, mode="theory",
            iterations=1, rho=rho,
        )  # fmt: skip
