"""Ranges that a card's domain gets from calibration results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.domain import FEWEST_RESULTS, fit_domain

values = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(values, values), min_size=FEWEST_RESULTS, max_size=20))
def test_all_calibration_results_lie_inside_with_room_on_both_sides(results: list[tuple[float, float]]) -> None:
    domain = fit_domain(results)
    for energy, residual in results:
        assert domain.outside(energy_per_pixel=energy, data_residual=residual) == ()
    greatest = max(energy for energy, _ in results)
    assert domain.outside(energy_per_pixel=1.05 * greatest) == ()
    assert domain.outside(energy_per_pixel=2.5 * greatest) == ("energy_per_pixel",)


def test_the_range_is_what_results_span_and_half_as_much_at_each_end() -> None:
    domain = fit_domain([(2.0, 0.9), (3.0, 1.0), (4.0, 1.0), (2.5, 1.0)])
    assert domain.energy_per_pixel == (1.0, 5.0)
    assert domain.data_residual == pytest.approx((0.8, 1.1))  # a tenth of the greatest is more than half the width


def test_no_range_begins_below_zero() -> None:
    assert fit_domain([(1.0, 1.0)] * 3 + [(9.0, 1.0)]).energy_per_pixel == (0.0, 13.0)


def test_few_results_or_none_give_no_range() -> None:
    assert fit_domain([(1.0, 1.0)] * (FEWEST_RESULTS - 1)).energy_per_pixel is None
    domain = fit_domain([(None, float(number)) for number in range(1, 6)])
    assert domain.energy_per_pixel is None
    assert domain.data_residual == (0.0, 7.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_values_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        fit_domain([(value, 1.0)] * FEWEST_RESULTS)
