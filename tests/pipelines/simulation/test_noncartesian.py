"""Simulated spokes and spirals: exact samples of the object, at the coordinates that are sent."""

from __future__ import annotations

from collections.abc import Callable

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.scan_header import TrajectoryType
from pipelines.simulate import centred_fft
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation import trajectories
from pipelines.simulation.noncartesian import Shots, direct_transform, simulate_noncartesian
from pipelines.simulation.scan import SimulatedScan

KINDS = [TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE, TrajectoryType.SPIRAL]


def image_readouts(scan: SimulatedScan) -> tuple[NDArray[np.void], NDArray[np.complex64], NDArray[np.float32] | None]:
    batches = [b for b in scan.batches if not flagged(b.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).any()]
    sent = None
    if batches[0].trajectory is not None:
        sent = np.concatenate([b.trajectory.view(np.float32).reshape(len(b), b.n_samples, 2) for b in batches])
    samples = np.concatenate([b.complex_samples() for b in batches])
    return np.concatenate([b.headers for b in batches]), samples, sent


def random_image(rng: np.random.Generator, *shape: int) -> NDArray[np.complex64]:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@given(st.integers(3, 12), st.integers(3, 12))
@settings(max_examples=20, deadline=None)
def test_direct_transform_on_a_grid_is_the_fourier_transform(n_y: int, n_x: int) -> None:
    image = random_image(np.random.default_rng(n_y * n_x), 2, n_y, n_x)
    ky, kx = np.meshgrid((np.arange(n_y) - n_y // 2) / n_y, (np.arange(n_x) - n_x // 2) / n_x, indexing="ij")
    values = direct_transform(image, np.stack([kx, ky], axis=-1))
    np.testing.assert_allclose(values.swapaxes(0, 1), centred_fft(image), atol=1e-5)


def test_direct_transform_is_the_plain_sum() -> None:
    rng = np.random.default_rng(5)
    image, points = random_image(rng, 2, 9, 8), rng.uniform(-0.5, 0.5, (3, 4, 2))
    values = direct_transform(image, points)
    for readout, sample in np.ndindex(3, 4):
        kx, ky = points[readout, sample]
        plain = sum(image[:, y, x] * np.exp(-2j * np.pi * (kx * (x - 4) + ky * (y - 4))) for y, x in np.ndindex(9, 8))
        np.testing.assert_allclose(values[readout, :, sample], plain / np.sqrt(72), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_object_at_the_coordinates_sent(kind: TrajectoryType) -> None:
    anatomy = np.random.default_rng(0).random((2, 2, 16, 16)).astype(np.float32)
    protocol = Protocol(n_coils=2, noise_std=0, frame_counter=FrameCounter.PHASE)
    scan = simulate_noncartesian(anatomy, protocol, Shots(kind, 5))
    headers, samples, sent = image_readouts(scan)
    assert sent is not None
    for header, readout, points in zip(headers, samples, sent, strict=True):
        frame, number = int(header["idx"]["phase"]), int(header["idx"]["slice"])
        expected = direct_transform(scan.truth.image[frame, number] * scan.truth.maps[number], points[None])
        np.testing.assert_allclose(readout, expected[0], atol=1e-5)
        assert header["trajectory_dimensions"] == 2
        np.testing.assert_allclose(points[header["center_sample"]], 0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_header_names_the_trajectory(schema_errors: Callable[[bytes], int], kind: TrajectoryType) -> None:
    scan = simulate_noncartesian(np.ones((12, 12), np.float32), Protocol(n_coils=1, repetitions=2), Shots(kind, 4))
    assert schema_errors(scan.header) == 0
    encoding = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0]
    headers, _, _ = image_readouts(scan)
    assert encoding.trajectory.value == kind.value
    assert headers["idx"]["kspace_encode_step_1"].max() == encoding.encodingLimits.kspace_encoding_step_1.maximum


def test_golden_angles_follow_from_the_counter_alone() -> None:
    scan = simulate_noncartesian(
        np.ones((12, 12), np.float32), Protocol(n_coils=1, repetitions=3), Shots(TrajectoryType.GOLDENANGLE, 4)
    )
    headers, _, sent = image_readouts(scan)
    assert sent is not None
    angle = headers["idx"]["kspace_encode_step_1"] * np.pi * 2 / (1 + np.sqrt(5))
    np.testing.assert_allclose(sent[:, -1, 0] * np.sin(angle), sent[:, -1, 1] * np.cos(angle), atol=1e-6)
    assert (sent[:, -1, 0] * np.cos(angle) + sent[:, -1, 1] * np.sin(angle) > 0.4).all()


def test_trajectory_can_be_left_out_of_spokes() -> None:
    anatomy = np.ones((12, 12), np.float32)
    with_it = simulate_noncartesian(anatomy, Protocol(n_coils=1), Shots(n_shots=4))
    without = simulate_noncartesian(anatomy, Protocol(n_coils=1), Shots(n_shots=4, sends_trajectory=False))
    headers, samples, sent = image_readouts(without)
    assert sent is None
    assert not headers["trajectory_dimensions"].any()
    np.testing.assert_array_equal(samples, image_readouts(with_it)[1])


def test_spokes_run_through_the_centre_at_even_angles() -> None:
    spokes = trajectories.radial(6, 16)
    np.testing.assert_allclose(spokes[0, :, 1], 0, atol=1e-7)
    np.testing.assert_allclose(spokes[0, :, 0], (np.arange(16) - 8) / 16)
    np.testing.assert_allclose(np.degrees(np.arctan2(spokes[:, -1, 1], spokes[:, -1, 0])), np.arange(6) * 30, atol=1e-4)


@pytest.mark.parametrize("n_interleaves", [1, 4, 16])
def test_interleaves_of_a_spiral_fill_kspace_to_nyquist(n_interleaves: int) -> None:
    matrix = 32
    points = trajectories.spiral(n_interleaves, n_interleaves, matrix, 2.0).reshape(-1, 2)
    ky, kx = np.meshgrid(*[(np.arange(matrix) - matrix // 2) / matrix] * 2, indexing="ij")
    grid = np.stack([kx, ky], axis=-1).reshape(-1, 2)
    grid = grid[np.linalg.norm(grid, axis=1) < 0.45]
    nearest = np.linalg.norm(grid[:, None] - points[None], axis=-1).min(axis=1)
    assert nearest.max() < 0.75 / matrix
    steps = np.linalg.norm(np.diff(trajectories.spiral(n_interleaves, 1, matrix, 2.0)[0], axis=0), axis=1)
    assert steps[len(steps) // 2 :].max() < 1 / matrix


def test_fewer_interleaves_are_some_of_all() -> None:
    every, some = (trajectories.spiral(12, measured, 32, 1.0) for measured in (12, 4))
    np.testing.assert_allclose(some, every[::3], atol=1e-6)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        simulate_noncartesian(np.ones((12, 10), np.float32))
    with pytest.raises(ValueError, match="acceleration is for Cartesian lines"):
        simulate_noncartesian(np.ones((12, 12), np.float32), Protocol(acceleration=2))
    with pytest.raises(ValueError, match="kind"):
        Shots(TrajectoryType.CARTESIAN)
    with pytest.raises(ValueError, match="sends_trajectory"):
        Shots(TrajectoryType.SPIRAL, sends_trajectory=False)
    with pytest.raises(ValueError, match="n_shots"):
        Shots(n_shots=0)


def test_seed_decides_everything_random() -> None:
    first, again = (simulate_noncartesian(np.ones((12, 12), np.float32), Protocol(seed=2)) for _ in range(2))
    assert [b.samples.tobytes() for b in first.batches] == [b.samples.tobytes() for b in again.batches]
