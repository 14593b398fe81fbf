"""The encoding of planes by its normal operator and a solve with it: what an unrolled network asks of the physics.

Weights are relative: `N = S^H F^H W F S` with the largest weight 1, so that its eigenvalues lie between 0 and 1 for any
number of averages. Axes along which no item's weights vary are not transformed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pipelines.operators.fourier import to_image, uncentred
from pipelines.operators.toeplitz import Toeplitz
from pipelines.solvers.cg import conjugate_gradients

ITERATIONS = 20
"""Of a solve. What they leave is the next cascade's, in training as in serving."""
TOLERANCE = 5e-3

BLOCK_BYTES_CPU = 2 << 20
"""Coil images that are worked on at once; see `pipelines.operators.encoding`."""
BLOCK_BYTES_GPU = 1 << 30


class PlaneEncoding:
    """A solve by conjugate gradients, of whatever has a normal operator.

    Attributes:
        support: 1 where a coil sees something.
    """

    support: Float[Tensor, "items p q"]

    def normal(self, image: Tensor, /) -> Tensor:
        """`N x`."""
        raise NotImplementedError

    def solve(
        self, right_side: Complex[Tensor, "items p q"], weight: Float[Tensor, "items"], /
    ) -> Complex[Tensor, "items p q"]:
        """`(N + weight)^-1 r`, as far as `ITERATIONS` steps of conjugate gradients lead."""

        def system(image: Tensor) -> Tensor:
            return self.normal(image).addcmul_(image, weight[:, None, None].to(image.dtype))

        return conjugate_gradients(system, right_side, iterations=ITERATIONS, tolerance=TOLERANCE).solution


class CartesianPlanes(PlaneEncoding):
    """Samples on a grid.

    Args:
        maps: coil sensitivities.
        counts: how often each point of k-space was measured, centre at n//2.

    Attributes:
        maps: as given.
        most: the largest count of each item; noise of `noise_std / sqrt(most)` is that of a sample of weight 1.
    """

    def __init__(self, maps: Complex[Tensor, "items coils p q"], counts: Float[Tensor, "items p q"]) -> None:
        axes = tuple(axis for axis in (-2, -1) if not bool((counts == counts.narrow(axis, 0, 1)).all()))
        self.support = (maps != 0).any(1).to(counts.dtype)
        self.most = counts.flatten(1).amax(1).clamp(min=torch.finfo(counts.dtype).tiny)
        relative = counts / self.most[:, None, None]
        self._centred = relative
        self._axes = axes
        self._weights = (uncentred(relative, axes) if axes else relative)[:, None]
        self.maps = maps
        self._conjugate = maps.conj().resolve_conj()

    def adjoint(self, kspace: Complex[Tensor, "items coils p q"]) -> Complex[Tensor, "items p q"]:
        """`S^H F^H W y` of centred k-space."""
        return (to_image(kspace * self._centred[:, None]) * self._conjugate).sum(1)

    def normal(self, image: Complex[Tensor, "items p q"], /) -> Complex[Tensor, "items p q"]:
        """`S^H F^H W F S x`; in runs of items, and of rows where these are independent, that fit into cache."""
        result = torch.empty_like(image)
        for items, rows in self._runs():
            coils = self.maps[items, :, rows] * image[items, None, rows]
            weights = self._weights[items] if -2 in self._axes else self._weights[items, :, rows]
            if self._axes:
                coils = torch.fft.fftn(coils, dim=self._axes)
                coils *= weights
                coils = torch.fft.ifftn(coils, dim=self._axes)
            else:
                coils *= weights
            coils *= self._conjugate[items, :, rows]
            torch.sum(coils, 1, out=result[items, rows]) if not result.requires_grad else None
        return result

    def _runs(self) -> Iterator[tuple[slice, slice]]:
        items, coils, rows, columns = self.maps.shape
        limit = BLOCK_BYTES_CPU if self.maps.device.type == "cpu" else BLOCK_BYTES_GPU
        fits = max(1, limit // (coils * columns * self.maps.element_size()))
        if fits >= rows or -2 in self._axes:
            size = max(1, fits // rows)
            yield from ((slice(at, at + size), slice(None)) for at in range(0, items, size))
            return
        for item in range(items):
            yield from ((slice(item, item + 1), slice(at, at + fits)) for at in range(0, rows, fits))


class RadialPlanes(PlaneEncoding):
    """Samples off the grid, one trajectory for all items: `S^H A^H D A S` over its largest eigenvalue.

    Args:
        maps: coil sensitivities.
        toeplitz: `A^H D A`.
        largest: its largest eigenvalue.
    """

    def __init__(self, maps: Complex[Tensor, "items coils p q"], toeplitz: Toeplitz, largest: float) -> None:
        self.support = (maps != 0).any(1).float()
        self.maps = maps
        self._toeplitz = toeplitz
        self._largest = largest

    def normal(self, image: Complex[Tensor, "items p q"], /) -> Complex[Tensor, "items p q"]:
        """`N x`."""
        return torch.stack(
            [self._toeplitz.between(maps, each) for maps, each in zip(self.maps, image, strict=True)]
        ).div_(self._largest)
