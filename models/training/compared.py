"""Images beside their references, scan by scan: what every measure of calibration looks at. Numpy; knows no method.

The error is e = | |x_ref| - |x_hat| |. Intensities are expressed in the *bright intensity* of the reconstructed image
(99th percentile of its magnitude), which is known where a reference is not, so that nothing here depends on the units
of an image.

What is exchangeable is the scan (one patient at one sampling), not the pixel: pixels and slices of one scan share
coils, contrast and anatomy. So every figure is made within a scan first and averaged over scans with equal weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

FOREGROUND: Final = 0.08
"""Part of the largest reference magnitude above which a pixel is foreground: tissue, but not air and dark skull."""
BRIGHT_PERCENTILE: Final = 99.0


@dataclass(frozen=True, slots=True)
class ComparedImage:
    """One image beside its reference.

    Attributes:
        reference: `(y, x)` magnitude of the reference, in the units of the image.
        image: `(y, x)` magnitude of the reconstruction.
        deviation: `(y, x)` standard deviation that the reconstruction claims.
        foreground: `(y, x)` pixels that are judged.
    """

    reference: NDArray[np.floating]
    image: NDArray[np.floating]
    deviation: NDArray[np.floating]
    foreground: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            ValueError: shapes differ, values are negative or not finite, or no pixel is foreground.
        """
        for name, values in (("reference", self.reference), ("image", self.image), ("deviation", self.deviation)):
            if values.ndim != 2 or values.shape != self.foreground.shape:
                raise ValueError(f"the {name} has shape {values.shape}, the foreground {self.foreground.shape}")
            if not np.isfinite(values).all() or values.min() < 0:
                raise ValueError(f"the {name} holds values that are negative or not finite")
        if not self.foreground.any():
            raise ValueError("no pixel is foreground")
        if bright_intensity(self.image) == 0:
            raise ValueError("the image is zero almost everywhere: it has no intensity to relate errors to")

    @property
    def error(self) -> NDArray[np.float64]:
        """e, `(y, x)`, in bright intensities."""
        return np.abs(np.asarray(self.reference, np.float64) - self.image) / bright_intensity(self.image)

    @property
    def relative_deviation(self) -> NDArray[np.float64]:
        """The deviation, `(y, x)`, in bright intensities."""
        return np.asarray(self.deviation, np.float64) / bright_intensity(self.image)


@dataclass(frozen=True, slots=True)
class ComparedScan:
    """All images of one exchangeable unit.

    Attributes:
        name: of the scan, for tables.
        images: at least one.
    """

    name: str
    images: tuple[ComparedImage, ...]

    def __post_init__(self) -> None:
        """Check that there is something.

        Raises:
            ValueError: the scan has no images.
        """
        if not self.images:
            raise ValueError(f"scan {self.name!r} has no images")

    @property
    def errors(self) -> NDArray[np.float64]:
        """Errors of all foreground pixels, in bright intensities."""
        return np.concatenate([image.error[image.foreground] for image in self.images])

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Deviations of all foreground pixels, in bright intensities, in the order of `errors`."""
        return np.concatenate([image.relative_deviation[image.foreground] for image in self.images])

    def scaled(self, factor: float, floor: float = 0.0) -> ComparedScan:
        """The same scan with deviations `factor * deviation + floor * bright intensity`."""
        return ComparedScan(
            self.name,
            tuple(
                replace(image, deviation=factor * image.deviation + floor * bright_intensity(image.image))
                for image in self.images
            ),
        )


def compare(
    reference: NDArray[np.floating],
    image: NDArray[np.floating],
    deviation: NDArray[np.floating],
    threshold: float = FOREGROUND,
) -> ComparedImage:
    """Put an image beside its reference; foreground is where the reference exceeds `threshold` times its maximum.

    Raises:
        ValueError: shapes differ, values are negative or not finite, or the reference is zero.
    """
    return ComparedImage(reference, image, deviation, reference > threshold * reference.max())


def by_scan(images: Iterable[tuple[str, ComparedImage]]) -> list[ComparedScan]:
    """Scans in the order in which their names come first."""
    found: dict[str, list[ComparedImage]] = {}
    for name, image in images:
        found.setdefault(name, []).append(image)
    return [ComparedScan(name, tuple(members)) for name, members in found.items()]


def split(scans: Sequence[ComparedScan], seed: int, part: float = 0.5) -> tuple[list[ComparedScan], list[ComparedScan]]:
    """Draw which scans calibrate and which test; each keeps the order of `scans`.

    Args:
        scans: at least two.
        seed: of the draw.
        part: of the scans that calibrate, rounded; at least one is left for each half.

    Raises:
        ValueError: fewer than two scans.
    """
    if len(scans) < 2:
        raise ValueError(f"{len(scans)} scan cannot be split into a calibration and a test half; at least 2 are needed")
    n_calibration = min(max(round(part * len(scans)), 1), len(scans) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(scans))[:n_calibration].tolist())
    calibration = [scan for number, scan in enumerate(scans) if number in chosen]
    return calibration, [scan for number, scan in enumerate(scans) if number not in chosen]


def bright_intensity(image: NDArray[np.floating]) -> float:
    """99th percentile of the magnitudes of an image: the unit of errors and of the floor of deviations."""
    return float(np.percentile(np.abs(image), BRIGHT_PERCENTILE))
