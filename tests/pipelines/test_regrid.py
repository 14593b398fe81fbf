import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import BudgetError
from pipelines.regrid import to_recon_grid
from pipelines.scan_header import Encoding, Space


def encoding(encoded, recon, encoded_mm=None, recon_mm=None):
    encoded_mm = encoded_mm or tuple(2.0 * n for n in encoded)
    return Encoding(Space(encoded, encoded_mm), Space(recon, recon_mm or encoded_mm))


def noise(frames, *shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn((frames, *shape), generator=generator, dtype=torch.complex64)


def test_the_same_grid_changes_nothing():
    image = noise(2, 1, 8, 12)

    resized, deviation = to_recon_grid(image, image.abs(), encoding((24, 8, 1), (12, 8, 1), (48, 16, 5), (24, 16, 5)))

    assert bool((resized == image).all())
    assert bool((deviation == image.abs()).all())


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 21), kept=st.integers(1, 21))
def test_phase_oversampling_is_cropped_around_the_centre(n, kept):
    kept = min(n, kept)
    image = noise(1, 1, n, 4)

    cropped, deviation = to_recon_grid(
        image, image.abs(), encoding((4, n, 1), (4, kept, 1), (4.0, 2.0 * n, 5.0), (4.0, 2.0 * kept, 5.0))
    )

    start = n // 2 - kept // 2
    assert bool((cropped == image[:, :, start : start + kept]).all())
    assert bool((deviation == image[:, :, start : start + kept].abs()).all())


@settings(max_examples=20, deadline=None)
@given(n=st.integers(8, 24), m=st.integers(8, 40))
def test_interpolation_keeps_positions_and_values_of_a_smooth_image(n, m):
    def blob(size):
        axis = (torch.arange(size) - size // 2) / size
        return (torch.exp(-((axis[:, None] - 0.1) ** 2 + axis**2) / 0.05) + 0j).to(torch.complex64)[None, None]

    resized, _ = to_recon_grid(blob(n), blob(n).abs(), encoding((n, n, 1), (m, m, 1), (9.0, 9.0, 5.0)))

    assert resized.shape == (1, 1, m, m)
    torch.testing.assert_close(resized, blob(m), atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [48, 32, 20])
def test_deviation_follows_the_noise_through_interpolation(size):
    image = noise(300, 1, 32, 32)

    resized, deviation = to_recon_grid(
        image, torch.ones((300, 1, 32, 32)), encoding((32, 32, 1), (size, size, 1), (9.0, 9.0, 5.0))
    )

    ratio = resized.abs().square().mean(0).sqrt() / deviation[0]
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)


def test_an_axis_of_one_pixel_is_left_alone():
    image = noise(1, 1, 4, 4)

    resized, _ = to_recon_grid(image, image.abs(), encoding((4, 4, 1), (4, 4, 16), (8, 8, 5), (8, 8, 80)))

    assert resized.shape == (1, 1, 4, 4)


def test_fields_of_view_without_sense_do_not_crop():
    image = noise(1, 1, 8, 4)

    resized, _ = to_recon_grid(
        image, image.abs(), encoding((4, 8, 1), (4, 8, 1), (8.0, 0.0, 5.0), (8.0, float("nan"), 5.0))
    )

    assert np.array_equal(resized, image)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_field_of_view_beyond_the_measured_one_is_zero_and_keeps_distances(axis):
    image = noise(1, 1, 8, 8)
    recon, recon_mm = [8, 8, 1], [16.0, 16.0, 5.0]
    recon[axis], recon_mm[axis] = 12, 24.0

    resized, deviation = to_recon_grid(
        image, image.abs() + 1, encoding((8, 8, 1), tuple(recon), (16.0, 16.0, 5.0), tuple(recon_mm))
    )

    inner, outer = (resized.narrow(3 - axis, 2, 8), resized.clone())
    assert bool((inner == image).all())
    outer.narrow(3 - axis, 2, 8).zero_()
    assert not bool(outer.any())
    assert not bool(deviation.narrow(3 - axis, 0, 2).any())


def test_a_field_of_view_beyond_any_image_is_refused_before_memory_is_taken():
    image = noise(1, 1, 8, 8)

    with pytest.raises(BudgetError, match="field of view"):
        to_recon_grid(image, image.abs(), encoding((8, 8, 1), (8, 8, 1), (1e-3, 1e-3, 5), (1e5, 1e5, 5)))


def test_a_recon_matrix_beyond_any_image_is_refused_before_memory_is_taken():
    image = noise(1, 1, 4, 4)

    with pytest.raises(BudgetError, match="16384 x 16384"):
        to_recon_grid(image, image.abs(), encoding((4, 4, 1), (16384, 16384, 1)))
