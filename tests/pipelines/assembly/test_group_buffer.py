"""Frames in one slot: brought into order, grown, and read by a worker where they lie."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlot
from pipelines.assembly.frame import Grouping
from pipelines.assembly.group_buffer import BufferShape, GroupBuffer
from pipelines.scan_header import TrajectoryType
from server.execution.encoding import SlotViews, decode_job, encode_job
from server.execution.executor import Job
from server.execution.shared_memory import SharedSlots

Streams = Any


def filled(n_frames: int, n_dimensions: int = 2) -> GroupBuffer:
    shape = BufferShape(n_frames, 2, 1, 3, n_dimensions)
    buffer = GroupBuffer(HeapSlot(shape.n_bytes), shape)
    for frame in range(n_frames):
        buffer.samples[frame] = frame
        if buffer.trajectory is not None:
            buffer.trajectory[frame] = frame + 100
    return buffer


@given(n_frames=st.integers(1, 9), data=st.data())
def test_frames_are_brought_together_in_the_order_asked_for(n_frames: int, data: Any):
    places = data.draw(st.permutations(range(n_frames)))[: data.draw(st.integers(1, n_frames))]
    buffer = filled(n_frames)
    found = buffer.bring_together(places)
    assert buffer.samples[found][:, 0, 0, 0].tolist() == places
    assert buffer.trajectory is not None
    assert buffer.trajectory[found][:, 0, 0, 0].tolist() == [place + 100 for place in places]


@pytest.mark.parametrize("places", [[0, 1, 2], [1, 3, 5], [5, 4, 3], [4], [5, 3, 1], [2, 1, 0]])
def test_evenly_spaced_frames_stay_where_they_are(places: list[int]):
    buffer = filled(6)
    before = buffer.samples.copy()
    found = buffer.bring_together(places)
    np.testing.assert_array_equal(buffer.samples, before)
    assert buffer.samples[found][:, 0, 0, 0].tolist() == places


@given(frames=st.integers(1, 40), rows=st.integers(1, 40))
def test_larger_buffer_has_room_and_keeps_what_was_there(frames: int, rows: int):
    small = filled(3)
    shape = small.shape.with_room(frames, rows)
    assert shape.n_frames >= max(frames, 3)
    assert shape.n_rows >= max(rows, 2)
    assert shape.n_frames < 2 * max(frames, 3)
    assert shape.n_rows < 2 * max(rows, 2)
    large = GroupBuffer(HeapSlot(shape.n_bytes), shape)
    large.copy_from(small)
    np.testing.assert_array_equal(large.samples[:3, :2], small.samples)
    np.testing.assert_array_equal(large.trajectory[:3, :2], small.trajectory)
    assert int((large.samples != 0).sum()) == int((small.samples != 0).sum())


@pytest.mark.parametrize("phases", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2], [3, 0, 1]])
@pytest.mark.parametrize("kind", [TrajectoryType.CARTESIAN, TrajectoryType.SPIRAL])
@pytest.mark.parametrize("has_limits", [False, True])
def test_worker_reads_frames_and_trajectory_where_they_lie(
    streams: Streams, phases: list[int], kind: TrajectoryType, has_limits: bool
):
    slots = SharedSlots(1 << 22, 0)
    fd = slots.open_for_reading()
    try:
        dimensions = 0 if kind is TrajectoryType.CARTESIAN else 2
        readouts = [streams.readout(n, phase=phase, dimensions=dimensions) for phase in phases for n in range(8)]
        scan = streams.scan(trajectory=kind, limits={"phase": (0, 3, 0)} if has_limits else {})
        assembler = Assembler(scan, Grouping.CINE, slots)
        groups = [group for readout in readouts for group in assembler.add(readout)]
        (group,) = groups or assembler.finish()
        buffers, used = encode_job(Job("session", "sense", {}, group, {}), slots)
        assert len(used) == 1
        n_buffers = int(np.frombuffer(buffers[0][:8], np.uint64)[0])
        text = memoryview(buffers[0])[16 + 8 * n_buffers :]
        job = decode_job(text, [bytearray(part) for part in buffers[1:]], SlotViews(fd))
        np.testing.assert_array_equal(job.group.kspace, group.kspace)
        np.testing.assert_array_equal(job.group.counts, group.counts)
        if dimensions:
            np.testing.assert_array_equal(job.group.trajectory, group.trajectory)
        at = sorted(phases).index(phases[-1])
        np.testing.assert_array_equal(job.group.kspace[at, :, 0, 7], readouts[-1].complex_samples()[0])
        group.release()
        assert slots.bytes_in_use == 0
    finally:
        os.close(fd)
        slots.close()
