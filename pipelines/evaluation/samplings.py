"""Undersampling patterns by name, seeded; numpy only, knows no images.

Masks have the centre of k-space at n//2. The acceleration R is points of the full grid over points measured, the
fully sampled centre included. Radial: full sampling is `pi/2 n` spokes of n samples for an n x n image, so that R-fold
has `pi/2 n / R` spokes, and `2/pi R` times fewer samples than the grid has points.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import EvaluationError
from pipelines.simulation.sampling import centre_block, ellipse, poisson_disc
from pipelines.simulation.trajectories import golden_angle

Mask = NDArray[np.bool_]

GAUSSIAN_WIDTH = 1 / 6
"""Standard deviation of the Gaussian density over the number of lines: the edge lies at three deviations."""

FIRST_SPOKES = 1000
"""The first spoke is one of so many of an endless golden-angle scan."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one phase-encoding axis: a fully sampled centre and others.

    Attributes:
        acceleration: lines over lines measured, autocalibration lines (ACL) included.
        central_share: part of all lines that are ACL.
        is_even: the other lines keep one distance (apart from rounding) instead of lying uniformly at random.
        is_swapped: the other axis of the image is the phase-encoding one.
    """

    acceleration: float
    central_share: float
    is_even: bool = False
    is_swapped: bool = False

    def mask(self, n: int, rng: np.random.Generator) -> Mask:
        """Which of n lines are measured.

        As in fastMRI (Zbontar 2018, arXiv 1811.08839), but always with `n / R` lines in all, not on average.
        """
        central, wanted = round(self.central_share * n), round(n / self.acceleration)
        mask: Mask = centre_block((1, n), (1, central)).reshape(n)
        others = np.flatnonzero(~mask)
        n_others = max(0, wanted - central)
        if self.is_even and n_others:
            distance = len(others) / n_others
            mask[others[((np.arange(n_others) + rng.uniform()) * distance).astype(np.intp)]] = True
        else:
            mask[rng.choice(others, n_others, replace=False)] = True
        return mask


@dataclass(frozen=True, slots=True)
class Plane:
    """Points of two phase-encoding axes: a fully sampled block and others.

    Attributes:
        acceleration: points of the grid over points measured, block included.
        central_share: size of the block along either axis over that of the grid.
        is_disc: the others keep a distance that grows with that from the centre (Poisson disc, within the ellipse)
            instead of lying at random with a Gaussian density.
    """

    acceleration: float
    central_share: float
    is_disc: bool = False

    def mask(self, shape: tuple[int, int], rng: np.random.Generator) -> Mask:
        """Which points of the grid (z, y) are measured."""
        block = (round(self.central_share * shape[0]), round(self.central_share * shape[1]))
        if self.is_disc:
            within = self.acceleration * float(ellipse(shape).mean())
            return poisson_disc(shape, within, block, rng)
        mask = centre_block(shape, block)
        z, y = np.ogrid[: shape[0], : shape[1]]
        distance = ((z - shape[0] // 2) / shape[0]) ** 2 + ((y - shape[1] // 2) / shape[1]) ** 2
        density = np.where(mask, 0, np.exp(-distance / (2 * GAUSSIAN_WIDTH**2))).ravel()
        wanted = round(mask.size / self.acceleration) - int(np.count_nonzero(mask))
        chosen = rng.choice(mask.size, max(0, wanted), replace=False, p=density / density.sum())
        mask.ravel()[chosen] = True
        return mask


@dataclass(frozen=True, slots=True)
class Radial:
    """Spokes through the centre, each the golden angle after the one before.

    Attributes:
        acceleration: `pi/2 n` over the number of spokes, n the longer side of the image.
    """

    acceleration: float

    def n_spokes(self, shape: tuple[int, int]) -> int:
        """Spokes for an image of y, x."""
        return max(1, round(pi / 2 * max(shape) / self.acceleration))

    def positions(self, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        """Samples `(spokes, samples, 2)` in cycles a pixel, x before y; a spoke has one for each pixel of n."""
        return golden_angle(int(rng.integers(FIRST_SPOKES)), self.n_spokes(shape), max(shape))


Sampling = Lines | Plane | Radial

KNOWN = (
    "full, cartesianR_aclP, equispacedR_aclP (R-fold, P % autocalibration lines; _swapped at the end swaps the axes)"
)
KNOWN_PLANES = "gaussianR, poissonR, radialR"
PLANE_SHARE = 0.08
"""Of the fully sampled block of two phase-encoding axes, along each of them."""

_LINES = re.compile(r"(cartesian|equispaced)([1-9]\d?)_acl([1-9]\d?)(_swapped)?")
_POINTS = re.compile(r"(gaussian|poisson|radial)([1-9]\d?)")


def find_sampling(name: str) -> Sampling:
    """The pattern of that name: for example cartesian4_acl8, equispaced6_acl4_swapped, gaussian8, radial11, full.

    Raises:
        EvaluationError: there is none, the message says which there are; or calibration alone needs more lines or
            points than the acceleration leaves.
    """
    if name == "full":
        return Lines(1.0, 1.0)
    if lines := _LINES.fullmatch(name):
        kind, acceleration, percent, swapped = lines.groups()
        share = int(percent) / 100
        _check_calibration(name, float(acceleration), share)
        return Lines(float(acceleration), share, is_even=kind == "equispaced", is_swapped=swapped is not None)
    if points := _POINTS.fullmatch(name):
        kind, acceleration = points.groups()
        if kind == "radial":
            return Radial(float(acceleration))
        _check_calibration(name, float(acceleration), PLANE_SHARE**2)
        return Plane(float(acceleration), PLANE_SHARE, is_disc=kind == "poisson")
    raise EvaluationError(f"unknown sampling {name!r}; known are {KNOWN}, {KNOWN_PLANES}")


def _check_calibration(name: str, acceleration: float, share: float) -> None:
    if share * acceleration > 1:
        raise EvaluationError(f"sampling {name!r}: the calibration alone is more than one in {acceleration:g}")
