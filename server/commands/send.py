"""`echotrain send`: a scan from a file through a server, images into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.client import DEFAULT_PORT
from server.delivery import Shipment, check_writable, deliver, describe, parse_parameters, save
from server.scan_file import open_scan


def main(
    file: Annotated[Path, typer.Argument(help="Scan as an ISMRMRD HDF5 file.", metavar="FILE.h5")],
    host: Annotated[str, typer.Option(help="Name or address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.", min=1, max=65535)] = DEFAULT_PORT,
    pipeline: Annotated[str, typer.Option(help="Pipeline, or an alias of one.")] = "default",
    parameter: Annotated[
        list[str] | None, typer.Option(help="Parameter of the pipeline; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Group of the scan in the file, where it is not 'dataset'.")] = None,
    output: Annotated[Path, typer.Option(help="HDF5 file for the images.", metavar="FILE.h5")] = Path("images.h5"),
    png: Annotated[Path | None, typer.Option(help="Also a picture of the images.", metavar="FILE.png")] = None,
    nifti: Annotated[
        bool, typer.Option("--nifti", help="Also a NIfTI file of each series, beside the HDF5 file.")
    ] = False,
) -> None:
    r"""Send a scan to a server and save the images that come back.

    The HDF5 file has one group a series (image_1 magnitude, image_2 uncertainty) and is read by `ismrmrd.Dataset`.

    \b
    Example:
        echotrain send scan.h5 --host 127.0.0.1 --port 9002 --pipeline sense --parameter iterations=20 \
            --output images.h5 --png images.png --nifti

    \b
    Exit statuses: 0 images saved, 1 the scan failed or not everything came back (what came is saved), 2 wrong
    arguments.
    """
    console = Console(stderr=True)
    check_writable(output, png)
    with open_scan(file, group) as scan:
        shipment = Shipment(
            scan.header, scan.batches(), scan.n_readouts, pipeline, host, port,
            parse_parameters(parameter or []), list(scan.waveforms()), label=file.name,
        )  # fmt: skip
        reply = deliver(shipment, console)
    for text in reply.texts:
        console.print(f"server: {text}", markup=False, soft_wrap=True)
    written = save(reply, scan.header, output, png, nifti=nifti, title=f"{file.name}, {pipeline}")
    console.print(describe(reply), markup=False, soft_wrap=True)
    for path in written:
        typer.echo(path)
    reply.check()
