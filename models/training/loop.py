"""The loop that trains any model: optimiser, schedule, averaged weights, checkpoints, records.

Knows nothing of what is trained: a recipe gives the loss of an update and the figures and pictures of what it has
learnt. A run that is stopped and resumed ends with the same weights as one that was not: the checkpoint holds all that
changes, and lines that the history has beyond it are dropped. Times are recorded; they decide nothing.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import TrainingError

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"
SMOOTHING = 0.98
"""Of the loss that is shown and recorded."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        updates: steps of the optimiser.
        rate: highest learning rate; rises linearly over `warm_up` updates, then falls as a cosine to a hundredth.
        warm_up: see `rate`.
        weight_decay: of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).
        average: part of the averaged weights kept at each update; the averaged ones are what is shipped.
        clip: largest norm of the gradient.
        seed: of everything random.
        save_every: updates between checkpoints.
        look_every: updates between figures and pictures.
    """

    updates: int
    rate: float = 1e-3
    warm_up: int = 200
    weight_decay: float = 1e-4
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every: int = 500
    look_every: int = 1000


@dataclass(slots=True)
class Random:
    """The generators of a run; both are part of its checkpoint."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> Random:
        """Generators that depend on the seed alone."""
        return cls(np.random.default_rng(seed), torch.Generator("cpu").manual_seed(seed))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"numpy": self.numpy.bit_generator.state, "torch": self.torch.get_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.numpy.bit_generator.state = state["numpy"]
        self.torch.set_state(state["torch"])


@runtime_checkable
class Recipe(Protocol):
    """What is particular to one model."""

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        ...

    def loss(self, update: int, random: Random) -> tuple[Tensor, Mapping[str, float]]:
        """Loss of one update, and figures worth recording."""
        ...

    def look(self, averaged: nn.Module, update: int, directory: Path) -> Mapping[str, float]:
        """Figures of the averaged model on validation data; pictures into the directory."""
        ...

    def settings(self) -> dict[str, Any]:
        """Plain values that have to be the same when a run goes on."""
        ...

    def state(self) -> dict[str, Any]:
        """What of the recipe changes while it trains, for a checkpoint; tensors and plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        ...


def train(
    recipe: Recipe,
    settings: LoopSettings,
    directory: Path,
    *,
    resume: bool = False,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> nn.Module:
    """Train, and return the averaged model.

    Args:
        recipe: model and loss.
        settings: how long and how fast.
        directory: for checkpoint, history and pictures; made if need be.
        resume: go on from the checkpoint in the directory.
        report: called after each update with its number and the latest figures.
        clock: seconds, for the record.

    Raises:
        TrainingError: there is nothing to resume, the checkpoint cannot be read or is of other settings, or the loss is
            not finite.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{directory} cannot be made: {error.strerror}") from error
    model = recipe.model
    averaged = deepcopy(model)
    optimiser = torch.optim.AdamW(
        model.parameters(), settings.rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    random = Random.seeded(settings.seed)
    begun, smooth = 0, None
    started: float | None = clock()
    if resume:
        checkpoint = _read(directory / CHECKPOINT, settings, recipe)
        model.load_state_dict(checkpoint["model"])
        averaged.load_state_dict(checkpoint["averaged"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        random.restore(checkpoint["random"])
        recipe.restore(checkpoint["recipe"])
        begun, smooth = int(checkpoint["update"]), checkpoint["smooth"]
        # None in checkpoints that were made before times were kept: what came before cannot be known any more.
        before = checkpoint.get("seconds")
        started = None if before is None else clock() - float(before)
        _forget_after(directory / HISTORY, begun)
    else:
        (directory / HISTORY).unlink(missing_ok=True)
    for update in range(begun, settings.updates):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, update)
        loss, figures = recipe.loss(update, random)
        if not bool(torch.isfinite(loss.detach())):
            raise TrainingError(f"update {update}: the loss is not finite; a lower rate may help")
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        _average(averaged, model, min(settings.average, (update + 1) / (update + 10)))
        value = float(loss.detach())
        smooth = value if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * value
        done = update + 1
        latest: dict[str, float] = {"loss": smooth, **figures}
        if done % settings.look_every == 0 or done == settings.updates:
            latest |= recipe.look(averaged, done, directory)
            times = {} if started is None else {"seconds": round(clock() - started, 3)}
            _record(directory / HISTORY, done, {**latest, **times})
        if report is not None:
            report(done, latest)
        if done % settings.save_every == 0 or done == settings.updates:
            _write(
                directory / CHECKPOINT,
                {
                    "settings": asdict(settings),
                    "recipe_settings": recipe.settings(),
                    "update": done,
                    "seconds": None if started is None else clock() - started,
                    "smooth": smooth,
                    "model": model.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "random": random.state(),
                    "recipe": recipe.state(),
                },
            )
    return averaged


def learning_rate(settings: LoopSettings, update: int) -> float:
    """Linear rise, then a cosine down to a hundredth."""
    if update < settings.warm_up:
        return settings.rate * (update + 1) / settings.warm_up
    part = (update - settings.warm_up) / max(1, settings.updates - settings.warm_up)
    return settings.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, kept: float) -> None:
    for mean, current in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(current, 1 - kept)


def read_history(directory: Path) -> list[dict[str, int | float]]:
    """Lines of a run's history, each with its `update`; empty when there is none.

    A last line without its end, of a run that was killed while it wrote, is left out.

    Raises:
        TrainingError: the file is no history.
    """
    path = directory / HISTORY
    if not path.is_file():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    try:
        lines = [json.loads(line) for line in whole]
        return [line for line in lines if int(line["update"]) > 0]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is no history of a run: {error}") from error


def _forget_after(path: Path, update: int) -> None:
    """Drop lines of updates that are going to be done again."""
    lines = [line for line in read_history(path.parent) if line["update"] <= update]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if path.is_file() and path.read_text() != text:
        path.write_text(text)


def _record(path: Path, update: int, figures: Mapping[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"update": update, **figures}) + "\n")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """All or nothing: a run killed while it writes leaves the checkpoint before."""
    temporary = path.with_suffix(".new")
    torch.save(dict(content), temporary)
    os.replace(temporary, path)  # noqa: PTH105  its atomicity is documented


def _read(path: Path, settings: LoopSettings, recipe: Recipe) -> dict[str, Any]:
    """A checkpoint of this run; on the CPU, wherever it was made."""
    if not path.is_file():
        raise TrainingError(f"nothing to resume: {path} does not exist")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path} cannot be read as a checkpoint: {type(error).__name__}") from error
    # Checkpoints that were made before a recipe's settings were kept have none to compare.
    wanted = asdict(settings) | recipe.settings()
    found = {**content["settings"], **content.get("recipe_settings", recipe.settings())}
    others = [f"{name} {found.get(name)} then, {wanted.get(name)} now" for name in sorted(found.keys() | wanted.keys())
              if found.get(name) != wanted.get(name)]  # fmt: skip
    own = recipe.model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in content["model"].items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
        others.append("a network of another size")
    if others:
        raise TrainingError(f"{path} was made with other settings: {', '.join(others)}")
    return content
