"""The training loop: resumed runs, refused ones, records, averaged weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import TrainingError
from models.training.loop import (
    CHECKPOINT,
    HISTORY,
    LoopSettings,
    Random,
    learning_rate,
    read_history,
    train,
)

SETTINGS = LoopSettings(10, warm_up=3, average=0.9, save_every=4, look_every=3)


class Stopped(Exception):  # noqa: N818  nothing went wrong: somebody pulled the plug
    """The process ended."""


class Line:
    """Learns a line from random points; what it has drawn so far is its state."""

    def __init__(
        self, stop_at: int | None = None, value: float = 1.0, width: int = 3, extra: Mapping[str, Any] | None = None
    ) -> None:
        torch.manual_seed(7)
        self.model: nn.Module = nn.Linear(width, 1)
        self.drawn = torch.zeros(width)
        self.looked: list[int] = []
        self._stop_at, self._value, self._width = stop_at, value, width
        self._extra = dict(extra or {"kind": "line"})

    def loss(self, update: int, random: Random) -> tuple[Tensor, Mapping[str, float]]:
        if update == self._stop_at:
            raise Stopped
        points = torch.randn((8, self._width), generator=random.torch) + float(random.numpy.normal())
        self.drawn = self.drawn + points.sum(0)
        error = self.model(points)[:, 0] - points.sum(1) - self.drawn.mean()
        return self._value * error.square().mean(), {"error": float(error.detach().abs().mean())}

    def look(self, averaged: nn.Module, update: int, directory: Path) -> Mapping[str, float]:
        assert averaged is not self.model
        assert directory.is_dir()
        self.looked.append(update)
        return {"weight": float(next(averaged.parameters()).detach().sum())}

    def settings(self) -> dict[str, Any]:
        return self._extra

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


def stopped(directory: Path, at: int, settings: LoopSettings = SETTINGS) -> None:
    with pytest.raises(Stopped):
        train(Line(stop_at=at), settings, directory)


def checkpoint(directory: Path) -> dict[str, Any]:
    return torch.load(directory / CHECKPOINT, weights_only=True)


def change(directory: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    content = checkpoint(directory)
    alter(content)
    torch.save(content, directory / CHECKPOINT)


def without_times(directory: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_history(directory)]


@pytest.mark.parametrize("at", [4, 6, 7, 9])
def test_a_resumed_run_ends_with_the_same_bits_as_one_that_was_not_stopped(tmp_path: Path, at: int) -> None:
    whole = train(Line(), SETTINGS, tmp_path / "whole")
    stopped(tmp_path / "halves", at)
    resumed = train(Line(), SETTINGS, tmp_path / "halves", resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert without_times(tmp_path / "halves") == without_times(tmp_path / "whole")
    first, second = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves")
    assert torch.equal(first["model"]["weight"], second["model"]["weight"])
    assert torch.equal(first["random"]["torch"], second["random"]["torch"])
    assert first["random"]["numpy"] == second["random"]["numpy"]
    assert (first["smooth"], first["update"]) == (second["smooth"], 10) == (second["smooth"], second["update"])


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    first = train(Line(), SETTINGS, tmp_path / "first").state_dict()["weight"]
    second = train(Line(), replace(SETTINGS, seed=1), tmp_path / "second").state_dict()["weight"]
    assert not torch.equal(first, second)


def test_a_finished_run_resumes_to_its_weights_and_its_record(tmp_path: Path) -> None:
    done = train(Line(), SETTINGS, tmp_path)
    history = (tmp_path / HISTORY).read_bytes()
    again = train(Line(stop_at=0), SETTINGS, tmp_path, resume=True)
    assert torch.equal(again.state_dict()["weight"], done.state_dict()["weight"])
    assert (tmp_path / HISTORY).read_bytes() == history


@pytest.mark.parametrize(
    ("settings", "recipe", "message"),
    [
        (replace(SETTINGS, rate=0.01), {}, "rate 0.001 then, 0.01 now"),
        (replace(SETTINGS, updates=11), {}, "updates 10 then, 11 now"),
        (SETTINGS, {"extra": {"kind": "curve"}}, "kind line then, curve now"),
        (SETTINGS, {"extra": {"kind": "line", "more": 1}}, "more None then, 1 now"),
        (SETTINGS, {"width": 4}, "a network of another size"),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(
    tmp_path: Path, settings: LoopSettings, recipe: dict[str, Any], message: str
) -> None:
    stopped(tmp_path, 6)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match=f"made with other settings: {message}"):
        train(Line(**recipe), settings, tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoints_made_before_times_and_recipes_were_kept_are_read(tmp_path: Path) -> None:
    whole = train(Line(), SETTINGS, tmp_path / "whole")
    stopped(tmp_path / "old", 6)
    change(tmp_path / "old", lambda content: [content.pop(name) for name in ("seconds", "recipe_settings")])
    resumed = train(Line(), SETTINGS, tmp_path / "old", resume=True)
    assert torch.equal(resumed.state_dict()["weight"], whole.state_dict()["weight"])
    history = read_history(tmp_path / "old")
    assert "seconds" in history[0]
    assert not any("seconds" in line for line in history[1:])


def test_nothing_to_resume_and_damaged_checkpoints_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(Line(), SETTINGS, tmp_path, resume=True)
    stopped(tmp_path, 6)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for damaged in (b"", b"no", whole[:-100]):
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(TrainingError, match="cannot be read as a checkpoint"):
            train(Line(), SETTINGS, tmp_path, resume=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_spoils_nothing(tmp_path: Path, value: float) -> None:
    stopped(tmp_path, 6)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="update 4: the loss is not finite"):
        train(Line(value=value), SETTINGS, tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_run_killed_while_it_writes_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(Line(), SETTINGS, tmp_path / "whole")
    save = torch.save

    def killed(content: dict[str, Any], path: Path) -> None:
        if content["update"] == 8:
            path.write_bytes(b"half of a checkp")
            raise Stopped
        save(content, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(Stopped):
            train(Line(), SETTINGS, tmp_path / "killed")
    assert checkpoint(tmp_path / "killed")["update"] == 4
    resumed = train(Line(), SETTINGS, tmp_path / "killed", resume=True)
    assert torch.equal(resumed.state_dict()["weight"], whole.state_dict()["weight"])


def test_the_history_tells_of_each_look_and_of_the_end(tmp_path: Path) -> None:
    recipe = Line()
    ticks = count(100, 2)
    train(recipe, SETTINGS, tmp_path, clock=lambda: float(next(ticks)))
    lines = [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()]
    assert [line["update"] for line in lines] == recipe.looked == [3, 6, 9, 10]
    assert all({"loss", "error", "weight", "seconds"} <= line.keys() for line in lines)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert checkpoint(tmp_path)["seconds"] > lines[-1]["seconds"] > 0


def test_seconds_go_on_where_they_were_without_the_pause(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(Line(stop_at=6), SETTINGS, tmp_path, clock=count(0).__next__)
    before = checkpoint(tmp_path)["seconds"]
    train(Line(), SETTINGS, tmp_path, resume=True, clock=count(1_000_000).__next__)
    assert before < read_history(tmp_path)[-1]["seconds"] < 100


def test_a_new_run_forgets_the_history_of_the_one_before(tmp_path: Path) -> None:
    for _ in range(2):
        train(Line(), SETTINGS, tmp_path)
    assert [line["update"] for line in read_history(tmp_path)] == [3, 6, 9, 10]


def test_a_line_of_history_without_its_end_is_left_out_and_other_text_refused(tmp_path: Path) -> None:
    path = tmp_path / HISTORY
    path.write_text('{"update": 3}\n{"update": 6, "lo')
    assert read_history(tmp_path) == [{"update": 3}]
    for text in ("no\n", "[]\n", '{"loss": 1}\n'):
        path.write_text(text)
        with pytest.raises(TrainingError, match="no history of a run"):
            read_history(tmp_path)


def test_averaged_weights_are_the_running_mean_of_the_weights(tmp_path: Path) -> None:
    recipe = Line()
    weights: list[Tensor] = [recipe.model.state_dict()["weight"].clone()]

    def keep(_done: int, _figures: Mapping[str, float]) -> None:
        weights.append(recipe.model.state_dict()["weight"].clone())

    averaged = train(recipe, SETTINGS, tmp_path, report=keep)
    expected = weights[0]
    for update, current in enumerate(weights[1:]):
        kept = min(0.9, (update + 1) / (update + 10))
        expected = kept * expected + (1 - kept) * current
    torch.testing.assert_close(averaged.state_dict()["weight"], expected)
    assert not torch.equal(averaged.state_dict()["weight"], weights[-1])


def test_the_rate_rises_then_falls_to_a_hundredth() -> None:
    settings = LoopSettings(1000, rate=0.5, warm_up=100)
    rates = [learning_rate(settings, update) for update in range(1000)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[99] == rates[100] == 0.5
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.005, rel=1e-3)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be made"):
        train(Line(), SETTINGS, tmp_path / "file")
