"""How a slice ends: LAST flags missing or misplaced, lines after LAST, scans that stop before their end.

Nothing here may lose lines without a word: what is late or missing is counted, and said in a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import Completion
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.scan_header import CalibrationMode
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Pattern, Protocol, SliceOrder
from pipelines.simulation import disturbances as disturb
from pipelines.simulation.volume import VolumeSampling, simulate_volume

Fixture = Callable[..., Any]
CLEAN = Protocol(n_coils=2, noise_std=0, noise_readouts=0)


@given(
    pattern=st.sampled_from(Pattern),
    calibration_mode=st.sampled_from([CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE]),
    slice_order=st.sampled_from(SliceOrder),
    repetitions=st.integers(1, 3),
    averages=st.integers(1, 2),
    n_slices=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_missing_last_flags_lose_nothing(assemble_as_specified: Fixture, n_slices: int, **changes: Any) -> None:
    """Counters and CLOSE end what flags do not (SIRF#513: clients that relied on the flags lost images)."""
    protocol = replace(CLEAN, acceleration=2, calibration_lines=8, **changes)
    scan = disturb.without_last_flags(simulate(head_phantom(n_slices, 32, 16), protocol))
    groups, assembler = assemble_as_specified(scan)
    assert len(groups) == n_slices * protocol.repetitions
    assert assembler.counts["late"] == 0
    if changes["pattern"] is not Pattern.RANDOM:
        assert all(group.is_complete for group in groups.values())


@pytest.mark.parametrize("mode", [CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE])
def test_slices_come_out_one_by_one_without_flags(assemble: Fixture, mode: CalibrationMode) -> None:
    protocol = replace(CLEAN, acceleration=2, calibration_lines=8, calibration_mode=mode)
    groups, _ = assemble(disturb.without_last_flags(simulate(head_phantom(3, 32, 16), protocol)))
    ways = [group.completion for group in groups.values()]
    assert Completion.CLOSE not in ways[:-1]


@given(lines=st.integers(2, 31))
@settings(max_examples=20, deadline=None)
def test_lines_after_a_misplaced_flag_are_used_or_reported(assemble: Fixture, place: Fixture, lines: int) -> None:
    """A flag on three quarters of the lines is believed; one before that is not, and all lines are used."""
    scan = disturb.with_early_last_flags(simulate(head_phantom(2, 32, 16), replace(CLEAN, acceleration=1)), lines)
    groups, assembler = assemble(scan)
    placed = place(scan)
    warnings = assembler.take_warnings()
    # the flag moves `lines` readouts forward of the last, which leaves that many behind it
    is_believed = 32 - lines >= 0.75 * 32
    first = groups[0, 0, 0, 0, 0, 0]
    assert first.counts.sum() == (32 - lines if is_believed else 32)
    assert assembler.counts["late"] == (lines if is_believed else 0)
    assert assembler.counts["late"] + assembler.counts["imaging"] == 64
    second = groups[0, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(second.kspace[0], placed[0, 1, 0, 0, 0, 0].kspace, atol=1e-5)
    assert second.is_complete
    if is_believed:
        assert not first.is_complete
        assert any("LAST flags" in text for text in warnings)
        assert any("after this group was handed on" in text for text in warnings)


def test_lines_after_the_end_change_no_image_and_are_reported(assemble: Fixture) -> None:
    scan = simulate(head_phantom(1, 32, 16), CLEAN)
    (expected,) = assemble(scan)[0].values()
    groups, assembler = assemble(disturb.repeated_late(scan, 5))
    (group,) = groups.values()
    np.testing.assert_array_equal(group.kspace, expected.kspace)
    assert assembler.counts["late"] == 5
    assert any("after this group was handed on" in text for text in assembler.take_warnings())


@pytest.mark.parametrize("n_missing", [1, 8, 15])
def test_frame_cut_short_is_reconstructed_and_marked(assemble: Fixture, n_missing: int) -> None:
    groups, assembler = assemble(disturb.cut_short(simulate(head_phantom(2, 32, 16), CLEAN), n_missing))
    whole, cut = groups[0, 0, 0, 0, 0, 0], groups[0, 1, 0, 0, 0, 0]
    assert (whole.is_complete, cut.is_complete, cut.completion) == (True, False, Completion.CLOSE)
    (warning,) = assembler.take_warnings()
    assert f"slice 1: only {32 - n_missing} of 32 lines came" in warning
    image = Pipeline("zero_filled", {}, "cpu")(cut, {}).images[0]
    assert image.meta["Incomplete"] == [f"{32 - n_missing} of 32 lines"]
    assert "Incomplete" not in Pipeline("zero_filled", {}, "cpu")(whole, {}).images[0].meta


def test_frame_with_too_few_lines_is_reported_instead(assemble: Fixture) -> None:
    groups, assembler = assemble(disturb.cut_short(simulate(head_phantom(2, 32, 16), CLEAN), 20))
    assert list(groups) == [(0, 0, 0, 0, 0, 0)]
    (warning,) = assembler.take_warnings()
    assert "slice 1: only 12 of 32 lines came; not reconstructed" in warning


def test_volume_cut_short_is_marked(assemble: Fixture) -> None:
    scan = simulate_volume(head_phantom(8, 16, 16), CLEAN, VolumeSampling())
    groups, assembler = assemble(disturb.cut_short(scan, 40))
    (group,) = groups.values()
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.CLOSE, False, 128)
    assert any("88 of 128" in text for text in assembler.take_warnings())
