"""Any combination of acquisition features is placed as the MRD specification says, readout by readout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.scan_header import CalibrationMode
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Pattern, Protocol, SliceOrder
from pipelines.simulation import disturbances as disturb
from pipelines.simulation.echo_train import bipolar
from pipelines.simulation.plan import echoes_innermost, in_segments, repeat_lines
from pipelines.simulation.scan import SimulatedScan
from pipelines.simulation.volume import VolumeSampling, simulate_volume

COUNTERS = st.sampled_from([
    (),
    ((FrameCounter.CONTRAST, 2),),
    ((FrameCounter.PHASE, 3),),
    ((FrameCounter.SET, 2), (FrameCounter.REPETITION, 2)),
    ((FrameCounter.CONTRAST, 2), (FrameCounter.PHASE, 2), (FrameCounter.SET, 2)),
])  # fmt: skip

PROTOCOLS = st.builds(
    Protocol,
    n_coils=st.integers(1, 3),
    pattern=st.sampled_from([Pattern.FULL, Pattern.REGULAR]),
    acceleration=st.integers(1, 3),
    calibration_lines=st.integers(0, 6),
    calibration_mode=st.sampled_from([mode for mode in CalibrationMode if mode is not CalibrationMode.OTHER]),
    calibration_start=st.integers(0, 60_000),
    slice_order=st.sampled_from(SliceOrder),
    frame_counters=COUNTERS,
    first_counters=st.sampled_from([{}, {"phase": 3}, {"slice": 2, "contrast": 1, "set": 1, "repetition": 5}]),
    averages=st.integers(1, 2),
    oversampling=st.integers(1, 2),
    phase_oversampling=st.sampled_from([0.0, 0.3]),
    partial_fourier=st.sampled_from([1.0, 0.8]),
    partial_echo=st.sampled_from([1.0, 0.75]),
    order_flags=st.booleans(),
    noise_readouts=st.integers(0, 2),
    noise_samples=st.just(8),
)

CHANGES = st.lists(
    st.sampled_from([
        disturb.mix_in,
        disturb.without_last_flags,
        lambda scan: disturb.with_discards(scan, 2, 3),
    ]),
    max_size=2,
)  # fmt: skip


def n_frames_of(protocol: Protocol) -> int:
    return int(np.prod([size for _, size in protocol.frame_counters]))


@settings(max_examples=60, deadline=None)
@given(
    protocol=PROTOCOLS,
    n_slices=st.integers(1, 3),
    sizes=st.tuples(st.integers(12, 15), st.integers(8, 11)),
    order=st.sampled_from(["as planned", "repeated", "segments", "echoes", "bipolar"]),
    changes=CHANGES,
)
def test_slices_are_placed_as_specified(
    assemble_as_specified: Callable[..., Any],
    protocol: Protocol,
    n_slices: int,
    sizes: tuple[int, int],
    order: str,
    changes: list[Callable[[SimulatedScan], SimulatedScan]],
) -> None:
    n_frames = n_frames_of(protocol)
    if order == "bipolar" and not any(counter is FrameCounter.CONTRAST for counter, _ in protocol.frame_counters):
        order = "echoes"
    edit = {
        "as planned": None,
        "repeated": repeat_lines([sizes[0] // 2, sizes[0] // 2 + 1], 3),
        "segments": in_segments(2),
        "echoes": echoes_innermost,
        "bipolar": bipolar(protocol, n_frames) if order == "bipolar" else None,
    }[order]
    anatomy = np.random.default_rng(n_frames).random((n_frames, n_slices, *sizes)).astype(np.float32)
    scan = simulate(anatomy, protocol, edit=edit)
    for change in changes:
        scan = change(scan)
    groups, assembler = assemble_as_specified(scan)
    assert len(groups) == n_frames * n_slices
    assert assembler.counts["late"] == assembler.counts["out_of_range"] == 0


@settings(max_examples=30, deadline=None)
@given(
    protocol=PROTOCOLS,
    volume=st.builds(
        VolumeSampling,
        acceleration_z=st.integers(1, 2),
        caipi_shift=st.just(0),
        calibration_partitions=st.integers(0, 3),
        partial_fourier_z=st.sampled_from([1.0, 0.7]),
        slice_oversampling=st.sampled_from([0.0, 0.4]),
    ),
    sizes=st.tuples(st.integers(4, 7), st.integers(12, 14), st.integers(8, 11)),
    changes=CHANGES,
)
def test_volumes_are_placed_as_specified(
    assemble_as_specified: Callable[..., Any],
    protocol: Protocol,
    volume: VolumeSampling,
    sizes: tuple[int, int, int],
    changes: list[Callable[[SimulatedScan], SimulatedScan]],
) -> None:
    anatomy = np.random.default_rng(1).random((n_frames_of(protocol), *sizes)).astype(np.float32)
    scan = simulate_volume(anatomy, protocol, volume)
    for change in changes:
        scan = change(scan)
    _, assembler = assemble_as_specified(scan)
    assert assembler.counts["late"] == assembler.counts["out_of_range"] == 0
