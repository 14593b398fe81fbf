"""How close an image is to a reference: scale, NRMSE, NMSE, PSNR, SSIM; magnitude images of any unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FOREGROUND = 0.05
"""Part of the maximum above which a pixel belongs to the object."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Measures after scaling, over all pixels or those of a mask.

    Attributes:
        scale: factor that brought the image to the reference.
        nrmse: root of the mean squared difference over the root of the mean squared reference.
        psnr_db: peak of the reference over the root mean squared difference.
        ssim: mean structural similarity.
    """

    scale: float
    nrmse: float
    psnr_db: float
    ssim: float

    @property
    def nmse(self) -> float:
        """Mean squared difference over the mean squared reference."""
        return self.nrmse**2


def compare(
    image: NDArray[np.floating], reference: NDArray[np.floating], mask: NDArray[np.bool_] | None = None
) -> Agreement:
    """Compare images `(..., y, x)` with a reference of the same shape, one scale for all of them.

    With a mask of that shape scale, errors and the mean of the structural similarity are those of its pixels. The
    similarity of a pixel still looks at its neighbours, and the border has none.

    Raises:
        ValueError: the shapes differ, or the reference is zero everywhere (in the mask).
    """
    if image.shape != reference.shape or (mask is not None and mask.shape != reference.shape):
        shapes = f"{image.shape} and {reference.shape}" + ("" if mask is None else f", mask {mask.shape}")
        raise ValueError(f"image and reference have different shapes: {shapes}")
    inside = np.ones(reference.shape, np.bool_) if mask is None else mask
    if not np.any(reference[inside]):
        raise ValueError("the reference is zero everywhere")
    scale = least_squares_scale(image[inside], reference[inside])
    scaled, target = image.astype(np.float64) * scale, reference.astype(np.float64)
    rmse = float(np.sqrt(np.mean((scaled - target)[inside] ** 2)))
    peak = float(target[inside].max())
    planes = zip(*(each.reshape(-1, *target.shape[-2:]) for each in (scaled, target, inside)), strict=True)
    return Agreement(
        scale=scale,
        nrmse=rmse / float(np.sqrt(np.mean(target[inside] ** 2))),
        psnr_db=float("inf") if rmse == 0 else 20 * float(np.log10(peak / rmse)),
        ssim=float(np.mean([structural_similarity(a, b, peak, within) for a, b, within in planes if within.any()])),
    )


def foreground(reference: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Pixels of the object in images `(..., y, x)`: above 5 % of the maximum, with what they enclose in a plane."""
    bright = reference > FOREGROUND * float(reference.max())
    planes = [np.asarray(ndimage.binary_fill_holes(plane)) for plane in bright.reshape(-1, *bright.shape[-2:])]
    return np.asarray(np.stack(planes).reshape(bright.shape), np.bool_)


def least_squares_scale(image: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """The factor that brings an image closest to a reference, `<image, reference> / <image, image>`, or 1."""
    energy = float(np.vdot(image.astype(np.float64), image))
    return float(np.vdot(image.astype(np.float64), reference)) / energy if energy > 0 else 1.0


def structural_similarity(
    image: NDArray[np.float64], reference: NDArray[np.float64], peak: float, mask: NDArray[np.bool_] | None = None
) -> float:
    """Mean SSIM of one image, or of its pixels in a mask, with a Gaussian window of 1.5 pixels, cut at 5 pixels.

    Wang et al. 2004, doi:10.1109/TIP.2003.819861, constants 0.01 and 0.03; the border of 5 pixels is left out, as in
    scikit-image with `gaussian_weights=True, use_sample_covariance=False`.
    """

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, 1.5, truncate=3.5), np.float64)

    mean_i, mean_r = local_mean(image), local_mean(reference)
    variance_i = local_mean(image**2) - mean_i**2
    variance_r = local_mean(reference**2) - mean_r**2
    covariance = local_mean(image * reference) - mean_i * mean_r
    small, large = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    luminance = (2 * mean_i * mean_r + small) / (mean_i**2 + mean_r**2 + small)
    similarity = luminance * (2 * covariance + large) / (variance_i + variance_r + large)
    inner = similarity[5:-5, 5:-5]
    return float(inner.mean() if mask is None else inner[mask[5:-5, 5:-5]].mean())
