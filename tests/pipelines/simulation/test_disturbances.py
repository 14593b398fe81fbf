"""What is done to streams leaves everything else as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ismrmrd
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.mrd import NEVER_IMAGING, AcquisitionFlag, flagged
from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from pipelines.simulation import disturbances as disturb
from pipelines.simulation.noncartesian import Shots, simulate_noncartesian
from pipelines.simulation.scan import SimulatedScan

F = AcquisitionFlag
PROTOCOL = Protocol(n_coils=2, acceleration=2, calibration_lines=6, noise_readouts=3, noise_samples=16)

CHANGES: dict[str, Callable[[SimulatedScan], SimulatedScan]] = {
    "mix_in": disturb.mix_in,
    "discards": lambda scan: disturb.with_discards(scan, 3, 5),
    "no_last": disturb.without_last_flags,
    "early_last": lambda scan: disturb.with_early_last_flags(scan, 3),
    "cut": lambda scan: disturb.cut_short(scan, 9),
    "late": lambda scan: disturb.repeated_late(scan, 4),
    "apart": lambda scan: disturb.apart_from_noise(scan)[1],
    "whitened": disturb.whitened,
    "reference": lambda scan: disturb.with_reference(scan, (12, 10)),
}


@pytest.fixture
def scan() -> SimulatedScan:
    return simulate(head_phantom(2, 24, 20), PROTOCOL)


def headers_of(scan: SimulatedScan) -> NDArray[np.void]:
    return np.concatenate([batch.headers for batch in scan.batches])


@pytest.mark.parametrize("name", CHANGES)
def test_change_gives_the_same_bytes_again_and_a_stream_that_holds_together(
    name: str, scan: SimulatedScan, schema_errors: Callable[[bytes], int]
) -> None:
    before = [batch.headers.tobytes() + batch.samples.tobytes() for batch in scan.batches]
    first, again = CHANGES[name](scan), CHANGES[name](scan)
    assert [b.samples.tobytes() for b in first.batches] == [b.samples.tobytes() for b in again.batches]
    assert [b.headers.tobytes() for b in first.batches] == [b.headers.tobytes() for b in again.batches]
    assert [batch.headers.tobytes() + batch.samples.tobytes() for batch in scan.batches] == before
    assert schema_errors(first.header) == 0
    for batch in first.batches:
        assert set(batch.headers["number_of_samples"].tolist()) == {batch.n_samples}
        assert set(batch.headers["active_channels"].tolist()) == {batch.n_coils}
    if name not in {"cut", "apart", "whitened"}:
        assert headers_of(first)["scan_counter"].tolist() == list(range(1, first.n_readouts + 1))


@pytest.mark.parametrize("name", ["mix_in", "discards", "no_last", "early_last"])
def test_image_lines_stay_what_they_were(name: str, scan: SimulatedScan, place: Callable[..., Any]) -> None:
    before, after = place(scan), place(CHANGES[name](scan))
    assert before.keys() == after.keys()
    for key, one in before.items():
        np.testing.assert_array_equal(after[key].kspace, one.kspace)
        np.testing.assert_array_equal(after[key].counts, one.counts)


def test_garbage_of_every_kind_is_mixed_in(scan: SimulatedScan) -> None:
    changed = disturb.mix_in(scan, every=3)
    headers = headers_of(changed)
    for flag in NEVER_IMAGING:
        assert flagged(headers, flag).any()
    foreign = [b for b in changed.batches if flagged(b.headers, *NEVER_IMAGING).any()]
    assert min(np.abs(b.complex_samples()).mean() for b in foreign) > 0.5 * disturb.GARBAGE


def test_discards_of_a_trajectory_are_discarded_with_it() -> None:
    scan = simulate_noncartesian(np.ones((12, 12), np.float32), Protocol(n_coils=1), Shots(n_shots=3))
    changed = disturb.with_discards(scan, 2, 1)
    batch = changed.batches[-1]
    assert batch.trajectory is not None
    points = np.ascontiguousarray(batch.trajectory).view(np.float32).reshape(3, 27, 2)
    own = np.ascontiguousarray(scan.batches[-1].trajectory).view(np.float32).reshape(3, 24, 2)
    np.testing.assert_array_equal(points[:, 2:-1], own)


def test_last_flags_can_be_taken_away_or_come_early(scan: SimulatedScan) -> None:
    assert not (headers_of(disturb.without_last_flags(scan))["flags"] & np.uint64(disturb.LAST_FLAGS)).any()
    headers, early = headers_of(scan), headers_of(disturb.with_early_last_flags(scan, 3))
    places, moved = (np.flatnonzero(flagged(own, F.LAST_IN_SLICE)) for own in (headers, early))
    assert len(moved) == len(places) == 2
    assert (moved < places).all()
    assert set(headers["idx"]["slice"][moved].tolist()) == {0, 1}


def test_noise_becomes_a_measurement_that_the_scan_depends_on(scan: SimulatedScan) -> None:
    noise, image = disturb.apart_from_noise(scan, "12_34_56_7")
    assert (noise.n_readouts, image.n_readouts) == (3, scan.n_readouts - 3)
    own = ismrmrd.xsd.CreateFromDocument(noise.header).measurementInformation.measurementID
    (dependency,) = ismrmrd.xsd.CreateFromDocument(image.header).measurementInformation.measurementDependency
    assert (dependency.dependencyType, dependency.measurementID) == ("Noise", "12_34_56_7")
    assert own == "12_34_56_7"


def test_whitened_data_have_noise_of_unit_variance() -> None:
    scan = disturb.whitened(simulate(np.zeros((128, 64), np.float32), Protocol(n_coils=3, noise_std=0.2)))
    noise = np.concatenate([batch.complex_samples() for batch in scan.batches]).transpose(1, 0, 2).reshape(3, -1)
    # 16384 samples: standard error of an entry under 1 %
    np.testing.assert_allclose(noise @ noise.conj().T / noise.shape[1], np.eye(3), atol=0.05)


def test_reference_lies_in_a_space_of_its_own(place: Callable[..., Any], coil_images: Callable[..., Any]) -> None:
    anatomy = np.zeros((1, 24, 20), np.float32)
    anatomy[:, 6:18, 5:15] = 1.0
    scan = simulate(anatomy, Protocol(n_coils=1, noise_std=0, phase_std_rad=0))
    one = place(disturb.with_reference(scan, (10, 12)))[(1, 0, 0, 0, 0, 0)]
    image = np.abs(coil_images(one.kspace, (1, 12, 10))[0, 0])
    np.testing.assert_allclose(image[5:8, 4:7], 1.0, atol=0.15)  # Gibbs ringing of so few samples
    assert image[0].max() < 0.15


def test_stream_can_end_early_or_late(scan: SimulatedScan) -> None:
    assert disturb.cut_short(scan, 9).n_readouts == scan.n_readouts - 9
    late = disturb.repeated_late(scan, 4).batches[-1]
    assert len(late) == 4
    assert np.abs(late.complex_samples()).mean() > 0.5 * disturb.GARBAGE
