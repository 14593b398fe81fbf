"""Train a model on images that one has, with pictures of what it learns while it does.

Example: echotrain train energy --data brain_t1_ixi_2mm.h5 --output runs/energy-brain

Exit statuses: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console

from models.card import CardDraft, Domain, Training
from models.catalogue import use_directory
from models.energy import LARGE, SMALL, EnergyConfiguration, EnergyModel, deepened
from models.store import open_model, save_model
from models.training import energy
from models.training.energy import EnergyRecipe, EnergySettings, energy_range
from models.training.images import Source, validation_images, validation_slices
from models.training.loop import LoopSettings
from models.training.publication import code_version, device_name, duration_s, final_figures
from server.commands.train_unrolled import train_unrolled
from server.training import check_device, draft_card, read_data, run_training

ARCHITECTURE = "energy"

STANDING_LIMITS = (
    "For research; not a medical device.",
    "Knows magnitude images of the anatomy and contrasts of its training data; what is rare there may look like noise.",
    "An energy within the range is no proof that an image is right.",
)


class Size(StrEnum):
    """Configurations of a network."""

    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True, slots=True)
class Plan:
    """All options that decide what is learnt."""

    network: EnergyConfiguration
    size: Size
    begin_with: str
    recipe: EnergySettings
    loop: LoopSettings
    threads: int

    def command(self, data: Sequence[Path]) -> str:
        """What does it again, given the files; without paths of this machine."""
        words = ["echotrain", "train", ARCHITECTURE]
        for path in data:
            words += ["--data", path.name]
        values = {
            **({"begin-with": self.begin_with} if self.begin_with else {"size": self.size.value}),
            "blocks": self.network.blocks,
            "updates": self.loop.updates,
            "likelihood-from": self.recipe.likelihood_from,
            "side": self.recipe.side,
            "batch": self.recipe.batch,
            "chain": self.recipe.longest_chain,
            "rate": self.loop.rate,
            "seed": self.loop.seed,
            "device": self.recipe.device,
            "threads": self.threads,
        }
        for name, value in values.items():
            words += [f"--{name}", str(value)]
        return shlex.join(words if self.recipe.half else [*words, "--precise"])


def main(
    data: Annotated[
        list[Path],
        typer.Option(help="HDF5 file of images or k-space, or a directory of them; may be repeated.", metavar="PATH"),
    ],
    output: Annotated[Path, typer.Option(help="Directory for checkpoint, history and pictures.", metavar="DIR")],
    updates: Annotated[int, typer.Option(help="Steps of the optimiser.", min=1)] = 14500,
    likelihood_from: Annotated[int, typer.Option(help="Update at which maximum likelihood begins.", min=0)] = 12000,
    size: Annotated[Size, typer.Option(help="Size of the network; large needs a GPU.")] = Size.SMALL,
    blocks: Annotated[
        int | None, typer.Option(help="Residual blocks a stage, instead of those of the size or model.", min=1, max=8)
    ] = None,
    begin_with: Annotated[
        str, typer.Option(help="Model to go on from, of as many blocks or fewer, instead of a size.", metavar="MODEL")
    ] = "",
    side: Annotated[int, typer.Option(help="Side of training patches, in pixels.", min=16, max=512)] = 64,
    batch: Annotated[int, typer.Option(help="Patches an update.", min=1)] = 16,
    chain: Annotated[int, typer.Option(help="Longest chain of Langevin steps.", min=1)] = 40,
    rate: Annotated[float, typer.Option(help="Highest learning rate.", min=1e-7, max=1)] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves torch's choice.", min=0)] = 0,
    precise: Annotated[bool, typer.Option("--precise", help="Single precision instead of bfloat16.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output.")] = False,
    look_every: Annotated[int, typer.Option(help="Updates between figures and pictures.", min=1)] = 1000,
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
    r"""Train an energy of images on HDF5 files: stacks of magnitude slices, k-space of one coil, or fastMRI folders.

    Every tenth subject is kept apart for validation. Each thousand updates leave pictures (samples of the model beside
    data, histograms and profiles of the energy) and a line in history.jsonl. A run that was stopped goes on with
    --resume and ends with the same weights. With --name the averaged weights are saved with their card, which tells of
    the data and their licences, the command, device and duration, the figures of the last look, and the energies that
    images of this kind have; --resume with --name on a run that is finished only saves.

    \b
    Example:
        echotrain train energy --data brain_t1_ixi_2mm.h5 --data brain_t1_1mm.h5 --output runs/energy-brain \
            --name energy-brain --licence CC-BY-SA-4.0 --summary "Energy of magnitude images of the head."
        echotrain train energy --size large --device cuda --side 128 --batch 32 --data /data/fastmri --output runs/large

    \b
    Exit statuses: 0 done, 1 data or checkpoint cannot be used, 2 wrong arguments.
    """
    console = Console(stderr=True)
    check_device(device)
    recipe_settings = EnergySettings(side, batch, likelihood_from, chain, half=not precise, device=device)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if models.is_dir():
        use_directory(models)  # what one has trained before is begun with, too
    network, title = _network(size, blocks, begin_with)
    loop = LoopSettings(updates, rate=rate, seed=seed, look_every=look_every)
    plan = Plan(network.configuration, size, title, recipe_settings, loop, threads)
    training, validation = read_data(data, console)
    draft = None
    if name:  # before hours of training, so that nothing is missing after them
        draft = _draft(plan, data, training, data_licence or [], name, version, summary, licence, limit or [])
    recipe = EnergyRecipe(network, training, validation, plan.recipe)
    averaged = run_training(recipe, plan.loop, output, ARCHITECTURE, console, resume=resume)
    if draft is not None:
        _save(draft, plan, output, models, cast("EnergyModel", averaged), validation, console)


def _network(size: Size, blocks: int | None, begin_with: str) -> tuple[EnergyModel, str]:
    """The network to train, and the title of the model that it begins with.

    Raises:
        BadParameter: that model is no energy, or has more blocks.
        ModelError: it cannot be opened.
    """
    if not begin_with:
        configuration = SMALL if size is Size.SMALL else LARGE
        return EnergyModel(replace(configuration, blocks=blocks or configuration.blocks)), ""
    stored = open_model(begin_with)
    known = stored.build()
    if not isinstance(known, EnergyModel):
        raise typer.BadParameter(f"--begin-with {begin_with}: {stored.card.title} is no energy")
    try:
        deeper = deepened(known, blocks or known.configuration.blocks)
    except ValueError as error:
        raise typer.BadParameter(f"--blocks: {error}") from error
    return deeper.requires_grad_(requires_grad=True), stored.card.title


def _draft(
    plan: Plan,
    data: Sequence[Path],
    training: Sequence[Source],
    data_licences: Sequence[str],
    name: str,
    version: str,
    summary: str,
    licence: str,
    limits: Sequence[str],
) -> CardDraft:
    """The card as far as it is known before training.

    Raises:
        BadParameter: something that only the user knows is missing or impossible.
    """
    return draft_card(
        training,
        data_licences,
        {
            "name": name,
            "version": version,
            "summary": summary,
            "architecture": ARCHITECTURE,
            "configuration": plan.network.as_dict(),
            "licence": licence,
            "training": Training(
                command=plan.command(data),
                seed=plan.loop.seed,
                updates=plan.loop.updates,
                device=device_name(plan.recipe.device),
                duration_s=0,
                code_version=code_version(),
                settings={**asdict(plan.loop), **asdict(plan.recipe)},
            ),
            "limits": (*STANDING_LIMITS, *limits),
        },
    )


def _save(
    draft: CardDraft,
    plan: Plan,
    output: Path,
    models: Path,
    averaged: EnergyModel,
    validation: Sequence[Source],
    console: Console,
) -> None:
    """Write the model with all that is known now that it is trained."""
    averaged.eval().requires_grad_(requires_grad=False)
    # Heads fill a part of one image and all of the next: both kinds belong to the domain.
    n, side = energy.VALIDATION_IMAGES, energy.VALIDATION_SIDE
    images = [*validation_slices(validation, n), *validation_images(validation, n, side)]
    seconds, is_measured = duration_s(output)
    if not is_measured:
        console.print(f"how long the run took was not recorded; its files span {seconds:.0f} s, which the card says")
    training = draft.training.model_copy(update={"duration_s": seconds})
    card = save_model(
        models,
        draft.model_copy(
            update={
                "training": training,
                "domain": Domain(energy_per_pixel=energy_range(averaged, images)),
                "metrics": final_figures(output, plan.loop.updates),
            }
        ),
        averaged.state_dict(),
    )
    console.print(f"{card.title}: {card.bytes / 1e6:.2f} MB in {models}")


MODELS = {"energy": main, "unrolled": train_unrolled}
"""What can be trained, each a command of its own with options of its own."""
