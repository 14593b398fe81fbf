"""Which points of k-space were measured, and how often."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from pipelines.operators.linear import LinearOperator


def sampling_weights(
    counts: Float32[Tensor, "frames z y"], readout_sampled: Bool[Tensor, "x"]
) -> Float32[Tensor, "frames z y x"]:
    """How often each point of k-space was measured, 0 where it was not."""
    return counts[..., None] * readout_sampled


class Sampling(LinearOperator):
    """Multiply every coil's k-space `(frames, coils, z, y, x)` by the square root of how often each point was measured.

    The mean of `n` readouts has noise variance `1/n`, so its square root whitens averaged data: with it, least squares
    gives repeated lines the weight that they deserve, and the normal operator holds the counts themselves.
    """

    def __init__(self, weights: Float32[Tensor, "frames z y x"]) -> None:
        self._root = torch.sqrt(weights)[:, None]

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Weighted k-space, zero where nothing was measured."""
        return tensor * self._root

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """The same multiplication: the weights are real."""
        return tensor * self._root
