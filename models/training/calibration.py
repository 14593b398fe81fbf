"""Is a deviation map right? One report for all methods: coverage, sharpness, and whether errors are where it says.

    coverage at a level = part of the foreground with e <= z s,    z of the normal for that level

within each scan, then averaged over scans. The expected calibration error is the mean of |observed - nominal| over the
levels 0.05, 0.10, ..., 0.95. Pieces: `compared` (errors), `ranking` (sparsification, rank correlation, baselines),
`conformal` (scaling with a guarantee), `reliability_figure` (the picture). Numpy only.

Coverage with the normal's z measures the distribution of errors as well as their size: a map whose every value is right
under-covers at 95 % when errors have heavy tails, and no factor mends all levels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.training.compared import ComparedScan
from models.training.conformal import Scaling, quantile_of
from models.training.ranking import BASELINES, FRACTIONS, Ranking, rank, sparsification

LEVELS: Final = (0.50, 0.68, 0.90, 0.95)
GRID: Final = tuple(i / 20 for i in range(1, 20))
"""Levels of the reliability diagram."""


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How right the deviation maps of some scans are.

    Attributes:
        scans: names.
        n_images: of all scans.
        n_pixels: foreground pixels of all scans.
        coverage: by `LEVELS`, mean over scans.
        coverage_of_scans: one row of `LEVELS` a scan.
        reliability: by `GRID`, mean over scans.
        expected_calibration_error: mean of |observed - nominal| over `GRID`.
        sharpness: mean width of the 90 % interval as it stands, in bright intensities; compare at equal coverage only.
        mean_error: mean error in bright intensities.
        deviation: how well the map orders errors.
        baselines: the same for maps that must be beaten.
        oracle: sparsification curve of the errors themselves.
    """

    scans: tuple[str, ...]
    n_images: int
    n_pixels: int
    coverage: tuple[float, ...]
    coverage_of_scans: tuple[tuple[float, ...], ...]
    reliability: tuple[float, ...]
    expected_calibration_error: float
    sharpness: float
    mean_error: float
    deviation: Ranking
    baselines: tuple[Ranking, ...]
    oracle: tuple[float, ...]

    @property
    def beats_baselines(self) -> bool:
        """Whether the map's AUSE is below that of every baseline."""
        return all(self.deviation.ause < baseline.ause for baseline in self.baselines)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; what is not finite becomes None."""
        values = asdict(self) | {"levels": LEVELS, "grid": GRID, "fractions": FRACTIONS}
        return {name: _plain(value) for name, value in values.items()}


def assess(scans: Sequence[ComparedScan]) -> CalibrationReport:
    """Judge the deviation maps of scans.

    Raises:
        ValueError: no scans.
    """
    if not scans:
        raise ValueError("no scans to judge")
    rows = coverage(scans, LEVELS)
    reliability = coverage(scans, GRID).mean(0)
    widths = [2 * quantile_of(0.9) * float(scan.deviations.mean()) for scan in scans]
    return CalibrationReport(
        scans=tuple(scan.name for scan in scans),
        n_images=sum(len(scan.images) for scan in scans),
        n_pixels=sum(int(image.foreground.sum()) for scan in scans for image in scan.images),
        coverage=tuple(rows.mean(0).tolist()),
        coverage_of_scans=tuple(tuple(row) for row in rows.tolist()),
        reliability=tuple(reliability.tolist()),
        expected_calibration_error=float(np.abs(reliability - GRID).mean()),
        sharpness=float(np.mean(widths)),
        mean_error=float(np.mean([scan.errors.mean() for scan in scans])),
        deviation=rank(scans, "deviation", lambda image: image.relative_deviation),
        baselines=tuple(rank(scans, name, map_of) for name, map_of in BASELINES.items()),
        oracle=tuple(np.mean([sparsification(scan.errors, scan.errors) for scan in scans], 0).tolist()),
    )


def coverage(scans: Sequence[ComparedScan], levels: Sequence[float]) -> NDArray[np.float64]:
    """Part of the foreground with e <= z s, `(scans, levels)`."""
    z = np.array([quantile_of(level) for level in levels])
    rows = np.empty((len(scans), len(levels)))
    for row, scan in zip(rows, scans, strict=True):
        errors, deviations = scan.errors, scan.deviations
        # A pixel without error is covered also where the deviation is zero.
        ratios = np.where(errors > 0, np.inf, 0.0)
        np.divide(errors, deviations, out=ratios, where=deviations > 0)
        ratios.sort()
        row[:] = np.searchsorted(ratios, z, side="right") / len(ratios)
    return rows


def calibration_record(
    report: CalibrationReport, scaling: Scaling, pipeline: str, mode: str, conditions: str
) -> dict[str, object]:
    """What a model's card says about a calibration: the fields of the card's `CalibrationRecord`.

    Args:
        report: of test scans with scaled deviations.
        scaling: fitted to other scans.
        pipeline: that made the images.
        mode: kind of deviation that it made.
        conditions: data, sampling, noise and parameters under which this holds.
    """
    return {
        "pipeline": pipeline,
        "mode": mode,
        "factor": scaling.factor,
        "floor": scaling.floor,
        "level": scaling.level,
        "n_scans": scaling.n_scans,
        "coverage": dict(zip(LEVELS, report.coverage, strict=True)),
        "note": f"{scaling.statement}; {conditions}; coverage measured on {len(report.scans)} other scans; deviation = "
        "factor * map + floor * 99th percentile of the magnitude",
    }


def _plain(value: object) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
