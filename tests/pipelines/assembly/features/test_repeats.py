"""Averages weighted by their number, unequal numbers, repeated lines, segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mrd import AcquisitionFlag
from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Pattern, Protocol
from pipelines.simulation.plan import Plan, in_segments, repeat_lines
from pipelines.simulation.volume import simulate_volume

Fixture = Callable[..., Any]
ANATOMY = head_phantom(1, 48, 40)
CLEAN = Protocol(n_coils=4, noise_std=0, noise_readouts=0)
CENTRE = list(range(18, 31))


@given(averages=st.integers(1, 4), repeated=st.integers(1, 5), is_outer=st.booleans())
@settings(max_examples=15, deadline=None)
def test_averages_are_summed_and_counted(
    assemble_as_specified: Fixture, averages: int, repeated: int, is_outer: bool
) -> None:
    """Repeated lines and averages are summed and their number kept; in Gadgetron's buffers the last one wins."""
    edit = repeat_lines(CENTRE, repeated)
    scan = simulate(ANATOMY, Protocol(n_coils=2, averages=averages), edit=None if is_outer else edit)
    (group,) = assemble_as_specified(scan)[0].values()
    expected = np.full(48, averages)
    if not is_outer:
        expected[CENTRE] *= repeated
    assert group.counts[0, 0].tolist() == expected.tolist()
    assert group.is_complete


@pytest.mark.parametrize(("name", "parameters"), [("zero_filled", {}), ("sense", {"regularisation": 0})])
def test_unequal_averages_do_not_change_the_image(
    reconstruct: Fixture, nrmse: Fixture, name: str, parameters: dict[str, object]
) -> None:
    """The mean of each line enters, not the sum: a centre measured three times would be three times too bright."""
    edit = repeat_lines(CENTRE, 3)
    (image,) = reconstruct(simulate(ANATOMY, CLEAN, edit=edit), name, **parameters).values()
    (expected,) = reconstruct(simulate(ANATOMY, CLEAN), name, **parameters).values()
    assert nrmse(image.pixels, expected.pixels) < 2e-3


def test_more_averages_lower_the_uncertainty_by_their_root(assemble: Fixture) -> None:
    from pipelines.pipeline import Pipeline

    deviations = []
    for averages in (1, 4):
        scan = simulate(ANATOMY, Protocol(n_coils=4, averages=averages))
        (group,) = assemble(scan)[0].values()
        deviations.append(Pipeline("zero_filled", {}, "cpu")(group, {}).images[1].pixels)
    solid = ANATOMY[0] > 0.3
    ratio = np.median(deviations[0][0, 0][solid] / deviations[1][0, 0][solid])
    assert ratio == pytest.approx(2, rel=0.02)


def test_averages_of_undersampled_lines_are_weighted_by_their_number(
    assemble_as_specified: Fixture, reconstruct: Fixture, nrmse: Fixture
) -> None:
    """Only the calibration region is averaged more often, as a vendor's embedded reference may be."""
    protocol = Protocol(n_coils=8, acceleration=2, calibration_lines=16, noise_std=0.005)
    scan = simulate(ANATOMY, protocol, edit=repeat_lines(list(range(16, 32)), 2))
    groups, _ = assemble_as_specified(scan)
    (group,) = groups.values()
    assert sorted(set(group.counts[0, 0].tolist())) == [0, 1, 2]
    (image,) = reconstruct(scan, "sense").values()
    assert nrmse(image.pixels, scan.truth.whitened_magnitude(), is_scaled=True) < 0.03


def test_averages_that_stop_early_leave_a_complete_image(assemble_as_specified: Fixture) -> None:
    """Lines that were measured once of three times are there: nothing is missing, and nothing waits beyond CLOSE."""

    def without_the_rest(plan: Plan) -> Plan:
        return np.asarray(plan[(plan["average"] == 0) | (plan["line"] < 20)])

    scan = simulate(ANATOMY, replace(CLEAN, averages=3), edit=without_the_rest)
    groups, assembler = assemble_as_specified(scan)
    (group,) = groups.values()
    assert group.counts[0, 0].tolist() == [3] * 20 + [1] * 28
    assert group.is_complete
    assert assembler.take_warnings() == []


@pytest.mark.parametrize("pattern", [Pattern.FULL, Pattern.REGULAR])
def test_lines_repeated_with_equal_counters_are_averaged(
    assemble_as_specified: Fixture, reconstruct: Fixture, nrmse: Fixture, pattern: Pattern
) -> None:
    protocol = replace(CLEAN, pattern=pattern, acceleration=2, calibration_lines=16)
    scan = simulate(ANATOMY, protocol, edit=repeat_lines([20, 24], 4, as_averages=False))
    (group,) = assemble_as_specified(scan)[0].values()
    assert group.counts[0, 0, [20, 24]].tolist() == [4, 4]
    (image,) = reconstruct(scan, "zero_filled").values()
    (expected,) = reconstruct(simulate(ANATOMY, protocol), "zero_filled").values()
    assert nrmse(image.pixels, expected.pixels) < 1e-5


@pytest.mark.parametrize("n_segments", [2, 5])
def test_segments_are_one_image(assemble_as_specified: Fixture, n_segments: int) -> None:
    """The segment is the shot in which a line was measured; it places nothing and tells no images apart."""
    protocol = replace(CLEAN, frame_counters=((FrameCounter.PHASE, 2),))
    scan = simulate(np.stack([ANATOMY, 0.5 * ANATOMY]), protocol, edit=in_segments(n_segments))
    groups, _ = assemble_as_specified(scan)
    assert [key[3] for key in groups] == [0, 1]
    assert all((group.counts == 1).all() and group.is_complete for group in groups.values())


def test_segments_with_last_flags_of_their_own_are_not_cut_to_pieces(assemble_as_specified: Fixture) -> None:
    def flagged_shots(plan: Plan) -> Plan:
        plan = in_segments(3)(plan)
        ends = np.flatnonzero(np.diff(plan["segment"].astype(int), append=-1))
        plan["flags"][ends] |= np.uint64(AcquisitionFlag.LAST_IN_SEGMENT.mask | AcquisitionFlag.LAST_IN_SLICE.mask)
        return plan

    groups, assembler = assemble_as_specified(simulate(ANATOMY, CLEAN, edit=flagged_shots))
    assert [int(group.counts.sum()) for group in groups.values()] == [48]
    assert assembler.counts["late"] == 0


def test_averages_of_a_volume_are_summed(assemble_as_specified: Fixture) -> None:
    scan = simulate_volume(head_phantom(6, 16, 16), replace(CLEAN, averages=2))
    (group,) = assemble_as_specified(scan)[0].values()
    assert (group.counts == 2).all()
