"""Extra series of a reconstruction brought to the grid and the units of the images; whatever is too much is left out.

They are for research and must not cost the images: a series that is too large becomes a warning. One that is wrong
(another shape, a value that is not finite) is an error like that of the image itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.extra_series import MOST_SERIES, Extra
from pipelines.recon.reconstruction import ExtraSeries, Reconstructed
from pipelines.regrid import recon_matrix, to_recon_grid_alone
from pipelines.scan_header import Encoding

MOST_PIXELS: Final = 1 << 24
"""Pixels of all images of one extra series of a group: 128 MiB of complex ones, which is 256 images of 256 x 256."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Placed:
    """Extra series ready to be emitted, and sentences about those that were left out."""

    extras: tuple[Extra, ...]
    warnings: tuple[str, ...]


def place_extras(result: Reconstructed, encoding: Encoding, signal_scale: Tensor, *, is_in_view: bool) -> Placed:
    """Bring the extra series of a result to the recon grid.

    Args:
        result: with its extra series.
        encoding: encoded and recon space.
        signal_scale: `(frames,)`, from the units of `result.image` to those of the scan.
        is_in_view: as for `to_recon_grid`.

    Raises:
        ReconstructionError: more than `MOST_SERIES` series, two of one name, a name of other letters, a shape that
            does not fit the image, or values that are not finite.
    """
    _check_names(result.extras)
    extras: list[Extra] = []
    warnings: list[str] = []
    matrix = recon_matrix(tuple(result.image.shape[1:]), encoding, is_in_view=is_in_view)
    for number, extra in enumerate(result.extras):
        frames, n, *grid = extra.images.shape
        if [frames, *grid] != list(result.image.shape) or n == 0:
            raise ReconstructionError(
                f"extra series {extra.name!r}: its shape {tuple(extra.images.shape)} does not fit the image, "
                f"{tuple(result.image.shape)}"
            )
        # Before and after: whichever grid is larger is what memory is needed for.
        n_pixels = frames * n * max(prod(grid), prod(matrix))
        if n_pixels > MOST_PIXELS:
            warnings.append(
                f"The extra series {extra.name} is left out: {frames * n} images are {n_pixels} pixels, "
                f"and at most {MOST_PIXELS} are sent."
            )
            continue
        images = to_recon_grid_alone(
            extra.images.flatten(0, 1), encoding, is_in_view=is_in_view, is_linear=not extra.in_image_units
        )
        images = images.reshape(frames, n, *images.shape[1:])
        if extra.in_image_units:
            images = images * signal_scale[:, None, None, None, None]
        pixels = np.asarray(images.to("cpu").numpy())
        if not np.isfinite(pixels).all():
            raise ReconstructionError(f"extra series {extra.name!r} holds values that are not finite")
        extras.append(Extra(number, extra.name, pixels, extra.comment, extra.role, extra.in_image_units))
    return Placed(tuple(extras), tuple(warnings))


def _check_names(extras: Sequence[ExtraSeries]) -> None:
    names = [extra.name for extra in extras]
    if len(names) > MOST_SERIES or len(set(names)) < len(names):
        raise ReconstructionError(f"at most {MOST_SERIES} extra series with names of their own, not {', '.join(names)}")
    for extra in extras:
        if not _NAME.fullmatch(extra.name):
            raise ReconstructionError(f"{extra.name!r} is no name of an extra series: letters, digits, underscores")
        if extra.images.dtype not in (torch.complex64, torch.float32):
            raise ReconstructionError(f"extra series {extra.name!r} is {extra.images.dtype}, not float32 or complex64")
