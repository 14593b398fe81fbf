"""Scans to train from: what they must satisfy whatever is drawn, and that a seed draws the same ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.simulation import training_scans
from pipelines.simulation.training_scans import BANK_SIDE, ScanSimulator


@pytest.fixture(scope="module")
def simulator() -> ScanSimulator:
    return ScanSimulator()


def discs(items: int, p: int, q: int) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, p), torch.linspace(-1, 1, q), indexing="ij")
    return torch.stack([(0.5 + 0.5 * torch.cos(9 * x * y)) * (y**2 + x**2 < 0.8 - 0.1 * n) for n in range(items)])


@pytest.mark.parametrize("seed", range(12))
def test_scans_are_finite_and_their_target_is_the_image_inside_the_support(simulator: ScanSimulator, seed: int) -> None:
    images = discs(2, 56, 64)
    scans = simulator(images, np.random.default_rng(seed))
    assert scans.adjoint.shape == scans.target.shape == images.shape
    assert torch.isfinite(torch.view_as_real(scans.adjoint)).all()
    assert (scans.noise > 0).all()
    torch.testing.assert_close(scans.target.abs(), images * scans.encoding.support)
    # Eigenvalues of the normal operator lie between 0 and 1.
    energy = (scans.target.conj() * scans.encoding.normal(scans.target)).real.sum((1, 2))
    power = scans.target.abs().square().sum((1, 2))
    assert ((energy >= -1e-4 * power) & (energy <= 1.001 * power)).all()


def test_the_data_are_those_of_the_target_where_there_is_no_noise() -> None:
    quiet = ScanSimulator((1e-6, 2e-6))
    errors: list[float] = []
    for seed in range(12):
        scans = quiet(discs(2, 56, 64), np.random.default_rng(seed))
        difference = scans.encoding.normal(scans.target) - scans.adjoint
        errors += (
            torch.linalg.vector_norm(difference, dim=(1, 2)) / torch.linalg.vector_norm(scans.adjoint, dim=(1, 2))
        ).tolist()
    # What is left is what estimated maps cannot explain: little, but where calibration lines are too few.
    assert np.median(errors) < 0.05


def test_a_seed_draws_the_same_scans(simulator: ScanSimulator) -> None:
    one, other = (ScanSimulator()(discs(2, 56, 64), np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(one.adjoint, other.adjoint)
    assert torch.equal(one.target, other.target)
    third = simulator(discs(2, 56, 64), np.random.default_rng(6))
    assert not torch.equal(one.adjoint, third.adjoint)


def test_all_kinds_of_patterns_occur(simulator: ScanSimulator) -> None:
    rng = np.random.default_rng(0)
    masks = [simulator._pattern((64, 64), 8, rng)(rng) for _ in range(200)]
    along_lines = [bool((mask == mask[:1]).all()) for mask in masks]
    assert 0.4 < np.mean(along_lines) < 0.8
    accelerations = [mask.size / np.count_nonzero(mask) for mask in masks]
    assert min(accelerations) < 2.5
    assert max(accelerations) > 6
    central = [mask[32, 28:36].all() for mask, is_line in zip(masks, along_lines, strict=True) if is_line]
    assert 0.7 < np.mean(central) < 1


def test_images_larger_than_the_bank_of_discs_are_refused(simulator: ScanSimulator) -> None:
    with pytest.raises(ValueError, match="at most 128 pixels"):
        simulator._disc((BANK_SIDE + 1, 64), 4.0, np.random.default_rng(0))


def test_more_coils_are_compressed(monkeypatch: pytest.MonkeyPatch, simulator: ScanSimulator) -> None:
    monkeypatch.setattr(training_scans, "COILS", (32,))
    scans = simulator(discs(1, 48, 48), np.random.default_rng(0))
    assert scans.encoding.maps.shape[1] == training_scans.MOST_COILS  # type: ignore[attr-defined]
