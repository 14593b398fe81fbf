"""Quick images ahead of those that were asked for: the same geometry and counters, as series of their own that say so.

A preview is what a quicker pipeline made of the same group. Its series numbers are those of the images that follow,
plus `SERIES_OFFSET`: above all parts, extra series (`pipelines.emission`) and derived series
(`pipelines.image_pipeline`). Knows numpy only.
"""

from __future__ import annotations

from typing import Final

from pipelines.mrd import Image

SERIES_OFFSET: Final = 30_000
ATTRIBUTE: Final = "ReconPreview"
"""Meta that only previews have: `true`."""


def as_preview(image: Image, follows: str) -> Image:
    """An image marked as a preview.

    Args:
        image: of the quick pipeline; not changed.
        follows: name of the pipeline whose image follows.
    """
    header = image.header.copy()
    header["image_series_index"] += SERIES_OFFSET
    meta = {**image.meta, ATTRIBUTE: ["true"]}
    comment = f"Preview; the image of {follows} follows"
    meta["ImageComments"] = ["; ".join([comment, *image.meta.get("ImageComments", [])])]
    for name in ("SeriesDescription", "SequenceDescriptionAdditional"):
        if name in image.meta:
            meta[name] = [f"{text}_preview" for text in image.meta[name]]
    meta["ImageProcessingHistory"] = [*image.meta.get("ImageProcessingHistory", []), "PREVIEW"]
    return Image(header, image.pixels, meta)


def is_preview(image: Image) -> bool:
    """Whether an image is a preview."""
    return ATTRIBUTE in image.meta
