"""Images in, images out: what goes back unchanged, and what is new."""

import numpy as np
import pytest

from pipelines.errors import ParameterError
from pipelines.image_group import ImageGroup
from pipelines.image_pipeline import SERIES_STEP, ImagePipeline
from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType


def image(dtype=np.uint16, series=3, **meta: str):
    rng = np.random.default_rng(series)
    header = np.zeros((), IMAGE_HEADER)
    header["version"], header["image_type"], header["image_series_index"] = 1, ImageType.MAGNITUDE, series
    header["data_type"] = next(kind for kind in ImageDataType if kind.dtype == dtype)
    header["matrix_size"], header["channels"], header["field_of_view"] = (20, 24, 1), 1, (40, 48, 5)
    header["position"], header["read_dir"], header["slice"] = (1, 2, 3), (0, 1, 0), 4
    header["image_index"] = 7
    pixels = rng.normal(1000, 30, (1, 1, 24, 20)).astype(dtype)
    return Image(header, pixels, {name: [value] for name, value in meta.items()})


def run(name, *images, **parameters: object):
    return ImagePipeline(name, parameters, "cpu")(ImageGroup(images), {"ReconSession": "s-1"})


@pytest.mark.parametrize("kind", list(ImageDataType))
def test_what_passes_through_is_unchanged_to_the_bit(kind):
    original = image(kind.dtype, IceMiniHead="abc=", SeriesDescription="t1")

    (returned,) = run("pass_through", original).images

    assert returned.header.tobytes() == original.header.tobytes()
    assert returned.pixels.tobytes() == original.pixels.tobytes()
    assert returned.meta == original.meta


def test_the_original_comes_first_then_the_derived_image_then_its_uncertainty():
    original = image(SeriesDescription="t1_se", WindowCenter="500", WindowWidth="1000", IceMiniHead="abc=")

    first, derived, deviation = run("magnitude_filter", original, fwhm_mm=3).images

    assert first.pixels is original.pixels
    assert first.meta == original.meta
    series = [int(each.header["image_series_index"]) for each in (first, derived, deviation)]
    assert series == [3, 3 + SERIES_STEP, 3 + 2 * SERIES_STEP]
    assert derived.pixels.dtype == np.uint16
    assert derived.meta["SequenceDescriptionAdditional"] == ["echotrain_filter"]
    assert derived.meta["SeriesDescription"] == ["t1_se_filter"]
    assert derived.meta["Keep_image_geometry"] == ["1"]
    assert derived.meta["IceMiniHead"] == ["abc="]
    assert derived.meta["WindowCenter"] == ["500"]
    assert deviation.pixels.dtype == np.float32
    assert deviation.meta["DataRole"] == ["Quantitative"]
    assert deviation.meta["ReconUncertaintyKind"] == ["noise"]
    assert "WindowCenter" not in deviation.meta
    for new in (derived, deviation):
        assert new.meta["ReconSession"] == ["s-1"]
        assert ImageDataType(int(new.header["data_type"])).dtype == new.pixels.dtype
        for name in ("position", "read_dir", "slice", "image_index", "field_of_view", "matrix_size"):
            np.testing.assert_array_equal(new.header[name], original.header[name])


def test_originals_are_left_out_on_request_but_never_an_image_that_was_not_derived():
    phase = image(np.float32)
    phase.header["image_type"] = ImageType.PHASE

    output = run("magnitude_filter", image(), phase, send_original="False")

    types = [int(each.header["image_type"]) for each in output.images]
    assert types == [ImageType.MAGNITUDE, ImageType.MAGNITUDE, ImageType.PHASE]
    assert len(output.warnings) == 1


def test_values_beyond_an_integer_type_are_clipped_not_wrapped():
    bright = image()
    bright.pixels[...] = 65535

    _, derived, _ = run("magnitude_filter", bright).images

    assert int(derived.pixels.min()) == 65535


def test_parameters_of_raw_pipelines_are_refused():
    with pytest.raises(ParameterError, match="there is no parameter 'whiten'; it has fwhm_mm, send_original"):
        run("magnitude_filter", whiten=True)
