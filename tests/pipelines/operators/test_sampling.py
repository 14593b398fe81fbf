"""Where coils can know k-space, and where nothing does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.operators.sampling import FARTHEST_REACH, unreached

ALL = torch.ones(4, dtype=torch.bool)


def lines(n, measured):
    counts = torch.zeros((1, 1, n))
    counts[0, 0, measured] = 2
    return counts


def beyond(counts):
    """Lines of y in the first partition that were not reached."""
    return torch.nonzero(unreached(counts, ALL)[0, 0, :, 0])[:, 0].tolist()


@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 5))
def test_nothing_within_a_regular_pattern_is_out_of_reach(acceleration, n_lines, start):
    n = acceleration * n_lines
    assert beyond(lines(n, list(range(start % acceleration, n, acceleration)))) == []


@given(st.integers(8, 40), st.integers(0, 30), st.integers(0, 30))
def test_all_that_a_fully_sampled_part_lacks_is_out_of_reach(n, before, after):
    measured = list(range(before, max(n - after, before + 1)))
    if measured[-1] < n:
        assert beyond(lines(n, measured)) == sorted(set(range(n)) - set(measured))


def test_reach_is_half_the_distance_of_lines_and_ends_are_neighbours():
    # Every third line from 2 to 17 of 24; the gap between 17 and 2 goes over the end.
    assert beyond(lines(24, list(range(2, 18, 3)))) == [0, 19, 20, 21, 22, 23]
    # Denser lines in the middle do not shorten it.
    assert beyond(lines(24, sorted({*range(2, 18, 3), 8, 9, 10}))) == [0, 19, 20, 21, 22, 23]


def test_wide_gaps_are_reached_as_far_as_coils_see():
    assert beyond(lines(40, [5, 25])) == sorted(
        set(range(40)) - {at + by for at in (5, 25) for by in range(-FARTHEST_REACH, FARTHEST_REACH + 1)}
    )


def test_single_lines_that_are_missing_do_not_widen_the_reach():
    measured = [line for line in range(0, 24, 2) if line not in (8, 10)]
    assert beyond(lines(24, measured)) == [8, 9, 10]


def test_nothing_within_a_shifted_lattice_is_out_of_reach():
    z, y = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    counts = ((z % 2 == 0) & ((y + z // 2) % 2 == 0)).float()[None]
    assert not unreached(counts, ALL).any()


def test_corners_of_an_elliptical_shutter_are_out_of_reach():
    z, y = torch.meshgrid(torch.arange(-8, 8), torch.arange(-12, 12), indexing="ij")
    counts = ((z / 8) ** 2 + (y / 12) ** 2 <= 1).float()[None]
    assert torch.equal(unreached(counts, ALL)[0, :, :, 0], counts[0] == 0)


@pytest.mark.parametrize("missing", [slice(0, 3), slice(7, 10)])
def test_samples_that_an_asymmetric_echo_leaves_out_are_out_of_reach_in_every_line(missing):
    sampled = torch.ones(10, dtype=torch.bool)
    sampled[missing] = False
    found = unreached(lines(6, list(range(0, 6, 2))), sampled)
    assert torch.equal(found, (~sampled).expand(1, 1, 6, 10))


def test_frames_are_told_apart():
    both = torch.cat([lines(8, list(range(8))), lines(8, [3, 4, 5, 6, 7]), lines(8, [])])
    assert unreached(both, ALL)[..., 0].sum((1, 2)).tolist() == [0, 3, 8]
