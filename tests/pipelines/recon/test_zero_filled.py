import numpy as np
import pytest
import torch

from pipelines.errors import ReconstructionError
from pipelines.operators.fourier import to_kspace
from pipelines.parameters import ZeroFilledParameters
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.zero_filled import ZeroFilled, density_weights

RSS = ZeroFilled(ZeroFilledParameters(), "cpu")
WEIGHTED = ZeroFilled(ZeroFilledParameters(combine="sensitivity"), "cpu")


def prepared(kspace, counts, calibration=None, noise_std=1.0):
    everywhere = torch.ones(kspace.shape[-1], dtype=torch.bool)
    return Prepared(kspace * (counts > 0)[:, None, :, :, None], counts, calibration, noise_std, True, everywhere)


def every(n, acceleration, dense=0):
    counts = torch.zeros((1, 1, n))
    counts[0, 0, n // 2 % acceleration :: acceleration] = 1
    counts[0, 0, n // 2 - dense // 2 : n // 2 + dense // 2] = 1
    return counts


def disc(n):
    axis = (torch.arange(n) - n // 2) / n
    return ((axis[:, None] ** 2 + axis**2) < 0.09).float()


def coil_images(n, coils=4):
    axis = (torch.arange(n) - n // 2) / n
    phases = [torch.exp(-((axis[:, None] - np.cos(k)) ** 2 + (axis - np.sin(k)) ** 2) + 1j * k) for k in range(coils)]
    return (disc(n) * torch.stack(phases)).to(torch.complex64)[None, :, None]


def test_full_sampling_gives_the_root_sum_of_squares_of_the_coil_images():
    images = coil_images(24)

    result = RSS(prepared(to_kspace(images, (-3, -2, -1)), torch.ones((1, 1, 24))))

    torch.testing.assert_close(result.image.real, images.abs().square().sum(1).sqrt(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("acceleration", "dense"), [(2, 0), (4, 0), (2, 12), (4, 12)])
def test_smooth_tissue_is_as_bright_as_with_full_sampling(acceleration, dense):
    n = 48
    axis = (torch.arange(n) - n // 2) / n
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / 0.004).to(torch.complex64)[None, None, None]

    result = RSS(prepared(to_kspace(blob, (-3, -2, -1)), every(n, acceleration, dense)))

    assert float(result.image[0, 0, n // 2, n // 2].real) == pytest.approx(1, abs=0.03)


def test_density_weights_are_one_where_dense_and_the_distance_where_not():
    weights = density_weights(every(32, 4, dense=8))[0, 0]

    assert weights[12:20].tolist() == [2.5, 1, 1, 1, 1, 1, 1, 1]
    assert weights[[4, 24]].tolist() == [4, 4]
    assert (
        float(density_weights(torch.ones((1, 3, 8))).min()) == float(density_weights(torch.ones((1, 3, 8))).max()) == 1
    )


def test_kspace_that_partial_fourier_never_reached_adds_no_weight_to_its_neighbour():
    counts = torch.ones((1, 1, 32))
    counts[0, 0, :10] = 0

    assert density_weights(counts)[0, 0].tolist() == [0.0] * 10 + [1.0] * 22


def test_undersampling_along_two_axes_multiplies_the_distances():
    counts = torch.zeros((1, 8, 12))
    counts[0, ::2, ::3] = 1

    weights = density_weights(counts)

    assert set(weights.unique().tolist()) == {0.0, 6.0}


def test_a_random_pattern_keeps_the_brightness_on_average():
    generator = torch.Generator().manual_seed(0)
    counts = (torch.rand((1, 64, 64), generator=generator) < 0.25).float()

    assert float(density_weights(counts).mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("pipeline", [RSS, WEIGHTED])
@pytest.mark.parametrize(("acceleration", "dense"), [(1, 0), (3, 12)])
@pytest.mark.parametrize("signal", [0.0, 8.0])
def test_deviation_matches_repeated_scans(pipeline, acceleration, dense, signal):
    n, scans = 24, 150
    generator = torch.Generator().manual_seed(5)
    clean = to_kspace(signal * coil_images(n), (-3, -2, -1))
    calibration = to_kspace(8 * coil_images(n), (-3, -2, -1))[0]
    counts = every(n, acceleration, dense)
    counts[counts > 0] += torch.arange(int((counts > 0).sum())) % 2
    counts = counts.expand(scans, -1, -1)
    noise = 0.5 * torch.randn((scans, *clean.shape[1:]), generator=generator, dtype=torch.complex64)
    noise = noise / counts.clamp(min=1).sqrt()[:, None, :, :, None]

    result = pipeline(prepared(clean + noise, counts, calibration, noise_std=0.5))

    inside = disc(n)[None] > 0
    ratio = (result.image.abs().std(0) / result.deviation.mean(0))[inside]
    assert float(ratio.median()) == pytest.approx(1, abs=0.05)


def test_without_calibration_the_root_sum_of_squares_stands_in():
    data = prepared(to_kspace(coil_images(16), (-3, -2, -1)), torch.ones((1, 1, 16)))

    result = WEIGHTED(data)

    assert result.details == {"ReconCoilCombination": "rss"}
    torch.testing.assert_close(result.image, RSS(data).image)


def test_nothing_measured_is_an_error():
    with pytest.raises(ReconstructionError, match="no line"):
        RSS(prepared(torch.zeros((1, 2, 1, 8, 8), dtype=torch.complex64), torch.zeros((1, 1, 8))))


def test_kspace_of_zeros_gives_a_black_image_and_finite_deviation():
    result = RSS(prepared(torch.zeros((1, 2, 1, 8, 8), dtype=torch.complex64), torch.ones((1, 1, 8)), noise_std=0.0))

    assert not bool(result.image.abs().any())
    assert not bool(result.deviation.any())
