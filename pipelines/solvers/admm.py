"""Extrapolated ADMM for data that see the sum of two parts, each tied to a prior that is only ever improved.

Knows no MRI, and of the priors only what `Priors` offers: they may be networks in training.

    minimise over p = (f, g) and w = (L, S)   1/2 |A (L + S) - y|^2 + r(p)    subject to p = w

One iteration, with rho > 0 and the scaled dual u:

1. *Extrapolate.* `bar = w_k + b_k (w_k - w_{k-1})` with `b_k = min((t_k - 1) / t_{k+1}, 0.9)` and
   `t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2`; t begins anew at 1 when the value below has risen.
2. *Prior.* p moves to where `r(p) + rho/2 |p - (bar - u)|^2` is less.
3. *Data.* The minimiser over w. Only the sum X = L + S sees the data:
   `(A^H A + rho/2) X = A^H y + rho/2 (f + g + 2u)`, by conjugate gradients from the X before.
4. *Dual.* `u + f - L` and `u + g - S` are the same, `(f + g + 2u - X) / 2`, so that one u serves both constraints. It
   is `A^H (A X - y) / rho` as exactly as step 3 was solved.

u begins as step 4 would leave it, `A^H (A X_0 - y) / rho`; so what follows holds from the first iteration on.

*Descent.* Step 3 lowers the augmented Lagrangian, `AL = 1/2 |A X - y|^2 + r(p) + rho/2 (|p - w + (u, u)|^2 - 2 |u|^2)`,
by at least `rho/2 |w_{k+1} - w_k|^2`, step 4 raises it by `2/rho |A^H A (X_{k+1} - X_k)|^2`, at most
`4 |A|^4 / rho |w_{k+1} - w_k|^2`. With `rho > 2 sqrt(2) |A|^2`, and where step 2 does not raise AL(p, w_k, u_k), the
Lyapunov function `AL_k + c |w_k - w_{k-1}|^2` falls for any `0 < c < rho/2 - 4 |A|^4 / rho`; c is half of that (0 where
it is not positive). Hence two modes:

- "theory": rho = 3 |A|^2. A prior step that raised AL(p, w_k, u_k) is undone and made again without extrapolation at
  half the rate, up to three times; then p stays for this iteration. The next one is not extrapolated.
- "fast": rho = |A|^2 / 2. Every prior step is taken; where the value rises, t begins anew.

References: Boyd et al. 2011, doi 10.1561/2200000016 (ADMM); Wang, Yin, Zeng 2019, doi 10.1007/s10915-018-0757-z
(descent where r is not convex); Goldstein et al. 2014, doi 10.1137/120896219 (extrapolation with restart).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Inexact, Int64
from torch import Tensor

from pipelines.solvers.cg import conjugate_gradients
from pipelines.solvers.items import inner, squared_norm

MOMENTUM_LIMIT = 0.9
REDOS = 3
"""Prior steps tried again, each at half the rate of the one before."""

RHO_THEORY, RHO_FAST = 3.0, 0.5
"""In units of |A|^2."""


@runtime_checkable
class Priors(Protocol):
    """The free parts p = (f, g) and what is known of them, r(p)."""

    def parts(self) -> Tensor:
        """The parts as they are now, `(2, rows, columns)`, in a tensor that later steps leave alone."""
        ...

    def value(self) -> float:
        """r(p), accumulated in double precision."""
        ...

    def step(self, targets: Tensor, rho: float, rate_scale: float, /) -> None:
        """Move p to where `r(p) + rho/2 |p - targets|^2` is less, or is hoped to be.

        Args:
            targets: `(2, rows, columns)`.
            rho: positive.
            rate_scale: what the usual rate is multiplied by, at most 1; an exact minimiser has no use for it.
        """
        ...

    def save(self) -> None:
        """Remember p, and all that decides where a step leads; one state is remembered."""
        ...

    def restore(self) -> None:
        """Return to what was saved, which stays saved."""
        ...


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Where the iteration ended.

    Attributes:
        low_rank: L.
        sparse: S. L + S is the answer that fits the data; the parts are what the priors allow.
        parts: f and g.
        dual: u.
        average: of L + S over the last iterations.
        iterations: made.
        restarts: of the extrapolation.
        values: Lyapunov function of the start and after each iteration, less `|y|^2 / 2`.
        undone: prior steps of each iteration that were undone; `REDOS + 1` where p stayed. All 0 in the fast mode.
        has_converged: whether the tolerance was reached.
    """

    low_rank: Inexact[Tensor, "rows columns"]
    sparse: Inexact[Tensor, "rows columns"]
    parts: Inexact[Tensor, "2 rows columns"]
    dual: Inexact[Tensor, "rows columns"]
    average: Inexact[Tensor, "rows columns"]
    iterations: int
    restarts: int
    values: Float64[Tensor, "iterations_and_start"]
    undone: Int64[Tensor, "iterations"]
    has_converged: bool

    @property
    def solution(self) -> Inexact[Tensor, "rows columns"]:
        """L + S."""
        return self.low_rank + self.sparse

    @property
    def kept(self) -> int:
        """Iterations in which p moved."""
        return int((self.undone <= REDOS).sum())


def admm(
    normal: Callable[[Tensor], Tensor],
    right_side: Inexact[Tensor, "rows columns"],
    priors: Priors,
    start: Inexact[Tensor, "2 rows columns"],
    *,
    curvature: float,
    mode: Literal["theory", "fast"],
    iterations: int,
    tolerance: float = 0.0,
    rho: float | None = None,
    inner_iterations: int = 8,
    inner_tolerance: float = 1e-4,
    average_last: int = 1,
    should_stop: Callable[[], bool] | None = None,
    on_iterate: Callable[[Tensor], bool] | None = None,
) -> Decomposition:
    """Minimise `1/2 |A (L + S) - y|^2 + r(L, S)`.

    Args:
        normal: A^H A of `(rows, columns)`.
        right_side: A^H y.
        priors: r, where they begin; they are left where the iteration ends.
        start: L and S.
        curvature: a bound on |A|^2, the largest eigenvalue of A^H A.
        mode: what is asked of a prior step.
        iterations: most iterations.
        tolerance: it is done when `|w_{k+1} - w_k|` and `|p - w_{k+1}|` are at most this share of `|w_{k+1}|`.
        rho: instead of the mode's own.
        inner_iterations: most conjugate gradient steps of an iteration.
        inner_tolerance: residual of the data step at which they end, relative to the one that they begin with.
        average_last: iterations whose L + S are averaged, at the end; as many tensors are kept.
        should_stop: asked before each iteration; True ends the run.
        on_iterate: gets L + S after each iteration, in a tensor that is not written to again; True ends the run.

    Raises:
        ValueError: curvature or rho is not positive, or rho is too small for the theory.
    """
    if rho is None:
        rho = (RHO_THEORY if mode == "theory" else RHO_FAST) * curvature
    least = 2 * math.sqrt(2) * curvature if mode == "theory" else 0.0
    if not (curvature > 0 and rho > least):
        raise ValueError(f"rho is above {least:g} and the curvature positive, not {rho:g} and {curvature:g}")
    data = _DataHalf(normal, right_side, start, rho, curvature, (inner_iterations, inner_tolerance))
    values = [data.lyapunov(priors)]
    undone: list[int] = []
    recent: deque[Tensor] = deque(maxlen=average_last)
    t, restarts, has_converged = 1.0, 0, False
    for _ in range(iterations):
        if has_converged or (should_stop is not None and should_stop()):
            break
        following = (1 + math.sqrt(1 + 4 * t**2)) / 2
        ahead = data.extrapolated(min((t - 1) / following, MOMENTUM_LIMIT))
        if mode == "theory":
            undone.append(_improve(priors, ahead - data.dual, data.split - data.dual, rho))
        else:
            priors.step(ahead - data.dual, rho, 1.0)
            undone.append(0)
        parts = priors.parts()
        data.advance(parts)
        values.append(data.lyapunov(priors))
        has_risen = not values[-1] <= values[-2]
        restarts += t > 1 and (has_risen or undone[-1] > 0)
        t = 1.0 if has_risen or undone[-1] > 0 else following
        recent.append(data.x)
        has_converged = data.is_settled(parts, tolerance)
        if on_iterate is not None and on_iterate(data.x):
            break
    return Decomposition(
        data.split[0],
        data.split[1],
        priors.parts(),
        data.dual,
        torch.stack(list(recent) or [data.x]).mean(0),
        len(undone),
        restarts,
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(undone, dtype=torch.int64),
        has_converged,
    )


def _improve(priors: Priors, ahead: Tensor, targets: Tensor, rho: float) -> int:
    """Step towards `ahead`, but not to where `r(p) + rho/2 |p - targets|^2` is more; the number of steps undone."""

    def value() -> float:
        return priors.value() + rho / 2 * _square(priors.parts() - targets)

    before = value()
    priors.save()
    for undone in range(REDOS + 1):
        priors.step(targets if undone else ahead, rho, 0.5**undone)
        if value() <= before:
            return undone
        priors.restore()
    return REDOS + 1


class _DataHalf:
    """w and u, and what the data say of them.

    Attributes:
        split: w_k.
        x: L + S.
        dual: u_k.
    """

    def __init__(
        self,
        normal: Callable[[Tensor], Tensor],
        right_side: Tensor,
        start: Tensor,
        rho: float,
        curvature: float,
        limits: tuple[int, float],
    ) -> None:
        self._normal, self._right_side, self._rho = normal, right_side, rho
        self._inertia = max(0.0, rho / 2 - 4 * curvature**2 / rho) / 2
        self._iterations, self._tolerance = limits
        self.split = self._previous = start
        self.x = start.sum(0)
        self._normal_x = normal(self.x)
        self.dual = (self._normal_x - right_side) / rho

    def extrapolated(self, momentum: float) -> Tensor:
        """The split carried on along its last step."""
        return self.split + momentum * (self.split - self._previous)

    def advance(self, parts: Tensor) -> None:
        """Steps 3 and 4."""
        total = parts.sum(0) + 2 * self.dual
        residual = self._right_side + self._rho / 2 * (total - self.x) - self._normal_x

        def system(x: Tensor) -> Tensor:
            return self._normal(x[0])[None] + self._rho / 2 * x

        change = conjugate_gradients(
            system, residual[None], iterations=self._iterations, tolerance=self._tolerance
        ).solution[0]
        self.x = self.x + change
        self._normal_x = self._normal(self.x)
        dual = (total - self.x) / 2
        self._previous, self.split = self.split, parts + (self.dual - dual)
        self.dual = dual

    def lyapunov(self, priors: Priors) -> float:
        """`AL + c |w_k - w_{k-1}|^2`, less `|y|^2 / 2`."""
        gap = priors.parts() - self.split
        data = _inner(self.x, self._normal_x / 2 - self._right_side)
        # |gap + u|^2 - |u|^2 without the difference of two large numbers.
        ties = self._rho / 2 * _square(gap) + self._rho * _inner(gap.sum(0), self.dual)
        return data + priors.value() + ties + self._inertia * _square(self.split - self._previous)

    def is_settled(self, parts: Tensor, tolerance: float) -> bool:
        """Whether neither w nor the distance from p to w has anything left to change."""
        limit = tolerance**2 * _square(self.split)
        return _square(self.split - self._previous) <= limit and _square(parts - self.split) <= limit


def _inner(a: Tensor, b: Tensor) -> float:
    return float(inner(a[None], b[None]))


def _square(a: Tensor) -> float:
    return float(squared_norm(a[None]))
