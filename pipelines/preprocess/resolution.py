"""K-space that a coarser recon matrix does not show is left out before anything is reconstructed from it.

The header may ask for larger pixels than were measured. Cutting k-space afterwards gives the same image but leaves its
noise unknown: noise is not white after partial Fourier, variable density or unfolding, and how much of it lies in what
is cut off depends on all of them. Without the outer lines the reconstruction propagates its noise exactly.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod, sqrt
from typing import Final

from torch import Tensor

from pipelines.recon.reconstruction import Prepared
from pipelines.scan_header import Encoding

_LARGEST_ERROR: Final = 0.05
"""Pixels by which the field of view of the images may miss a whole number of them; distances stay true."""


def kept_points(shape: tuple[int, int, int], encoding: Encoding) -> tuple[int, int, int]:
    """Points of k-space along z, y, x that the recon matrix shows, of `shape` after readout oversampling is removed.

    Never fewer than the recon matrix needs; `pipelines.regrid` does the rest. Axes of one point stay as they are.
    """
    z, y, x = (_kept(n, 2 - axis, encoding) for axis, n in enumerate(shape))
    return z, y, x


def _kept(n: int, axis: int, encoding: Encoding) -> int:
    """Along one axis, counted x, y, z."""
    target = encoding.recon.matrix[axis]
    encoded_mm, recon_mm = encoding.encoded.field_of_view_mm[axis], encoding.recon.field_of_view_mm[axis]
    part = recon_mm / encoded_mm if encoded_mm > 0 and 0 < recon_mm < float("inf") else 1.0
    if axis == 0:
        part = max(part, 1.0)  # preparation has cut off what lies beyond

    def error(size: int) -> float:
        return abs(size * part - round(size * part))

    least = n if n == 1 else min(n, ceil(target / part - 1e-6))
    allowed = max(error(n), _LARGEST_ERROR)
    return next(size for size in range(least, n + 1) if error(size) <= allowed)


def at_recon_resolution(prepared: Prepared, encoding: Encoding) -> Prepared:
    """Without the outer k-space that the recon matrix does not show; pixel values stay as they are.

    Unchanged where nothing is left out or measured within what is kept, and without a grid. The calibration keeps its
    own size.
    """
    if prepared.trajectory is not None:
        return prepared
    _, _, *shape = prepared.kspace.shape
    kept = kept_points((shape[0], shape[1], shape[2]), encoding)
    counts = _central(_central(prepared.counts, -2, kept[0]), -1, kept[1])
    if kept == tuple(shape) or not bool((counts > 0).any()):
        return prepared
    kspace = prepared.kspace
    for axis, size in zip((-3, -2, -1), kept, strict=True):
        kspace = _central(kspace, axis, size)
    factor = sqrt(prod(kept) / prod(shape))  # the transform is unitary
    return replace(
        prepared,
        kspace=kspace * factor,
        counts=counts,
        noise_std=prepared.noise_std * factor,
        readout_sampled=_central(prepared.readout_sampled, -1, kept[2]),
    )


def _central(values: Tensor, axis: int, size: int) -> Tensor:
    """The `size` points around the centre n//2 of an axis."""
    return values.narrow(axis, values.shape[axis] // 2 - size // 2, size)
