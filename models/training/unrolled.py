"""Recipe for the unrolled network: scans simulated on the fly, a loss of the image and one of the predicted deviation.

    L = log(mean w |x - t|^2) / 2 + (1 - SSIM(|x|, |t|)) / 2 + mean |x - t| + 0.02 mean (e / b + log b)
    e = | |x| - |t| |, b = s / sqrt 2

The first three teach the image (t complex, with its phase), the last the head alone, whose inputs are detached: the
negative log likelihood of a Laplace distribution with the standard deviation s. All in units of the object. w is 1 in
tissue and less in air: with all pixels alike and the logarithm of |x - t|, networks learnt to darken air at the expense
of tissue (2500 updates, IXI heads: 1.8 dB less than x_0 in the head). The logarithm lets scans count alike, however
hard they are.

What a scan is like is not known here: `simulate` makes scans of magnitude images (`pipelines.simulation.training_scans`
is what `echotrain train` gives).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from torch import Tensor
from torch.nn.functional import avg_pool2d

from models.training.images import Patches, Source, WholeSlices, validation_images
from models.training.loop import Random
from models.training.unrolled_pictures import draw_results
from models.unrolled import UnrolledModel, UnrolledResult
from models.unrolled_physics import Encoding

VALIDATION_IMAGES, VALIDATION_SIDE = 8, 128
SIMILARITY_WEIGHT, HEAD_WEIGHT = 0.5, 0.02
LEAST_ERROR = 1e-6
"""Added to mean squares, in units of the image, before their logarithm is taken."""
TISSUE, AIR_WEIGHT = 0.05, 0.1
"""Over the brightest pixel; what is darker is air and counts less."""
LEAST_DEVIATION = 1e-3
"""Of the head's loss, in units of the image: below, a likelihood of rounding would be learnt."""

WINDOW = 7
"""Of SSIM, uniform (Zbontar 2018, arXiv 1811.08839)."""


@dataclass(frozen=True, slots=True)
class Scans:
    """Undersampled scans with their truth.

    Attributes:
        adjoint: `A^H y`.
        encoding: A.
        noise: root of `E|n|^2` of a sample of y.
        target: the truth, with the phase that it has under the maps of A.
    """

    adjoint: Complex64[Tensor, "items p q"]
    encoding: Encoding
    noise: Float32[Tensor, "items"]
    target: Complex64[Tensor, "items p q"]


Simulate = Callable[[Float32[Tensor, "items p q"], np.random.Generator], Scans]
"""Scans of magnitude images; what is random depends on the generator alone."""


@dataclass(frozen=True, slots=True)
class UnrolledSettings:
    """Of the recipe.

    Attributes:
        side: of patches in pixels; whole slices have sides from it to `longest_side`.
        longest_side: see `side`.
        batch: images an update.
        whole: part of the updates that see whole slices instead of patches. Files of images are often interpolated:
            their patches teach to smooth (1000 updates with two thirds of them: 0.5 to 1 dB less than x_0 in IXI heads
            and measured ones, which are as sharp as their pixels), whole slices, scaled down, do not.
        half: whether networks compute in bfloat16 while they train.
        save_memory: whether cascades are computed again for their gradients.
        device: where it trains.
    """

    side: int = 72
    longest_side: int = 104
    batch: int = 2
    whole: float = 1.0
    half: bool = True
    save_memory: bool = False
    device: str = "cpu"


class UnrolledRecipe:
    """Model, data and loss of a run."""

    def __init__(
        self,
        model: UnrolledModel,
        training: Sequence[Source],
        validation: Sequence[Source],
        simulate: Simulate,
        settings: UnrolledSettings,
    ) -> None:
        self._model: UnrolledModel = model.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._settings = settings
        self._data = sorted(source.name for source in training)
        self._patches = Patches(training, settings.side)
        self._slices = WholeSlices(training)
        self._simulate = simulate
        self._validation = validation_images(validation, VALIDATION_IMAGES, VALIDATION_SIDE)

    @property
    def model(self) -> UnrolledModel:
        """The model that is trained."""
        return self._model

    def loss(
        self,
        update: int,  # noqa: ARG002  the same loss from beginning to end
        random: Random,
    ) -> tuple[Tensor, Mapping[str, float]]:
        """L of one batch."""
        scans = self._scans(self._draw(random.numpy), random.numpy)
        result = self._apply(self._model, scans)
        unit = scans.target.abs().amax((1, 2)).clamp(min=1e-6)[:, None, None]
        error = (result.image - scans.target) / unit
        weights = torch.where(scans.target.abs() > TISSUE * unit, 1.0, AIR_WEIGHT)
        square = (weights * torch.view_as_real(error).square().sum(-1)).sum((1, 2)) / weights.sum((1, 2))
        logarithm = torch.log(square + LEAST_ERROR).mean() / 2
        absolute = torch.view_as_real(error).abs().mean()
        similarity = ssim(result.image.abs() / unit, scans.target.abs() / unit).mean()
        head = laplace_loss(result, scans, unit)
        loss = logarithm + SIMILARITY_WEIGHT * (1 - similarity) + absolute + HEAD_WEIGHT * head
        figures = {
            "log_error": float(logarithm.detach()),
            "ssim": float(similarity.detach()),
            "head": float(head.detach()),
        }
        return loss, figures

    @torch.no_grad()
    def look(self, averaged: torch.nn.Module, update: int, directory: Path) -> Mapping[str, float]:
        """PSNR and SSIM of validation scans, the same ones each time, beside those of x_0; a picture."""
        if not isinstance(averaged, UnrolledModel):
            raise TypeError(f"an unrolled network is trained here, not a {type(averaged).__name__}")
        averaged.eval()
        scans = self._scans(self._validation, np.random.default_rng(1))
        result = self._apply(averaged, scans)
        truth = scans.target.abs()
        figures = {
            "psnr_db": _psnr(result.image.abs(), truth),
            "psnr_db_start": _psnr(result.start.abs(), truth),
            "psnr_db_tissue": _psnr(result.image.abs(), truth, TISSUE),
            "psnr_db_tissue_start": _psnr(result.start.abs(), truth, TISSUE),
            "ssim": float(ssim(result.image.abs(), truth).mean()),
        }
        ratio = (result.image.abs() - truth).abs() / result.deviation.clamp(min=1e-9)
        inside = truth > 0.08 * truth.amax((1, 2), keepdim=True)
        figures["covered_90"] = float((ratio[inside] <= 1.645).float().mean())
        draw_results(result, truth, directory / f"results-{update:06d}.png")
        averaged.train()
        return figures

    def settings(self) -> dict[str, Any]:
        """All but what only rounds differently."""
        known = asdict(self._settings) | self._model.configuration.as_dict() | {"data": self._data}
        return {name: value for name, value in known.items() if name not in {"device", "save_memory"}}

    def state(self) -> dict[str, Any]:
        """Nothing but the model changes."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def _draw(self, random: np.random.Generator) -> Float32[Tensor, "items p q"]:
        settings = self._settings
        if random.random() >= settings.whole:
            return self._patches.draw(settings.batch, random)
        shape = (int(n) for n in random.integers(settings.side, settings.longest_side + 1, 2))
        return self._slices.draw(settings.batch, (next(shape), next(shape)), random)

    def _scans(self, images: Float32[Tensor, "items p q"], random: np.random.Generator) -> Scans:
        return self._simulate(images.to(self._settings.device), random)

    def _apply(self, model: UnrolledModel, scans: Scans) -> UnrolledResult:
        settings = self._settings
        with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.half):
            found: UnrolledResult = model(scans.adjoint, scans.encoding, scans.noise, save_memory=settings.save_memory)
        return found


def laplace_loss(result: UnrolledResult, scans: Scans, unit: Float32[Tensor, "items 1 1"]) -> Float32[Tensor, ""]:
    """Mean negative log likelihood of the errors of magnitudes, inside the support; the image gets no gradient."""
    inside = scans.encoding.support
    error = (result.image.detach().abs() - scans.target.abs()).abs() / unit
    scale = (result.deviation / unit).clamp(min=LEAST_DEVIATION) / math.sqrt(2)
    return ((error / scale + torch.log(scale)) * inside).sum() / inside.sum().clamp(min=1)


def ssim(image: Float32[Tensor, "items p q"], truth: Float32[Tensor, "items p q"]) -> Float32[Tensor, "items"]:
    """Structural similarity of magnitudes, mean over the image; the range of values is the truth's maximum.

    Reference: Wang 2004, doi 10.1109/TIP.2003.819861.
    """
    peak = truth.amax((1, 2), keepdim=True).clamp(min=1e-12)
    a, b = (image / peak)[:, None], (truth / peak)[:, None]
    mean_a, mean_b = (avg_pool2d(each, WINDOW, 1) for each in (a, b))
    n = WINDOW**2 / (WINDOW**2 - 1)
    variance_a, variance_b = (
        n * (avg_pool2d(each.square(), WINDOW, 1) - mean.square()) for each, mean in ((a, mean_a), (b, mean_b))
    )
    covariance = n * (avg_pool2d(a * b, WINDOW, 1) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similar = similar / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))
    return similar.mean((1, 2, 3))


def _psnr(image: Tensor, truth: Tensor, threshold: float = -1.0) -> float:
    """Mean over items, of what is brighter than a part of the truth's maximum, which is the peak too."""
    peak = truth.amax((1, 2), keepdim=True)
    inside = truth > threshold * peak
    square = ((image - truth).square() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    return float((10 * torch.log10(peak[:, 0, 0].square() / square.clamp(min=1e-12))).mean())
