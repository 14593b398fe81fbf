"""Two phase-encoding directions: what CAIPI, elliptical and irregular patterns promise, and when they are complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import Completion, Grouping
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.pattern import Lattice, is_scattered, recognise_lattice
from pipelines.mrd import AcquisitionFlag
from pipelines.scan_header import CalibrationMode

Streams = Any
F = AcquisitionFlag
Y, Z = 16, 12


def readouts_of(streams: Streams, mask: Any, *last: AcquisitionFlag, slice_: int = 0, order: Any = None) -> list[Any]:
    """The lines of a mask `(z, y)`, partitions outermost unless `order` is given, flags on the last line."""
    lines = np.argwhere(mask)
    lines = lines if order is None else lines[order]
    return [
        streams.readout(int(y), *(last if n == len(lines) - 1 else ()), partition=int(z), slice=slice_)
        for n, (z, y) in enumerate(lines)
    ]


def caipi(steps: tuple[int, int], axis: int, shift: int, start: tuple[int, int] = (0, 0)) -> Any:
    """By its definition, line by line: one axis in steps, the other shifted on with every step."""
    mask = np.zeros((Z, Y), bool)
    rows, columns = (range(start[1], Z, steps[1]), range(Y)) if axis == 0 else (range(start[0], Y, steps[0]), range(Z))
    for number, row in enumerate(rows):
        for column in columns:
            if (column - start[axis] - shift * number) % steps[axis] == 0:
                mask[(row, column) if axis == 0 else (column, row)] = True
    return mask


def ellipse(scale: float = 1.0) -> Any:
    z, y = np.mgrid[:Z, :Y]
    return ((y - Y // 2) / (scale * Y / 2)) ** 2 + ((z - Z // 2) / (scale * Z / 2)) ** 2 <= 1


def poisson(seed: int, keep: float = 0.3) -> Any:
    """Irregular, with a fully sampled centre."""
    mask = np.random.default_rng(seed).random((Z, Y)) < keep
    mask[Z // 2 - 2 : Z // 2 + 2, Y // 2 - 2 : Y // 2 + 2] = True
    return mask


@settings(max_examples=150, deadline=None)
@given(
    steps=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    axis=st.integers(0, 1),
    shift=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_shifted_pattern_is_promised_exactly_and_full_at_its_last_line(
    streams: Streams, steps: tuple[int, int], axis: int, shift: int, seed: int, data: Any
):
    assume(steps != (1, 1))
    start = data.draw(st.tuples(st.integers(0, steps[0] - 1), st.integers(0, steps[1] - 1)))
    mask = caipi(steps, axis, shift % steps[axis], start)
    scan = streams.scan(Y, z=Z, acceleration=steps, mode=CalibrationMode.SEPARATE)
    order = np.random.default_rng(seed).permutation(int(mask.sum()))
    (group,), _ = streams.assemble(scan, readouts_of(streams, mask, order=order), finish=False)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.FULL, True, mask.sum())
    np.testing.assert_array_equal(group.counts[0] > 0, mask)


@pytest.mark.parametrize(("steps", "axis", "shift"), [((2, 2), 0, 1), ((2, 2), 1, 1), ((1, 4), 1, 2), ((3, 2), 0, 2)])
def test_hole_in_a_shifted_pattern_is_marked_even_with_a_flag(
    streams: Streams, steps: tuple[int, int], axis: int, shift: int
):
    mask = caipi(steps, axis, shift)
    hole = np.argwhere(mask)[mask.sum() // 2]
    mask[tuple(hole)] = False
    scan = streams.scan(Y, z=Z, acceleration=steps, mode=CalibrationMode.SEPARATE)
    (group,), _ = streams.assemble(scan, readouts_of(streams, mask, F.LAST_IN_MEASUREMENT))
    assert (group.is_complete, group.expected_lines) == (False, mask.sum() + 1)


def test_caipi_with_embedded_calibration_is_complete_when_the_next_slab_begins(streams: Streams):
    mask = caipi((2, 2), 0, 1)
    scan = streams.scan(Y, z=Z, acceleration=(2, 2), mode=CalibrationMode.EMBEDDED)
    centre = [streams.readout(y, F.IS_PARALLEL_CALIBRATION, partition=z) for z in (5, 6, 7) for y in (7, 8, 9)]
    extra = [
        r
        for r in centre
        if not mask[int(r.headers["idx"]["kspace_encode_step_2"][0]), r.headers["idx"]["kspace_encode_step_1"][0]]
    ]
    readouts = [*readouts_of(streams, mask), *extra, streams.readout(0, slice=1)]
    (group,), _ = streams.assemble(scan, readouts, finish=False)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.COUNTER, True, mask.sum())


def test_plain_pattern_is_preferred_to_a_shifted_one():
    y, z = np.array([0, 2, 4, 0]), np.array([0, 0, 0, 4])
    assert recognise_lattice(y, z, (2, 2)) == Lattice((2, 2), (0, 0))
    assert recognise_lattice(np.array([0, 1]), np.array([0, 1]), (2, 2)) is None


@pytest.mark.parametrize("steps", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("scale", [0.95, 1.0, 1.05])
def test_elliptical_scan_is_complete_by_its_flag(streams: Streams, steps: tuple[int, int], scale: float):
    mask = ellipse(scale) & caipi(steps, 0, 0)
    scan = streams.scan(Y, z=Z, acceleration=steps, mode=CalibrationMode.SEPARATE)
    (group,), assembler = streams.assemble(scan, readouts_of(streams, mask, F.LAST_IN_MEASUREMENT))
    assert (group.is_complete, group.expected_lines) == (True, mask.sum())
    assert assembler.take_warnings() == []


@pytest.mark.parametrize("line", [(6, 8), (4, 5), (6, 13), (9, 8)])
@pytest.mark.parametrize("steps", [(1, 1), (1, 2)])
def test_hole_inside_the_ellipse_is_marked_even_with_a_flag(streams: Streams, line: tuple[int, int], steps: Any):
    mask = ellipse() & caipi(steps, 0, 0)
    if not mask[line]:
        line = (line[0] + 1, line[1])
    mask[line] = False
    scan = streams.scan(Y, z=Z, acceleration=steps, mode=CalibrationMode.SEPARATE)
    (group,), _ = streams.assemble(scan, readouts_of(streams, mask, F.LAST_IN_MEASUREMENT))
    assert not group.is_complete


def test_elliptical_scan_without_a_flag_is_marked(streams: Streams):
    (group,), _ = streams.assemble(streams.scan(Y, z=Z), readouts_of(streams, ellipse()))
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.CLOSE, False, Y * Z)


@pytest.mark.parametrize("flag", [F.LAST_IN_SLICE, F.LAST_IN_REPETITION, F.LAST_IN_MEASUREMENT])
@pytest.mark.parametrize("seed", range(4))
def test_irregular_pattern_without_acceleration_is_complete_by_its_flag(
    streams: Streams, flag: AcquisitionFlag, seed: int
):
    mask = poisson(seed)
    (group,), assembler = streams.assemble(streams.scan(Y, z=Z), readouts_of(streams, mask, flag))
    assert (group.is_complete, group.expected_lines) == (True, mask.sum())
    assert assembler.take_warnings() == []


def test_irregular_pattern_without_flag_or_with_a_damaged_line_is_marked(streams: Streams):
    mask = poisson(1)
    limits = AssemblyLimits(min_complete_fraction=0.2)
    (group,), _ = streams.assemble(streams.scan(Y, z=Z), readouts_of(streams, mask), limits=limits)
    assert (group.is_complete, group.expected_lines) == (False, Y * Z)
    readouts = readouts_of(streams, mask, F.LAST_IN_MEASUREMENT)
    readouts[3].samples.reshape(-1).view(np.complex64)[0] = np.nan
    (group,), _ = streams.assemble(streams.scan(Y, z=Z), readouts, limits=limits)
    assert (group.is_complete, group.expected_lines) == (False, Y * Z)


@settings(max_examples=60, deadline=None)
@given(lost=st.sets(st.integers(0, Y * Z - 2), min_size=1, max_size=Y * Z // 5))
def test_full_scan_that_lost_lines_is_marked_even_with_a_flag(streams: Streams, lost: set[int]):
    mask = np.ones((Z, Y), bool)
    mask.reshape(-1)[sorted(lost)] = False
    assume(not ellipse(1.1).reshape(-1)[[n for n in range(Y * Z) if n not in lost]].all())
    groups, _ = streams.assemble(streams.scan(Y, z=Z), readouts_of(streams, mask, F.LAST_IN_MEASUREMENT))
    assert [group.is_complete for group in groups] == [False]


def test_scan_that_is_cut_short_is_not_taken_for_an_irregular_one():
    mask = np.ones((1, 32), bool)
    mask[0, 20:] = False
    assert not is_scattered(mask, (0, 16))
    mask[0, [1, 3, 4, 6, 9]] = False
    assert is_scattered(mask, (0, 16))
    mask[0, 15] = False
    assert not is_scattered(mask, (0, 16))  # nobody leaves out the centre on purpose


def test_declared_acceleration_counts_irregular_lines(streams: Streams):
    mask = poisson(2, keep=0.2)
    scan = streams.scan(Y, z=Z, acceleration=(2, 2), mode=CalibrationMode.EMBEDDED)
    (group,), _ = streams.assemble(scan, readouts_of(streams, mask, F.LAST_IN_MEASUREMENT))
    assert (group.is_complete, group.expected_lines) == (True, Y * Z // 4)
    few = mask & (np.cumsum(mask).reshape(Z, Y) <= Y * Z // 4 - 2)
    assert few.sum() == Y * Z // 4 - 2
    (group,), _ = streams.assemble(scan, readouts_of(streams, few, F.LAST_IN_MEASUREMENT))
    assert (group.is_complete, group.expected_lines) == (False, Y * Z // 4)


def test_flag_of_an_irregular_series_is_believed_once_it_was_proven(streams: Streams):
    readouts = [
        readout
        for repetition in range(4)
        for readout in readouts_of(streams, poisson(repetition), F.LAST_IN_SLICE)
        if readout.headers["idx"].__setitem__("repetition", repetition) is None
    ]
    groups, assembler = streams.assemble(streams.scan(Y, z=Z), readouts, finish=False)
    assert [group.completion for group in groups] == [Completion.COUNTER, *[Completion.FLAG] * 3]
    assert all(group.is_complete for group in groups)
    assert assembler.counts["late"] == 0


def test_flag_of_another_slice_ends_an_irregular_one_too(streams: Streams):
    first, second = (readouts_of(streams, poisson(n), slice_=n) for n in range(2))
    second[-1].headers["flags"] |= F.LAST_IN_MEASUREMENT.mask
    groups, _ = streams.assemble(streams.scan(Y, z=Z), first + second)
    assert [group.is_complete for group in groups] == [True, True]


def test_volume_is_a_slab_of_all_partitions(streams: Streams):
    readouts = [r for n in range(2) for r in readouts_of(streams, np.ones((Z, Y), bool), slice_=n)]
    scan = streams.scan(Y, z=Z)
    volumes, slabs = (
        streams.assemble(scan, readouts, grouping=grouping, finish=False)[0]
        for grouping in (Grouping.VOLUME, Grouping.SLICE)
    )
    assert [group.kspace.shape for group in volumes] == [(1, 2, Z, Y, 6)] * 2
    for volume, slab in zip(volumes, slabs, strict=True):
        assert (volume.key, volume.completion) == (slab.key, slab.completion)
        np.testing.assert_array_equal(volume.kspace, slab.kspace)
