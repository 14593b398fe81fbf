"""`echotrain inspect`: what a scan file holds, without reconstructing it. Shows nothing about the patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines.assembly.frame import Grouping
from pipelines.assembly.memory import scan_memory
from pipelines.errors import AssemblyError
from pipelines.mrd import COUNTERS, NEVER_IMAGING, AcquisitionFlag, Acquisitions, flag_names, flagged
from pipelines.scan_header import Encoding, ScanHeader, Space, parse_scan_header
from server.scan_file import open_scan

_NOT_IMAGE: Final = (AcquisitionFlag.IS_NOISE_MEASUREMENT, *NEVER_IMAGING)


@dataclass(slots=True)
class Content:
    """What the readouts of a file are.

    Attributes:
        shapes: readouts by (channels, samples, centre sample).
        flags: readouts by name of flag; those without any flag under "(none)".
        counters: smallest and largest value of each counter over image readouts.
        mask: `(lines, samples)` of the first encoding: 1 image, 2 image and calibration, 3 calibration only; over all
            slices and frames.
        noise: sum of n n^H over noise samples, and their number and dwell time.
    """

    shapes: Counter[tuple[int, int, int]] = field(default_factory=Counter[tuple[int, int, int]])
    flags: Counter[str] = field(default_factory=Counter[str])
    counters: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    mask: NDArray[np.uint8] | None = None
    noise_power: NDArray[np.float64] | None = None
    noise_samples: int = 0
    noise_dwell_us: float = 0.0

    def noise_levels(self) -> NDArray[np.float64]:
        """Root of E|n|^2 of each coil; empty without a noise scan."""
        if self.noise_power is None or self.noise_samples == 0:
            return np.zeros(0)
        return np.asarray(np.sqrt(self.noise_power / self.noise_samples), np.float64)


def main(
    file: Annotated[Path, typer.Argument(help="Scan as an ISMRMRD HDF5 file.", metavar="FILE.h5")],
    group: Annotated[str | None, typer.Option(help="Group of the scan in the file, where it is not 'dataset'.")] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also a picture of the sampling pattern.", metavar="FILE.png")
    ] = None,
) -> None:
    r"""Show what a scan file holds: encoding, counters, flags by name, channels and their noise.

    \b
    Example:
        echotrain inspect scan.h5 --png sampling.png

    \b
    Exit statuses: 0 shown, 1 the file or its header cannot be read, 2 wrong arguments.
    """
    with open_scan(file, group) as scan:
        header = parse_scan_header(scan.header)
        content = survey(scan.batches(), header.encodings[0])
        summary = f"{scan.n_readouts} readouts, {scan.n_waveforms} waveforms"
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(f"{file.name}: {summary}", markup=False, soft_wrap=True)
    n_coils = header.receiver_channels or max((coils for coils, _, _ in content.shapes), default=1)
    console.print(_encoding_table(header, n_coils))
    console.print(_content_table(content, header))
    if len(levels := content.noise_levels()):
        measured = f"{content.noise_samples} samples at {content.noise_dwell_us:g} us"
        console.print(f"noise of each channel (root of E|n|^2, {measured})", soft_wrap=True)
        console.print(_noise_table(levels))
    else:
        console.print("No noise scan: a server estimates the noise level from the data.")
    if png is not None:
        _draw_mask(png, file.name, content, header.encodings[0])
        typer.echo(png)


def survey(batches: Iterable[Acquisitions], encoding: Encoding) -> Content:
    """Go once through the readouts of a scan.

    Args:
        batches: the readouts.
        encoding: of the sampling pattern.
    """
    content = Content()
    for batch in batches:
        headers = batch.headers
        for flags, number in zip(*np.unique(headers["flags"], return_counts=True), strict=True):
            for name in flag_names(int(flags)) or ["(none)"]:
                content.flags[name] += int(number)
        centres, numbers = np.unique(headers["center_sample"], return_counts=True)
        for centre, number in zip(centres, numbers, strict=True):
            content.shapes[batch.n_coils, batch.n_samples, int(centre)] += int(number)
        _add_noise(content, batch)
        imaging = headers[~flagged(headers, *_NOT_IMAGE)]
        if len(imaging):
            _add_counters(content, imaging)
            _add_lines(content, imaging[imaging["encoding_space_ref"] == 0], encoding)
    return content


def _add_noise(content: Content, batch: Acquisitions) -> None:
    is_noise = flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT)
    if not is_noise.any():
        return
    samples = batch.complex_samples()[is_noise].astype(np.complex128)
    power = (np.abs(samples) ** 2).sum(axis=(0, 2))
    if content.noise_power is not None and len(content.noise_power) != len(power):
        return
    content.noise_power = power if content.noise_power is None else content.noise_power + power
    content.noise_samples += samples.shape[0] * samples.shape[2]
    content.noise_dwell_us = float(batch.headers["sample_time_us"][is_noise][0])


def _add_counters(content: Content, imaging: NDArray[np.void]) -> None:
    for name in COUNTERS:
        values = imaging["idx"][name]
        low, high = content.counters.get(name, (int(values.min()), int(values.max())))
        content.counters[name] = min(low, int(values.min())), max(high, int(values.max()))


def _add_lines(content: Content, imaging: NDArray[np.void], encoding: Encoding) -> None:
    n_x, n_y, _ = encoding.encoded.matrix
    if content.mask is None:
        content.mask = np.zeros((n_y, n_x), np.uint8)
    limit = encoding.limits.get("kspace_encode_step_1")
    centre = limit.center if limit else n_y // 2
    both = flagged(imaging, AcquisitionFlag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
    only = flagged(imaging, AcquisitionFlag.IS_PARALLEL_CALIBRATION) & ~both
    for header, kind in zip(imaging, 1 + both + 2 * only, strict=True):
        line = int(header["idx"]["kspace_encode_step_1"]) + n_y // 2 - centre
        first = n_x // 2 - int(header["center_sample"])
        last = first + int(header["number_of_samples"])
        if 0 <= line < n_y:
            row = content.mask[line, max(first, 0) : max(last, 0)]
            # Image data outweigh lines that are for calibration only; flag 21 outweighs both.
            row[...] = np.where(row == 0, kind, np.where((row == 2) | (kind == 2), 2, np.minimum(row, kind)))


def _encoding_table(header: ScanHeader, n_coils: int) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("encoding")
    for number, _ in enumerate(header.encodings):
        table.add_column(f"space {number}")

    def row(label: str, values: Iterable[str]) -> None:
        table.add_row(label, *values)

    def lengths(space: Space) -> str:
        return " x ".join(f"{length:g}" for length in space.field_of_view_mm) + " mm"

    spaces = header.encodings
    row("trajectory", (space.trajectory.value for space in spaces))
    row("encoded matrix (x, y, z)", (" x ".join(map(str, space.encoded.matrix)) for space in spaces))
    row("encoded field of view", (lengths(space.encoded) for space in spaces))
    row("image matrix (x, y, z)", (" x ".join(map(str, space.recon.matrix)) for space in spaces))
    row("image field of view", (lengths(space.recon) for space in spaces))
    row("acceleration (y, z)", (" x ".join(map(str, space.acceleration)) for space in spaces))
    row("calibration lines", (space.calibration_mode.value for space in spaces))
    row(f"memory of a group, {n_coils} channels", _memory(header, n_coils))
    return table


def _memory(header: ScanHeader, n_coils: int) -> list[str]:
    """What a server needs for each encoding space: one group of each kind, and everything open at a time."""
    kinds = (Grouping.SLICE, Grouping.CINE, Grouping.STACK)
    needs = {kind: scan_memory(header, kind, n_coils) for kind in kinds}
    texts: list[str] = []
    for number, _ in enumerate(header.encodings):
        parts: list[str] = []
        most = 0
        for kind in kinds:
            need = needs[kind][number]
            if not isinstance(need, AssemblyError):
                parts.append(f"{kind.value} {_size(need.group_bytes)}")
                most = max(most, need.open_bytes)
        texts.append(f"{', '.join(parts)}; {_size(most)} in all" if parts else "not assembled")
    return texts


def _size(n_bytes: int) -> str:
    value, unit = n_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value >= 1024:
            value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def _content_table(content: Content, header: ScanHeader) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("readouts")
    table.add_column("number or range")
    for (coils, samples, centre), number in content.shapes.items():
        table.add_row(f"{coils} channels, {samples} samples, centre at sample {centre}", str(number))
    limits = header.encodings[0].limits
    for name, (low, high) in content.counters.items():
        limit = limits.get(name)
        stated = f"; header: {limit.minimum} to {limit.maximum}, centre {limit.center}" if limit else ""
        if low != high or (limit is not None and limit.maximum):
            table.add_row(name, f"{low} to {high}{stated}")
    for name, number in sorted(content.flags.items(), key=lambda item: _flag_order(item[0])):
        table.add_row(f"flag {name}", str(number))
    return table


def _flag_order(name: str) -> int:
    return AcquisitionFlag[name].value if name in AcquisitionFlag.__members__ else 0


def _noise_table(levels: NDArray[np.float64]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("channel", justify="right")
    table.add_column("noise", justify="right")
    table.add_column("relative to the median")
    median = float(np.median(levels)) or 1.0
    for number, level in enumerate(levels):
        bar = "#" * min(round(10 * float(level) / median), 40)
        remark = "  no signal?" if level < 0.1 * median else "  noisy?" if level > 3 * median else ""
        table.add_row(str(number), f"{level:.4g}", f"{bar} {level / median:.2f}{remark}")
    return table


def _draw_mask(path: Path, name: str, content: Content, encoding: Encoding) -> None:
    from server.pictures import write_sampling

    mask = content.mask if content.mask is not None else np.zeros(encoding.encoded.matrix[1::-1], np.uint8)
    lines = mask.max(axis=1)
    n_lines = int((lines > 0).sum())
    subtitle = (
        f"{n_lines} of {len(lines)} lines measured, undersampled {len(lines) / n_lines:.2f}-fold; all slices and frames"
        if n_lines
        else "no image lines"
    )
    write_sampling(path, "sampling of k-space", f"{name}: {subtitle}", mask)
