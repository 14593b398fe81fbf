"""The recipe of the energy: chains, buffer, guard, figures, and the range of energies for the domain check."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import Tensor

from models.energy import LARGEST_DEVIATION, SMALLEST_DEVIATION, EnergyConfiguration, EnergyModel
from models.errors import TrainingDataError
from models.training import energy
from models.training.energy import (
    MOST_DRIFT,
    STEP,
    EnergyRecipe,
    EnergySettings,
    chain_length,
    draw_levels,
    energy_range,
)
from models.training.images import Source
from models.training.loop import LoopSettings, Random, read_history, train

SETTINGS = EnergySettings(side=16, batch=4, likelihood_from=2, longest_chain=6, negatives=3, buffer=8)
LOOP = LoopSettings(8, warm_up=2, save_every=3, look_every=8)


class Gaussian(EnergyModel):
    """White noise of a known spread: R = |u|^2 / (2 spread^2). One unused weight, for the optimiser."""

    def __init__(self, spread: float) -> None:
        super().__init__(EnergyConfiguration(1, 8))
        self.spread = spread

    def residual(self, image: Tensor, deviation: Tensor) -> Tensor:
        return image / self.spread + 0 * (self.last.bias.sum() + deviation.sum())


def sources(n: int = 6, side: int = 40, noise: float = 0.0) -> list[Source]:
    """Smooth images about one half."""
    rng = np.random.default_rng(0)
    at = np.linspace(0, 3, side)
    images = [
        (0.6 + 0.4 * np.sin(rng.uniform(1, 3) * at[:, None]) * np.cos(rng.uniform(1, 3) * at)).astype(np.float16)
        for _ in range(n)
    ]
    return [Source("made", "CC0", "", "", ("a",), tuple(images), (1.0,) * n)]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks of a second."""
    monkeypatch.setattr(energy, "VALIDATION_IMAGES", 4)
    monkeypatch.setattr(energy, "VALIDATION_SIDE", 64)


def make(settings: EnergySettings = SETTINGS, model: EnergyModel | None = None) -> EnergyRecipe:
    torch.manual_seed(0)
    return EnergyRecipe(model or EnergyModel(EnergyConfiguration(2, 8)), sources(), sources(2), settings)


def buffer(recipe: EnergyRecipe) -> Tensor | None:
    return recipe.state()["buffer"]


def test_chains_grow_from_few_steps_to_the_longest() -> None:
    settings = EnergySettings(longest_chain=40, growth=300.0)
    lengths = [chain_length(update, settings) for update in range(6000)]
    assert lengths[0] == 12
    assert lengths == sorted(lengths)
    assert max(lengths) == lengths[-1] == 40
    assert lengths[300] == pytest.approx(40 * (1 - np.exp(-400 / 300)), abs=1)
    assert chain_length(0, replace(settings, longest_chain=1)) == 1


def test_maximum_likelihood_begins_when_it_is_time_with_chains_of_the_schedule() -> None:
    recipe, random = make(), Random.seeded(0)
    for update in range(4):
        loss, figures = recipe.loss(update, random)
        assert torch.isfinite(loss)
        assert loss.requires_grad
        if update < SETTINGS.likelihood_from:
            assert figures.keys() == {"score_loss"}
            assert buffer(recipe) is None
        else:
            assert figures["chain"] == chain_length(update - SETTINGS.likelihood_from, SETTINGS)
            assert {"energy_difference", "sample_spread", "buffers_anew"} <= figures.keys()


def test_langevin_negatives_of_a_gaussian_energy_have_its_variance() -> None:
    settings = replace(SETTINGS, negatives=64, buffer=64, anew=0.0, half=False)
    recipe, random = make(settings, Gaussian(SMALLEST_DEVIATION)), Random.seeded(0)
    recipe._buffer = torch.full((64, 16, 16), 0.5)
    samples = recipe._negatives(150, random)
    # Steps of d on a Gaussian of variance v settle at v / (1 - d / 2v): the known error of unadjusted steps.
    variance = SMALLEST_DEVIATION**2
    expected = variance / (1 - STEP / (2 * variance))
    assert float(samples.square().mean()) == pytest.approx(expected, rel=0.03)
    assert abs(float(samples.mean())) < 4 * (expected / samples.numel()) ** 0.5


def test_the_buffer_keeps_the_samples_where_they_are() -> None:
    settings = replace(SETTINGS, negatives=3, buffer=8, anew=0.0)
    recipe, random = make(settings), Random.seeded(0)
    recipe._negatives(1, random)
    before = recipe.state()["buffer"].clone()
    samples = recipe._negatives(4, random)
    changed = (recipe.state()["buffer"] != before).flatten(1).any(1)
    assert int(changed.sum()) == 3
    kept = recipe.state()["buffer"][changed]
    for sample in samples:
        assert any(torch.equal(sample, one) for one in kept)


def test_one_in_a_hundred_drawn_samples_begins_anew_half_of_them_twice_as_noisy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(EnergySettings(), side=16, negatives=128, buffer=128)
    recipe, random = make(settings, Gaussian(0.3)), Random.seeded(0)
    recipe._negatives(0, random)
    begun: list[Tensor] = []
    begin = recipe._begin

    def counted(n: int, generators: Random) -> Tensor:
        begun.append(begin(n, generators))
        return begun[-1]

    monkeypatch.setattr(recipe, "_begin", counted)
    n_draws = 200
    for _ in range(n_draws):
        recipe._negatives(0, random)
    images = torch.cat(begun)
    expected = 0.01 * n_draws * 128
    assert abs(len(images) - expected) < 3 * expected**0.5
    # Third differences leave next to nothing of smooth images, and 20 times the variance of white noise.
    noise = (images.diff(n=3, dim=1).square().mean((1, 2)) / 20).sqrt() / SMALLEST_DEVIATION
    louder = noise > 1.5
    assert abs(float(louder.float().mean()) - 0.5) < 3 * 0.5 / len(images) ** 0.5
    assert float(noise[louder].mean()) == pytest.approx(2, abs=0.15)
    assert float(noise[~louder].mean()) == pytest.approx(1, abs=0.15)


def test_the_guard_begins_the_buffer_anew_and_leaves_the_likelihood_out() -> None:
    # So narrow that steps overshoot and chains explode.
    recipe, random = make(replace(SETTINGS, likelihood_from=0), Gaussian(1e-3)), Random.seeded(0)
    for update in range(3):
        loss, figures = recipe.loss(update, random)
        assert buffer(recipe) is None
        assert figures["buffers_anew"] == update + 1
        assert float(loss.detach()) == figures["score_loss"]


def test_the_guard_leaves_a_buffer_that_keeps_to_the_data() -> None:
    # Samples and data alike: chains begin as data, and at a spread of 10 the energy hardly moves them.
    settings = replace(SETTINGS, likelihood_from=0, anew=0.0)
    recipe, random = make(settings, Gaussian(10.0)), Random.seeded(0)
    for update in range(3):
        loss, figures = recipe.loss(update, random)
        assert buffer(recipe) is not None
        assert figures["buffers_anew"] == 0
        assert abs(figures["energy_difference"]) < MOST_DRIFT
        difference = float(loss.detach()) - figures["score_loss"]
        assert difference == pytest.approx(figures["energy_difference"], abs=1e-5)


def test_fewer_patches_than_negatives_are_enough() -> None:
    recipe, random = make(replace(SETTINGS, batch=1, likelihood_from=0)), Random.seeded(0)
    loss, figures = recipe.loss(0, random)
    assert torch.isfinite(loss)
    assert np.isfinite(figures["energy_difference"])


def test_a_resumed_run_ends_with_the_same_bits_buffer_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "MOST_DRIFT", 1e9)  # chains of an untrained model are far from data

    def run(directory: Path, *, resume: bool = False, kill: bool = False) -> EnergyRecipe:
        recipe = make()

        def pull_the_plug(done: int, figures: object) -> None:
            if kill and done == 5:
                raise KeyboardInterrupt

        train(recipe, LOOP, directory, resume=resume, report=pull_the_plug)
        return recipe

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "halves", kill=True)
    halves = run(tmp_path / "halves", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(halves.model.state_dict()[name], tensor), name
    first, second = buffer(whole), buffer(halves)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert whole.state()["begun_anew"] == halves.state()["begun_anew"]
    last, last_resumed = read_history(tmp_path / "whole")[-1], read_history(tmp_path / "halves")[-1]
    assert {**last, "seconds": 0} == {**last_resumed, "seconds": 0}
    assert {"psnr_db_0.015", "psnr_db_0.05", "psnr_db_0.15", "energy_data", "energy_permuted"} <= last.keys()


def test_three_of_four_noise_levels_are_such_as_reconstructions_use() -> None:
    levels = draw_levels(EnergySettings(batch=40_000), torch.Generator().manual_seed(0))
    assert float(levels.min()) == pytest.approx(SMALLEST_DEVIATION)
    assert float(levels.max()) == pytest.approx(LARGEST_DEVIATION, rel=0.01)
    # Of those drawn up to the largest, some are small by chance.
    low = math.log(SMALLEST_DEVIATION / 2)
    expected = 0.75 + 0.25 * (math.log(0.07) - low) / (math.log(LARGEST_DEVIATION) - low)
    assert float((levels < 0.07).double().mean()) == pytest.approx(expected, abs=0.01)


def test_settings_are_those_that_decide_what_is_learnt() -> None:
    on_cpu = make().settings()
    assert on_cpu == make().settings()
    assert "device" not in on_cpu
    assert on_cpu["data"] == ["made"]
    assert on_cpu["features"] == 8
    assert make(replace(SETTINGS, side=24)).settings() != on_cpu
    assert make(model=EnergyModel(EnergyConfiguration(2, 16))).settings() != on_cpu


def test_a_look_leaves_pictures_and_the_psnr_of_a_perfect_denoiser_is_right(tmp_path: Path) -> None:
    recipe, random = make(replace(SETTINGS, likelihood_from=0), Gaussian(10.0)), Random.seeded(0)
    recipe.loss(0, random)
    figures = recipe.look(recipe.model, 7, tmp_path)
    # This energy takes next to no noise away, so the error is the noise put in.
    for level in (0.015, 0.05, 0.15):
        assert figures[f"psnr_db_{level:g}"] == pytest.approx(-20 * np.log10(level), abs=0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["energies-000007.png", "samples-000007.png"]
    for path in tmp_path.iterdir():
        assert float(matplotlib.image.imread(path)[..., :3].std()) > 0.05
    with pytest.raises(TypeError, match="an energy is trained here, not a Linear"):
        recipe.look(torch.nn.Linear(1, 1), 7, tmp_path)


def test_the_range_of_energies_goes_a_quarter_beyond_those_seen() -> None:
    model, level = Gaussian(0.1), 0.4
    flat = torch.full((64, 64), level)
    low, high = energy_range(model, [flat])
    least = (0.8 * level / 0.1) ** 2 / 2
    most = ((1.2 * level / 0.1) ** 2 + (SMALLEST_DEVIATION / 0.1) ** 2) / 2
    margin = (most - least) / 4
    assert low == pytest.approx(least - margin, rel=0.01)
    assert high == pytest.approx(most + margin, rel=0.01)


def test_images_of_the_kind_lie_inside_their_range_and_noise_does_not() -> None:
    model, generator = EnergyModel(EnergyConfiguration(2, 8)), torch.Generator().manual_seed(0)
    images = [torch.rand((32, 40), generator=generator) * scale for scale in (0.5, 1.0)]
    low, high = energy_range(model, images)
    assert (low, high) == energy_range(model, images)
    for image in images:
        assert low < float(model.value(image[None], SMALLEST_DEVIATION)) / image.numel() < high
    narrow = Gaussian(0.1)
    low, high = energy_range(narrow, [torch.full((32, 32), 0.1)])
    assert float(narrow.value(0.5 * torch.randn((1, 32, 32), generator=generator), 0.015)) / 32**2 > high


def test_the_range_never_begins_below_zero_and_needs_images() -> None:
    assert energy_range(Gaussian(1.0), [torch.zeros(20, 20), torch.ones(20, 20)])[0] == 0
    with pytest.raises(TrainingDataError, match="no images to measure"):
        energy_range(Gaussian(1.0), [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_cuda_follows_that_on_the_cpu(tmp_path: Path) -> None:
    settings = replace(SETTINGS, half=False, likelihood_from=0)
    (here, figures), (there, on_gpu) = (
        make(replace(settings, device=device)).loss(0, Random.seeded(0)) for device in ("cpu", "cuda")
    )
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-2, atol=1e-3)
    assert on_gpu["score_loss"] == pytest.approx(figures["score_loss"], rel=1e-2)
    trained = train(make(replace(SETTINGS, device="cuda")), LOOP, tmp_path)
    resumed = train(make(replace(SETTINGS, device="cpu")), LOOP, tmp_path, resume=True)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor.cpu(), resumed.state_dict()[name])
