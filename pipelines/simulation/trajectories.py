"""Where non-Cartesian readouts sample k-space: coordinates `(readouts, samples, 2)`, kx then ky, in cycles a pixel.

Cycles a pixel of the image: the edges of k-space lie at -0.5 and 0.5, and one step of the Nyquist grid is one over the
matrix. kx runs along the read direction, ky along the phase direction.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

GOLDEN_ANGLE_DEG: Final = 180 / ((1 + 5**0.5) / 2)
"""111.246 degrees between spokes (Winkelmann 2007, doi:10.1109/TMI.2006.885337)."""


def radial(n_spokes: int, n_samples: int) -> NDArray[np.float32]:
    """Spokes at even angles over half a turn, the first along kx; the centre is sample n//2."""
    return spokes(np.arange(n_spokes) * np.pi / n_spokes, n_samples)


def golden_angle(first: int, n_spokes: int, n_samples: int) -> NDArray[np.float32]:
    """Spokes `first` and on of an endless golden-angle scan, spoke 0 along kx; the centre is sample n//2."""
    return spokes((first + np.arange(n_spokes)) * np.deg2rad(GOLDEN_ANGLE_DEG), n_samples)


def spokes(angles_rad: NDArray[np.floating], n_samples: int) -> NDArray[np.float32]:
    """Straight lines through the centre from radius -0.5 to 0.5, at these angles from kx towards ky."""
    radius = (np.arange(n_samples) - n_samples // 2) / n_samples
    directions = np.stack([np.cos(angles_rad), np.sin(angles_rad)], axis=-1)
    return np.asarray(radius[:, None] * directions[:, None, :], np.float32)


def spiral(n_interleaves: int, n_measured: int, matrix: int, oversampling: float) -> NDArray[np.float32]:
    """Archimedean spirals from the centre outwards at constant speed; the centre is sample 0.

    Args:
        n_interleaves: that fill k-space of this matrix to Nyquist's distance between neighbouring turns.
        n_measured: interleaves measured, evenly chosen from those.
        matrix: pixels along x and y.
        oversampling: Nyquist's distance over that of neighbouring samples.
    """
    turns = matrix / 2 / n_interleaves
    part = np.linspace(0, 1, 64 * matrix)
    # Steps of Nyquist's distance along the curve, outwards and round; near the centre it goes outwards only.
    speed = matrix / 2 * np.sqrt(1 + (2 * np.pi * turns * part) ** 2)
    length = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2) * part[1]])
    n_samples = int(np.ceil(oversampling * length[-1])) + 1
    along = np.interp(np.linspace(0, length[-1], n_samples), length, part)
    angles = 2 * np.pi * (turns * along[None, :] + (np.arange(n_measured) / n_measured)[:, None])
    radius = 0.5 * along
    return np.asarray(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=-1), np.float32)
