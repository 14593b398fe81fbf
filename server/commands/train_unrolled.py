"""`echotrain train unrolled`: train an unrolled network on scans simulated from images that one has."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from models.card import Training
from models.store import save_model
from models.training.loop import LoopSettings
from models.training.publication import code_version, device_name, duration_s, final_figures
from models.training.unrolled import UnrolledRecipe, UnrolledSettings
from models.unrolled import BASE, SMALL, UnrolledConfiguration, UnrolledModel
from pipelines.simulation.training_scans import ScanSimulator
from server.training import check_device, draft_card, read_data, run_training

ARCHITECTURE = "unrolled"

STANDING_LIMITS = (
    "For research; not a medical device.",
    "Trained on simulated scans: magnitude images with smooth phase, coils on a ring, white noise, maps from "
    "calibration lines. What real scans have beside that (motion, off-resonance, wrong gains) it has never seen.",
    "Knows the anatomy and contrasts of its training data; what is rare there may be smoothed away or made up.",
    "The predicted deviation is that of errors on such scans; it cannot know of errors of another kind.",
)


class Size(StrEnum):
    """Configurations of a network."""

    SMALL = "small"
    BASE = "base"


class Kind(StrEnum):
    """What of the adaptive unrolling a network has; all but the first are there to compare with."""

    ADAPTIVE = "adaptive"
    NO_MEMORY = "no_memory"
    NO_DATA = "no_data"
    PLAIN = "plain"
    MODL = "modl"

    def of(self, configuration: UnrolledConfiguration) -> UnrolledConfiguration:
        """A configuration made of this kind."""
        changes = {
            Kind.ADAPTIVE: replace(configuration),
            Kind.NO_MEMORY: replace(configuration, memory=0),
            Kind.NO_DATA: replace(configuration, sees_data=False),
            Kind.PLAIN: replace(configuration, memory=0, sees_data=False),
            Kind.MODL: replace(configuration, memory=0, sees_data=False, consistency="conjugate_gradient", shared=True),
        }
        return changes[self]


@dataclass(frozen=True, slots=True)
class Plan:
    """All options that decide what is learnt."""

    size: Size
    kind: Kind
    recipe: UnrolledSettings
    loop: LoopSettings
    threads: int

    @property
    def network(self) -> UnrolledConfiguration:
        """Size and kind of the network."""
        return self.kind.of(SMALL if self.size is Size.SMALL else BASE)

    def command(self, data: Sequence[Path]) -> str:
        """What does it again, given the files; without paths of this machine."""
        words = ["echotrain", "train", ARCHITECTURE]
        for path in data:
            words += ["--data", path.name]
        values = {
            "size": self.size.value,
            "kind": self.kind.value,
            "updates": self.loop.updates,
            "side": self.recipe.side,
            "longest-side": self.recipe.longest_side,
            "whole": self.recipe.whole,
            "batch": self.recipe.batch,
            "rate": self.loop.rate,
            "seed": self.loop.seed,
            "device": self.recipe.device,
            "threads": self.threads,
        }
        for name, value in values.items():
            words += [f"--{name}", str(value)]
        return shlex.join([*words, "--half"] if self.recipe.half else words)


def train_unrolled(
    data: Annotated[
        list[Path],
        typer.Option(help="HDF5 file of images or k-space, or a directory of them; may be repeated.", metavar="PATH"),
    ],
    output: Annotated[Path, typer.Option(help="Directory for checkpoint, history and pictures.", metavar="DIR")],
    updates: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 8000,
    size: Annotated[Size, typer.Option(help="Size of the network; base needs a GPU.")] = Size.SMALL,
    kind: Annotated[Kind, typer.Option(help="Adaptive, or with less, to compare with.")] = Kind.ADAPTIVE,
    side: Annotated[int, typer.Option(help="Side of patches, and least side of whole slices.", min=24, max=256)] = 72,
    longest_side: Annotated[int, typer.Option(help="Greatest side of whole slices.", min=24, max=512)] = 104,
    whole: Annotated[
        float, typer.Option(help="Part of the updates that see whole slices, scaled to fit, not patches.", min=0, max=1)
    ] = 1.0,
    batch: Annotated[int, typer.Option(help="Scans an update.", min=1)] = 2,
    rate: Annotated[float, typer.Option(help="Highest learning rate.", min=1e-7, max=1)] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)] = 0,
    half: Annotated[bool, typer.Option("--half", help="Networks compute in bfloat16 while they train.")] = False,
    save_memory: Annotated[
        bool, typer.Option("--save-memory", help="Compute cascades again for their gradients instead of keeping them.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output.")] = False,
    look_every: Annotated[int, typer.Option(help="Updates between figures and pictures.", min=1)] = 500,
    name: Annotated[str, typer.Option(help="Name to save the model by; without it none is saved.")] = "",
    version: Annotated[str, typer.Option(help="Its version, MAJOR.MINOR.PATCH.")] = "1.0.0",
    models: Annotated[Path, typer.Option(help="Directory of models to save it in.", metavar="DIR")] = Path(
        "output/models"
    ),
    summary: Annotated[str, typer.Option(help="One sentence for its card: what it is for.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, an SPDX identifier.")] = "",
    limit: Annotated[
        list[str] | None, typer.Option(help="What it is not for or where it fails; may be repeated.", metavar="TEXT")
    ] = None,
    data_licence: Annotated[
        list[str] | None,
        typer.Option(help="Licence of a file that does not say it; may be repeated.", metavar="NAME=SPDX"),
    ] = None,
) -> None:
    r"""Train an unrolled network on scans simulated from HDF5 files of magnitude slices, k-space or fastMRI folders.

    Scans are drawn anew for each update: coils, phase, noise, pattern, acceleration, calibration lines. Every tenth
    subject is kept apart for validation. Looks leave a picture (start, result, truth, error, predicted deviation) and
    a line in history.jsonl. A run that was stopped goes on with --resume and ends with the same weights. With --name
    the averaged weights are saved with their card; `echotrain calibrate unrolled --write-card NAME` then adds how
    deviations are scaled and what lies outside of the model's domain.

    \b
    Example:
        echotrain train unrolled --data brain_t1_ixi_2mm.h5 --data cardiac_sax.h5 --output runs/unrolled \
            --name unrolled-ours --licence CC-BY-SA-3.0 --summary "Brains and hearts."
        echotrain train unrolled --size base --device cuda --half --side 192 --longest-side 256 --batch 8 \
            --updates 60000 --rate 0.0005 --data /data/fastmri --output runs/base

    \b
    Exit statuses: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments.
    """
    console = Console(stderr=True)
    check_device(device)
    if longest_side < side:
        raise typer.BadParameter(f"--longest-side {longest_side} must be at least --side {side}")
    if threads:
        torch.set_num_threads(threads)
    recipe_settings = UnrolledSettings(
        side, longest_side, batch, whole, half=half, save_memory=save_memory, device=device
    )
    plan = Plan(
        size, kind, recipe_settings, LoopSettings(updates, rate=rate, seed=seed, look_every=look_every), threads
    )
    torch.manual_seed(seed)
    network = UnrolledModel(plan.network)
    training, validation = read_data(data, console)
    draft = None
    if name:  # before hours of training, so that nothing is missing after them
        told = Training(
            command=plan.command(data),
            seed=seed,
            updates=updates,
            device=device_name(device),
            duration_s=0,
            code_version=code_version(),
            settings={**asdict(plan.loop), **asdict(plan.recipe)},
        )
        values = {
            "name": name, "version": version, "summary": summary, "licence": licence, "architecture": ARCHITECTURE,
            "configuration": plan.network.as_dict(), "training": told, "limits": (*STANDING_LIMITS, *(limit or [])),
        }  # fmt: skip
        draft = draft_card(training, data_licence or [], values)
    recipe = UnrolledRecipe(network, training, validation, ScanSimulator(largest_side=longest_side), plan.recipe)
    averaged = run_training(recipe, plan.loop, output, ARCHITECTURE, console, resume=resume)
    if draft is None:
        return
    told = draft.training.model_copy(update={"duration_s": duration_s(output)[0]})
    metrics = final_figures(output, updates)
    card = save_model(models, draft.model_copy(update={"training": told, "metrics": metrics}), averaged.state_dict())
    console.print(f"{card.title}: {card.bytes / 1e6:.2f} MB in {models}")
