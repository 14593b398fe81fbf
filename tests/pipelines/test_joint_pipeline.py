"""`joint_ipalm` from a group of readouts to MRD images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.domain import domain_details
from pipelines.mrd import ImageDataType, ImageType
from pipelines.operators.fourier import to_kspace
from pipelines.pipeline import Pipeline
from tests.pipelines.recon import joint_scenes

N = 32
PARAMETERS: dict[str, object] = {
    "prior": "total_variation",
    "iterations": "20",
    "extra_series": "coil_maps, posterior_samples",
    "parts": "magnitude,phase",
    "coil_compression": "0",
}


def group_of(make_group, rng: np.random.Generator, frames: int = 2):
    """Every second line and a calibration block of a phantom, oversampled twice along the readout."""
    images, truth = joint_scenes.coil_images(4, N, N, frames)
    wide = np.zeros((frames, 4, 1, N, 2 * N), np.complex64)
    wide[..., N // 2 : N // 2 + N] = images.numpy()
    kspace = to_kspace(torch.from_numpy(wide)).numpy()
    noise = rng.standard_normal((*kspace.shape, 2), np.float32) * 0.01
    counts = np.zeros((frames, 1, N), np.float32)
    counts[..., ::2] = 1
    counts[..., N // 2 - 8 : N // 2 + 8] = 1
    return make_group(kspace + noise[..., 0] + 1j * noise[..., 1], counts=counts), truth


def test_magnitude_phase_uncertainty_and_research_series_come_out(make_group, rng):
    group, truth = group_of(make_group, rng)
    output = Pipeline("joint_ipalm", PARAMETERS, "cpu")(group, {"ReconSession": "a"})

    series = [int(image.header["image_series_index"]) for image in output.images]
    assert series == [1, *[s for s in sorted(set(series)) if 2 < s < 5000], 2, *[5001] * 4, *[6001] * 4] * 2
    for image in output.images:
        assert image.meta["ReconPipeline"] == ["joint_ipalm"]
        assert image.meta["ReconPrior"] == ["total_variation"]
        assert image.meta["ReconSession"] == ["a"]
        assert image.meta["ReconPosterior"] == ["quick: 4 chains, 20 + 4 x 5 steps"]
        assert image.meta["ReconEstimate"] == ["map"]
        for name in ("ReconResidual", "ReconEnergyPerPixel", "ReconScaleReduction", "ReconEffectiveSamples"):
            assert np.isfinite(float(image.meta[name][0]))
        assert int(image.meta["ReconIterations"][0]) <= 20
        assert image.pixels.shape == (1, 1, N, N)
        assert np.isfinite(image.pixels).all()

    for frame in range(2):
        magnitude, _, deviation = output.images[11 * frame : 11 * frame + 3]
        assert deviation.meta["ReconUncertaintyKind"] == ["posterior"]
        assert deviation.meta["ReconUncertaintyCalibration"] == ["none"]
        assert deviation.meta["ReconUncertaintyUnit"] == ["magnitude"]
        assert deviation.meta["SequenceDescriptionAdditional"] == ["echotrain_joint_ipalm_std"]
        assert (deviation.pixels > 0).all()
        shown = magnitude.pixels[0, 0] / np.linalg.norm(magnitude.pixels)
        expected = truth[frame, 0].abs().numpy()
        assert np.linalg.norm(shown - expected / np.linalg.norm(expected)) < 0.2
    maps = output.images[3]
    assert (int(maps.header["image_type"]), int(maps.header["data_type"])) == (ImageType.COMPLEX, ImageDataType.CXFLOAT)
    assert maps.meta["ReconExtra"] == ["coil_maps"]
    assert maps.meta["ImageComments"] == ["Sensitivity of a (virtual) coil, of root sum of squares 1"]
    samples = output.images[7]
    assert samples.meta["ReconExtra"] == ["posterior_samples"]
    assert samples.meta["ReconExtraUnit"] == ["magnitude"]
    assert {"csm", "recon", "uncertainty"} <= set(output.stages_s)


def test_the_same_group_gives_the_same_bytes(make_group, rng):
    group, _ = group_of(make_group, rng)
    pipeline = Pipeline("joint_ipalm", PARAMETERS, "cpu")
    one, other = (pipeline(group, {}).images for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert first.pixels.tobytes() == second.pixels.tobytes()
        assert first.meta == second.meta


def test_extra_series_of_a_result_outside_the_domain_say_so(make_group, rng):
    group, _ = group_of(make_group, rng, frames=1)
    pipeline = Pipeline("joint_ipalm", PARAMETERS, "cpu")
    inner = pipeline._reconstruction

    def outside(prepared):
        result = inner(prepared)
        result.details.update(domain_details(["energy_per_pixel"]))
        return result

    pipeline._reconstruction = outside
    output = pipeline(group, {})
    assert len(output.images) == 11
    for image in output.images:
        assert image.meta["ImageComments"][0].startswith("OUTSIDE THE DOMAIN OF THE MODEL (energy per pixel)")
    assert (
        output.images[3]
        .meta["ImageComments"][0]
        .endswith("; Sensitivity of a (virtual) coil, of root sum of squares 1")
    )


@pytest.mark.parametrize("coils", ["1", "2"])
def test_virtual_coils_are_enough(make_group, rng, coils: str):
    group, truth = group_of(make_group, rng, frames=1)
    output = Pipeline("joint_ipalm", {**PARAMETERS, "coil_compression": coils}, "cpu")(group, {})
    maps = [image for image in output.images if image.meta.get("ReconExtra") == ["coil_maps"]]
    assert len(maps) == int(coils)
    shown = output.images[0].pixels[0, 0]
    assert np.corrcoef(shown.ravel(), truth[0, 0].abs().numpy().ravel())[0, 1] > 0.8
