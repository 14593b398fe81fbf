"""What the commands of `echotrain train` have in common: checks before hours of training, progress, draft of a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from models.card import CardDraft
from models.errors import TrainingDataError
from models.training.images import Source, read_sources
from models.training.loop import LoopSettings, Recipe, train
from models.training.publication import data_sources


def check_device(name: str) -> None:
    """Refuse a device that is not here.

    Raises:
        BadParameter: it is none of torch's, or not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(f"--device {name}: cpu, cuda or cuda:N is expected") from error
    if device.type not in {"cpu", "cuda"}:
        raise typer.BadParameter(f"--device {name}: cpu, cuda or cuda:N is expected")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")


def read_data(paths: Sequence[Path], console: Console) -> tuple[list[Source], list[Source]]:
    """Images to train on and images kept apart, told of on the console.

    Raises:
        TrainingDataError: data cannot be used.
    """
    training = read_sources(paths, validation=False)
    validation = read_sources(paths, validation=True)
    for source in training:
        said = source.licence or "not stated"
        console.print(f"{source.name}: {len(source.subjects)} subjects, {len(source.slices)} slices, licence {said}")
    return training, validation


def run_training(
    recipe: Recipe, settings: LoopSettings, output: Path, title: str, console: Console, *, resume: bool
) -> nn.Module:
    """Train with a progress bar, and return the averaged model.

    Raises:
        TrainingError: see `models.training.loop.train`.
    """
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(title, total=settings.updates)

        def report(done: int, figures: Mapping[str, float]) -> None:
            progress.update(task, completed=done, description=f"loss {figures['loss']:.4f}")

        averaged = train(recipe, settings, output, resume=resume, report=report)
        progress.update(task, completed=settings.updates)
    return averaged


def draft_card(training: Sequence[Source], data_licences: Sequence[str], values: Mapping[str, Any]) -> CardDraft:
    """The card as far as it is known before training.

    Args:
        training: images trained on.
        data_licences: `NAME=SPDX` of files that do not say it.
        values: all other fields.

    Raises:
        BadParameter: something that only the user knows is missing or impossible.
    """
    licences = _pairs(data_licences)
    if not values["summary"] or not values["licence"]:
        raise typer.BadParameter("a model that is saved with --name needs --summary and --licence for its card")
    try:
        return CardDraft.model_validate({**values, "data": data_sources(training, licences)})
    except TrainingDataError as error:
        raise typer.BadParameter(f"{error}; give --data-licence NAME=SPDX") from error
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise typer.BadParameter(f"the card cannot say this: {found}") from error


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if not all(left and right for left, _, right in pairs):
        raise typer.BadParameter("--data-licence takes NAME=SPDX, such as brain_t1=CC0-1.0")
    return {left: right for left, _, right in pairs}
