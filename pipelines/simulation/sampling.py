"""Which lines of a grid with two phase encodings are measured: masks `(z, y)`, k-space centre at n//2; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def lattice(shape: tuple[int, int], acceleration: tuple[int, int], shift: int = 0, start: int = 0) -> Mask:
    """Every line of a regular lattice through the centre; CAIPIRINHA with a shift.

    Args:
        shape: z, y.
        acceleration: along y and z.
        shift: lines along y by which each measured plane lies off the one before (Breuer 2006,
            doi:10.1002/mrm.20787).
        start: lines along y by which the whole lattice lies off the centre.
    """
    step_y, step_z = acceleration
    z, y = _offsets(shape)
    return np.asarray((z % step_z == 0) & ((y - start - shift * (z // step_z)) % step_y == 0))


def ellipse(shape: tuple[int, int]) -> Mask:
    """Lines within the ellipse that touches the edges of k-space: the corners are left out."""
    z, y = _offsets(shape)
    return np.asarray((z / max(shape[0] / 2, 0.5)) ** 2 + (y / max(shape[1] / 2, 0.5)) ** 2 <= 1)


def centre_block(shape: tuple[int, int], size: tuple[int, int]) -> Mask:
    """The `size` (z, y) lines around the centre."""
    z, y = _offsets(shape)
    (n_z, n_y) = size
    return np.asarray((z >= -(n_z // 2)) & (z < n_z - n_z // 2) & (y >= -(n_y // 2)) & (y < n_y - n_y // 2))


def late_part(shape: tuple[int, int], parts: tuple[float, float]) -> Mask:
    """What partial Fourier measures: the last part of the planes and of the lines, both given as (z, y)."""
    n_z, n_y = shape
    mask = np.zeros(shape, np.bool_)
    mask[n_z - round(n_z * parts[0]) :, n_y - round(n_y * parts[1]) :] = True
    return mask


def poisson_disc(
    shape: tuple[int, int], acceleration: float, calibration: tuple[int, int], rng: np.random.Generator
) -> Mask:
    """Random lines that keep a distance growing with that from the centre, around a fully sampled block.

    Lines are taken in random order unless one nearer than their radius is there already (Bridson 2007,
    doi:10.1145/1278780.1278807, on a grid); the radius is scaled until one in `acceleration` lines of the ellipse is
    measured.

    Args:
        shape: z, y.
        acceleration: lines of the ellipse over lines measured, block included.
        calibration: size of the block, z and y.
        rng: draws the order.

    Raises:
        ValueError: the acceleration is below 1, or the block alone has more lines than it allows.
    """
    if not acceleration >= 1:
        raise ValueError(f"acceleration must be at least 1, not {acceleration}")
    inside, block = ellipse(shape), centre_block(shape, calibration)
    wanted = round(float(np.count_nonzero(inside)) / acceleration)
    if np.count_nonzero(block) > wanted:
        raise ValueError(
            f"a block of {np.count_nonzero(block)} lines is more than acceleration {acceleration:g} allows"
        )
    order = rng.permutation(np.flatnonzero(inside & ~block))
    low, high = 0.0, float(2 * max(shape))
    best = inside | block
    for _ in range(24):
        middle = (low + high) / 2
        mask = _throw_darts(shape, order, block, middle)
        n_measured = int(np.count_nonzero(mask))
        if abs(n_measured - wanted) < abs(int(np.count_nonzero(best)) - wanted):
            best = mask
        low, high = (middle, high) if n_measured > wanted else (low, middle)
    return best


def _throw_darts(shape: tuple[int, int], order: NDArray[np.intp], block: Mask, scale: float) -> Mask:
    """One pass over the lines; the radius is `scale` times the relative distance to the centre, in lines."""
    n_z, n_y = shape
    z, y = np.divmod(order, n_y)
    from_centre = np.hypot((z - n_z // 2) / max(n_z / 2, 0.5), (y - n_y // 2) / max(n_y / 2, 0.5))
    radius = scale * (0.1 + from_centre) / np.sqrt(n_z * n_y) * 2
    blocked = block.copy()
    mask = block.copy()
    for at_z, at_y, r in zip(z.tolist(), y.tolist(), radius.tolist(), strict=True):
        if blocked[at_z, at_y]:
            continue
        mask[at_z, at_y] = True
        reach = int(r)
        near_z = slice(max(at_z - reach, 0), at_z + reach + 1)
        near_y = slice(max(at_y - reach, 0), at_y + reach + 1)
        dz = np.arange(near_z.start, min(near_z.stop, n_z))[:, None] - at_z
        dy = np.arange(near_y.start, min(near_y.stop, n_y))[None, :] - at_y
        blocked[near_z, near_y] |= dz**2 + dy**2 <= r**2
    return mask


def _offsets(shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    n_z, n_y = shape
    return np.arange(n_z)[:, None] - n_z // 2, np.arange(n_y)[None, :] - n_y // 2
