"""Whether a magnitude image has dark air, as every one has that was not painted over."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.energy import REFERENCE_QUANTILE

MOST_AIR: Final = 0.6
"""Mean of the darkest corner, relative to nearly the brightest pixel, above which air is not dark. Of hearts and heads
none has 0.02; figures that were filled with white around the head have 0.9."""

CORNER: Final = 8
"""Side of a corner, in pixels."""


def has_dark_air(image: NDArray[np.generic]) -> bool:
    """Whether some corner of a magnitude image `(y, x)` is dark; what fills the whole image has no dark air."""
    ends = slice(CORNER), slice(-CORNER, None)
    darkest = min(float(image[y, x].astype(np.float32).mean()) for y in ends for x in ends)
    return darkest <= MOST_AIR * float(np.quantile(image.astype(np.float32), REFERENCE_QUANTILE))
