"""Recipe for the energy: score matching first, then maximum likelihood with Langevin negatives.

1. *Score matching* (Vincent 2011, doi 10.1162/NECO_a_00142), at all noise levels s from the smallest to the largest:

       L_1 = E |s grad R(x + s n; s) - n|^2 / pixels,        n white, log s uniform

   It teaches the gradient near the data, cheaply, for any s; three of four s are small ones, which reconstructions use.

2. *Maximum likelihood* (Zach 2023, doi 10.1109/TMI.2023.3288631) at the smallest s: energies of noisy data fall, those
   of what the model takes for images rise,

       L_2 = (E_data R(x + s n; s) - E_model R(x^-; s)) / pixels

   with x^- from unadjusted Langevin steps `x - d grad R + sqrt(2 d) n`, d = s^2 / 8 (their step of 1 with noise of
   7.5e-3, in nats), that go on from a replay buffer. A part of the buffer begins anew at each draw, half as noisy
   patches of data, half as twice as noisy ones. (The published half of permuted pixels is so far from images that only
   chains of hundreds of steps come back: with 40 steps the guard below began the buffer anew at 93 % of updates.)
   Chains grow longer while the model learns. L_1 stays in the loss: it keeps the levels above the smallest.

The guard: when the energies of data and samples drift apart by more than `MOST_DRIFT` nats a pixel, or the samples'
spread leaves that of the data, the buffer begins anew; figures count how often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from models.energy import LARGEST_DEVIATION, SMALLEST_DEVIATION, EnergyModel
from models.errors import TrainingDataError
from models.training.energy_pictures import draw_energies, draw_samples
from models.training.images import Patches, Source, validation_images
from models.training.loop import Random

STEP = SMALLEST_DEVIATION**2 / 8
MOST_DRIFT = 1.0
FIRST_CHAINS = 100
"""Updates by which the schedule of the chains' length is ahead: shorter ones leave new chains where they began."""

MOST_SPREAD = 2.0
VALIDATION_LEVELS = (0.015, 0.05, 0.15)
VALIDATION_IMAGES, VALIDATION_SIDE = 24, 256

DOMAIN_BRIGHTNESS = (0.8, 1.0, 1.2)
DOMAIN_MARGIN = 0.25
"""Of the width of the energies seen, added on either side of them."""


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """Of the recipe.

    Attributes:
        side: of patches, in pixels.
        batch: patches an update.
        likelihood_from: update at which maximum likelihood begins.
        longest_chain: Langevin steps of a negative, approached as `1 - exp(-(h + 100) / growth)` over its updates h.
        growth: see `longest_chain`.
        negatives: samples an update.
        buffer: samples in the replay buffer.
        anew: part of drawn samples that begin anew.
        likelihood_weight: of L_2.
        half: whether the network computes in bfloat16 while it trains.
        device: where it trains.
        used: part of the noise levels that is drawn between the smallest and `most_used`, where reconstructions ask.
        most_used: see `used`.
    """

    side: int = 64
    batch: int = 16
    likelihood_from: int = 8000
    longest_chain: int = 40
    growth: float = 300.0
    negatives: int = 8
    buffer: int = 512
    anew: float = 0.01
    likelihood_weight: float = 1.0
    half: bool = True
    device: str = "cpu"
    used: float = 0.75
    most_used: float = 0.07


def chain_length(updates: int, settings: EnergySettings) -> int:
    """Langevin steps of a negative after so many updates of maximum likelihood."""
    return math.ceil(settings.longest_chain * (1 - math.exp(-(updates + FIRST_CHAINS) / settings.growth)))


def draw_levels(settings: EnergySettings, generator: torch.Generator) -> Float32[Tensor, "batch"]:
    """Noise level of each patch: log uniform, from half the smallest (which counts as the smallest) on."""
    low = math.log(SMALLEST_DEVIATION / 2)
    is_used = torch.rand(settings.batch, generator=generator) < settings.used
    high = torch.where(is_used, math.log(settings.most_used), math.log(LARGEST_DEVIATION))
    levels = torch.exp(low + (high - low) * torch.rand(settings.batch, generator=generator))
    return levels.clamp(min=SMALLEST_DEVIATION)


def energy_range(model: EnergyModel, images: Iterable[Float32[Tensor, "_y _x"]]) -> tuple[float, float]:
    """What a reconstruction's energy may be, in nats a pixel at the smallest level, to count as of the known kind.

    Each image is measured as it is, blurred by 2 x 2 pixels (a reconstruction of few data is smooth), and with noise of
    the smallest level (a reconstruction may keep some of it), each at 0.8, 1 and 1.2 of its brightness, since what a
    reconstruction is normalised by is known only after it. The range is from the lowest of these energies to the
    highest, and a quarter of that width wider at either end; never below zero, where no energy is.

    Air costs less than tissue: give images with much of it around them as well as without.

    Args:
        model: measured with.
        images: normalised, of subjects that were not trained on.

    Raises:
        TrainingDataError: no images.
    """
    generator = torch.Generator("cpu").manual_seed(2)
    device = next(model.parameters()).device
    energies: list[float] = []
    for image in images:
        blurred = (image + image.roll(1, 0) + image.roll(1, 1) + image.roll((1, 1), (0, 1))) / 4
        noise = SMALLEST_DEVIATION * torch.randn(image.shape, generator=generator)
        for brightness in DOMAIN_BRIGHTNESS:
            kinds = torch.stack([brightness * image, brightness * blurred, brightness * image + noise]).to(device)
            energies += (model.value(kinds, SMALLEST_DEVIATION) / image.numel()).tolist()
    if not energies:
        raise TrainingDataError("no images to measure the range of energies with")
    margin = DOMAIN_MARGIN * (max(energies) - min(energies))
    return max(0.0, min(energies) - margin), max(energies) + margin


class EnergyRecipe:
    """Model, data and loss of a run."""

    def __init__(
        self, model: EnergyModel, training: list[Source], validation: list[Source], settings: EnergySettings
    ) -> None:
        self._model: EnergyModel = model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._settings = settings
        self._data = sorted(source.name for source in training)
        self._patches = Patches(training, settings.side)
        self._validation = validation_images(validation, VALIDATION_IMAGES, VALIDATION_SIDE).to(settings.device)
        self._buffer: Tensor | None = None
        self._begun_anew = 0

    @property
    def model(self) -> EnergyModel:
        """The model that is trained."""
        return self._model

    def loss(self, update: int, random: Random) -> tuple[Tensor, Mapping[str, float]]:
        """L_1, and L_2 once it is time."""
        settings = self._settings
        clean = self._patches.draw(settings.batch, random.numpy).to(settings.device)
        levels = draw_levels(settings, random.torch).to(settings.device)
        noise = self._normal(clean.shape, random)
        noisy = (clean + levels[:, None, None] * noise).requires_grad_(True)
        energy = self._energy(noisy, levels)
        (gradient,) = torch.autograd.grad(energy.sum(), noisy, create_graph=True)
        score_loss = (levels[:, None, None] * gradient - noise).square().mean()
        figures = {"score_loss": float(score_loss.detach())}
        if update < settings.likelihood_from:
            return score_loss, figures
        steps = chain_length(update - settings.likelihood_from, settings)
        samples = self._negatives(steps, random)
        smallest = torch.full((settings.negatives,), SMALLEST_DEVIATION, device=settings.device)
        data = clean[: settings.negatives]
        positives = data + SMALLEST_DEVIATION * self._normal(data.shape, random)
        of_data, of_samples = (
            self._energy(positives, smallest[: len(data)]).mean(),
            self._energy(samples, smallest).mean(),
        )
        difference = (of_data - of_samples) / settings.side**2
        spread = float(samples.std() / positives.std().clamp(min=1e-6))
        drift = float(difference.detach())
        is_lost = not (abs(drift) <= MOST_DRIFT and 1 / MOST_SPREAD <= spread <= MOST_SPREAD)
        if is_lost:
            self._buffer = None
            self._begun_anew += 1
        figures |= {
            "energy_difference": drift,
            "chain": steps,
            "sample_spread": spread,
            "buffers_anew": self._begun_anew,
        }
        return score_loss if is_lost else score_loss + settings.likelihood_weight * difference, figures

    def look(self, averaged: torch.nn.Module, update: int, directory: Path) -> Mapping[str, float]:
        """PSNR of validation images freed from noise; pictures of samples and energies."""
        model = averaged
        if not isinstance(model, EnergyModel):
            raise TypeError(f"an energy is trained here, not a {type(model).__name__}")
        figures: dict[str, float] = {}
        generator = torch.Generator("cpu").manual_seed(0)
        for level in VALIDATION_LEVELS:
            noise = torch.randn(self._validation.shape, generator=generator).to(self._validation.device)
            noisy = self._validation + level * noise
            cleaned = noisy - level**2 * model.value_and_gradient(noisy, level)[1]
            mean_square = float((cleaned - self._validation).square().mean())
            figures[f"psnr_db_{level:g}"] = -10 * math.log10(mean_square)
        figures |= draw_energies(model, self._validation, directory / f"energies-{update:06d}.png")
        if self._buffer is not None:
            draw_samples(self._buffer[:16], self._validation[:16], directory / f"samples-{update:06d}.png")
        return figures

    def settings(self) -> dict[str, Any]:
        """All but the device, which only rounds differently."""
        known = asdict(self._settings) | asdict(self._model.configuration) | {"data": self._data}
        return {name: value for name, value in known.items() if name != "device"}

    def state(self) -> dict[str, Any]:
        """The replay buffer."""
        return {"buffer": self._buffer, "begun_anew": self._begun_anew}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a replay buffer."""
        self._buffer, self._begun_anew = state["buffer"], int(state["begun_anew"])

    def _energy(self, images: Tensor, levels: Tensor) -> Tensor:
        with torch.autocast(torch.device(self._settings.device).type, torch.bfloat16, enabled=self._settings.half):
            found = self._model.residual(images, levels)
        energy: Tensor = found.float().square().sum((1, 2)) / 2
        return energy

    def _normal(self, shape: torch.Size, random: Random) -> Tensor:
        """White noise that does not depend on the device."""
        return torch.randn(shape, generator=random.torch).to(self._settings.device)

    def _negatives(self, steps: int, random: Random) -> Float32[Tensor, "negatives side side"]:
        """Samples of the model, from the buffer, some steps further; the buffer keeps them."""
        settings = self._settings
        if self._buffer is None:
            self._buffer = self._begin(settings.buffer, random)
        chosen = torch.randperm(settings.buffer, generator=random.torch)[: settings.negatives]
        x = self._buffer[chosen].to(settings.device)
        anew = torch.rand(settings.negatives, generator=random.torch) < settings.anew
        if bool(anew.any()):
            x[anew.to(x.device)] = self._begin(int(anew.sum()), random).to(x.device)
        levels = torch.full((settings.negatives,), SMALLEST_DEVIATION, device=settings.device)
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self._energy(x, levels).sum(), x)
            x = x.detach() - STEP * gradient + math.sqrt(2 * STEP) * self._normal(x.shape, random)
        self._buffer[chosen] = x.cpu()
        return x

    def _begin(self, n: int, random: Random) -> Tensor:
        """New chains: half data with the noise of the smallest level, half with twice as much."""
        patches = self._patches.draw(n, random.numpy)
        louder = 1 + (torch.rand(n, generator=random.torch) < 0.5).float()
        noise = torch.randn(patches.shape, generator=random.torch)
        return patches + SMALLEST_DEVIATION * louder[:, None, None] * noise
