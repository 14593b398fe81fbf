"""`echotrain calibrate` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six subjects of one slice each."""
    path = tmp_path / "heads.h5"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:96j, -1:1:64j]
    with h5py.File(path, "w") as file:
        for subject in range(6):
            outer, inner = rng.uniform(0.7, 0.8, 2), rng.uniform(0.2, 0.4, 2)
            head = 150.0 * ((y / outer[0]) ** 2 + (x / outer[1]) ** 2 < 1)
            slices = head + 105 * (((y - 0.1) / inner[0]) ** 2 + (x / inner[1]) ** 2 < 1)
            file[f"subject{subject}"] = slices[None].astype(np.uint8)
    return path


def test_calibration_leaves_a_table_a_report_and_a_picture(run: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    outcome = run(
        "calibrate", "sense", data, "--sampling", "equispaced4_acl8", "--noise", 0.05, "--scans", 6, "--coils", 4,
        "--parameter", "iterations=10", "--floor", 0.001, "--output", tmp_path / "out",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert "3 test scans" in outcome.output
    for name in ("as it comes", "scaled", "deviation", "constant", "image", "gradient"):
        assert name in outcome.output
    report = json.loads((tmp_path / "out" / "sense.json").read_text())
    assert report["record"]["pipeline"] == "sense"
    assert report["record"]["mode"] == "noise"
    assert report["record"]["factor"] == report["scaling"]["factor"] > 0
    assert report["record"]["floor"] == 0.001
    assert report["scaling"]["n_scans"] == 3
    assert report["scaling"]["delta"] == pytest.approx(0.25)
    assert report["parameters"] == "iterations=10"
    assert len(report["after"]["scans"]) == 3
    assert "iterations=10" in report["record"]["note"]
    picture = matplotlib.image.imread(tmp_path / "out" / "sense.png")
    assert float(picture[..., :3].std()) > 0.05
    assert outcome.lines[-2:] == [str(tmp_path / "out" / name) for name in ("sense.json", "sense.png")]


def test_each_way_of_measuring_is_reported_apart_and_a_run_can_be_repeated(
    run: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    arguments = (
        "calibrate", "zero_filled", data, "--sampling", "full", "--sampling", "radial11", "--noise", 0.02, "--noise",
        0.1, "--scans", 4, "--coils", 2, "--guarantee", "scans", "--intensity",
    )  # fmt: skip
    first = run(*arguments, "--output", tmp_path / "one")
    assert first.status == 0, first.errors
    report = json.loads((tmp_path / "one" / "zero_filled.json").read_text())
    assert list(report["by_condition"]) == ["full @ 0.02", "full @ 0.1", "radial11 @ 0.02", "radial11 @ 0.1"]
    assert report["after"]["n_images"] == 8
    assert np.all(np.diff(report["intensity"]["outputs"]) > 0)
    assert run(*arguments, "--output", tmp_path / "two").status == 0
    assert (tmp_path / "two" / "zero_filled.json").read_text() == (tmp_path / "one" / "zero_filled.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ("sense", "--scans", 10, "--guarantee", "bound"),
            2,
            "a bound needs at least 44 scans here; 10 were asked for",
        ),
        (("sense", "--scans", 4, "--guarantee", "expected"), 2, "2 scans are too few for an expected risk"),
        (("sense", "--scans", 1, "--sampling", "full"), 2, "at least 2 are needed"),
        (("sense", "--sampling", "spiral99"), 1, "unknown sampling"),
        (("sense", "--parameter", "iterations=0"), 1, "at least 1"),
        (("sense", "--parameter", "iterations"), 2, "not of the form name=value"),
        (("sense", "--device", "abacus"), 2, "abacus"),
        (("pass_through",), 2, "takes images"),
        (("nothing",), 1, "unknown pipeline"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    run: Callable[..., Any], data: Path, tmp_path: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    outcome = run("calibrate", arguments[0], data, "--output", tmp_path / "out", *arguments[1:])
    assert outcome.status == status
    assert message in outcome.errors
    assert outcome.errors.startswith("echotrain: ")
    assert outcome.errors.count("\n") == 1


def test_other_data_test_what_all_scans_of_the_first_calibrate(
    run: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "others.h5"
    with h5py.File(data) as source, h5py.File(other, "w") as target:
        target["someone"] = np.asarray(source["subject0"])
    outcome = run(
        "calibrate", "zero_filled", data, "--test", other, "--sampling", "full", "--scans", 6, "--output", tmp_path
    )
    assert outcome.status == 0, outcome.errors
    report = json.loads((tmp_path / "zero_filled.json").read_text())
    assert report["scaling"]["n_scans"] == 6
    assert report["after"]["scans"] == ["others/someone"]
    assert "heads.h5, tested on others.h5" in report["record"]["note"]


def test_a_scan_that_calibrates_cannot_test(run: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    outcome = run("calibrate", "zero_filled", data, "--test", data, "--scans", 2, "--output", tmp_path)
    assert outcome.status == 2
    assert "holds 2 of the scans that calibrate" in outcome.errors


def test_a_lack_of_scans_is_told(run: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    outcome = run("calibrate", "zero_filled", data, "--scans", 50, "--output", tmp_path / "out")
    assert outcome.status == 0
    assert "has 6 scans of the 50 asked for" in outcome.errors


def test_a_path_that_cannot_be_written_is_said_before_the_work(run: Callable[..., Any], data: Path) -> None:
    outcome = run("calibrate", "sense", data, "--output", "/dev/null/out")
    assert outcome.status == 1
    assert "cannot be written" in outcome.errors


def test_the_factor_goes_into_the_card_of_a_model_and_leaves_the_other_records(
    run: Callable[..., Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = pytest.importorskip("models.catalogue")
    from models.architectures import ARCHITECTURES

    from tests import tiny_model

    monkeypatch.setitem(ARCHITECTURES, tiny_model.ARCHITECTURE, tiny_model.FACTORY)
    other = {"pipeline": "sense", "mode": "quick", "factor": 3.0, "level": 0.9, "n_scans": 5}
    tiny_model.save_tiny(tmp_path / "models", calibration=[other])
    try:
        arguments = (
            "calibrate", "sense", data, "--sampling", "full", "--scans", 6, "--coils", 2, "--intensity",
            "--models", tmp_path / "models", "--write-card", "tiny-line", "--output", tmp_path / "out",
        )  # fmt: skip
        for _ in range(2):  # the second replaces what the first wrote
            outcome = run(*arguments)
            assert outcome.status == 0, outcome.errors
            assert "stored in the card of tiny-line@1.0.0" in outcome.output
        card = catalogue.read_card(catalogue.find("tiny-line"))
        report = json.loads((tmp_path / "out" / "sense.json").read_text())
        assert [record.mode for record in card.calibration] == ["quick", "noise"]
        assert card.calibration_for("sense", "noise").factor == report["record"]["factor"]
        assert card.calibration_for("sense", "noise").coverage[0.9] == report["after"]["coverage"][2]
        assert list(card.intensity.inputs) == report["intensity"]["inputs"]
    finally:
        catalogue.use_directory(None)
