"""Figures of merit against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity as skimage_ssim

from pipelines.phantom import head_phantom
from pipelines.quality import compare, foreground


@given(st.integers(0, 1000), st.floats(0.01, 0.3))
def test_ssim_is_that_of_scikit_image(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.random((40, 50))
    image = reference + noise * rng.standard_normal((40, 50))
    agreement = compare(image, reference)
    expected = skimage_ssim(
        image * agreement.scale, reference, data_range=reference.max(), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert agreement.ssim == pytest.approx(expected, abs=1e-6)


@given(st.floats(1e-6, 1e6))
def test_scale_does_not_matter(factor: float) -> None:
    reference = head_phantom(2, 32, 32).astype(np.float64)
    agreement = compare(reference / factor, reference)
    assert agreement.scale == pytest.approx(factor)
    assert agreement.nrmse < 1e-12
    assert agreement.ssim == pytest.approx(1)


def test_nrmse_and_psnr_follow_their_definitions() -> None:
    reference = np.zeros((20, 20))
    reference[:10] = 2.0
    image = reference.copy()
    image[10:] = 0.5
    agreement = compare(image, reference)
    difference = image * agreement.scale - reference
    rmse = np.sqrt(np.mean(difference**2))
    assert agreement.scale == pytest.approx(4 / 4.25)
    assert agreement.nrmse == pytest.approx(rmse / np.sqrt(2))
    assert agreement.psnr_db == pytest.approx(20 * np.log10(2 / rmse))


def test_images_of_another_shape_and_empty_references_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        compare(np.ones((8, 8)), np.ones((8, 9)))
    with pytest.raises(ValueError, match="zero everywhere"):
        compare(np.ones((8, 8)), np.zeros((8, 8)))
    with pytest.raises(ValueError, match="mask"):
        compare(np.ones((8, 8)), np.ones((8, 8)), np.ones((8, 9), bool))
    with pytest.raises(ValueError, match="zero everywhere"):
        compare(np.ones((8, 8)), np.eye(8), np.eye(8) == 0)


def test_pixels_beyond_the_mask_do_not_count() -> None:
    rng = np.random.default_rng(0)
    reference = head_phantom(1, 48, 48)[0].astype(np.float64)
    image = 3 * (reference + 0.05 * rng.standard_normal(reference.shape))
    mask = np.zeros(reference.shape, bool)
    mask[12:36, 12:36] = True
    spoilt = np.where(mask, image, 7.0)

    within, everywhere = compare(spoilt, reference, mask), compare(image, reference, np.ones_like(mask))

    assert within.scale == pytest.approx(compare(image[12:36, 12:36], reference[12:36, 12:36]).scale)
    rmse = np.sqrt(np.mean((within.scale * image - reference)[mask] ** 2))
    assert within.psnr_db == pytest.approx(20 * np.log10(reference[mask].max() / rmse))
    assert within.nmse == pytest.approx(rmse**2 / np.mean(reference[mask] ** 2))
    assert everywhere == compare(image, reference)
    expected = skimage_ssim(
        image * within.scale, reference, data_range=reference[mask].max(), gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )[1][mask].mean()  # fmt: skip
    assert compare(image, reference, mask).ssim == pytest.approx(expected, abs=1e-6)


def test_the_foreground_is_the_object_with_what_it_encloses() -> None:
    image = np.zeros((2, 20, 20))
    image[:, 4:16, 4:16] = 1.0
    image[0, 8:12, 8:12] = 0.0
    image[1, 18, 18] = 0.04

    expected = np.zeros((2, 20, 20), bool)
    expected[:, 4:16, 4:16] = True
    np.testing.assert_array_equal(foreground(image), expected)
