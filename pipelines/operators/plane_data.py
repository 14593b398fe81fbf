"""How far coil images are from what was measured: negative log likelihoods, with gradients, of planes.

    D(s) = sum over samples of w |F s - k|^2 / noise_std^2

in nats for complex white noise with `E|n|^2 = noise_std^2 / w`. Gradients are for the inner product `Re <a, b>`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor

from pipelines.operators.fourier import to_image, uncentred
from pipelines.operators.toeplitz import Toeplitz


class DataTerm(Protocol):
    """D of coil images `(items, coils, p, q)`."""

    noise_std: float
    n_samples: Float64[Tensor, "items"]
    """Complex samples, each counted with its weight as far as it weighs as one: what D is of the truth."""

    def value(self, coils: Tensor, /) -> Float64[Tensor, "items"]:
        """D of each item."""
        ...

    def value_and_gradient(self, coils: Tensor, /) -> tuple[Float64[Tensor, "items"], Tensor]:
        """D and its gradient by the coil images."""
        ...


class CartesianData:
    """D of samples on a grid.

    The transform is left out along axes on which the weights do not vary (the readout, nearly always), and shifts are
    done once, to the data: `F s` in the plain order of the FFT is compared with `F (F^-1 k)` in the same order.

    Args:
        kspace: centred, zero where not measured.
        weights: how often each point was measured.
        noise_std: root of `E|n|^2` of one measurement.
    """

    def __init__(
        self, kspace: Complex64[Tensor, "items coils p q"], weights: Float32[Tensor, "items p q"], noise_std: float
    ) -> None:
        self.noise_std = noise_std
        self.n_samples = (weights > 0).sum((1, 2), dtype=torch.float64) * kspace.shape[1]
        self._axes = tuple(
            axis for axis in (-2, -1) if not bool((weights == weights.narrow(axis, 0, 1)).all())
        )
        self._weights = uncentred(weights / noise_std**2, self._axes)[:, None] if self._axes else weights[:, None] / noise_std**2
        self._measured = self._forward(to_image(kspace)) * (self._weights > 0)

    def value(self, coils: Tensor, /) -> Float64[Tensor, "items"]:
        """D of each item."""
        return self._value(self._residual(coils))

    def value_and_gradient(self, coils: Tensor, /) -> tuple[Float64[Tensor, "items"], Tensor]:
        """D and its gradient `2 F^H W (F s - k)`."""
        residual = self._residual(coils)
        value = self._value(residual)
        residual *= 2 * self._weights
        gradient: Tensor = torch.fft.ifftn(residual, dim=self._axes, norm="ortho") if self._axes else residual
        return value, gradient

    def _forward(self, coils: Tensor) -> Tensor:
        transformed: Tensor = torch.fft.fftn(coils, dim=self._axes, norm="ortho") if self._axes else coils.clone()
        return transformed

    def _residual(self, coils: Tensor) -> Tensor:
        return self._forward(coils).sub_(self._measured)

    def _value(self, residual: Tensor) -> Float64[Tensor, "items"]:
        power = torch.view_as_real(residual).square().sum(-1)
        return (power * self._weights).sum((1, 2, 3), dtype=torch.float64)


class NonUniformData:
    """D of samples off a grid, weighted by the area of k-space that each stands for; one trajectory for all items.

    Without these weights the centre of radial k-space, sampled a hundred times as densely as its edge, decides the
    length of every step. `noise_std` is that of the weighted samples (`pipelines.recon.nonuniform_sense`).

    Args:
        toeplitz: `A^H D A`.
        adjoint: `A^H D y`.
        energy: `y^H D y` of each item.
        noise_std: see above.
        n_samples: what `y^H D y / noise_std^2` is of noise alone.
    """

    def __init__(
        self,
        toeplitz: Toeplitz,
        adjoint: Complex64[Tensor, "items coils p q"],
        energy: Float64[Tensor, "items"],
        noise_std: float,
        n_samples: Float64[Tensor, "items"],
    ) -> None:
        self.noise_std = noise_std
        self.n_samples = n_samples
        self._toeplitz = toeplitz
        self._adjoint = adjoint
        self._energy = energy

    def value(self, coils: Tensor, /) -> Float64[Tensor, "items"]:
        """D of each item."""
        return self._value(coils, self._normal(coils))

    def value_and_gradient(self, coils: Tensor, /) -> tuple[Float64[Tensor, "items"], Tensor]:
        """D and its gradient `2 (N s - A^H D y)`."""
        normal = self._normal(coils)
        return self._value(coils, normal), normal.sub_(self._adjoint).mul_(2 / self.noise_std**2)

    def _normal(self, coils: Tensor) -> Tensor:
        return self._toeplitz(coils.flatten(0, 1)).view(coils.shape)

    def _value(self, coils: Tensor, normal: Tensor) -> Float64[Tensor, "items"]:
        part = (coils.conj() * (normal - 2 * self._adjoint)).real
        return (part.sum((1, 2, 3), dtype=torch.float64) + self._energy) / self.noise_std**2
