"""Charbonnier total variation of real images, in the form of a prior: value and gradient in one call.

    R(u) = w sum over pixels (sqrt(|grad u|^2 + eps^2) - eps)

with forward differences along y and x, 0 across the last row and column (the image goes on as it ends). Isotropic: the
length of the slope counts, not its direction. Below eps it is quadratic, `w |grad u|^2 / (2 eps)`, so its gradient has
the Lipschitz constant `8 w / eps`.

Reference: Rudin, Osher and Fatemi 1992, doi 10.1016/0167-2789(92)90242-F; Charbonnier et al. 1997,
doi 10.1109/83.551699 (the smooth form).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """R as a callable.

    Attributes:
        weight: w, in nats per unit of intensity and pixel.
        epsilon: eps, the slope in intensity a pixel below which differences count as noise rather than edges.
    """

    weight: float
    epsilon: float

    def __call__(
        self, images: Float32[Tensor, "items y x"]
    ) -> tuple[Float64[Tensor, "items"], Float32[Tensor, "items y x"]]:
        """R and its gradient for each image."""
        along_y, along_x = _differences(images)
        length = self._length(along_y, along_x)
        flow_y, flow_x = along_y / length, along_x / length
        gradient = -flow_y - flow_x
        gradient[:, 1:] += flow_y[:, :-1]
        gradient[:, :, 1:] += flow_x[:, :, :-1]
        return self._total(along_y, along_x, length), self.weight * gradient

    def value(self, images: Float32[Tensor, "items y x"]) -> Float64[Tensor, "items"]:
        """R alone."""
        along_y, along_x = _differences(images)
        return self._total(along_y, along_x, self._length(along_y, along_x))

    def _length(self, along_y: Tensor, along_x: Tensor) -> Tensor:
        return torch.sqrt(along_y.square() + along_x.square() + self.epsilon**2)

    def _total(self, along_y: Tensor, along_x: Tensor, length: Tensor) -> Tensor:
        # sqrt(g + eps^2) - eps without the difference of two numbers that are nearly equal.
        excess = (along_y.square() + along_x.square()) / (length + self.epsilon)
        return self.weight * excess.sum((1, 2), dtype=torch.float64)


def _differences(images: Float[Tensor, "items y x"]) -> tuple[Tensor, Tensor]:
    """Forward differences along y and x, 0 in the last row and column."""
    return images.diff(dim=1, append=images[:, -1:]), images.diff(dim=2, append=images[:, :, -1:])
