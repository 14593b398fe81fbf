"""Named undersampling patterns, seeded; numpy only, knows no images.

Masks have the centre of k-space at n//2. The acceleration R is points of the full grid over points measured, the
fully sampled centre included. Radial: full sampling is `pi/2 n` spokes of n samples for an n x n image, so that R-fold
has `pi/2 n / R` spokes, and `2/pi R` times fewer samples than the grid has points.
"""

from __future__ import annotations

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

SAMPLINGS: dict[str, Sampling] = {
    "full": Lines(1.0, 1.0),
    "cartesian4_acl8": Lines(4.0, 0.08),
    "cartesian4_acl8_swapped": Lines(4.0, 0.08, is_swapped=True),
    "cartesian4_acl4": Lines(4.0, 0.04),
    "cartesian4_acl4_swapped": Lines(4.0, 0.04, is_swapped=True),
    "equispaced4_acl8": Lines(4.0, 0.08, is_even=True),
    "equispaced4_acl8_swapped": Lines(4.0, 0.08, is_even=True, is_swapped=True),
    "equispaced4_acl4": Lines(4.0, 0.04, is_even=True),
    "cartesian8_acl4": Lines(8.0, 0.04),
    "gaussian8": Plane(8.0, 0.08),
    "poisson8": Plane(8.0, 0.08, is_disc=True),
    "radial11": Radial(11.0),
}
"""Patterns by name."""


def find_sampling(name: str) -> Sampling:
    """The pattern of that name.

    Raises:
        EvaluationError: there is none; the message lists those there are.
    """
    if name not in SAMPLINGS:
        raise EvaluationError(f"unknown sampling {name!r}; known are {', '.join(SAMPLINGS)}")
    return SAMPLINGS[name]
