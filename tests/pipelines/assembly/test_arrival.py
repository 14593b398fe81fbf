"""Non-Cartesian readouts: rows in the order of arrival, their trajectory beside them, and hostile ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Completion, Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import CalibrationMode, TrajectoryType

Streams = Any
F = AcquisitionFlag
N_SPOKES = 8


def scan(streams: Streams, kind: str = "spiral", *, n: int | None = N_SPOKES, **options: Any) -> Any:
    limits = {} if n is None else {"kspace_encode_step_1": (0, n - 1, n // 2)}
    return streams.scan(limits=limits | options.pop("limits", {}), trajectory=TrajectoryType(kind), **options)


def spokes(streams: Streams, numbers: Any = range(N_SPOKES), **options: Any) -> list[Any]:
    return [streams.readout(n, **({"samples": 10, "dimensions": 2, "center": 0} | options)) for n in numbers]


def positions(readout: Any) -> Any:
    return readout.trajectory.view(np.float32).reshape(readout.samples.shape[2] // 8, -1)


@pytest.mark.parametrize("kind", ["spiral", "radial", "goldenangle", "other"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_rows_are_in_order_of_arrival_with_their_trajectory_in_the_same_slot(
    streams: Streams, kind: str, dimensions: int
):
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    readouts = spokes(streams, order, dimensions=dimensions)
    slots = streams.Slots()
    (group,), assembler = streams.assemble(scan(streams, kind), readouts, finish=False, slots=slots)
    assert group.kspace.shape == (1, 2, 1, N_SPOKES, 10)
    assert group.trajectory.shape == (1, N_SPOKES, 10, dimensions)
    assert group.trajectory.dtype == np.float32
    for row, readout in enumerate(readouts):
        acquisition = streams.as_ismrmrd(readout)
        np.testing.assert_array_equal(group.kspace[0, :, 0, row], acquisition.data)
        np.testing.assert_array_equal(group.trajectory[0, row], acquisition.traj)
    assert len(slots.taken) == 1
    assert np.shares_memory(group.kspace, slots.taken[0].data)
    assert np.shares_memory(group.trajectory, slots.taken[0].data)
    assert not np.shares_memory(group.trajectory, group.kspace)
    assert (group.counts == 1).all()
    assert (group.readout_extent, group.completion, group.is_complete) == ((0, 10), Completion.FULL, True)
    assert group.headers["idx"]["kspace_encode_step_1"].tolist() == [3]
    assert (assembler.counts["imaging"], assembler.bytes_held) == (N_SPOKES, 0)


def test_averages_are_rows_of_their_own(streams: Streams):
    readouts = [r for average in range(2) for r in spokes(streams, average=average, seed=average)]
    (group,), _ = streams.assemble(scan(streams, limits={"average": (0, 1, 0)}), readouts, finish=False)
    assert group.kspace.shape[3] == 16
    np.testing.assert_array_equal(group.kspace[0, :, 0, 8], readouts[8].complex_samples()[0])


def test_segments_give_room_and_promise_nothing(streams: Streams):
    limits = {"segment": (0, 1, 0)}
    numbered = spokes(streams)  # segments that only number the shots
    (group,), _ = streams.assemble(scan(streams, limits=limits), numbered)
    assert (group.kspace.shape[3], group.is_complete, group.completion) == (N_SPOKES, True, Completion.CLOSE)
    multiplied = [r for segment in range(2) for r in spokes(streams, segment=segment)]
    (group,), _ = streams.assemble(scan(streams, limits=limits), multiplied, finish=False)
    assert (group.kspace.shape[3], group.is_complete, group.completion) == (16, True, Completion.FULL)


def test_memory_grows_when_the_header_does_not_tell_the_number_of_readouts(streams: Streams):
    readouts = spokes(streams, [0] * 100)
    slots = streams.Slots()
    (group,), assembler = streams.assemble(scan(streams, n=None), readouts, slots=slots, cuts=range(0, 100, 7))
    assert group.kspace.shape[3] == 100
    assert (group.is_complete, group.expected_lines, group.completion) == (True, 0, Completion.CLOSE)
    np.testing.assert_array_equal(group.trajectory[0, 99], positions(readouts[99]))
    assert slots.n_out == 1
    assert len(slots.taken) <= 8  # doubled each time
    group.release()
    assert (slots.n_out, assembler.bytes_held) == (0, 0)


def test_single_shot_takes_no_more_memory_than_it_needs(streams: Streams):
    slots = streams.Slots()
    readouts = [
        streams.readout(0, F.LAST_IN_SLICE, samples=900, dimensions=2, repetition=n, center=0) for n in range(3)
    ]
    groups, _ = streams.assemble(scan(streams, n=None, y=256), readouts, slots=slots)
    assert [group.kspace.shape[3:] for group in groups] == [(1, 900)] * 3
    assert [slot.data.nbytes for slot in slots.taken] == [900 * (2 * 8 + 2 * 4)] * 3


def test_growth_ends_at_the_limit_of_a_group(streams: Streams):
    slots = streams.Slots()
    assembler = Assembler(scan(streams, n=None), Grouping.SLICE, slots, AssemblyLimits(max_group_bytes=20 * 10 * 24))
    (batch,) = streams.batches(spokes(streams, [0] * 100))
    assembler.add(batch.__class__(batch.headers[:16], batch.samples[:16], batch.trajectory[:16]))
    with pytest.raises(BudgetError, match="readouts of 10 samples"):
        assembler.add(batch)
    assembler.abandon()
    assert (slots.n_out, assembler.bytes_held) == (0, 0)


def test_next_repetition_and_flags_end_a_group_of_unknown_length(streams: Streams):
    readouts = [
        streams.readout(0, *([F.LAST_IN_SLICE] if n == 4 else []), samples=10, dimensions=2, seed=n, repetition=r)
        for r in range(4)
        for n in range(5)
    ]
    groups, assembler = streams.assemble(scan(streams, n=None), readouts, finish=False)
    # the flag of the first repetition is proven by the second, and believed at once from then on
    assert [group.completion for group in groups] == [Completion.COUNTER, *[Completion.FLAG] * 3]
    assert [group.kspace.shape[3] for group in groups] == [5] * 4
    assert all(group.is_complete for group in groups)
    assert assembler.counts["late"] == 0


def test_cine_frames_of_unequal_length_count_their_rows(streams: Streams):
    lengths = [5, 8, 3]
    limits = {"phase": (0, 2, 0)}
    readouts = [r for phase, n in enumerate(lengths) for r in spokes(streams, range(n), phase=phase)]
    (group,), _ = streams.assemble(scan(streams, limits=limits), readouts, grouping=Grouping.CINE)
    assert group.kspace.shape == (3, 2, 1, 8, 10)
    assert group.counts.sum(axis=(1, 2)).tolist() == lengths
    assert not group.kspace[0, :, :, 5:].any()
    assert not group.trajectory[2, 3:].any()
    np.testing.assert_array_equal(group.kspace[2, :, 0, 2], readouts[-1].complex_samples()[0])


def test_dwell_times_are_told_row_by_row_where_they_differ(streams: Streams):
    limits = {"phase": (0, 1, 0)}
    dwells = [[5.0, 5.0, 5.0], [5.0, 5.0, 7.0, 5.0, 0.0]]
    readouts = [
        r for p, row in enumerate(dwells) for n, d in enumerate(row) for r in spokes(streams, [n], phase=p, dwell=d)
    ]
    (group,), _ = streams.assemble(scan(streams, n=None, limits=limits), readouts, grouping=Grouping.CINE)
    assert group.dwell_us.tolist() == [[[5, 5, 5, 0, 0]], [[5, 5, 7, 5, 0]]]


def test_more_readouts_of_a_frame_than_announced_are_counted_not_written(streams: Streams):
    limits = {"phase": (0, 1, 0)}
    readouts = [*spokes(streams, [*range(8), 0, 1], phase=0), *spokes(streams, phase=1)]
    groups, assembler = streams.assemble(scan(streams, limits=limits), readouts, grouping=Grouping.CINE)
    (group,) = groups
    assert (group.kspace.shape[3], assembler.counts["late"], assembler.counts["imaging"]) == (8, 2, 16)
    assert any("more readouts than the header announces" in text for text in assembler.take_warnings())


def test_discards_cut_the_trajectory_too_and_reversed_readouts_turn_both(streams: Streams):
    forward = spokes(streams, discard=(2, 3))
    (group,), _ = streams.assemble(scan(streams), forward, finish=False)
    assert group.kspace.shape[4] == 5
    np.testing.assert_array_equal(group.trajectory[0, 4], positions(forward[4])[2:7])
    np.testing.assert_array_equal(group.kspace[0, :, 0, 4], forward[4].complex_samples()[0, :, 2:7])
    turned = [streams.readout(n, F.IS_REVERSE, samples=10, dimensions=2, discard=(2, 3)) for n in range(N_SPOKES)]
    (group,), _ = streams.assemble(scan(streams), turned, finish=False)
    # MRD counts discards of a reversed readout from its far end
    np.testing.assert_array_equal(group.trajectory[0, 4], positions(turned[4])[::-1][3:8])
    np.testing.assert_array_equal(group.kspace[0, :, 0, 4], turned[4].complex_samples()[0, :, ::-1][:, 3:8])
    np.testing.assert_array_equal(group.reversed_counts, group.counts)


@pytest.mark.parametrize("kind", ["spiral", "other"])
def test_missing_trajectory_is_an_error_where_none_can_be_computed(streams: Streams, kind: str):
    with pytest.raises(AssemblyError, match=f"expected a trajectory with the readouts of a {kind} scan, found none"):
        streams.assemble(scan(streams, kind), spokes(streams, dimensions=0))


@pytest.mark.parametrize("dimensions", [1, 4, 8])
def test_trajectory_of_an_impossible_number_of_dimensions_is_an_error(streams: Streams, dimensions: int):
    slots = streams.Slots()
    with pytest.raises(AssemblyError, match=f"2 or 3 dimensions, found {dimensions}"):
        streams.assemble(scan(streams), spokes(streams, dimensions=dimensions), slots=slots)
    assert slots.taken == []


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 0), (0, 2)])
def test_trajectory_that_changes_mid_scan_is_an_error(streams: Streams, before: int, after: int):
    readouts = [*spokes(streams, range(3), dimensions=before), *spokes(streams, range(3, 6), dimensions=after)]
    with pytest.raises(AssemblyError, match=f"trajectory of {before} dimensions as before, found {after}"):
        streams.assemble(scan(streams, "radial"), readouts)


@pytest.mark.parametrize("change", [{"samples": 9}, {"discard": (1, 0)}])
def test_readouts_of_another_kept_length_are_an_error(streams: Streams, change: dict[str, Any]):
    with pytest.raises(AssemblyError, match="expected readouts of 10 samples as before in this group, found 9"):
        streams.assemble(scan(streams), [*spokes(streams, range(3)), *spokes(streams, [3], **change)])


def test_groups_may_differ_in_the_length_of_their_readouts(streams: Streams):
    readouts = [*spokes(streams, slice=0), *spokes(streams, slice=1, samples=7)]
    groups, _ = streams.assemble(scan(streams), readouts)
    assert [group.kspace.shape[4] for group in groups] == [10, 7]


@pytest.mark.parametrize("where", ["samples", "trajectory"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("cuts", [(), range(9)])
def test_readout_that_is_not_finite_is_left_out_and_counted(streams: Streams, where: str, value: float, cuts: Any):
    readouts = spokes(streams)
    for n in (2, 5):
        getattr(readouts[n], where).reshape(-1).view(np.float32)[7] = value
    (group,), assembler = streams.assemble(scan(streams), readouts, cuts=cuts)
    kept = [readouts[n] for n in (0, 1, 3, 4, 6, 7)]
    assert group.kspace.shape[3] == 6
    for row, readout in enumerate(kept):
        np.testing.assert_array_equal(group.kspace[0, :, 0, row], readout.complex_samples()[0])
        np.testing.assert_array_equal(group.trajectory[0, row], positions(readout))
    assert (group.is_complete, group.expected_lines) == (False, 8)
    assert (assembler.counts["not_finite"], assembler.counts["imaging"]) == (2, 6)
    assert any("line 2: lines with NaN" in text for text in assembler.take_warnings())


def test_huge_but_finite_samples_are_used(streams: Streams):
    (group,), assembler = streams.assemble(scan(streams), spokes(streams, value=3e38))
    assert (group.kspace.shape[3], assembler.counts["not_finite"]) == (8, 0)


@pytest.mark.parametrize("counters", [{"line": 8}, {"line": 65_535}, {"partition": 1}, {"slice": 3}, {"contrast": 1}])
def test_counter_out_of_range_is_dropped_with_one_warning(streams: Streams, counters: dict[str, int]):
    header = scan(streams, limits={"slice": (0, 1, 0), "contrast": (0, 0, 0)})
    stray = streams.readout(**({"line": 0, "samples": 10, "dimensions": 2} | counters))
    (group,), assembler = streams.assemble(header, [stray, stray, *spokes(streams)])
    assert group.kspace.shape[3] == 8
    assert assembler.counts["out_of_range"] == 2
    assert len(assembler.take_warnings()) == 1


def test_partitions_of_a_non_cartesian_scan_are_refused(streams: Streams):
    with pytest.raises(AssemblyError, match="expected two dimensions of a spiral scan, found 4 partitions"):
        Assembler(scan(streams, z=4), Grouping.SLICE, streams.Slots())


def test_absurd_number_of_readouts_is_not_taken_at_its_word(streams: Streams):
    slots = streams.Slots()
    header = scan(streams, n=65_536, limits={"average": (0, 65_534, 0)})
    (group,), _ = streams.assemble(
        header, spokes(streams, range(3)), slots=slots, limits=AssemblyLimits(min_complete_fraction=0.0)
    )
    assert group.kspace.shape[3] == 3
    assert max(slot.data.nbytes for slot in slots.taken) == 4 * 10 * (2 * 8 + 2 * 4)


def test_other_readouts_go_the_ways_they_go_in_a_cartesian_scan(streams: Streams):
    noise = [streams.readout(0, F.IS_NOISE_MEASUREMENT, samples=9, center=0, seed=n) for n in range(2)]
    aside = [streams.readout(3, kind, samples=5) for kind in (F.IS_NAVIGATION_DATA, F.IS_DUMMYSCAN_DATA)]
    apart = [streams.readout(3, F.IS_PARALLEL_CALIBRATION, samples=10, dimensions=2)]
    readouts = [*noise, *spokes(streams, range(4)), *aside, *apart, *spokes(streams, range(4, 8))]
    (group,), assembler = streams.assemble(scan(streams), readouts)
    assert group.kspace.shape[3] == 8
    assert (group.noise.n_coils, group.noise.n_samples) == (2, 18)
    fates = assembler.counts
    assert (fates["noise"], fates["kept_out"], fates["imaging"]) == (2, 3, 8)
    assert any("on no grid" in text for text in assembler.take_warnings())


def test_embedded_calibration_readouts_join_the_rows_and_are_marked(streams: Streams):
    header = scan(streams, mode=CalibrationMode.EMBEDDED)
    flags = {2: [F.IS_PARALLEL_CALIBRATION], 5: [F.IS_PARALLEL_CALIBRATION_AND_IMAGING]}
    readouts = [streams.readout(n, *flags.get(n, []), samples=10, dimensions=2) for n in range(N_SPOKES)]
    (group,), _ = streams.assemble(header, readouts)
    assert np.flatnonzero(group.calibration_lines[0]).tolist() == [2, 5]


def test_cartesian_space_beside_a_spiral_one_calibrates_it(streams: Streams):
    spiral = scan(streams).encodings[0]
    grid = streams.scan(mode=CalibrationMode.SEPARATE).encodings[0]
    header = type(scan(streams))((spiral, grid))
    lines = [streams.readout(n, F.IS_PARALLEL_CALIBRATION, encoding=1) for n in range(2, 6)]
    (group,), _ = streams.assemble(header, [*lines, *spokes(streams)])
    assert group.calibration.kspace.shape == (2, 1, 4, 6)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["spiral", "radial", "goldenangle"]),
    has_limits=st.booleans(),
    n_slices=st.integers(1, 2),
    n_phases=st.integers(1, 3),
    is_interleaved=st.booleans(),
    is_flagged=st.booleans(),
    bad=st.sets(st.integers(0, 20), max_size=3),
    grouping=st.sampled_from(list(Grouping)),
    data=st.data(),
)
def test_any_batching_gives_the_same_groups(
    streams: Streams,
    kind: str,
    has_limits: bool,
    n_slices: int,
    n_phases: int,
    is_interleaved: bool,
    is_flagged: bool,
    bad: set[int],
    grouping: Grouping,
    data: Any,
):
    limits = {"slice": (0, n_slices - 1, 0)}
    if data.draw(st.booleans()):
        limits["phase"] = (0, n_phases - 1, 0)
    visits = [(s, p, n) for s in range(n_slices) for p in range(n_phases) for n in range(N_SPOKES)]
    visits = sorted(visits, key=lambda visit: visit[2]) if is_interleaved else visits
    readouts = [
        streams.readout(
            n,
            *([F.LAST_IN_SLICE] if is_flagged and n == N_SPOKES - 1 else []),
            samples=6,
            dimensions=2 if kind == "spiral" else 0,
            slice=s,
            phase=p,
        )
        for s, p, n in visits
    ]
    for n in bad & set(range(len(readouts))):
        readouts[n].samples.reshape(-1).view(np.float32)[3] = np.nan
    header = scan(streams, kind, n=N_SPOKES if has_limits else None, limits=limits)
    cuts = data.draw(st.sets(st.integers(1, len(readouts)), max_size=8))
    slots = streams.Slots()
    prints = []
    for at in ((), cuts, range(len(readouts))):
        groups, assembler = streams.assemble(header, readouts, cuts=at, grouping=grouping, slots=slots)
        prints.append(
            [
                (
                    *(g.key, g.completion, g.is_complete, g.expected_lines, g.kspace.tobytes()),
                    *(g.trajectory.tobytes(), g.counts.tobytes(), g.headers.tobytes()),
                )
                for g in groups
            ]
        )
        assert sum(assembler.counts.values()) == len(readouts)
        for group in groups:
            assert np.isfinite(group.kspace).all()
            group.release()
        assert (slots.n_out, assembler.bytes_held) == (0, 0)
    assert prints[0] == prints[1] == prints[2]
