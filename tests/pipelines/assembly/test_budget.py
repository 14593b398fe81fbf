"""What assembly may take: limits of memory and number, what is given back, and where samples lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import AssemblyError, BudgetError, PipelineError
from pipelines.mrd import AcquisitionFlag, Acquisitions

Streams = Any
F = AcquisitionFlag


def test_header_over_the_budget_is_refused_before_memory_is_taken(streams: Streams):
    slots = streams.Slots()
    with pytest.raises(BudgetError, match="16384 x 16384"):
        Assembler(streams.scan(16_384, 16_384, 100), Grouping.SLICE, slots)
    with pytest.raises(BudgetError, match="needs 2147483648 bytes"):
        Assembler(streams.scan(16_384, 16_384), Grouping.SLICE, slots)
    assert slots.taken == []


def test_more_coils_than_the_budget_allows_are_refused_before_memory_is_taken(streams: Streams):
    slots = streams.Slots()
    assembler = Assembler(streams.scan(), Grouping.SLICE, slots, AssemblyLimits(max_group_bytes=8 * 6 * 8))
    with pytest.raises(BudgetError, match="2 channels"):
        assembler.add(streams.readout(0))
    assert slots.taken == []


@pytest.mark.parametrize(
    "limits",
    [AssemblyLimits(max_channels=1), AssemblyLimits(max_samples=5), AssemblyLimits(max_open_bytes=5)],
)
def test_readout_over_a_limit_is_refused(streams: Streams, limits: AssemblyLimits):
    with pytest.raises(BudgetError):
        streams.assemble(streams.scan(), [streams.readout(0)], limits=limits)


def test_unfinished_groups_are_bounded_in_number_and_bytes(streams: Streams):
    readouts = [streams.readout(0, slice=n) for n in range(100)]
    for limits in (AssemblyLimits(max_open_groups=10), AssemblyLimits(max_open_bytes=10 * 8 * 6 * 2 * 8)):
        slots = streams.Slots()
        assembler = Assembler(streams.scan(), Grouping.SLICE, slots, limits)
        for readout in readouts[:10]:
            assembler.add(readout)
        with pytest.raises(BudgetError, match="unfinished groups"):
            assembler.add(readouts[10])
        assert len(slots.taken) == 10
        assembler.abandon()
        assert (slots.n_out, assembler.bytes_held) == (0, 0)


@pytest.mark.parametrize("is_taken", [False, True])
def test_groups_complete_before_an_error_can_be_taken_or_are_released(streams: Streams, is_taken: bool):
    slots = streams.Slots()
    assembler = Assembler(streams.scan(), Grouping.SLICE, slots)
    readouts = [*(streams.readout(n) for n in range(8)), streams.readout(0, slice=1), streams.readout(0, encoding=9)]
    (batch,) = streams.batches(readouts)
    with pytest.raises(PipelineError):
        assembler.add(batch)
    assert slots.n_out == 2
    groups = assembler.take_ready() if is_taken else []
    assembler.abandon()
    assert slots.n_out == len(groups) == int(is_taken)


def test_nothing_of_a_batch_is_kept(streams: Streams):
    readouts = [streams.readout(0, F.IS_NOISE_MEASUREMENT, center=0), streams.readout(4, F.IS_PARALLEL_CALIBRATION)]
    batches = streams.batches([*readouts, *(streams.readout(n) for n in range(8))])
    kept = Assembler(streams.scan(), Grouping.SLICE, streams.Slots())
    spoilt = Assembler(streams.scan(), Grouping.SLICE, streams.Slots())
    groups, others = [], []
    for batch in batches:
        groups += kept.add(batch)
        copy = Acquisitions(batch.headers.copy(), batch.samples.copy())
        others += spoilt.add(copy)
        copy.headers.view(np.uint8)[:] = 0xEE
        copy.samples[:] = 0xEE
    for group, other in zip(groups, others, strict=True):
        assert group.kspace.tobytes() == other.kspace.tobytes()
        assert group.headers.tobytes() == other.headers.tobytes()
        assert group.noise.sums.tobytes() == other.noise.sums.tobytes()
        assert group.calibration.kspace.tobytes() == other.calibration.kspace.tobytes()


def test_kspace_lies_in_the_slot_with_each_readout_in_one_block(streams: Streams):
    (group,), _ = streams.assemble(streams.scan(), [streams.readout(n) for n in range(8)])
    assert np.shares_memory(group.kspace, group.slots[0].data)
    assert group.kspace[0, :, 0, 3].flags.c_contiguous


def test_no_memory_is_taken_for_a_readout_that_cannot_be_placed(streams: Streams):
    slots = streams.Slots()
    with pytest.raises(AssemblyError):
        Assembler(streams.scan(), Grouping.SLICE, slots).add(streams.readout(0, samples=7))
    assert slots.taken == []
