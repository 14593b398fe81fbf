"""Groups of all frames of a slice: which counter frames are, where they lie, and when the group is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import Completion, Group, Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import BudgetError
from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import CalibrationMode

Streams = Any
F = AcquisitionFlag
N_LINES = 8


def assemble(streams: Streams, scan: Any, readouts: list[Any], **options: Any) -> list[Group]:
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.CINE, **options)
    return groups


def phases_of(group: Group) -> list[int]:
    return group.headers["idx"]["phase"].tolist()


def check_against_plain_placement(streams: Streams, group: Group, readouts: list[Any], counter: str = "phase") -> None:
    expected = streams.place_plainly([streams.as_ismrmrd(readout) for readout in readouts], group.scan)
    assert len(group.kspace) == len(group.counts) == len(group.headers)
    for frame, header in enumerate(group.headers):
        key = [
            group.key.encoding,
            *(getattr(group.key, n) for n in ("slice", "contrast", "phase", "repetition", "set")),
        ]
        key[("slice", "contrast", "phase", "repetition", "set").index(counter) + 1] = int(header["idx"][counter])
        kspace, counts = expected[tuple(key)]
        np.testing.assert_array_equal(group.kspace[frame], kspace)
        np.testing.assert_array_equal(group.counts[frame], counts)


@pytest.mark.parametrize("is_phase_innermost", [False, True])
def test_phases_that_start_anywhere_share_one_slot(streams: Streams, is_phase_innermost: bool):
    scan = streams.scan(limits={"phase": (3, 7, 3), "slice": (0, 1, 0)})
    visits = [(line, phase) for phase in range(3, 8) for line in range(N_LINES)]
    visits = sorted(visits) if is_phase_innermost else visits
    readouts = [streams.readout(line, phase=phase, slice=n) for n in range(2) for line, phase in visits]
    slots = streams.Slots()
    groups = assemble(streams, scan, readouts, finish=False, slots=slots)
    assert [(group.key.slice, group.key.phase, group.completion) for group in groups] == [
        (0, 3, Completion.FULL),
        (1, 3, Completion.FULL),
    ]
    assert [len(slots.taken), *(len(group.slots) for group in groups)] == [2, 1, 1]
    for group in groups:
        assert group.kspace.shape == (5, 2, 1, N_LINES, 6)
        assert (group.is_complete, group.expected_lines) == (True, 5 * N_LINES)
        assert phases_of(group) == [3, 4, 5, 6, 7]
        assert np.shares_memory(group.kspace, group.slots[0].data)
        check_against_plain_placement(streams, group, readouts)


def test_repetitions_are_the_frames_of_a_real_time_cine(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 0, 0), "repetition": (0, 3, 0)})
    readouts = [streams.readout(line, repetition=n) for n in range(4) for line in range(N_LINES)]
    (group,) = assemble(streams, scan, readouts, finish=False)
    assert group.headers["idx"]["repetition"].tolist() == [0, 1, 2, 3]
    check_against_plain_placement(streams, group, readouts, "repetition")


def test_phases_are_the_frames_where_there_are_repetitions_too(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 2, 0), "repetition": (0, 1, 0)})
    readouts = [
        streams.readout(line, phase=p, repetition=r) for r in range(2) for p in range(3) for line in range(N_LINES)
    ]
    groups = assemble(streams, scan, readouts, finish=False)
    assert [(group.key.repetition, len(group.kspace)) for group in groups] == [(0, 3), (1, 3)]


@pytest.mark.parametrize("order", [[3, 4, 0, 1, 2], [4, 3, 2, 1, 0], [0, 1, 3, 2, 4]])
def test_phases_of_unknown_number_are_sorted_and_their_memory_grows(streams: Streams, order: list[int]):
    readouts = [streams.readout(line, phase=phase) for phase in order for line in range(N_LINES)]
    slots = streams.Slots()
    (group,) = assemble(streams, streams.scan(), readouts, slots=slots)
    assert phases_of(group) == [0, 1, 2, 3, 4]
    assert group.completion is Completion.CLOSE
    assert (group.is_complete, group.expected_lines) == (True, 5 * N_LINES)
    check_against_plain_placement(streams, group, readouts)
    assert slots.n_out == 1
    group.release()
    assert slots.n_out == 0


@pytest.mark.parametrize("missing", [[0], [2], [1, 2], [0, 4], [1, 3]])
def test_phases_without_any_line_are_left_out_and_reported(streams: Streams, missing: list[int]):
    scan = streams.scan(limits={"phase": (0, 4, 0)})
    came = [phase for phase in range(5) if phase not in missing]
    readouts = [streams.readout(line, phase=phase) for phase in came for line in range(N_LINES)]
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.CINE)
    (group,) = groups
    assert phases_of(group) == came
    assert (group.is_complete, group.expected_lines) == (False, 5 * N_LINES)
    check_against_plain_placement(streams, group, readouts)
    (warning,) = assembler.take_warnings()
    assert f"only {8 * len(came)} of 40 lines in {len(came)} of 5 frames" in warning


def test_phase_of_only_damaged_lines_is_left_out(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 2, 0)})
    readouts = [
        streams.readout(line, phase=phase, value=np.nan if phase == 1 else None)
        for phase in range(3)
        for line in range(N_LINES)
    ]
    (group,) = assemble(streams, scan, readouts)
    assert phases_of(group) == [0, 2]
    assert np.isfinite(group.kspace).all()


def test_flag_at_the_end_of_every_phase_cuts_no_phase_off(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 9, 0), "slice": (0, 1, 0)})
    readouts = [
        streams.readout(line, *([F.LAST_IN_SLICE] if line == 6 else []), phase=phase, slice=n)
        for n in range(2)
        for phase in range(10)
        for line in range(7)  # fewer than the header says, so that only flags can tell the end
    ]
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.CINE, finish=False)
    assert [(group.key.slice, len(group.kspace), group.completion) for group in groups] == [
        (0, 10, Completion.FLAG),
        (1, 10, Completion.FLAG),
    ]
    assert assembler.counts["late"] == 0


def test_flag_at_the_end_of_every_interleaved_phase_cuts_no_line_off(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 4, 0)})
    readouts = [
        streams.readout(line, *([F.LAST_IN_SLICE] if line == 6 else []), phase=phase)
        for line in range(7)
        for phase in range(5)
    ]
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.CINE)
    (group,) = groups
    assert (group.counts.sum(), assembler.counts["late"]) == (35, 0)


def test_every_phase_may_have_a_sampling_mask_of_its_own(streams: Streams):
    scan = streams.scan(12, limits={"phase": (0, 2, 0)}, acceleration=(3, 1), mode=CalibrationMode.INTERLEAVED)
    readouts = [streams.readout(line, phase=phase) for phase in range(3) for line in range(phase, 12, 3)]
    (group,) = assemble(streams, scan, readouts, finish=False)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.FULL, True, 12)
    sampled = [np.flatnonzero(counts[0]).tolist() for counts in group.counts]
    assert sampled == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_random_masks_of_phases_are_complete_with_a_flag_and_not_without(streams: Streams):
    masks = [[0, 5, 7, 8, 9, 13], [2, 7, 8, 9, 11, 15], [1, 6, 7, 8, 9, 12]]
    scan = streams.scan(16, limits={"phase": (0, 2, 0), "slice": (0, 1, 0)})
    for flags in ([], [F.LAST_IN_SLICE]):
        readouts = [
            streams.readout(line, *(flags if (phase, line) == (2, 12) else []), phase=phase, slice=n)
            for n in range(2)
            for phase, mask in enumerate(masks)
            for line in mask
        ]
        groups = assemble(streams, scan, readouts, limits=AssemblyLimits(min_complete_fraction=0.3))
        assert [group.is_complete for group in groups] == [bool(flags)] * 2
        assert {group.expected_lines for group in groups} == {18 if flags else 48}


def test_flag_on_one_phase_says_nothing_about_another_that_was_cut_short(streams: Streams):
    mask, cut = [0, 5, 7, 8, 9, 13], [2, 7, 8, 9]
    scan = streams.scan(16, limits={"phase": (0, 1, 0)})
    readouts = [streams.readout(line, *([F.LAST_IN_SLICE] if line == 13 else [])) for line in mask]
    readouts += [streams.readout(line, phase=1) for line in cut]
    (group,) = assemble(streams, scan, readouts)
    assert (group.is_complete, group.expected_lines) == (False, 6 + 16)


def test_dwell_times_are_told_line_by_line_where_a_frame_mixes_them(streams: Streams):
    scan = streams.scan(limits={"phase": (0, 1, 0)})
    readouts = [
        streams.readout(n, phase=p, dwell=10.0 if (p, n) == (1, 3) else 5.0) for p in range(2) for n in range(8)
    ]
    (group,) = assemble(streams, scan, readouts)
    expected = np.full((2, 1, 8), 5.0)
    expected[1, 0, 3] = 10.0
    np.testing.assert_array_equal(group.dwell_us, expected)
    alike = [streams.readout(n, phase=p, dwell=5.0 + p) for p in range(2) for n in range(8)]
    (group,) = assemble(streams, scan, alike)
    assert group.dwell_us is None
    assert group.headers["sample_time_us"].tolist() == [5.0, 6.0]


def test_scan_that_is_stopped_keeps_the_frames_that_came(streams: Streams):
    scan = streams.scan(limits={"repetition": (0, 99, 0)})
    readouts = [streams.readout(line, repetition=n) for n in range(5) for line in range(N_LINES)]
    groups, assembler = streams.assemble(scan, readouts[:-5], grouping=Grouping.CINE)
    (group,) = groups
    assert len(group.kspace) == 5
    assert not group.is_complete
    assert any("5 of 100 frames" in text for text in assembler.take_warnings())


def test_calibration_lines_of_any_phase_mark_the_grid(streams: Streams):
    scan = streams.scan(12, limits={"phase": (0, 1, 0)}, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    lines = [[(0, ()), (3, ()), (5, (F.IS_PARALLEL_CALIBRATION,)), (6, ()), (9, ())]]
    lines.append([(1, ()), (4, ()), (6, (F.IS_PARALLEL_CALIBRATION,)), (7, ()), (10, ())])
    readouts = [streams.readout(line, *flags, phase=p) for p, mask in enumerate(lines) for line, flags in mask]
    (group,) = assemble(streams, scan, readouts)
    assert np.flatnonzero(group.calibration_lines[0]).tolist() == [5, 6]
    assert group.is_complete


def test_cine_that_cannot_fit_is_refused_before_memory_is_taken(streams: Streams):
    slots = streams.Slots()
    scan = streams.scan(limits={"phase": (0, 65_535, 0)}, coils=2)
    with pytest.raises(BudgetError, match=r"65536 frames of 6 x 8 x 1 with 2 channels needs 50331648 bytes"):
        streams.assemble(scan, [], grouping=Grouping.CINE, slots=slots, limits=AssemblyLimits(max_group_bytes=1 << 20))
    assert slots.taken == []


def test_growth_over_the_budget_is_refused(streams: Streams):
    readouts = [streams.readout(line, phase=phase) for phase in range(9) for line in range(N_LINES)]
    slots = streams.Slots()
    with pytest.raises(BudgetError, match="8 frames of 6 x 8 x 1"):
        assemble(
            streams, streams.scan(), readouts, slots=slots, limits=AssemblyLimits(max_group_bytes=4 * 8 * 6 * 2 * 8)
        )
    assert slots.n_out == 1  # the caller abandons


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(4)),
    is_interleaved=st.booleans(),
    has_limits=st.booleans(),
    is_flagged=st.booleans(),
    n_left_out=st.integers(0, 3),
    data=st.data(),
)
def test_any_batching_of_a_cine_gives_the_same_groups(
    streams: Streams,
    order: list[int],
    is_interleaved: bool,
    has_limits: bool,
    is_flagged: bool,
    n_left_out: int,
    data: Any,
):
    limits = {"phase": (0, 3, 0), "slice": (0, 1, 0)} if has_limits else {"slice": (0, 1, 0)}
    visits = [(place, line) for place in range(4) for line in range(N_LINES)]
    visits = sorted(visits, key=lambda visit: visit[1]) if is_interleaved else visits
    visits = visits[: len(visits) - n_left_out]
    readouts = [
        streams.readout(
            line, *([F.LAST_IN_SLICE] if is_flagged and at == len(visits) - 1 else []), phase=order[place], slice=n
        )
        for n in range(2)
        for at, (place, line) in enumerate(visits)
    ]
    cuts = data.draw(st.sets(st.integers(1, len(readouts) - 1), max_size=8))
    slots = streams.Slots()
    results = [
        streams.assemble(streams.scan(limits=limits), readouts, grouping=Grouping.CINE, cuts=at, slots=slots)
        for at in ((), cuts, range(len(readouts)))
    ]
    prints = [
        [
            (g.key, g.completion, g.is_complete, g.expected_lines, g.kspace.tobytes(), g.counts.tobytes(), phases_of(g))
            for g in groups
        ]
        for groups, _ in results
    ]
    assert prints[0] == prints[1] == prints[2]
    assert len({str(assembler.counts) for _, assembler in results}) == 1
    for groups, assembler in results:
        for group in groups:
            check_against_plain_placement(streams, group, readouts)
            group.release()
        assert assembler.bytes_held == 0
    assert slots.n_out == 0
