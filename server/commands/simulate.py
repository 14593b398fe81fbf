"""`echotrain simulate`: a scan of known anatomy into a file, or straight to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType
from pipelines.scan_header import CalibrationMode
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Geometry, Pattern, Protocol, SliceOrder
from server.anatomy import load_anatomy
from server.client import DEFAULT_PORT
from server.delivery import Shipment, check_writable, deliver, describe, parse_parameters, save
from server.errors import SettingsError
from server.image_file import write_images
from server.scan_file import write_scan


def main(
    output: Annotated[Path | None, typer.Option(help="ISMRMRD file to write the scan to.", metavar="FILE.h5")] = None,
    anatomy: Annotated[
        str, typer.Option(help="brain (shipped), phantom, or a .npy, .nii or .nii.gz file.", metavar="NAME|FILE")
    ] = "brain",
    slices: Annotated[int, typer.Option(help="Slices; 0 for all that the anatomy has.", min=0)] = 0,
    matrix: Annotated[int, typer.Option(help="Pixels of the phantom along x and y.", min=16, max=2048)] = 192,
    coils: Annotated[int, typer.Option(help="Receive channels.", min=1, max=256)] = 8,
    acceleration: Annotated[int, typer.Option(help="R along y.", min=1, max=16)] = 1,
    pattern: Annotated[Pattern, typer.Option(help="Lines measured.")] = Pattern.REGULAR,
    calibration: Annotated[int, typer.Option(help="Lines of the fully sampled region.", min=0)] = 24,
    separate: Annotated[bool, typer.Option("--separate", help="Calibration lines before the scan.")] = False,
    interleaved: Annotated[bool, typer.Option("--interleaved", help="Interleave the slices line by line.")] = False,
    repetitions: Annotated[int, typer.Option(help="How often everything is measured.", min=1)] = 1,
    averages: Annotated[int, typer.Option(help="How often each line is measured.", min=1)] = 1,
    partial_fourier: Annotated[float, typer.Option(help="Part of the lines that is measured, above 0.5.")] = 1.0,
    partial_echo: Annotated[float, typer.Option(help="Part of each readout that is measured, above 0.5.")] = 1.0,
    noise: Annotated[float, typer.Option(help="Noise of a raw sample relative to the brightest pixel.", min=0)] = 0.03,
    tilt_deg: Annotated[float, typer.Option(help="Tilt of the slices about the left-right axis.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    truth: Annotated[
        Path | None, typer.Option(help="Also the noise-free images, for `view --reference`.", metavar="FILE.h5")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Send the scan to this server.")] = None,
    port: Annotated[int, typer.Option(help="Port of that server.", min=1, max=65535)] = DEFAULT_PORT,
    pipeline: Annotated[str, typer.Option(help="Pipeline there.")] = "default",
    parameter: Annotated[
        list[str] | None, typer.Option(help="Parameter of the pipeline; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    images: Annotated[Path, typer.Option(help="HDF5 file for what the server sends.", metavar="FILE.h5")] = Path(
        "images.h5"
    ),
    png: Annotated[Path | None, typer.Option(help="Picture of what the server sends.", metavar="FILE.png")] = None,
) -> None:
    r"""Simulate a Cartesian scan with coils, noise and undersampling; write it to a file, send it to a server, or both.

    \b
    Example:
        echotrain simulate --acceleration 3 --output scan.h5 --truth truth.h5
        echotrain send scan.h5 --pipeline sense --output images.h5
        echotrain view images.h5 --reference truth.h5

    \b
    The same in one step, to a server on this machine:
        echotrain simulate --acceleration 3 --host 127.0.0.1 --pipeline sense \
            --images images.h5 --png images.png

    \b
    Exit statuses: 0 done, 1 the scan failed at the server or a file could not be written, 2 wrong arguments.
    """
    if output is None and host is None:
        raise SettingsError("nothing to do: give --output FILE.h5, or --host to send the scan to a server")
    magnitude = load_anatomy(anatomy, slices, matrix)
    try:
        protocol = Protocol(
            n_coils=coils, pattern=pattern, acceleration=acceleration, calibration_lines=calibration,
            calibration_mode=CalibrationMode.SEPARATE if separate else CalibrationMode.EMBEDDED,
            slice_order=SliceOrder.INTERLEAVED if interleaved else SliceOrder.SEQUENTIAL,
            repetitions=repetitions, averages=averages, partial_fourier=partial_fourier, partial_echo=partial_echo,
            noise_std=noise, geometry=Geometry.oblique((0.0, 0.0, 0.0), tilt_deg, 0.0), seed=seed,
            field_of_view_mm=(float(magnitude.shape[-1]), float(magnitude.shape[-2])),
        )  # fmt: skip
        scan = simulate(magnitude, protocol)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    console = Console(stderr=True)
    if truth is not None:
        write_images(truth, truth_images(scan), scan.header)
        typer.echo(truth)
    if output is not None:
        write_scan(output, scan.header, scan.batches)
        typer.echo(output)
    if host is not None:
        check_writable(images, png)
        shipment = Shipment(
            scan.header, scan.batches, scan.n_readouts, pipeline, host, port, parse_parameters(parameter or []),
            label="simulated scan",
        )  # fmt: skip
        reply = deliver(shipment, console)
        for text in reply.texts:
            console.print(f"server: {text}", markup=False, soft_wrap=True)
        for path in save(reply, scan.header, images, png, title=f"simulated {anatomy}, R = {acceleration}"):
            typer.echo(path)
        console.print(describe(reply), markup=False, soft_wrap=True)
        reply.check()


def truth_images(scan: SimulatedScan) -> list[Image]:
    """What an ideal reconstruction of the scan shows, as images with the counters and geometry of the scan."""
    truth = scan.truth.whitened_magnitude()
    geometry, protocol = scan.protocol.geometry, scan.protocol
    pitch = protocol.slice_thickness_mm + protocol.slice_gap_mm
    images: list[Image] = []
    for frame, stack in enumerate(truth):
        for number, pixels in enumerate(stack):
            header = np.zeros((), IMAGE_HEADER)
            header["version"], header["data_type"], header["image_type"] = 1, ImageDataType.FLOAT, ImageType.MAGNITUDE
            header["matrix_size"], header["channels"] = (pixels.shape[1], pixels.shape[0], 1), 1
            header["field_of_view"] = *protocol.field_of_view_mm, protocol.slice_thickness_mm
            header["read_dir"], header["phase_dir"] = geometry.read_dir, geometry.phase_dir
            header["slice_dir"] = geometry.slice_dir
            offset = (number - (len(stack) - 1) / 2) * pitch
            header["position"] = np.asarray(geometry.position_mm) + offset * np.asarray(geometry.slice_dir)
            header["slice"], header[protocol.frame_counter.value] = number, frame
            header["image_series_index"], header["image_index"] = 1, number + len(stack) * frame + 1
            meta = {"DataRole": ["Image"], "ImageComments": ["truth of a simulation"]}
            images.append(Image(header, np.ascontiguousarray(pixels[None, None]), meta))
    return images
