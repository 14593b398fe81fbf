"""Conformal factors: the quantiles they are, and the guarantees by simulation over many draws of scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from models.training.compared import ComparedScan, compare
from models.training.conformal import (
    Guarantee,
    admissible_risk,
    choose,
    fewest_expected,
    fewest_scans,
    fit_scaling,
    hoeffding_bentkus,
    needed_factors,
    quantile_of,
    smallest_factor,
    smallest_factor_capped,
)

SIDE = 16


def scan_with_errors(rng: np.random.Generator) -> ComparedScan:
    """A scan whose true deviation differs from the claimed one by a factor of its own: scans are not pixels."""
    image = np.ones((SIDE, SIDE))
    own = float(np.exp(0.4 * rng.standard_normal()))
    error = 0.02 * own * rng.standard_normal((SIDE, SIDE))
    return ComparedScan("scan", (compare(image + error, image, np.full((SIDE, SIDE), 0.02), threshold=0.0),))


def risk(scan: ComparedScan, factor: float, level: float = 0.9) -> float:
    return float(np.mean(needed_factors(scan, level, 0.0) > factor))


@pytest.fixture(scope="module")
def population() -> list[ComparedScan]:
    rng = np.random.default_rng(0)
    return [scan_with_errors(rng) for _ in range(1000)]


@pytest.fixture(scope="module")
def risk_of(population: list[ComparedScan]) -> Callable[[float], np.ndarray]:
    needed = np.stack([needed_factors(scan, 0.9, 0.0) for scan in population])
    return lambda factor: (needed > factor).mean(1)


def test_the_quantile_over_scans_covers_new_scans_as_often_as_promised(
    population: list[ComparedScan], risk_of: Callable[[float], np.ndarray]
) -> None:
    rng, n, delta = np.random.default_rng(1), 14, 0.2
    kept = []
    for _ in range(300):
        drawn = rng.choice(len(population), n, replace=False)
        scaling = fit_scaling([population[i] for i in drawn], Guarantee.SCANS, delta=delta)
        others = np.delete(risk_of(scaling.factor), drawn)
        kept.append(np.mean(others <= 0.1 + 1e-9))
    # Exactly ceil(15 * 0.8) / 15 = 0.8 on average for continuous scores; the mean of 300 draws is known to 0.006.
    assert np.mean(kept) == pytest.approx(0.8, abs=0.03)


def test_the_expected_risk_is_the_promised_one_on_average(
    population: list[ComparedScan], risk_of: Callable[[float], np.ndarray]
) -> None:
    rng, n = np.random.default_rng(2), 20
    risks = []
    for _ in range(300):
        drawn = rng.choice(len(population), n, replace=False)
        scaling = fit_scaling([population[i] for i in drawn], Guarantee.EXPECTED)
        risks.append(np.delete(risk_of(scaling.factor), drawn).mean())
        assert scaling.delta == 0
    # At most alpha, and not below it by more than 2 / (n + 1).
    assert 0.1 - 2 / 21 <= np.mean(risks) <= 0.1 + 0.003


@pytest.mark.parametrize("most_risk", [0.25, 0.4])
def test_the_expected_risk_is_promised_tightly_where_a_scan_counts_with_less_than_all(
    population: list[ComparedScan], risk_of: Callable[[float], np.ndarray], most_risk: float
) -> None:
    rng, n = np.random.default_rng(4), 12
    risks = []
    for _ in range(300):
        drawn = rng.choice(len(population), n, replace=False)
        scaling = fit_scaling([population[i] for i in drawn], Guarantee.EXPECTED, most_risk=most_risk)
        risks.append(np.minimum(np.delete(risk_of(scaling.factor), drawn), most_risk).mean())
    # At most alpha, and not below it by more than 2 B / (n + 1).
    assert 0.1 - 2 * most_risk / 13 <= np.mean(risks) <= 0.1 + 0.003


def test_a_scan_far_off_counts_with_no_more_than_the_largest_risk() -> None:
    near, far = np.linspace(0.01, 1, 100), np.full(100, 50.0)
    scans = [near] * 9 + [far]
    # The far scan costs 0.3 / 10 of the 0.1, whatever the factor below 50; nine others share the rest of it.
    assert smallest_factor_capped(scans, 0.1, 0.3) == pytest.approx(0.93)
    assert smallest_factor_capped(scans, 0.1, 1.0) == pytest.approx(1.0)
    assert smallest_factor_capped([np.zeros(5)], 0.0, 0.3) == 0.0


def test_a_largest_risk_below_the_promised_one_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"from 0\.1 to 1, not 0\.05"):
        fit_scaling([scan_with_errors(rng)] * 30, Guarantee.EXPECTED, most_risk=0.05)
    assert fewest_expected(0.1, 0.3) == 2
    with pytest.raises(ValueError, match="2 are needed"):
        fit_scaling([scan_with_errors(rng)], Guarantee.EXPECTED, most_risk=0.3)


def test_the_bound_fails_in_at_most_delta_of_all_draws(
    population: list[ComparedScan], risk_of: Callable[[float], np.ndarray]
) -> None:
    rng, n, delta = np.random.default_rng(3), 60, 0.2
    failed, mean = [], []
    for _ in range(150):
        drawn = rng.choice(len(population), n, replace=False)
        scaling = fit_scaling([population[i] for i in drawn], Guarantee.BOUND, delta=delta)
        others = np.delete(risk_of(scaling.factor), drawn).mean()
        failed.append(others > 0.1)
        mean.append(others)
    assert np.mean(failed) <= delta
    assert np.mean(mean) > 0.02  # careful, but not empty


@pytest.mark.parametrize("risk_mean", [0.0, 0.01, 0.05, 0.099, 0.1, 0.3])
@pytest.mark.parametrize("n", [5, 40, 300])
def test_the_p_value_is_that_of_hoeffding_and_bentkus(risk_mean: float, n: int) -> None:
    alpha = 0.1
    r = min(risk_mean, alpha)
    hoeffding = np.exp(-n * (scipy.special.rel_entr(r, alpha) + scipy.special.rel_entr(1 - r, 1 - alpha)))
    bentkus = np.e * scipy.stats.binom.cdf(np.ceil(n * risk_mean - 1e-9), n, alpha)
    assert hoeffding_bentkus(risk_mean, n, alpha) == pytest.approx(min(hoeffding, bentkus, 1.0), rel=1e-9)


def test_the_bound_exists_from_22_scans_on_and_says_so_below() -> None:
    assert fewest_scans(0.1, 0.1) == 22
    assert admissible_risk(21, 0.1, 0.1) is None
    assert admissible_risk(22, 0.1, 0.1) is not None
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least 22 are needed"):
        fit_scaling([scan_with_errors(rng) for _ in range(21)], Guarantee.BOUND)


def test_more_scans_admit_more_risk_and_never_alpha() -> None:
    admitted = [admissible_risk(n, 0.1, 0.1) for n in (30, 100, 300, 1000)]
    assert admitted == sorted(admitted)
    assert 0 < admitted[0] < admitted[-1] < 0.1
    assert choose(30) is Guarantee.SCANS
    assert choose(300) is Guarantee.BOUND


def test_with_few_scans_the_largest_factor_is_taken_and_the_weaker_promise_recorded() -> None:
    rng = np.random.default_rng(5)
    scans = [scan_with_errors(rng) for _ in range(4)]
    scaling = fit_scaling(scans, Guarantee.SCANS, delta=0.1)
    assert scaling.delta == pytest.approx(0.2)
    assert scaling.n_scans == 4
    assert max(risk(scan, scaling.factor) for scan in scans) <= 0.1
    assert max(risk(scan, scaling.factor * (1 - 1e-9)) for scan in scans) > 0.1
    assert "probability 80 %" in scaling.statement


def test_the_factor_of_correct_gaussian_deviations_is_one() -> None:
    rng = np.random.default_rng(6)
    image = np.ones((256, 256))
    error = 0.02 * rng.standard_normal(image.shape)
    scan = ComparedScan("a", (compare(image + error, image, np.full(image.shape, 0.02), threshold=0.0),))
    assert fit_scaling([scan], Guarantee.SCANS).factor == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sizes", [(7, 7, 7), (5, 11, 3)])
@pytest.mark.parametrize("admissible", [0.0, 0.1, 0.25, 1 / 3])
def test_the_smallest_factor_keeps_the_risk_and_the_next_smaller_one_does_not(
    sizes: tuple[int, ...], admissible: float
) -> None:
    rng = np.random.default_rng(7)
    needed = [rng.random(size) for size in sizes]

    def mean_risk(factor: float) -> float:
        return float(np.mean([np.mean(each > factor) for each in needed]))

    factor = smallest_factor(needed, admissible)
    values = np.sort(np.concatenate(needed))
    assert mean_risk(factor) <= admissible + 1e-9
    below = values[values < factor]
    assert len(below) == 0 or mean_risk(float(below[-1])) > admissible


def test_a_floor_covers_where_the_deviation_is_zero_and_its_lack_is_an_error() -> None:
    image = np.ones((16, 16))
    scan = ComparedScan("a", (compare(image + 0.01, image, np.zeros((16, 16)), threshold=0.0),))
    with pytest.raises(ValueError, match="floor above 0"):
        fit_scaling([scan], Guarantee.SCANS)
    enough = 0.011 / quantile_of(0.9)
    assert fit_scaling([scan], Guarantee.SCANS, floor=enough).factor == 0
