"""From the grid of the reconstruction to the grid that the scan header asks for: field of view, then matrix.

Oversampling along the phase-encoding axes is cut off in image space, and a field of view beyond the measured one is
filled with zeros, so that distances stay true; other pixel sizes come from zero-filling (or cutting) k-space, which
keeps pixel values and does not blur. Knows tensors and two matrix sizes, nothing of coils or
noise scans.
"""

from __future__ import annotations

from math import prod, sqrt

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.errors import BudgetError
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.scan_header import Encoding

MOST_PIXELS = 1 << 26
"""Pixels of one image; the header could otherwise ask for any amount of memory."""


def to_recon_grid(
    image: Complex64[Tensor, "frames z y x"],
    deviation: Float32[Tensor, "frames z y x"],
    encoding: Encoding,
    *,
    is_in_view: bool = False,
) -> tuple[Complex64[Tensor, "frames rz ry rx"], Float32[Tensor, "frames rz ry rx"]]:
    """Image and deviation on the grid of the recon space.

    An axis of one pixel stays as it is: two-dimensional scans give the slice thickness there in many ways. Noise:
    interpolation with the full band keeps the variance of white noise, so the deviation is interpolated linearly;
    cutting k-space from n to m points averages, so the deviation falls by sqrt(m / n).

    Args:
        image: on the encoded grid, with readout oversampling removed.
        deviation: standard deviation of its magnitude.
        encoding: encoded and recon space.
        is_in_view: the image spans the field of view of the images already, along every axis (non-Cartesian scans).

    Raises:
        BudgetError: the recon matrix is too large.
    """
    for axis, kept, size in zip((1, 2, 3), *_plan(image, encoding, is_in_view=is_in_view), strict=True):
        image, deviation = _centre(image, axis, kept), _centre(deviation, axis, kept)
        n = image.shape[axis]
        image, deviation = _resize(image, axis, size), _resize_linearly(deviation, axis, size)
        deviation = deviation * sqrt(min(1.0, size / n))
    return image, deviation


def to_recon_grid_alone(
    images: Complex64[Tensor, "items z y x"] | Float32[Tensor, "items z y x"],
    encoding: Encoding,
    *,
    is_in_view: bool,
    is_linear: bool,
) -> Complex64[Tensor, "items rz ry rx"] | Float32[Tensor, "items rz ry rx"]:
    """Images that have no deviation on the grid of the recon space, in the type they came in.

    Args:
        images: as for `to_recon_grid`.
        encoding: encoded and recon space.
        is_in_view: as for `to_recon_grid`.
        is_linear: interpolate linearly, which keeps the range of values; else as images are interpolated. Real images
            without negative values are then as the magnitude of the same image would be.

    Raises:
        BudgetError: the recon matrix is too large.
    """
    result = images if is_linear else images.to(torch.complex64)
    for axis, kept, size in zip((1, 2, 3), *_plan(images, encoding, is_in_view=is_in_view), strict=True):
        result = _centre(result, axis, kept)
        result = _resize_linearly(result, axis, size) if is_linear else _resize(result, axis, size)
    if is_linear or images.is_complex():
        return result
    return result.abs() if bool((images >= 0).all()) else result.real.contiguous()


def recon_matrix(shape: tuple[int, ...], encoding: Encoding, *, is_in_view: bool) -> tuple[int, ...]:
    """Matrix (z, y, x) of the recon space for an image of this shape (z, y, x).

    Raises:
        BudgetError: it is too large.
    """
    x, y, z = encoding.recon.matrix
    target = tuple(size if n > 1 else 1 for n, size in zip(shape, (z, y, x), strict=True))
    in_view = _view(shape, encoding, is_in_view=is_in_view)
    if prod(max(sizes) for sizes in zip(target, in_view, strict=True)) > MOST_PIXELS:
        raise BudgetError(
            f"the recon matrix {x} x {y} x {z} with its field of view needs an image of more than {MOST_PIXELS} pixels"
        )
    return target


def _plan(images: Tensor, encoding: Encoding, *, is_in_view: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each of z, y, x: the length to cut to or fill up to, then the length to interpolate to."""
    shape = tuple(images.shape[1:])
    return _view(shape, encoding, is_in_view=is_in_view), recon_matrix(shape, encoding, is_in_view=is_in_view)


def _view(shape: tuple[int, ...], encoding: Encoding, *, is_in_view: bool) -> tuple[int, ...]:
    return shape if is_in_view else tuple(_length_in_view(n, 2 - axis, encoding) for axis, n in enumerate(shape))


def _length_in_view(n: int, axis: int, encoding: Encoding) -> int:
    """Pixels of the encoded grid in the field of view of the images, `n` being encoded; `axis` counts x, y, z.

    Along x, preparation has already cut off what lies beyond the field of view of the images.
    """
    encoded_mm, recon_mm = encoding.encoded.field_of_view_mm[axis], encoding.recon.field_of_view_mm[axis]
    if n == 1 or not (encoded_mm > 0 and 0 < recon_mm < float("inf")) or (axis == 0 and recon_mm <= encoded_mm):
        return n
    return max(1, round(n * recon_mm / encoded_mm))


def _centre(values: Tensor, axis: int, size: int) -> Tensor:
    """The `size` entries around n//2, or all of them with zeros around, so that the centre is at size//2."""
    n = values.shape[axis]
    if size <= n:
        return values.narrow(axis, n // 2 - size // 2, size)
    shape = list(values.shape)
    shape[axis] = size
    padded = values.new_zeros(shape)
    padded.narrow(axis, size // 2 - n // 2, n).copy_(values)
    return padded


def _resize(images: Tensor, axis: int, size: int) -> Tensor:
    """Interpolate complex images along one axis to `size` pixels of the same field of view, through k-space."""
    n = images.shape[axis]
    if n == size:
        return images
    return to_image(_centre(to_kspace(images, (axis,)), axis, size), (axis,)) * sqrt(size / n)


def _resize_linearly(values: Tensor, axis: int, size: int) -> Tensor:
    """The same linearly, which makes no values beyond the range of those around."""
    n = values.shape[axis]
    if n == size:
        return values
    position = ((torch.arange(size, device=values.device) - size // 2) * (n / size) + n // 2).clamp(0, n - 1)
    lower = position.long().clamp(max=max(0, n - 2))
    part = (position - lower).reshape([-1 if a == axis else 1 for a in range(4)])
    upper = (lower + 1).clamp(max=n - 1)
    return values.index_select(axis, lower) * (1 - part) + values.index_select(axis, upper) * part
