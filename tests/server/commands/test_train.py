"""`echotrain train` as a user runs it: a run, a stop, a resumption, a model in the store."""

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
from models.energy import EnergyConfiguration, EnergyModel
from models.store import open_model, verify
from models.training import energy
from server.commands import train

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three subjects of two slices."""
    path = tmp_path / "heads.h5"
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    with h5py.File(path, "w") as file:
        file.attrs["licence"] = "CC BY-SA 3.0 (heads of three)"
        file.attrs["source"] = "source: github:someone/heads\ncommit/version: 12ab"
        for subject in range(3):
            radii = rng.uniform(0.6, 0.9, (2, 2))
            slices = [200.0 * ((y / a) ** 2 + (x / b) ** 2 < 1) * (1 + 0.2 * np.sin(9 * x * y)) for a, b in radii]
            file[f"subject{subject}"] = np.clip(slices, 0, 255).astype(np.uint8)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network and looks of a second; no directory of models left behind."""
    monkeypatch.setattr(train, "SMALL", EnergyConfiguration(2, 8))
    monkeypatch.setattr(energy, "VALIDATION_IMAGES", 3)
    monkeypatch.setattr(energy, "VALIDATION_SIDE", 96)
    yield
    use_directory(None)


def arguments(data: Path, output: Path, *more: object) -> tuple[object, ...]:
    return (
        "train", "energy", "--data", data, "--output", output, "--updates", 4, "--likelihood-from", 2, "--side", 32,
        "--batch", 4, "--chain", 2, "--look-every", 4, "--threads", 1, *more,
    )  # fmt: skip


NAMED = ("--name", "energy-heads", "--licence", "CC-BY-SA-4.0", "--summary", "Energy of heads.")


def test_a_run_leaves_checkpoint_history_and_pictures_and_saves_its_model_afterwards(
    run: Run, data: Path, tmp_path: Path
) -> None:
    output, models = tmp_path / "run", tmp_path / "models"
    outcome = run(*arguments(data, output))
    assert outcome.status == 0, outcome.errors
    assert "heads: 2 subjects, 4 slices, licence CC BY-SA 3.0" in outcome.errors
    assert not models.exists()
    names = {path.name for path in output.iterdir()}
    assert {"checkpoint.pt", "history.jsonl", "energies-000004.png"} <= names
    (line,) = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]

    # A finished run needs no training to become a model.
    outcome = run(*arguments(data, output, "--resume", *NAMED, "--models", models, "--limit", "Not for feet."))
    assert outcome.status == 0, outcome.errors
    assert "energy-heads@1.0.0" in outcome.errors
    use_directory(models)
    assert verify() == {}
    stored = open_model("energy-heads")
    card, network = stored.card, stored.build()
    assert isinstance(network, EnergyModel)
    averaged = torch.load(output / "checkpoint.pt", weights_only=True)["averaged"]
    for name, tensor in averaged.items():
        assert torch.equal(stored.tensors[name], tensor)
    assert (card.architecture, card.licence, card.summary) == ("energy", "CC-BY-SA-4.0", "Energy of heads.")
    (source,) = card.data
    assert (source.licence, source.attribution) == ("CC-BY-SA-3.0", "heads of three")
    assert source.source == "https://github.com/someone/heads, version 12ab"
    assert card.training.duration_s == line["seconds"] > 0
    assert (card.training.seed, card.training.updates) == (0, 4)
    assert card.training.settings["side"] == 32
    assert card.metrics["psnr_db_0.05"] == line["psnr_db_0.05"]
    assert card.limits == (*train.STANDING_LIMITS, "Not for feet.")
    low, high = card.domain.energy_per_pixel
    assert 0 <= low < card.metrics["energy_data_nats_per_pixel"] < high
    assert card.domain.data_residual is None
    command = shlex.split(card.training.command)
    assert command[:5] == ["echotrain", "train", "energy", "--data", "heads.h5"]

    # The command of the card does it again.
    again = tmp_path / "again"
    outcome = run(*command[1:3], "--data", data, *command[5:], "--output", again)
    assert outcome.status == 0, outcome.errors
    repeated = torch.load(again / "checkpoint.pt", weights_only=True)["averaged"]
    assert all(torch.equal(repeated[name], tensor) for name, tensor in averaged.items())


def test_a_deeper_network_goes_on_from_a_model_that_one_has(run: Run, data: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert run(*arguments(data, tmp_path / "first", *NAMED, "--models", models)).status == 0
    further = ("--begin-with", "energy-heads", "--blocks", 3, *NAMED, "--version", "1.1.0", "--models", models)
    outcome = run(*arguments(data, tmp_path / "second", *further))
    assert outcome.status == 0, outcome.errors
    use_directory(models)
    stored = open_model("energy-heads@1.1.0")
    assert stored.card.configuration["blocks"] == 3
    assert "--begin-with energy-heads@1.0.0 --blocks 3" in stored.card.training.command
    # Four updates change weights little: those of the first model are recognised, new ones began at zero.
    first = open_model("energy-heads@1.0.0").tensors
    name = "down.0.0.convolution.weight"
    assert float((stored.tensors[name] - first[name]).abs().max()) < 0.1 * float(first[name].abs().max())
    assert float(stored.tensors["down.0.2.convolution.weight"].abs().max()) < 0.1 * float(first[name].abs().max())

    outcome = run(*arguments(data, tmp_path / "third", "--begin-with", "energy-heads@1.1.0", "--blocks", 2))
    assert outcome.status == 2
    assert "3 blocks a stage already" in outcome.errors
    outcome = run(*arguments(data, tmp_path / "third", "--begin-with", "energy-feet"))
    assert outcome.status == 1
    assert "energy-feet" in outcome.errors
    assert not (tmp_path / "third").exists()


def test_a_run_with_other_options_is_not_resumed(run: Run, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert run(*arguments(data, output)).status == 0
    for more, message in (
        (("--chain", 3), "longest_chain 2 then, 3 now"),
        (("--seed", 1), "seed 0 then, 1 now"),
        (("--precise",), "half True then, False now"),
    ):
        outcome = run(*arguments(data, output, "--resume", *more))
        assert outcome.status == 1
        assert message in outcome.errors


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--name", "energy-heads"), "--summary"),
        ((*NAMED, "--version", "1"), "version"),
        ((*NAMED, "--data-licence", "MIT"), "NAME=SPDX"),
        ((*NAMED, "--data-licence", "hands=MIT"), "hands"),
        ((*NAMED[:1], "../x", *NAMED[2:]), "name"),
        (("--device", "quantum"), "cpu, cuda or cuda:N"),
        (("--device", "meta"), "cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "CUDA devices here"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(
    run: Run, data: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    outcome = run(*arguments(data, tmp_path / "run", *more))
    assert outcome.status == 2
    assert message in outcome.errors
    assert not (tmp_path / "run").exists()


def test_data_without_a_licence_are_trained_on_but_not_published_without_one(
    run: Run, data: Path, tmp_path: Path
) -> None:
    with h5py.File(data, "a") as file:
        del file.attrs["licence"]
    outcome = run(*arguments(data, tmp_path / "run", *NAMED))
    assert outcome.status == 2
    assert "--data-licence" in outcome.errors
    given = ("--data-licence", "heads=LicenseRef-ours", "--models", tmp_path / "models")
    assert run(*arguments(data, tmp_path / "run", *NAMED, *given)).status == 0
    card = json.loads((tmp_path / "models" / "cards" / "energy-heads@1.0.0.json").read_text())
    assert card["data"][0]["licence"] == "LicenseRef-ours"


@pytest.mark.parametrize(
    ("name", "message"), [("absent.h5", "cannot be read as HDF5"), ("heads_localonly.h5", "may not be trained on")]
)
def test_data_that_cannot_be_used_end_with_status_1(
    run: Run, data: Path, tmp_path: Path, name: str, message: str
) -> None:
    data.rename(tmp_path / "heads_localonly.h5")
    outcome = run(*arguments(tmp_path / name, tmp_path / "run"))
    assert outcome.status == 1
    assert message in outcome.errors
