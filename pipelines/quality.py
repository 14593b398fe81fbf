"""How close an image is to a reference: scale, NRMSE, PSNR, SSIM; magnitude images of any unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True, slots=True)
class Agreement:
    """Measures after scaling, over all pixels.

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


def compare(image: NDArray[np.floating], reference: NDArray[np.floating]) -> Agreement:
    """Compare images `(..., y, x)` with a reference of the same shape, one scale for all of them.

    Raises:
        ValueError: the shapes differ, or the reference is zero everywhere.
    """
    if image.shape != reference.shape:
        raise ValueError(f"image and reference have different shapes: {image.shape} and {reference.shape}")
    if not np.any(reference):
        raise ValueError("the reference is zero everywhere")
    scale = least_squares_scale(image, reference)
    scaled, target = image.astype(np.float64) * scale, reference.astype(np.float64)
    rmse = float(np.sqrt(np.mean((scaled - target) ** 2)))
    peak = float(target.max())
    planes = zip(scaled.reshape(-1, *target.shape[-2:]), target.reshape(-1, *target.shape[-2:]), strict=True)
    return Agreement(
        scale=scale,
        nrmse=rmse / float(np.sqrt(np.mean(target**2))),
        psnr_db=float("inf") if rmse == 0 else 20 * float(np.log10(peak / rmse)),
        ssim=float(np.mean([structural_similarity(a, b, peak) for a, b in planes])),
    )


def least_squares_scale(image: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """The factor that brings an image closest to a reference, `<image, reference> / <image, image>`, or 1."""
    energy = float(np.vdot(image.astype(np.float64), image))
    return float(np.vdot(image.astype(np.float64), reference)) / energy if energy > 0 else 1.0


def structural_similarity(image: NDArray[np.float64], reference: NDArray[np.float64], peak: float) -> float:
    """Mean SSIM of one image with a Gaussian window of 1.5 pixels, cut at 5 pixels.

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
    return float(similarity[5:-5, 5:-5].mean())
