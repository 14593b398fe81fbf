"""Computed radial trajectories against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.trajectory import GOLDEN_ANGLE_DEG, golden_angles, radial, uniform_angles


def test_golden_angle_is_that_of_the_literature():
    assert pytest.approx(111.246117975, abs=1e-8) == GOLDEN_ANGLE_DEG  # Winkelmann 2007
    assert pytest.approx(180 / ((1 + 5**0.5) / 2), abs=1e-10) == GOLDEN_ANGLE_DEG


def test_first_spoke_lies_on_the_read_axis_from_minus_a_half():
    positions = radial(uniform_angles(np.arange(4), 4), range(8), 4, 8)
    assert positions.shape == (4, 8, 2)
    np.testing.assert_allclose(positions[0, :, 0], (np.arange(8) - 4) / 8, atol=1e-7)
    np.testing.assert_allclose(positions[0, :, 1], 0, atol=1e-7)
    np.testing.assert_allclose(positions[2, :, 1], (np.arange(8) - 4) / 8, atol=1e-7)  # 90 degrees: the phase axis


@given(st.integers(0, 10_000), st.integers(2, 64), st.integers(0, 70))
def test_spokes_pass_the_centre_at_their_centre_sample_at_equal_steps(number: int, n: int, center: int):
    positions = radial(golden_angles(np.array([number])), range(n), center, n)[0].astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(np.diff(positions, axis=0), axis=1), 1 / n, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(positions, axis=1), np.abs(np.arange(n) - center) / n, atol=1e-5)
    angle = np.deg2rad(number * GOLDEN_ANGLE_DEG)
    direction = (positions[1] - positions[0]) * n
    np.testing.assert_allclose(direction, [np.cos(angle), np.sin(angle)], atol=1e-3)


def test_kept_samples_are_those_of_the_whole_readout():
    angles = golden_angles(np.arange(5))
    whole = radial(angles, range(16), 6, 16)
    np.testing.assert_array_equal(radial(angles, range(3, 12), 6, 16), whole[:, 3:12])
