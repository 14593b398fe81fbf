"""What an image session hands on: an image that its peer sent, as a job for an image pipeline. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.assembly.buffer import Slot
from pipelines.mrd import Image
from pipelines.scan_header import ScanHeader


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """One job for an image pipeline.

    Attributes:
        images: as they came.
        scan: the scan header; None when the peer sent something else in its place, as image clients do.
        slots: none; images come on the heap and travel by themselves.
    """

    images: tuple[Image, ...]
    scan: ScanHeader | None = None
    slots: tuple[Slot, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Memory of the pixels."""
        return sum(image.pixels.nbytes for image in self.images)

    def release(self) -> None:
        """Nothing to give back."""
