from math import pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import EvaluationError
from pipelines.evaluation.samplings import Lines, Plane, Radial, find_sampling

PLANES = ["gaussian8", "poisson8"]
RANDOM = ["cartesian4_acl8", "cartesian4_acl4_swapped", "equispaced4_acl8", "cartesian8_acl4", "radial11", *PLANES]


def centred_run(mask):
    """Lines of the longest fully sampled run with the centre n//2 at its own length//2."""
    n = len(mask)
    return max(size for size in range(n + 1) if mask[n // 2 - size // 2 : n // 2 - size // 2 + size].all())


@pytest.mark.parametrize(("name", "acceleration", "share"), [
    ("full", 1, 1), ("cartesian4_acl8", 4, 0.08), ("cartesian4_acl4", 4, 0.04), ("cartesian8_acl4", 8, 0.04),
    ("cartesian4_acl8_swapped", 4, 0.08), ("cartesian2_acl10", 2, 0.1), ("equispaced4_acl8", 4, 0.08),
    ("equispaced4_acl4", 4, 0.04),
])  # fmt: skip
@settings(max_examples=20, deadline=None)
@given(n=st.integers(32, 400), seed=st.integers(0, 2**31))
def test_lines_reach_their_acceleration_and_share_of_calibration_lines(name, acceleration, share, n, seed):
    mask = find_sampling(name).mask(n, np.random.default_rng(seed))

    assert mask.shape == (n,)
    assert np.count_nonzero(mask) == round(n / acceleration)
    assert centred_run(mask) >= round(share * n)


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("shape", [(96, 120), (81, 64)])
def test_planes_reach_their_acceleration_and_share_of_calibration(name, shape):
    mask = find_sampling(name).mask(shape, np.random.default_rng(1))

    assert mask.size / np.count_nonzero(mask) == pytest.approx(8, rel=0.02)
    z, y = (round(0.08 * n) for n in shape)
    top, left = shape[0] // 2 - z // 2, shape[1] // 2 - y // 2
    assert mask[top : top + z, left : left + y].all()


def test_gaussian_points_are_denser_near_the_centre():
    mask = find_sampling("gaussian8").mask((120, 120), np.random.default_rng(0))

    rings = np.hypot(*(np.mgrid[:120, :120] - 60))
    densities = [mask[(rings >= inner) & (rings < inner + 15)].mean() for inner in (0, 15, 30, 45)]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > 10 * densities[3]


def test_disc_points_keep_apart_far_from_the_centre():
    mask = find_sampling("poisson8").mask((96, 96), np.random.default_rng(0))

    far = mask & (np.hypot(*(np.mgrid[:96, :96] - 48)) > 30)
    neighbours = far[1:, :] & far[:-1, :]
    assert not neighbours.any()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(48, 400), seed=st.integers(0, 2**31))
def test_even_lines_keep_one_distance(n, seed):
    sampling = find_sampling("equispaced4_acl8")
    mask = sampling.mask(n, np.random.default_rng(seed))

    central = round(0.08 * n)
    start = n // 2 - central // 2
    for side in (mask[:start], mask[start + central :]):
        gaps = np.diff(np.flatnonzero(side))
        assert np.ptp(gaps) <= 1


def test_random_lines_lie_anywhere_else_with_the_same_chance():
    masks = np.stack([find_sampling("cartesian4_acl8").mask(100, np.random.default_rng(seed)) for seed in range(2000)])

    others = np.delete(masks.mean(0), range(46, 54))
    expected = (25 - 8) / 92
    np.testing.assert_allclose(others, expected, atol=5 * np.sqrt(expected / 2000))


@pytest.mark.parametrize("shape", [(256, 256), (230, 180), (64, 91)])
def test_spokes_are_as_many_as_the_acceleration_asks_for(shape):
    sampling = find_sampling("radial11")

    positions = sampling.positions(shape, np.random.default_rng(0))

    n = max(shape)
    assert positions.shape == (sampling.n_spokes(shape), n, 2)
    assert pi / 2 * n / len(positions) == pytest.approx(11, rel=0.06)
    radius = np.hypot(*np.moveaxis(positions, -1, 0))
    assert radius.max() == pytest.approx(0.5, abs=1 / n)
    np.testing.assert_allclose(positions[:, n // 2], 0, atol=1e-7)


def test_neighbouring_spokes_are_the_golden_angle_apart():
    positions = find_sampling("radial11").positions((128, 128), np.random.default_rng(4)).astype(float)

    angles = np.arctan2(positions[:, -1, 1], positions[:, -1, 0])
    np.testing.assert_allclose(np.diff(angles) % pi, np.deg2rad(111.246117975) % pi, atol=1e-4)


def draw(name, seed):
    sampling, rng = find_sampling(name), np.random.default_rng(seed)
    if isinstance(sampling, Radial):
        return sampling.positions((64, 64), rng)
    return sampling.mask(64, rng) if isinstance(sampling, Lines) else sampling.mask((64, 64), rng)


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_decides_the_pattern(name):
    np.testing.assert_array_equal(draw(name, 3), draw(name, 3))
    assert not np.array_equal(draw(name, 3), draw(name, 4))


@pytest.mark.parametrize(
    "name", ["spiral", "cartesian4", "cartesian0_acl8", "cartesian4_acl8_", "gaussian", "radial100", ""]
)
def test_an_unknown_name_is_answered_with_those_known(name):
    with pytest.raises(EvaluationError, match=r"cartesianR_aclP.*radialR"):
        find_sampling(name)


@pytest.mark.parametrize("name", ["cartesian8_acl20", "equispaced13_acl8_swapped"])
def test_calibration_that_leaves_no_lines_is_refused(name):
    with pytest.raises(EvaluationError, match="calibration alone"):
        find_sampling(name)


def test_a_name_says_all_of_a_pattern():
    assert find_sampling("equispaced6_acl4_swapped") == Lines(6, 0.04, is_even=True, is_swapped=True)
    assert find_sampling("poisson12") == Plane(12, 0.08, is_disc=True)
    assert find_sampling("radial7") == Radial(7)
