"""`echotrain send`: a scan, or images, from a file through a server; images into files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from server.client import DEFAULT_PORT
from server.delivery import Shipment, check_writable, deliver, describe, parse_parameters, parse_tls, save
from server.image_file import has_only_images, read_header, read_images
from server.scan_file import open_scan


def main(
    file: Annotated[Path, typer.Argument(help="Scan or images as an ISMRMRD HDF5 file.", metavar="FILE.h5")],
    host: Annotated[str, typer.Option(help="Name or address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.", min=1, max=65535)] = DEFAULT_PORT,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS with the server.")] = False,
    ca: Annotated[
        Path | None, typer.Option(help="Authorities to trust for TLS, instead of this machine's.", metavar="FILE.pem")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Our certificate, for a server that asks.", metavar="FILE.pem")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key of our certificate.", metavar="FILE.pem")] = None,
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

    A file that holds images and no readouts is sent as an image session, for pipelines that take images. The HDF5 file
    written has one group a series (image_1 magnitude, image_2 uncertainty) and is read by `ismrmrd.Dataset`.

    \b
    Example:
        echotrain send scan.h5 --host 127.0.0.1 --port 9002 --pipeline sense --parameter iterations=20 \
            --output images.h5 --png images.png --nifti
        echotrain send scan.h5 --host recon.example.org --tls --ca authority.pem --certificate mine.pem --key mine.key
        echotrain send images.h5 --pipeline magnitude_filter --parameter fwhm_mm=3 --output filtered.h5

    \b
    Exit statuses: 0 images saved, 1 the scan failed or not everything came back (what came is saved), 2 wrong
    arguments.
    """
    console = Console(stderr=True)
    check_writable(output, png)
    parameters = parse_parameters(parameter or [])
    secured = parse_tls(wanted=tls, ca=ca, certificate=certificate, key=key)
    if has_only_images(file, group):
        header, series = read_header(file, group), read_images(file, group)
        images = [image for members in series.values() for image in members]
        label, n_images = file.name, len(images)
        console.print(f"{n_images} images in {len(series)} series", markup=False)
        shipment = Shipment(header, (), 0, pipeline, host, port, parameters, images=images, label=label, tls=secured)
        reply = deliver(shipment, console)
    else:
        with open_scan(file, group) as scan:
            header = scan.header
            shipment = Shipment(
                header, scan.batches(), scan.n_readouts, pipeline, host, port, parameters, list(scan.waveforms()),
                label=file.name, tls=secured,
            )  # fmt: skip
            reply = deliver(shipment, console)
    for text in reply.texts:
        console.print(f"server: {text}", markup=False, soft_wrap=True)
    written = save(reply, header, output, png, nifti=nifti, title=f"{file.name}, {pipeline}")
    console.print(describe(reply), markup=False, soft_wrap=True)
    for path in written:
        typer.echo(path)
    reply.check()
