"""FISTA with restart: accelerated proximal gradient for convex problems.

    minimise f(x) + g(x),    f smooth with a gradient of Lipschitz constant L, g with a proximal map

    x_{k+1} = prox_{g/L}(y_k - grad f(y_k) / L),    y_{k+1} = x_{k+1} + (t_k - 1) / t_{k+1} (x_{k+1} - x_k),
    t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2

An item whose last step went against its gradient, `Re <y_k - x_{k+1}, x_{k+1} - x_k> > 0`, begins its acceleration anew
(t = 1): that recovers the linear rate of problems that are strongly convex near their minimum, without anything known
of them, and needs no value of the objective, so that an iteration is one gradient and one proximal map. Knows no MRI.

References: Beck and Teboulle 2009, doi 10.1137/080716542; O'Donoghue and Candès 2015, doi 10.1007/s10208-013-9150-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pipelines.solvers.items import inner, spread, squared_norm


@dataclass(frozen=True, slots=True)
class Minimum:
    """Where the iteration ended.

    Attributes:
        x: `(items, ...)`.
        iterations: made by each item.
        restarts: of each item.
        has_converged: items that reached the tolerance.
    """

    x: Tensor
    iterations: Int64[Tensor, "items"]
    restarts: Int64[Tensor, "items"]
    has_converged: Bool[Tensor, "items"]


def fista(
    gradient: Callable[[Tensor], Tensor],
    proximal: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    *,
    curvature: Float64[Tensor, "items"],
    iterations: int,
    tolerance: float,
    should_stop: Callable[[], bool] | None = None,
) -> Minimum:
    """Minimise f + g for each item of a batch.

    Args:
        gradient: of f; of complex items the derivative by the real part plus i times that by the imaginary part.
        proximal: of a point and a step `(items,)`: the minimiser of `g(x) + |x - point|^2 / (2 step)`.
        start: `(items, ...)`, real or complex.
        curvature: L of each item; with a smaller one the iterates may grow without end.
        iterations: most iterations.
        tolerance: an item stops when `|x_{k+1} - x_k| <= tolerance |x_{k+1}|`.
        should_stop: asked before each iteration; True ends all items.
    """
    items = start.shape[0]
    x = y = start
    t = torch.ones(items, dtype=torch.float64, device=start.device)
    step = 1 / curvature
    active = torch.ones(items, dtype=torch.bool, device=start.device)
    steps = torch.zeros(items, dtype=torch.int64, device=start.device)
    restarts = torch.zeros_like(steps)
    for _ in range(iterations):
        if not bool(active.any()) or (should_stop is not None and should_stop()):
            break
        found = proximal(y - spread(step, y) * gradient(y), step.to(x.dtype.to_real()))
        found = found if bool(active.all()) else torch.where(spread(active, x), found, x)
        change = found - x
        turns = active & (inner(y - found, change) > 0)
        following = (1 + torch.sqrt(1 + 4 * t.square())) / 2
        momentum = torch.where(turns, 0.0, (t - 1) / following)
        t = torch.where(turns, 1.0, following)
        y = found + spread(momentum, found) * change
        settled = squared_norm(change) <= tolerance**2 * squared_norm(found)
        x = found
        steps += active
        restarts += turns
        active = active & ~settled
    return Minimum(x, steps, restarts, ~active)
