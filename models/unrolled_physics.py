"""What an unrolled network asks of the physics, and how gradients pass through it. Knows no coils and no Fourier.

Operators are Hermitian, `N = A^H W A`. So where a loss has the gradient g of `N x`, it has the gradient `N g` of x; and
where it has g of `x = (N + w)^-1 r`, it has `h = (N + w)^-1 g` of r and `-Re <h, x>` of w, one number an item. Nothing
inside of the operator is kept for the way back.
"""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Complex, Float
from torch import Tensor


@runtime_checkable
class Encoding(Protocol):
    """Sampling, Fourier transform and coils of some planes, by their normal operator."""

    @property
    def support(self) -> Float[Tensor, "items p q"]:
        """1 where a coil sees something, 0 elsewhere."""
        ...

    def normal(self, image: Complex[Tensor, "items p q"], /) -> Complex[Tensor, "items p q"]:
        """`N x`."""
        ...

    def solve(
        self, right_side: Complex[Tensor, "items p q"], weight: Float[Tensor, "items"], /
    ) -> Complex[Tensor, "items p q"]:
        """`(N + weight)^-1 r`."""
        ...


def apply_normal(encoding: Encoding, image: Complex[Tensor, "items p q"]) -> Complex[Tensor, "items p q"]:
    """`N x`, differentiable."""
    return cast("Tensor", _Normal.apply(encoding, image))  # type: ignore[no-untyped-call]


def apply_solve(
    encoding: Encoding, right_side: Complex[Tensor, "items p q"], weight: Float[Tensor, "items"]
) -> Complex[Tensor, "items p q"]:
    """`(N + weight)^-1 r`, differentiable in both."""
    return cast("Tensor", _Solve.apply(encoding, right_side, weight))  # type: ignore[no-untyped-call]


class _Normal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoding: Encoding, image: Tensor) -> Tensor:
        ctx.encoding = encoding
        return encoding.normal(image)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, ctx.encoding.normal(gradients[0].contiguous())


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, encoding: Encoding, right_side: Tensor, weight: Tensor) -> Tensor:
        ctx.encoding = encoding
        found = encoding.solve(right_side, weight)
        ctx.save_for_backward(found, weight)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        found, weight = ctx.saved_tensors
        back = ctx.encoding.solve(gradients[0].contiguous(), weight)
        by_weight = -(back.conj() * found).real.sum((1, 2))
        return None, back, by_weight
