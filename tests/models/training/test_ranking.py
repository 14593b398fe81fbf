"""Sparsification, rank correlation and block means against exact cases and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.training.compared import ComparedScan, compare
from models.training.ranking import (
    BASELINES,
    BLOCK,
    FRACTIONS,
    block_means,
    gradient_map,
    rank,
    sparsification,
    spearman,
)

numbers = arrays(np.float64, st.integers(3, 60), elements=st.integers(0, 9).map(float))


def test_the_oracle_curve_of_errors_1_to_100_is_known() -> None:
    errors = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    curve = sparsification(errors, errors)
    # Without the k largest the mean of 1..100-k is (101 - k) / 2.
    assert curve == pytest.approx([(101 - k) / 101 for k in range(100)])


def test_the_reverse_order_leaves_the_largest_error() -> None:
    errors = np.arange(1.0, 101)
    assert sparsification(errors, -errors)[-1] == pytest.approx(100 / 50.5)


def test_a_constant_map_gives_one_everywhere_however_pixels_are_ordered() -> None:
    errors = np.sort(np.random.default_rng(0).random(777))
    assert sparsification(errors, np.ones(777)) == pytest.approx(np.ones(len(FRACTIONS)))


@settings(max_examples=30, deadline=None)
@given(numbers, st.integers(0, 1000))
def test_curves_do_not_depend_on_the_order_of_pixels_nor_on_a_monotone_change(errors: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, len(errors)).astype(np.float64)
    order = rng.permutation(len(errors))
    curve = sparsification(errors, values)
    assert sparsification(errors[order], values[order]) == pytest.approx(curve)
    assert sparsification(errors, np.exp(values)) == pytest.approx(curve)
    assert (sparsification(errors, errors) <= curve + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(numbers, st.integers(0, 1000))
def test_spearman_is_scipy_s_with_ties(a: np.ndarray, seed: int) -> None:
    b = np.random.default_rng(seed).integers(0, 6, len(a)).astype(np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert spearman(a, b) == 0
    else:
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


def test_block_means_are_those_of_the_foreground_of_blocks_that_are_at_least_half_foreground() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2 * BLOCK + 3, 3 * BLOCK))
    foreground = np.ones(values.shape, bool)
    foreground[:BLOCK, :BLOCK] = False  # none
    foreground[:BLOCK, BLOCK : BLOCK + BLOCK // 2] = False  # half
    foreground[:BLOCK, 2 * BLOCK : 2 * BLOCK + BLOCK // 2 + 1] = False  # less than half
    means = block_means(values, foreground)
    assert len(means) == 4
    assert means[0] == pytest.approx(values[:BLOCK, BLOCK + BLOCK // 2 : 2 * BLOCK].mean())
    assert means[1] == pytest.approx(values[BLOCK : 2 * BLOCK, :BLOCK].mean())


def test_block_means_of_a_constant_are_the_constant() -> None:
    assert block_means(np.full((64, 40), 3.5), np.ones((64, 40), bool)) == pytest.approx(np.full(40, 3.5))


def test_blocks_show_an_order_that_noise_hides_in_pixels() -> None:
    rng = np.random.default_rng(1)
    smooth = np.repeat(np.repeat(1 + rng.random((16, 16)), BLOCK, 0), BLOCK, 1) / 20
    image = np.ones(smooth.shape)
    scan = ComparedScan("a", (compare(image + smooth * rng.standard_normal(image.shape), image, smooth, 0.0),))
    judged = rank([scan], "deviation", lambda each: each.relative_deviation)
    assert judged.spearman_blocks > 0.8 > 0.4 > judged.spearman > 0.1


def test_the_gradient_baseline_is_the_slope_of_a_ramp_in_bright_intensities() -> None:
    ramp = np.add.outer(3.0 * np.arange(32), 4.0 * np.arange(32)) + 1
    image = compare(ramp, ramp, np.ones_like(ramp), 0.0)
    assert gradient_map(image) == pytest.approx(np.full((32, 32), 5.0 / np.percentile(ramp, 99)))
    assert set(BASELINES) == {"constant", "image", "gradient"}
    assert (BASELINES["constant"](image) == 1).all()


def test_the_width_is_that_of_intervals_that_cover_nine_tenths() -> None:
    image = np.ones((10, 10))
    error = np.arange(100).reshape(10, 10) / 1000
    scan = ComparedScan("a", (compare(image + error, image, image, 0.0),))
    judged = rank([scan], "constant", BASELINES["constant"])
    assert judged.width == pytest.approx(2 * 0.089)  # 90 of 100 errors are at most 0.089
