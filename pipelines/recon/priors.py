"""What an image is compared with: a learned energy at the noise level asked for, or total variation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

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


LEVELS = (Level(0.05, 0.05, 0.15), Level(0.03, 0.02, 0.4), Level(0.02, 0.01, 0.45))
"""Coarse structure is settled before fine structure is asked for, from an image of total variation on. A measured brain
(R = 4, 8 % calibration lines) and an IXI head, 100 iterations: 32.4 and 27.1 dB; without that image and with a level of
0.1 instead 32.2 and 27.0; with a level of 0.015 at the end 31.9 and 26.8; twice as many iterations 32.5 and 27.0."""

LEARNED_WEIGHT = 0.5
"""Of a learned energy where `prior_weight` is 1: its density is surer of itself than images deserve. Heads of a patient
kept from training, R = 4, 8 % calibration lines: T2w 32.1, 32.2, 31.4 dB and T1w 37.5, 37.9, 36.7 dB with 1, 0.5, 0.25.
"""

MOST_PIXELS_CPU = 1 << 20
"""Pixels of the images that the network sees at once; it keeps up to 1 kB for each until it has gone back."""
MOST_PIXELS_GPU = 1 << 23

TOTAL_VARIATION = TotalVariation(weight=12.0, epsilon=0.01)
"""What brains ask for (`tests/benchmarks/total_variation_weight.py`; three heads, five patterns, noise of 0.01 and 0.02
of the brightest pixel): within 0.2 dB of the best weight tried for each head and noise; 5 costs up to 0.9 dB, 40 up to
1.7. Were total variation the density of images, one weight in nats would suit any noise; as it is not, the best one
falls as noise grows (10 to 20 at 0.01, 7 to 14 at 0.02), but following it would gain a tenth of a dB. Epsilon between
0.003 and 0.03 changes 0.02 dB."""


@runtime_checkable
class Prior(Protocol):
    """A prior of normalised magnitude images at several noise levels."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Noise levels to go through, the finest last."""
        ...

    @property
    def weight(self) -> float:
        """What its energy counts with where `prior_weight` is 1."""
        ...

    @property
    def is_noisy(self) -> bool:
        """Whether it is of images with noise of the level, rather than of images."""
        ...

    def at(self, level: float) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Value with gradient, and value alone, of images `(items, y, x)` in nats."""
        ...


class LearnedPrior:
    """An energy from the store.

    Attributes:
        card: of the model.
        details: model, version, digest for the meta.
    """

    levels: tuple[Level, ...] = LEVELS
    weight = LEARNED_WEIGHT
    is_noisy = True

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
        with torch.inference_mode(mode=False):  # weights made in it could never give a gradient
            self._energy = cast("EnergyModel", network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    def at(self, level: float) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Energy of images with noise of that level."""

        def value_and_gradient(images: Tensor) -> tuple[Tensor, Tensor]:
            found = [self._energy.value_and_gradient(some, level) for some in _in_pieces(images)]
            return torch.cat([value for value, _ in found]), torch.cat([gradient for _, gradient in found])

        def value(images: Tensor) -> Tensor:
            return torch.cat([self._energy.value(some, level) for some in _in_pieces(images)])

        return value_and_gradient, value


class TotalVariationPrior:
    """Total variation, the same at all levels; they still say how much the data are trusted.

    Two levels: the problem is convex in the image, so there is no coarse prior to come down from, and iterations at
    coarse levels are lost (colin27, R = 4: 31.4 dB, with five levels 31.1 dB).
    """

    levels: tuple[Level, ...] = (Level(0.05, 0.05, 0.5), Level(0.015, 0.0045, 0.5))
    weight = 1.0
    is_noisy = False

    def at(
        self,
        level: float,  # noqa: ARG002  the same at all levels
    ) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Total variation with its gradient, and alone."""
        return TOTAL_VARIATION, TOTAL_VARIATION.value


def _in_pieces(images: Tensor) -> tuple[Tensor, ...]:
    most = MOST_PIXELS_CPU if images.device.type == "cpu" else MOST_PIXELS_GPU
    return torch.split(images, max(1, most // images[0].numel()))
