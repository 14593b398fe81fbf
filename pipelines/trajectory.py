"""Where the samples of radial readouts lie, for streams that carry no trajectory. Numpy only; knows no groups.

A spoke at the angle phi goes through the k-space centre at its centre sample:

    k_i = (i - center) / n (cos phi, sin phi),    i = 0 ... samples - 1

in cycles a pixel of the encoded grid (readout oversampling keeps the size of a pixel), x (read_dir) before y
(phase_dir), so that n samples about the centre reach from -0.5 to 0.5.

Angles of spoke j: uniform `pi j / spokes`; golden `j` times 111.246... degrees (Winkelmann 2007, doi
10.1109/TMI.2006.885337).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

GOLDEN_ANGLE_DEG: Final = 180.0 * (5.0**0.5 - 1.0) / 2.0
"""111.246117975 degrees: half a turn divided by the golden ratio."""


def uniform_angles(numbers: NDArray[np.intp], n_spokes: int) -> NDArray[np.float64]:
    """Angles in rad of spokes by number, `n_spokes` to half a turn."""
    return np.asarray(np.pi * numbers / n_spokes)


def golden_angles(numbers: NDArray[np.intp]) -> NDArray[np.float64]:
    """Angles in rad of spokes by number, each the golden angle further on."""
    return np.asarray(np.deg2rad(GOLDEN_ANGLE_DEG) * numbers)


def radial(angles: NDArray[np.float64], samples: range, center: int, n_encoded: int) -> NDArray[np.float32]:
    """Positions `(spokes, samples, 2)` in cycles a pixel, x before y.

    Args:
        angles: `(spokes,)` rad.
        samples: those kept of the readout, by number.
        center: sample at the k-space centre.
        n_encoded: samples that reach from -0.5 to 0.5.
    """
    radius = (np.arange(samples.start, samples.stop) - center) / n_encoded
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.asarray(direction[:, None, :] * radius[:, None], np.float32)
