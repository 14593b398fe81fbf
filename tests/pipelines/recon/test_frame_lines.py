"""Lines of frames: what is held out, and when frames tell nothing of each other."""

from __future__ import annotations

import pytest
import torch

from pipelines.errors import ReconstructionError
from pipelines.recon.frame_lines import hold_out, measured_lines, share_one_pattern, with_lines
from tests.pipelines.recon.cine_scenes import CENTRAL, FRAMES, ROWS, cartesian_cine, radial_cine


def test_lines_held_out_are_measured_apart_and_not_of_the_centre():
    prepared, _ = cartesian_cine(lines=16)
    measured = measured_lines(prepared)
    sets = hold_out(prepared, 0.12, 5, 0)
    together = torch.stack(sets)
    assert together.sum(0).max() == 1
    assert not bool((together & ~measured).any())
    first = ROWS // 2 - CENTRAL // 2
    assert not bool(together[..., first : first + CENTRAL].any())
    assert all(int(each.sum()) == 2 * FRAMES for each in sets)
    again = hold_out(prepared, 0.12, 5, 0)
    assert all(torch.equal(one, other) for one, other in zip(sets, again, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(sets, hold_out(prepared, 0.12, 5, 1), strict=True))


def test_frames_with_few_lines_give_each_set_some():
    prepared, _ = cartesian_cine(lines=CENTRAL + 2)
    sets = hold_out(prepared, 0.12, 5, 0)
    assert [int(each.sum()) for each in sets] == [2 * FRAMES // 5] * 5


def test_without_lines_outside_of_the_centre_nothing_can_be_held_out():
    prepared, _ = cartesian_cine(lines=CENTRAL)
    with pytest.raises(ReconstructionError, match="too few to hold some out"):
        hold_out(prepared, 0.12, 5, 0)


@pytest.mark.parametrize("make", [cartesian_cine, radial_cine])
def test_lines_left_out_leave_no_trace(make):
    prepared, _ = make()
    measured = measured_lines(prepared)
    kept = measured & ~hold_out(prepared, 0.2, 3, 0)[0]
    fewer = with_lines(prepared, kept)
    assert torch.equal(measured_lines(fewer), kept)
    gone = (measured & ~kept)[:, None, :, :, None].expand_as(prepared.kspace)
    assert float(fewer.kspace[gone].abs().max()) == 0
    here = kept[:, None, :, :, None].expand_as(prepared.kspace)
    assert torch.equal(fewer.kspace[here], prepared.kspace[here])


@pytest.mark.parametrize("make", [cartesian_cine, radial_cine])
def test_one_pattern_for_all_frames_is_told(make):
    assert not share_one_pattern(make()[0])
    assert share_one_pattern(make(same=True)[0])


def test_fully_sampled_frames_share_no_undersampling():
    prepared, _ = cartesian_cine(lines=ROWS)
    assert not share_one_pattern(prepared)
