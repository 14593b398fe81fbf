"""Which part of a complex image travels: magnitude, phase, real, imaginary, or all of it; and as which series.

Series: the magnitude has a low number; real, imaginary and phase have it plus 1000, 2000 and 3000, as in Gadgetron
(ExtractGadget), and the complex image plus 4000.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import ImageDataType, ImageType


class Part(StrEnum):
    """Part of a complex image."""

    MAGNITUDE = "magnitude"
    PHASE = "phase"
    REAL = "real"
    IMAGINARY = "imaginary"
    COMPLEX = "complex"

    @property
    def image_type(self) -> ImageType:
        """What MRD calls it."""
        return _IMAGE_TYPES[self]

    @property
    def series_offset(self) -> int:
        """What is added to the number of the magnitude series."""
        return _OFFSETS[self]

    @property
    def data_type(self) -> ImageDataType:
        """Type of its pixels."""
        return ImageDataType.CXFLOAT if self is Part.COMPLEX else ImageDataType.FLOAT

    def of(self, image: NDArray[np.complex64]) -> NDArray[np.float32] | NDArray[np.complex64]:
        """The pixels of this part; phase in radians, -pi to pi, and 0 where the image is 0."""
        if self is Part.COMPLEX:
            return image
        if self is Part.PHASE:
            return np.asarray(np.angle(image + np.complex64(0)), np.float32)  # + 0: no -pi from a negative zero
        if self is Part.MAGNITUDE:
            return np.asarray(np.abs(image), np.float32)
        return np.ascontiguousarray(image.real if self is Part.REAL else image.imag, np.float32)


_IMAGE_TYPES = {
    Part.MAGNITUDE: ImageType.MAGNITUDE,
    Part.PHASE: ImageType.PHASE,
    Part.REAL: ImageType.REAL,
    Part.IMAGINARY: ImageType.IMAG,
    Part.COMPLEX: ImageType.COMPLEX,
}
_OFFSETS = {Part.MAGNITUDE: 0, Part.REAL: 1000, Part.IMAGINARY: 2000, Part.PHASE: 3000, Part.COMPLEX: 4000}
