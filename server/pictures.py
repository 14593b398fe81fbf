"""Pictures of images as a radiologist looks at them, with colour bars; knows no files but the PNG it writes.

Matplotlib without its global state, so that nothing here depends on a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.mrd import Image
from server.errors import FileError

MOST_COLUMNS: Final = 6
_BACKGROUND: Final = "#101418"
_TEXT: Final = "#e8e8e8"
_FAINT: Final = "#9aa4ad"
_LEFT, _BAR, _TOP, _BOTTOM, _GAP = 0.42, 0.95, 1.02, 0.10, 0.06
"""Inches around the images, and for a colour bar with its label."""

# Screen right and screen down in patient coordinates (LPS), by the axis that is nearest to the slice normal.
_SCREEN: Final = (
    (np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])),  # sagittal: front on the left
    (np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0])),  # coronal: patient's right on the left
    (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])),  # axial: seen from the feet
)
_LETTERS: Final = (("R", "L"), ("A", "P"), ("F", "H"))
PLANES: Final = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, slots=True)
class View:
    """A slice turned for the screen.

    Attributes:
        pixels: `(rows, columns)` magnitude.
        size_mm: height and width.
        letters: patient side at the left and at the top of the screen.
        plane: nearest standard plane.
    """

    pixels: NDArray[np.float32]
    size_mm: tuple[float, float]
    letters: tuple[str, str]
    plane: str


@dataclass(frozen=True, slots=True)
class Row:
    """Images of one kind, side by side, on one scale.

    Attributes:
        label: what they show.
        unit: of the colour bar.
        views: as many as the montage has columns.
        limits: values of the darkest and the brightest colour.
        colours: name of a matplotlib colour map.
    """

    label: str
    unit: str
    views: Sequence[View]
    limits: tuple[float, float]
    colours: str = "gray"


def turn(image: Image, partition: int | None = None) -> View:
    """An image as radiologists hang it: axial from the feet, coronal from the front, sagittal from the left.

    Args:
        image: first channel is shown; complex pixels by their magnitude.
        partition: of a volume; the middle one by default.
    """
    header = image.header
    plane = image.pixels[0, image.pixels.shape[1] // 2 if partition is None else partition]
    pixels = np.asarray(np.abs(plane) if np.iscomplexobj(plane) else plane, np.float32)
    read, phase, normal = (np.asarray(header[name], np.float64) for name in ("read_dir", "phase_dir", "slice_dir"))
    width_mm, height_mm = float(header["field_of_view"][0]), float(header["field_of_view"][1])
    kind = int(np.argmax(np.abs(normal)))
    right, down = _SCREEN[kind]
    if abs(read @ right) < abs(phase @ right):
        pixels, read, phase, width_mm, height_mm = pixels.T, phase, read, height_mm, width_mm
    if read @ right < 0:
        pixels = pixels[:, ::-1]
    if phase @ down < 0:
        pixels = pixels[::-1]
    size = (height_mm or float(pixels.shape[0]), width_mm or float(pixels.shape[1]))
    return View(np.ascontiguousarray(pixels), size, (_letter(-right), _letter(-down)), PLANES[kind])


def replace_pixels(view: View, pixels: NDArray[np.floating]) -> View:
    """The same slice with other values in the same orientation."""
    return View(np.asarray(pixels, np.float32), view.size_mm, view.letters, view.plane)


def grey_limits(views: Sequence[View]) -> tuple[float, float]:
    """Window from 0 to the 99.7th percentile, so that a few bright pixels do not darken the rest."""
    return 0.0, max(float(np.percentile(np.concatenate([view.pixels.ravel() for view in views]), 99.7)), 1e-30)


def write_montage(path: Path, title: str, subtitle: str, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    """Write rows of images with a colour bar each as a PNG; the rows of a single column are put side by side.

    Args:
        path: of the PNG.
        title: first line.
        subtitle: below it; one or two lines.
        columns: heading of each column.
        rows: from top to bottom.

    Raises:
        FileError: the picture cannot be written.
    """
    single = len(columns) == 1
    views = [view for row in rows for view in row.views]
    factor = _factor(max(view.size_mm[1] for view in views), max(view.size_mm[0] for view in views), single=single)
    cell_width = max(view.size_mm[1] for view in views) * factor
    cell_height = max(view.size_mm[0] for view in views) * factor
    n_across, n_down = (len(rows), 1) if single else (len(columns), len(rows))
    across = n_across * (cell_width + (_BAR if single else _GAP)) + (0 if single else _BAR)
    width = max(_LEFT + across, 6.4)
    height = _TOP + n_down * (cell_height + _GAP) + _BOTTOM
    figure = cast("Any", Figure(figsize=(width, height), facecolor=_BACKGROUND, dpi=130))
    FigureCanvasAgg(figure)
    figure.text(
        _LEFT / width, 1 - 0.24 / height, _fit(title, width), color=_TEXT, fontsize=12, weight="bold", va="center"
    )
    figure.text(_LEFT / width, 1 - 0.40 / height, subtitle, color=_FAINT, fontsize=8.5, va="top", linespacing=1.4)

    def place(x: float, y: float, w: float, h: float) -> Any:
        return figure.add_axes([x / width, y / height, w / width, h / height])

    for number, row in enumerate(rows):
        y = height - _TOP - cell_height - (0 if single else number * (cell_height + _GAP))
        x = _LEFT + (number * (cell_width + _BAR) if single else 0)
        shown = None
        for column, view in enumerate(row.views):
            axes = place(x, y, cell_width, cell_height)
            shown = _draw(axes, view, row, is_first=column == 0 and number == 0)
            if single or number == 0:
                heading = f"{row.label}, {columns[0]}" if single else columns[column]
                axes.set_title(heading, color=_FAINT, fontsize=8, pad=3)
            x += cell_width + _GAP
        if not single:
            figure.text(0.17 / width, (y + cell_height / 2) / height, row.label, color=_TEXT, fontsize=9.5, rotation=90,
                        ha="center", va="center")  # fmt: skip
        _draw_bar(figure, shown, place(x + 0.04, y + 0.08, 0.11, cell_height - 0.16), row.unit)
    return _save(figure, path)


def _fit(title: str, width: float) -> str:
    """A title cut to the width of the picture in inches, of which it takes about a ninth a character."""
    most = int((width - 2 * _LEFT) * 9)
    return title if len(title) <= most else title[: most - 3] + "..."


def _factor(width_mm: float, height_mm: float, *, single: bool) -> float:
    """Inches a millimetre: a head beside others is 2.6 inches wide, other objects are brought near to that."""
    if single:
        return min(4.2 / width_mm, 4.6 / height_mm)
    return min(max(1 / 78.0, 1.7 / width_mm), 3.2 / width_mm, 3.6 / height_mm)


def _draw(axes: Any, view: View, row: Row, *, is_first: bool) -> Any:
    height, width = view.size_mm
    shown = axes.imshow(
        view.pixels, cmap=row.colours, vmin=row.limits[0], vmax=row.limits[1], extent=(0, width, height, 0),
        interpolation="nearest" if max(view.pixels.shape) < 100 else "antialiased",
    )  # fmt: skip
    axes.set_axis_off()
    if is_first:
        for x, y, letter in ((0.03, 0.5, view.letters[0]), (0.5, 0.97, view.letters[1])):
            axes.text(x, y, letter, transform=axes.transAxes, color="#ffd76a", fontsize=8, ha="center", va="center")
    return shown


def _draw_bar(figure: Any, shown: Any, axes: Any, unit: str) -> None:
    bar = figure.colorbar(shown, cax=axes)
    bar.outline.set_edgecolor(_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=7, length=2)
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5))
    axes.yaxis.get_offset_text().set(color=_FAINT, fontsize=7)
    bar.set_label(unit, color=_FAINT, fontsize=7.5)


def _letter(direction: NDArray[np.float64]) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return _LETTERS[axis][int(direction[axis] > 0)]


def write_sampling(path: Path, title: str, subtitle: str, mask: NDArray[np.uint8]) -> Path:
    """Write a picture of a sampling pattern.

    Args:
        path: of the PNG.
        title: first line.
        subtitle: second line.
        mask: `(lines, samples)`: 0 not measured, 1 image, 2 image and calibration, 3 calibration only.

    Raises:
        FileError: the picture cannot be written.
    """
    kinds = (
        ("not measured", "#1d242b"),
        ("image", "#5aa9e6"),
        ("image and calibration", "#ffd76a"),
        ("calibration", "#e07a5f"),
    )
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for _, colour in kinds], np.uint8)
    figure = cast("Any", Figure(figsize=(7.0, 5.6), facecolor=_BACKGROUND, dpi=130))
    FigureCanvasAgg(figure)
    figure.text(0.11, 0.955, title, color=_TEXT, fontsize=12, weight="bold", va="center")
    figure.text(0.11, 0.915, subtitle, color=_FAINT, fontsize=8.5, va="center")
    axes = figure.add_axes([0.11, 0.15, 0.85, 0.73])
    n_y, n_x = mask.shape
    extent = (-(n_x // 2), n_x - n_x // 2, n_y - n_y // 2, -(n_y // 2))
    axes.imshow(colours[mask], aspect="auto", interpolation="nearest", extent=extent)
    axes.set_xlabel("readout sample, 0 at the centre of k-space", color=_FAINT, fontsize=8)
    axes.set_ylabel("line, 0 at the centre of k-space", color=_FAINT, fontsize=8)
    axes.tick_params(colors=_FAINT, labelsize=7)
    for number, (label, colour) in enumerate(kinds):
        if np.any(mask == number):
            axes.plot([], [], "s", color=colour, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=4, frameon=False, fontsize=8, labelcolor=_FAINT)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor=_BACKGROUND)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error
    return path
