"""Does a map put large values where errors are large? Sparsification, rank correlation, and maps that must be beaten.

Only the order of a map's values counts here, so that maps without units (the image itself, its gradient) can be
compared with deviations. Numpy only.

*Sparsification*: pixels are removed in descending order of the map; the curve is the mean error of what is left over
the mean error of all. The oracle removes by the error itself. AUSE is the area between curve and oracle, AURG the area
between a random order (1) and the curve. Pixels with equal values are removed in random order on average, so that a
constant map gives 1 everywhere, however an image is stored.

The error of one pixel of one noisy image cannot be foreseen; that of a block of pixels partly can. So the rank
correlation (Spearman) is also given for means over blocks of 8 x 8 pixels.

Reference: Ilg 2018, doi 10.1007/978-3-030-01234-2_40.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.training.compared import ComparedImage, ComparedScan, bright_intensity
from models.training.conformal import smallest_factor

BLOCK: Final = 8
FRACTIONS: Final = tuple(i / 100 for i in range(100))
"""Parts of the pixels that are removed."""

MapOf = Callable[[ComparedImage], NDArray[np.float64]]
"""Gives a map `(y, x)` of an image, in bright intensities where it has units."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well a map orders errors; means over scans.

    Attributes:
        name: of the map.
        ause: area between its sparsification curve and the oracle's; 0 is perfect.
        aurg: area between a random order and its curve; above 0 is better than random.
        spearman: rank correlation with the error per pixel; 0 for a constant map, which orders nothing.
        spearman_blocks: the same for means over blocks.
        width: mean width in bright intensities of intervals proportional to the map that cover 90 % of these pixels:
            narrower is sharper, at equal coverage. Infinite where no multiple of the map covers them.
        curve: sparsification curve at `FRACTIONS`.
    """

    name: str
    ause: float
    aurg: float
    spearman: float
    spearman_blocks: float
    width: float
    curve: tuple[float, ...]


def gradient_map(image: ComparedImage) -> NDArray[np.float64]:
    """Magnitude of the gradient of the reconstructed image, central differences."""
    along_y, along_x = np.gradient(np.asarray(image.image, np.float64) / bright_intensity(image.image))
    return np.asarray(np.hypot(along_y, along_x), np.float64)


BASELINES: Final[dict[str, MapOf]] = {
    "constant": lambda image: np.ones(image.image.shape),
    "image": lambda image: np.asarray(image.image, np.float64) / bright_intensity(image.image),
    "gradient": gradient_map,
}
"""Maps that a deviation has to beat to be worth its time."""


def rank(scans: Sequence[ComparedScan], name: str, map_of: MapOf, level: float = 0.9) -> Ranking:
    """Judge the map that `map_of` gives of each image of the scans."""
    curves, oracles, pixels, blocks = [], [], [], []
    widths: list[float] = []
    needed: list[NDArray[np.float64]] = []
    for scan in scans:
        errors = scan.errors
        maps = [map_of(image) for image in scan.images]
        values = np.concatenate([each[image.foreground] for each, image in zip(maps, scan.images, strict=True)])
        curves.append(sparsification(errors, values))
        oracles.append(sparsification(errors, errors))
        pixels.append(spearman(values, errors))
        means = [
            (block_means(each, image.foreground), block_means(image.error, image.foreground))
            for each, image in zip(maps, scan.images, strict=True)
        ]
        blocks.append(spearman(np.concatenate([m for m, _ in means]), np.concatenate([e for _, e in means])))
        ratios = np.where(errors > 0, np.inf, 0.0)
        np.divide(errors, values, out=ratios, where=values > 0)
        needed.append(ratios)
        widths.append(float(values.mean()))
    curve, oracle = np.mean(curves, 0), np.mean(oracles, 0)
    return Ranking(
        name=name,
        ause=float(np.trapezoid(curve - oracle, FRACTIONS)),
        aurg=float(np.trapezoid(1 - curve, FRACTIONS)),
        spearman=float(np.mean(pixels)),
        spearman_blocks=float(np.mean(blocks)),
        width=2 * smallest_factor(needed, 1 - level) * float(np.mean(widths)),
        curve=tuple(curve.tolist()),
    )


def sparsification(errors: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean error of what is left when the parts `FRACTIONS` with the largest values are removed, over that of all.

    1 everywhere where all errors are zero.
    """
    total = float(errors.mean())
    if total == 0:
        return np.ones(len(FRACTIONS))
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    expected = np.bincount(group, errors) / counts  # of a pixel among those of equal value
    kept_sum = np.cumsum(np.repeat(expected, counts))
    n = len(errors)
    kept = np.maximum(n - np.rint(np.asarray(FRACTIONS) * n).astype(int), 1)
    return np.asarray(kept_sum[kept - 1] / kept / total, np.float64)


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation; equal values share their mean rank; 0 if one of them is constant, or there is no pair."""
    if len(a) < 2:
        return 0.0
    ranks = [_ranks(values) for values in (a, b)]
    centred = [each - each.mean() for each in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm > 0 else 0.0


def block_means(values: NDArray[np.float64], foreground: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Means over the foreground of blocks of `BLOCK` x `BLOCK` pixels, of which at least half are foreground."""
    y, x = (BLOCK * (size // BLOCK) for size in values.shape)
    inside = _sums(foreground[:y, :x].astype(np.float64))
    sums = _sums(np.where(foreground, values, 0)[:y, :x])
    used = inside >= BLOCK**2 / 2
    return np.asarray(sums[used] / inside[used], np.float64)


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    y, x = (size // BLOCK for size in values.shape)
    return np.asarray(values.reshape(y, BLOCK, x, BLOCK).sum((1, 3)), np.float64)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[group], np.float64)
