"""What an image is compared with: a learned energy at the noise level asked for, or total variation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from models.card import Card
from models.energy import EnergyModel
from models.store import open_model
from pipelines.errors import ParameterError
from pipelines.recon.total_variation import TotalVariation


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level of a prior.

    Attributes:
        deviation: standard deviation of the noise; tissue is about 1.
        least_noise: the data count as at least so noisy. At a coarse level the image is not meant to be exact, and
            curvatures of data and prior that are alike make long steps.
        share: of the iterations.
    """

    deviation: float
    least_noise: float
    share: float


LEVELS = (Level(0.1, 0.1, 0.1), Level(0.05, 0.05, 0.2), Level(0.03, 0.02, 0.4), Level(0.02, 0.01, 0.3))
"""Coarse structure is settled before fine structure is asked for. T2-weighted brain, 272 x 232, R = 4, 8 % calibration
lines, 100 iterations: 32.8 dB; equal shares, a fifth level of 0.015 and data trusted to 0.3 of each level 31.9 dB; 300
iterations 33.4 dB."""

TOTAL_VARIATION = TotalVariation(weight=40.0, epsilon=0.01)
"""Of the column that the energy is compared with; all its iterations at the noise of the data."""


class Prior(Protocol):
    """A prior of normalised magnitude images at several noise levels."""

    levels: tuple[Level, ...]

    def at(self, level: float) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Value with gradient, and value alone, of images `(items, y, x)` in nats."""
        ...


class LearnedPrior:
    """An energy from the store.

    Attributes:
        card: of the model.
        details: model, version, digest for the meta.
    """

    levels = LEVELS

    def __init__(self, name: str, device: str) -> None:
        """Open a model.

        Raises:
            ModelError: there is none of that name, or it is not as its card says.
            ParameterError: it is no energy.
        """
        stored = open_model(name)
        network = stored.build()
        if not isinstance(network, EnergyModel):
            raise ParameterError(
                f"the model {stored.card.title} is no energy of images but a {stored.card.architecture}"
            )
        self.card: Card = stored.card
        self.details = stored.details()
        self._energy = cast("EnergyModel", network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    def at(self, level: float) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Energy of images with noise of that level."""
        return partial(self._energy.value_and_gradient, deviation=level), partial(self._energy.value, deviation=level)


class TotalVariationPrior:
    """Total variation, the same at all levels; they still say how much the data are trusted."""

    levels = LEVELS

    def at(
        self,
        level: float,  # noqa: ARG002  the same at all levels
    ) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Total variation with its gradient, and alone."""
        return TOTAL_VARIATION, TOTAL_VARIATION.value
