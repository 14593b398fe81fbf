"""A penalty on the slope of an image: `F^H diag(|k|^2 / k0^2) F`."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.operators.fourier import to_image, to_kspace
from pipelines.operators.linear import LinearOperator
from pipelines.operators.toeplitz import fast_length

REFERENCE = 0.25
"""k0 in cycles a pixel, half the largest along an axis: what is that far from the centre has the penalty 1."""


class Smoothness(LinearOperator):
    """Images `(..., y, x)` filtered by the square of the spatial frequency; Hermitian, zero for a constant image.

    The image is embedded in a grid that the FFT likes, with zeros around.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._shape = shape
        self._grid = (fast_length(shape[0]), fast_length(shape[1]))
        y, x = (torch.fft.fftshift(torch.fft.fftfreq(n, device=device)) for n in self._grid)
        self._penalty = (y[:, None].square() + x.square()) / REFERENCE**2

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Penalised image."""
        rows, columns = self._shape
        padded = tensor.new_zeros((*tensor.shape[:-2], *self._grid))
        padded[..., :rows, :columns] = tensor
        return to_image(to_kspace(padded) * self._penalty)[..., :rows, :columns]

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """The same: the penalty is real."""
        return self(tensor)
