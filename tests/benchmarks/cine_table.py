"""Reconstructions of cine frames beside each other: the cine table.

Truth is a measured cine (`cine_sax_30`) or a cycle between pictures at the ends of diastole and systole of one patient
(Sunnybrook), with 8 simulated coils, smooth phase and noise (`pipelines.evaluation.cine_cases`). All figures are of
magnitudes after the one least-squares scale that all frames of a column share:

    PSNR, SSIM, NRMSE   inside the object (`pipelines.quality.foreground`); the peak is the truth's maximum there
    heart               PSNR in the box around what moves most, same scale and peak
    motion              NRMSE of the differences between frames and the next
    coverage            part of the object where truth lies within the interval that the deviation gives for 50, 68, 90
                        and 95 % of a Gaussian

Columns share their coil maps, which come from the average over time. `single_dip` is slow and only computed when asked
for by name. The weight of `bart_llr` is the one of 0.005, 0.01 and 0.02 with the highest mean PSNR on another patient
than those of the table (`--choose`): see `LLR_WEIGHT`.

Results go to `<output>/results.jsonl`, one line a cell; a run that is repeated computes only what is missing there.
Each case and pattern leaves `<output>/<case>-<pattern>.png`: one frame, five times its error, and a line through the
heart over time.

Run: `python tests/benchmarks/cine_table.py [--cases cine_sax_30 SC-N-02] [--columns sense] [--accelerations 8]`;
`--print` only shows what is there. Needs the data folder, and `bart` on the PATH for its column.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import matplotlib as mpl
import numpy as np
import torch
from bart_command import Bart, is_installed
from mask_table import Results
from numpy.typing import NDArray
from torch import Tensor

from models.deep_prior import MEDIUM, DeepPriors
from pipelines.errors import ReconstructionError
from pipelines.evaluation.cine_cases import (
    CineCase,
    CineSampling,
    heart_box,
    load_cine,
    load_cycle,
    temporal_gradient_error,
    undersample_cine,
)
from pipelines.operators.fourier import to_image
from pipelines.parameters import SenseParameters
from pipelines.quality import compare, foreground
from pipelines.recon.cine_start import classic, make_start
from pipelines.recon.frame_lines import hold_out, measured_lines, with_lines
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import Sense

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

DATA = Path("/work/shared/data")
MEASURED = "cine_sax_30"
CASES = (MEASURED, "SC-N-02", "SC-HYP-10", "SC-HF-I-05", "SC-N-06")
TUNING = "SC-HF-NI-33"
FRAMES = 24
LLR_WEIGHTS = (0.005, 0.01, 0.02)
LLR_WEIGHT = 0.01
"""Of `--choose --samplings variable_density`, R = 4, 8, 12: 33.21 dB; 32.79 with 0.005, 32.83 with 0.02."""
LLR_ITERATIONS = 100
CLASSIC_ITERATIONS = 150
DIP_STEPS, DIP_PATIENCE, DIP_RATE, DIP_HELD = 1200, 200, 1e-2, 0.05
LEVELS = {"50": 0.6745, "68": 0.9945, "90": 1.6449, "95": 1.9600}
"""Half the width of a Gaussian's central intervals, in standard deviations."""
ERROR_GAIN = 5
FIGURES = ("psnr_db", "heart_psnr_db", "ssim", "nrmse", "motion", "seconds")
Image = NDArray[np.float32]
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Frames of a column.

    Attributes:
        image: magnitude `(frames, y, x)`.
        deviation: of the magnitude; None where the column gives none.
    """

    image: Tensor
    deviation: Tensor | None = None


@dataclass(frozen=True)
class Column:
    """One way to reconstruct.

    Attributes:
        name: on the command line and in the table.
        reconstruct: data to frames.
        settings: what else decides the image, for the record.
        is_slow: whether it is computed only when asked for by name.
    """

    name: str
    reconstruct: Callable[[Prepared], Result]
    settings: str = ""
    is_slow: bool = False


class CineResults(Results):
    """Lines of the results file."""

    KEY = ("case", "pattern", "noise", "column", "seed", "frames", "settings", "acceleration")


def zero_filled(prepared: Prepared) -> Result:
    """`C^H F^H y`."""
    return Result(combined(prepared, prepared.kspace))


def sliding_window(prepared: Prepared) -> Result:
    """The same after each frame has taken the lines it lacks from the frame nearest in time that has them."""
    counts = prepared.counts[:, 0] > 0
    number = torch.arange(len(counts))
    far = (number[:, None] - number).abs()[..., None] + len(counts) * ~counts
    nearest = far.argmin(1)
    lines = torch.arange(counts.shape[1])
    filled = prepared.kspace[nearest, :, :, lines].permute(0, 2, 3, 1, 4)
    return Result(combined(prepared, filled))


def combined(prepared: Prepared, kspace: Tensor) -> Tensor:
    """Magnitude of the coil images of k-space, combined with the maps."""
    maps = make_start(prepared).maps[:, 0]
    return (to_image(kspace[:, :, 0]) * maps.conj()).sum(1).abs()


def sense(prepared: Prepared) -> Result:
    """Frame by frame."""
    found = Sense(SenseParameters.model_validate({}), "cpu")(prepared)
    return Result(found.image[:, 0].abs(), found.deviation[:, 0])


def low_rank_sparse(prepared: Prepared) -> Result:
    """Classic L + S with the weights of `cine_start`."""
    start = make_start(prepared)
    return Result(start.system.to_images(classic(start, start.system, CLASSIC_ITERATIONS).frames)[:, 0].abs())


def bart_llr(folder: Path, threads: int, weight: float) -> Callable[[Prepared], Result]:
    """BART's locally low rank frames, with our maps."""
    bart = Bart(folder, threads)

    def reconstruct(prepared: Prepared) -> Result:
        start = make_start(prepared)
        frames, coils, _, y, x = prepared.kspace.shape
        kspace = (prepared.kspace / start.scale).reshape(frames, 1, 1, 1, 1, 1, 1, coils, 1, y, x)
        bart.write("kspace", kspace.numpy())
        bart.write("maps", start.maps.numpy())
        settings = ("-S", f"-i{LLR_ITERATIONS}", "-u0.1", f"-RL:3:3:{weight:g}")
        try:
            bart.run("pics", *settings, "kspace", "maps", "image")
        except RuntimeError as error:
            raise ReconstructionError(str(error)) from error
        image = np.fromfile(folder / "image.cfl", np.complex64).reshape(frames, y, x)
        return Result(torch.from_numpy(np.abs(image)))

    return reconstruct


def single_dip(prepared: Prepared) -> Result:
    """Frames of one untrained network (Yoo 2021, with an early end by lines held out instead of a fixed one)."""
    start = make_start(prepared)
    (held,) = hold_out(prepared, DIP_HELD, 1, 0)
    kept_system = start.system_of(with_lines(prepared, measured_lines(prepared) & ~held))
    held_system = start.system_of(with_lines(prepared, held))
    frames, _, _, y, x = prepared.kspace.shape
    unit = float(start.system.right_side.abs().max())
    with torch.inference_mode(mode=False), torch.enable_grad():
        network = DeepPriors(MEDIUM, frames, (y, x), [0])
        optimiser = torch.optim.Adam(network.parameters(), DIP_RATE)
        best, best_step, kept = float("inf"), 0, torch.zeros(0)
        for step in range(DIP_STEPS):
            rows = start.system.to_rows(network()[0][:, None] * unit)
            found = rows.detach()
            if step % 10 == 9:
                gap = float(torch.vdot(found.flatten(), (held_system.normal(found) - 2 * held_system.right_side)
                                       .flatten()).real)  # fmt: skip
                if gap < best:
                    best, best_step, kept = gap, step, found.clone()
                elif step - best_step > DIP_PATIENCE:
                    break
            optimiser.zero_grad()
            torch.autograd.backward(rows, (kept_system.normal(found) - kept_system.right_side) / unit**2)
            optimiser.step()
    return Result(start.system.to_images(kept)[:, 0].abs())


def cine_ls_dip(prepared: Prepared) -> Result:
    """The pipeline with its defaults."""
    from pipelines.parameters import CineLsDipParameters
    from pipelines.recon.cine_ls_dip import CineLsDip

    found = CineLsDip(CineLsDipParameters.model_validate({}), "cpu")(prepared)
    return Result(found.image[:, 0].abs(), found.deviation[:, 0])


def columns(folder: Path, threads: int) -> list[Column]:
    """All columns, in the order of the table."""
    llr = [Column("bart_llr", bart_llr(folder, threads, LLR_WEIGHT), f"{LLR_ITERATIONS} iterations, {LLR_WEIGHT}")]
    return [
        Column("zero_filled", zero_filled),
        Column("sliding_window", sliding_window),
        Column("sense", sense),
        *(llr if is_installed() else []),
        Column("low_rank_sparse", low_rank_sparse, f"{CLASSIC_ITERATIONS} iterations"),
        Column("single_dip", single_dip, f"{MEDIUM} {DIP_STEPS} {DIP_PATIENCE} {DIP_RATE} {DIP_HELD}", is_slow=True),
        Column("cine_ls_dip", cine_ls_dip),
    ]


def case_of(name: str) -> CineCase:
    """A case by its name on the command line."""
    if name == MEASURED:
        return load_cine(DATA / "cine" / f"{name}.h5")
    return load_cycle(DATA / "train/cardiac_sax_sunnybrook.h5", name, FRAMES)


def measure(column: Column, prepared: Prepared, truth: Tensor) -> tuple[Record, Image | None]:
    """Figures of one cell, and its frames on the truth's scale."""
    started = time.perf_counter()
    try:
        result = column.reconstruct(prepared)
    except ReconstructionError as error:
        return {"error": " ".join(str(error).split())[:200]}, None
    seconds = time.perf_counter() - started
    target = truth.numpy()
    inside = foreground(target)
    agreement = compare(result.image.numpy(), target, inside)
    image = np.asarray(result.image.numpy() * agreement.scale, np.float32)
    heart = heart_box(truth).numpy()
    heart_error = float(np.sqrt(np.mean((image - target)[:, heart].astype(np.float64) ** 2)))
    figures: Record = {
        "psnr_db": agreement.psnr_db,
        "heart_psnr_db": 20 * float(np.log10(target[inside].max() / heart_error)),
        "ssim": agreement.ssim,
        "nrmse": agreement.nrmse,
        "motion": temporal_gradient_error(torch.from_numpy(image), truth),
        "seconds": seconds,
    }
    if result.deviation is not None:
        deviation = result.deviation.numpy() * agreement.scale
        distance = np.abs(image - target)[inside]
        for level, width in LEVELS.items():
            figures[f"coverage_{level}"] = float(np.mean(distance <= width * deviation[inside]))
    return {name: round(value, 6) for name, value in figures.items()}, image


def run(arguments: argparse.Namespace, shown: list[Column], results: CineResults) -> None:
    """Compute what is missing."""
    for name in arguments.cases:
        case = case_of(name)
        for sampling in arguments.samplings:
            for acceleration in arguments.accelerations:
                pattern = f"{sampling}{acceleration:g}"
                what = {
                    "case": name, "pattern": pattern, "noise": arguments.noise, "seed": arguments.seed,
                    "frames": FRAMES, "acceleration": acceleration,
                }  # fmt: skip
                cells = [(column, {**what, "column": column.name, "settings": column.settings}) for column in shown]
                todo = [(column, cell) for column, cell in cells if not results.has(cell)]
                if not todo:
                    continue
                prepared, truth = undersample_cine(
                    case, sampling, acceleration, arguments.noise, arguments.seed, frames=FRAMES
                )
                for column, cell in todo:
                    figures, image = measure(column, prepared, truth)
                    results.add({**cell, **figures})
                    print(f"{name} {pattern} {column.name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
                    if image is not None:
                        np.save(arguments.output / f"{name}-{pattern}-{column.name}.npy", image)
                draw(arguments.output, f"{name}-{pattern}", truth, [column.name for column in shown])


def choose(arguments: argparse.Namespace, folder: Path) -> None:
    """Print what each weight of `bart_llr` gives on the tuning case, mean over patterns."""
    case = case_of(TUNING)
    for weight in LLR_WEIGHTS:
        column = Column("bart_llr", bart_llr(folder, arguments.threads, weight))
        found: dict[str, float] = {}
        for sampling in arguments.samplings:
            for acceleration in arguments.accelerations:
                prepared, truth = undersample_cine(
                    case, sampling, acceleration, arguments.noise, arguments.seed, frames=FRAMES
                )
                found[f"{sampling}{acceleration:g}"] = measure(column, prepared, truth)[0].get("psnr_db", -np.inf)
        print(f"{TUNING} bart_llr {weight:g}: mean {np.mean(list(found.values())):.2f} dB, {found}", flush=True)


def table(records: list[Record], cases: list[str], patterns: list[str], shown: list[str]) -> str:
    """Markdown: PSNR of every case, then the means of all figures over the cases that all columns have."""
    cells = {(each["case"], each["pattern"], each["column"]): each for each in records}
    names = [column for column in shown if any(key[2] == column for key in cells)]
    lines = ["| case | pattern | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for pattern in patterns:
        for case in cases:
            row = [cells.get((case, pattern, column), {}) for column in names]
            if any(row):
                texts = [f"{one['psnr_db']:.2f} / {one['heart_psnr_db']:.2f}" if "ssim" in one else "-" for one in row]
                lines.append(f"| {case} | {pattern} | " + " | ".join(texts) + " |")
    lines += ["", "PSNR dB / in the heart; below means over cases", ""]
    lines += ["| pattern | column | cases | PSNR dB | heart dB | SSIM | NRMSE | motion | s | 50/68/90/95 % |"]
    lines += ["| --- " * 10 + "|"]
    for pattern in patterns:
        good = [case for case in cases if all("ssim" in cells.get((case, pattern, one), {}) for one in names)]
        for column in names if good else ():
            here = [cells[case, pattern, column] for case in good]
            mean = {figure: float(np.mean([one[figure] for one in here])) for figure in FIGURES}
            covered = [[one[f"coverage_{level}"] for level in LEVELS] for one in here if "coverage_50" in one]
            coverage = "/".join(f"{100 * value:.0f}" for value in np.mean(covered, 0)) if covered else ""
            lines.append(
                f"| {pattern} | {column} | {len(good)} | {mean['psnr_db']:.2f} | {mean['heart_psnr_db']:.2f} | "
                f"{mean['ssim']:.3f} | {mean['nrmse']:.4f} | {mean['motion']:.3f} | {mean['seconds']:.1f} | "
                f"{coverage} |"
            )
    return "\n".join(lines)


def draw(output: Path, name: str, truth: Tensor, names: list[str]) -> None:
    """The frame that differs most from the mean: truth and columns, five times the errors, a line over time."""
    images = {"truth": truth.numpy()}
    for column in names:
        path = output / f"{name}-{column}.npy"
        if path.exists():
            images[column] = np.load(path)
    heart = heart_box(truth)
    frame = int((truth - truth.mean(0))[:, heart].square().mean(1).argmax())
    row = int(torch.nonzero(heart)[:, 0].double().mean())
    top = float(np.quantile(images["truth"], 0.995))
    figure, axes = plt.subplots(3, len(images), figsize=(2.6 * len(images), 7), squeeze=False)
    for (above, middle, below), (column, image) in zip(axes.T, images.items(), strict=True):
        above.imshow(image[frame], cmap="gray", vmin=0, vmax=top)
        above.contour(heart.float().numpy(), [0.5], colors="tab:cyan", linewidths=0.5)
        middle.imshow(ERROR_GAIN * np.abs(image - images["truth"])[frame], cmap="magma", vmin=0, vmax=1)
        below.imshow(image[:, row], cmap="gray", vmin=0, vmax=top, aspect="auto", interpolation="nearest")
        above.set_title(column, fontsize=9)
        for axis in (above, middle, below):
            axis.axis("off")
    figure.suptitle(f"{name}: frame {frame}; its error x{ERROR_GAIN}; row {row} over time (downwards)", fontsize=10)
    figure.tight_layout()
    figure.savefig(output / f"{name}.png", dpi=90)
    plt.close(figure)


def main() -> None:
    """Compute and print the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES[:3]), help=f"{MEASURED} or patients of Sunnybrook")
    parser.add_argument("--columns", nargs="+", help="all but the slow ones by default")
    parser.add_argument("--accelerations", nargs="+", type=float, default=[4.0, 8.0, 12.0])
    parser.add_argument("--samplings", nargs="+", choices=get_args(CineSampling), default=list(get_args(CineSampling)))
    parser.add_argument("--noise", type=float, default=0.02, help="over the maximum of the truth")
    parser.add_argument("--seed", type=int, default=0, help="of phase, patterns and noise")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("bench-output/cine_table"))
    parser.add_argument("--print", action="store_true", dest="only_print", help="show what was computed before")
    parser.add_argument("--choose", action="store_true", help=f"try the weights of bart_llr on {TUNING}")
    arguments = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not here; nothing was compared")
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        known = columns(Path(folder), arguments.threads)
        asked = arguments.columns or [column.name for column in known if not column.is_slow]
        unknown = set(asked) - {column.name for column in known}
        if unknown:
            sys.exit(f"no column {', '.join(sorted(unknown))}; known are {', '.join(each.name for each in known)}")
        shown = [column for column in known if column.name in asked]
        if arguments.choose:
            choose(arguments, Path(folder))
            return
        results = CineResults(arguments.output / "results.jsonl")
        if not arguments.only_print:
            run(arguments, shown, results)
    records = [each for each in results.all() if each["noise"] == arguments.noise and each["seed"] == arguments.seed]
    patterns = [f"{sampling}{factor:g}" for sampling in arguments.samplings for factor in arguments.accelerations]
    print(table(records, arguments.cases, patterns, [column.name for column in shown]))


if __name__ == "__main__":
    main()
