"""Simulated volumes hold their object, their sampling and a valid header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import birdcage_coils_3d
from pipelines.scan_header import CalibrationMode
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.volume import VolumePattern, VolumeSampling, simulate_volume

Place = Callable[..., Any]
SHAPES = st.tuples(st.integers(4, 9), st.integers(6, 13), st.integers(6, 13))
VOLUMES = st.builds(
    VolumeSampling,
    pattern=st.sampled_from(VolumePattern),
    acceleration_z=st.integers(1, 2),
    caipi_shift=st.integers(0, 2),
    calibration_partitions=st.just(2),
    partial_fourier_z=st.sampled_from([1.0, 0.75]),
    slice_oversampling=st.sampled_from([0.0, 0.3]),
    is_elliptical=st.booleans(),
)
PROTOCOLS = st.builds(
    Protocol,
    n_coils=st.integers(1, 3),
    acceleration=st.integers(1, 2),
    calibration_lines=st.just(2),
    calibration_mode=st.sampled_from(
        [CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL, CalibrationMode.INTERLEAVED]
    ),
    averages=st.integers(1, 2),
    repetitions=st.integers(1, 2),
    partial_fourier=st.sampled_from([1.0, 0.75]),
    partial_echo=st.sampled_from([1.0, 0.75]),
    phase_oversampling=st.sampled_from([0.0, 0.25]),
    noise_readouts=st.integers(0, 2),
    noise_samples=st.just(8),
)


@given(SHAPES, st.sampled_from([0.0, 0.4]), st.sampled_from([0.0, 0.3]), st.integers(1, 2))
@settings(max_examples=15, deadline=None)
def test_full_kspace_transforms_back_to_the_object(
    place: Place, coil_images: Place, shape: tuple[int, int, int], along_z: float, along_y: float, oversampling: int
) -> None:
    anatomy = np.random.default_rng(1).random(shape).astype(np.float32)
    protocol = Protocol(n_coils=3, noise_std=0, phase_oversampling=along_y, oversampling=oversampling)
    scan = simulate_volume(anatomy, protocol, VolumeSampling(slice_oversampling=along_z))
    (placed,) = place(scan).values()
    images = coil_images(placed.kspace, shape)
    np.testing.assert_allclose(images, scan.truth.image[0] * scan.truth.maps.swapaxes(0, 1), atol=3e-6)
    np.testing.assert_allclose(np.sqrt((np.abs(images) ** 2).sum(axis=0)), anatomy, atol=3e-6)


@given(PROTOCOLS, VOLUMES, SHAPES)
@settings(max_examples=25, deadline=None)
def test_header_is_valid_and_counts_are_what_was_sent(
    schema_errors: Callable[[bytes], int],
    place: Place,
    protocol: Protocol,
    volume: VolumeSampling,
    shape: tuple[int, int, int],
) -> None:
    scan = simulate_volume(np.ones(shape, np.float32), protocol, volume)
    assert schema_errors(scan.header) == 0
    placed = place(scan)
    assert len(placed) == protocol.repetitions
    for key, one in placed.items():
        np.testing.assert_array_equal(one.counts, scan.truth.counts[key[4]])


def test_calibration_block_is_flagged_in_both_directions() -> None:
    protocol = Protocol(n_coils=2, acceleration=2, calibration_lines=6, noise_readouts=0)
    volume = VolumeSampling(acceleration_z=2, caipi_shift=1, calibration_partitions=4)
    (batch, *others) = simulate_volume(np.ones((12, 16, 8), np.float32), protocol, volume).batches
    headers = np.concatenate([batch.headers, *(other.headers for other in others)])
    is_calibration = flagged(
        headers, AcquisitionFlag.IS_PARALLEL_CALIBRATION, AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING
    )
    idx = headers["idx"][is_calibration]
    block = set(zip(idx["kspace_encode_step_2"].tolist(), idx["kspace_encode_step_1"].tolist(), strict=True))
    assert block == {(z, y) for z in range(4, 8) for y in range(5, 11)}
    assert int(flagged(headers, AcquisitionFlag.LAST_IN_ENCODE_STEP2).sum()) == 1


def test_external_calibration_counts_from_elsewhere() -> None:
    protocol = Protocol(
        n_coils=2, acceleration=2, calibration_lines=4, calibration_mode=CalibrationMode.EXTERNAL, calibration_start=90
    )
    scan = simulate_volume(np.ones((4, 12, 8), np.float32), protocol)
    headers = np.concatenate([batch.headers for batch in scan.batches])
    only = flagged(headers, AcquisitionFlag.IS_PARALLEL_CALIBRATION)
    assert set(headers["idx"]["kspace_encode_step_1"][only].tolist()) == {90, 91, 92, 93}
    mode = ismrmrd.xsd.CreateFromDocument(scan.header).encoding[0].parallelImaging.calibrationMode
    assert mode.value == "external"


def test_coils_on_two_rings_tell_partitions_apart() -> None:
    maps = birdcage_coils_3d(8, (12, 16, 16))
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(axis=0), 1, atol=1e-5)
    # an alias pair along z, in the middle of the plane: two columns of sensitivities that are not parallel
    pair = maps[:, [2, 8], 8, 8]
    assert abs(np.vdot(pair[:, 0], pair[:, 1])) < 0.9


def test_seed_decides_everything_random() -> None:
    anatomy = np.ones((8, 16, 8), np.float32)
    volume = VolumeSampling(VolumePattern.POISSON)
    first, again, other = (
        simulate_volume(anatomy, Protocol(seed=seed, acceleration=3, calibration_lines=4), volume) for seed in (3, 3, 4)
    )
    assert [b.samples.tobytes() for b in first.batches] == [b.samples.tobytes() for b in again.batches]
    assert [b.headers.tobytes() for b in first.batches] == [b.headers.tobytes() for b in again.batches]
    assert (first.truth.counts != other.truth.counts).any()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"acceleration_z": 0}, "acceleration_z"),
        ({"partial_fourier_z": 0.4}, "partial_fourier_z"),
        ({"slice_oversampling": -1.0}, "slice_oversampling"),
    ],
)
def test_impossible_volumes_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VolumeSampling(**change)


def test_objects_that_are_no_volume_are_refused() -> None:
    with pytest.raises(ValueError, match="axes"):
        simulate_volume(np.ones((8, 8), np.float32))
