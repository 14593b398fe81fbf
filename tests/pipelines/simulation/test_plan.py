"""Edits of the order of readouts, and counters of frames."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import head_phantom
from pipelines.scan_header import CalibrationMode, parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation.plan import echoes_innermost, in_segments, leave_out, repeat_lines
from pipelines.simulation.scan import SimulatedScan

F = AcquisitionFlag
PLAIN = Protocol(n_coils=1, noise_readouts=0)


def headers_of(scan: SimulatedScan) -> NDArray[np.void]:
    return np.concatenate([batch.headers for batch in scan.batches])


@pytest.mark.parametrize("as_averages", [True, False])
def test_repeated_lines_have_their_own_noise_and_one_last_flag(as_averages: bool) -> None:
    edit = repeat_lines([3, 11], 3, as_averages=as_averages)
    scan = simulate(head_phantom(1, 12, 16), PLAIN, edit=edit)
    headers, samples = headers_of(scan), np.concatenate([b.complex_samples() for b in scan.batches])
    assert scan.truth.counts[0, 0].tolist() == [1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1, 3]
    assert headers["idx"]["average"][3:6].tolist() == ([0, 1, 2] if as_averages else [0, 0, 0])
    assert not np.array_equal(samples[3], samples[4])
    assert flagged(headers, F.LAST_IN_SLICE).tolist() == [False] * 15 + [True]
    limit = parse_scan_header(scan.header).encodings[0].limits["average"]
    assert limit.maximum == (2 if as_averages else 0)


def test_lines_can_be_left_out_of_one_frame() -> None:
    scan = simulate(head_phantom(1, 12, 16), Protocol(n_coils=1, repetitions=2), edit=leave_out([4, 5], frame=1))
    assert scan.truth.counts.sum(axis=-1).tolist() == [[12], [10]]


def test_segments_cut_a_slice_into_shots() -> None:
    headers = headers_of(simulate(head_phantom(2, 8, 16), PLAIN, edit=in_segments(2)))
    assert headers["idx"]["kspace_encode_step_1"].tolist() == [0, 2, 4, 6, 1, 3, 5, 7] * 2
    assert headers["idx"]["segment"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert np.flatnonzero(flagged(headers, F.LAST_IN_SLICE)).tolist() == [7, 15]


def test_echoes_of_a_line_can_come_together() -> None:
    protocol = Protocol(n_coils=1, noise_readouts=0, repetitions=3, frame_counter=FrameCounter.CONTRAST)
    headers = headers_of(simulate(head_phantom(1, 8, 16), protocol, edit=echoes_innermost))
    assert headers["idx"]["contrast"].tolist() == [0, 1, 2] * 8
    assert headers["idx"]["kspace_encode_step_1"].tolist() == np.repeat(np.arange(8), 3).tolist()


def test_frames_can_be_combinations_of_counters_that_start_anywhere() -> None:
    protocol = Protocol(
        n_coils=1, noise_readouts=0,
        frame_counters=((FrameCounter.CONTRAST, 2), (FrameCounter.PHASE, 3), (FrameCounter.REPETITION, 2)),
        first_counters={"phase": 4, "slice": 1},
    )  # fmt: skip
    scan = simulate(np.ones((12, 2, 8, 16), np.float32), protocol)
    headers = headers_of(scan)
    idx = headers["idx"][headers["idx"]["kspace_encode_step_1"] == 0]
    combinations = [tuple(int(row[name]) for name in ("contrast", "phase", "repetition", "slice")) for row in idx]
    assert combinations == [(c, p, r, s) for r in range(2) for p in (4, 5, 6) for c in range(2) for s in (1, 2)]
    limits = parse_scan_header(scan.header).encodings[0].limits
    assert (limits["phase"].minimum, limits["phase"].maximum) == (4, 6)
    assert int(flagged(headers, F.LAST_IN_REPETITION).sum()) == 2
    assert int(flagged(headers, F.LAST_IN_PHASE).sum()) == 6
    assert int(flagged(headers, F.LAST_IN_CONTRAST).sum()) == 12


def test_interleaved_calibration_measures_all_lines_over_the_frames() -> None:
    protocol = Protocol(n_coils=1, acceleration=3, repetitions=3, calibration_mode=CalibrationMode.INTERLEAVED)
    counts = simulate(head_phantom(1, 24, 16), protocol).truth.counts[:, 0]
    assert counts.sum(axis=0).tolist() == [1] * 24
    assert counts.sum(axis=1).tolist() == [8, 8, 8]


def test_external_calibration_counts_from_elsewhere() -> None:
    protocol = Protocol(
        n_coils=1, noise_readouts=0, acceleration=2, calibration_lines=4, calibration_start=70,
        calibration_mode=CalibrationMode.EXTERNAL,
    )  # fmt: skip
    headers = headers_of(simulate(head_phantom(1, 24, 16), protocol))
    assert headers["idx"]["kspace_encode_step_1"][:5].tolist() == [70, 71, 72, 73, 0]


def test_combinations_that_are_not_the_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="6 combinations, the object has 4 frames"):
        simulate(np.ones((4, 1, 8, 8), np.float32),
                 Protocol(frame_counters=((FrameCounter.SET, 2), (FrameCounter.PHASE, 3))))  # fmt: skip
    with pytest.raises(ValueError, match="first_counters knows"):
        Protocol(first_counters={"echo": 1})
