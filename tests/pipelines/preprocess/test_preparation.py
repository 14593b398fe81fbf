import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipelines.assembly.frame import Calibration, NoiseCovariance, NoiseSource
from pipelines.errors import ReconstructionError
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.parameters import Parameters
from pipelines.preprocess.noise import estimate_noise_model
from pipelines.preprocess.preparation import prepare
from pipelines.preprocess.readout import remove_oversampling, split_columns
from pipelines.scan_header import Space

SIEMENS = Path("/work/shared/data/kspace/siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5")
BANDWIDTH = 0.8
RAW = Parameters(whiten=False)


def complex_normal(rng, *shape):
    return ((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)).astype(np.complex64)


def test_repeated_lines_are_averaged_and_the_rest_stays_zero(make_group):
    counts = np.zeros((1, 1, 16), np.float32)
    counts[0, 0, ::2] = 3
    group = make_group(np.ones((1, 2, 1, 16, 32), np.complex64) * 6, counts=counts)

    kspace = prepare(group, RAW, "cpu").prepared.kspace

    expected = remove_oversampling(torch.full((32,), 2.0 + 0j), 16)
    torch.testing.assert_close(kspace[0, 1, 0, 4], expected)
    assert not bool(kspace[:, :, :, 1::2].any())


def test_the_group_is_not_changed(make_group, rng):
    group = make_group(noise=NoiseCovariance.of(complex_normal(rng, 16, 4, 64), 20.0))
    before = group.kspace.copy(), group.counts.copy()

    prepare(group, Parameters(coil_compression=2), "cpu")

    np.testing.assert_array_equal(group.kspace, before[0])
    np.testing.assert_array_equal(group.counts, before[1])


def test_read_only_memory_of_any_order_is_accepted(make_group, rng):
    samples = complex_normal(rng, 1, 16, 4, 32)[:, None]
    view = samples.transpose(0, 3, 1, 2, 4)
    group = make_group(np.ascontiguousarray(view))
    samples.flags.writeable = False

    result = prepare(replace(group, kspace=samples.transpose(0, 3, 1, 2, 4)), RAW, "cpu").prepared

    torch.testing.assert_close(result.kspace, prepare(group, RAW, "cpu").prepared.kspace)


def test_noise_only_data_have_unit_noise_after_preparation(make_group, rng):
    mixing = complex_normal(rng, 4, 4) + 2 * np.eye(4)
    # Variance goes with the bandwidth 1/dwell; a noise readout sees 0.8 of its band.
    image = np.einsum("ij,fjzyx->fizyx", mixing, complex_normal(rng, 1, 4, 1, 128, 128)) / np.sqrt(5.0)
    noise = mixing @ complex_normal(rng, 128, 4, 64) * np.sqrt(0.8 / 20.0)
    group = make_group(image.astype(np.complex64), noise=NoiseCovariance.of(noise.astype(np.complex64), 20.0))

    preparation = prepare(group, Parameters(), "cpu")

    assert preparation.prepared.noise_std == 1.0
    assert preparation.prepared.noise_is_measured
    assert preparation.warnings == []
    power = preparation.prepared.kspace.abs().square().mean((0, 2, 3, 4))
    torch.testing.assert_close(power, torch.ones(4), atol=0.06, rtol=0)


def test_dwell_time_changes_the_noise_but_not_the_brightness_of_the_result(make_group, rng):
    group = make_group(noise=NoiseCovariance.of(complex_normal(rng, 16, 4, 64), 20.0))
    slower = replace(group, headers=group.headers.copy())
    slower.headers["sample_time_us"] *= 4

    first, second = prepare(group, Parameters(), "cpu"), prepare(slower, Parameters(), "cpu")

    torch.testing.assert_close(second.prepared.kspace, 2 * first.prepared.kspace)
    torch.testing.assert_close(
        second.prepared.kspace * second.signal_scale[:, None, None, None, None],
        first.prepared.kspace * first.signal_scale[:, None, None, None, None],
    )


def test_without_a_noise_scan_the_level_comes_from_the_oversampling_margin(make_group, rng):
    image = np.zeros((1, 4, 1, 64, 128), np.complex64)
    image[..., 40:88] = 1000
    signal = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    group = make_group((signal + 0.3 * complex_normal(rng, *signal.shape)).astype(np.complex64))

    prepared = prepare(group, Parameters(), "cpu").prepared

    assert prepared.noise_std == pytest.approx(0.3, rel=0.1)
    assert not prepared.noise_is_measured


def test_the_level_of_a_single_readout_is_found_in_averaged_data(make_group, rng):
    n_averages = 4
    summed = sum(complex_normal(rng, 1, 4, 1, 64, 128) for _ in range(n_averages))
    group = make_group(summed, counts=np.full((1, 1, 64), n_averages, np.float32))

    assert prepare(group, Parameters(), "cpu").prepared.noise_std == pytest.approx(1, rel=0.05)


def test_a_noise_scan_that_contradicts_the_data_is_reported(make_group, rng):
    group = make_group(
        0.01 * complex_normal(rng, 1, 4, 1, 64, 128), noise=NoiseCovariance.of(complex_normal(rng, 64, 4, 64), 5.0)
    )

    assert "times the noise" in prepare(group, Parameters(), "cpu").warnings[0]


def test_a_noise_scan_quieter_than_the_data_is_reported(make_group, rng):
    group = make_group(
        100 * complex_normal(rng, 1, 4, 1, 64, 128), noise=NoiseCovariance.of(complex_normal(rng, 64, 4, 64), 5.0)
    )

    assert "too small" in prepare(group, Parameters(), "cpu").warnings[0]


@pytest.mark.parametrize("dwell_us", [0.0, np.nan])
def test_image_readouts_without_a_dwell_time_are_reported(make_group, rng, dwell_us):
    group = make_group(
        complex_normal(rng, 1, 4, 1, 64, 128), noise=NoiseCovariance.of(complex_normal(rng, 64, 4, 64), 5.0)
    )
    headers = group.headers.copy()
    headers["sample_time_us"] = dwell_us

    preparation = prepare(replace(group, headers=headers), Parameters(), "cpu")

    assert any("dwell time of image readouts" in text for text in preparation.warnings)


def test_calibration_is_the_dense_centre_around_the_centre_of_kspace(make_group):
    counts = np.zeros((1, 1, 64), np.float32)
    counts[0, 0, 2::4] = 1
    counts[0, 0, 25:41] = 1  # 7 lines before the centre at 32, 9 from it on: 15 lines have their centre at 7
    kspace = np.zeros((1, 2, 1, 64, 32), np.complex64)
    kspace[0, :, 0, 32, 16] = 5
    group = make_group(kspace, counts=counts)

    calibration = prepare(group, RAW, "cpu").prepared.calibration

    assert calibration is not None
    assert calibration.shape == (2, 1, 15, 16)
    assert int(calibration[0].abs().argmax()) == 7 * 16 + 8


def test_flagged_calibration_lines_win_over_what_happens_to_be_dense(make_group):
    flagged = np.zeros((1, 64), bool)
    flagged[0, 22:42] = True
    group = make_group(np.ones((1, 2, 1, 64, 32), np.complex64), calibration_lines=flagged)

    calibration = prepare(group, RAW, "cpu").prepared.calibration

    assert calibration is not None
    assert calibration.shape[2] == 20


def test_separate_calibration_is_averaged_and_whitened_like_the_image(make_group, rng):
    noise = NoiseCovariance.of(complex_normal(rng, 64, 2, 64) * 3, 5.0)
    kspace = complex_normal(rng, 1, 2, 1, 32, 32)
    calibration = Calibration(2 * kspace[0, :, :, 4:28], np.full((1, 24), 2, np.float32))
    counts = np.zeros((1, 1, 32), np.float32)
    counts[0, 0, ::2] = 1
    undersampled = make_group(kspace, counts=counts, noise=noise, calibration=calibration)

    found = prepare(undersampled, Parameters(), "cpu").prepared.calibration
    full = prepare(make_group(kspace, noise=noise), Parameters(), "cpu").prepared.kspace

    assert found is not None
    torch.testing.assert_close(found, full[0, :, :, 4:28], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_lines", [2, 4, 6, 7])
def test_a_separate_calibration_too_small_for_maps_is_not_used_and_reported(make_group, rng, n_lines):
    counts = np.zeros((1, 1, 32), np.float32)
    counts[..., ::2] = 1
    kspace = complex_normal(rng, 1, 2, 1, 32, 64)
    calibration = Calibration(kspace[0, :, :, :n_lines], np.ones((1, n_lines), np.float32))

    found = prepare(make_group(kspace, counts=counts, calibration=calibration), RAW, "cpu")

    assert found.prepared.calibration is None
    assert any("separate calibration" in text for text in found.warnings)


def test_data_without_a_dense_centre_have_no_calibration(make_group):
    counts = np.zeros((1, 1, 32), np.float32)
    counts[0, 0, ::2] = 1

    assert (
        prepare(make_group(np.ones((1, 2, 1, 32, 32), np.complex64), counts=counts), RAW, "cpu").prepared.calibration
        is None
    )


def test_compression_keeps_noise_white_and_image_and_calibration_in_the_same_coils(make_group, rng):
    coils = complex_normal(rng, 6, 1)
    kspace = (coils @ complex_normal(rng, 1, 32 * 64)).reshape(1, 6, 1, 32, 64).astype(np.complex64)

    prepared = prepare(make_group(kspace), Parameters(whiten=False, coil_compression=1), "cpu").prepared

    assert prepared.calibration is not None
    assert prepared.kspace.shape[1] == prepared.calibration.shape[0] == 1
    torch.testing.assert_close(prepared.calibration[:, 0], prepared.kspace[0, :, 0], atol=1e-4, rtol=1e-3)


def test_an_asymmetric_echo_leaves_columns_unsampled_and_out_of_the_calibration(make_group):
    kspace = np.ones((1, 2, 1, 16, 64), np.complex64)
    kspace[..., :16] = 0

    prepared = prepare(make_group(kspace, readout_extent=(16, 64)), RAW, "cpu").prepared

    assert prepared.readout_sampled.tolist() == [False] * 8 + [True] * 24
    assert not bool(prepared.kspace[..., :8].any())
    assert prepared.calibration is not None
    assert prepared.calibration.shape[-1] == 16


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, np.nan)])
def test_samples_that_are_not_finite_are_refused(make_group, value):
    kspace = np.ones((1, 2, 1, 16, 32), np.complex64)
    kspace[0, 1, 0, 3, 4] = value

    with pytest.raises(ReconstructionError, match="not finite"):
        prepare(make_group(kspace), Parameters(), "cpu")


def test_a_group_without_lines_is_refused(make_group):
    with pytest.raises(ReconstructionError, match="no line"):
        prepare(make_group(counts=np.zeros((1, 1, 16), np.float32)), Parameters(), "cpu")


def test_lines_that_dwell_longer_count_like_more_readouts(make_group, rng):
    dwell_us = np.full((1, 1, 64), 5.0, np.float32)
    dwell_us[0, 0, ::2], dwell_us[0, 0, 5] = 20.0, 0.0
    noise = NoiseCovariance.of(complex_normal(rng, 64, 2, 64), 5.0)
    group = make_group(complex_normal(rng, 1, 2, 1, 64, 64), noise=noise, dwell_us=dwell_us)
    group.headers["sample_time_us"] = 20.0

    preparation = prepare(group, Parameters(), "cpu")

    expected = np.where(np.arange(64) % 2 == 0, 4.0, 1.0)
    np.testing.assert_array_equal(preparation.prepared.counts[0, 0].numpy(), expected)
    # In units of the shortest dwell time, so that no line counts for less than one readout.
    assert float(preparation.signal_scale[0]) == pytest.approx(1 / np.sqrt(BANDWIDTH))
    assert any("different dwell times" in text for text in preparation.warnings)


def test_lines_of_different_dwell_times_have_the_noise_that_their_counts_promise(make_group, rng):
    dwell_us = np.where(np.arange(256) % 4 == 0, 15.0, 5.0).astype(np.float32)
    kspace = complex_normal(rng, 1, 2, 1, 256, 128) / np.sqrt(dwell_us)[:, None]
    noise = NoiseCovariance.of(complex_normal(rng, 64, 2, 256) * np.sqrt(BANDWIDTH / 20.0), 20.0)
    group = make_group(kspace.astype(np.complex64), noise=noise, dwell_us=dwell_us[None, None])

    prepared = prepare(group, Parameters(), "cpu").prepared

    power = prepared.kspace[0].abs().square().mean((0, 1, 3)) * prepared.counts[0, 0] / prepared.noise_std**2
    assert float(power[::4].mean()) == pytest.approx(1, abs=0.05)
    assert float(power[1::4].mean()) == pytest.approx(1, abs=0.05)


def test_a_given_noise_level_is_taken_for_measured_noise_of_white_data(make_group, rng):
    group = make_group(1.5 * complex_normal(rng, 1, 4, 1, 64, 128))

    preparation = prepare(group, Parameters(noise_level=1.5), "cpu")

    assert preparation.prepared.noise_std == 1.5
    assert preparation.prepared.noise_is_measured
    assert preparation.noise_source is NoiseSource.GIVEN
    assert preparation.warnings == []


@pytest.mark.parametrize(("level", "text"), [(0.1, "15.0 times"), (15.0, "10.0 times")])
def test_a_given_noise_level_that_the_data_contradict_is_doubted(make_group, rng, level, text):
    group = make_group(1.5 * complex_normal(rng, 1, 4, 1, 64, 128))

    (warning,) = prepare(group, Parameters(noise_level=level), "cpu").warnings

    assert "noise_level" in warning
    assert float(re.search(r"([\d.]+) times", warning)[1]) == pytest.approx(float(text.split()[0]), rel=0.1)


def test_a_given_noise_level_wins_over_noise_readouts_and_says_so(make_group, rng):
    kspace = complex_normal(rng, 1, 4, 1, 64, 128)
    noise = NoiseCovariance.of(3 * complex_normal(rng, 64, 4, 64), 5.0)

    preparation = prepare(make_group(kspace, noise=noise), Parameters(noise_level=1.0), "cpu")
    plain = prepare(make_group(kspace), Parameters(whiten=False), "cpu")

    torch.testing.assert_close(preparation.prepared.kspace, plain.prepared.kspace)
    assert any("noise_level" in text for text in preparation.warnings)


@pytest.mark.parametrize(
    ("parameters", "source"),
    [
        (Parameters(), NoiseSource.DEPENDENCY),
        (Parameters(whiten=False), NoiseSource.ESTIMATED),
        (Parameters(noise_level=1.0), NoiseSource.GIVEN),
    ],
)
def test_it_is_known_where_the_noise_level_comes_from(make_group, rng, parameters, source):
    noise = replace(NoiseCovariance.of(complex_normal(rng, 64, 4, 64), 5.0), source=NoiseSource.DEPENDENCY)

    assert prepare(make_group(noise=noise), parameters, "cpu").noise_source is source


@pytest.mark.localdata
@pytest.mark.skipif(not SIEMENS.exists(), reason="the scanner's file is not here")
def test_noise_of_a_real_scanner_whitened_has_the_identity_as_covariance(rng):
    with h5py.File(SIEMENS) as file:
        records = file["dataset/data"][:]
    (noise,) = [
        each["data"].view(np.complex64).reshape(14, -1) for each in records if int(each["head"]["flags"]) >> 18 & 1
    ]
    first, second = noise[None, :, :192], noise[:, 192:].astype(np.complex128)

    model, _ = estimate_noise_model(NoiseCovariance.of(noise[None], 20.0), 14, 0.793)
    half, _ = estimate_noise_model(NoiseCovariance.of(first, 20.0), 14, 0.793)
    assert model is not None
    assert half is not None

    white = model.whitening @ noise
    np.testing.assert_allclose(white @ white.conj().T / 383, np.eye(14), atol=1e-4)
    # Half of the samples whitened by the other half, beside as many samples of white noise.
    distance = _distance_from_identity(half.whitening, second)
    drawn = []
    for _ in range(300):
        white = complex_normal(rng, 14, 384).astype(np.complex128)
        own = np.linalg.inv(np.linalg.cholesky(white[:, :192] @ white[:, :192].conj().T / 191))
        drawn.append(_distance_from_identity(own, white[:, 192:]))
    low, middle, high = np.percentile(drawn, [0.5, 50, 99.5])
    print(f"|C - 1| is {distance:.3f}; of white noise {middle:.3f} ({low:.3f} to {high:.3f})")
    assert low < distance < high


def _distance_from_identity(whitening, samples):
    white = whitening @ samples
    return float(np.linalg.norm(white @ white.conj().T / samples.shape[1] - np.eye(len(samples))))


@pytest.mark.localdata
@pytest.mark.skipif(not SIEMENS.exists(), reason="the scanner's file is not here")
def test_noise_of_a_real_scanner_has_unit_variance_next_to_the_field_of_view():
    with h5py.File(SIEMENS) as file:
        records = file["dataset/data"][:]
    readouts = [(each["head"], each["data"].view(np.complex64).reshape(14, -1)) for each in records]
    is_noise = [bool(int(head["flags"]) >> 18 & 1) for head, _ in readouts]
    ((noise_head, noise),) = [readout for readout, is_it in zip(readouts, is_noise, strict=True) if is_it]
    lines = np.stack([data for (_, data), is_it in zip(readouts, is_noise, strict=True) if not is_it])
    dwell_us = next(
        float(head["sample_time_us"]) for (head, _), is_it in zip(readouts, is_noise, strict=True) if not is_it
    )

    model, warnings = estimate_noise_model(
        NoiseCovariance.of(noise[None], float(noise_head["sample_time_us"])), 14, 0.793
    )
    assert model is not None
    white = torch.from_numpy((model.whitening @ lines * model.scale(dwell_us)).astype(np.complex64))
    _, margin = split_columns(white, 192)

    assert warnings == []
    assert float(margin.abs().square().mean((0, 1)).median()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("field_of_view_mm", [(32.0, 64.0, 4.0), (64.0, 64.0, 4.0), (128.0, 128.0, 4.0)])
def test_calibration_of_another_encoding_space_is_fitted_to_the_field_of_view(make_group, rng, field_of_view_mm):
    """A smooth object within both fields of view, measured on two grids, gives one calibration region."""
    group = make_group(complex_normal(rng, 1, 2, 1, 32, 32))
    own = group.scan.encodings[0]
    assert own.encoded.field_of_view_mm[:2] == (64.0, 64.0)
    spacing_mm = 2.0  # of both grids, so that the regions hold the same frequencies
    n_x, n_y = (round(length / spacing_mm) for length in field_of_view_mm[:2])

    def blob(size_y: int, size_x: int) -> torch.Tensor:
        y, x = torch.arange(size_y) - size_y // 2, torch.arange(size_x) - size_x // 2
        return torch.exp(-0.5 * ((y[:, None] - 3) ** 2 + (x - 2) ** 2) / 4).to(torch.complex64)[None, None]

    lines = to_kspace(blob(n_y, n_x).expand(2, -1, -1, -1), (-2, -1)).numpy()
    space = replace(own, encoded=Space((n_x, n_y, 1), field_of_view_mm))
    changed = replace(
        group,
        scan=replace(group.scan, encodings=(own, space)),
        calibration=Calibration(np.ascontiguousarray(lines), np.ones((1, n_y), np.float32), encoding=1),
    )

    found = prepare(changed, RAW, "cpu").prepared.calibration

    assert found is not None
    torch.testing.assert_close(to_image(found, (-2, -1))[0], blob(32, 16)[0], atol=1e-3, rtol=1e-3)
