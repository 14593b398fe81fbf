"""How far coil images are from what was measured: negative log likelihoods, with gradients, of planes.

    D(s) = sum over samples of w |F s - k|^2 / noise_std^2

in nats for complex white noise with `E|n|^2 = noise_std^2 / w`. Gradients are for the inner product `Re <a, b>`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Complex64, Float32, Float64
from torch import Tensor

from pipelines.operators.coils import power_of_coils
from pipelines.operators.fourier import to_image, uncentred
from pipelines.operators.toeplitz import Toeplitz
from pipelines.solvers.items import spread, total


@runtime_checkable
class DataTerm(Protocol):
    """D of coil images `(items, coils, p, q)`."""

    n_samples: Float64[Tensor, "items"]
    """What D is of the true coil images on average: complex samples, weights aside."""

    curvature: Float64[Tensor, "items"]
    """The largest eigenvalue of D's second derivative, as a bound."""

    def value(self, coils: Tensor, /) -> Float64[Tensor, "items"]:
        """D of each item."""
        ...

    def value_and_gradient(self, coils: Tensor, /) -> tuple[Float64[Tensor, "items"], Tensor]:
        """D and its gradient by the coil images."""
        ...

    def completed(self, coils: Tensor, /) -> Tensor | None:
        """Coil images with the measured samples put in, in the units of the data; None for samples off the grid."""
        ...

    def of_unit(self, unit: Float32[Tensor, "items"], noise_std: Float32[Tensor, "items"]) -> DataTerm:
        """The same data in other units, with another noise.

        Args:
            unit: what of the units so far becomes 1.
            noise_std: root of `E|n|^2` of one measurement, in the new units.
        """
        ...


class CartesianData:
    """D of samples on a grid.

    The transform is left out along axes on which the weights do not vary (the readout, nearly always), and shifts are
    done once, to the data: `F s` in the plain order of the FFT is compared with `F (F^-1 k)` in the same order.

    Args:
        measured: data in the order of the plain FFT along the transformed axes, in image space along the others.
        counts: how often each point was measured, in the same order.
        axes: transformed ones.
        noise_std: root of `E|n|^2` of one measurement, of each item.
    """

    def __init__(
        self,
        measured: Complex64[Tensor, "items coils p q"],
        counts: Float32[Tensor, "items 1 p q"],
        axes: tuple[int, ...],
        noise_std: Float32[Tensor, "items"],
    ) -> None:
        self._measured = measured
        self._counts = counts
        self._axes = axes
        self._weights = counts / spread(noise_std.square(), counts)
        self.n_samples = (counts > 0).sum((1, 2, 3), dtype=torch.float64) * measured.shape[1]
        self.curvature = 2 * self._weights.flatten(1).amax(1).to(torch.float64)

    @classmethod
    def of_kspace(
        cls, kspace: Complex64[Tensor, "items coils p q"], weights: Float32[Tensor, "items p q"], noise_std: float
    ) -> CartesianData:
        """From centred k-space, zero where not measured.

        Args:
            kspace: samples; repeated ones averaged.
            weights: how often each point was measured.
            noise_std: root of `E|n|^2` of one measurement.
        """
        axes = tuple(axis for axis in (-2, -1) if not bool((weights == weights.narrow(axis, 0, 1)).all()))
        counts = (uncentred(weights, axes) if axes else weights)[:, None]
        measured = _forward(to_image(kspace), axes) * (counts > 0)
        return cls(measured, counts, axes, torch.full((len(kspace),), noise_std, device=kspace.device))

    def of_unit(self, unit: Float32[Tensor, "items"], noise_std: Float32[Tensor, "items"]) -> CartesianData:
        """The same data in other units, with another noise."""
        return CartesianData(self._measured / spread(unit, self._measured), self._counts, self._axes, noise_std)

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

    def completed(self, coils: Tensor, /) -> Tensor:
        """Coil images whose k-space is the measured one where there is any."""
        full = torch.where(self._counts > 0, self._measured, _forward(coils, self._axes))
        images: Tensor = torch.fft.ifftn(full, dim=self._axes, norm="ortho") if self._axes else full
        return images

    def _residual(self, coils: Tensor) -> Tensor:
        return _forward(coils, self._axes).sub_(self._measured)

    def _value(self, residual: Tensor) -> Float64[Tensor, "items"]:
        return total(power_of_coils(residual) * self._weights[:, 0])


class NonUniformData:
    """D of samples off a grid, weighted by the area of k-space that each stands for; one trajectory for all items.

    Without these weights the centre of radial k-space, sampled a hundred times as densely as its edge, decides the
    length of every step.

    Args:
        toeplitz: `A^H D A`.
        adjoint: `A^H D y`.
        energy: `y^H D y` of each item.
        noise_std: root of `E|n|^2` of the weighted samples, of each item.
        n_samples: what `y^H D y / noise_std^2` is of noise alone.
        largest: the largest eigenvalue of `A^H D A`.
    """

    def __init__(
        self,
        toeplitz: Toeplitz,
        adjoint: Complex64[Tensor, "items coils p q"],
        energy: Float64[Tensor, "items"],
        noise_std: Float32[Tensor, "items"],
        n_samples: Float64[Tensor, "items"],
        largest: float,
    ) -> None:
        self.n_samples = n_samples
        self.curvature = 2 * largest / noise_std.to(torch.float64).square()
        self._toeplitz = toeplitz
        self._adjoint = adjoint
        self._energy = energy
        self._noise_std = noise_std
        self._largest = largest

    def of_unit(self, unit: Float32[Tensor, "items"], noise_std: Float32[Tensor, "items"]) -> NonUniformData:
        """The same data in other units, with another noise."""
        adjoint = self._adjoint / spread(unit, self._adjoint)
        energy = self._energy / unit.to(torch.float64).square()
        return NonUniformData(self._toeplitz, adjoint, energy, noise_std, self.n_samples, self._largest)

    def value(self, coils: Tensor, /) -> Float64[Tensor, "items"]:
        """D of each item."""
        return self._value(coils, self._normal(coils))

    def value_and_gradient(self, coils: Tensor, /) -> tuple[Float64[Tensor, "items"], Tensor]:
        """D and its gradient `2 (N s - A^H D y)`."""
        normal = self._normal(coils)
        value = self._value(coils, normal)
        return value, normal.sub_(self._adjoint).mul_(spread(2 / self._noise_std.square(), normal))

    def completed(self, coils: Tensor, /) -> None:
        """None."""

    def _normal(self, coils: Tensor) -> Tensor:
        return self._toeplitz(coils.flatten(0, 1)).view(coils.shape)

    def _value(self, coils: Tensor, normal: Tensor) -> Float64[Tensor, "items"]:
        part = torch.view_as_real(coils) * torch.view_as_real(normal - 2 * self._adjoint)
        return (total(part) + self._energy) / self._noise_std.to(torch.float64).square()


def _forward(coils: Tensor, axes: tuple[int, ...]) -> Tensor:
    transformed: Tensor = torch.fft.fftn(coils, dim=axes, norm="ortho") if axes else coils.clone()
    return transformed
