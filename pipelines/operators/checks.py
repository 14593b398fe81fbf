"""Numerical checks of an operator: is the adjoint the adjoint, and how large is the norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.operators.linear import LinearOperator


def adjointness_error(operator: LinearOperator, domain: Tensor, range_: Tensor) -> float:
    """`|<A x, y> - <x, A^H y>| / (|A x| |y|)` for one x of the domain and one y of the range, in double precision.

    0 when `A x` or `y` is zero and both inner products agree exactly.
    """
    forward = operator(domain).to(torch.complex128)
    left = torch.sum(forward.conj() * range_)
    right = torch.sum(domain.conj().to(torch.complex128) * operator.adjoint(range_))
    scale = float(torch.linalg.vector_norm(forward)) * float(torch.linalg.vector_norm(range_))
    gap = float((left - right).abs())
    return gap / scale if scale > 0 else gap


def operator_norm(normal: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 50) -> float:
    """`||A||` by power iteration on `A^H A`: the Rayleigh quotient of the last iterate, a bound from below.

    Args:
        normal: `A^H A` as a callable.
        start: a vector of the domain that is not orthogonal to the largest singular vector, for example random.
        iterations: applications of `normal`.
    """
    vector = start / torch.linalg.vector_norm(start)
    quotient = 0.0
    for _ in range(iterations):
        image = normal(vector)
        quotient = float(torch.sum(vector.conj() * image).real)
        length = torch.linalg.vector_norm(image)
        if float(length) == 0.0:
            return 0.0
        vector = image / length
    return math.sqrt(max(quotient, 0.0))
