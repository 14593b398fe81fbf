"""`echotrain train`: train a model on images that one has, with pictures of what it learns while it does."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.energy import LARGE, SMALL, EnergyModel
from models.training.energy import EnergyRecipe, EnergySettings
from models.training.images import read_sources
from models.training.loop import LoopSettings, train


class Model(StrEnum):
    """What can be trained."""

    ENERGY = "energy"


class Size(StrEnum):
    """Configurations of a network."""

    SMALL = "small"
    LARGE = "large"


def main(
    model: Annotated[Model, typer.Argument(help="What to train.")],
    data: Annotated[
        list[Path],
        typer.Option(help="HDF5 file of images or k-space, or a directory of them; may be repeated.", metavar="PATH"),
    ],
    output: Annotated[Path, typer.Option(help="Directory for checkpoint, history and pictures.", metavar="DIR")],
    updates: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 14500,
    likelihood_from: Annotated[int, typer.Option(help="Update at which maximum likelihood begins.", min=0)] = 12000,
    size: Annotated[Size, typer.Option(help="Size of the network; large needs a GPU.")] = Size.SMALL,
    side: Annotated[int, typer.Option(help="Side of training patches, in pixels.", min=16, max=512)] = 64,
    batch: Annotated[int, typer.Option(help="Patches an update.", min=1)] = 16,
    chain: Annotated[int, typer.Option(help="Longest chain of Langevin steps.", min=1)] = 40,
    rate: Annotated[float, typer.Option(help="Highest learning rate.", min=1e-7, max=1)] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)] = 0,
    precise: Annotated[bool, typer.Option("--precise", help="Single precision instead of bfloat16.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output directory.")] = False,
    look_every: Annotated[int, typer.Option(help="Updates between figures and pictures.", min=1)] = 1000,
) -> None:
    r"""Train a model on HDF5 files: stacks of magnitude slices, k-space of one coil, or fastMRI folders.

    Every tenth subject is kept apart for validation. Each thousand updates leave pictures (samples of the model beside
    data, histograms and profiles of the energy) and a line in history.jsonl. A run that was stopped goes on with
    --resume and ends with the same weights.

    \b
    Example:
        echotrain train energy --data brain_t1_ixi_2mm.h5 --data brain_t1_1mm.h5 --output runs/energy-brain
        echotrain train energy --size large --device cuda --side 128 --batch 32 --data /data/fastmri --output runs/large

    \b
    Exit statuses: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments.
    """
    console = Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    training = read_sources(data, validation=False)
    validation = read_sources(data, validation=True)
    for source in training:
        licence = source.licence or "not stated"
        console.print(f"{source.name}: {len(source.subjects)} subjects, {len(source.slices)} slices, licence {licence}")
    recipe = EnergyRecipe(
        EnergyModel(SMALL if size is Size.SMALL else LARGE),
        training,
        validation,
        EnergySettings(
            side=side,
            batch=batch,
            likelihood_from=likelihood_from,
            longest_chain=chain,
            half=not precise,
            device=device,
        ),
    )
    settings = LoopSettings(updates, rate=rate, seed=seed, look_every=look_every)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(f"{model.value}", total=updates)

        def report(done: int, figures: Mapping[str, float]) -> None:
            progress.update(task, completed=done, description=f"loss {figures['loss']:.4f}")

        train(recipe, settings, output, resume=resume, report=report)
