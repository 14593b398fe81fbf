"""Picture of a calibration: is the deviation map as large as the error, and is it large where the error is?

Panels: reliability diagram, sparsification with the oracle and the maps that must be beaten, error against deviation in
blocks, coverage scan by scan, and one image with its error and its scaled deviation, these two in the same colours.
Matplotlib without its global state, so that nothing here depends on a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from models.training.calibration import GRID, LEVELS, CalibrationReport, coverage
from models.training.compared import ComparedImage, ComparedScan, bright_intensity
from models.training.conformal import quantile_of
from models.training.ranking import BLOCK, FRACTIONS, block_means

_BACKGROUND: Final = "#101418"
_PANEL: Final = "#161c22"
_TEXT: Final = "#e8e8e8"
_FAINT: Final = "#9aa4ad"
_GRID: Final = "#2a333b"
_SCALED: Final = "#5aa9e6"
_UNSCALED: Final = "#e07a5f"
_GUIDE: Final = "#ffd76a"
_BASELINES: Final = {"constant": "#7d8790", "image": "#8cc084", "gradient": "#c792ea"}
_GOAL: Final = (0.85, 0.95)
"""Coverage of the 90 % interval that counts as right."""
_MEAN_OF_HALF_NORMAL: Final = sqrt(2 / np.pi)
"""Mean error of a normal with deviation 1."""
_PERCENT: Final = FuncFormatter(lambda value, _: f"{100 * value:g}")


def write_reliability_figure(
    path: Path,
    title: str,
    subtitle: str,
    scans: Sequence[ComparedScan],
    reports: tuple[CalibrationReport, CalibrationReport],
) -> Path:
    """Write the picture as a PNG.

    Args:
        path: of the PNG; its folder exists.
        title: first line.
        subtitle: below it; one or two lines.
        scans: test scans with scaled deviations.
        reports: of the test scans before and after scaling.

    Raises:
        OSError: the picture cannot be written.
    """
    before, after = reports
    figure = cast("Any", Figure(figsize=(14.2, 9.0), facecolor=_BACKGROUND, dpi=120))
    FigureCanvasAgg(figure)
    figure.text(0.045, 0.966, title, color=_TEXT, fontsize=14, weight="bold", va="center")
    figure.text(0.045, 0.947, subtitle, color=_FAINT, fontsize=9.5, va="top", linespacing=1.5)
    grid = figure.add_gridspec(2, 3, left=0.055, right=0.955, bottom=0.07, top=0.855, wspace=0.26, hspace=0.34)
    top = [figure.add_subplot(grid[0, column]) for column in range(3)]
    _reliability(top[0], scans, before, after)
    _sparsification(top[1], after)
    _blocks(top[2], scans)
    _scans(figure.add_subplot(grid[1, 0]), before, after)
    maps = grid[1, 1:].subgridspec(1, 4, width_ratios=(1, 1, 1, 0.05), wspace=0.06)
    _maps(figure, [figure.add_subplot(maps[0, column]) for column in range(4)], _typical(scans, after))
    figure.savefig(path, facecolor=_BACKGROUND)
    return path


def _reliability(axes: Any, scans: Sequence[ComparedScan], before: CalibrationReport, after: CalibrationReport) -> None:
    _dress(axes, "Reliability", "nominal level of the interval, %", "foreground inside the interval, %")
    axes.plot([0, 1], [0, 1], color=_GUIDE, lw=1.2, ls=(0, (4, 3)), label="ideal", zorder=3)
    rows = coverage(scans, GRID)
    low, high = np.quantile(rows, 0.1, 0), np.quantile(rows, 0.9, 0)
    axes.fill_between(GRID, low, high, color=_SCALED, alpha=0.2, lw=0, label="scaled, 80 % of the scans")
    for report, colour, name in ((before, _UNSCALED, "as it comes"), (after, _SCALED, "scaled")):
        error = report.expected_calibration_error
        axes.plot(
            GRID, report.reliability, color=colour, lw=1.8, label=f"{name}, mean gap {100 * error:.1f} %", zorder=4
        )
        axes.plot(LEVELS, report.coverage, "o", color=colour, ms=5, zorder=5)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="auto")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    _legend(axes, "best")


def _sparsification(axes: Any, report: CalibrationReport) -> None:
    _dress(axes, "Sparsification", "pixels removed, largest value first, %", "mean error left / mean error of all")
    axes.plot(FRACTIONS, report.oracle, color=_GUIDE, lw=1.2, ls=(0, (4, 3)), label="oracle: by the error itself")
    for baseline in report.baselines:
        axes.plot(FRACTIONS, baseline.curve, color=_BASELINES[baseline.name], lw=1.3,
                  label=f"{baseline.name}, AUSE {baseline.ause:.3f}")  # fmt: skip
    own = report.deviation
    axes.plot(FRACTIONS, own.curve, color=_SCALED, lw=2.2, label=f"deviation, AUSE {own.ause:.3f}", zorder=4)
    axes.fill_between(FRACTIONS, report.oracle, own.curve, color=_SCALED, alpha=0.1, lw=0)
    top = max(1.15, min(float(np.max([baseline.curve for baseline in report.baselines])) * 1.04, 1.8))
    axes.set(xlim=(0, 1), ylim=(0, top))
    axes.xaxis.set_major_formatter(_PERCENT)
    _legend(axes, "lower left")


def _blocks(axes: Any, scans: Sequence[ComparedScan]) -> None:
    _dress(axes, f"Blocks of {BLOCK} x {BLOCK} pixels", "mean deviation, % of bright intensity",
           "mean error, % of bright intensity")  # fmt: skip
    images = [image for scan in scans for image in scan.images]
    deviations = 100 * np.concatenate([block_means(image.relative_deviation, image.foreground) for image in images])
    errors = 100 * np.concatenate([block_means(image.error, image.foreground) for image in images])
    seen = (deviations > 0) & (errors > 0)
    if not seen.any():
        axes.text(
            0.5, 0.5, "no block with an error and a deviation", color=_FAINT, ha="center", transform=axes.transAxes
        )
        return
    x, y = deviations[seen], errors[seen]
    axes.set(xscale="log", yscale="log")
    order = np.random.default_rng(0).permutation(len(x))[:6000]
    axes.scatter(x[order], y[order], s=5, color=_SCALED, alpha=_opacity(len(order)), lw=0, rasterized=True)
    middle, quantiles = _running(x, y)
    axes.plot(middle, quantiles[1], color=_TEXT, lw=1.8, label="median", zorder=4)
    axes.plot(middle, quantiles[0], color=_TEXT, lw=0.9, ls=":", zorder=4)
    axes.plot(middle, quantiles[2], color=_TEXT, lw=0.9, ls=":", label="10 and 90 %", zorder=4)
    low, high = np.quantile(np.concatenate([x, y]), [0.002, 0.9995])
    ends = np.array([low / 1.4, high * 1.4])
    axes.plot(ends, ends * _MEAN_OF_HALF_NORMAL, color=_GUIDE, lw=1.2, ls=(0, (4, 3)), label="normal errors: 0.80 s")
    axes.set(xlim=(np.quantile(x, 0.001) / 1.2, np.quantile(x, 0.999) * 1.2), ylim=tuple(ends))
    for axis, (first, last) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(_few_labels if last > 8 * first else _more_labels))
    _legend(axes, "upper left")


def _scans(axes: Any, before: CalibrationReport, after: CalibrationReport) -> None:
    level = LEVELS.index(0.9)
    _dress(axes, "90 % intervals, scan by scan", "test scans, sorted", "foreground inside the interval, %")
    scaled = np.array([row[level] for row in after.coverage_of_scans])
    raw = np.array([row[level] for row in before.coverage_of_scans])
    order = np.argsort(scaled, kind="stable")
    places = np.arange(1, len(order) + 1)
    axes.axhspan(*_GOAL, color=_GUIDE, alpha=0.12, lw=0, label="85 to 95 %")
    axes.axhline(0.9, color=_GUIDE, lw=1.0, ls=(0, (4, 3)))
    axes.vlines(places, raw[order], scaled[order], color=_GRID, lw=1.2)
    size = 5.5 if len(order) <= 30 else 3.5
    axes.plot(
        places, raw[order], "o", color=_UNSCALED, ms=0.8 * size, label=f"as it comes, mean {100 * raw.mean():.1f} %"
    )
    axes.plot(places, scaled[order], "o", color=_SCALED, ms=size, label=f"scaled, mean {100 * scaled.mean():.1f} %")
    # Room for the legend below all points.
    lowest = max(min(float(raw.min()), float(scaled.min()), 0.84), 0.0)
    axes.set(xlim=(0.3, len(order) + 0.7), ylim=(lowest - 0.38 * (1.02 - lowest), 1.02))
    axes.set_yticks([tick for tick in np.arange(0, 1.01, 0.05 if lowest > 0.7 else 0.1) if tick >= lowest - 0.05])
    axes.yaxis.set_major_formatter(_PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    _legend(axes, "lower right")


def _maps(figure: Any, panels: Sequence[Any], image: ComparedImage) -> None:
    """The image, its error, and the half width of the 90 % interval in the colours of the error."""
    rows, columns = (slice(max(int(each.min()) - 3, 0), int(each.max()) + 4) for each in np.nonzero(image.foreground))
    inside = image.foreground
    width, error = 100 * quantile_of(0.9) * image.relative_deviation, 100 * image.error
    brightest = max(float(np.quantile(width[inside], 0.995)), float(np.quantile(error[inside], 0.98)), 1e-12)
    bright = bright_intensity(image.image)
    shown = None
    for axes, values, name, colours, limit in (
        (panels[0], image.image, "Median test scan: image", "gray", bright),
        (panels[1], np.where(inside, error, 0), "error", "inferno", brightest),
        (panels[2], np.where(inside, width, 0), "90 % interval, half width", "inferno", brightest),
    ):
        axes.set_facecolor("#000000")
        shown = axes.imshow(values[rows, columns], cmap=colours, vmin=0, vmax=limit, interpolation="nearest")
        axes.set_title(name, color=_TEXT, fontsize=10.5, loc="left", pad=7)
        axes.set(xticks=[], yticks=[], anchor="N")
        for spine in axes.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(shown, cax=panels[3])
    bar.outline.set_edgecolor(_FAINT)
    panels[3].tick_params(colors=_FAINT, labelsize=8, length=2)
    bar.set_label("% of bright intensity (foreground)", color=_FAINT, fontsize=9)


def _typical(scans: Sequence[ComparedScan], report: CalibrationReport) -> ComparedImage:
    """The middle image of the scan whose coverage is the median one."""
    rows = [row[LEVELS.index(0.9)] for row in report.coverage_of_scans]
    scan = scans[int(np.argsort(rows, kind="stable")[len(rows) // 2])]
    return scan.images[len(scan.images) // 2]


def _running(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of x, and 10, 50, 90 % of y, in up to 15 groups of equal size along x."""
    n_groups = max(min(15, len(x) // 20), 1)
    groups = np.array_split(np.argsort(x, kind="stable"), n_groups)
    quantiles = np.array([np.quantile(y[group], [0.1, 0.5, 0.9]) for group in groups]).T
    return np.array([np.median(x[group]) for group in groups]), quantiles


def _opacity(n_points: int) -> float:
    return float(np.clip(300 / n_points, 0.12, 0.8))


def _few_labels(value: float, _: int) -> str:
    """2 and 5 between powers of ten, where more would not fit."""
    return f"{value:g}" if f"{value:.0e}"[0] in "25" else ""


def _more_labels(value: float, _: int) -> str:
    """2 to 5 and 7 between powers of ten, where less than a decade is shown."""
    return f"{value:g}" if f"{value:.0e}"[0] in "23457" else ""


def _dress(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_facecolor(_PANEL)
    axes.set_title(title, color=_TEXT, fontsize=10.5, loc="left", pad=7)
    axes.set_xlabel(x, color=_FAINT, fontsize=9)
    axes.set_ylabel(y, color=_FAINT, fontsize=9)
    axes.tick_params(colors=_FAINT, labelsize=8, length=3, which="both")
    axes.grid(color=_GRID, lw=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(_GRID)


def _legend(axes: Any, place: str) -> None:
    axes.legend(loc=place, fontsize=8, labelcolor=_TEXT, facecolor=_PANEL, edgecolor=_GRID, framealpha=0.9)
