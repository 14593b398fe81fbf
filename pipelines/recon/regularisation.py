"""How much a least-squares image is regularised: as asked for, else by its noise.

By default the relative weight is a multiple of the noise variance over the mean signal power of a pixel, within bounds:
too large a weight leaves aliases behind, too small a one lets noise through.
"""

from __future__ import annotations

MOST_REGULARISATION = 0.03
"""Taken where the noise was not measured, and not exceeded by the default. On a real 8-channel brain at R = 2 to 4 the
error is at most 2 % above BART's with the weight best for each (`tests/benchmarks/sense_against_bart.py`). In strong
noise a larger weight would lower the error further, but leave more of the aliases behind, which no uncertainty map
shows.
"""

LEAST_REGULARISATION = 1e-3
"""For errors of the maps, which are there without any noise."""

REGULARISATION_OVER_NOISE = 30.0
"""r over (noise variance / mean signal power of a pixel): what undersampling leaves uncertain, the differences between
aliases, holds about a thirtieth of the power. Three anatomies, 8 simulated coils, R = 2, 3, 4: between the bounds the
error is at most 5 % above that with the weight best for each case, where 0.03 throughout gave up to 2.1 times, and 4.7
times at the lower bound (`tests/benchmarks/sense_regularisation.py`).
"""


def relative_weight(asked: float | None, noise_over_signal: float, noise_is_measured: bool) -> float:
    """The relative weight r.

    Args:
        asked: the parameter `regularisation`; None leaves it to the noise.
        noise_over_signal: noise variance over the mean signal power of a pixel.
        noise_is_measured: whether the noise level can be relied on.
    """
    if asked is not None:
        return asked
    if not noise_is_measured:
        return MOST_REGULARISATION
    return min(max(REGULARISATION_OVER_NOISE * noise_over_signal, LEAST_REGULARISATION), MOST_REGULARISATION)
