"""Sampling patterns of two phase-encoding directions, recognised from the lines that were measured.

The header says how many lines are skipped but neither where counting starts nor how a CAIPI pattern is shifted, nor
whether the corners of k-space are left out; the measured lines tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Lines = NDArray[np.intp]
Mask = NDArray[np.bool_]

MOST_SHIFTS = 64
"""Skipped lines for which shifts are looked for; scanners have at most 8."""

SKIPPED_BY_DESIGN = 0.25
"""Part of the lines that irregular undersampling leaves out at least: what lacks less is a full scan that lost some."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """A regular pattern: y = y_0 and z = z_0 modulo the steps, one of them shifted on with every line of the other.

    With `shifted_axis` 0 (y): z = z_0 (mod step_z), y = y_0 + shift (z - z_0) / step_z (mod step_y). With 1 (z):
    y = y_0 (mod step_y), z = z_0 + shift (y - y_0) / step_y (mod step_z). Shift 0 is the plain pattern, any other
    CAIPIRINHA (Breuer 2006, doi 10.1002/mrm.20787).
    """

    steps: tuple[int, int]
    start: tuple[int, int]
    shifted_axis: int = 0
    shift: int = 0

    def contains(self, y: Lines, z: Lines) -> Mask:
        """Which of the lines belong to the pattern."""
        shifted, plain = (y, z) if self.shifted_axis == 0 else (z, y)
        step, plain_step = self.steps[self.shifted_axis], self.steps[1 - self.shifted_axis]
        start, plain_start = self.start[self.shifted_axis], self.start[1 - self.shifted_axis]
        row, rest = np.divmod(plain - plain_start, plain_step)
        return np.asarray((rest == 0) & ((shifted - start - self.shift * row) % step == 0))


def recognise_lattice(y: Lines, z: Lines, steps: tuple[int, int]) -> Lattice | None:
    """The pattern with these steps that all lines belong to, the least shift first; None when there is none."""
    first = int(y[0]), int(z[0])
    plain = Lattice(steps, (first[0] % steps[0], first[1] % steps[1]))
    if plain.contains(y, z).all():
        return plain
    for axis in (0, 1):
        others = z if axis == 0 else y
        if ((others - first[1 - axis]) % steps[1 - axis]).any():
            continue
        for shift in range(1, min(steps[axis], MOST_SHIFTS)):
            row = first[1 - axis] // steps[1 - axis]
            start = [first[0] % steps[0], first[1] % steps[1]]
            start[axis] = (first[axis] - shift * row) % steps[axis]
            found = Lattice(steps, (start[0], start[1]), axis, shift)
            if found.contains(y, z).all():
                return found
    return None


@dataclass(frozen=True, slots=True)
class Ellipse:
    """The ellipse about the k-space centre that reaches the limits of both axes.

    Scanners differ about lines on its rim, so a rim of one line to either side is left open.

    Attributes:
        inner: `(z, y)`: lines that elliptical scanning measures.
        outer: `(z, y)`: lines that it may measure.
    """

    inner: Mask
    outer: Mask

    @classmethod
    def of(
        cls, shape: tuple[int, int], y_range: tuple[int, int], z_range: tuple[int, int], center: tuple[int, int]
    ) -> Ellipse | None:
        """The ellipse in a grid `(z, y)`, ranges and centre `(y, z)` in lines of it; None where an axis is too short.

        With fewer than three lines to a side there is no corner to leave out.
        """
        half = [
            max(center[0] - y_range[0], y_range[1] - center[0]),
            max(center[1] - z_range[0], z_range[1] - center[1]),
        ]
        if min(half) < 3:
            return None
        y, z = np.abs(np.arange(shape[1]) - center[0]), np.abs(np.arange(shape[0]) - center[1])
        inner, outer = (
            (y[None, :] / (half[0] + rim)) ** 2 + (z[:, None] / (half[1] + rim)) ** 2 <= 1 for rim in (-1, 1)
        )
        within = np.zeros(shape, np.bool_)
        within[max(z_range[0], 0) : z_range[1] + 1, max(y_range[0], 0) : y_range[1] + 1] = True
        return cls(inner & within, outer & within)


def is_scattered(measured: Mask, center: tuple[int, int], within: Mask | None = None) -> bool:
    """Whether lines `(z, y)` were left out on purpose, in no regular pattern: compressed sensing, Poisson discs.

    The centre `(z, y)` and its neighbours are there, and of the block that the measured lines span at least
    `SKIPPED_BY_DESIGN` is not. A scan that lost some lines lacks fewer, one that was cut short lacks them outside.

    Args:
        measured: `(z, y)`.
        center: z and y.
        within: lines that count, where corners were left out besides.
    """
    around = tuple(slice(max(at - 1, 0), at + 2) for at in center)
    rows, columns = np.flatnonzero(measured.any(1)), np.flatnonzero(measured.any(0))
    if not rows.size or not measured[around].all():
        return False
    spanned = np.zeros_like(measured)
    spanned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    if within is not None:
        spanned &= within
    return bool(np.count_nonzero(spanned & ~measured) >= SKIPPED_BY_DESIGN * np.count_nonzero(spanned))
