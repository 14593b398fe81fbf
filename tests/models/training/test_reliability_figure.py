"""The calibration picture is written for ordinary scans and for odd ones."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from models.training.calibration import assess
from models.training.compared import ComparedScan, compare
from models.training.conformal import Guarantee, fit_scaling
from models.training.reliability_figure import write_reliability_figure


def scan(name: str, claimed: float, size: int = 48, noise: float = 1.0) -> ComparedScan:
    rng = np.random.default_rng(len(name))
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.where(y**2 + x**2 < 0.8, 1.0 + 0.2 * x, 0.01)
    deviation = 0.02 * (1.5 + y)
    reference = np.abs(image + noise * deviation * rng.standard_normal(image.shape))
    return ComparedScan(name, (compare(reference, image, claimed * deviation),))


def draw(path: Path, scans: list[ComparedScan], factor: float) -> np.ndarray:
    scaled = [each.scaled(factor) for each in scans]
    write_reliability_figure(path, "title", "subtitle\nsecond line", scaled, (assess(scans), assess(scaled)))
    return matplotlib.image.imread(path)


def test_the_picture_shows_something_in_every_panel(tmp_path: Path) -> None:
    scans = [scan("a" * n, claimed=0.5) for n in range(1, 7)]
    scaling = fit_scaling(scans, Guarantee.SCANS)
    picture = draw(tmp_path / "figure.png", scans, scaling.factor)[..., :3]
    height, width, _ = picture.shape
    assert width > height > 800
    for row in range(2):
        for column in range(3):
            panel = picture[row * height // 2 :, column * width // 3 :][: height // 2, : width // 3]
            assert float(panel.std()) > 0.03


@pytest.mark.parametrize(("claimed", "noise"), [(0.0, 1.0), (1.0, 0.0), (100.0, 1.0)])
def test_odd_deviations_are_drawn_too(tmp_path: Path, claimed: float, noise: float) -> None:
    assert draw(tmp_path / "figure.png", [scan("a", claimed, noise=noise)], 1.0).size > 0


def test_images_without_a_whole_block_are_drawn_too(tmp_path: Path) -> None:
    assert draw(tmp_path / "figure.png", [scan("a", 1.0, size=7), scan("b", 1.0, size=7)], 1.0).size > 0


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    scans = [scan("a" * n, claimed=0.5) for n in range(1, 4)]
    assert np.array_equal(draw(tmp_path / "one.png", scans, 2.0), draw(tmp_path / "two.png", scans, 2.0))
