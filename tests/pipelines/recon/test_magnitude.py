import math

import pytest
import torch

from pipelines.recon.magnitude import magnitude_deviation


def flat(value, size=12):
    return torch.full((1, size, size), value)


def test_far_above_the_noise_the_deviation_is_that_of_one_direction():
    deviation = magnitude_deviation(flat(1000.0), flat(2.0))

    torch.testing.assert_close(deviation, flat(1.0), atol=2e-3, rtol=0)


@pytest.mark.parametrize("n_channels", [1, 2, 8, 32])
@pytest.mark.parametrize("signal", [0.0, 1.0, 3.0, 10.0])
def test_deviation_matches_that_of_simulated_magnitudes(n_channels, signal):
    # Root sum of squares of noise with E|n|^2 = 2 in each channel, on a signal shared among channels.
    generator = torch.Generator().manual_seed(3)
    noise = math.sqrt(2) * torch.randn((n_channels, 400, 400), generator=generator, dtype=torch.complex64)
    magnitude = (signal / math.sqrt(n_channels) + noise).abs().square().sum(0).sqrt()[None]

    deviation = magnitude_deviation(magnitude, torch.full_like(magnitude, 2.0), n_channels)

    # The signal is estimated from the same pixels, which leaves up to 4 % next to the noise.
    assert float(deviation.mean()) == pytest.approx(float(magnitude.std()), rel=0.05)


def test_bright_surroundings_do_not_raise_the_deviation_of_a_thin_dark_line():
    magnitude = flat(30.0, 21)
    magnitude[:, :, 10] = 1.0  # as much as the noise: E m^2 = v without signal

    deviation = magnitude_deviation(magnitude, flat(1.0, 21))

    assert float(deviation[0, 10, 10]) == pytest.approx(0.655 / math.sqrt(2), rel=0.05)
    assert float(deviation[0, 10, 5]) == pytest.approx(1 / math.sqrt(2), rel=0.01)


def test_pixels_without_variance_have_none_and_do_not_touch_their_neighbours():
    variance = flat(1.0)
    variance[:, :, :6] = 0
    magnitude = flat(1.0)
    magnitude[:, :, :6] = 1e20

    deviation = magnitude_deviation(magnitude, variance)

    assert not bool(deviation[:, :, :6].any())
    torch.testing.assert_close(deviation[:, :, 6:], flat(0.655 / math.sqrt(2))[:, :, 6:], rtol=0.01, atol=0)


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e18])
@pytest.mark.parametrize("variance", [0.0, 1e-30, 1e30])
def test_extreme_values_stay_finite(value, variance):
    assert bool(torch.isfinite(magnitude_deviation(flat(value), flat(variance))).all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_never_index_outside_the_table(value):
    # On a GPU an index outside would end the whole process; what is not finite is refused behind this.
    deviation = magnitude_deviation(flat(value), flat(value))

    assert not bool(torch.isfinite(deviation).all())
