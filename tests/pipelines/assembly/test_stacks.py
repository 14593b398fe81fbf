"""Groups of a slice with its neighbours: who is next to whom, when they are handed on, and whose memory they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlot, SlotShares
from pipelines.assembly.frame import Group, Grouping
from pipelines.assembly.slice_order import SliceOrder
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag
from pipelines.scan_header import CalibrationMode
from server.execution.encoding import encode_job
from server.execution.executor import Job
from server.execution.shared_memory import SharedSlots

Streams = Any
F = AcquisitionFlag
N_LINES = 8
THICKNESS_MM = 5.0


def neighbours(group: Group) -> list[int]:
    return [neighbour.key.slice for neighbour in group.neighbours]


def slices(streams: Streams, order: list[int], places: list[int] | None = None, **counters: int) -> list[Any]:
    """Readouts of whole slices in this order of counters; slice n lies at `places[n]`, or has no position."""
    return [
        streams.readout(line, slice=n, position=None if places is None else (1.0, 2.0, 6.0 * places[n]), **counters)
        for n in order
        for line in range(N_LINES)
    ]


def test_each_slice_comes_with_its_neighbours_by_counter(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 3, 0)})
    readouts = slices(streams, [0, 1, 2, 3])
    slots = streams.Slots()
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False, slots=slots)
    assert [(group.key.slice, neighbours(group)) for group in groups] == [(0, [1]), (1, [0, 2]), (2, [1, 3]), (3, [2])]
    expected = streams.place_plainly([streams.as_ismrmrd(readout) for readout in readouts], scan)
    for group in groups:
        for each in (group, *group.neighbours):
            np.testing.assert_array_equal(each.kspace[0], expected[0, each.key.slice, 0, 0, 0, 0][0])
    assert len(slots.taken) == 4
    assert assembler.bytes_held == 0


def test_neighbours_are_handed_on_as_soon_as_they_are_complete(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 4, 0)})
    assembler = Assembler(scan, Grouping.STACK, streams.Slots())
    came = [[group.key.slice for readout in slices(streams, [n]) for group in assembler.add(readout)] for n in range(5)]
    assert came == [[], [0], [1], [2], [3, 4]]


def test_interleaved_numbering_is_put_in_order_by_position(streams: Streams):
    # even places are measured first: slice counters 0, 1, 2, 3, 4 lie at 0, 2, 4, 1, 3
    scan = streams.scan(limits={"slice": (0, 4, 0)})
    readouts = slices(streams, [0, 1, 2, 3, 4], [0, 2, 4, 1, 3])
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False)
    assert {group.key.slice: neighbours(group) for group in groups} == {0: [3], 3: [0, 1], 1: [3, 4], 4: [1, 2], 2: [4]}


def test_slice_between_two_adjacent_ones_does_not_wait_for_the_whole_stack(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 9, 0)})
    assembler = Assembler(scan, Grouping.STACK, streams.Slots())
    came = [group for readout in slices(streams, [0, 1, 2], list(range(10))) for group in assembler.add(readout)]
    assert [(group.key.slice, neighbours(group)) for group in came] == [(1, [0, 2])]  # nothing fits between these
    came = [group for readout in slices(streams, [4], list(range(10))) for group in assembler.add(readout)]
    assert came == []
    # the outermost slice is known to be that once all others were seen
    for n in (3, 5, 6, 7, 8):
        came += [group for readout in slices(streams, [n], list(range(10))) for group in assembler.add(readout)]
    assert 0 not in {group.key.slice for group in came}
    first = assembler.add(slices(streams, [9], list(range(10)))[0])
    assert [(group.key.slice, neighbours(group)) for group in first] == [(0, [1])]
    assembler.abandon()


def test_second_repetition_knows_the_order_from_the_first(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 2, 0), "repetition": (0, 1, 0)})
    places = [1, 0, 2]
    readouts = [*slices(streams, [0, 1, 2], places), *slices(streams, [0, 1, 2], places, repetition=1)]
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False)
    found = [(group.key.repetition, group.key.slice, neighbours(group)) for group in groups]
    assert sorted(found) == [(r, n, near) for r in (0, 1) for n, near in ((0, [1, 2]), (1, [0]), (2, [0]))]
    assert found[3] == (1, 1, [0])  # handed on before the last slice came


def test_slices_that_are_not_parallel_are_no_neighbours(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 3, 0)})
    normals = [(0, 0, 1), (0, 0, 1), (1, 0, 0), (1, 0, 0)]
    readouts = [
        streams.readout(line, slice=n, position=(6.0 * n, 0, 6.0 * n), normal=normals[n])
        for n in range(4)
        for line in range(N_LINES)
    ]
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.STACK)
    assert {group.key.slice: neighbours(group) for group in groups} == {0: [1], 1: [0], 2: [3], 3: [2]}


def test_single_slice_has_no_neighbours_and_does_not_wait(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 0, 0)})
    (group,), _ = streams.assemble(scan, slices(streams, [0]), grouping=Grouping.STACK, finish=False)
    assert group.neighbours == ()


def test_unknown_number_of_slices_ends_at_close(streams: Streams):
    groups, assembler = streams.assemble(streams.scan(), slices(streams, [0, 1, 2]), grouping=Grouping.STACK)
    assert sorted((group.key.slice, neighbours(group)) for group in groups) == [(0, [1]), (1, [0, 2]), (2, [1])]
    assert assembler.take_warnings() == []


def test_lost_slice_is_not_waited_for_longer_than_one_repetition(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 3, 0), "repetition": (0, 2, 0)})
    readouts = [*slices(streams, [0, 2, 3]), *slices(streams, [0, 1, 2, 3], repetition=1)]
    slots = streams.Slots()
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False, slots=slots)
    found = sorted((group.key.repetition, group.key.slice, neighbours(group)) for group in groups)
    assert found[:3] == [(0, 0, []), (0, 2, [3]), (0, 3, [2])]
    assert len(found) == 7
    assert any("neighbouring slice did not come" in text for text in assembler.take_warnings())
    for group in groups:
        group.release()
    assert (slots.n_out, assembler.bytes_held) == (0, 0)


def test_slice_that_lost_most_lines_is_not_waited_for_longer_than_one_repetition(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 2, 0), "repetition": (0, 2, 0)})
    readouts = [*slices(streams, [0]), streams.readout(0, slice=1), *slices(streams, [2])]
    readouts += slices(streams, [0, 1, 2], repetition=1)
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False)
    found = sorted((group.key.repetition, group.key.slice, neighbours(group)) for group in groups)
    assert found == [(0, 0, []), (0, 2, []), (1, 0, [1]), (1, 1, [0, 2]), (1, 2, [1])]


def test_slice_that_is_given_up_is_reported_to_its_neighbours(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 2, 0)})
    readouts = [*slices(streams, [0]), streams.readout(0, slice=1), *slices(streams, [2])]
    groups, assembler = streams.assemble(scan, readouts, grouping=Grouping.STACK)
    assert sorted((group.key.slice, neighbours(group)) for group in groups) == [(0, []), (2, [])]
    assert any("slice 1: only 1 of 8 lines" in text for text in assembler.take_warnings())


def test_interleaved_repetitions_keep_their_neighbours(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 2, 0), "repetition": (0, 1, 0)})
    readouts = [
        streams.readout(line, slice=n, repetition=r) for n in range(3) for line in range(N_LINES) for r in range(2)
    ]
    groups, _ = streams.assemble(scan, readouts, grouping=Grouping.STACK, finish=False)
    found = sorted((group.key.repetition, group.key.slice, neighbours(group)) for group in groups)
    assert found == [(r, n, near) for r in range(2) for n, near in ((0, [1]), (1, [0, 2]), (2, [1]))]


def test_neighbours_bring_their_own_calibration(streams: Streams):
    scan = streams.scan(limits={"slice": (0, 1, 0)}, mode=CalibrationMode.SEPARATE)
    lines = [streams.readout(n, F.IS_PARALLEL_CALIBRATION, slice=s, seed=s) for s in range(2) for n in range(3, 6)]
    slots = streams.Slots()
    groups, _ = streams.assemble(scan, [*lines, *slices(streams, [0, 1])], grouping=Grouping.STACK, slots=slots)
    first, second = groups
    np.testing.assert_array_equal(first.neighbours[0].calibration.kspace, second.calibration.kspace)
    assert len(slots.taken) == 4  # image and calibration of two slices
    first.release()
    assert slots.n_out == 4
    second.release()
    assert slots.n_out == 0


@settings(max_examples=60, deadline=None)
@given(
    n_slices=st.integers(1, 5),
    n_repetitions=st.integers(1, 2),
    has_limits=st.booleans(),
    has_positions=st.booleans(),
    is_interleaved=st.booleans(),
    n_lost=st.integers(0, 20),
    data=st.data(),
)
def test_any_batching_gives_the_same_stacks_and_every_slot_is_released_once(
    streams: Streams,
    n_slices: int,
    n_repetitions: int,
    has_limits: bool,
    has_positions: bool,
    is_interleaved: bool,
    n_lost: int,
    data: Any,
):
    places = data.draw(st.permutations(range(n_slices)))
    readouts = []
    for repetition in range(n_repetitions):
        part = slices(streams, list(range(n_slices)), places if has_positions else None, repetition=repetition)
        readouts += (
            sorted(part, key=lambda r: int(r.headers["idx"]["kspace_encode_step_1"][0])) if is_interleaved else part
        )
    lost = data.draw(st.sets(st.integers(0, len(readouts) - 1), max_size=n_lost))
    readouts = [readout for n, readout in enumerate(readouts) if n not in lost]
    limits = {"slice": (0, n_slices - 1, 0)} if has_limits else {}
    cuts = data.draw(st.sets(st.integers(1, max(len(readouts), 1)), max_size=8))
    prints = []
    for at in ((), cuts, range(len(readouts))):
        slots = streams.Slots()
        groups, assembler = streams.assemble(
            streams.scan(limits=limits), readouts, grouping=Grouping.STACK, cuts=at, slots=slots
        )
        prints.append(
            [
                (g.key, g.completion, g.kspace.tobytes(), neighbours(g), [n.kspace.tobytes() for n in g.neighbours])
                for g in groups
            ]
        )
        assert assembler.bytes_held == 0
        for number in data.draw(st.permutations(range(len(groups)))):
            assert all(not slot.is_released for slot in slots.taken if slot in _own_slots(slots, groups[number]))
            groups[number].release()
        assert slots.n_out == 0
    assert prints[0] == prints[1] == prints[2]


def _own_slots(slots: Any, group: Group) -> list[Any]:
    arrays = [each.kspace for each in (group, *group.neighbours)]
    return [slot for slot in slots.taken if any(np.shares_memory(array, slot.data) for array in arrays)]


@pytest.mark.parametrize("n_readouts", [1, 8, 13, 20, 33, 40])
def test_abandoned_stacks_release_every_slot_once(streams: Streams, n_readouts: int):
    scan = streams.scan(limits={"slice": (0, 4, 0)})
    slots = streams.Slots()
    assembler = Assembler(scan, Grouping.STACK, slots)
    groups = [group for readout in slices(streams, list(range(5)))[:n_readouts] for group in assembler.add(readout)]
    assembler.abandon()
    assert assembler.bytes_held == 0
    for group in groups:
        group.release()
    assert slots.n_out == 0


def test_share_cannot_be_read_after_its_release_and_releases_once():
    released = []

    class Slot(HeapSlot):
        def release(self) -> None:
            released.append(self)

    shares = SlotShares(Slot(4))
    one, other = shares.share(), shares.share()
    one.release()
    one.release()
    assert released == []
    with pytest.raises(ValueError, match="released"):
        _ = one.data
    assert other.data.nbytes == 4
    other.release()
    assert len(released) == 1


def test_stack_travels_to_a_worker_in_shared_memory_that_comes_back(streams: Streams):
    slots = SharedSlots(1 << 22, 0)
    try:
        assembler = Assembler(streams.scan(limits={"slice": (0, 2, 0)}), Grouping.STACK, slots)
        groups = [group for readout in slices(streams, [0, 1, 2]) for group in assembler.add(readout)]
        by_slice = {group.key.slice: group for group in groups}
        job = Job("session", "zero_filled", {}, by_slice[1], {})
        _, used = encode_job(job, slots)
        assert len(used) == 3
        for slot in used:
            slot.pin()
        in_use = slots.bytes_in_use
        for group in groups:
            group.release()
        assert slots.bytes_in_use == in_use  # a worker may still read all three
        for slot in used:
            slot.unpin()
        assert slots.bytes_in_use == 0
    finally:
        slots.close()


def header_at(position: tuple[float, float, float], normal: tuple[float, float, float]) -> Any:
    header = np.zeros((), ACQUISITION_HEADER)
    header["position"], header["slice_dir"] = position, normal
    return header


@settings(max_examples=80, deadline=None)
@given(
    places=st.lists(st.integers(-40, 40), min_size=1, max_size=9, unique=True),
    normal=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda n: np.linalg.norm(n) > 0.1),
)
def test_neighbours_of_a_stack_that_was_seen_are_those_of_sorted_positions(
    streams: Streams, places: list[int], normal: tuple[float, float, float]
):
    order = SliceOrder(streams.scan(limits={"slice": (0, len(places) - 1, 0)}).encodings[0])
    unit = np.array(normal) / np.linalg.norm(normal)
    for slice_, place in enumerate(places):
        order.see(slice_, header_at(tuple(3.0 * place * unit + 7.0), tuple(unit)))
    along = sorted(range(len(places)), key=lambda n: places[n])
    for at, slice_ in enumerate(along):
        expected = sorted(along[max(at - 1, 0) : at] + along[at + 1 : at + 2])
        assert order.neighbours(slice_) == (tuple(expected), True)
