import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.preprocess.readout import readout_length, remove_oversampling, sampled_columns
from pipelines.scan_header import Encoding, Space


def centred(transform, values):
    return np.fft.fftshift(transform(np.fft.ifftshift(values, axes=-1), axis=-1, norm="ortho"), axes=-1)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 65), part=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_removal_is_a_plain_crop_of_the_image(n, part, seed):
    length = max(1, int(n * part))
    rng = np.random.default_rng(seed)
    image = (rng.standard_normal((3, n)) + 1j * rng.standard_normal((3, n))).astype(np.complex64)
    kspace = torch.from_numpy(centred(np.fft.fft, image).astype(np.complex64))

    shortened = remove_oversampling(kspace, length).numpy()

    start = n // 2 - length // 2
    np.testing.assert_allclose(centred(np.fft.ifft, shortened), image[:, start : start + length], atol=1e-5)


def test_white_noise_keeps_its_level(rng):
    noise = torch.from_numpy(
        (rng.standard_normal((400, 128)) + 1j * rng.standard_normal((400, 128))).astype(np.complex64)
    )

    shortened = remove_oversampling(noise, 64)

    power = shortened.abs().square().mean(0)
    assert float(power.mean()) == pytest.approx(2, rel=0.02)
    assert float(power.std()) < 0.3


@pytest.mark.parametrize(
    ("encoded_mm", "recon_mm", "expected"),
    [
        (500, 250, 64),
        (500, 500, 128),
        (0, 250, 128),
        (250, 500, 128),
        (500, 0, 128),
        (300, 250, 107),
        (float("nan"), 1, 128),
    ],
)
def test_length_follows_the_fields_of_view(encoded_mm, recon_mm, expected):
    encoding = Encoding(Space((128, 4, 1), (encoded_mm, 10, 1)), Space((32, 4, 1), (recon_mm, 10, 1)))

    assert readout_length(encoding) == expected


def test_a_full_readout_is_sampled_everywhere():
    assert bool(sampled_columns((0, 128), 128, 64).all())
    assert bool(sampled_columns((0, 33), 33, 17).all())


def test_an_asymmetric_echo_keeps_its_missing_end_after_removal():
    # Samples 32 to 127 of 128 were measured: k from -32 to 63. On the grid of 64 that is k from -16 to 31.
    sampled = sampled_columns((32, 128), 128, 64)

    assert sampled.tolist() == [False] * 16 + [True] * 48
