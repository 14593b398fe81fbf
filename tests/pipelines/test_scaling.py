import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ReconstructionError
from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType
from pipelines.scaling import SeriesScaler


def picture(values, image_type=ImageType.MAGNITUDE, *, is_uncertainty=False):
    header = np.zeros((), IMAGE_HEADER)
    header["image_type"], header["data_type"] = image_type, ImageDataType.FLOAT
    pixels = np.asarray(values, np.complex64 if image_type is ImageType.COMPLEX else np.float32).reshape(1, 1, 1, -1)
    return Image(header, pixels, {"ReconUncertaintyKind": ["noise"]} if is_uncertainty else {})


def test_a_deviation_beyond_what_a_float_can_hold_stays_finite():
    scaler = SeriesScaler(12)
    scaler(picture([1e-38]))

    assert np.isfinite(scaler(picture([1e30], is_uncertainty=True)).pixels).all()


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=20),
    later=st.lists(st.floats(-10, 1e9, width=32), min_size=1, max_size=20),
    bits=st.integers(8, 16),
)
def test_scaled_pixels_are_monotone_share_one_scale_and_never_wrap(values, later, bits):
    scaler = SeriesScaler(bits)

    first, second = scaler(picture(values)), scaler(picture(later))

    for original, scaled in ((values, first), (later, second)):
        stored = scaled.pixels.ravel()
        assert stored.dtype == np.uint16
        assert int(stored.max()) <= 2**bits - 1
        assert (np.diff(stored[np.argsort(original, kind="stable")].astype(int)) >= 0).all()
    if max(values) > 0:
        assert first.meta["GADGETRON_ScaleRatio"] == second.meta["GADGETRON_ScaleRatio"]
        scale = float(first.meta["GADGETRON_ScaleRatio"][0])
        with np.errstate(over="ignore"):
            assert scaler.clipped == int((np.float32(scale) * np.float32(later) > 2**bits - 0.5).sum())


def test_first_image_leaves_headroom_and_rescaling_brings_its_values_back():
    scaler = SeriesScaler(12, headroom=4.0)

    image = scaler(picture([0, 50, 200]))

    stored = image.pixels.ravel()
    assert stored.tolist() == [0, 256, 1024]
    slope = float(image.meta["RescaleSlope"][0])
    np.testing.assert_allclose(stored * slope, [0, 50, 200], atol=slope / 2 + 1e-6)
    assert int(image.header["data_type"]) == ImageDataType.USHORT
    assert image.meta["RescaleIntercept"] == ["0"]


def test_uncertainty_is_stored_in_the_units_of_the_stored_magnitude():
    scaler = SeriesScaler(16)
    magnitude = scaler(picture([10, 20, 40]))

    deviation = scaler(picture([1, 2, 4], is_uncertainty=True))

    assert deviation.pixels.dtype == np.float32
    np.testing.assert_allclose(deviation.pixels * 10, magnitude.pixels, rtol=1e-3)
    assert deviation.meta["RescaleSlope"] == magnitude.meta["RescaleSlope"]
    assert int(deviation.header["data_type"]) == ImageDataType.FLOAT


def test_clipping_is_counted_and_reported_once():
    scaler = SeriesScaler(12, headroom=1.0)
    scaler(picture([100]))
    scaler(picture([50, 101, 1e9]))

    assert scaler.clipped == 2
    assert "2 pixels" in scaler.take_warnings()[0]
    assert scaler.take_warnings() == []


def test_a_black_first_image_does_not_choose_the_scale():
    scaler = SeriesScaler(12)

    black = scaler(picture([0, 0]))
    image = scaler(picture([0, 7]))

    assert "RescaleSlope" not in black.meta
    assert image.pixels.ravel().tolist() == [0, 1024]


def test_a_window_in_whole_numbers_is_given_in_rescaled_units_or_not_at_all():
    wide, narrow = SeriesScaler(12), SeriesScaler(12)

    assert wide(picture([0, 301])).meta["WindowWidth"] == ["301"]
    assert "WindowWidth" not in narrow(picture([0, 3])).meta


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    with pytest.raises(ReconstructionError, match="not finite"):
        SeriesScaler()(picture([1, value]))


@pytest.mark.parametrize(("bits", "headroom"), [(0, 2), (17, 2), (12, 0.5)])
def test_impossible_ranges_are_refused(bits, headroom):
    with pytest.raises(ValueError, match="bits"):
        SeriesScaler(bits, headroom=headroom)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3.140625, 3.140625, width=32), min_size=1, max_size=20), st.integers(10, 16))
def test_phase_fills_the_range_and_rescaling_brings_it_back(radians, bits):
    image = SeriesScaler(bits)(picture(radians, ImageType.PHASE))

    slope, intercept = float(image.meta["RescaleSlope"][0]), float(image.meta["RescaleIntercept"][0])
    assert image.pixels.dtype == np.uint16
    np.testing.assert_allclose(image.pixels.ravel() * slope + intercept, radians, atol=slope / 2 + 1e-5)


def test_real_and_imaginary_parts_share_the_scale_of_the_magnitude_and_keep_their_sign():
    scaler = SeriesScaler(12, headroom=4.0)
    magnitude = scaler(picture([0, 5]))

    real = scaler(picture([-5, 0, 5], ImageType.REAL))

    slope, intercept = float(real.meta["RescaleSlope"][0]), float(real.meta["RescaleIntercept"][0])
    assert real.meta["GADGETRON_ScaleRatio"] == magnitude.meta["GADGETRON_ScaleRatio"]
    np.testing.assert_allclose(real.pixels.ravel() * slope + intercept, [-5, 0, 5], atol=slope / 2 + 1e-6)


def test_a_complex_image_keeps_its_type_and_gets_the_scale():
    scaler = SeriesScaler(12, headroom=1.0)
    scaler(picture([1]))

    image = scaler(picture([0.5 - 0.5j], ImageType.COMPLEX))

    assert image.pixels.dtype == np.complex64
    np.testing.assert_allclose(image.pixels.ravel(), [4095 * (0.5 - 0.5j)], rtol=1e-6)
