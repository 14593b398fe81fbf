"""`echotrain demo`: a server on this machine, three scans through it, pictures and files of what came back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.mrd import Acquisitions, Image
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server.anatomy import BRAIN_SPACING_MM, DATA, load_anatomy
from server.client import ScanFailedError
from server.commands.simulate import truth_images
from server.delivery import Shipment, deliver, describe, save
from server.errors import FileError
from server.gallery import Comparison, key_of, pair_images, write_gallery
from server.image_file import write_images
from server.local_server import LocalServer, local_server
from server.scan_file import open_scan

ACCELERATION = 3
COILS = 8
CALIBRATION_LINES = 36


@dataclass(frozen=True, slots=True)
class DemoScan:
    """One scan of the demonstration.

    Attributes:
        name: stem of the files.
        title: of the picture.
        pipeline: that it goes through.
        header: XML of the scan header.
        batches: readouts.
        n_readouts: of all batches.
        n_slices: images expected of each of the two series.
        reference: truth by slice and frame, for simulated scans.
    """

    name: str
    title: str
    pipeline: str
    header: bytes
    batches: list[Acquisitions]
    n_readouts: int
    n_slices: int
    reference: dict[tuple[int, ...], np.ndarray[tuple[int, ...], np.dtype[np.float32]]] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one scan."""

    scan: DemoScan
    files: list[Path]
    megabytes: float
    n_images: int
    first_image_s: float
    last_image_s: float
    comparison: Comparison | None


def main(
    output: Annotated[Path, typer.Option(help="Folder for pictures, HDF5 and NIfTI.")] = Path("demo-output"),
    slices: Annotated[int, typer.Option(help="Slices of the simulated brain.", min=1, max=5)] = 5,
) -> None:
    r"""Start a server on a free port of this machine, stream three scans through it, and leave pictures and files.

    The scans: a simulated 8-coil brain at acceleration 3 with noise through `sense`; the same through `zero_filled`;
    and a real single-channel raw scan of a knee through `zero_filled`. Each gives images with their uncertainty.

    \b
    Example:
        echotrain demo --output demo-output

    \b
    Exit statuses: 0 everything came back and was saved, 1 something is missing.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder {output} cannot be made ({error.strerror or error})") from error
    brain, truth = _brain_scans(slices)
    write_images(output / "brain_truth.h5", truth)
    with ExitStack() as until_done:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar:
            task = bar.add_task("", total=None)

            def show(what: str) -> None:
                bar.update(task, description=what)

            server = until_done.enter_context(local_server(output / "server.log", waiting=show))
        ready_s = time.monotonic() - started
        outcomes = [_run(scan, server, output, console) for scan in [*brain, _knee_scan()]]
    _print_table(outcomes, ready_s, time.monotonic() - started)
    typer.echo(output / "brain_truth.h5")


def _brain_scans(slices: int) -> tuple[list[DemoScan], list[Image]]:
    anatomy = load_anatomy("brain", slices, 0)
    protocol = Protocol(
        n_coils=COILS, acceleration=ACCELERATION, calibration_lines=CALIBRATION_LINES, noise_std=0.012,
        slice_gap_mm=BRAIN_SPACING_MM - 5.0,
        field_of_view_mm=(float(anatomy.shape[2]), float(anatomy.shape[1])),
    )  # fmt: skip
    scan = simulate(anatomy, protocol)
    truth = truth_images(scan)
    reference = {key_of(image): np.asarray(image.pixels[0], np.float32) for image in truth}
    what = f"simulated brain, {COILS} coils, R = {ACCELERATION}"
    return [
        DemoScan(f"brain_{pipeline}", f"{what}: {pipeline}", pipeline, scan.header, scan.batches, scan.n_readouts,
                 len(anatomy), reference)
        for pipeline in ("sense", "zero_filled")
    ], truth  # fmt: skip


def _knee_scan() -> DemoScan:
    with as_file(DATA / "knee.h5") as path, open_scan(path) as scan:
        batches = list(scan.batches())
        return DemoScan(
            "knee_zero_filled", "raw scan of a knee, 1 coil: zero_filled", "zero_filled", scan.header, batches,
            scan.n_readouts, 1,
        )  # fmt: skip


def _run(scan: DemoScan, server: LocalServer, output: Path, console: Console) -> Outcome:
    """Send one scan and save what comes back.

    Raises:
        ScanFailedError: an image is missing.
    """
    shipment = Shipment(
        scan.header, scan.batches, scan.n_readouts, scan.pipeline, "127.0.0.1", server.port, label=scan.name
    )
    reply = deliver(shipment, console)
    for text in reply.texts:
        console.print(f"server: {text}", markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.print(f"{scan.name}: {describe(reply)}", soft_wrap=True)
    reply.check()
    pairs = pair_images(reply.images)
    if len(pairs) != scan.n_slices or any(pair.deviation is None for pair in pairs):
        message = (
            f"{scan.name}: expected {scan.n_slices} images with uncertainty, got {len(pairs)} of {len(reply.images)}"
        )
        raise ScanFailedError(message, reply)
    if not all(np.isfinite(image.pixels).all() for image in reply.images):
        raise ScanFailedError(f"{scan.name}: an image holds values that are not finite", reply)
    files = save(reply, scan.header, output / f"{scan.name}.h5", nifti=True)
    picture = output / f"{scan.name}.png"
    comparison = write_gallery(picture, scan.title, pairs, scan.reference)
    return Outcome(
        scan, [picture, *files], reply.bytes_sent / 1e6, len(reply.images),
        reply.first_image_s or 0.0, reply.last_image_s or 0.0, comparison,
    )  # fmt: skip


def _print_table(outcomes: Sequence[Outcome], ready_s: float, total_s: float) -> None:
    """A table that fits 80 columns; times count from the start of each scan."""
    table = Table(box=SIMPLE_HEAD)
    for heading in ("scan", "MB sent", "images", "first s", "last s", "PSNR dB", "SSIM"):
        table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for outcome in outcomes:
        agreement = outcome.comparison.agreement if outcome.comparison else None
        table.add_row(
            outcome.scan.name,
            f"{outcome.megabytes:.1f}",
            str(outcome.n_images),
            f"{outcome.first_image_s:.2f}",
            f"{outcome.last_image_s:.2f}",
            f"{agreement.psnr_db:.1f}" if agreement else "",
            f"{agreement.ssim:.3f}" if agreement else "",
        )
    Console().print(table)
    typer.echo(f"server ready after {ready_s:.1f} s, everything done after {total_s:.1f} s")
    for outcome in outcomes:
        for path in outcome.files:
            typer.echo(path)
