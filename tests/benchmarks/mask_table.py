"""One reconstruction under many undersampling patterns, beside others: the mask table.

Rows are patterns, columns reconstructions; PSNR (dB), SSIM and NMSE of the magnitude inside the object (above 5 % of
the truth's maximum and what that encloses; `pipelines.quality.foreground`), after the one least-squares scale that
every column gets. The peak of PSNR is the truth's maximum in the object. Means are over the cases that all columns
shown have; a case that a column could not reconstruct is counted behind its cell and left out of all.

Data sets (`--sets`):

    validation  40 complex T2-weighted slices of heads and necks, axial and sagittal, with 8 simulated coils
    real8       the 8-channel brain as measured; truth is the root sum of squares of all its lines
    held_out    heads that training leaves out (three contrasts of one patient, twelve IXI heads), 8 simulated coils
    tuning      heads that training uses, on which `--choose` chooses

The 12-channel brain of the data folder is not here: its k-space holds 107 of 256 lines, so it has no truth.

Results go to `<output>/results.jsonl`, one line a cell; a run that is repeated computes only what is missing there. The
first case of each set leaves `<output>/<set>-<mask>.png`: truth and columns above, five times their errors below.

Run: `python tests/benchmarks/mask_table.py [--cases 3] [--sets validation real8] [--masks radial11] [--columns sense]`;
`--print` only shows what is there; `--choose` see `mask_columns.py`. Needs the data folder, and `bart` on the PATH for
its columns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from bart_command import Bart, is_installed
from mask_columns import Column, Image, columns

from models.catalogue import use_directory
from models.training.held_out import held_out
from pipelines.errors import ReconstructionError
from pipelines.evaluation.case_files import find_slices
from pipelines.evaluation.cases import Case, load_cases, truth_of, undersample
from pipelines.quality import compare, foreground, least_squares_scale

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

DATA = Path("/work/shared/data")
MASKS = ("cartesian4_acl8", "cartesian4_acl8_swapped", "cartesian4_acl4", "radial11", "gaussian8")
NOISE = {"validation": 0.01, "real8": 0.0, "held_out": 0.01, "tuning": 0.01}
"""Noise added (`undersample`); the real brain has 0.011 of its own."""
FILES = {
    "validation": ("validation/brain_complex_40_localonly.h5",),
    "real8": ("kspace/brain_8ch_full_localonly.h5",),
    "held_out": ("train/brain_3t_multicontrast.h5", "train/brain_t1_ixi_2mm.h5"),
    "tuning": ("train/brain_t1_1mm.h5",),
}
ERROR_GAIN = 5
Record = dict[str, Any]


def cases_of(name: str) -> Iterator[Case]:
    """Cases of a data set, with even sides: at odd ones BART 0.8 loses 6 dB on Cartesian lines, whatever its solver."""
    for file in FILES[name]:
        found = map(even, load_cases(DATA / file))
        if name != "held_out":
            yield from found
            continue
        kept = held_out(stored.scan for stored in find_slices(DATA / file))
        yield from (case for case in found if case.scan in kept and "DWI" not in case.name)


def even(case: Case) -> Case:
    """Without the last row or column where sides are odd."""
    y, x = (n - n % 2 for n in case.truth.shape)
    return replace(case, coil_images=case.coil_images[:, :y, :x].contiguous(), truth=case.truth[:y, :x].contiguous())


class Results:
    """Lines of the results file, found by what they are of."""

    KEY = ("set", "case", "mask", "column", "noise", "seed", "number", "settings")

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._records: dict[tuple[object, ...], Record] = {
            self._key(record): record for record in (json.loads(line) for line in lines)
        }

    def has(self, record: Record) -> bool:
        """Whether a cell was computed."""
        return self._key(record) in self._records

    def add(self, record: Record) -> None:
        """Append a line."""
        self._records[self._key(record)] = record
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def all(self) -> list[Record]:
        """Everything computed so far; of a cell computed with several settings the latest."""
        latest = {tuple(record[name] for name in self.KEY[:4]): record for record in self._records.values()}
        return list(latest.values())

    def _key(self, record: Record) -> tuple[object, ...]:
        return tuple(record[name] for name in self.KEY)


def measure(case: Case, mask: str, column: Column, number: float, what: Record) -> tuple[Record, Image | None]:
    """One cell: the record, and the image."""
    prepared = what.pop("prepared")
    started = time.perf_counter()
    try:
        image = column.reconstruct(prepared, number)
    except ReconstructionError as error:
        return {**what, "error": " ".join(str(error).split())[:200]}, None
    seconds = time.perf_counter() - started
    truth = truth_of(case, mask).numpy()
    agreement = compare(image, truth, foreground(truth))
    figures = {"psnr_db": agreement.psnr_db, "ssim": agreement.ssim, "nmse": agreement.nmse, "seconds": seconds}
    return {**what, **{name: round(value, 6) for name, value in figures.items()}}, image


def run(arguments: argparse.Namespace, shown: list[Column], results: Results) -> None:
    """Compute what is missing."""
    for name in arguments.sets:
        for index, case in enumerate(islice(cases_of(name), 0, arguments.cases * arguments.every, arguments.every)):
            for mask in arguments.masks:
                noise = NOISE[name] if arguments.noise is None else arguments.noise
                what = {"set": name, "case": case.name, "mask": mask, "noise": noise, "seed": arguments.seed}
                todo: list[tuple[Column, Record]] = []
                for column in shown:
                    cell = {**what, "column": column.name, "number": column.chosen(mask), "settings": column.settings}
                    if not results.has(cell):
                        todo.append((column, cell))
                if not todo:
                    continue
                prepared = undersample(case, mask, noise, arguments.seed)
                for column, cell in todo:
                    record, image = measure(case, mask, column, cell["number"], {**cell, "prepared": prepared})
                    results.add(record)
                    figure = f"{record['psnr_db']:.2f} dB {record['seconds']:.1f} s" if image is not None else "failed"
                    print(f"{case.name} {mask} {column.name}: {figure}", file=sys.stderr, flush=True)
                    if index == 0 and image is not None:
                        np.save(arguments.output / f"{name}-{mask}-{column.name}.npy", image)
                if index == 0:
                    draw(arguments.output, name, mask, truth_of(case, mask).numpy(), [each.name for each in shown])


def choose(arguments: argparse.Namespace, shown: list[Column]) -> None:
    """Print the number of each column that gives the highest mean PSNR on the tuning set, for each pattern."""
    cases = list(islice(cases_of("tuning"), arguments.cases))
    for column in shown:
        if not column.candidates:
            continue
        best: dict[str, float] = {}
        for mask in arguments.masks:
            found = dict.fromkeys(column.candidates, 0.0)
            for case in cases:
                prepared = undersample(case, mask, NOISE["tuning"], arguments.seed)
                for number in column.candidates:
                    record, _ = measure(case, mask, column, number, {"prepared": prepared})
                    found[number] += record.get("psnr_db", -np.inf) / len(cases)
            best[mask] = max(found.items(), key=itemgetter(1))[0]
            print(f"{column.name} {mask}: {found}", file=sys.stderr, flush=True)
        print(f'    "{column.name}": {best},', flush=True)


def table(records: list[Record], masks: list[str], shown: list[Column]) -> str:
    """Markdown, one table a data set."""
    lines: list[str] = []
    for name in dict.fromkeys(record["set"] for record in records):
        here = [record for record in records if record["set"] == name]
        names = [column.name for column in shown if any(record["column"] == column.name for record in here)]
        lines += [f"{name}, noise {sorted({record['noise'] for record in here})}: PSNR dB / SSIM / NMSE", ""]
        lines += ["| mask | cases | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
        means: dict[str, list[float]] = {column: [] for column in names}
        for mask in masks:
            cells = {(each["column"], each["case"]): each for each in here if each["mask"] == mask}
            tried = {each for _, each in cells if all((column, each) in cells for column in names)}
            good = sorted(each for each in tried if not any("error" in cells[column, each] for column in names))
            row = [mask, str(len(good))]
            for column in names:
                failed = sum("error" in cells[column, each] for each in tried)
                note = f" ({failed} failed)" if failed else ""
                if good:
                    mean = {
                        figure: float(np.mean([cells[column, each][figure] for each in good]))
                        for figure in ("psnr_db", "ssim", "nmse")
                    }
                    means[column].append(mean["psnr_db"])
                    row.append(f"{mean['psnr_db']:.2f} / {mean['ssim']:.3f} / {mean['nmse']:.4f}{note}")
                else:
                    row.append(f"-{note}")
            lines.append("| " + " | ".join(row) + " |")
        average = [f"{np.mean(means[column]):.2f}" if means[column] else "-" for column in names]
        lines += ["| mean over masks | | " + " | ".join(average) + " |", ""]
    return "\n".join(lines)


def draw(output: Path, name: str, mask: str, truth: Image, names: list[str]) -> None:
    """Truth and columns in one row, five times the errors below; all on the truth's scale."""
    images = {"truth": truth}
    for column in names:
        path = output / f"{name}-{mask}-{column}.npy"
        if path.exists():
            images[column] = np.load(path)
    inside = foreground(truth)
    figure, axes = plt.subplots(2, len(images), figsize=(2.6 * len(images), 6), squeeze=False)
    for (above, below), (column, image) in zip(axes.T, images.items(), strict=True):
        scaled = image * least_squares_scale(image[inside], truth[inside])
        above.imshow(scaled, cmap="gray", vmin=0, vmax=float(np.quantile(truth, 0.998)))
        below.imshow(ERROR_GAIN * np.abs(scaled - truth), cmap="magma", vmin=0, vmax=1)
        psnr = "" if column == "truth" else f"\n{compare(image, truth, inside).psnr_db:.2f} dB"
        above.set_title(f"{column}{psnr}", fontsize=9)
        above.axis("off")
        below.axis("off")
    figure.suptitle(f"{name}, {mask}; below: error x{ERROR_GAIN} (maximum of the truth: 1)", fontsize=10)
    figure.tight_layout()
    figure.savefig(output / f"{name}-{mask}.png", dpi=90)
    plt.close(figure)


def main() -> None:
    """Compute and print the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3, help="of each set; the first ones are the middle slices")
    parser.add_argument("--every", type=int, default=1, help="take only every so many cases of a set")
    parser.add_argument("--sets", nargs="+", choices=tuple(FILES), default=["validation", "real8"])
    parser.add_argument("--masks", nargs="+", default=list(MASKS), help="names in pipelines.evaluation.samplings")
    parser.add_argument("--columns", nargs="+", help="all that can run here by default")
    parser.add_argument("--noise", type=float, help="added, over the maximum of the truth; instead of each set's own")
    parser.add_argument("--seed", type=int, default=0, help="of patterns and noise")
    parser.add_argument("--device", default="cpu", help="of pipelines")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="directory of models; each unrolled network in it is a column")
    parser.add_argument("--output", type=Path, default=Path("bench-output/mask_table"))
    parser.add_argument("--print", action="store_true", dest="only_print", help="show what was computed before")
    parser.add_argument("--choose", action="store_true", help="choose weights and iterations on the tuning set")
    arguments = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not here; nothing was compared")
    torch.set_num_threads(arguments.threads)
    use_directory(arguments.models)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        known = columns(Bart(Path(folder), arguments.threads) if is_installed() else None, arguments.device)
        asked = arguments.columns or [column.name for column in known]
        unknown = set(asked) - {column.name for column in known}
        if unknown:
            sys.exit(f"no column {', '.join(sorted(unknown))}; known are {', '.join(each.name for each in known)}")
        shown = [column for column in known if column.name in asked]
        for column in shown:
            if column.why_not:
                print(f"{column.name} is left out: {column.why_not}", file=sys.stderr)
        shown = [column for column in shown if not column.why_not]
        if arguments.choose:
            choose(arguments, shown)
            return
        results = Results(arguments.output / "results.jsonl")
        if not arguments.only_print:
            run(arguments, shown, results)
        print(table([each for each in results.all() if each["set"] in arguments.sets], arguments.masks, shown))


if __name__ == "__main__":
    main()
