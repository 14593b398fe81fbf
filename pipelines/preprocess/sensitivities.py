"""Coil sensitivities from the fully sampled centre of k-space: ESPIRiT, computed where it is smooth.

ESPIRiT (Uecker 2014, doi 10.1002/mrm.24751) finds the maps as eigenvectors with eigenvalue 1 of a small Hermitian
matrix `G(r)` (coils x coils) at each pixel r, which describes how calibration patches predict themselves. The usual
implementations build and decompose `G` at every pixel of the image. Two facts make that unnecessary:

1. `G` is band-limited: with kernels of k points it is a trigonometric polynomial of 2k-1 terms an axis. A coarse grid
   with a few points a term holds all of it, whatever the matrix size.
2. Its dominant eigenvector is, up to its phase, an analytic function of `G` wherever the eigenvalue is simple, which is
   what "inside the object" means here. So it can be interpolated from the coarse grid (`interpolation.py` sees to the
   phase); pixel-wise normalisation removes what is left of the amplitude error.

Why ESPIRiT and not Walsh's or Inati's local covariance (`python tests/benchmarks/sense_against_bart.py maps quality`):
its maps are 1.5 to 1.8 times nearer to the truth, it needs no image (so no ringing from the truncated centre), in this
form it takes 28 ms for 320 x 320 x 8 where a decomposition at every pixel takes 560, and its eigenvalue tells where
there is signal. That support is what helps the image most: on a brain at R = 2 to 4 Walsh's maps give 2 to 7 % more
error without it and within 2 % of the same error with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Float32
from scipy.ndimage import label
from torch import Tensor
from torch.nn.functional import max_pool3d

from pipelines.errors import ReconstructionError
from pipelines.preprocess.interpolation import interpolate, interpolate_directions

CALIBRATION_SIZE = 24
"""Points of k-space used along each axis. More change the error of the image by less than 1 % (measured)."""

FEWEST_CALIBRATION_LINES = 8
"""A smaller block cannot hold a kernel of coil sensitivities with room to slide."""

KERNEL_SIZE = (4, 6, 6)
"""Kernel along z, y, x. Six is BART's choice; four along z keeps volumes affordable."""

KERNEL_THRESHOLD = 1e-3
"""Kernels are kept whose eigenvalue exceeds this part of the largest. At low signal to noise more kernels pass and the
support grows to the whole field of view: it fails towards a noisy background, not towards missing anatomy. A threshold
from the noise level (Marchenko-Pastur edge) cut 12 to 16 % of the object away when the noise was three times the
signal.
"""

EIGENVALUE_CROP = 0.85
"""Pixels with a smaller eigenvalue hold no signal. BART takes 0.8 without a margin; no crop costs 5 % at R = 4;
0.9 cut 1 to 9 % of a brain away when only 8 calibration lines were there."""

SUPPORT_MARGIN = 2
"""Pixels by which notches in the support are closed and its rim is kept, so that dark anatomy is not cut away."""

POINTS_PER_TERM = 6
"""Coarse grid points for each term of `G`; with 6 the maps differ from those of a full grid by under 1e-3."""

MOST_UNKNOWNS = 1152
"""Side of the matrix to diagonalise: kernel points times coils. Above it the coils are compressed for the estimate."""

SQUARINGS = 7
"""`G` is raised to the power 2^7, which separates eigenvalues that differ by 5 % to 1e-3."""


NEIGHBOUR_WEIGHT = 0.5
"""Of the patches of a neighbouring slice. Part of the signal that wrong maps lose in a 1 mm head with 8 coils, without
and with both neighbours (1 or 5 mm away alike), noise of 0.05 of the brightest pixel: 24 lines 0.0170 and 0.0115, 12
lines 0.0302 and 0.0269, 8 lines 0.0452 and 0.0434; noise of 0.01: 0.0074 and 0.0069, 0.0250 and 0.0249, 0.0425 and
0.0424. Neighbours average noise away, they do not replace lines."""


def estimate_maps(
    calibration: Complex64[Tensor, "coils cz cy cx"],
    shape: tuple[int, int, int],
    neighbours: Sequence[Complex64[Tensor, "coils nz ny nx"]] = (),
) -> Complex64[Tensor, "coils z y x"]:
    """Estimate coil sensitivities on the grid of the image.

    Maps have root-sum-of-squares 1 inside the support of the object and are 0 outside of it, so that an image made
    with them is 0 there. Their phase is relative to the dominant combination of the coils. A single coil gets a map of
    ones. A calibration without any signal gives maps of zeros.

    Args:
        calibration: fully sampled centre of k-space, its centre at index n//2 of each axis, same field of view as the
            image. 4 to 64 points an axis are sensible; an axis of one point is taken as constant.
        shape: z, y, x of the image.
        neighbours: the same of slices next to this one, whose coils see nearly the same; they help against noise.

    Raises:
        ReconstructionError: a value of the calibration is not finite.
    """
    n_coils = calibration.shape[0]
    if n_coils == 1:
        return torch.ones((1, *shape), dtype=torch.complex64, device=calibration.device)
    largest = max(float(torch.view_as_real(each).abs().max()) for each in (calibration, *neighbours))
    if not math.isfinite(largest):
        raise ReconstructionError("calibration lines hold values that are not finite")
    if largest == 0:
        return torch.zeros((n_coils, *shape), dtype=torch.complex64, device=calibration.device)
    centre = _central(calibration) / largest
    kernel = [min(most, (n + 1) // 2) for most, n in zip(KERNEL_SIZE, centre.shape[1:], strict=True)]
    basis = _coil_basis(centre)[:, : max(8, MOST_UNKNOWNS // math.prod(kernel))]
    blocks = [(torch.tensordot(basis.mH, centre, dims=1), 1.0)]
    for each in neighbours:
        near = _central(each) / largest
        if all(n >= size for n, size in zip(near.shape[1:], kernel, strict=True)):
            blocks.append((torch.tensordot(basis.mH, near, dims=1), NEIGHBOUR_WEIGHT))

    grid = [min(n, POINTS_PER_TERM * (2 * k - 1)) for n, k in zip(shape, kernel, strict=True)]
    vectors, eigenvalues = _dominant_eigenvectors(_on_grid(_lag_covariance(blocks, kernel), kernel, grid))
    support = _support(interpolate(eigenvalues.to(torch.complex64)[None], shape)[0].real)
    # The first virtual coil is the dominant combination: the phase of the maps is relative to it.
    maps = (basis @ interpolate_directions(vectors, support).flatten(1)).view(n_coils, *shape)
    length = torch.view_as_real(maps).square().sum((0, -1)).sqrt()
    # Zero length means that nothing is known of this pixel.
    scale = torch.where(support & (length > 0), 1 / length.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return maps.mul_(scale)


def _central(kspace: Tensor) -> Tensor:
    """The central points of each axis; the centre stays at n//2."""
    for axis in (1, 2, 3):
        n = kspace.shape[axis]
        size = min(n, CALIBRATION_SIZE)
        kspace = kspace.narrow(axis, n // 2 - size // 2, size)
    return kspace


def _coil_basis(centre: Complex64[Tensor, "coils cz cy cx"]) -> Complex64[Tensor, "coils coils"]:
    """Orthonormal combinations of coils, the one with most energy first."""
    samples = centre.flatten(1)
    _, vectors = torch.linalg.eigh(samples @ samples.mH)
    return torch.flip(vectors, (-1,))


def _lag_covariance(
    blocks: Sequence[tuple[Complex64[Tensor, "coils cz cy cx"], float]], kernel: Sequence[int]
) -> Tensor:
    """Coefficients of `G`: `(2kz-1, 2ky-1, 2kx-1, coils, coils)`, one matrix for each lag between two kernel points.

    Blocks of k-space come with the weights of their patches.

    The projection Q onto the space of calibration patches maps `(coil, point)` to `(coil, point)`; prediction from all
    positions of the patch is averaged, so entries with the same lag add up.
    """
    centre = blocks[0][0]
    n_coils, n_points = centre.shape[0], math.prod(kernel)
    gram = centre.new_zeros((n_points * n_coils, n_points * n_coils))
    for block, weight in blocks:
        patches = block
        for axis, size in zip((1, 2, 3), kernel, strict=True):
            patches = patches.unfold(axis, size, 1)
        rows = patches.permute(1, 2, 3, 4, 5, 6, 0).reshape(-1, n_points * n_coils)
        gram += weight * (rows.mT @ rows.conj())
    eigenvalues, vectors = torch.linalg.eigh(gram / gram.diagonal().real.sum())
    kept = vectors[:, eigenvalues > KERNEL_THRESHOLD * eigenvalues[-1]]
    projection = (kept @ kept.mH).view(n_points, n_coils, n_points, n_coils)
    by_pair = projection.permute(0, 2, 1, 3).reshape(n_points * n_points, n_coils * n_coils)

    points = torch.cartesian_prod(*(torch.arange(size) for size in kernel)).view(n_points, 3)
    lags = points[None, :] - points[:, None]
    index = torch.zeros(n_points, n_points, dtype=torch.int64)
    for axis, size in enumerate(kernel):
        index = index * (2 * size - 1) + lags[..., axis] + size - 1
    terms = [2 * size - 1 for size in kernel]
    total = torch.zeros(math.prod(terms), n_coils * n_coils, dtype=centre.dtype, device=centre.device)
    total.index_add_(0, index.flatten().to(centre.device), by_pair)
    return (total / n_points).view(*terms, n_coils, n_coils)


def _on_grid(lags: Tensor, kernel: Sequence[int], grid: Sequence[int]) -> Complex64[Tensor, "gz gy gx coils coils"]:
    """Evaluate `G(u) = sum over lags d of G_d exp(-2 pi i u d)` on a grid of the field of view, exactly."""
    values = lags
    for axis, (size, n) in enumerate(zip(kernel, grid, strict=True)):
        positions = (torch.arange(n, dtype=torch.float64) - n // 2) / n
        angles = -2 * math.pi * torch.outer(positions, torch.arange(1 - size, size, dtype=torch.float64))
        waves = torch.polar(torch.ones_like(angles), angles).to(values.device, values.dtype)
        values = _along(waves, values, axis)
    return values


def _dominant_eigenvectors(
    matrices: Complex64[Tensor, "gz gy gx coils coils"],
) -> tuple[Complex64[Tensor, "gz gy gx coils"], Float32[Tensor, "gz gy gx"]]:
    """Eigenvector of unit length and its eigenvalue, by repeated squaring.

    Products of small matrices are much cheaper than a decomposition of each, and need no start vector that might be
    orthogonal to the one sought.
    """
    tiny = torch.finfo(torch.float32).tiny
    power = matrices
    for _ in range(SQUARINGS):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(-1)
        power = power / trace.clamp_min(tiny)[..., None, None]
    # Every column of the power is a multiple of the eigenvector; the one with the largest diagonal is the longest.
    longest = power.diagonal(dim1=-2, dim2=-1).real.argmax(-1)[..., None, None]
    vectors = torch.take_along_dim(power, longest, dim=-1)[..., 0]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(tiny)
    eigenvalues = torch.linalg.vecdot(vectors, (matrices @ vectors[..., None])[..., 0]).real
    return vectors, eigenvalues


def _support(eigenvalues: Float32[Tensor, "z y x"]) -> Bool[Tensor, "z y x"]:
    """Where the eigenvalue says "signal", with holes filled and a margin kept.

    A hole with support all around is filled however large it is. With few calibration lines the kernel is too small for
    the coils, and the eigenvalue falls below the crop in the middle of the object too: 9 lines of the real 8-channel
    brain left a hole of 30 pixels (least eigenvalue 0.84) in bright tissue. Where a hole is true, air within the head,
    filling it costs noise there, not anatomy.
    """
    inside = (eigenvalues > EIGENVALUE_CROP).to(torch.float32)[None]
    reach = [min(SUPPORT_MARGIN, (n - 1) // 2) for n in eigenvalues.shape]
    grown = _grow(_grow(inside, reach), reach)
    return _without_holes((1 - _grow(1 - grown, reach))[0] > 0)


def _without_holes(support: Bool[Tensor, "z y x"]) -> Bool[Tensor, "z y x"]:
    """Add what cannot be reached from the edge of the field of view, by steps along the axes, without crossing it."""
    thick = [n for n in support.shape if n > 1] or [1]  # an axis of one pixel has no edges
    outside = np.asarray(cast("Any", label(~support.view(thick).cpu().numpy()))[0], np.int32)
    reached = np.zeros(int(outside.max()) + 1, np.bool_)
    for axis in range(outside.ndim):
        reached[np.take(outside, (0, -1), axis)] = True
    reached[0] = False  # the support itself
    return torch.from_numpy(~reached[outside]).to(support.device).view(support.shape)


def _grow(mask: Tensor, reach: Sequence[int]) -> Tensor:
    for axis in range(3):
        window = [2 * reach[axis] + 1 if each == axis else 1 for each in range(3)]
        mask = max_pool3d(mask, window, stride=1, padding=[size // 2 for size in window])
    return mask


def _along(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """Multiply the vectors along one axis by a matrix."""
    return torch.einsum("nm,m...->n...", matrix, values.movedim(axis, 0)).movedim(0, axis)
