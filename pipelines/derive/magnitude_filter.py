"""A Gaussian low-pass filter of magnitude images, with the noise that is left: an example of a derived series.

The noise of the image that came is not known; it is estimated from the image itself. The diagonal difference of the
four pixels of a square, `(a - b - c + d) / 2`, has the standard deviation of one pixel's noise and is nearly free of
anatomy away from its edges; its median magnitude over a tile, divided by 0.6745, is the deviation of the noise (Donoho
and Johnstone 1994, doi 10.1093/biomet/81.3.425). Edges are where the gradient of the smoothed image is more than noise
makes it; they are left out, in two rounds, because the first knows the noise only roughly. Tiles follow noise that
varies over the image, as parallel imaging makes it. A filter h of white noise of deviation s leaves `s |h|`.

Assumed: noise that is independent between pixels. Images that a scanner has interpolated or filtered hold correlated
noise, of which the differences show less: the deviation is then too small. In the background the magnitude of noise is
not Gaussian; there the map is a rough guide.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude, zoom

from pipelines.derive.derivation import Derived
from pipelines.errors import ReconstructionError
from pipelines.mrd import Image, ImageType
from pipelines.parameters import MagnitudeFilterParameters
from pipelines.recon.reconstruction import UncertaintyKind

TILE: Final = 16
"""Pixels along each axis of a tile in which the noise is taken as constant."""

_FEWEST_IN_TILE: Final = 48
_ROUNDS: Final = 3
_EDGE_WIDTH: Final = 1.5
_EDGE: Final = 4 / (sqrt(8 * pi) * _EDGE_WIDTH**2)
"""Gradient of the smoothed image over the noise of a pixel from which on it is an edge: four times what white noise
gives each of its two components."""

_FOREGROUND: Final = 0.05
"""Part of the brightest pixels above which a pixel counts for the noise: zeroed background would pull it to zero."""

_MEDIAN_OF_NORMAL: Final = 0.6744898
_FWHM: Final = 2 * sqrt(2 * log(2))


class MagnitudeFilter:
    """`y = h * x` along the axes with more than one pixel, h a Gaussian of given full width at half maximum."""

    def __init__(self, parameters: MagnitudeFilterParameters, device: str) -> None:
        del device  # a few milliseconds on a CPU
        self._fwhm_mm = parameters.fwhm_mm

    def __call__(self, image: Image, warnings: list[str]) -> Derived | None:
        """Filter a magnitude image; others, and colour images, are left alone.

        Raises:
            ReconstructionError: pixels are not finite.
        """
        if int(image.header["image_type"]) not in (0, ImageType.MAGNITUDE) or np.iscomplexobj(image.pixels):
            warnings.append("Images that are not magnitude images are not filtered.")
            return None
        pixels = np.asarray(image.pixels, np.float32)
        if not np.isfinite(pixels).all():
            raise ReconstructionError("an image holds values that are not finite")
        widths = self._widths(image)
        deviation = np.stack([np.stack([noise_of(plane) for plane in volume]) for volume in pixels])
        return Derived(
            pixels=_filtered(pixels, widths),
            deviation=np.asarray(deviation * np.float32(gain(pixels.shape[1:], widths)), np.float32),
            kind=UncertaintyKind.NOISE,
            calibration="estimated from the image, white noise assumed",
            name="filter",
            details={"ReconFilterFWHM": f"{self._fwhm_mm:g} mm"},
        )

    def _widths(self, image: Image) -> tuple[float, float, float]:
        """Standard deviations of the Gaussian in pixels along z, y, x."""
        spacing = [
            float(length) / int(n) if float(length) > 0 else 1.0
            for length, n in zip(image.header["field_of_view"], image.header["matrix_size"], strict=True)
        ]
        x, y, z = (self._fwhm_mm / _FWHM / each for each in spacing)
        n_z, n_y, n_x = image.pixels.shape[1:]
        return (z if n_z > 1 else 0.0, y if n_y > 1 else 0.0, x if n_x > 1 else 0.0)


def noise_of(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard deviation of the noise of a magnitude image `(y, x)`, smooth over tiles; zeros when there is none."""
    n_y, n_x = plane.shape
    if n_y < 2 or n_x < 2:
        return np.zeros_like(plane)
    difference = np.abs(plane[:-1, :-1] - plane[:-1, 1:] - plane[1:, :-1] + plane[1:, 1:]) / 2
    level = _FOREGROUND * float(np.quantile(plane, 0.99))
    is_used = (plane[:-1, :-1] > level) & (plane[1:, 1:] > level)
    gradient = gaussian_gradient_magnitude(plane, _EDGE_WIDTH)[:-1, :-1]
    overall = 0.0
    for _ in range(_ROUNDS):
        if not is_used.any():
            return np.full_like(plane, overall)
        overall = float(np.median(difference[is_used])) / _MEDIAN_OF_NORMAL
        is_used &= gradient <= _EDGE * overall
    tiles = np.full((-(-n_y // TILE), -(-n_x // TILE)), overall)
    for row, column in np.ndindex(*tiles.shape):
        part = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
        used = difference[part][is_used[part]]
        if used.size >= _FEWEST_IN_TILE:
            tiles[row, column] = float(np.median(used)) / _MEDIAN_OF_NORMAL
    smooth = gaussian_filter(tiles, 0.7, mode="nearest")  # the median of one tile is known to a tenth only
    if smooth.size == 1:
        return np.full_like(plane, smooth[0, 0])
    grown = zoom(smooth, TILE, order=1, mode="nearest", grid_mode=True)
    return np.asarray(grown[:n_y, :n_x], np.float32)


def gain(shape: tuple[int, ...], widths: tuple[float, float, float]) -> float:
    """Deviation of filtered white noise over that of the noise: the norm of the filter, far from the rim."""
    product = 1.0
    for length, width in zip(shape, widths, strict=True):
        if width > 0:
            n = 2 * (int(4 * width + 0.5) + length) + 1
            impulse = np.zeros(n)
            impulse[n // 2] = 1.0
            product *= float(np.linalg.norm(gaussian_filter(impulse, width, mode="constant")))
    return product


def _filtered(pixels: NDArray[np.float32], widths: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.asarray(gaussian_filter(pixels, (0.0, *widths), mode="nearest"), np.float32)
