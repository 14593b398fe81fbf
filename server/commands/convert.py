"""`echotrain convert`: scans and images between HDF5 files and streams, MRD version 1 and 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.conversion import Format, convert
from server.errors import ConversionError
from server.losses import Losses


def main(
    source: Annotated[Path, typer.Argument(help="What to read; - is standard input.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help="What to write; - is standard output.", metavar="OUT")],
    given: Annotated[
        Format | None, typer.Option("--from", help="Format of IN; by default told from its first bytes.")
    ] = None,
    wanted: Annotated[
        Format | None, typer.Option("--to", help="Format of OUT; by default told from its suffix.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group of an HDF5 file, where it is not 'dataset'.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when anything could not be carried over.")] = False,
) -> None:
    r"""Convert scans and images: HDF5 files (h5) and streams (v1) of MRD version 1, streams of version 2 (v2).

    Names that end with .h5 or .hdf5 are files, .mrd streams of version 1, .mrd2 and .bin streams of version 2. Header,
    readouts, trajectories, waveforms and images are carried over; each thing that OUT cannot hold is named on standard
    error.

    \b
    Example:
        echotrain convert scan.h5 scan.mrd2
        mrd_phantom | echotrain convert - scan.h5

    \b
    Exit statuses: 0 converted, 1 IN cannot be read, or not be written as OUT, 2 wrong arguments.
    """
    losses = Losses()
    tally = convert(source, target, losses, given=given, wanted=wanted, group=group)
    for sentence in losses:
        typer.echo(f"echotrain: {sentence}", err=True)
    typer.echo(
        f"echotrain: {tally.readouts} readouts, {tally.waveforms} waveforms, {tally.images} images converted", err=True
    )
    if strict and losses.total:
        raise ConversionError("not everything could be carried over; the output holds the rest")
