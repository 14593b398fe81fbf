"""Priors as the joint estimation asks for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models import architectures
from models.catalogue import use_directory
from models.energy import make_energy
from models.store import save_model
from pipelines.errors import ParameterError
from pipelines.recon import priors
from pipelines.recon.priors import LEVELS, LearnedPrior, Prior, TotalVariationPrior
from tests import tiny_model

CONFIGURATION = {"stages": 2, "features": 8, "growth": 1.0, "blocks": 1}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of models that is in use."""
    path = tmp_path / "models"
    path.mkdir()
    use_directory(path)
    yield path
    use_directory(None)


@pytest.fixture
def learned(directory: Path) -> LearnedPrior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        tensors = make_energy(**CONFIGURATION).state_dict()
    draft = tiny_model.make_draft(name="tiny-energy", architecture="energy", configuration=CONFIGURATION)
    save_model(directory, draft, tensors)
    return LearnedPrior("tiny-energy", "cpu")


def images() -> torch.Tensor:
    return torch.rand((5, 12, 10), generator=torch.Generator().manual_seed(1))


def test_levels_fall_and_share_all_iterations():
    deviations = [level.deviation for level in LEVELS]
    assert deviations == sorted(deviations, reverse=True)
    assert sum(level.share for level in LEVELS) == pytest.approx(1)
    assert all(0 < level.least_noise <= level.deviation for level in LEVELS)


def test_both_are_priors_and_one_of_them_of_noisy_images(learned: LearnedPrior):
    for prior, is_noisy in ((learned, True), (TotalVariationPrior(), False)):
        assert isinstance(prior, Prior)
        assert prior.is_noisy == is_noisy
        gradient, value = prior.at(LEVELS[-1].deviation)
        torch.testing.assert_close(gradient(images())[0], value(images()), rtol=1e-6, atol=1e-6)


def test_images_in_pieces_give_the_same_energy(learned: LearnedPrior, monkeypatch: pytest.MonkeyPatch):
    gradient, value = learned.at(0.05)
    expected, slope = gradient(images())
    monkeypatch.setattr(priors, "MOST_PIXELS_CPU", 2 * 120)
    torch.testing.assert_close(value(images()), expected, rtol=1e-5, atol=0)
    for found, known in zip(gradient(images()), (expected, slope), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-4)


def test_level_decides_the_energy(learned: LearnedPrior):
    assert not torch.allclose(learned.at(0.1)[1](images()), learned.at(0.02)[1](images()))


def test_a_model_that_is_no_energy_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(architectures.ARCHITECTURES, tiny_model.ARCHITECTURE, tiny_model.FACTORY)
    tiny_model.save_tiny(directory)
    with pytest.raises(ParameterError, match="no energy of images but a line"):
        LearnedPrior("tiny-line", "cpu")
