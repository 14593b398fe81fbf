"""Monotone spline from reconstructed to reference intensities, fitted on calibration scans.

Regularised reconstructions lose contrast; the loss depends on intensity and is much the same in all images of a kind.
Piecewise cubic Hermite interpolation (Fritsch and Butland 1984, doi 10.1137/0905021) of a few knots is monotone, so
that no contrast is inverted. The spline works on images in units of a scale that the method knows (its own
normalisation), so that it commutes with a change of units. It starts at 0 -> 0; beyond the last knot it goes on with
slope 1: nothing is known there, so differences stay as they are. A deviation is multiplied by the spline's slope, its
first-order propagation.

The knots lie at quantiles of reconstructed intensities; their values minimise the squared difference to the reference.
That is a regression: noise in the reconstruction flattens it a little, as it must for the least mean squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import least_squares
from torch import Tensor

from models.training.compared import ComparedImage, ComparedScan, bright_intensity

QUANTILES: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 0.995)
FEWEST_PIXELS: Final = 64
MOST_PIXELS: Final = 20_000
"""Of one image that are fitted; more change nothing in six numbers."""
LEAST_SLOPE: Final = 0.05
"""Of the chord between two knots: the spline stays strictly monotone and a deviation never becomes zero."""


@dataclass(frozen=True)
class IntensityMap:
    """A monotone map of intensities.

    Attributes:
        inputs: reconstructed intensities at the knots in units of the scale, ascending from 0.
        outputs: reference intensities there, ascending from 0.
    """

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the knots.

        Raises:
            ValueError: fewer than two knots, not as many values, not ascending, or not starting at 0.
        """
        if len(self.inputs) < 2 or len(self.inputs) != len(self.outputs):
            raise ValueError(
                f"{len(self.inputs)} inputs and {len(self.outputs)} outputs; at least two of each, as many"
            )
        for name, numbers in (("inputs", self.inputs), ("outputs", self.outputs)):
            if numbers[0] != 0 or not np.isfinite(numbers).all() or not (np.diff(numbers) > 0).all():
                raise ValueError(f"{name} must be finite and ascend from 0: {numbers}")

    @cached_property
    def slopes(self) -> tuple[float, ...]:
        """Derivatives at the knots."""
        return tuple(PchipInterpolator(self.inputs, self.outputs).derivative()(self.inputs).tolist())

    def __call__(
        self, image: Float32[Tensor, "*axes"], deviation: Float32[Tensor, "*axes"], scale: float
    ) -> tuple[Float32[Tensor, "*axes"], Float32[Tensor, "*axes"]]:
        """Map a magnitude image and its deviation, on their device.

        Args:
            image: magnitudes, not negative.
            deviation: their standard deviation, in the same units.
            scale: intensity that is 1 in the units of the knots.

        Raises:
            ValueError: the scale is not positive.
        """
        if not scale > 0:
            raise ValueError(f"the scale of intensities must be positive; {scale} came")
        value, slope = self._evaluate(image / scale)
        return value * scale, deviation * slope

    def _evaluate(
        self, intensity: Float32[Tensor, "*axes"]
    ) -> tuple[Float32[Tensor, "*axes"], Float32[Tensor, "*axes"]]:
        """Value and slope of the spline: cubic Hermite polynomials between knots, slope 1 beyond them."""
        knots, values, slopes = (
            torch.tensor(each, dtype=torch.float32, device=intensity.device)
            for each in (self.inputs, self.outputs, self.slopes)
        )
        piece = torch.bucketize(intensity.contiguous(), knots[1:-1], right=True)
        width = (knots[1:] - knots[:-1])[piece]
        t = ((intensity - knots[piece]) / width).clamp(0, 1)
        start, end = values[piece], values[piece + 1]
        start_slope, end_slope = slopes[piece], slopes[piece + 1]
        rise = end - start
        # Written as the chord plus a correction that vanishes for a straight line, so that the identity stays exact.
        chord = rise / width
        bend = (1 - t) * (start_slope - chord) - t * (end_slope - chord)
        value = start + t * rise + t * (1 - t) * width * bend
        slope = chord + (1 - t) * (1 - 3 * t) * (start_slope - chord) + t * (3 * t - 2) * (end_slope - chord)
        beyond = (intensity - knots[-1]).clamp(min=0) + intensity.clamp(max=0)
        outside = (intensity > knots[-1]) | (intensity < 0)
        return value + beyond, torch.where(outside, torch.ones_like(slope), slope)


def fit_intensity(
    pairs: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
    quantiles: Sequence[float] = QUANTILES,
) -> IntensityMap:
    """Fit a map to reconstructed and reference intensities; each pair weighs the same.

    Args:
        pairs: reconstructed and reference foreground magnitudes of each calibration image, both in units of the scale
            by which the map will be applied.
        quantiles: of reconstructed intensities at which knots lie, ascending, beside the one at 0.

    Raises:
        ValueError: too few pixels, values that are negative or not finite, or intensities without spread.
    """
    image, reference, weight = _gathered(pairs)
    knots = np.concatenate([[0.0], np.quantile(image, quantiles)])
    steps = np.diff(knots)
    if not (steps > 1e-6 * knots[-1]).all():
        raise ValueError(f"reconstructed intensities have too little spread for knots: {knots.tolist()}")

    # Increments of the values in units of the knots' steps: bounded from below they keep the map monotone.
    def residual(chords: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.concatenate([[0.0], np.cumsum(chords * steps)])
        inside = np.asarray(PchipInterpolator(knots, values)(np.minimum(image, knots[-1])), np.float64)
        return np.asarray(weight * (inside + np.maximum(image - knots[-1], 0) - reference), np.float64)

    fitted = least_squares(residual, np.ones(len(steps)), bounds=(LEAST_SLOPE, np.inf), xtol=1e-12, ftol=1e-12)
    values = np.concatenate([[0.0], np.cumsum(fitted.x * steps)])
    return IntensityMap(tuple(knots.tolist()), tuple(values.tolist()))


def fit_intensity_of(scans: Sequence[ComparedScan]) -> IntensityMap:
    """Fit a map to the foreground of calibration scans, in units of each image's bright intensity; errors as above."""
    images = [image for scan in scans for image in scan.images]
    return fit_intensity(
        [
            (
                image.image[image.foreground] / bright_intensity(image.image),
                image.reference[image.foreground] / bright_intensity(image.image),
            )
            for image in images
        ]
    )


def correct_intensity(scans: Sequence[ComparedScan], curve: IntensityMap) -> list[ComparedScan]:
    """The scans with mapped images and deviations."""
    return [ComparedScan(scan.name, tuple(_corrected(image, curve) for image in scan.images)) for scan in scans]


def _corrected(image: ComparedImage, curve: IntensityMap) -> ComparedImage:
    mapped, deviation = (
        each.numpy()
        for each in curve(
            torch.from_numpy(np.asarray(image.image, np.float32)),
            torch.from_numpy(np.asarray(image.deviation, np.float32)),
            bright_intensity(image.image),
        )
    )
    return replace(image, image=mapped, deviation=deviation)


def _gathered(
    pairs: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Intensities of all images and root weights, evenly thinned to `MOST_PIXELS` an image."""
    images, references, weights = [], [], []
    for image, reference in pairs:
        if image.shape != reference.shape or image.size < FEWEST_PIXELS:
            raise ValueError(
                f"an image of shape {image.shape} with a reference of shape {reference.shape}: at least "
                f"{FEWEST_PIXELS} pixels, as many, are needed"
            )
        every = -(-image.size // MOST_PIXELS)
        images.append(np.asarray(image.ravel()[::every], np.float64))
        references.append(np.asarray(reference.ravel()[::every], np.float64))
        weights.append(np.full(len(images[-1]), len(images[-1]) ** -0.5))
    if not images:
        raise ValueError("no images to fit intensities to")
    gathered = np.concatenate(images), np.concatenate(references), np.concatenate(weights)
    if any(not np.isfinite(values).all() or values.min() < 0 for values in gathered):
        raise ValueError("intensities are negative or not finite")
    return gathered
