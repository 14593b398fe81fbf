"""What every derivation takes and returns: one image in, at most one image with its uncertainty out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import Image


@dataclass(frozen=True, slots=True)
class Derived:
    """What was made of an image.

    Attributes:
        pixels: `(channels, z, y, x)` float32 in the units of the image that came, on its grid.
        deviation: standard deviation of `pixels`, same shape and units.
        kind: what the deviation holds (`pipelines.recon.reconstruction.UncertaintyKind`).
        calibration: how it was calibrated.
        name: short, for series names.
        details: numbers worth recording in the meta, already as text.
    """

    pixels: NDArray[np.float32]
    deviation: NDArray[np.float32]
    kind: str
    calibration: str
    name: str
    details: dict[str, str] = field(default_factory=dict[str, str])


class Derivation(Protocol):
    """A derivation with its parameters loaded, ready for any number of images."""

    def __call__(self, image: Image, warnings: list[str]) -> Derived | None:
        """Derive an image; None when there is nothing to make of this one, with a warning that says why.

        Raises:
            ReconstructionError: the image cannot be used.
        """
        ...
