"""What an image is compared with: a learned energy at the noise level asked for, or total variation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from models.card import Card
from models.energy import EnergyModel
from models.store import open_model
from pipelines.errors import ParameterError
from pipelines.recon.total_variation import TotalVariation

LEVELS = (0.1, 0.05, 0.03, 0.02, 0.015)
"""Noise levels of the prior, one after the other: coarse structure is settled before fine structure is asked for.
Tissue is about 1."""

NOISE_OVER_LEVEL = (1.0, 1.0, 0.7, 0.5, 0.3)
"""The data count as at least this many times a level noisy. At a coarse level the image is not meant to be exact, and
curvatures of data and prior that are alike make long steps; T2-weighted brain, R = 4, 100 iterations: 0.15 dB more than
with 0.3 throughout."""

TOTAL_VARIATION = TotalVariation(weight=12.0, epsilon=0.01)
"""What brains ask for (`tests/benchmarks/total_variation_weight.py`; three heads, five patterns, noise of 0.01 and 0.02
of the brightest pixel): within 0.2 dB of the best weight tried for each head and noise; 5 costs up to 0.9 dB, 40 up to
1.7. Were total variation the density of images, one weight in nats would suit any noise; as it is not, the best one
falls as noise grows (10 to 20 at 0.01, 7 to 14 at 0.02), but following it would gain a tenth of a dB. Epsilon between
0.003 and 0.03 changes 0.02 dB."""


@runtime_checkable
class Prior(Protocol):
    """A prior of normalised magnitude images at several noise levels."""

    levels: tuple[float, ...]
    noise_over_level: tuple[float, ...]

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
    noise_over_level = NOISE_OVER_LEVEL

    def __init__(self, name: str, device: str) -> None:
        """Open a model.

        Raises:
            ModelError: there is none of that name, or it is not as its card says.
            ParameterError: it is no energy.
        """
        stored = open_model(name)
        network = stored.build()
        if not isinstance(network, EnergyModel):
            raise ParameterError(f"the model {stored.card.title} is no energy of images but a {stored.card.architecture}")
        self.card: Card = stored.card
        self.details = stored.details()
        self._energy = cast("EnergyModel", network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    def at(self, level: float) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Energy of images with noise of that level."""
        return partial(self._energy.value_and_gradient, deviation=level), partial(self._energy.value, deviation=level)


class TotalVariationPrior:
    """Total variation, the same at all levels; they still say how much the data are trusted.

    Two levels, the first to find how bright the image is: the problem is convex, so there is no coarse prior to come
    down from, and iterations at coarse levels are lost (colin27, R = 4: 31.4 dB, with the five levels 31.1 dB).
    """

    levels: tuple[float, ...] = (0.05, 0.015)
    noise_over_level: tuple[float, ...] = (1.0, 0.3)

    def at(
        self,
        level: float,  # noqa: ARG002  the same at all levels
    ) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]:
        """Total variation with its gradient, and alone."""
        return TOTAL_VARIATION, TOTAL_VARIATION.value
