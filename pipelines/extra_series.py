"""Series besides the image and its uncertainty, for research: coil maps, samples of the posterior. Numpy only.

Each frame has `n` images of each series, told apart by `ReconExtraIndex` (from 1, of `ReconExtraCount`) and by their
image number. Series numbers: the first extra series has that of the magnitude plus 5000, the next plus 6000 and so on,
above all parts (`pipelines.parts`) and below derived series (`pipelines.image_pipeline`). A series keeps its number
also where another one had to be left out. Pixels stay float32 or complex64 for every scanner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.image_header import LAST_INDEX
from pipelines.mrd import Image, ImageDataType, ImageType, Meta

MOST_SERIES: Final = 5
META: Final = "ReconExtra"
"""The attribute that only extra series have: what they are."""
_FIRST_OFFSET: Final = 5000
_OFFSET_STEP: Final = 1000


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra series of a group, ready to be emitted.

    Attributes:
        number: which of the extra series it is, from 0.
        name: what it holds, such as `coil_maps`.
        pixels: `(frames, n, z, y, x)` float32 or complex64 on the grid of the recon space.
        comment: what a pixel holds.
        role: DataRole.
        in_image_units: whether pixels have the units of the magnitude series.
    """

    number: int
    name: str
    pixels: NDArray[Any]
    comment: str
    role: str
    in_image_units: bool


def extra_images(
    extra: Extra, frame: int, header: NDArray[np.void], series: int, meta: Meta, warnings: list[str]
) -> list[Image]:
    """Images of one frame of an extra series.

    Args:
        extra: the series.
        frame: which frame.
        header: of the frame's magnitude, with its image number.
        series: number of the magnitude series of the encoding space.
        meta: attributes that all series share, with the names of this one (`pipelines.emission`); what they comment
            comes before the comment of the series.
        warnings: gets a sentence when image numbers repeat.
    """
    n = extra.pixels.shape[1]
    is_complex = extra.pixels.dtype == np.complex64
    about = {
        "DataRole": [extra.role],
        "ImageComments": ["; ".join([*meta.get("ImageComments", []), extra.comment])],
        META: [extra.name],
        f"{META}Count": [str(n)],
        f"{META}Unit": ["magnitude" if extra.in_image_units else "own"],
    }
    images: list[Image] = []
    for member, pixels in enumerate(extra.pixels[frame]):
        own = header.copy()
        number = (int(header["image_index"]) - 1) * n + member
        if number >= LAST_INDEX:
            warnings.append(f"The series {extra.name} has more than 65535 images; their numbers start again at 1.")
        own["image_index"] = number % LAST_INDEX + 1
        own["image_series_index"] = series + _FIRST_OFFSET + _OFFSET_STEP * extra.number
        own["image_type"] = ImageType.COMPLEX if is_complex else ImageType.MAGNITUDE
        own["data_type"] = ImageDataType.CXFLOAT if is_complex else ImageDataType.FLOAT
        images.append(
            Image(own, np.ascontiguousarray(pixels[None]), {**meta, **about, f"{META}Index": [str(member + 1)]})
        )
    return images


def is_extra(image: Image) -> bool:
    """Whether an image belongs to an extra series."""
    return META in image.meta
