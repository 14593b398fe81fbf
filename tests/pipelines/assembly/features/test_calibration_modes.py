"""Calibration lines: embedded, separate, external, interleaved; in the group, and in the image that `sense` makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ReconstructionError
from pipelines.mrd import AcquisitionFlag
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.scan_header import CalibrationMode
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.disturbances import with_reference
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
ANATOMY = head_phantom(2, 64, 56)


def protocol_of(mode: CalibrationMode, **changes: Any) -> Protocol:
    return Protocol(**{"n_coils": 8, "acceleration": 2, "calibration_lines": 16, "calibration_mode": mode,
                       "noise_std": 0.005, **changes})  # fmt: skip


def test_embedded_calibration_joins_the_image(assemble_as_specified: Fixture) -> None:
    scan = simulate(ANATOMY, protocol_of(CalibrationMode.EMBEDDED))
    groups, assembler = assemble_as_specified(scan)
    for group in groups.values():
        assert group.calibration is None
        assert np.flatnonzero(group.calibration_lines[0]).tolist() == list(range(24, 40))
        assert (group.is_complete, group.expected_lines) == (True, 32)
    assert assembler.counts["calibration"] == 0


@pytest.mark.parametrize(
    ("mode", "start"),
    [(CalibrationMode.SEPARATE, 0), (CalibrationMode.EXTERNAL, 0), (CalibrationMode.EXTERNAL, 65_000)],
)
def test_calibration_measured_apart_lies_around_its_own_centre(
    assemble_as_specified: Fixture, mode: CalibrationMode, start: int
) -> None:
    """External counters start anywhere; the region is found by its least and greatest counter (protocol.md, 2.2)."""
    scan = simulate(ANATOMY, protocol_of(mode, calibration_start=start, noise_std=0))
    groups, assembler = assemble_as_specified(scan)
    full = simulate(ANATOMY, protocol_of(CalibrationMode.EMBEDDED, acceleration=1, noise_std=0))
    assert assembler.counts["calibration"] == 2 * 16
    for key, group in groups.items():
        assert not group.calibration_lines.any()
        assert group.calibration.counts.tolist() == [[1] * 16]
        lines = np.concatenate([b.complex_samples()[b.headers["idx"]["slice"] == key[1]] for b in full.batches[1:]])[
            24:40
        ]
        np.testing.assert_allclose(group.calibration.kspace[:, 0], lines.swapaxes(0, 1), atol=1e-5)


def test_repeated_calibration_lines_are_summed_with_their_number(assemble: Fixture) -> None:
    def twice(plan: np.ndarray) -> np.ndarray:
        separate = plan["is_separate"]
        return np.concatenate([plan[separate], plan[separate & (plan["line"] < 30)], plan[~separate]])

    scan = simulate(ANATOMY[:1], protocol_of(CalibrationMode.SEPARATE, noise_std=0), edit=twice)
    (group,) = assemble(scan)[0].values()
    assert group.calibration.counts.tolist() == [[2] * 6 + [1] * 10]
    once = simulate(ANATOMY[:1], protocol_of(CalibrationMode.SEPARATE, noise_std=0))
    (other,) = assemble(once)[0].values()
    mean = group.calibration.kspace / group.calibration.counts[None, :, :, None]
    np.testing.assert_allclose(mean, other.calibration.kspace, atol=1e-5)


@pytest.mark.parametrize("mode", [CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL])
def test_image_is_the_truth_whatever_the_mode(reconstruct: Fixture, nrmse: Fixture, mode: CalibrationMode) -> None:
    scan = simulate(ANATOMY, protocol_of(mode, calibration_start=7, calibration_lines=24))
    truth = scan.truth.whitened_magnitude()
    for key, image in reconstruct(scan, "sense").items():
        assert nrmse(image.pixels, truth[0, key[1]], is_scaled=True) < 0.03


@pytest.mark.parametrize("phase_oversampling", [0.0, 0.25])
def test_low_resolution_reference_in_another_space_serves_as_calibration(
    assemble: Fixture, reconstruct: Fixture, nrmse: Fixture, phase_oversampling: float
) -> None:
    """Its field of view is the image's, without oversampling in either direction; maps have to be fitted to that."""
    protocol = protocol_of(CalibrationMode.EXTERNAL, calibration_lines=0, phase_oversampling=phase_oversampling)
    scan = with_reference(simulate(ANATOMY, protocol), (28, 32), flags=[AcquisitionFlag.IS_PARALLEL_CALIBRATION])
    groups, assembler = assemble(scan)
    assert assembler.counts["calibration"] == 2 * 32
    assert {key[0] for key in groups} == {0}
    truth = scan.truth.whitened_magnitude()
    for key, image in reconstruct(scan, "sense").items():
        assert nrmse(image.pixels, truth[0, key[1]], is_scaled=True) < 0.03


def test_frames_of_an_interleaved_scan_are_together_fully_sampled(
    assemble_as_specified: Fixture, coil_images: Fixture
) -> None:
    """Interleaved (TGRAPPA) scans have no calibration lines: each frame shifts the lattice, and the frames add up.

    Each frame is complete with its own lattice; `sense` on one frame alone says what is missing instead of guessing.
    """
    protocol = protocol_of(CalibrationMode.INTERLEAVED, acceleration=3, repetitions=3, noise_std=0, noise_readouts=0)
    scan = simulate(ANATOMY[:1], protocol)
    groups, _ = assemble_as_specified(scan)
    assert [int(group.counts.sum()) for group in groups.values()] == [21, 22, 21]
    assert all(group.is_complete for group in groups.values())
    total = sum(group.kspace[0] for group in groups.values())
    expected = scan.truth.image[0, 0] * scan.truth.maps[0]
    np.testing.assert_allclose(coil_images(total, (1, 64, 56))[:, 0], expected, atol=1e-5)
    with pytest.raises(ReconstructionError, match="adjacent lines around the centre"):
        Pipeline("sense", {}, "cpu")(groups[0, 0, 0, 0, 0, 0], {})


def test_calibration_of_a_volume_lies_in_both_directions(assemble_as_specified: Fixture) -> None:
    volume = VolumeSampling(acceleration_z=2, calibration_partitions=6)
    anatomy = head_phantom(12, 24, 20)
    embedded, _ = assemble_as_specified(simulate_volume(anatomy, protocol_of(CalibrationMode.EMBEDDED), volume))
    (group,) = embedded.values()
    assert np.argwhere(group.calibration_lines).min(axis=0).tolist() == [3, 4]
    assert group.calibration_lines.sum() == 6 * 16
    separate, _ = assemble_as_specified(simulate_volume(anatomy, protocol_of(CalibrationMode.SEPARATE), volume))
    (group,) = separate.values()
    assert group.calibration.counts.shape == (6, 16)
    assert group.calibration.counts.all()
