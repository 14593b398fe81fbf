"""The recipe of the unrolled network: its loss, its figures, and runs that are resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import TrainingError
from models.training import unrolled
from models.training.images import Source, WholeSlices
from models.training.loop import CHECKPOINT, LoopSettings, Random, read_history, train
from models.training.unrolled import Scans, UnrolledRecipe, UnrolledSettings, laplace_loss, ssim
from models.unrolled import UnrolledConfiguration, UnrolledModel, UnrolledResult

SETTINGS = UnrolledSettings(side=24, longest_side=32, whole=0.5, half=False)
LOOP = LoopSettings(6, warm_up=2, save_every=3, look_every=6)


class Mask:
    """One coil, all lines but some far from the centre: what a scan needs least."""

    def __init__(self, images: Tensor) -> None:
        self.support = torch.ones_like(images)
        self._mask = (torch.fft.fftfreq(images.shape[-1]).abs() < 0.35).float()

    def normal(self, image: Tensor, /) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(image) * self._mask)

    def solve(self, right_side: Tensor, weight: Tensor, /) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(right_side) / (self._mask + weight[:, None, None]))


def simulate(images: Tensor, random: np.random.Generator) -> Scans:
    encoding = Mask(images)
    noise = torch.from_numpy(random.standard_normal((*images.shape, 2), np.float32))
    y = encoding.normal(images + 0.1 * torch.view_as_complex(noise))
    return Scans(y, encoding, torch.full((len(images),), 0.141), images.to(torch.complex64))


def sources(n: int = 4, side: int = 40) -> list[Source]:
    rng = np.random.default_rng(0)
    at = np.linspace(0, 3, side)
    images = [
        (0.6 + 0.4 * np.sin(rng.uniform(1, 3) * at[:, None]) * np.cos(rng.uniform(1, 3) * at)).astype(np.float16)
        for _ in range(n)
    ]
    return [Source("made", "CC0", "", "", ("a",), tuple(images), (1.0,) * n)]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "VALIDATION_IMAGES", 2)
    monkeypatch.setattr(unrolled, "VALIDATION_SIDE", 32)


def make(settings: UnrolledSettings = SETTINGS, **kind: Any) -> UnrolledRecipe:
    torch.manual_seed(0)
    model = UnrolledModel(UnrolledConfiguration(2, 2, 8, memory=4, head=8, **kind))
    return UnrolledRecipe(model, sources(), sources(2), simulate, settings)


def test_training_makes_scans_better_than_their_start(tmp_path: Path) -> None:
    averaged = train(make(), replace(LOOP, updates=80, rate=3e-3, look_every=80), tmp_path)
    (line,) = read_history(tmp_path)
    assert line["psnr_db"] > line["psnr_db_start"] + 1
    assert 0 < line["ssim"] <= 1
    assert (tmp_path / "results-000080.png").stat().st_size > 0
    assert isinstance(averaged, UnrolledModel)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, half=True), replace(SETTINGS, save_memory=True)])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, settings: UnrolledSettings) -> None:
    whole = train(make(settings), LOOP, tmp_path / "whole").state_dict()

    def stop(done: int, _figures: object) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(settings), LOOP, tmp_path / "halves", report=stop)
    resumed = train(make(settings), LOOP, tmp_path / "halves", resume=True).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert (tmp_path / "halves" / CHECKPOINT).exists()


def test_a_run_of_another_kind_of_network_is_not_resumed(tmp_path: Path) -> None:
    train(make(), LOOP, tmp_path)
    with pytest.raises(TrainingError, match="consistency gradient then, conjugate_gradient now"):
        train(make(consistency="conjugate_gradient"), LOOP, tmp_path, resume=True)


def test_the_head_learns_the_size_of_errors_and_never_touches_the_image() -> None:
    images = torch.ones((1, 16, 16))
    scans = simulate(images, np.random.default_rng(0))
    image = (images + 0.1 * torch.randn((1, 16, 16), generator=torch.Generator().manual_seed(0))).to(torch.complex64)
    image.requires_grad_(True)
    unit = torch.ones((1, 1, 1))
    losses: dict[float, float] = {}
    for scale in (0.02, 0.08, 0.113, 0.16, 0.5):
        result = UnrolledResult(image, image, torch.full((1, 16, 16), scale, requires_grad=True))
        losses[scale] = float(laplace_loss(result, scans, unit).detach())
    # E|e| = 0.08 of normal errors of 0.1; the best b is that, the deviation sqrt 2 times as large.
    assert min(losses, key=lambda scale: losses[scale]) == 0.113
    result = UnrolledResult(image, image, torch.full((1, 16, 16), 0.1, requires_grad=True))
    laplace_loss(result, scans, unit).backward()
    assert image.grad is None


def test_similarity_is_one_of_the_same_and_less_of_others() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand((2, 24, 24), generator=generator)
    assert torch.allclose(ssim(truth, truth), torch.ones(2), atol=1e-5)
    assert (ssim(truth + 0.3 * torch.rand(truth.shape, generator=generator), truth) < 0.95).all()


def test_whole_slices_fit_their_grid_with_air_around() -> None:
    drawn = WholeSlices(sources(side=60)).draw(8, (32, 40), np.random.default_rng(0))
    assert drawn.shape == (8, 32, 40)
    assert (drawn >= 0).all()
    filled = (drawn > 0).float().mean((1, 2))
    assert (filled > 0.3).all()
    assert (filled < 1).all()


def test_both_kinds_of_images_are_drawn() -> None:
    recipe, random = make(), Random.seeded(0)
    shapes = {tuple(recipe._draw(random.numpy).shape) for _ in range(20)}
    assert (2, 24, 24) in shapes
    assert len(shapes) > 3
    assert all(24 <= n <= 32 for _, *shape in shapes for n in shape)
