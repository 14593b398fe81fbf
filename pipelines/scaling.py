"""Float images become the integers that some scanners want: one scale for a whole series, told by every image.

Windows: DICOM applies a window after rescaling, and window values are whole numbers here. They are therefore given in
rescaled units, and left out where those are too small to be whole: a scanner then chooses a window itself, instead of
flattening the image.
"""

from __future__ import annotations

from math import pi
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ReconstructionError
from pipelines.extra_series import META, is_extra
from pipelines.mrd import Image, ImageDataType, ImageType, Meta

_SMALLEST_WINDOW: Final = 32
_LARGEST_SCALE: Final = 1e30


def window(pixels: NDArray[np.float32]) -> Meta:
    """Window of an image in its own units, from zero to its maximum; none where whole numbers are too coarse for it."""
    top = float(pixels.max(initial=0))
    if not _SMALLEST_WINDOW <= top < 2**31:
        return {}
    return {"WindowCenter": [str(round(top / 2))], "WindowWidth": [str(round(top))]}


class SeriesScaler:
    """Makes uint16 of the images of one session, with one scale for all series.

    The scale is chosen at the first image that is not zero, so that its maximum lies at `1 / headroom` of the range:
    later images may be that much brighter. What is brighter still is set to the largest value, counted, and reported;
    values never wrap. Real and imaginary parts are stored around the middle of the range with the same scale, and clip
    at half of it. Phase fills the range from -pi to pi.

    Every image tells its scale: `GADGETRON_ScaleRatio` is stored over original units, and `RescaleSlope` and
    `RescaleIntercept` bring stored values back. The uncertainty stays float32 and is multiplied by the scale of the
    magnitude series, so that both are in the same stored units and a stored deviation can be read against a stored
    magnitude without arithmetic; a complex image likewise stays complex64. Extra series (`pipelines.extra_series`) are
    treated in the same way where they have the units of the image, and pass unchanged where not.

    Args:
        bits: bits stored a pixel, 12 where the scan header does not say (`ScanHeader.bits_stored`), as FIRE does.
        headroom: range over the maximum of the first image; the first slice of a head is often its darkest.
    """

    def __init__(self, bits: int = 12, *, headroom: float = 4.0) -> None:
        if not (1 <= bits <= 16 and headroom >= 1):
            raise ValueError(f"bits must lie in 1 to 16 and headroom be at least 1, not {bits} and {headroom}")
        self._largest = (1 << bits) - 1
        self._headroom = headroom
        self._scale: float | None = None
        self._window: Meta = {}
        self._reported = False
        self.clipped = 0
        """Pixels set to the largest or smallest value so far."""

    def __call__(self, image: Image) -> Image:
        """The image in stored units.

        Args:
            image: float32 or complex64; of each frame the parts of the image before its uncertainty.

        Raises:
            ReconstructionError: pixels are not finite.
        """
        if not np.isfinite(image.pixels).all():
            raise ReconstructionError("an image holds values that are not finite and cannot be scaled")
        header = image.header.copy()
        meta = {name: values for name, values in image.meta.items() if name not in {"WindowCenter", "WindowWidth"}}
        if is_extra(image) and image.meta[f"{META}Unit"] != ["magnitude"]:
            return image
        if int(header["image_type"]) == ImageType.PHASE:
            return self._phase(image, header, meta)
        is_uncertainty = "ReconUncertaintyKind" in image.meta
        is_float = is_uncertainty or is_extra(image)
        if self._scale is None:
            self._choose(image, is_uncertainty=is_uncertainty)
        scale = 1.0 if self._scale is None else self._scale  # every image so far is zero, whatever it is multiplied by
        intercept = 0
        with np.errstate(over="ignore"):  # what no float32 can hold counts as the largest: clipped below, still finite
            scaled: NDArray[Any] = np.ascontiguousarray(cast("NDArray[Any]", image.pixels) * np.float32(scale))
        largest = np.finfo(np.float32).max
        if is_float and scaled.dtype == np.float32:
            stored: NDArray[np.generic] = np.clip(scaled, -largest, largest, dtype=np.float32)
        elif int(header["image_type"]) == ImageType.COMPLEX:
            stored = np.clip(scaled.view(np.float32), -largest, largest, dtype=np.float32).view(np.complex64)
        else:
            if int(header["image_type"]) in (ImageType.REAL, ImageType.IMAG):
                intercept = (self._largest + 1) // 2
                self.clipped += int(np.count_nonzero(scaled < -intercept - 0.5))
            elif self._window:
                meta |= self._window
            stored = self._store(np.asarray(scaled, np.float32) + np.float32(intercept))
            header["data_type"] = ImageDataType.USHORT
        if self._scale is not None:
            meta |= {
                "GADGETRON_ScaleRatio": [f"{scale:.9g}"],
                "RescaleSlope": [f"{1 / scale:.9g}"],
                "RescaleIntercept": [f"{-intercept / scale:.9g}" if intercept else "0"],
            }
        return Image(header, stored, meta)

    def take_warnings(self) -> list[str]:
        """A sentence at the first clipped pixel, once."""
        if self.clipped == 0 or self._reported:
            return []
        self._reported = True
        return [
            f"{self.clipped} pixels lay outside the range of {self._largest} and were clipped; float32 pixels avoid it."
        ]

    def _store(self, values: NDArray[np.float32]) -> NDArray[np.uint16]:
        self.clipped += int(np.count_nonzero(values > self._largest + 0.5))
        return np.rint(np.clip(values, 0, self._largest)).astype(np.uint16)

    def _phase(self, image: Image, header: NDArray[np.void], meta: Meta) -> Image:
        """Radians over the whole range: the smallest value is -pi, the largest pi."""
        slope = 2 * pi / self._largest
        stored = np.rint(
            np.clip((np.asarray(image.pixels, np.float32) + np.float32(pi)) / np.float32(slope), 0, self._largest)
        )
        header["data_type"] = ImageDataType.USHORT
        meta |= {"RescaleSlope": [f"{slope:.9g}"], "RescaleIntercept": [f"{-pi:.9g}"]}
        return Image(header, stored.astype(np.uint16), meta)

    def _choose(self, image: Image, *, is_uncertainty: bool) -> None:
        """Choose the scale from the first image that is not zero; a deviation that comes first is stored as 16."""
        magnitude = np.asarray(np.abs(image.pixels), np.float32)
        top = float(magnitude.max(initial=0))
        if not top > 0:
            return
        self._scale = min(16 / top if is_uncertainty else self._largest / (self._headroom * top), _LARGEST_SCALE)
        self._window = window(magnitude) if int(image.header["image_type"]) == ImageType.MAGNITUDE else {}
