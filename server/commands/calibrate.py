"""`echotrain calibrate`: are a pipeline's deviation maps right, and by which factor must they be scaled?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, cast

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from models.catalogue import find as find_model
from models.catalogue import read_card, use_directory
from models.training.calibration import LEVELS, calibration_record
from models.training.conformal import Guarantee, fewest_expected, fewest_scans
from models.training.domain import MARGIN
from models.training.reliability_figure import write_reliability_figure
from pipelines.evaluation.comparison import Condition, JudgedCase, choose_cases, judge_cases
from pipelines.recon.reconstruction import Reconstruction
from pipelines.registry import find
from server import config
from server.calibration import Outcome, Request, fit, halves, mode_of, store
from server.commands.serve import parse_values
from server.delivery import check_writable, parse_parameters
from server.errors import FileError, SettingsError

CALIBRATE = "calibrate"
"""Parameter of pipelines that apply what a card says; switched off here, unless it is given."""


def main(
    pipeline: Annotated[str, typer.Argument(help="Pipeline to calibrate.", metavar="PIPELINE")],
    data: Annotated[list[Path], typer.Argument(help="HDF5 files or folders with a known truth.", metavar="DATA...")],
    sampling: Annotated[
        list[str] | None,
        typer.Option(
            help="Undersampling pattern: cartesianR_aclP or equispacedR_aclP (R-fold, P % calibration lines; _swapped"
            " at the end swaps the axes), gaussianR, poissonR, radialR or full; may be repeated; by default"
            " cartesian4_acl8."
        ),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Noise of a k-space sample over the brightest pixel; may be repeated; by default 0.02."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "--parameters", help="Parameter of the pipeline; may be repeated.", metavar="NAME=VALUE"
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Other data to test on; all scans of DATA then calibrate.", metavar="DATA"),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Only scans of DATA that `train` keeps apart: every tenth of each.")
    ] = False,
    scans: Annotated[int, typer.Option(help="Scans (subjects) to use of each file or folder.", min=1)] = 20,
    slices: Annotated[int, typer.Option(help="Slices of each scan.", min=1)] = 1,
    coils: Annotated[int, typer.Option(help="Receive channels where data have none.", min=1, max=128)] = 8,
    guarantee: Annotated[
        Guarantee | None, typer.Option(help="What is promised of new scans; by default bound, or scans if too few.")
    ] = None,
    level: Annotated[float, typer.Option(help="Coverage of the intervals.", min=0.5, max=0.99)] = 0.9,
    delta: Annotated[float, typer.Option(help="Probability that the promise fails.", min=0.001, max=0.5)] = 0.1,
    most_risk: Annotated[
        float, typer.Option(help="Largest missed part that a scan counts with in the promise expected.", max=1)
    ] = 1.0,
    floor: Annotated[float, typer.Option(help="Added to deviations, relative to bright tissue.", min=0, max=0.1)] = 0.0,
    intensity: Annotated[bool, typer.Option("--intensity", help="Fit a correction of intensities too.")] = False,
    write_card: Annotated[
        str | None, typer.Option(help="Store factor, curve and domain in the card of this model.", metavar="MODEL")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="Models of your own; the setting models.directory otherwise.", metavar="DIRECTORY"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as `serve` would get it.", metavar="NAME=VALUE")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report and the figure.")] = Path("calibration-output"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of noise, patterns and the split into halves.", min=0)] = 0,
) -> None:
    r"""Compare deviation maps with errors on data of known truth, and fit the factor that makes them cover.

    Scans are split into two halves: the factor is fitted to one, all figures are of the other. The scan is what
    is exchangeable, not the pixel: with few scans, little can be promised, and the last lines say how much. Tested
    on other data (--test), the promise holds as far as their scans are like those that calibrated.

    A model knows the scans that it was trained on better than others: where DATA were given to `train` too, use
    --held-out.

    A pipeline that applies the calibration of its model's card runs without it (its parameter calibrate is off). With
    --write-card the factor goes into the card under the pipeline and its kind of deviation, with the ranges of energy
    and data residual outside of which results will be marked.

    \b
    Example:
        echotrain calibrate sense brains.h5 --sampling cartesian4_acl8 \
            --noise 0.02 --scans 40 --output calibration-output

    \b
    One factor for several patterns, stored in the card of a model:
        echotrain calibrate joint_ipalm trained_on.h5 --held-out --sampling radial11 \
            --sampling cartesian4_acl8 --scans 100 --write-card energy-brain

    \b
    Exit statuses: 0 done, 1 data or pipeline failed or a file could not be written, 2 wrong arguments.
    """
    entry = find(pipeline)
    if entry.takes_images:
        raise SettingsError(f"pipeline '{pipeline}' takes images; only those that reconstruct readouts have deviations")
    conditions = [Condition(name, sigma) for name in sampling or ["cartesian4_acl8"] for sigma in noise or [0.02]]
    paths = (output / f"{pipeline}.json", output / f"{pipeline}.png")
    check_writable(*paths)
    most = scans * len(data)
    if not 1 - level <= most_risk:
        raise SettingsError(f"--most-risk must be at least 1 - level, {1 - level:g}")
    calibrating_scans, parts = (most, 1) if test else (most // 2, 2)
    if guarantee is Guarantee.BOUND:
        _check_scans("a bound", fewest_scans(1 - level, delta), calibrating_scans, parts)
    if guarantee is Guarantee.EXPECTED:
        _check_scans("an expected risk", fewest_expected(1 - level, most_risk), calibrating_scans, parts)
    settings = config.load(file, parse_values(values or [])).settings
    use_directory(models or (Path(settings.models.directory) if settings.models.directory else None))
    stored = None if write_card is None else find_model(write_card)
    if stored is not None:
        read_card(stored)  # a card that cannot be used is told before the work
    asked_for = parse_parameters(parameter or [])
    if CALIBRATE in entry.parameters.model_fields:
        asked_for.setdefault(CALIBRATE, "false")
    reconstruction = cast("Reconstruction", entry.load(entry.parse(asked_for), _device(device)))
    work = _Work(reconstruction, conditions, scans, slices, coils, seed, device)
    judged = work.judge_all(data, only_held_out=held_out)
    calibrating, testing = halves(judged, seed) if test is None else (judged, work.judge(test, only_held_out=False))
    both = {each.scan for each in calibrating} & {each.scan for each in testing}
    if both:
        raise SettingsError(f"{test} holds {len(both)} of the scans that calibrate; test on others")
    outcome = fit(calibrating, testing, conditions, Request(guarantee, level, delta, floor, most_risk, intensity))
    given = " ".join(parameter or []) or "defaults"
    title = "; ".join(condition.title for condition in conditions)
    where = ", ".join(path.name for path in data) + (" (held out)" if held_out else "")
    where += "" if test is None else f", tested on {test.name}"
    record = calibration_record(
        outcome.after, outcome.scaling, pipeline, mode_of([*calibrating, *testing]),
        f"{where}: {title}; parameters: {given}",
    )  # fmt: skip
    try:
        paths[0].write_text(_report(outcome, record, conditions, given) + "\n")
        measured = shorten(f"sampling @ noise: {title}; parameters: {given}", 170, placeholder=" ...")
        subtitle = f"{measured}\nfactor {outcome.scaling.factor:.3g}: {outcome.scaling.statement}"
        write_reliability_figure(
            paths[1], f"Calibration of {pipeline} on {where}", subtitle, outcome.test,
            (outcome.before, outcome.after),
        )  # fmt: skip
    except OSError as error:
        raise FileError(f"{output} cannot be written ({error.strerror or error})") from error
    _print(outcome)
    if stored is not None:
        typer.echo(store(stored, record, outcome, calibrating))
    for path in paths:
        typer.echo(path)


def _check_scans(what: str, fewest: int, calibrating: int, parts: int) -> None:
    """Refuse, before the work, a promise that so many scans cannot keep; `parts` says what of all they are."""
    if calibrating < fewest:
        raise SettingsError(f"{what} needs at least {fewest * parts} scans here; fewer were asked for")


def _device(name: str) -> str:
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise SettingsError(f"there is no device '{name}'; cpu, cuda or cuda:N") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise SettingsError(f"the device '{name}' is not there; use --device cpu")
    return name


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done with data, whichever they are; fields as the arguments of the command."""

    reconstruction: Reconstruction
    conditions: Sequence[Condition]
    scans: int
    slices: int
    coils: int
    seed: int
    device: str

    def judge_all(self, paths: Sequence[Path], *, only_held_out: bool) -> list[JudgedCase]:
        """Run all cases of several files or folders, which hold different scans."""
        judged: list[JudgedCase] = []
        for path in paths:
            known = {each.scan for each in judged}
            found = self.judge(path, only_held_out=only_held_out)
            if not found and only_held_out:
                raise SettingsError(f"training keeps no scans of {path.name} apart: three are needed at least")
            if any(each.scan in known for each in found):
                raise SettingsError(f"{path} holds scans that were given before")
            judged += found
        return judged

    def judge(self, data: Path, *, only_held_out: bool) -> list[JudgedCase]:
        """Run all cases of a file or folder with a progress bar."""
        console = Console(stderr=True)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images"),
            TimeElapsedColumn(),
        )  # fmt: skip
        judged: list[JudgedCase] = []
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(data.name, total=self.scans * self.slices * len(self.conditions))
            cases = choose_cases(data, self.scans, self.slices, self.coils, self.seed, only_held_out=only_held_out)
            for each in judge_cases(self.reconstruction, cases, self.conditions, self.seed, self.device):
                judged.append(each)
                bar.update(task, advance=1, description=f"{data.name}: {each.condition.title}")
        found = len({each.scan for each in judged})
        if found < self.scans:
            console.print(f"echotrain: {data.name} has {found} scans of the {self.scans} asked for", markup=False)
        return judged


def _report(outcome: Outcome, record: dict[str, object], conditions: Sequence[Condition], parameters: str) -> str:
    """Everything as JSON."""
    values: dict[str, Any] = {
        "record": record,
        "scaling": {**asdict(outcome.scaling), "statement": outcome.scaling.statement},
        "intensity": None if outcome.intensity is None else asdict(outcome.intensity),
        "domain": outcome.domain.model_dump(),
        "outside_domain": outcome.n_outside,
        "conditions": [asdict(condition) for condition in conditions],
        "parameters": parameters,
        "before": outcome.before.to_json(),
        "after": outcome.after.to_json(),
        "by_condition": {title: report.to_json() for title, report in outcome.by_condition.items()},
    }
    return json.dumps(values, indent=1, allow_nan=False)


def _print(outcome: Outcome) -> None:
    """Two tables that fit 80 columns: coverage before and after scaling, and the map beside those it must beat."""
    console = Console()
    table = Table(box=SIMPLE_HEAD)
    n_test = len(outcome.after.scans)
    table.add_column(f"coverage, {n_test} test scan{'s' if n_test > 1 else ''}", overflow="fold")
    for level in LEVELS:
        table.add_column(f"{100 * level:g} %", justify="right", no_wrap=True)
    table.add_column("gap", justify="right", no_wrap=True)
    table.add_column("width", justify="right", no_wrap=True)
    rows = {"as it comes": outcome.before, "scaled": outcome.after}
    if len(outcome.by_condition) > 1:
        rows |= outcome.by_condition
    for name, report in rows.items():
        shares = (f"{100 * share:.1f}" for share in report.coverage)
        gap, width = report.expected_calibration_error, report.sharpness
        table.add_row(name, *shares, f"{100 * gap:.1f}", f"{100 * width:.2f}")
    console.print(table)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("map")
    for heading in ("AUSE", "AURG", "rho pixel", "rho block", "width at 90 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for ranking in (outcome.after.deviation, *outcome.after.baselines):
        figures = (ranking.ause, ranking.aurg, ranking.spearman, ranking.spearman_blocks)
        table.add_row(ranking.name, *(f"{figure:.3f}" for figure in figures), f"{100 * ranking.width:.2f}")
    console.print(table)
    typer.echo("gap: mean distance from nominal levels; widths in percent of bright tissue; rho: rank correlation")
    scaling = outcome.scaling
    floor = f", floor {scaling.floor:g}" if scaling.floor else ""
    typer.echo(f"factor {scaling.factor:.4g}{floor}: {scaling.statement}")
    verdict = "beats" if outcome.after.beats_baselines else "does not beat"
    typer.echo(f"the deviation {verdict} all other maps in AUSE")
    ranges = [
        f"{name.replace('_', ' ')} {limits[0]:.3g} to {limits[1]:.3g}"
        for name, limits in outcome.domain.model_dump().items()
        if limits is not None
    ]
    if ranges:
        widened = f"what the calibration half spans, and {100 * MARGIN:g} % more at each end"
        outside = f"{outcome.n_outside} of {outcome.after.n_images} test images lie outside"
        typer.echo(f"domain: {', '.join(ranges)} ({widened}); {outside}")
