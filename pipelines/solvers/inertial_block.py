"""One block of a minimisation: an inertial proximal gradient step with backtracking, that never raises the objective.

The rules are numbered in `pipelines.solvers.ipalm`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from pipelines.solvers.items import inner, spread, squared_norm

GROWTH = 2.0
"""At least by this a constant grows when a step is refused."""
MOST_GROWTH = 10.0
"""At most by this: the curvature met on a step that is far too long says little about that on a shorter one."""
SHRINKAGE = 1.5
MARGIN = 1.1
"""Over the curvature just met: the next step's may be a little larger."""
MEMORY = 0.9
"""Curvature met earlier fades by this a step. Four convex problems, 300 steps: 0.14 to 0.25 refusals a step and the
same progress as with 0 (only the last step counts: 0.3 to 0.44 refusals); with 0.98 or 1 (0.03 to 0.16) less progress.
"""


class Block:
    """One block with its inertia and constants, one of each an item.

    Attributes:
        point: where the block is.
        constant: L of the next step.
        tried: L of the last step.
        failed: items whose last step was a plain one and was not taken.
    """

    def __init__(self, start: Tensor, constant: Tensor, tries: int, rounding: float) -> None:
        items = start.shape[0]
        self.point = start
        self._previous = start
        self.constant = constant.to(torch.float64)
        self.tried = self.constant
        self._tries = tries
        self._rounding = rounding
        self._since_restart = torch.zeros(items, dtype=torch.int64, device=start.device)
        self.restarts = torch.zeros_like(self._since_restart)
        self.refusals = torch.zeros_like(self._since_restart)
        self.failed = torch.zeros(items, dtype=torch.bool, device=start.device)
        self._moved = self.failed
        self._fitted = self.failed
        self._least = torch.zeros_like(self.constant)
        self._grown = torch.zeros_like(self.constant)
        self._change = torch.full((items,), torch.inf, dtype=torch.float64, device=start.device)

    def advance(
        self,
        gradient_at: Callable[[Tensor], tuple[Tensor, Tensor]],
        smooth: Callable[[Tensor], Tensor],
        proximal: Callable[[Tensor, Tensor], Tensor],
        penalty: Callable[[Tensor], Tensor],
        parts: Float64[Tensor, "parts items"],
        penalty_now: Float64[Tensor, "items"],
        active: Bool[Tensor, "items"],
    ) -> tuple[Float64[Tensor, "parts items"], Float64[Tensor, "items"]]:
        """Try one step of each active item.

        Args:
            gradient_at: value and gradient of the smooth part.
            smooth: the smooth part as the summands `parts`.
            proximal: proximal map of the penalty.
            penalty: the penalty.
            parts: smooth part at the present point.
            penalty_now: penalty at the present point.
            active: items that go on.

        Returns:
            The smooth part and the penalty where the block is now.
        """
        inertia = self._since_restart / (self._since_restart + 3)
        bar = self.point + spread(inertia, self.point) * (self.point - self._previous)
        at_bar, gradient = gradient_at(bar)
        candidate, values, waiting = self.point, parts, active
        curvature = torch.zeros_like(at_bar)
        informed = torch.zeros_like(active)
        for attempt in range(self._tries):
            step = 1 / self.constant
            candidate = proximal(bar - spread(step, bar) * gradient, step.to(bar.dtype.to_real()))
            # Items accepted before keep their constant, so they get the same candidate again.
            values = smooth(candidate)
            value = values.sum(0)
            d = candidate - bar
            length = squared_norm(d)
            above = value - at_bar - inner(gradient, d)
            slack = self._rounding * (value.abs() + at_bar.abs())
            # A value that is not a number compares as False: the step is refused.
            fits = waiting & (above <= self.constant / 2 * length + slack)
            met = 2 * above / length.clamp_min(torch.finfo(torch.float64).tiny)
            # A step so short that rounding hides its curvature is accepted whatever the constant.
            told = fits & (self.constant / 2 * length > slack)
            curvature, informed = torch.where(told, met, curvature), informed | told
            waiting = waiting & ~fits
            self.refusals += waiting
            if not bool(waiting.any()):
                break
            if attempt + 1 < self._tries:
                growth = (met / self.constant).nan_to_num(MOST_GROWTH).clamp(GROWTH, MOST_GROWTH)
                self.constant = torch.where(waiting, self.constant * growth, self.constant)
                self._grown = torch.where(waiting, self.constant, self._grown)
        fits = active & ~waiting
        self._shrink(fits, curvature, informed)
        now = self._take(candidate, values, penalty(candidate), parts, penalty_now, fits, active)
        # A constant below a curvature that rounding hides lets the inertia build up an oscillation; the one that
        # followed the last refusal was large enough.
        hidden = active & ~self._moved & (inertia > 0) & ~informed
        self.constant = torch.where(hidden, torch.maximum(self.constant, self._grown), self.constant)
        return now

    def _shrink(self, fits: Tensor, curvature: Tensor, informed: Tensor) -> None:
        """Lower the constants of accepted steps, towards the curvature they met.

        A step that tells nothing of the curvature leaves the constant, unless the constant was never as small as the
        curvature: then the step may be that short because the constant is too large.
        """
        self.tried = self.constant
        self._least = torch.where(informed, torch.maximum(MARGIN * curvature, MEMORY * self._least), self._least)
        shrunk = torch.minimum(self.constant, torch.maximum(self.constant / SHRINKAGE, self._least))
        self.constant = torch.where(fits & (informed | ~self._fitted), shrunk, self.constant)
        self._fitted = self._fitted | (informed & (self._least >= self.tried / SHRINKAGE))

    def _take(
        self,
        candidate: Tensor,
        values: Tensor,
        penalty_there: Tensor,
        parts: Tensor,
        penalty_now: Tensor,
        fits: Tensor,
        active: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Move the items whose objective does not rise; the others lose their inertia."""
        inert = self._since_restart > 0
        before, after = parts.sum(0) + penalty_now, values.sum(0) + penalty_there
        # Only a plain step may use the rounding: it has nothing to fall back to.
        slack = torch.where(inert, 0.0, self._rounding * (before.abs() + after.abs()).nan_to_num(0.0, posinf=0.0))
        moved = fits & (after <= before + slack)
        self._change = _relative_change(candidate, self.point)
        self._previous = torch.where(spread(active, self.point), self.point, self._previous)
        self.point = candidate if bool(moved.all()) else torch.where(spread(moved, self.point), candidate, self.point)
        self._moved = moved
        self.failed = active & ~moved & ~inert
        self.restarts += active & ~moved & inert
        self._since_restart = torch.where(moved, self._since_restart + 1, torch.where(active, 0, self._since_restart))
        return torch.where(moved, values, parts), torch.where(moved, penalty_there, penalty_now)

    def settled(self, tolerance: float) -> Bool[Tensor, "items"]:
        """Items whose step was taken and hardly changed anything, though it was as long as it could be."""
        return self._moved & (((self._change <= tolerance) & self._fitted) | (self._change == 0))


def _relative_change(after: Tensor, before: Tensor) -> Tensor:
    """`|after - before| / |after|` of each item."""
    size = squared_norm(after).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.sqrt(squared_norm(after - before) / size)
