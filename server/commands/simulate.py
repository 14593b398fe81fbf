"""`echotrain simulate`: a scan of known anatomy into a file, or straight to a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType
from pipelines.scan_header import CalibrationMode, TrajectoryType, parse_scan_header
from pipelines.simulate import SimulatedScan
from pipelines.simulated_protocol import FrameCounter, Geometry, Pattern, Protocol, SliceOrder
from pipelines.simulation.volume import VolumePattern, VolumeSampling
from server.anatomy import load_anatomy
from server.client import DEFAULT_PORT
from server.delivery import Shipment, check_writable, deliver, describe, parse_parameters, parse_tls, save
from server.errors import SettingsError
from server.image_file import write_images
from server.scan_file import write_scan
from server.scan_kinds import ScanKind


def main(
    output: Annotated[Path | None, typer.Option(help="ISMRMRD file to write the scan to.", metavar="FILE.h5")] = None,
    anatomy: Annotated[
        str, typer.Option(help="brain (shipped), phantom, heart, or a .npy, .nii or .nii.gz file.", metavar="NAME|FILE")
    ] = "brain",
    slices: Annotated[int, typer.Option(help="Slices; 0 for all that the anatomy has.", min=0)] = 0,
    matrix: Annotated[int, typer.Option(help="Pixels of phantom and heart along x and y.", min=16, max=2048)] = 192,
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
    volume: Annotated[bool, typer.Option("--volume", help="The slices are partitions of a 3D scan.")] = False,
    acceleration_z: Annotated[int, typer.Option(help="R along z of a volume.", min=1, max=16)] = 1,
    caipi: Annotated[int, typer.Option(help="Lines from one partition's lattice to the next.", min=0)] = 0,
    partial_fourier_z: Annotated[float, typer.Option(help="Part of the partitions that is measured.")] = 1.0,
    elliptical: Annotated[bool, typer.Option("--elliptical", help="Leave the corners of k-space out.")] = False,
    trajectory: Annotated[
        TrajectoryType, typer.Option(help="How k-space is traversed; not other.")
    ] = TrajectoryType.CARTESIAN,
    shots: Annotated[int, typer.Option(help="Spokes or interleaves of each frame.", min=1)] = 64,
    coordinates: Annotated[bool, typer.Option(help="Send the trajectory of spokes with them.")] = True,
    echoes: Annotated[int, typer.Option(help="Echoes, every second one read backwards.", min=1)] = 1,
    beats: Annotated[int, typer.Option(help="Heartbeats of a free-running cine with an ECG.", min=0)] = 0,
    noise: Annotated[float, typer.Option(help="Noise of a raw sample relative to the brightest pixel.", min=0)] = 0.03,
    tilt_deg: Annotated[float, typer.Option(help="Tilt of the slices about the left-right axis.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    truth: Annotated[
        Path | None, typer.Option(help="Also the noise-free images, for `view --reference`.", metavar="FILE.h5")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Send the scan to this server.")] = None,
    port: Annotated[int, typer.Option(help="Port of that server.", min=1, max=65535)] = DEFAULT_PORT,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS with the server.")] = False,
    ca: Annotated[
        Path | None, typer.Option(help="Authorities to trust for TLS, instead of this machine's.", metavar="FILE.pem")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="Our certificate, for a server that asks.", metavar="FILE.pem")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Key of our certificate.", metavar="FILE.pem")] = None,
    pipeline: Annotated[str, typer.Option(help="Pipeline there.")] = "default",
    parameter: Annotated[
        list[str] | None, typer.Option(help="Parameter of the pipeline; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    images: Annotated[Path, typer.Option(help="HDF5 file for what the server sends.", metavar="FILE.h5")] = Path(
        "images.h5"
    ),
    png: Annotated[Path | None, typer.Option(help="Picture of what the server sends.", metavar="FILE.png")] = None,
) -> None:
    r"""Simulate a scan with coils, noise and undersampling; write it to a file, send it to a server, or both.

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
    Volumes, spokes, echo trains and beating hearts:
        echotrain simulate --volume --acceleration 2 --acceleration-z 2 --caipi 1 --output volume.h5
        echotrain simulate --trajectory radial --shots 48 --output radial.h5
        echotrain simulate --echoes 4 --partial-echo 0.8 --output echoes.h5
        echotrain simulate --anatomy heart --matrix 128 --beats 16 --output cine.h5

    \b
    Exit statuses: 0 done, 1 the scan failed at the server or a file could not be written, 2 wrong arguments.
    """
    if output is None and host is None:
        raise SettingsError("nothing to do: give --output FILE.h5, or --host to send the scan to a server")
    magnitude = load_anatomy(anatomy, slices, matrix)
    try:
        lattice = VolumePattern.POISSON if pattern is Pattern.RANDOM else VolumePattern.LATTICE
        along_z = VolumeSampling(
            lattice, acceleration_z, caipi, partial_fourier_z=partial_fourier_z, is_elliptical=elliptical
        )
        if not volume and along_z != VolumeSampling(lattice):
            raise SettingsError("acceleration, shift, partial Fourier and ellipse along z are for a --volume")
        kind = ScanKind(along_z if volume else None, trajectory, shots, coordinates, echoes, beats)
        protocol = Protocol(
            n_coils=coils, pattern=pattern, acceleration=acceleration, calibration_lines=calibration,
            calibration_mode=CalibrationMode.SEPARATE if separate else CalibrationMode.EMBEDDED,
            slice_order=SliceOrder.INTERLEAVED if interleaved else SliceOrder.SEQUENTIAL,
            frame_counter=FrameCounter.PHASE if anatomy == "heart" else FrameCounter.REPETITION,
            repetitions=repetitions, averages=averages, partial_fourier=partial_fourier, partial_echo=partial_echo,
            noise_std=noise, geometry=Geometry.oblique((0.0, 0.0, 0.0), tilt_deg, 0.0), seed=seed,
            field_of_view_mm=(float(magnitude.shape[-1]), float(magnitude.shape[-2])),
        )  # fmt: skip
        scan = kind.simulate(magnitude, protocol)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    console = Console(stderr=True)
    if truth is not None:
        write_images(truth, truth_images(scan), scan.header)
        typer.echo(truth)
    if output is not None:
        write_scan(output, scan.header, scan.batches, scan.waveforms)
        typer.echo(output)
    if host is not None:
        check_writable(images, png)
        shipment = Shipment(
            scan.header, scan.batches, scan.n_readouts, pipeline, host, port, parse_parameters(parameter or []),
            label="simulated scan", waveforms=scan.waveforms,
            tls=parse_tls(wanted=tls, ca=ca, certificate=certificate, key=key),
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
    space = parse_scan_header(scan.header).encodings[0].recon
    is_volume = space.matrix[2] > 1
    pitch = protocol.slice_thickness_mm + protocol.slice_gap_mm
    counters = {name.value: values.tolist() for name, values in protocol.counters_of_frames(len(truth)).items()}
    images: list[Image] = []
    for frame, slices in enumerate(truth):
        stack = slices[None] if is_volume else slices[:, None]
        for number, pixels in enumerate(stack):
            header = np.zeros((), IMAGE_HEADER)
            header["version"], header["data_type"], header["image_type"] = 1, ImageDataType.FLOAT, ImageType.MAGNITUDE
            header["matrix_size"], header["channels"] = pixels.shape[::-1], 1
            header["field_of_view"] = space.field_of_view_mm
            header["read_dir"], header["phase_dir"] = geometry.read_dir, geometry.phase_dir
            header["slice_dir"] = geometry.slice_dir
            offset = (number - (len(stack) - 1) / 2) * pitch
            header["position"] = np.asarray(geometry.position_mm) + offset * np.asarray(geometry.slice_dir)
            for name, first in protocol.first_counters.items():
                if name != "segment":
                    header[name] = first
            header["slice"] += number
            for name, values in counters.items():
                header[name] += values[frame]
            header["image_series_index"], header["image_index"] = 1, number + len(stack) * frame + 1
            meta = {"DataRole": ["Image"], "ImageComments": ["truth of a simulation"]}
            images.append(Image(header, np.ascontiguousarray(pixels[None]), meta))
    return images
