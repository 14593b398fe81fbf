"""Batched conjugate gradients for Hermitian positive semi-definite systems.

Knows no MRI: the system comes as a callable, and any number of independent systems of one shape are solved side by
side, each with step sizes of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pipelines.solvers.items import inner, spread, squared_norm


@dataclass(frozen=True, slots=True)
class Solution:
    """Result of a solve.

    Attributes:
        solution: `(items, ...)`, one solution an item.
        iterations: steps taken for each item.
        residual: `|b - A x| / |b|` of each item as the recursion has it; 0 where b is zero.
    """

    solution: Tensor
    iterations: Int64[Tensor, "items"]
    residual: Float64[Tensor, "items"]


def conjugate_gradients(
    system: Callable[[Tensor], Tensor],
    right_side: Tensor,
    *,
    iterations: int,
    tolerance: float,
) -> Solution:
    """Solve `A x = b` for each item of a batch, starting from zero.

    An item stops when its residual has fallen to `tolerance |b|`, or when it meets a direction of zero curvature (a
    null vector of a semi-definite system); the others go on. With x at zero the iterates stay in the range of A, so a
    consistent semi-definite system gives the least-norm solution.

    Args:
        system: A, applied to a tensor of the shape of `right_side`; it acts on each item alone.
        right_side: b, `(items, ...)`, real or complex.
        iterations: most steps.
        tolerance: relative residual at which an item stops.

    Symbols of the paper: `x` solution, `r` residual, `p` direction, `alpha` step, `beta` conjugation. Inner products
    are accumulated in double precision: in single precision `alpha` loses digits just where slow directions need them.

    Reference: Hestenes and Stiefel 1952, doi 10.6028/jres.049.044.
    """
    items = right_side.shape[0]
    x = torch.zeros_like(right_side)
    r = right_side.clone()
    p = right_side.clone()
    rr = squared_norm(r)
    start = rr.clone()
    goal = start * tolerance**2
    steps = torch.zeros(items, dtype=torch.int64, device=right_side.device)
    active = rr > goal
    for _ in range(iterations):
        if not bool(active.any()):
            break
        ap = system(p)
        curvature = inner(p, ap)
        active = active & (curvature > 0)
        alpha = torch.where(active, rr / curvature.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        x.addcmul_(p, spread(alpha, p))
        r.addcmul_(ap, spread(-alpha, p))
        rr_next = torch.where(active, squared_norm(r), rr)
        beta = torch.where(active, rr_next / rr.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
        p.mul_(spread(beta, p)).add_(r)
        rr = rr_next
        steps += active
        active = active & (rr > goal)
    residual = torch.sqrt(rr / start.clamp_min(torch.finfo(torch.float64).tiny))
    return Solution(x, steps, residual)
