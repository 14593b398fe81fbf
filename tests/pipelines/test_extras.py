"""Extra series on their way from a reconstruction to images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import extras as carriage
from pipelines.errors import ReconstructionError
from pipelines.mrd import ImageDataType, ImageType
from pipelines.pipeline import Pipeline, PipelineOutput
from pipelines.recon.reconstruction import ExtraSeries, Prepared, Reconstructed
from pipelines.regrid import to_recon_grid, to_recon_grid_alone
from pipelines.scaling import SeriesScaler
from pipelines.scan_header import Encoding, Space

N = 16


def complex_tensor(rng, *shape: int) -> torch.Tensor:
    return torch.from_numpy((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64))


class WithExtras:
    """A reconstruction that adds series to those of another one."""

    def __init__(self, inner: Any, *extras: ExtraSeries | Any) -> None:
        self._inner = inner
        self._extras = extras

    def __call__(self, prepared: Prepared) -> Reconstructed:
        result = self._inner(prepared)
        made = tuple(extra(result) if callable(extra) else extra for extra in self._extras)
        return replace(result, extras=made)


def maps(result: Reconstructed) -> ExtraSeries:
    """Three complex maps for each frame, different in all of them."""
    frames, z, y, x = result.image.shape
    values = torch.arange(frames * 3, dtype=torch.float32).reshape(frames, 3, 1, 1, 1) + 1
    return ExtraSeries("coil_maps", (values * 1j).expand(frames, 3, z, y, x).to(torch.complex64), "Coil sensitivities")


def samples(result: Reconstructed) -> ExtraSeries:
    """Twice the magnitude of the image, as both of two samples."""
    images = 2 * result.image.abs()[:, None].expand(-1, 2, -1, -1, -1)
    return ExtraSeries("posterior_samples", images, "Samples", role="Image", in_image_units=True)


def run(group, *extras, parameters: dict[str, object] | None = None) -> PipelineOutput:
    pipeline = Pipeline("zero_filled", parameters or {}, "cpu")
    pipeline._reconstruction = WithExtras(pipeline._reconstruction, *extras)
    return pipeline(group, {"ReconSession": "a"})


def filled(make_group, rng, frames: int = 2, **changes: object):
    kspace = complex_tensor(rng, frames, 2, 1, N, 2 * N).numpy()
    return make_group(kspace, **changes)


def of_series(output: PipelineOutput, name: str):
    return [image for image in output.images if image.meta.get("ReconExtra") == [name]]


def test_extra_series_follow_the_uncertainty_of_their_frame(make_group, rng):
    output = run(filled(make_group, rng), maps, samples)

    series = [int(image.header["image_series_index"]) for image in output.images]
    assert series == [1, 2, 5001, 5001, 5001, 6001, 6001] * 2
    assert [int(image.header["repetition"]) for image in output.images] == [0] * 7 + [1] * 7
    for name in ("coil_maps", "posterior_samples"):
        numbers = [int(image.header["image_index"]) for image in of_series(output, name)]
        assert len(set(numbers)) == len(numbers)
    assert output.warnings == ()


def test_maps_keep_their_values_and_say_what_they_are(make_group, rng):
    output = run(filled(make_group, rng), maps)

    for number, image in enumerate(of_series(output, "coil_maps")):
        np.testing.assert_array_equal(image.pixels, np.full((1, 1, N, N), (number + 1) * 1j, np.complex64))
        assert (int(image.header["image_type"]), int(image.header["data_type"])) == (
            ImageType.COMPLEX,
            ImageDataType.CXFLOAT,
        )
        assert image.meta["ReconExtraIndex"] == [str(number % 3 + 1)]
        assert image.meta["ReconExtraCount"] == ["3"]
        assert image.meta["ReconExtraUnit"] == ["own"]
        assert image.meta["DataRole"] == ["Quantitative"]
        assert image.meta["ImageComments"] == ["Coil sensitivities"]
        assert image.meta["SequenceDescriptionAdditional"] == ["echotrain_zero_filled_coil_maps"]
        assert image.meta["ReconSession"] == ["a"]
        assert "ReconUncertaintyKind" not in image.meta


def test_samples_have_the_units_and_the_grid_of_the_image(make_group, rng):
    recon = Space((N + 6, N + 4, 1), (1.0 * N, 1.0 * N, 4.0))
    group = filled(make_group, rng, recon=recon)
    group.headers["sample_time_us"] *= np.float32([1, 4])  # two frames with different factors to the units of the scan

    output = run(group, samples)

    magnitudes = [image for image in output.images if int(image.header["image_series_index"]) == 1]
    members = of_series(output, "posterior_samples")
    assert [image.meta["DataRole"] for image in members] == [["Image"]] * 4
    for image, magnitude in zip(members, np.repeat(np.array([m.pixels for m in magnitudes]), 2, axis=0), strict=True):
        np.testing.assert_allclose(image.pixels, 2 * magnitude, rtol=1e-4, atol=1e-5 * magnitude.max())
        assert image.pixels.dtype == np.float32
        assert image.meta["ReconExtraUnit"] == ["magnitude"]


def test_each_encoding_space_has_extra_series_of_its_own(make_group, rng):
    group = filled(make_group, rng, frames=1)
    scan = replace(group.scan, encodings=(*group.scan.encodings, *group.scan.encodings))
    second = replace(group, scan=scan, key=replace(group.key, encoding=1))
    second.headers["encoding_space_ref"] = 1

    output = run(second, maps)

    assert [int(image.header["image_series_index"]) for image in output.images] == [3, 4, 5003, 5003, 5003]
    assert all(int(image.header["image_index"]) > 3 for image in of_series(output, "coil_maps"))


def test_a_series_that_is_too_large_is_left_out_with_a_warning_and_the_others_keep_their_numbers(
    make_group, rng, monkeypatch
):
    monkeypatch.setattr(carriage, "MOST_PIXELS", 4 * N * N)

    output = run(filled(make_group, rng), maps, samples)

    assert [int(image.header["image_series_index"]) for image in output.images] == [1, 2, 6001, 6001] * 2
    assert output.warnings == (
        f"The extra series coil_maps is left out: 6 images are {6 * N * N} pixels, and at most {4 * N * N} are sent.",
    )


def test_values_that_are_not_finite_are_never_sent(make_group, rng):
    def broken(result: Reconstructed) -> ExtraSeries:
        whole = maps(result)
        images = whole.images.clone()
        images[0, 1, 0, 3, 3] = float("inf")
        return replace(whole, images=images)

    with pytest.raises(ReconstructionError, match="'coil_maps' holds values that are not finite"):
        run(filled(make_group, rng), broken)


@pytest.mark.parametrize(
    ("extras", "said"),
    [
        ((maps, maps), "names of their own"),
        (tuple(lambda r, n=n: replace(maps(r), name=f"m{n}") for n in range(6)), "at most 5"),
        ((lambda r: replace(maps(r), name="Coil maps"),), "no name of an extra series"),
        ((lambda r: replace(maps(r), images=maps(r).images[..., 1:]),), "does not fit the image"),
        ((lambda r: replace(maps(r), images=maps(r).images[:, :0]),), "does not fit the image"),
    ],
)
def test_series_that_do_not_fit_are_an_error(make_group, rng, extras, said):
    with pytest.raises(ReconstructionError, match=said):
        run(filled(make_group, rng), *extras)


@pytest.mark.parametrize("matrix", [(24, 20, 1), (10, 12, 1), (N, N, 1)])
def test_complex_images_come_to_the_recon_grid_as_the_image_itself_does(rng, matrix):
    encoding = Encoding(Space((2 * N, N, 1), (2.0 * N, 1.0 * N, 4.0)), Space(matrix, (1.0 * N, 0.75 * N, 4.0)))
    images = complex_tensor(rng, 3, 1, N, N)

    together, _ = to_recon_grid(images, images.abs(), encoding)
    alone = to_recon_grid_alone(images, encoding, is_in_view=False, is_linear=False)

    torch.testing.assert_close(alone, together)


def test_linear_interpolation_stays_within_the_values_and_keeps_constants(rng):
    encoding = Encoding(Space((2 * N, N, 1), (2.0 * N, 1.0 * N, 4.0)), Space((40, 10, 1), (1.0 * N, 1.0 * N, 4.0)))
    images = torch.from_numpy(rng.random((3, 1, N, N), np.float32))
    images[2] = 0.5

    result = to_recon_grid_alone(images, encoding, is_in_view=False, is_linear=True)

    assert result.shape == (3, 1, 10, 40)
    assert bool(((result >= images.min()) & (result <= images.max())).all())
    torch.testing.assert_close(result[2], torch.full((1, 10, 40), 0.5))


def test_integer_pixels_leave_extra_series_as_floats_in_stored_units_or_their_own(make_group, rng):
    output = run(filled(make_group, rng, frames=1), maps, samples)
    scaler = SeriesScaler(12)

    stored = [scaler(image) for image in output.images]

    scale = float(stored[0].meta["GADGETRON_ScaleRatio"][0])
    assert [image.pixels.dtype for image in stored] == [np.uint16, np.float32, *[np.complex64] * 3, *[np.float32] * 2]
    for before, after in zip(output.images[2:5], stored[2:5], strict=True):
        np.testing.assert_array_equal(before.pixels, after.pixels)
        assert "RescaleSlope" not in after.meta
    for before, after in zip(output.images[5:], stored[5:], strict=True):
        np.testing.assert_allclose(after.pixels, scale * before.pixels, rtol=1e-5)
        assert float(after.meta["GADGETRON_ScaleRatio"][0]) == scale
        assert int(after.header["data_type"]) == ImageDataType.FLOAT
