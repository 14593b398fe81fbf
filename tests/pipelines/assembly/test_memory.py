"""Memory known from the header: what is said is what is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.memory import MemoryNeed, scan_memory
from pipelines.errors import AssemblyError, BudgetError
from pipelines.scan_header import TrajectoryType

Streams = Any
LINE = 6 * 2 * 8


@settings(max_examples=60, deadline=None)
@given(
    y=st.integers(3, 6),
    z=st.integers(1, 3),
    n_slices=st.integers(1, 4),
    n_phases=st.integers(1, 3),
    n_repetitions=st.integers(1, 2),
    grouping=st.sampled_from(list(Grouping)),
)
def test_scan_that_interleaves_everything_takes_exactly_what_was_said(
    streams: Streams, y: int, z: int, n_slices: int, n_phases: int, n_repetitions: int, grouping: Grouping
):
    limits = {"slice": (0, n_slices - 1, 0), "phase": (0, n_phases - 1, 0), "repetition": (0, n_repetitions - 1, 0)}
    scan = streams.scan(y, z=z, limits=limits)
    need = scan_memory(scan, grouping, 2)[0]
    assert isinstance(need, MemoryNeed)
    slots = streams.Slots()
    assembler = Assembler(scan, grouping, slots)
    groups = []
    most = 0
    for line in range(y):
        for partition in range(z):
            for slice_ in range(n_slices):
                for phase in range(n_phases):
                    for repetition in range(n_repetitions):
                        counters = {"slice": slice_, "phase": phase, "repetition": repetition}
                        groups += assembler.add(streams.readout(line, partition=partition, **counters))
                        most = max(most, assembler.bytes_held)
    assert need.open_bytes == sum(slot.data.nbytes for slot in slots.taken)
    assert len(groups) == need.n_groups
    assert most <= need.open_bytes
    assert max(sum(slot.data.nbytes for slot in group.slots) for group in groups) == need.group_bytes
    assert most >= need.open_bytes - need.group_bytes


def test_limit_is_met_to_the_byte(streams: Streams):
    scan = streams.scan(8, limits={"phase": (1, 5, 1)}, coils=2)
    Assembler(scan, Grouping.CINE, streams.Slots(), AssemblyLimits(max_group_bytes=5 * 8 * LINE))
    with pytest.raises(BudgetError, match="5 frames of 6 x 8 x 1 with 2 channels"):
        Assembler(scan, Grouping.CINE, streams.Slots(), AssemblyLimits(max_group_bytes=5 * 8 * LINE - 1))


def test_stack_whose_neighbours_do_not_fit_is_refused_by_its_header(streams: Streams):
    scan = streams.scan(8, limits={"slice": (0, 9, 0)}, coils=2)
    Assembler(scan, Grouping.STACK, streams.Slots(), AssemblyLimits(max_group_bytes=3 * 8 * LINE))
    with pytest.raises(BudgetError, match="a slice and its neighbours with 2 channels need 2304 bytes"):
        Assembler(scan, Grouping.STACK, streams.Slots(), AssemblyLimits(max_group_bytes=3 * 8 * LINE - 1))


def test_non_cartesian_memory_counts_the_trajectory(streams: Streams):
    limits = {"kspace_encode_step_1": (0, 9, 5), "average": (0, 1, 0), "segment": (0, 2, 0)}
    scan = streams.scan(8, limits=limits, trajectory=TrajectoryType.RADIAL)
    assert scan_memory(scan, Grouping.SLICE, 2)[0] == MemoryNeed(60 * (LINE + 48), 1, 60 * (LINE + 48))


def test_space_that_is_not_assembled_says_why(streams: Streams):
    need = scan_memory(streams.scan(z=2, trajectory=TrajectoryType.SPIRAL), Grouping.SLICE, 2)[0]
    assert isinstance(need, AssemblyError)
    assert "2 partitions" in str(need)
