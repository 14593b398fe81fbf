"""The one centred, orthonormal Fourier transform of the project, and the facts that keep shifts out of hot loops.

Convention: k-space and image both have their centre at index n//2 of every axis; `||F|| = 1`; image to k-space is the
transform with the minus sign.

Two facts used by `pipelines.operators.encoding`:

1. A readout that is sampled completely needs no transform inside an iteration: F along x cancels in A^H A.
2. `F^H W F` with diagonal W is a circular convolution, which commutes with shifts. With the weights brought into the
   order of the plain FFT once (`uncentred`), `ifft(W' * fft(x))` equals the centred form for even and odd sizes,
   without any shift or checkerboard of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex
from torch import Tensor

from pipelines.operators.linear import LinearOperator


def to_kspace(image: Complex[Tensor, "*shape"], axes: Sequence[int] = (-2, -1)) -> Complex[Tensor, "*shape"]:
    """Centred orthonormal Fourier transform along `axes`."""
    dim = _long(image, axes)
    if not dim:
        return image.clone()
    shifted = torch.fft.ifftshift(image, dim=dim)
    transformed: Tensor = torch.fft.fftshift(torch.fft.fftn(shifted, dim=dim, norm="ortho"), dim=dim)
    return transformed


def to_image(kspace: Complex[Tensor, "*shape"], axes: Sequence[int] = (-2, -1)) -> Complex[Tensor, "*shape"]:
    """Centred orthonormal inverse Fourier transform along `axes`; inverse and adjoint of `to_kspace`."""
    dim = _long(kspace, axes)
    if not dim:
        return kspace.clone()
    shifted = torch.fft.ifftshift(kspace, dim=dim)
    transformed: Tensor = torch.fft.fftshift(torch.fft.ifftn(shifted, dim=dim, norm="ortho"), dim=dim)
    return transformed


def _long(tensor: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes with more than one point; along the others the transform is the identity."""
    return tuple(axis for axis in axes if tensor.shape[axis] > 1)


def uncentred(weights: Tensor, axes: Sequence[int]) -> Tensor:
    """Bring centred k-space weights into the order of the plain FFT (index 0 is the k-space centre) along `axes`."""
    reordered: Tensor = torch.fft.ifftshift(weights, dim=tuple(axes))
    return reordered


class Fourier(LinearOperator):
    """Image to k-space along some axes, counted from the end."""

    def __init__(self, axes: Sequence[int] = (-2, -1)) -> None:
        self._axes = tuple(axes)

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """K-space of an image."""
        return to_kspace(tensor, self._axes)

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """Image of a k-space."""
        return to_image(tensor, self._axes)

    def normal(self, tensor: Tensor, /) -> Tensor:
        """The identity: the transform is unitary."""
        return tensor
