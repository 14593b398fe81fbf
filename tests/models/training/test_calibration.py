"""Calibration measures against cases whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.calibration import GRID, LEVELS, assess, calibration_record, coverage
from models.training.compared import ComparedScan, bright_intensity, by_scan, compare, split
from models.training.conformal import Guarantee, fit_scaling

SIZE = 64


def gaussian_scan(seed: int, *, claimed: float = 1.0, unit: float = 1.0, images: int = 1) -> ComparedScan:
    """A scan whose errors are normal with the deviation it claims, but for the factor `claimed`."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        image = 0.5 + 0.5 * rng.random((SIZE, SIZE))
        deviation = 0.01 * (1 + 4 * rng.random((SIZE, SIZE)))
        reference = image + deviation * rng.standard_normal((SIZE, SIZE))
        made.append(compare(unit * reference, unit * image, unit * claimed * deviation, threshold=0.0))
    return ComparedScan(f"scan{seed}", tuple(made))


@pytest.fixture(scope="module")
def scans() -> list[ComparedScan]:
    return [gaussian_scan(seed) for seed in range(8)]


def test_known_gaussian_errors_are_covered_as_often_as_the_level_says(scans: list[ComparedScan]) -> None:
    # 8 x 4096 independent pixels: a standard error of at most 0.0028.
    assert coverage(scans, LEVELS).mean(0) == pytest.approx(LEVELS, abs=0.012)
    report = assess(scans)
    assert report.coverage == pytest.approx(LEVELS, abs=0.012)
    assert report.expected_calibration_error < 0.01


def test_a_deviation_of_half_the_size_covers_what_the_normal_says() -> None:
    report = assess([gaussian_scan(seed, claimed=0.5) for seed in range(8)])
    # P(|n| <= 1.645 / 2), 1.645 the quantile of 90 %
    assert report.coverage[2] == pytest.approx(0.5892, abs=0.012)
    assert report.expected_calibration_error > 0.2


def test_a_pixel_without_error_is_covered_by_a_deviation_of_zero_and_one_with_error_is_not() -> None:
    reference = np.ones((16, 16))
    image = reference.copy()
    image[:4] = 1.01
    scan = ComparedScan("a", (compare(reference, image, np.zeros((16, 16))),))
    assert coverage([scan], [0.5, 0.95]).tolist() == [[0.75, 0.75]]


def test_the_oracle_has_no_area_to_itself_and_a_correct_map_beats_all_baselines(scans: list[ComparedScan]) -> None:
    report = assess(scans)
    assert report.beats_baselines
    assert 0 < report.deviation.ause < report.baselines[0].ause
    assert report.deviation.aurg > 0
    assert report.deviation.width < report.baselines[0].width
    by_error = [
        ComparedScan(
            scan.name,
            tuple(
                compare(image.reference, image.image, np.abs(image.reference - image.image), 0.0)
                for image in scan.images
            ),
        )
        for scan in scans
    ]
    assert assess(by_error).deviation.ause == pytest.approx(0, abs=1e-12)


def test_every_scan_weighs_the_same_however_many_images_it_has() -> None:
    right, wrong = gaussian_scan(0), gaussian_scan(1, claimed=0.2, images=5)
    rows = coverage([right, wrong], LEVELS)
    assert assess([right, wrong]).coverage == pytest.approx(rows.mean(0))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 5), st.floats(1.01, 4), st.integers(0, 50))
def test_coverage_never_falls_when_the_factor_grows(factor: float, growth: float, seed: int) -> None:
    scan = gaussian_scan(seed)
    less, more = (coverage([scan.scaled(each)], GRID) for each in (factor, factor * growth))
    assert (more >= less).all()
    assert more.sum() > less.sum()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([2.0**-20, 0.25, 2.0, 2.0**30]), st.integers(0, 50))
def test_nothing_depends_on_the_units_of_images(unit: float, seed: int) -> None:
    # Powers of two change no digit, so that figures agree to the last bits.
    one, other = assess([gaussian_scan(seed)]), assess([gaussian_scan(seed, unit=unit)])
    assert other.coverage == one.coverage
    assert other.sharpness == pytest.approx(one.sharpness, rel=1e-12)
    assert other.deviation.width == pytest.approx(one.deviation.width, rel=1e-12)
    assert other.deviation.curve == pytest.approx(one.deviation.curve, rel=1e-12)
    first, second = (fit_scaling([gaussian_scan(seed, unit=each)], Guarantee.SCANS, floor=0.01) for each in (1.0, unit))
    assert second.factor == pytest.approx(first.factor, rel=1e-12)


def test_a_floor_is_relative_to_the_bright_intensity_of_the_image() -> None:
    image = np.full((32, 32), 8.0)
    scan = ComparedScan("a", (compare(image, image, np.full((32, 32), 0.5)),)).scaled(2.0, 0.25)
    assert bright_intensity(image) == 8.0
    assert np.all(scan.images[0].deviation == 2 * 0.5 + 0.25 * 8.0)


def test_scans_are_split_whole_and_by_seed() -> None:
    scans = by_scan((f"scan{i // 3}", gaussian_scan(i).images[0]) for i in range(30))
    assert [scan.name for scan in scans] == [f"scan{i}" for i in range(10)]
    assert all(len(scan.images) == 3 for scan in scans)
    calibration, test = split(scans, seed=4)
    assert len(calibration) == len(test) == 5
    assert {scan.name for scan in calibration}.isdisjoint(scan.name for scan in test)
    assert split(scans, seed=4) == (calibration, test)
    assert split(scans, seed=5) != (calibration, test)
    with pytest.raises(ValueError, match="at least 2"):
        split(scans[:1], 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deviation": np.full((8, 8), -1.0)}, "deviation holds values"),
        ({"image": np.full((8, 8), np.nan)}, "image holds values"),
        ({"reference": np.ones((8, 9))}, "shape"),
        ({"reference": np.zeros((8, 8))}, "no pixel is foreground"),
        ({"image": np.zeros((8, 8))}, "no intensity"),
    ],
)
def test_images_that_cannot_be_judged_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    given = {"reference": np.ones((8, 8)), "image": np.ones((8, 8)), "deviation": np.ones((8, 8))} | change
    with pytest.raises(ValueError, match=message):
        compare(given["reference"], given["image"], given["deviation"])


def test_the_report_and_the_card_record_are_plain_values(scans: list[ComparedScan]) -> None:
    scaling = fit_scaling(scans[:4], Guarantee.SCANS)
    report = assess(scaling.apply(scans[4:]))
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["scans"] == ["scan4", "scan5", "scan6", "scan7"]
    assert values["deviation"]["ause"] == report.deviation.ause
    assert values["levels"] == list(LEVELS)
    record = calibration_record(report, scaling, "sense", "noise", "uniform4, noise 0.02")
    assert record["factor"] == scaling.factor
    assert record["n_scans"] == 4
    assert list(record["coverage"]) == list(LEVELS)
    assert "probability 80 %" in record["note"]
    assert "4 other scans" in record["note"]
