"""Readout oversampling taken out of whole frames; asymmetric echoes kept in place.

Scanners sample readouts twice as densely as the field of view needs, because along the readout it costs no time. What
lies beyond the field of view of the images is cut off in image space, which leaves readouts with fewer samples and
the same extent in k-space.

Noise: both transforms are unitary and the cut only leaves columns out, so white noise of standard deviation s stays
white with s. The signal of a pixel keeps its value in the columns (an orthonormal transform of the shorter readout),
so SNR a pixel is unchanged.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex64
from torch import Tensor

from pipelines.operators.fourier import to_image, to_kspace
from pipelines.scan_header import Encoding


def readout_length(encoding: Encoding) -> int:
    """Samples of a readout once oversampling is removed, from the encoded and the reconstructed field of view.

    The pixel size stays what it was; a recon matrix that asks for other pixels is a matter of interpolation at the
    end. Never more samples than were measured; fields of view that make no sense (absent, zero, recon larger than
    encoded) leave the readout alone.
    """
    n = encoding.encoded.matrix[0]
    encoded_mm, recon_mm = encoding.encoded.field_of_view_mm[0], encoding.recon.field_of_view_mm[0]
    if not (encoded_mm > 0 and 0 < recon_mm < encoded_mm):
        return n
    return max(1, min(n, round(n * recon_mm / encoded_mm)))


def split_columns(kspace: Complex64[Tensor, "*readouts x"], length: int) -> tuple[Tensor, Tensor]:
    """Transform readouts along x and cut.

    Returns:
        The `length` central columns, and columns next to them on both sides (a third of what was cut off, where
        receivers' filters are still flat), which hold noise only unless something lies outside the field of view.
    """
    n = kspace.shape[-1]
    columns = to_image(kspace, (-1,))
    start = n // 2 - length // 2
    stop = start + length
    width_left, width_right = start // 3, (n - stop) // 3
    margin = torch.cat([columns[..., start - width_left : start], columns[..., stop : stop + width_right]], -1)
    return columns[..., start:stop], margin


def remove_oversampling(kspace: Complex64[Tensor, "*readouts x"], length: int) -> Complex64[Tensor, "*readouts length"]:
    """Readouts of `length` samples that show the central `length` columns of the field of view.

    Args:
        kspace: readouts with k-space centre at index n//2.
        length: from `readout_length`.
    """
    if length == kspace.shape[-1]:
        return kspace
    return to_kspace(split_columns(kspace, length)[0], (-1,))


def change_field_of_view(kspace: Complex64[Tensor, "..."], axis: int, size: int) -> Complex64[Tensor, "..."]:
    """K-space of a field of view of `size` pixels along one axis (negative number), around the same centre.

    Pixels are as large as before: a smaller field of view leaves out what lies beside it, a larger one holds nothing
    there.
    """
    n = kspace.shape[axis]
    if size == n:
        return kspace
    image = to_image(kspace, (axis,))
    if size < n:
        return to_kspace(image.narrow(axis, n // 2 - size // 2, size), (axis,))
    shape = list(image.shape)
    shape[axis] = size
    larger = image.new_zeros(shape)
    larger.narrow(axis, size // 2 - n // 2, n).copy_(image)
    return to_kspace(larger, (axis,))


def sampled_columns(extent: tuple[int, int], n: int, length: int) -> Bool[Tensor, "length"]:
    """Which samples of the shortened readout were measured.

    Args:
        extent: first and one-past-last sample measured, of `n` (asymmetric echo measures fewer).
        n: samples of the full readout, centre at n//2.
        length: samples after `remove_oversampling`, the same extent in k-space on a coarser grid.
    """
    position = (torch.arange(length, dtype=torch.float64) - length // 2) * (n / length) + n // 2
    return (position >= extent[0] - 0.5) & (position <= extent[1] - 0.5)
