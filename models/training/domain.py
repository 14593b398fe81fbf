"""Ranges of results on data that a model knows, from the results on calibration scans: the `domain` of its card.

The range is that from the least to the greatest value found, widened on both sides by `MARGIN` of its width: few scans
do not show the extremes (of n of them a new one lies outside their range with probability 2 / (n + 1)), and an image of
the kind that the model knows should hardly ever be marked. Neither quantity is negative, so no range begins below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Final

from models.card import Domain, Range

MARGIN: Final = 0.5
"""Of the width that the calibration scans span, added at each end."""

LEAST_MARGIN: Final = 0.1
"""Of the greatest value, likewise: scans that happen to be alike leave some room too."""

FEWEST_RESULTS: Final = 4
"""Fewer say nothing of how results vary."""


def fit_domain(results: Sequence[tuple[float | None, float | None]]) -> Domain:
    """Ranges of the energy a pixel and of the data residual; unchecked where results do not tell them.

    Args:
        results: energy a pixel and data residual of each calibration result, None where it has none.

    Raises:
        ValueError: a value is negative or not finite.
    """
    return Domain(
        energy_per_pixel=_widened([energy for energy, _ in results if energy is not None]),
        data_residual=_widened([residual for _, residual in results if residual is not None]),
    )


def _widened(values: Sequence[float]) -> Range | None:
    if any(not isfinite(value) or value < 0 for value in values):
        raise ValueError(f"values that a domain is made of must be finite and not negative: {values}")
    if len(values) < FEWEST_RESULTS or max(values) == 0:
        return None
    low, high = min(values), max(values)
    margin = max(MARGIN * (high - low), LEAST_MARGIN * high)
    return max(low - margin, 0.0), high + margin
