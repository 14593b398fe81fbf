"""Proximal maps of the nuclear norm and of temporal sparsity, for matrices of frames by pixels. Knows no MRI.

Frames are few and pixels many, so singular values come from the small Gram matrix `X X^H` of frames by frames: its
eigenvectors V and eigenvalues s^2 give `X = V diag(s) W^H` with `diag(s) W^H = V^H X`. Singular values below 1e-3 of
the largest lose digits to the square; a threshold that matters is above them.

References: Cai, Candès, Shen 2010, doi 10.1137/080738970 (singular value thresholding).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

_TINY = 1e-30


def shrink_singular_values(matrices: Tensor, threshold: Float[Tensor, "items"]) -> Tensor:
    """`argmin_Z t |Z|_* + |Z - X|^2 / 2` of each item `(items, frames, pixels)`: singular values less t, at least 0."""
    squares, vectors = _gram_eigen(matrices)
    values = squares.clamp(min=0).sqrt()
    factors = (1 - threshold.to(torch.float64)[:, None] / values.clamp(min=_TINY)).clamp(min=0)
    mixing = (vectors * factors[:, None].to(vectors.dtype)) @ vectors.mH
    return mixing.to(matrices.dtype) @ matrices


def nuclear_norm(matrices: Tensor) -> Float64[Tensor, "items"]:
    """Sum of the singular values of each item."""
    return _gram_eigen(matrices)[0].clamp(min=0).sqrt().sum(1)


def leading_part(matrices: Tensor, rank: int) -> Tensor:
    """The nearest matrix of at most that rank to each item `(items, frames, pixels)`."""
    _, vectors = _gram_eigen(matrices)
    leading = vectors[..., -rank:]
    return (leading @ leading.mH).to(matrices.dtype) @ matrices


def shrink_temporal_spectrum(
    matrices: Tensor, threshold: Float[Tensor, "items"], *, without_mean: bool = False
) -> Tensor:
    """`argmin_Z t |F Z|_1 + |Z - X|^2 / 2`, F the unitary Fourier transform over frames `(items, frames, pixels)`.

    Magnitudes of the spectrum less t, at least 0, with their phase. With `without_mean` Z has mean 0 over the frames.
    """
    spectrum = torch.fft.fft(matrices, dim=1, norm="ortho")
    size = spectrum.abs()
    limit = threshold.to(size.dtype).view(-1, 1, 1)
    spectrum *= (1 - limit / size.clamp(min=_TINY)).clamp(min=0)
    if without_mean:
        spectrum[:, 0] = 0
    shrunk: Tensor = torch.fft.ifft(spectrum, dim=1, norm="ortho")
    return shrunk


def temporal_l1(matrices: Tensor) -> Float64[Tensor, "items"]:
    """`|F X|_1` of each item."""
    size: Tensor = torch.fft.fft(matrices, dim=1, norm="ortho").abs()
    return size.sum((1, 2), dtype=torch.float64)


def _gram_eigen(matrices: Tensor) -> tuple[Float64[Tensor, "items frames"], Tensor]:
    gram = matrices @ matrices.mH
    exact = torch.complex128 if matrices.is_complex() else torch.float64
    squares, vectors = torch.linalg.eigh(gram.to(exact))
    return squares, vectors
