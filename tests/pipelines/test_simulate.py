"""A simulated scan holds what it says: a valid header, the object, the flags, the noise."""

from __future__ import annotations

from collections.abc import Callable

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import birdcage_coils, draw_noise, head_phantom, noise_covariance, smooth_phase
from pipelines.scan_header import CalibrationMode
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import FrameCounter, Geometry, Pattern, Protocol, SliceOrder

SchemaErrors = Callable[[bytes], int]

PROTOCOLS = st.builds(
    Protocol,
    n_coils=st.integers(1, 5),
    pattern=st.sampled_from(Pattern),
    acceleration=st.integers(1, 4),
    calibration_lines=st.integers(0, 8),
    calibration_mode=st.sampled_from([CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE]),
    slice_order=st.sampled_from(SliceOrder),
    repetitions=st.integers(1, 3),
    frame_counter=st.sampled_from(FrameCounter),
    averages=st.integers(1, 2),
    oversampling=st.integers(1, 2),
    phase_oversampling=st.sampled_from([0.0, 0.25]),
    partial_fourier=st.sampled_from([1.0, 0.75]),
    partial_echo=st.sampled_from([1.0, 0.8]),
    noise_readouts=st.integers(0, 3),
    noise_samples=st.just(16),
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(12, 21), st.integers(12, 21))


def all_headers(scan: SimulatedScan) -> NDArray[np.void]:
    return np.concatenate([batch.headers for batch in scan.batches])


def imaging_headers(scan: SimulatedScan) -> NDArray[np.void]:
    headers = all_headers(scan)
    return headers[~flagged(headers, AcquisitionFlag.IS_NOISE_MEASUREMENT)]


def counts_of(headers: NDArray[np.void], flag: AcquisitionFlag) -> int:
    return int(flagged(headers, flag).sum())


@given(PROTOCOLS, SHAPES)
@settings(max_examples=25, deadline=None)
def test_header_is_valid_against_the_schema(
    schema_errors: SchemaErrors, protocol: Protocol, shape: tuple[int, int, int]
) -> None:
    scan = simulate(np.ones(shape, np.float32), protocol)
    assert schema_errors(scan.header) == 0


def test_schema_check_refuses_an_invalid_header(schema_errors: SchemaErrors) -> None:
    header = simulate(np.ones((8, 8), np.float32)).header
    assert schema_errors(header.replace(b"cartesian", b"cartesien")) != 0


@given(PROTOCOLS, SHAPES)
@settings(max_examples=25, deadline=None)
def test_ismrmrd_python_reads_the_header(protocol: Protocol, shape: tuple[int, int, int]) -> None:
    scan = simulate(np.ones(shape, np.float32), protocol)
    parsed = ismrmrd.xsd.CreateFromDocument(scan.header)
    encoding = parsed.encoding[0]
    limits = encoding.encodingLimits
    step1 = imaging_headers(scan)["idx"]["kspace_encode_step_1"]
    assert encoding.reconSpace.matrixSize.y == shape[1]
    assert encoding.encodedSpace.matrixSize.x == shape[2] * protocol.oversampling
    assert limits.slice.maximum == shape[0] - 1
    assert getattr(limits, protocol.frame_counter.value).maximum == protocol.repetitions - 1
    assert step1.max() <= limits.kspace_encoding_step_1.maximum
    assert parsed.acquisitionSystemInformation.receiverChannels == protocol.n_coils


@given(PROTOCOLS, SHAPES)
@settings(max_examples=40, deadline=None)
def test_order_flags_mark_the_ends_of_every_loop_once(protocol: Protocol, shape: tuple[int, int, int]) -> None:
    scan = simulate(np.ones(shape, np.float32), protocol)
    headers = imaging_headers(scan)
    n_slices, n_frames = shape[0], protocol.repetitions
    first_in_frame, last_in_frame = protocol.frame_counter.flags
    assert counts_of(headers, AcquisitionFlag.FIRST_IN_SLICE) == n_slices * n_frames
    assert counts_of(headers, AcquisitionFlag.LAST_IN_SLICE) == n_slices * n_frames
    assert counts_of(headers, AcquisitionFlag.LAST_IN_ENCODE_STEP1) == n_slices * n_frames * protocol.averages
    assert counts_of(headers, first_in_frame) == counts_of(headers, last_in_frame) == n_frames
    assert [bool(value) for value in flagged(headers[-1:], AcquisitionFlag.LAST_IN_MEASUREMENT)] == [True]
    assert counts_of(headers, AcquisitionFlag.LAST_IN_MEASUREMENT) == 1
    for index in np.flatnonzero(flagged(headers, AcquisitionFlag.LAST_IN_SLICE)):
        later = headers[index + 1 :]["idx"]
        same = (later["slice"] == headers[index]["idx"]["slice"]) & (
            later[protocol.frame_counter.value] == headers[index]["idx"][protocol.frame_counter.value]
        )
        assert not same.any()


def test_order_flags_can_be_left_out() -> None:
    headers = all_headers(simulate(np.ones((8, 8), np.float32), Protocol(order_flags=False, noise_readouts=0)))
    assert not headers["flags"].any()


@given(PROTOCOLS, SHAPES)
@settings(max_examples=25, deadline=None)
def test_readouts_are_numbered_in_time_with_agreeing_sizes(protocol: Protocol, shape: tuple[int, int, int]) -> None:
    scan = simulate(np.ones(shape, np.float32), protocol)
    headers = all_headers(scan)
    assert headers["scan_counter"].tolist() == list(range(1, scan.n_readouts + 1))
    assert np.all(np.diff(headers["acquisition_time_stamp"].astype(np.int64)) >= 0)
    for batch in scan.batches:
        assert set(batch.headers["number_of_samples"]) == {batch.n_samples}
        assert set(batch.headers["active_channels"]) == {batch.n_coils} == {protocol.n_coils}


def place(scan: SimulatedScan, flag_only: AcquisitionFlag | None = None) -> NDArray[np.complex128]:
    """K-space on the encoded grid as limits and centre say, averages summed: frames, slices, coils, y, x."""
    encoding = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0]
    matrix, step1 = encoding.encodedSpace.matrixSize, encoding.encodingLimits.kspace_encoding_step_1
    frames, slices = scan.truth.counts.shape[:2]
    kspace = np.zeros((frames, slices, scan.protocol.n_coils, matrix.y, matrix.x), np.complex128)
    counter = scan.protocol.frame_counter.value
    for batch in scan.batches:
        for header, samples in zip(batch.headers, batch.complex_samples(), strict=True):
            is_calibration = bool(flagged(header.reshape(1), AcquisitionFlag.IS_PARALLEL_CALIBRATION)[0])
            if flagged(header.reshape(1), AcquisitionFlag.IS_NOISE_MEASUREMENT)[0]:
                continue
            if is_calibration and scan.protocol.calibration_mode is CalibrationMode.SEPARATE:
                continue
            idx = header["idx"]
            line = int(idx["kspace_encode_step_1"]) + matrix.y // 2 - step1.center
            first = matrix.x // 2 - int(header["center_sample"])
            kspace[int(idx[counter]), int(idx["slice"]), :, line, first : first + samples.shape[-1]] += samples
    return kspace


def inverse(kspace: NDArray[np.complex128]) -> NDArray[np.complex128]:
    shifted = np.fft.ifftn(np.fft.ifftshift(kspace, axes=(-2, -1)), axes=(-2, -1), norm="ortho")
    return np.fft.fftshift(shifted, axes=(-2, -1))


@given(
    shape=SHAPES,
    oversampling=st.integers(1, 2),
    phase_oversampling=st.sampled_from([0.0, 0.3]),
    order=st.sampled_from(SliceOrder),
    averages=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_full_kspace_transforms_back_to_the_object(
    shape: tuple[int, int, int], oversampling: int, phase_oversampling: float, order: SliceOrder, averages: int
) -> None:
    anatomy = np.random.default_rng(1).random(shape).astype(np.float32)
    protocol = Protocol(
        n_coils=3, noise_std=0, oversampling=oversampling, phase_oversampling=phase_oversampling, slice_order=order,
        averages=averages,
    )  # fmt: skip
    scan = simulate(anatomy, protocol)
    image = inverse(place(scan)) / averages
    n_y, n_x = image.shape[-2:]
    y, x = n_y // 2 - shape[1] // 2, n_x // 2 - shape[2] // 2
    coil_images = image[0, :, :, y : y + shape[1], x : x + shape[2]]
    np.testing.assert_allclose(coil_images, scan.truth.image[0][:, None] * scan.truth.maps, atol=2e-6)
    np.testing.assert_allclose(np.sqrt((np.abs(coil_images) ** 2).sum(axis=1)), anatomy, atol=2e-6)


@given(PROTOCOLS, SHAPES)
@settings(max_examples=25, deadline=None)
def test_truth_counts_are_the_lines_that_were_sent(protocol: Protocol, shape: tuple[int, int, int]) -> None:
    scan = simulate(np.ones(shape, np.float32), protocol)
    sent = np.abs(place(scan)).sum(axis=(2, 4)) > 0
    np.testing.assert_array_equal(sent, scan.truth.counts > 0)


def test_regular_pattern_measures_every_third_line_and_the_calibration_region() -> None:
    scan = simulate(head_phantom(1, 96, 64), Protocol(acceleration=3, calibration_lines=24, noise_readouts=0))
    headers = imaging_headers(scan)
    lines = headers["idx"]["kspace_encode_step_1"].astype(int)
    both = set(lines[flagged(headers, AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING)])
    only = set(lines[flagged(headers, AcquisitionFlag.IS_PARALLEL_CALIBRATION)])
    assert both | only == set(range(36, 60))
    assert both == {line for line in range(36, 60) if line % 3 == 0}
    assert set(lines) - only == set(range(0, 96, 3))


def test_separate_calibration_lines_come_first_and_only_once() -> None:
    protocol = Protocol(
        acceleration=2, calibration_lines=8, calibration_mode=CalibrationMode.SEPARATE, repetitions=2, noise_readouts=0
    )
    headers = imaging_headers(simulate(np.ones((2, 32, 16), np.float32), protocol))
    calibration = flagged(headers, AcquisitionFlag.IS_PARALLEL_CALIBRATION)
    assert np.flatnonzero(calibration).tolist() == list(range(2 * 8))
    assert len(headers) == 2 * 8 + 2 * 2 * 16


def test_interleaved_slices_alternate_even_before_odd() -> None:
    protocol = Protocol(slice_order=SliceOrder.INTERLEAVED, noise_readouts=0, n_coils=1)
    headers = imaging_headers(simulate(np.ones((5, 12, 12), np.float32), protocol))
    assert headers["idx"]["slice"][:10].tolist() == [0, 2, 4, 1, 3] * 2


def test_random_pattern_differs_between_frames_and_keeps_its_number_of_lines() -> None:
    protocol = Protocol(pattern=Pattern.RANDOM, acceleration=4, calibration_lines=12, repetitions=2, n_coils=1)
    counts = simulate(np.ones((128, 16), np.float32), protocol).truth.counts
    assert counts.sum(axis=-1).tolist() == [[32], [32]]
    assert np.any(counts[0] != counts[1])
    assert np.all(counts[:, :, 58:70] == 1)


def test_partial_echo_starts_late_and_keeps_its_centre() -> None:
    scan = simulate(np.ones((16, 32), np.float32), Protocol(partial_echo=0.75, noise_std=0, n_coils=1))
    header = imaging_headers(scan)[0]
    assert (int(header["number_of_samples"]), int(header["center_sample"])) == (48, 16)


def test_partial_fourier_counts_from_zero_with_an_early_centre() -> None:
    scan = simulate(np.ones((64, 16), np.float32), Protocol(partial_fourier=0.75, n_coils=1))
    limits = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0].encodingLimits.kspace_encoding_step_1
    assert (limits.minimum, limits.maximum, limits.center) == (0, 47, 16)
    assert set(imaging_headers(scan)["idx"]["kspace_encode_step_1"]) == set(range(48))


def test_slices_lie_along_the_slice_direction_of_an_oblique_stack() -> None:
    geometry = Geometry.oblique((10.0, -20.0, 30.0), tilt_deg=25, rotation_deg=15)
    protocol = Protocol(geometry=geometry, slice_thickness_mm=4, slice_gap_mm=1, noise_readouts=0, n_coils=1)
    headers = imaging_headers(simulate(np.ones((3, 12, 12), np.float32), protocol))
    axes = np.array([geometry.read_dir, geometry.phase_dir, geometry.slice_dir])
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(axes[0], axes[1]), axes[2], atol=1e-12)
    for number in range(3):
        positions = headers["position"][headers["idx"]["slice"] == number]
        expected = np.array(geometry.position_mm) + 5 * (number - 1) * axes[2]
        np.testing.assert_allclose(positions, np.broadcast_to(expected, positions.shape), atol=1e-4)


def test_noise_of_readouts_and_noise_scan_have_the_documented_covariance() -> None:
    protocol = Protocol(
        n_coils=4,
        noise_readouts=200,
        noise_samples=512,
        noise_std=0.3,
        dwell_us=4,
        noise_dwell_us=10,
        noise_bandwidth=0.8,
    )
    scan = simulate(np.zeros((512, 128), np.float32), protocol)
    covariance = scan.truth.covariance
    assert np.trace(covariance).real / 4 == pytest.approx(0.09)
    noise = scan.batches[0].complex_samples().transpose(1, 0, 2).reshape(4, -1)
    measured_noise = noise @ noise.conj().T / noise.shape[1]
    raw = np.concatenate([batch.complex_samples() for batch in scan.batches[1:]]).transpose(1, 0, 2).reshape(4, -1)
    measured = raw @ raw.conj().T / raw.shape[1]
    # 1e5 samples: relative standard error of a covariance entry 0.3 %.
    np.testing.assert_allclose(measured, covariance, atol=0.02 * 0.09)
    np.testing.assert_allclose(measured_noise, covariance * 0.8 * 4 / 10, atol=0.02 * 0.09)
    scale = np.sqrt(0.8 * 4 / 10)
    whitened = scale * np.linalg.inv(np.linalg.cholesky(measured_noise)) @ raw
    np.testing.assert_allclose(whitened @ whitened.conj().T / raw.shape[1], np.eye(4), atol=0.03)
    assert abs(np.mean(raw**2)) < 0.01 * 0.09


def test_seed_decides_everything_random() -> None:
    anatomy = head_phantom(1, 24, 24)
    first, again, other = (simulate(anatomy, Protocol(seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(first.batches, again.batches, strict=True))
    assert not np.array_equal(first.batches[1].samples, other.batches[1].samples)


@given(st.integers(1, 70), st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_noise_covariance_is_positive_definite(n_coils: int, correlation: float) -> None:
    covariance = noise_covariance(n_coils, 1.0, np.random.default_rng(n_coils), correlation=correlation)
    np.testing.assert_allclose(covariance, covariance.conj().T, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_channel_mask_has_one_bit_a_coil() -> None:
    scan = simulate(np.ones((12, 12), np.float32), Protocol(n_coils=66, noise_readouts=0))
    mask = imaging_headers(scan)["channel_mask"][0]
    assert (int(mask[0]), int(mask[1]), int(mask[2])) == ((1 << 64) - 1, 3, 0)


def test_coils_have_unit_sum_of_squares_and_differ() -> None:
    maps = birdcage_coils(6, (20, 30))
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(axis=0), 1, atol=1e-5)
    singular = np.linalg.svd(maps.reshape(6, -1), compute_uv=False)
    assert singular[-1] > 0.01 * singular[0]


def test_phantom_and_phase_are_smooth_enough_to_be_an_image() -> None:
    phantom = head_phantom(3, 64, 48)
    assert phantom.min() == 0
    assert 0.5 < phantom.max() <= 1
    phase = smooth_phase((64, 48), np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(phase), 1, atol=1e-6)
    assert np.abs(np.angle(phase[1:] * phase[:-1].conj())).max() < 0.6


def test_whitened_magnitude_is_what_whitened_full_data_show() -> None:
    scan = simulate(head_phantom(1, 32, 32), Protocol(n_coils=4))
    clean = simulate(head_phantom(1, 32, 32), Protocol(n_coils=4), covariance=np.zeros((4, 4), np.complex128))
    image = inverse(place(clean))[0, 0, :, :, 16:48]
    whitened = np.einsum("dc,cyx->dyx", np.linalg.inv(np.linalg.cholesky(scan.truth.covariance)), image)
    combined = np.sqrt((np.abs(whitened) ** 2).sum(axis=0))
    np.testing.assert_allclose(scan.truth.whitened_magnitude()[0, 0], combined, atol=1e-3)


def test_no_noise_means_none() -> None:
    assert not draw_noise(np.zeros((2, 2), np.complex128), (3, 4), np.random.default_rng(0)).any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_coils": 0}, "n_coils"),
        ({"partial_fourier": 0.3}, "partial_fourier"),
        ({"noise_std": -1.0}, "noise_std"),
        ({"dwell_us": 0.0}, "dwell_us"),
        ({"noise_std": float("nan")}, "noise_std"),
        ({"calibration_mode": CalibrationMode.OTHER}, "calibration_mode"),
    ],
)
def test_impossible_protocols_are_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Protocol(**change)


def test_impossible_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="axes"):
        simulate(np.ones(5, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        simulate(np.full((8, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="repeated"):
        simulate(np.ones((2, 1, 8, 8), np.float32), Protocol(repetitions=2))
    with pytest.raises(ValueError, match="maps"):
        simulate(np.ones((8, 8), np.float32), maps=np.ones((1, 1, 8, 8), np.complex64))
