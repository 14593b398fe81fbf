"""When groups are handed on: flags, counters, full patterns, CLOSE; and that nothing cuts a group to pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.assembly.frame import Completion, Group
from pipelines.assembly.limits import AssemblyLimits
from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import CalibrationMode

Streams = Any
F = AcquisitionFlag


def slices_of(groups: list[Group]) -> list[tuple[int, int]]:
    return [(group.key.repetition, group.key.slice) for group in groups]


def is_whole(groups: list[Group]) -> bool:
    return all((group.counts == 1).all() and group.is_complete for group in groups)


def test_full_pattern_hands_on_at_its_last_line_without_flags(streams: Streams):
    readouts = [streams.readout(line, slice=n) for n in range(3) for line in range(8)]
    groups, _ = streams.assemble(streams.scan(), readouts, finish=False)
    assert slices_of(groups) == [(0, 0), (0, 1), (0, 2)]
    assert is_whole(groups)
    assert {group.completion for group in groups} == {Completion.FULL}
    assert [group.expected_lines for group in groups] == [8, 8, 8]


def test_flag_hands_on_a_partial_acquisition_that_the_header_does_not_announce(streams: Streams):
    readouts = [streams.readout(line) for line in range(1, 7)] + [streams.readout(7, F.LAST_IN_SLICE)]
    (group,), assembler = streams.assemble(streams.scan(), readouts, finish=False)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.FLAG, False, 8)
    assert assembler.finish() == []


def test_interleaved_slices_without_flags_are_not_cut_to_pieces(streams: Streams):
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    readouts = [streams.readout(line, slice=n, repetition=r) for r in range(2) for line in order for n in range(4)]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert slices_of(groups) == [(r, n) for r in range(2) for n in range(4)]
    assert is_whole(groups)
    assert assembler.counts["late"] == 0


def test_interleaved_embedded_scan_without_flags_is_not_cut_to_pieces(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    regular = [(line, ()) for line in range(0, 12, 3)]
    between = [(line, (F.IS_PARALLEL_CALIBRATION,)) for line in (4, 5, 7)]
    readouts = [streams.readout(line, *flags, slice=n) for line, flags in regular + between for n in range(2)]
    groups, _ = streams.assemble(scan, readouts)
    assert slices_of(groups) == [(0, 0), (0, 1)]
    assert [int(group.counts.sum()) for group in groups] == [7, 7]
    assert [group.completion for group in groups] == [Completion.CLOSE, Completion.CLOSE]
    assert is_whole(groups) is False  # undersampled, yet complete:
    assert all(group.is_complete and group.expected_lines == 4 for group in groups)


def test_sequential_embedded_slices_without_flags_are_handed_on_when_the_next_begins(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    lines = [(0, ()), (3, ()), (4, (F.IS_PARALLEL_CALIBRATION,)), (5, (F.IS_PARALLEL_CALIBRATION,)), (6, ()), (9, ())]
    readouts = [streams.readout(line, *flags, slice=n) for n in range(3) for line, flags in lines]
    groups, assembler = streams.assemble(scan, readouts, finish=False)
    assert slices_of(groups) == [(0, 0), (0, 1)]
    assert [group.completion for group in groups] == [Completion.COUNTER] * 2
    assert slices_of(assembler.finish()) == [(0, 2)]


def test_next_repetition_hands_on_an_unfinished_frame(streams: Streams):
    readouts = [streams.readout(line, repetition=r) for r in range(3) for line in range(6)]
    groups, assembler = streams.assemble(streams.scan(), readouts, finish=False)
    assert slices_of(groups) == [(0, 0), (1, 0)]
    assert [(group.completion, group.is_complete) for group in groups] == [(Completion.COUNTER, False)] * 2
    (tail,) = assembler.finish()
    assert (tail.key.repetition, tail.completion, int(tail.counts.sum())) == (2, Completion.CLOSE, 6)


def test_repetitions_in_the_innermost_loop_are_not_cut_to_pieces(streams: Streams):
    readouts = [streams.readout(line, repetition=r) for line in range(7) for r in range(5)]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert [int(group.counts.sum()) for group in groups] == [7] * 5
    assert assembler.counts["late"] == 0


@pytest.mark.parametrize("flag", [F.LAST_IN_SLICE, F.LAST_IN_REPETITION, F.LAST_IN_MEASUREMENT])
def test_last_flag_on_every_line_makes_neither_pieces_nor_thousands_of_groups(streams: Streams, flag: AcquisitionFlag):
    readouts = [streams.readout(line, flag, slice=n) for n in range(20) for line in range(8)]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert slices_of(groups) == [(0, n) for n in range(20)]
    assert is_whole(groups)
    assert any("LAST flags" in warning for warning in assembler.take_warnings())


def test_last_flag_on_every_line_of_interleaved_slices_makes_no_pieces(streams: Streams):
    readouts = [streams.readout(line, F.LAST_IN_SLICE, slice=n) for line in range(8) for n in range(5)]
    groups, _ = streams.assemble(streams.scan(), readouts)
    assert sorted(slices_of(groups)) == [(0, n) for n in range(5)]
    assert is_whole(groups)


def test_last_flag_on_noise_or_navigators_makes_no_group(streams: Streams):
    readouts = [streams.readout(0, kind, F.LAST_IN_SLICE) for kind in (F.IS_NOISE_MEASUREMENT, F.IS_NAVIGATION_DATA)]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert groups == []
    assert (assembler.counts["noise"], assembler.counts["kept_out"]) == (1, 1)


def test_last_flag_of_a_slice_ends_its_other_complete_contrasts(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    lines = [(0, ()), (3, ()), (5, (F.IS_PARALLEL_CALIBRATION,)), (6, ()), (9, ())]
    readouts = [streams.readout(line, *flags, contrast=echo) for line, flags in lines for echo in range(2)]
    readouts[-1].headers["flags"] |= F.LAST_IN_SLICE.mask
    groups, _ = streams.assemble(scan, readouts, finish=False)
    assert sorted(group.key.contrast for group in groups) == [0, 1]
    assert {group.completion for group in groups} == {Completion.FLAG}


def test_averages_in_the_outer_loop_are_summed_before_the_group_is_handed_on(streams: Streams):
    scan = streams.scan(limits={"average": (0, 2, 0)})
    readouts = [
        streams.readout(line, *([F.LAST_IN_SLICE] if line == 7 else []), average=average, seed=average, slice=n)
        for average in range(3)
        for n in range(2)
        for line in range(8)
    ]
    groups, _ = streams.assemble(scan, readouts, finish=False)
    assert slices_of(groups) == [(0, 0), (0, 1)]
    for group in groups:
        assert (group.counts == 3).all()
        assert (group.completion, group.is_complete) == (Completion.FLAG, True)
        mine = [r.complex_samples()[0] for r in readouts if r.headers["idx"]["slice"][0] == group.key.slice]
        np.testing.assert_array_equal(group.kspace[0, :, 0, 5], mine[5] + mine[13] + mine[21])


def test_averages_in_the_inner_loop_are_summed_before_the_group_is_handed_on(streams: Streams):
    scan = streams.scan(limits={"average": (0, 1, 0)})
    readouts = [streams.readout(line, average=a, seed=a) for line in range(8) for a in range(2)]
    (group,), _ = streams.assemble(scan, readouts, finish=False)
    assert (group.counts == 2).all()
    np.testing.assert_array_equal(
        group.kspace[0, :, 0, 3], readouts[6].complex_samples()[0] + readouts[7].complex_samples()[0]
    )


def test_lines_after_the_group_was_handed_on_are_counted_and_reported(streams: Streams):
    readouts = [streams.readout(line) for line in range(8)] + [streams.readout(3, seed=1), streams.readout(4, seed=1)]
    (group,), assembler = streams.assemble(streams.scan(), readouts)
    assert (group.counts == 1).all()
    assert assembler.counts["late"] == 2
    assert any("after this group was handed on" in warning for warning in assembler.take_warnings())


def test_lines_after_an_early_flag_are_used(streams: Streams):
    readouts = [streams.readout(line, *([F.LAST_IN_SLICE] if line == 3 else [])) for line in range(8)]
    (group,), assembler = streams.assemble(streams.scan(), readouts)
    assert (group.counts == 1).all()
    assert assembler.counts["late"] == 0


def test_separate_calibration_mode_is_full_with_the_accelerated_lines(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.SEPARATE)
    readouts = [streams.readout(line, slice=n) for n in range(2) for line in range(1, 12, 3)]
    groups, _ = streams.assemble(scan, readouts, finish=False)
    assert [(group.completion, group.expected_lines) for group in groups] == [(Completion.FULL, 4)] * 2


def test_irregular_sampling_is_complete_by_its_number_of_lines(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    readouts = [streams.readout(line) for line in (0, 4, 5, 6)] + [streams.readout(11, F.LAST_IN_SLICE)]
    (group,), _ = streams.assemble(scan, readouts)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.FLAG, True, 4)


def test_tail_is_handed_on_at_close_and_says_what_is_missing(streams: Streams):
    readouts = [streams.readout(line) for line in range(5)]
    (group,), assembler = streams.assemble(streams.scan(), readouts)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.CLOSE, False, 8)
    (warning,) = assembler.take_warnings()
    assert "only 5 of 8 lines" in warning


def test_too_small_a_tail_is_reported_instead(streams: Streams):
    readouts = [streams.readout(line, slice=2) for line in range(3)]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert groups == []
    assert assembler.bytes_held == 0
    (warning,) = assembler.take_warnings()
    assert "slice 2" in warning
    assert "3 of 8 lines" in warning
    assert assembler.take_warnings() == []


def test_configured_fraction_decides_about_the_tail(streams: Streams):
    readouts = [streams.readout(line) for line in range(3)]
    limits = AssemblyLimits(min_complete_fraction=0.25)
    groups, _ = streams.assemble(streams.scan(), readouts, limits=limits)
    assert len(groups) == 1


def test_trusted_flag_hands_on_a_small_scan_at_close(streams: Streams):
    readouts = [streams.readout(0), streams.readout(4, F.LAST_IN_SLICE)]
    (group,), _ = streams.assemble(streams.scan(), readouts)
    assert (group.completion, group.is_complete) == (Completion.CLOSE, False)


def test_frames_are_told_apart_by_every_group_counter(streams: Streams):
    names = ("slice", "contrast", "phase", "repetition", "set")
    readouts = [streams.readout(line, **{name: 1}) for name in names for line in range(8)]
    groups, _ = streams.assemble(streams.scan(n_encodings=2), readouts)
    groups += streams.assemble(streams.scan(n_encodings=2), [streams.readout(n, encoding=1) for n in range(8)])[0]
    keys = [group.key for group in groups]
    assert [[getattr(key, name) for name in names] for key in keys[:5]] == np.eye(5, dtype=int).tolist()
    assert (keys[5].encoding, keys[5].slice) == (1, 0)


def test_repetitions_seen_to_interleave_are_not_ended_by_a_new_one(streams: Streams):
    order = [(line, r) for line in range(5) for r in range(2)] + [(line, 2) for line in range(5)]
    order += [(line, r) for line in range(5, 7) for r in range(3)]
    groups, assembler = streams.assemble(streams.scan(), [streams.readout(line, repetition=r) for line, r in order])
    assert [int(group.counts.sum()) for group in groups] == [7, 7, 7]
    assert assembler.counts["late"] == 0


def test_calibration_lines_in_a_second_pass_join_their_slices(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    flags = {6: (F.IS_PARALLEL_CALIBRATION_AND_IMAGING,)}
    first = [streams.readout(line, *flags.get(line, ()), slice=n) for n in range(2) for line in (0, 3, 6, 9)]
    second = [streams.readout(line, F.IS_PARALLEL_CALIBRATION, slice=n) for n in range(2) for line in (5, 7)]
    groups, _ = streams.assemble(scan, first + second)
    assert slices_of(groups) == [(0, 0), (0, 1)]
    assert [np.flatnonzero(group.calibration_lines[0]).tolist() for group in groups] == [[5, 6, 7]] * 2


def test_line_after_a_believed_flag_is_late_and_later_flags_are_not_believed(streams: Streams):
    readouts = [
        streams.readout(line, *([F.LAST_IN_SLICE] if line == 6 else []), slice=n) for n in range(3) for line in range(8)
    ]
    groups, assembler = streams.assemble(streams.scan(), readouts)
    assert [int(group.counts.sum()) for group in groups] == [7, 8, 8]
    assert [group.is_complete for group in groups] == [False, True, True]
    assert assembler.counts["late"] == 1
    incomplete, late, flags = assembler.take_warnings()
    assert "only 7 of 8" in incomplete
    assert "handed on" in late
    assert "LAST flags" in flags


def test_last_flag_of_one_repetition_ends_no_other(streams: Streams):
    scan = streams.scan(12, acceleration=(3, 1), mode=CalibrationMode.EMBEDDED)
    lines = [(0, ()), (3, ()), (5, (F.IS_PARALLEL_CALIBRATION,)), (6, ()), (9, ())]
    readouts = [streams.readout(line, *flags, repetition=r) for line, flags in lines for r in range(2)]
    readouts[-1].headers["flags"] |= F.LAST_IN_REPETITION.mask
    readouts.append(streams.readout(4, F.IS_PARALLEL_CALIBRATION, repetition=0))
    groups, _ = streams.assemble(scan, readouts)
    assert [(group.key.repetition, int(group.counts.sum())) for group in groups] == [(1, 5), (0, 6)]


def test_repeated_line_after_a_complete_group_does_not_discredit_flags(streams: Streams):
    readouts = [streams.readout(line, *([F.LAST_IN_SLICE] if line == 7 else [])) for line in range(8)]
    readouts += [streams.readout(3, seed=1)]
    readouts += [streams.readout(line, *([F.LAST_IN_SLICE] if line == 6 else []), slice=1) for line in range(7)]
    groups, assembler = streams.assemble(streams.scan(), readouts, finish=False)
    assert [(group.completion, int(group.counts.sum())) for group in groups] == [
        (Completion.FLAG, 8),
        (Completion.FLAG, 7),
    ]
    assert assembler.counts["late"] == 1
