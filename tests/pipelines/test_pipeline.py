from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.assembly.frame import NoiseCovariance
from pipelines.errors import BudgetError, ParameterError, ReconstructionError, UnknownPipelineError
from pipelines.phantom import birdcage_coils, head_phantom
from pipelines.pipeline import Pipeline
from pipelines.preprocess.noise import estimate_noise_model
from pipelines.recon.reconstruction import Reconstructed
from pipelines.scan_header import Space

N = 48
NOISE_STD = 0.02


def scan(rng, acceleration=1):
    """K-space and counts of a head with eight coils, oversampled along x, and its noise scan."""
    coils = np.zeros((8, N, 2 * N), np.complex64)
    coils[:, :, N // 2 : N // 2 + N] = head_phantom(1, N, N)[0] * birdcage_coils(8, (N, N))
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes=axes), norm="ortho"), axes=axes)
    counts = np.zeros((1, 1, N), np.float32)
    counts[0, 0, ::acceleration] = 1
    counts[0, 0, N // 2 - 10 : N // 2 + 10] = 1
    # Both dwell times and the bandwidth of the fixture: 5 us, 20 us, 0.8.
    samples = complex_normal(rng, 64, 8, 64) * NOISE_STD * np.sqrt(0.8 * 5 / 20)
    noisy = kspace + NOISE_STD * complex_normal(rng, 8, N, 2 * N)
    return noisy[None, :, None].astype(np.complex64), counts, NoiseCovariance.of(samples.astype(np.complex64), 20.0)


def complex_normal(rng, *shape):
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


def make_scan(make_group, rng, acceleration=1, **changes: object):
    kspace, counts, noise = scan(rng, acceleration)
    return make_group(kspace, counts=counts, noise=noise, **changes)


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_a_scan_becomes_an_image_and_its_deviation(make_group, rng, name, acceleration):
    group = make_scan(make_group, rng, acceleration)

    output = Pipeline(name, {}, "cpu")(group, {"ReconSession": "a"})

    magnitude, deviation = (image.pixels[0, 0] for image in output.images)
    truth = head_phantom(1, N, N)[0]
    assert magnitude.shape == deviation.shape == (N, N)
    scale = float((magnitude * truth).sum() / (truth * truth).sum())
    if name == "sense" or acceleration == 1:
        assert np.linalg.norm(magnitude / scale - truth) < 0.12 * np.linalg.norm(truth)
    inside = truth > 0.2
    # Fully sampled: noise of one coil over sqrt(2); accelerated: at least that.
    relative = np.median(deviation[inside]) / scale / (NOISE_STD / np.sqrt(2))
    assert 0.9 < relative < (1.1 if acceleration == 1 else 2.5)
    assert set(output.stages_s) == {"noise", "csm", "recon", "uncertainty", "post"}
    assert output.warnings == ()
    assert output.images[0].meta["ReconSession"] == ["a"]


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_the_same_group_gives_the_same_bytes_whatever_came_before(make_group, rng, name):
    group = make_scan(make_group, rng, 2)
    pipeline = Pipeline(name, {"coil_compression": "6"}, "cpu")
    first = pipeline(group, {})
    torch.manual_seed(5)
    pipeline(make_scan(make_group, rng, 2), {})

    second = pipeline(group, {})

    for one, other in zip(first.images, second.images, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
        assert one.header.tobytes() == other.header.tobytes()
        assert one.meta == other.meta


def test_images_keep_no_view_of_the_groups_memory(make_group, rng):
    group = make_scan(make_group, rng)
    output = Pipeline("zero_filled", {}, "cpu")(group, {})
    before = output.images[0].pixels.copy()

    group.kspace[:] = 0

    np.testing.assert_array_equal(output.images[0].pixels, before)


def test_brightness_does_not_depend_on_the_dwell_time(make_group, rng):
    group = make_scan(make_group, rng)
    slow = replace(group, headers=group.headers.copy())
    slow.headers["sample_time_us"] *= 4
    pipeline = Pipeline("zero_filled", {}, "cpu")

    fast_image, slow_image = pipeline(group, {}).images, pipeline(slow, {}).images

    np.testing.assert_allclose(fast_image[0].pixels, slow_image[0].pixels, rtol=1e-4)
    bright = fast_image[0].pixels > np.quantile(fast_image[0].pixels, 0.9)
    np.testing.assert_allclose(fast_image[1].pixels[bright], 2 * slow_image[1].pixels[bright], rtol=0.01)


def test_images_come_on_the_recon_grid(make_group, rng):
    group = make_scan(make_group, rng, recon=Space((64, 64, 1), (1.0 * 2 * N, 2.0 * N, 4.0)))

    for image in Pipeline("sense", {}, "cpu")(group, {}).images:
        assert image.pixels.shape == (1, 1, 64, 64)
        assert image.header["matrix_size"].tolist() == [64, 64, 1]


def test_parameters_change_the_digest_and_only_they_do(make_group, rng):
    group = make_scan(make_group, rng)

    def digest(parameters):
        return Pipeline("zero_filled", parameters, "cpu")(group, {}).images[0].meta["ReconConfigDigest"]

    assert digest({}) == digest({"combine": "rss"})
    assert digest({}) != digest({"combine": "sensitivity"})


def test_a_black_scan_without_noise_gives_black_images(make_group):
    output = Pipeline("sense", {}, "cpu")(make_group(np.zeros((1, 4, 1, 32, 64), np.complex64)), {})

    for image in output.images:
        assert not image.pixels.any()


def test_results_that_are_not_finite_are_never_sent(make_group, rng, monkeypatch):
    pipeline = Pipeline("zero_filled", {}, "cpu")
    inner = pipeline._reconstruction

    def broken(prepared) -> Reconstructed:
        result = inner(prepared)
        result.deviation[0, 0, 3, 3] = float("nan")
        return result

    monkeypatch.setattr(pipeline, "_reconstruction", broken)

    with pytest.raises(ReconstructionError, match="uncertainty holds values that are not finite"):
        pipeline(make_scan(make_group, rng), {})


def test_equations_without_a_solution_are_a_coded_error(make_group, rng, monkeypatch):
    pipeline = Pipeline("sense", {}, "cpu")
    monkeypatch.setattr(pipeline, "_reconstruction", lambda _: torch.linalg.cholesky(-torch.eye(2)))

    with pytest.raises(ReconstructionError, match="no solution"):
        pipeline(make_scan(make_group, rng), {})


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_data_whitened_elsewhere_have_the_uncertainty_of_their_given_noise_level(make_group, rng, name):
    group = make_scan(make_group, rng)
    model, _ = estimate_noise_model(group.noise, 8, group.scan.noise_bandwidth)
    # As Gadgetron's NoiseAdjust does: unit deviation in each of the real and imaginary part.
    factor = np.sqrt(2) * model.scale(float(group.headers["sample_time_us"][0]))
    white = np.einsum("dc,fczyx->fdzyx", model.whitening * factor, group.kspace).astype(np.complex64)
    elsewhere = replace(group, kspace=white, noise=None)

    ours = Pipeline(name, {}, "cpu")(group, {})
    theirs = Pipeline(name, {"noise_level": "1.41421356"}, "cpu")(elsewhere, {})

    scale = factor  # images are in the units of the k-space that came
    for mine, other in zip(ours.images, theirs.images, strict=True):
        np.testing.assert_allclose(other.pixels / scale, mine.pixels, rtol=2e-3, atol=1e-3 * mine.pixels.max())
    assert theirs.images[0].meta["ReconNoise"] == ["given"]
    assert theirs.warnings == ()


def test_warnings_of_preparation_and_emission_arrive_once(make_group, rng):
    group = make_scan(make_group, rng)
    group.headers["read_dir"] = 0
    group.noise.sums[3] = group.noise.sums[:, 3] = 0

    warnings = Pipeline("zero_filled", {}, "cpu")(group, {}).warnings

    assert len(warnings) == 2
    assert "1 of 8 coils" in warnings[0]
    assert "read_dir" in warnings[1]


def test_an_absurd_recon_matrix_is_refused(make_group, rng):
    group = make_scan(make_group, rng, recon=Space((16384, 16384, 1), (1.0 * 2 * N, 2.0 * N, 4.0)))

    with pytest.raises(BudgetError):
        Pipeline("zero_filled", {}, "cpu")(group, {})


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(UnknownPipelineError):
        Pipeline("os", {}, "cpu")
    with pytest.raises(ParameterError, match="nonsense"):
        Pipeline("sense", {"nonsense": 1}, "cpu")


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
@pytest.mark.parametrize("method", ["homodyne", "pocs"])
def test_partial_fourier_and_asymmetric_echo_are_restored_and_recorded(make_group, rng, name, method):
    kspace, counts, noise = scan(rng)
    counts[..., : N // 4] = 0
    first = N // 2  # of 2 N columns
    kspace[..., :first] = 0
    group = make_group(kspace, counts=counts, noise=noise, readout_extent=(first, 2 * N))
    truth = head_phantom(1, N, N)[0]

    errors = {}
    for each in ("zero_fill", method):
        output = Pipeline(name, {"partial_fourier": each}, "cpu")(group, {})
        magnitude = output.images[0].pixels[0, 0]
        scale = float((magnitude * truth).sum() / (truth * truth).sum())
        errors[each] = np.linalg.norm(magnitude / scale - truth)
        assert output.warnings == ()
        assert output.images[1].meta["ReconPartialFourier"] == [f"{each} along y and x"]

    assert errors[method] < 0.9 * errors["zero_fill"]


@pytest.mark.parametrize("name", ["zero_filled", "sense"])
def test_phase_and_complex_images_agree_with_the_magnitude(make_group, rng, name):
    parameters = {"parts": "magnitude, phase,complex"} | ({"combine": "sensitivity"} if name == "zero_filled" else {})

    output = Pipeline(name, parameters, "cpu")(make_scan(make_group, rng), {})

    magnitude, phase, whole, deviation = (image.pixels for image in output.images)
    np.testing.assert_allclose(magnitude, np.abs(whole), rtol=1e-5)
    np.testing.assert_allclose(np.angle(whole), phase, atol=1e-5)
    assert np.unique(phase).size > 100
    assert deviation.shape == magnitude.shape


def test_a_root_sum_of_squares_is_not_asked_for_a_phase():
    with pytest.raises(ParameterError, match="no phase"):
        Pipeline("zero_filled", {"parts": "phase"}, "cpu")


def test_no_phase_is_made_up_without_calibration_lines(make_group, rng):
    kspace, _, _ = scan(rng)
    counts = np.zeros((1, 1, N), np.float32)
    counts[0, 0, ::4] = 1
    pipeline = Pipeline("zero_filled", {"parts": "phase", "combine": "sensitivity"}, "cpu")

    with pytest.raises(ReconstructionError, match="8 coils, but no"):
        pipeline(make_group(kspace, counts=counts), {})
