"""`echotrain train unrolled` as a user runs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from models.catalogue import use_directory
from models.store import open_model, verify
from models.training import unrolled
from models.unrolled import UnrolledConfiguration, UnrolledModel
from pipelines.simulation import training_scans
from server.commands import train_unrolled
from server.commands.train_unrolled import STANDING_LIMITS, Kind

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three subjects of two slices."""
    path = tmp_path / "heads.h5"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    with h5py.File(path, "w") as file:
        file.attrs["licence"] = "CC0"
        for subject in range(3):
            radii = rng.uniform(0.6, 0.9, (2, 2))
            slices = [200.0 * ((y / a) ** 2 + (x / b) ** 2 < 1) * (1 + 0.2 * np.sin(9 * x * y)) for a, b in radii]
            file[f"subject{subject}"] = np.clip(slices, 0, 255).astype(np.uint8)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network and looks of a second; no directory of models left behind."""
    monkeypatch.setattr(train_unrolled, "SMALL", UnrolledConfiguration(2, 2, 8, memory=4, head=8))
    monkeypatch.setattr(unrolled, "VALIDATION_IMAGES", 2)
    monkeypatch.setattr(unrolled, "VALIDATION_SIDE", 48)
    monkeypatch.setattr(training_scans, "BANK_SIDE", 64)
    monkeypatch.setattr(training_scans, "BANK", 3)
    yield
    use_directory(None)


def arguments(data: Path, output: Path, *more: object) -> tuple[object, ...]:
    return (
        "train", "unrolled", "--data", data, "--output", output, "--updates", 3, "--side", 32, "--longest-side", 48,
        "--look-every", 3, "--threads", 1, *more,
    )  # fmt: skip


NAMED = ("--name", "unrolled-heads", "--licence", "CC0-1.0", "--summary", "Heads.")


def test_a_run_leaves_pictures_and_a_model_with_its_card_and_its_command_does_it_again(
    run: Run, data: Path, tmp_path: Path
) -> None:
    output, models = tmp_path / "run", tmp_path / "models"
    outcome = run(*arguments(data, output))
    assert outcome.status == 0, outcome.errors
    assert {"checkpoint.pt", "history.jsonl", "results-000003.png"} <= {path.name for path in output.iterdir()}
    (line,) = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    outcome = run(*arguments(data, output, "--resume", *NAMED, "--models", models, "--limit", "Not for feet."))
    assert outcome.status == 0, outcome.errors
    use_directory(models)
    assert verify() == {}
    stored = open_model("unrolled-heads")
    card = stored.card
    assert isinstance(stored.build(), UnrolledModel)
    assert card.metrics["psnr_db"] == line["psnr_db"]
    assert {"psnr_db_start", "ssim"} <= card.metrics.keys()
    assert card.limits == (*STANDING_LIMITS, "Not for feet.")
    assert card.training.settings["side"] == 32
    command = shlex.split(card.training.command)
    assert command[:5] == ["echotrain", "train", "unrolled", "--data", "heads.h5"]
    again = tmp_path / "again"
    outcome = run(*command[1:3], "--data", data, *command[5:], "--output", again)
    assert outcome.status == 0, outcome.errors
    one, other = (torch.load(path / "checkpoint.pt", weights_only=True)["averaged"] for path in (output, again))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_is_a_network_to_compare_with(run: Run, data: Path, tmp_path: Path, kind: Kind) -> None:
    outcome = run(*arguments(data, tmp_path / "run", "--kind", kind.value, *NAMED, "--models", tmp_path / "models"))
    assert outcome.status == 0, outcome.errors
    card = json.loads((tmp_path / "models" / "cards" / "unrolled-heads@1.0.0.json").read_text())
    configuration = card["configuration"]
    assert configuration["sees_data"] == (kind in {Kind.ADAPTIVE, Kind.NO_MEMORY})
    assert (configuration["memory"] > 0) == (kind in {Kind.ADAPTIVE, Kind.NO_DATA})
    assert (configuration["consistency"] == "conjugate_gradient") == (kind is Kind.MODL)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--name", "unrolled-heads"), "--summary"),
        (("--longest-side", "24"), "must be at least --side"),
        (("--device", "quantum"), "cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(
    run: Run, data: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    outcome = run(*arguments(data, tmp_path / "run", *more))
    assert outcome.status == 2
    assert message in outcome.errors
    assert not (tmp_path / "run").exists()


def test_what_is_not_known_is_not_trained(run: Run) -> None:
    assert run("train", "feet").status == 2
    assert run("train", "--help").status == 0
