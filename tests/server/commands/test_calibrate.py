"""`echotrain calibrate` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import matplotlib.image
import numpy as np
import pytest

from models.catalogue import find, read_card, use_directory
from tests import tiny_model


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
            "a bound needs at least 44 scans here; fewer were asked for",
        ),
        (("sense", "--scans", 4, "--guarantee", "expected"), 2, "an expected risk needs at least 18 scans"),
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


def test_scans_that_trained_can_be_left_out_of_several_files(
    run: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "others.h5"
    with h5py.File(data) as source, h5py.File(other, "w") as target:
        for name in ("subject1", "subject2", "subject3"):
            target[name] = np.asarray(source[name])
    arguments = ("--held-out", "--sampling", "full", "--scans", 6, "--output", tmp_path)
    outcome = run("calibrate", "zero_filled", data, other, *arguments)
    assert outcome.status == 0, outcome.errors
    report = json.loads((tmp_path / "zero_filled.json").read_text())
    assert report["scaling"]["n_scans"] == 1
    (tested,) = report["after"]["scans"]
    assert tested in {"heads/subject5", "others/subject3"}
    assert "heads.h5, others.h5 (held out)" in report["record"]["note"]

    outcome = run("calibrate", "zero_filled", data, data, *arguments)
    assert outcome.status == 2
    assert "holds scans that were given before" in outcome.errors

    with h5py.File(other, "a") as target:
        del target["subject3"]
    outcome = run("calibrate", "zero_filled", other, *arguments)
    assert outcome.status == 2
    assert "training keeps no scans of others.h5 apart" in outcome.errors


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


@pytest.fixture
def own_models(tmp_path: Path) -> Iterator[Path]:
    """A directory with a model of one's own that has records of others already."""
    others = [
        {"pipeline": "sense", "mode": "quick", "factor": 3.0, "level": 0.9, "n_scans": 5},
        {"pipeline": "joint_ipalm", "mode": "langevin", "factor": 4.0, "level": 0.9, "n_scans": 5},
    ]
    tiny_model.save_tiny_energy(tmp_path / "models", calibration=others)
    tiny_model.save_tiny_energy(tmp_path / "models", seed=6, version="0.9.0")
    yield tmp_path / "models"
    use_directory(None)


def quick(own_models: Path, data: Path, model: str = "tiny-energy") -> tuple[object, ...]:
    """A calibration of a few seconds."""
    return (
        "calibrate", "joint_ipalm", data, "--sampling", "full", "--noise", 0.05, "--scans", 6, "--coils", 2,
        "--parameter", f"model={model}", "--parameter", "iterations=5", "--parameter", "maps=fixed",
        "--parameter", "uncertainty=quick", "--output", own_models.parent / "out",
    )  # fmt: skip


def test_what_was_found_goes_into_the_card_of_the_model_and_leaves_other_records(
    run: Callable[..., Any], data: Path, own_models: Path
) -> None:
    written = ("--noise", 0.1, "--intensity", "--models", own_models, "--write-card", "tiny-energy")
    cards = []
    for _ in range(2):  # the second replaces what the first wrote, and does not build on it
        outcome = run(*quick(own_models, data), *written)
        assert outcome.status == 0, outcome.errors
        assert "stored in the card of tiny-energy@1.0.0" in outcome.output
        assert "domain: energy per pixel" in outcome.output
        cards.append(read_card(find("tiny-energy")))
    assert cards[0] == cards[1]
    card = cards[0]
    report = json.loads((own_models.parent / "out" / "joint_ipalm.json").read_text())
    modes = [(record.pipeline, record.mode) for record in card.calibration]
    assert modes == [("sense", "quick"), ("joint_ipalm", "langevin"), ("joint_ipalm", "quick")]
    stored = card.calibration_for("joint_ipalm", "quick")
    assert stored is not None
    assert stored.factor == report["record"]["factor"]
    assert stored.coverage[0.9] == report["after"]["coverage"][2]
    assert card.intensity is not None
    assert list(card.intensity.inputs) == report["intensity"]["inputs"]
    assert list(card.domain.energy_per_pixel or ()) == report["domain"]["energy_per_pixel"]
    assert list(card.domain.data_residual or ()) == report["domain"]["data_residual"]
    assert 0 <= report["outside_domain"] <= report["after"]["n_images"]


def test_results_of_another_model_or_scaled_already_are_not_stored(
    run: Callable[..., Any], data: Path, own_models: Path
) -> None:
    written = ("--set", f"models.directory={own_models}", "--write-card", "tiny-energy")
    use_directory(own_models)
    before = read_card(find("tiny-energy"))
    outcome = run(*quick(own_models, data, "tiny-energy@0.9.0"), *written)
    assert outcome.status == 2
    assert "results were not made with tiny-energy@1.0.0" in outcome.errors
    outcome = run("calibrate", "sense", data, "--scans", 2, "--output", own_models.parent / "out", *written)
    assert "results were not made with tiny-energy@1.0.0" in outcome.errors
    assert read_card(find("tiny-energy")) == before


def test_calibration_is_off_while_one_calibrates_unless_it_is_asked_for(
    run: Callable[..., Any], data: Path, own_models: Path
) -> None:
    record = {"pipeline": "joint_ipalm", "mode": "quick", "factor": 50.0, "level": 0.9, "n_scans": 5}
    factors = {}
    for name, records, options in (
        ("raw", [], ()),
        ("calibrated", [record], ()),
        ("on", [record], ("--parameter", "calibrate=true", "--write-card", "tiny-energy")),
    ):
        tiny_model.save_tiny_energy(own_models, calibration=records)
        outcome = run(*quick(own_models, data), "--models", own_models, *options)
        report = json.loads((own_models.parent / "out" / "joint_ipalm.json").read_text())
        factors[name] = report["record"]["factor"]
    assert factors["calibrated"] == factors["raw"]
    assert factors["on"] == pytest.approx(factors["raw"] / 50, rel=1e-3)
    assert outcome.status == 2
    assert "scaled its deviations already" in outcome.errors


def test_a_pipeline_with_a_written_card_gives_what_calibration_promised(
    run: Callable[..., Any], data: Path, own_models: Path
) -> None:
    arguments = (*quick(own_models, data), "--floor", 0.003, "--models", own_models)
    assert run(*arguments, "--intensity", "--write-card", "tiny-energy").status == 0
    promised = json.loads((own_models.parent / "out" / "joint_ipalm.json").read_text())["after"]
    assert run(*arguments, "--parameter", "calibrate=true").status == 0
    found = json.loads((own_models.parent / "out" / "joint_ipalm.json").read_text())["before"]
    assert found["scans"] == promised["scans"]
    assert found["coverage"] == pytest.approx(promised["coverage"], abs=1e-3)
    assert found["sharpness"] == pytest.approx(promised["sharpness"], rel=1e-3)
    assert found["mean_error"] == pytest.approx(promised["mean_error"], rel=1e-3)
