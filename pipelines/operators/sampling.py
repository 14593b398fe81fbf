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


FARTHEST_REACH = 4
"""Lines by which coils carry information at most: sensitivities are smooth."""


def unreached(
    counts: Float32[Tensor, "frames z y"], readout_sampled: Bool[Tensor, "x"]
) -> Bool[Tensor, "frames z y x"]:
    """K-space farther from all measured lines than these usually are from each other: coils cannot fill such gaps.

    That is the missing side of partial Fourier and asymmetric echoes, the rim of a smaller matrix, the corners of an
    elliptical shutter: nothing within a regular pattern. K-space is periodic along z and y, so that a pattern may begin
    with any line; missing samples of a readout are next to nothing measured.
    """
    reached = torch.stack([_reach(_reach(frame, 0), 1) for frame in counts > 0])
    return ~(reached[..., None] & readout_sampled)


def _reach(measured: Bool[Tensor, "z y"], axis: int) -> Bool[Tensor, "z y"]:
    """Lines and their neighbours up to half the usual distance of two of them along one axis, dense parts left out."""
    n = measured.shape[axis]
    lines, at = torch.nonzero(measured.movedim(axis, 1), as_tuple=True)
    gaps = at.diff()[lines.diff() == 0]
    gaps = gaps[gaps > 1]
    radius = min(int(gaps.median()) // 2 if len(gaps) else 0, FARTHEST_REACH, n - 1)
    reached = measured
    for shift in range(1, radius + 1):
        reached = reached | measured.roll(shift, axis) | measured.roll(-shift, axis)
    return reached


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
