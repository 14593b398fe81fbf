"""Inertial proximal alternating linearised minimisation over two blocks, batched over items.

Knows no MRI. The problem comes as an object with gradients and proximal maps (`TwoBlockProblem`):

    minimise over u and v   H(u, v) + r(u) + f(u) + g(v),

H and r smooth, f and g with a proximal map; none need be convex. r is apart from H because it may be costly (a
network): it is never evaluated while v moves.

One iteration moves u, then v (v in every n-th iteration only, if so asked). For a block x with k accepted steps since
its last restart and the constant L:

    bar = x + k/(k+3) (x - x_previous),    x+ = prox_{f/L}(bar - gradient(bar) / L).

1. *Backtracking.* x+ is refused while the smooth part at x+ is above its model at bar,
   `value(bar) + <gradient, d> + L/2 |d|^2` with d = x+ - bar, and L at least doubles.
2. *Monotone.* A step that would raise the objective is not taken: the item stays where it is and loses its inertia, so
   that its next step is the plain one (k = 0), which cannot raise it. Taking that step at once would cost all items of
   the batch another gradient for the sake of one.
3. An accepted L shrinks by 1.5, but not below the curvature met in the last steps,
   `2 (value(x+) - value(bar) - <gradient, d>) / |d|^2`, which is known without another evaluation. So it seldom shrinks
   so far that the next step is refused. Where rounding hides the curvature it stays, and goes back to what
   followed the last refusal when a step is not taken.

Evaluations per iteration, whatever the number of restarts: for u one gradient of H and of r and one value of each, one
more value of each for each refusal; for v one gradient and one value of H, one more value for each refusal. Refused
steps of one item cost an evaluation of the batch.

Differences to the paper: backtracking instead of known Lipschitz constants, and the monotone rule, which is that of
O'Donoghue and Candès.

Reference: Pock and Sabach 2016, doi 10.1137/16M1064064; O'Donoghue and Candès 2015, doi 10.1007/s10208-013-9150-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pipelines.solvers.inertial_block import Block


@runtime_checkable
class TwoBlockProblem(Protocol):
    """H, r, f and g of the problem.

    A block is `(items, ...)`, real or complex; each item is a problem of its own. Values are `(items,)` in float64.
    The gradient of a complex block is that for the inner product `Re <a, b>`: the derivative by the real part plus i
    times that by the imaginary part. Steps are `(items,)` in the real precision of the block.
    """

    def value(self, u: Tensor, v: Tensor, /) -> Tensor:
        """H(u, v)."""
        ...

    def gradient_u(self, u: Tensor, v: Tensor, /) -> tuple[Tensor, Tensor]:
        """H(u, v) and its gradient by u."""
        ...

    def gradient_v(self, u: Tensor, v: Tensor, /) -> tuple[Tensor, Tensor]:
        """H(u, v) and its gradient by v."""
        ...

    def regulariser(self, u: Tensor, /) -> Tensor:
        """r(u)."""
        ...

    def regulariser_gradient(self, u: Tensor, /) -> tuple[Tensor, Tensor]:
        """r(u) and its gradient."""
        ...

    def penalty_u(self, u: Tensor, /) -> Tensor:
        """f(u); for a constraint 0 where it holds."""
        ...

    def penalty_v(self, v: Tensor, /) -> Tensor:
        """g(v)."""
        ...

    def prox_u(self, point: Tensor, step: Tensor, /) -> Tensor:
        """The minimiser of `f(u) + |u - point|^2 / (2 step)`."""
        ...

    def prox_v(self, point: Tensor, step: Tensor, /) -> Tensor:
        """The minimiser of `g(v) + |v - point|^2 / (2 step)`."""
        ...


class StoppedBy(StrEnum):
    """Why an item stopped."""

    TOLERANCE = "tolerance"
    """Both blocks changed by less than the tolerance."""
    ITERATIONS = "iterations"
    BUDGET = "budget"
    """`should_stop` said so."""
    STALLED = "stalled"
    """No plain step of either block was accepted: the gradient is not that of the value, or rounding hides it."""


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where the iteration ended.

    Attributes:
        u: first block.
        v: second block.
        iterations: made by each item.
        objective: of the start and after each iteration; an item that has stopped keeps its last one.
        objective_between: after each iteration's u-step, before its v-step.
        constants_u: L that each iteration's u-step was tried with last.
        constants_v: the same of the v-steps.
        next_constants: those of u and v that another iteration would start with, for a similar problem.
        stopped_by: why each item stopped.
        restarts: steps not taken because they would have raised the objective, of both blocks.
        refusals: steps refused in backtracking, of both blocks.
    """

    u: Tensor
    v: Tensor
    iterations: Int64[Tensor, "items"]
    objective: Float64[Tensor, "rows items"]
    objective_between: Float64[Tensor, "iterations items"]
    constants_u: Float64[Tensor, "iterations items"]
    constants_v: Float64[Tensor, "iterations items"]
    next_constants: tuple[Float64[Tensor, "items"], Float64[Tensor, "items"]]
    stopped_by: tuple[StoppedBy, ...]
    restarts: Int64[Tensor, "items"]
    refusals: Int64[Tensor, "items"]


def ipalm(
    problem: TwoBlockProblem,
    start_u: Tensor,
    start_v: Tensor,
    *,
    iterations: int,
    tolerance: float,
    fix_v: bool = False,
    v_every: int = 1,
    start_constants: tuple[Float64[Tensor, "items"], Float64[Tensor, "items"]] | None = None,
    tries: int = 15,
    rounding: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Minimum:
    """Minimise `H(u, v) + r(u) + f(u) + g(v)` for each item of a batch.

    The objective never rises from one block's step to the next, beyond rounding.

    Args:
        problem: what is minimised.
        start_u: `(items, ...)`.
        start_v: `(items, ...)`.
        iterations: most iterations.
        tolerance: an item stops when `|x+ - x| <= tolerance |x+|` for both blocks x in one iteration that moves both,
            neither of them held back. Since a constant that is far too large makes short steps anywhere, this counts
            only once a constant was as small as the curvature lets it be.
        fix_v: leave v where it is: accelerated proximal gradient in u.
        v_every: iterations from one step of v to the next, for a v that has hardly to move and whose steps are dear.
        start_constants: first L of u and of v, for example `next_constants` of a problem solved before; 1 by default.
        tries: steps tried before a block is left where it is for this iteration.
        rounding: relative error of the values, by which comparisons are relaxed; 8 units in the last place of the
            blocks' precision by default.
        should_stop: asked before each iteration; True ends all items.
    """
    items = start_u.shape[0]
    ones = torch.ones(items, dtype=torch.float64, device=start_u.device)
    first_u, first_v = start_constants or (ones, ones)
    allowed = 8 * torch.finfo(start_u.dtype).eps if rounding is None else rounding
    u = Block(start_u, first_u, tries, allowed)
    v = Block(start_v, first_v, tries, allowed)
    joint, own = problem.value(start_u, start_v), problem.regulariser(start_u)
    penalty_u, penalty_v = problem.penalty_u(start_u), problem.penalty_v(start_v)
    record = _Record([joint + own + penalty_u + penalty_v])
    active = torch.ones(items, dtype=torch.bool, device=start_u.device)
    steps = torch.zeros(items, dtype=torch.int64, device=start_u.device)
    reasons = [StoppedBy.ITERATIONS] * items

    def smooth_u(point: Tensor) -> Tensor:
        return torch.stack([problem.value(point, v.point), problem.regulariser(point)])

    def gradient_u(point: Tensor) -> tuple[Tensor, Tensor]:
        (value, gradient), (own_value, own_gradient) = (
            problem.gradient_u(point, v.point),
            problem.regulariser_gradient(point),
        )
        return value + own_value, gradient + own_gradient

    def smooth_v(point: Tensor) -> Tensor:
        return problem.value(u.point, point)[None]

    def gradient_v(point: Tensor) -> tuple[Tensor, Tensor]:
        return problem.gradient_v(u.point, point)

    for iteration in range(iterations):
        if not bool(active.any()):
            break
        if should_stop is not None and should_stop():
            reasons = [
                StoppedBy.BUDGET if going else reason for going, reason in zip(active.tolist(), reasons, strict=True)
            ]
            break
        parts, penalty_u = u.advance(
            gradient_u, smooth_u, problem.prox_u, problem.penalty_u, torch.stack([joint, own]), penalty_u, active
        )
        joint, own = parts.unbind()
        between = joint + own + penalty_u + penalty_v
        record.between.append(between)
        record.constants_u.append(u.tried)
        settled, stalled = u.settled(tolerance), u.failed
        if not fix_v and iteration % v_every:
            settled = stalled = torch.zeros_like(active)
        elif not fix_v:
            parts, penalty_v = v.advance(
                gradient_v, smooth_v, problem.prox_v, problem.penalty_v, joint[None], penalty_v, active
            )
            joint = parts[0]
            settled, stalled = settled & v.settled(tolerance), stalled & v.failed
        record.objective.append(joint + own + penalty_u + penalty_v)
        record.constants_v.append(v.tried)
        steps += active
        for item in torch.nonzero(active & (settled | stalled)).flatten().tolist():
            reasons[item] = StoppedBy.STALLED if bool(stalled[item]) else StoppedBy.TOLERANCE
        active = active & ~settled & ~stalled
    return Minimum(
        u.point,
        v.point,
        steps,
        torch.stack(record.objective),
        _rows(record.between, ones),
        _rows(record.constants_u, ones),
        _rows(record.constants_v, ones),
        (u.constant, v.constant),
        tuple(reasons),
        u.restarts + v.restarts,
        u.refusals + v.refusals,
    )


class _Record:
    """What happened in each iteration."""

    def __init__(self, objective: list[Tensor]) -> None:
        self.objective = objective
        self.between: list[Tensor] = []
        self.constants_u: list[Tensor] = []
        self.constants_v: list[Tensor] = []


def _rows(rows: list[Tensor], like: Tensor) -> Tensor:
    """Rows of a history, which may be none."""
    return torch.stack(rows) if rows else like.new_zeros((0, like.shape[0]))
