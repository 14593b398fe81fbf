"""`echotrain bench`: how a method behaves when its iterations, its size and its random numbers change."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.training.calibration import coverage
from models.training.compared import ComparedScan, compare
from pipelines.evaluation.cine_cases import CineCase, CineSampling, heart_box, load_cine, undersample_cine
from pipelines.evaluation.comparison import on_device
from pipelines.parameters import CineLsDipParameters
from pipelines.phantom import beating_heart
from pipelines.quality import least_squares_scale
from pipelines.recon.cine_ls_dip import CineLsDip
from pipelines.recon.reconstruction import Prepared, Reconstructed
from server.delivery import check_writable
from server.errors import SettingsError

STEPS = (15, 30, 60, 90, 180, 360)
SIZES: tuple[Literal["small", "medium"], ...] = ("small", "medium")
SEEDS = range(5)
PHANTOM_SIDE = 96
LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Figures:
    """One run.

    Attributes:
        what: which ablation it belongs to.
        value: what was changed.
        psnr_db: over all pixels, peak 1.
        heart_psnr_db: in a box around what moves.
        covered: part of the errors within 90 % intervals.
        best_step: step of learning whose weights were taken; 0 for none.
        seconds: that it took.
    """

    what: str
    value: str
    psnr_db: float
    heart_psnr_db: float
    covered: float
    best_step: int
    seconds: float


def main(
    what: Annotated[str, typer.Argument(help="What to look at: cine.", metavar="cine")],
    data: Annotated[
        Path | None,
        typer.Argument(help="HDF5 file whose dataset image holds magnitudes (frames, y, x); a phantom by default."),
    ] = None,
    acceleration: Annotated[float, typer.Option(help="Lines over lines measured.", min=1, max=32)] = 8.0,
    sampling: Annotated[CineSampling, typer.Option(help="Lines of each frame.")] = "variable_density",
    noise: Annotated[float, typer.Option(help="Noise of a k-space sample over the brightest pixel.", min=0)] = 0.02,
    frames: Annotated[int, typer.Option(help="Most frames.", min=3, max=200)] = 24,
    coils: Annotated[int, typer.Option(help="Receive channels.", min=1, max=64)] = 8,
    output: Annotated[Path, typer.Option(help="JSON file for all figures.")] = Path("bench-cine.json"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves its own choice.", min=0)] = 0,
) -> None:
    r"""Show how `cine_ls_dip` behaves: quality against steps of learning, two sizes of its networks, five seeds.

    The truth is known: lines of each frame are left out, coils, phase and noise are simulated. PSNR is that of the
    magnitude after one least-squares scale.

    \b
    Example:
        echotrain bench cine --frames 12
        echotrain bench cine my_cine.h5 --acceleration 12 --output ablations.json

    \b
    Exit statuses: 0 done, 1 a file could not be read or written, 2 wrong arguments.
    """
    if what != "cine":
        raise SettingsError(f"there is no bench {what!r}; there is: cine")
    check_writable(output, None)
    if threads:
        torch.set_num_threads(threads)
    case = load_cine(data) if data is not None else _phantom(frames)
    prepared, truth = undersample_cine(case, sampling, acceleration, noise, 0, n_coils=coils, frames=frames)
    prepared = on_device(prepared, device)
    console = Console(stderr=True)
    done: list[Figures] = []
    runs = list(_runs())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("reconstructing", total=len(runs))
        for name, value, parameters in runs:
            progress.update(task, description=f"{name} {value}")
            done.append(_measure(name, value, parameters, prepared, truth.numpy(), device))
            progress.advance(task)
    output.write_text(json.dumps({"case": case.name, "runs": [asdict(each) for each in done]}, indent=2) + "\n")
    Console().print(_table(done, f"{case.name}, {sampling}, R = {acceleration:g}, noise {noise:g}"))
    typer.echo(output)


def _runs() -> Iterator[tuple[str, str, dict[str, object]]]:
    yield "baseline", "low rank plus sparse", {"method": "low_rank_sparse", "iterations": 150}
    for steps in STEPS:
        yield "steps", str(steps), {"steps": steps}
    for size in SIZES:
        yield "networks", size, {"networks": size}
    for seed in SEEDS:
        yield "seed", str(seed), {"seed": seed}


def _phantom(frames: int) -> CineCase:
    images = beating_heart(frames, PHANTOM_SIDE, PHANTOM_SIDE)
    return CineCase("beating heart phantom", "phantom", torch.from_numpy(images / images.max()))


def _measure(
    name: str, value: str, parameters: dict[str, object], prepared: Prepared, truth: np.ndarray, device: str
) -> Figures:
    reconstruct = CineLsDip(CineLsDipParameters.model_validate(parameters), device)
    started = time.perf_counter()
    with torch.inference_mode():
        found = reconstruct(prepared)
        image = found.image[:, 0].abs().cpu().numpy()
    seconds = time.perf_counter() - started
    scale = least_squares_scale(image, truth)
    box = heart_box(torch.from_numpy(truth)).numpy()
    scan = _compared(found, truth, scale)
    return Figures(
        name,
        value,
        _psnr(scale * image, truth),
        _psnr((scale * image)[:, box], truth[:, box]),
        float(coverage([scan], (LEVEL,))[0, 0]),
        int(found.details.get("ReconBestIteration", "0")),
        seconds,
    )


def _compared(found: Reconstructed, truth: np.ndarray, scale: float) -> ComparedScan:
    image, deviation = (each[:, 0].cpu().numpy() * scale for each in (found.image.abs(), found.deviation))
    return ComparedScan("cine", tuple(compare(*each) for each in zip(truth, image, deviation, strict=True)))


def _psnr(image: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - truth) ** 2)))


def _table(done: list[Figures], title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for column in ("", "", "PSNR / dB", "heart / dB", "90 % holds", "best step", "seconds"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    last = ""
    for each in done:
        covered, best = f"{100 * each.covered:.1f} %", str(each.best_step) if each.best_step else ""
        table.add_row(
            each.what if each.what != last else "", each.value, f"{each.psnr_db:.2f}", f"{each.heart_psnr_db:.2f}",
            covered, best, f"{each.seconds:.1f}", end_section=False,
        )  # fmt: skip
        last = each.what
    return table
