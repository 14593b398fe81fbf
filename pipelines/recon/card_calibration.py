"""What a model's card makes of an image and its deviation: intensities corrected, deviations scaled.

    u' = b g(u / b),        s' = q g'(u / b) s + q0 b'

g is the card's monotone curve of intensities, q the factor and q0 the floor of its calibration record, b and b' the
bright intensity of a plane before and after: what `echotrain calibrate` fitted (`models.training`), undone by nothing
in between. Each plane by itself, as each was normalised by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from models.card import CalibrationRecord, Card
from models.energy import MOST_VALUES
from models.training.compared import BRIGHT_PERCENTILE
from models.training.intensity import IntensityMap

CONFORMAL = "conformal"
"""First word of `Reconstructed.calibration` where a factor was applied."""


@dataclass(frozen=True, slots=True)
class CardCalibration:
    """What to apply.

    Attributes:
        record: factor and floor; None leaves deviations as they are.
        curve: of intensities; None leaves them as they are.
    """

    record: CalibrationRecord | None = None
    curve: IntensityMap | None = None

    @classmethod
    def of_card(cls, card: Card, pipeline: str, mode: str) -> CardCalibration:
        """What the card has for a pipeline and its kind of deviation."""
        curve = None if card.intensity is None else IntensityMap(card.intensity.inputs, card.intensity.outputs)
        return cls(card.calibration_for(pipeline, mode), curve)

    def __call__(
        self, magnitude: Float32[Tensor, "items y x"], deviation: Float32[Tensor, "items y x"]
    ) -> tuple[Float32[Tensor, "items y x"], Float32[Tensor, "items y x"]]:
        """Magnitudes and deviations as they are given out, in the units in which they came."""
        if self.curve is not None:
            magnitude, deviation = _mapped(self.curve, magnitude, deviation, bright_intensities(magnitude))
        if self.record is not None:
            floor = self.record.floor * bright_intensities(magnitude)[:, None, None]
            deviation = self.record.factor * deviation + floor
        return magnitude, deviation

    def like(
        self, others: Float32[Tensor, "*n items y x"], magnitude: Float32[Tensor, "items y x"]
    ) -> Float32[Tensor, "*n items y x"]:
        """Other images of the same planes, such as samples, with the curve as it was applied to `magnitude`."""
        if self.curve is None:
            return others
        return _mapped(self.curve, others, torch.zeros_like(others), bright_intensities(magnitude))[0]

    @property
    def text(self) -> str:
        """For `Reconstructed.calibration`."""
        if self.record is None:
            return "none"
        record = self.record
        return f"{CONFORMAL} over {record.n_scans} scans: factor {record.factor:.3g}, floor {record.floor:.3g}"

    @property
    def details(self) -> dict[str, str]:
        """For `Reconstructed.details`."""
        return {} if self.curve is None else {"ReconIntensities": f"corrected, {len(self.curve.inputs)} knots"}


def bright_intensities(magnitude: Float32[Tensor, "items y x"]) -> Float32[Tensor, "items"]:
    """`models.training.compared.bright_intensity` of each plane, on its device; very large ones by every n-th pixel."""
    flat = magnitude.flatten(1)
    flat = flat[:, :: -(-flat.shape[1] // MOST_VALUES)]
    return torch.quantile(flat, BRIGHT_PERCENTILE / 100, dim=1)


def _mapped(
    curve: IntensityMap,
    magnitude: Float32[Tensor, "*n items y x"],
    deviation: Float32[Tensor, "*n items y x"],
    bright: Float32[Tensor, "items"],
) -> tuple[Float32[Tensor, "*n items y x"], Float32[Tensor, "*n items y x"]]:
    """Through the curve; planes that are zero nearly everywhere, whose unit is not known, stay as they are."""
    is_known = (bright > 0)[:, None, None]
    scale = torch.where(bright > 0, bright, 1.0)[:, None, None]
    mapped, mapped_deviation = curve(magnitude / scale, deviation, 1.0)
    return torch.where(is_known, mapped * scale, magnitude), torch.where(is_known, mapped_deviation, deviation)
