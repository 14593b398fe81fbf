"""A scan on its way to a server and what came back on its way to files, with progress bars; shared by the commands.

Results go to standard output, progress and remarks to standard error. Pictures and NIfTI are loaded only when asked
for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipelines.mrd import Acquisitions, Image, Waveform
from server.client import Client, ScanReply
from server.client import Progress as Sent
from server.connecting import Tls
from server.errors import FileError, SettingsError
from server.image_file import group_images, write_images


@dataclass(frozen=True, slots=True)
class Shipment:
    """A scan and where it goes.

    Attributes:
        header: XML of the scan header.
        batches: readouts in the order of measurement.
        n_readouts: of all batches, for the progress bar.
        pipeline: pipeline or alias.
        parameters: of the pipeline.
        host: of the server.
        port: of the server.
        waveforms: sent among the readouts.
        images: for a pipeline that takes images instead of readouts.
        label: what the progress bar says.
        tls: how to speak TLS; not at all unless given.
    """

    header: bytes
    batches: Iterable[Acquisitions]
    n_readouts: int
    pipeline: str
    host: str
    port: int
    parameters: Mapping[str, object] | None = None
    waveforms: Iterable[Waveform] = ()
    images: Iterable[Image] = ()
    label: str = "scan"
    tls: Tls | None = None


def deliver(shipment: Shipment, console: Console) -> ScanReply:
    """Send a scan with a progress bar and wait for the server to close.

    The reply is not checked, so that what came can be kept; call `reply.check()` afterwards.

    Raises:
        ClientError: no server, silence, or a broken protocol.
    """
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("readouts, {task.fields[images]} images"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{shipment.label}: sending", total=shipment.n_readouts, images=0)

        def show(sent: Sent) -> None:
            state = "sending" if sent.acquisitions < shipment.n_readouts else "reconstructing"
            description = f"{shipment.label}: {state}"
            bar.update(task, completed=sent.acquisitions, images=sent.images, description=description)

        async def converse() -> ScanReply:
            async with Client(shipment.host, shipment.port, tls=shipment.tls) as client:
                return await client.send_scan(
                    shipment.pipeline, shipment.header, shipment.batches, shipment.parameters, show, shipment.waveforms,
                    shipment.images,
                )  # fmt: skip

        return asyncio.run(converse())


def parse_tls(*, wanted: bool, ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """How to speak TLS, from the options of a command; a file for it asks for it.

    Raises:
        SettingsError: a key without its certificate.
    """
    if key is not None and certificate is None:
        raise SettingsError("--key is of no use without --certificate")
    return Tls(ca, certificate, key) if wanted or ca is not None or certificate is not None else None


def check_writable(*paths: Path | None) -> None:
    """Say before a scan is sent that its images could not be kept.

    Raises:
        FileError: a path is a folder, or no file can be made in its folder.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise FileError(f"{path} is a folder, not the name of a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise FileError(f"{path} cannot be written ({error.strerror or error})") from error


def save(
    reply: ScanReply,
    header: bytes,
    output: Path | None,
    png: Path | None = None,
    *,
    nifti: bool = False,
    title: str = "",
) -> list[Path]:
    """Write what came back; returns the files.

    Args:
        reply: with its images; without any nothing is written.
        header: XML of the scan header, kept beside the images.
        output: HDF5 file; NIfTI files are named after it.
        png: picture of magnitude and uncertainty.
        nifti: whether to write each series as NIfTI.
        title: of the picture.

    Raises:
        FileError: a file cannot be written.
    """
    if not reply.images:
        return []
    written: list[Path] = []
    if output is not None:
        write_images(output, reply.images, header)
        written.append(output)
        if nifti:
            from server.nifti_file import write_nifti

            for name, images in group_images(reply.images).items():
                written.extend(write_nifti(output.with_name(f"{output.stem}_{name}"), images))
    if png is not None:
        from server.gallery import pair_images, write_gallery

        write_gallery(png, title or png.stem, pair_images(reply.images))
        written.append(png)
    return written


def describe(reply: ScanReply) -> str:
    """One line about a reply: how much, and how long it took."""
    megabytes = reply.bytes_sent / 1e6
    readouts = f"{reply.acquisitions_sent} readouts ({megabytes:.1f} MB)"
    parts = [f"{readouts if reply.acquisitions_sent else f'{megabytes:.1f} MB'} sent"]
    if reply.sent_s is not None:
        parts[0] += f" in {reply.sent_s:.2f} s"
    parts.append(f"{len(reply.images)} images received")
    if reply.first_image_s is not None and reply.last_image_s is not None:
        parts[1] += f", the first after {reply.first_image_s:.2f} s, the last after {reply.last_image_s:.2f} s"
    return "; ".join(parts)


def parse_parameters(values: Iterable[str]) -> dict[str, object]:
    """Parameters from `name=value` texts; the server checks names and values.

    Raises:
        SettingsError: a text without `=`.
    """
    parameters: dict[str, object] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name:
            raise SettingsError(f"the parameter '{value}' is not of the form name=value")
        parameters[name] = text
    return parameters
