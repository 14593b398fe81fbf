"""The pipeline `unrolled` with a tiny network: what must hold whatever the network has learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalogue import use_directory
from models.errors import UnknownModelError
from models.store import open_model
from pipelines.errors import ParameterError, ReconstructionError
from pipelines.parameters import UnrolledParameters
from pipelines.recon import unrolled
from pipelines.recon.plane_scans import make_scans
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.unrolled import UnrolledNetwork, bytes_a_pixel
from tests import tiny_model
from tests.pipelines.recon import joint_scenes

MODEL = "tiny-unrolled"


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> Iterator[Path]:
    """A directory with a network and an energy that nobody trained."""
    directory = tmp_path / "models"
    directory.mkdir()
    tiny_model.save_tiny_unrolled(directory)
    tiny_model.save_tiny_energy(directory)
    use_directory(directory)
    yield directory
    use_directory(None)


def make(**values: Any) -> UnrolledNetwork:
    return UnrolledNetwork(UnrolledParameters.model_validate({"model": MODEL, **values}), "cpu")


@torch.inference_mode()
def reconstruct(prepared: Prepared, **values: Any) -> Reconstructed:
    return make(**values)(prepared)


def error_of(result: Reconstructed, truth: Tensor) -> float:
    found, wanted = result.image.abs(), truth.abs()
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (37, 50)])
def test_a_full_scan_of_any_size_gives_its_image_with_a_deviation(coils: int, rows: int, columns: int) -> None:
    prepared, truth = joint_scenes.cartesian(coils, rows, columns, noise_std=0.005)
    result = reconstruct(prepared)
    assert result.image.shape == truth[:, 0].shape if truth.ndim == 5 else truth.shape
    assert (result.image.dtype, result.deviation.dtype) == (torch.complex64, torch.float32)
    assert error_of(result, truth) < 0.08
    assert result.kind is UncertaintyKind.PREDICTED
    assert (result.deviation >= 0).all()
    assert float(result.deviation.max()) > 0
    assert result.details["ReconModel"] == MODEL
    assert result.details["ReconDomain"] == "inside"
    assert {"csm", "recon", "uncertainty"} == set(result.stages_s)


@pytest.mark.parametrize("scene", ["lines", "frames", "volume", "radial", "no_calibration"])
def test_every_kind_of_scan_is_reconstructed(scene: str) -> None:
    prepared, truth = {
        "lines": lambda: joint_scenes.cartesian(acceleration=2),
        "frames": lambda: joint_scenes.cartesian(acceleration=2, frames=3),
        "volume": joint_scenes.volume,
        "radial": joint_scenes.radial,
        "no_calibration": lambda: joint_scenes.cartesian(acceleration=2, calibration=0),
    }[scene]()
    result = reconstruct(prepared)
    assert result.image.shape == truth.shape
    assert torch.isfinite(torch.view_as_real(result.image)).all()
    assert torch.isfinite(result.deviation).all()
    if scene != "no_calibration":
        assert error_of(result, truth) < 0.3
    assert any("No calibration lines" in text for text in result.warnings) == (scene == "no_calibration")


def test_planes_are_worked_on_in_batches_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = joint_scenes.cartesian(acceleration=2, frames=3)
    whole = reconstruct(prepared, replicas=0)
    monkeypatch.setattr(unrolled, "MOST_BYTES_CPU", 1)
    assert len(list(make_scans(prepared, make()._most_values(prepared)).parts)) == 3
    alone = reconstruct(prepared, replicas=0)
    torch.testing.assert_close(alone.image, whole.image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.deviation, whole.deviation, rtol=1e-3, atol=1e-6)


def test_a_plane_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = joint_scenes.cartesian()
    monkeypatch.setattr(unrolled, "MOST_PLANE_BYTES", 1 << 20)
    with pytest.raises(ReconstructionError, match="a plane of 4096 pixels with 4 coils needs") as caught:
        reconstruct(prepared)
    assert caught.value.code == "reconstruction_failed"
    assert bytes_a_pixel(make()._network, 8) > bytes_a_pixel(make()._network, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda prepared: replace(prepared, counts=0 * prepared.counts), "no line of k-space"),
        (lambda prepared: replace(prepared, kspace=prepared.kspace * float("nan")), "not finite"),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(change: Any, message: str) -> None:
    prepared, _ = joint_scenes.cartesian()
    with pytest.raises(ReconstructionError, match=message):
        reconstruct(change(prepared))


def test_a_scan_of_zeros_gives_zeros() -> None:
    prepared, _ = joint_scenes.cartesian()
    zeros = torch.zeros_like
    result = reconstruct(replace(prepared, kspace=zeros(prepared.kspace), calibration=zeros(prepared.calibration)))
    assert float(result.image.abs().max()) == 0
    assert torch.isfinite(result.deviation).all()


def test_the_same_scan_gives_the_same_bits() -> None:
    prepared, _ = joint_scenes.cartesian(acceleration=2)
    one, other = reconstruct(prepared), reconstruct(prepared)
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.deviation, other.deviation)


def test_units_of_the_data_are_those_of_the_image_and_coils_have_no_order() -> None:
    prepared, _ = joint_scenes.cartesian(acceleration=2)
    result = reconstruct(prepared, replicas=0)
    louder = {"kspace": 1e5 * prepared.kspace, "calibration": 1e5 * prepared.calibration}
    scaled = replace(prepared, **louder, noise_std=1e5 * prepared.noise_std)
    other = reconstruct(scaled, replicas=0)
    torch.testing.assert_close(other.image, 1e5 * result.image, rtol=1e-3, atol=10)
    torch.testing.assert_close(other.deviation, 1e5 * result.deviation, rtol=1e-2, atol=10)
    order = [2, 0, 3, 1]
    permuted = replace(prepared, kspace=prepared.kspace[:, order], calibration=prepared.calibration[order])
    other = reconstruct(permuted, replicas=0)
    torch.testing.assert_close(other.image.abs(), result.image.abs(), rtol=1e-3, atol=1e-3)


def test_replicas_add_what_noise_does() -> None:
    quiet, _ = joint_scenes.cartesian(acceleration=2, noise_std=0.005)
    loud = replace(quiet, noise_std=0.1)
    inside = reconstruct(quiet).image.abs() > 0.1
    head = reconstruct(loud, replicas=0).deviation[inside].mean()
    with_noise = reconstruct(loud, replicas=4).deviation[inside].mean()
    # A network that corrects nothing passes noise on: 0.1 / sqrt 2 of the part in phase, more between aliases.
    assert float(with_noise) > max(0.05, 1.2 * float(head))
    assert float(reconstruct(quiet, replicas=4).deviation[inside].mean()) < 0.5 * float(with_noise)


def test_neighbouring_slices_are_heard_in_the_maps() -> None:
    prepared, truth = joint_scenes.cartesian(acceleration=2, noise_std=0.1)
    calibrations = [joint_scenes.cartesian(acceleration=2, noise_std=0.1, seed=seed)[0].calibration for seed in (7, 8)]
    with_neighbours = replace(prepared, neighbours=tuple(calibrations))
    alone, together = reconstruct(prepared), reconstruct(with_neighbours)
    assert not torch.equal(alone.image, together.image)
    assert together.details["ReconNeighbours"] == "2"
    assert error_of(together, truth) < error_of(alone, truth) + 0.01


def test_cards_scale_deviations_and_tell_what_lies_outside(models: Path) -> None:
    record = {"pipeline": "unrolled", "mode": "predicted", "factor": 3.0, "level": 0.9, "n_scans": 12}
    tiny_model.save_tiny_unrolled(models, version="1.1.0", calibration=[record], domain={"data_residual": (1e-6, 2e-6)})
    prepared, _ = joint_scenes.cartesian(acceleration=2)
    raw = reconstruct(prepared, calibrate=False)
    scaled = reconstruct(prepared)
    torch.testing.assert_close(scaled.deviation, 3 * raw.deviation)
    assert scaled.calibration.startswith("conformal over 12 scans: factor 3")
    assert not any("not calibrated" in text for text in scaled.warnings)
    assert any("not calibrated" in text for text in raw.warnings)
    assert any("not calibrated" in text for text in reconstruct(prepared, replicas=0).warnings)
    assert (scaled.details["ReconDomain"], scaled.details["ReconDomainReason"]) == ("outside", "data_residual")
    instead = reconstruct(prepared, outside_domain="sense")
    assert instead.kind is UncertaintyKind.NOISE
    assert instead.details["ReconInstead"] == "sense"
    assert instead.details["ReconInsteadOf"] == "tiny-unrolled@1.1.0"
    assert instead.details["ReconDomain"] == "outside"


def test_maps_come_as_a_further_series_when_asked_for() -> None:
    prepared, _ = joint_scenes.cartesian(acceleration=2, frames=2)
    (extra,) = reconstruct(prepared, extra_series="coil_maps").extras
    assert extra.images.shape == (2, 4, 1, 64, 64)
    assert reconstruct(prepared).extras == ()


def test_a_model_that_is_missing_or_of_another_kind_is_refused() -> None:
    with pytest.raises(UnknownModelError):
        make(model="unrolled-feet")
    with pytest.raises(ParameterError, match="is no unrolled network but a energy"):
        make(model="tiny-energy")
    assert open_model(MODEL).card.architecture == "unrolled"
