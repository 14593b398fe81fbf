"""Coil sensitivities: from one image to one image a coil and back."""

from __future__ import annotations

from jaxtyping import Complex64
from torch import Tensor

from pipelines.operators.linear import LinearOperator


class Sensitivity(LinearOperator):
    """Multiply an image `(frames, z, y, x)` by the map of each coil: `(frames, coils, z, y, x)`.

    With root-sum-of-squares 1 of the maps inside the object, the norm of this operator is 1.
    """

    def __init__(self, maps: Complex64[Tensor, "coils z y x"]) -> None:
        self._maps = maps

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Image of each coil."""
        return tensor[:, None] * self._maps

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """Coil images combined with the conjugate maps."""
        return (tensor * self._maps.conj()).sum(dim=1)

    def normal(self, tensor: Tensor, /) -> Tensor:
        """Multiply by the sum of squares of the maps."""
        return tensor * self._maps.abs().square().sum(dim=0)
