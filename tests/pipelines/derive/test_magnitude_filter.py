"""The filter of magnitude images: what it leaves of the noise, and that it says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.derive.magnitude_filter import MagnitudeFilter, gain, noise_of
from pipelines.errors import ReconstructionError
from pipelines.mrd import IMAGE_HEADER, Image, ImageType
from pipelines.parameters import MagnitudeFilterParameters
from pipelines.phantom import head_phantom


def as_image(pixels, image_type=ImageType.MAGNITUDE, spacing_mm=1.0):
    """`(z, y, x)` pixels of the given size in mm."""
    header = np.zeros((), IMAGE_HEADER)
    header["image_type"], header["matrix_size"] = image_type, pixels.shape[::-1]
    header["field_of_view"] = np.array(pixels.shape[::-1]) * spacing_mm
    return Image(header, pixels[None])


def filtered(pixels, fwhm_mm=2.5, **keys: object):
    return MagnitudeFilter(MagnitudeFilterParameters(fwhm_mm=fwhm_mm), "cpu")(as_image(pixels, **keys), [])


def test_the_deviation_is_that_of_repeated_images():
    rng = np.random.default_rng(3)
    truth = 100 + 300 * head_phantom(1, 96, 96)[0]
    # Noise twice as strong on the right, as parallel imaging makes it.
    strength = np.linspace(5, 10, 96)
    results = [filtered((truth + strength * rng.standard_normal((96, 96)))[None]) for _ in range(200)]

    empirical = np.std([result.pixels[0, 0] for result in results], axis=0)
    claimed = np.mean([result.deviation[0, 0] for result in results], axis=0)
    ratio = (empirical / claimed)[8:-8, 8:-8]

    assert 0.95 < np.median(ratio) < 1.05
    left, right = np.median(claimed[:, 8:32]), np.median(claimed[:, -32:-8])
    assert right / left == pytest.approx(np.median(strength[-32:-8]) / np.median(strength[8:32]), rel=0.15)


@settings(max_examples=20, deadline=None)
@given(
    n=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    fwhm=st.floats(0.5, 20),
    level=st.floats(0, 4000, width=32),
)
def test_a_constant_image_stays_as_it_is_whatever_its_size(n, fwhm, level):
    result = filtered(np.full(n, level, np.float32), fwhm)

    np.testing.assert_allclose(result.pixels[0], level, rtol=1e-5, atol=1e-30)
    assert result.deviation.shape == result.pixels.shape
    np.testing.assert_allclose(result.deviation, 0, atol=1e-3)


def test_the_width_is_in_millimetres():
    point = np.zeros((1, 65, 65), np.float32)
    point[0, 32, 32] = 1
    fine, coarse = filtered(point, 6.0, spacing_mm=0.5), filtered(point, 6.0, spacing_mm=1.0)

    for result, spacing in ((fine, 0.5), (coarse, 1.0)):
        half = round(3.0 / spacing)
        profile = result.pixels[0, 0, 32]
        assert profile[32 + half] / profile[32] == pytest.approx(0.5, rel=0.02)


def test_the_gain_is_the_norm_of_the_filter():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 400, 400)).astype(np.float32)

    result = filtered(noise, 3.0)

    width = 3.0 / 2.3548
    assert np.std(result.pixels) == pytest.approx(gain((1, 400, 400), (0.0, width, width)), rel=0.03)


def test_the_noise_of_a_zeroed_background_does_not_count():
    rng = np.random.default_rng(0)
    image = np.where(head_phantom(1, 128, 128)[0] > 0, 500 + 7 * rng.standard_normal((128, 128)), 0)

    assert np.median(noise_of(image.astype(np.float32))) == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize("kind", [ImageType.PHASE, ImageType.COMPLEX, ImageType.RGB])
def test_other_images_are_left_alone_and_this_is_said(kind):
    warnings: list[str] = []
    image = as_image(np.ones((1, 8, 8), np.complex64 if kind is ImageType.COMPLEX else np.float32), kind)

    assert MagnitudeFilter(MagnitudeFilterParameters(), "cpu")(image, warnings) is None
    assert "not filtered" in warnings[0]


def test_pixels_that_are_not_finite_are_refused():
    with pytest.raises(ReconstructionError, match="not finite"):
        filtered(np.full((1, 8, 8), np.nan, np.float32))
