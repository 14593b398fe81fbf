"""What a card makes of images and deviations is what calibration fitted; in parts and in `joint_ipalm`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from models.card import CalibrationRecord
from models.catalogue import use_directory
from models.training.compared import bright_intensity, by_scan, compare
from models.training.conformal import Guarantee, Scaling
from models.training.intensity import IntensityMap, correct_intensity
from pipelines.evaluation.cases import Case, undersample
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.recon.card_calibration import CardCalibration, bright_intensities
from pipelines.recon.reconstruction import Prepared, Reconstructed, Reconstruction
from pipelines.registry import find
from tests import tiny_model

CURVE = IntensityMap((0.0, 0.2, 0.6, 1.0), (0.0, 0.15, 0.7, 1.1))
RECORD = {"pipeline": "joint_ipalm", "mode": "quick", "factor": 1.7, "floor": 0.02, "level": 0.9, "n_scans": 9}


def planes() -> tuple[Tensor, Tensor]:
    """Three magnitudes of very different brightness, one with pixels beyond the bright intensity, and deviations."""
    generator = torch.Generator().manual_seed(1)
    magnitude = torch.rand((3, 40, 30), generator=generator) * torch.tensor([1.0, 300.0, 1e-3])[:, None, None]
    magnitude[0, 0, :3] = 5.0
    return magnitude, 0.1 * torch.rand((3, 40, 30), generator=generator) * magnitude


def test_a_card_is_applied_exactly_as_calibration_judged_it() -> None:
    magnitude, deviation = planes()
    found = CardCalibration(CalibrationRecord.model_validate(RECORD), CURVE)(magnitude, deviation)
    scaling = Scaling(1.7, 0.02, 0.9, Guarantee.SCANS, 0.1, 9)
    for plane in range(3):
        image, spread = magnitude[plane].numpy(), deviation[plane].numpy()
        scans = by_scan([("one", compare(image, image, spread))])
        (expected,) = scaling.apply(correct_intensity(scans, CURVE))
        np.testing.assert_allclose(found[0][plane], expected.images[0].image, rtol=1e-5)
        np.testing.assert_allclose(found[1][plane], expected.images[0].deviation, rtol=1e-5)


def test_bright_intensities_are_those_of_calibration() -> None:
    magnitude, _ = planes()
    expected = [bright_intensity(each.numpy()) for each in magnitude]
    np.testing.assert_allclose(bright_intensities(magnitude), expected, rtol=1e-6)


def test_units_of_the_image_do_not_matter() -> None:
    magnitude, deviation = planes()
    calibration = CardCalibration(CalibrationRecord.model_validate(RECORD), CURVE)
    for one, other in zip(calibration(magnitude, deviation), calibration(7 * magnitude, 7 * deviation), strict=True):
        torch.testing.assert_close(7 * one, other, rtol=1e-4, atol=1e-6)


def test_without_a_card_nothing_changes() -> None:
    magnitude, deviation = planes()
    calibration = CardCalibration()
    assert calibration(magnitude, deviation) == (magnitude, deviation)
    assert calibration.like(magnitude, magnitude) is magnitude
    assert (calibration.text, calibration.details) == ("none", {})


def test_an_empty_plane_stays_empty() -> None:
    zero = torch.zeros(1, 20, 20)
    calibration = CardCalibration(CalibrationRecord.model_validate(RECORD), CURVE)
    for each in calibration(zero, zero):
        assert not bool(each.any())


def test_samples_are_corrected_like_the_image_that_they_are_samples_of() -> None:
    magnitude, deviation = planes()
    calibration = CardCalibration(None, CURVE)
    samples = calibration.like(torch.stack([magnitude, 0.5 * magnitude]), magnitude)
    torch.testing.assert_close(samples[0], calibration(magnitude, deviation)[0])
    assert bool((samples[1] <= samples[0]).all())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory of models that is in use."""
    (tmp_path / "models").mkdir()
    use_directory(tmp_path / "models")
    yield tmp_path / "models"
    use_directory(None)


def measured() -> Prepared:
    """A small head, four coils, a quarter of the lines."""
    anatomy = torch.from_numpy(head_phantom(1, 48, 40))[0]
    coils = torch.from_numpy(birdcage_coils(4, (48, 40))) * anatomy
    return undersample(
        Case("head", "head", coils.to(torch.complex64), anatomy / anatomy.max()), "equispaced4_acl8", 0.02, 0
    )


def reconstruct(**parameters: object) -> Reconstructed:
    entry = find("joint_ipalm")
    values = {"model": "tiny-energy", "iterations": 5, "uncertainty": "quick", **parameters}
    return cast("Reconstruction", entry.load(entry.parse(values), "cpu"))(measured())


def test_joint_ipalm_applies_its_card_unless_it_is_told_not_to(directory: Path) -> None:
    tiny_model.save_tiny_energy(directory, calibration=[RECORD], intensity=asdict(CURVE))
    raw = reconstruct(calibrate=False, extra_series="posterior_samples")
    assert raw.calibration == "none"
    assert "ReconIntensities" not in raw.details
    result = reconstruct(extra_series="posterior_samples")
    assert result.calibration == "conformal over 9 scans: factor 1.7, floor 0.02"
    says_so = [any("not calibrated" in warning for warning in each.warnings) for each in (raw, result)]
    assert says_so == [True, False]
    calibration = CardCalibration(CalibrationRecord.model_validate(RECORD), CURVE)
    image, deviation = calibration(raw.image[:, 0].abs(), raw.deviation[:, 0])
    torch.testing.assert_close(result.image[:, 0].abs(), image, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(result.deviation[:, 0], deviation, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        torch.sgn(result.image)[raw.image.abs() > 0.1], torch.sgn(raw.image)[raw.image.abs() > 0.1]
    )
    samples = calibration.like(raw.extras[0].images[:, :, 0].transpose(0, 1), raw.image[:, 0].abs())
    torch.testing.assert_close(result.extras[0].images[:, :, 0].transpose(0, 1), samples, rtol=1e-3, atol=1e-5)


def test_a_card_without_a_record_for_this_kind_of_deviation_leaves_it_raw(directory: Path) -> None:
    tiny_model.save_tiny_energy(directory, calibration=[{**RECORD, "mode": "langevin"}])
    result, raw = reconstruct(), reconstruct(calibrate=False)
    assert result.calibration == "none"
    assert torch.equal(result.deviation, raw.deviation)
    assert replace(result, stages_s={}).details == raw.details
