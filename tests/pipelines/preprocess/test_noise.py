from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import NoiseCovariance
from pipelines.preprocess.noise import (
    estimate_noise_model,
    noise_level_at_edges,
    noise_level_in_margin,
    whiten,
)


def complex_normal(rng, *shape):
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


def coloured(rng, n_coils, readouts=64, samples=64):
    mixing = complex_normal(rng, n_coils, n_coils) + 2 * np.eye(n_coils)
    return mixing, (mixing @ complex_normal(rng, readouts, n_coils, samples)).astype(np.complex64)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n_coils=st.integers(1, 12), scale=st.floats(1e-6, 1e6))
def test_whitening_gives_its_own_samples_unit_covariance(seed, n_coils, scale):
    _, samples = coloured(np.random.default_rng(seed), n_coils)
    samples = (samples * scale).astype(np.complex64)

    model, warnings = estimate_noise_model(NoiseCovariance.of(samples, 5.0), n_coils, 1.0)

    assert model is not None
    assert warnings == []
    white = np.moveaxis(model.whitening @ samples, 1, 0).reshape(n_coils, -1)
    # Whitening is in single precision: rounding grows with the condition of the covariance (1.5e-3 at seed 249).
    np.testing.assert_allclose(white @ white.conj().T / (white.shape[1] - 1), np.eye(n_coils), atol=5e-3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_coils=st.integers(1, 8),
    dwell_us=st.floats(0.5, 50),
    noise_dwell_us=st.floats(0.5, 50),
    bandwidth=st.floats(0.1, 1),
)
def test_image_noise_has_the_identity_as_covariance_whatever_dwell_and_bandwidth(
    seed, n_coils, dwell_us, noise_dwell_us, bandwidth
):
    # Flat density N0: image readouts have the variance N0 / dwell, noise readouts b N0 / dwell of theirs.
    rng = np.random.default_rng(seed)
    mixing, _ = coloured(rng, n_coils)
    n_noise, n_image = 40_000, 20_000
    noise = mixing @ complex_normal(rng, 1, n_coils, n_noise) * np.sqrt(bandwidth / noise_dwell_us)
    image = (mixing @ complex_normal(rng, n_coils, n_image) / np.sqrt(dwell_us)).astype(np.complex64)

    model, _ = estimate_noise_model(NoiseCovariance.of(noise, noise_dwell_us), n_coils, bandwidth)
    assert model is not None
    frames = torch.from_numpy(image)[None, :, None, None]
    white = whiten(frames, model, torch.tensor([model.scale(dwell_us)]))[0, :, 0, 0]

    # Each entry of the difference has the variance 1 / n of both samples; six deviations.
    covariance = (white @ white.conj().T / n_image).numpy()
    bound = 6 * np.sqrt(1 / n_noise + 1 / n_image)
    np.testing.assert_allclose(covariance, np.eye(n_coils), rtol=0, atol=bound)


def test_the_covariance_is_that_of_all_samples_of_a_dense_matrix(rng):
    _, samples = coloured(rng, 5, readouts=7, samples=33)
    dense = np.moveaxis(samples, 1, 0).reshape(5, -1).astype(np.complex128)

    noise = NoiseCovariance.of(samples, 5.0)

    assert (noise.n_coils, noise.n_samples) == (5, 7 * 33)
    np.testing.assert_allclose(noise.sums, dense @ dense.conj().T, rtol=1e-12)


def test_the_bandwidth_of_the_noise_scan_wins_over_that_of_the_header(rng):
    noise = replace(NoiseCovariance.of(complex_normal(rng, 16, 2, 64), 5.0), bandwidth=0.25)

    model, _ = estimate_noise_model(noise, 2, 1.0)

    assert model is not None
    assert model.scale(5.0) == pytest.approx(0.5)


def test_image_noise_has_unit_variance_after_whitening_at_another_dwell_time(rng):
    # Flat density; a filter passes 0.8 of the band of a noise readout, image readouts keep the flat middle.
    dwell_us, noise_dwell_us, bandwidth = 2.4, 20.0, 0.8
    mixing, _ = coloured(rng, 6)
    noise = mixing @ complex_normal(rng, 256, 6, 128) * np.sqrt(bandwidth / noise_dwell_us)
    image = torch.from_numpy((mixing @ complex_normal(rng, 64, 6, 128) / np.sqrt(dwell_us)).astype(np.complex64))

    model, _ = estimate_noise_model(NoiseCovariance.of(noise.astype(np.complex64), noise_dwell_us), 6, bandwidth)
    assert model is not None
    frames = image.permute(1, 0, 2)[None, :, None]
    white = whiten(frames, model, torch.tensor([model.scale(dwell_us)]))

    power = white.abs().square().mean((0, 2, 3, 4))
    torch.testing.assert_close(power, torch.ones(6), atol=0.05, rtol=0)


def test_each_frame_is_scaled_by_its_own_dwell_time(rng):
    model, _ = estimate_noise_model(NoiseCovariance.of(complex_normal(rng, 16, 2, 64), 10.0), 2, 0.5)
    assert model is not None
    frames = torch.from_numpy(complex_normal(rng, 1, 2, 1, 4, 8)).expand(2, -1, -1, -1, -1)

    white = whiten(frames, model, torch.tensor([model.scale(5.0), model.scale(20.0)]))

    torch.testing.assert_close(white[1], 2 * white[0])
    assert model.scale(5.0) == pytest.approx(0.5)


def test_a_coil_without_noise_is_left_out(rng):
    samples = complex_normal(rng, 32, 4, 64)
    samples[:, 2] = 0

    model, warnings = estimate_noise_model(NoiseCovariance.of(samples, 5.0), 4, 1.0)

    assert model is not None
    assert model.whitening.shape == (3, 4)
    assert np.isfinite(model.whitening).all()
    assert (model.whitening[:, 2] == 0).all()
    assert "1 of 4 coils" in warnings[0]


def test_two_coils_with_the_same_noise_are_regularised(rng):
    samples = complex_normal(rng, 32, 3, 64)
    samples[:, 1] = samples[:, 0]

    model, warnings = estimate_noise_model(NoiseCovariance.of(samples, 5.0), 3, 1.0)

    assert model is not None
    assert np.isfinite(model.whitening).all()
    assert any("singular" in warning for warning in warnings)


def test_few_samples_scale_coils_without_decorrelating_them(rng):
    model, warnings = estimate_noise_model(NoiseCovariance.of(complex_normal(rng, 1, 8, 20), 5.0), 8, 1.0)

    assert model is not None
    assert (model.whitening == np.diag(np.diag(model.whitening))).all()
    assert "20 samples" in warnings[0]


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((4, 4, 64), np.complex64), "no noise"),
        (np.ones((1, 4, 8), np.complex64), "at least 16"),
        (np.ones((4, 3, 64), np.complex64), "3 coils"),
        (np.full((4, 4, 64), np.nan, np.complex64), "no noise"),
        (np.zeros((0, 4, 64), np.complex64), "at least 16"),
        (np.full((4, 4, 64), 1e30, np.complex64), "no noise"),
    ],
)
def test_an_unusable_noise_scan_is_refused_with_a_reason(samples, reason):
    model, warnings = estimate_noise_model(NoiseCovariance.of(samples, 5.0), 4, 1.0)

    assert model is None
    assert reason in " ".join(warnings)


@pytest.mark.parametrize("dwell_us", [0.0, -1.0, float("nan"), float("inf")])
def test_an_unknown_dwell_time_leaves_the_level_alone_and_says_so(rng, dwell_us):
    model, warnings = estimate_noise_model(NoiseCovariance.of(complex_normal(rng, 16, 2, 64), dwell_us), 2, 0.8)

    assert model is not None
    assert model.scale(5.0) == 1.0
    assert "dwell time" in warnings[0]


def test_an_impossible_bandwidth_counts_as_one(rng):
    model, warnings = estimate_noise_model(NoiseCovariance.of(complex_normal(rng, 16, 2, 64), 5.0), 2, float("nan"))

    assert model is not None
    assert model.scale(5.0) == 1.0
    assert "bandwidth" in warnings[0]


def test_level_in_the_margin_withstands_columns_with_signal(rng):
    margin = torch.from_numpy(3 * complex_normal(rng, 64, 4, 20))
    margin[..., :6] += 100

    assert noise_level_in_margin(margin) == pytest.approx(3, rel=0.05)


def test_level_at_the_edges_withstands_signal_in_the_middle(rng):
    readouts = torch.from_numpy(2 * complex_normal(rng, 64, 4, 100))
    readouts[..., 20:80] += 1000

    assert noise_level_at_edges(readouts) == pytest.approx(2, rel=0.05)
