"""`echotrain recon`: a scan on standard input, its images on standard output; no server and no socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from server import config, interrupts, logs
from server.commands.serve import parse_values
from server.config import Settings
from server.delivery import parse_parameters
from server.execution.inline import InlineExecutor
from server.stream_recon import StreamRecon
from server.streams import STANDARD, ImageSink, Input, Output, Version1Sink, open_input, open_output, read_events
from server.wire.connection import Connection, Role
from server.wire.messages import Event


def main(
    pipeline: Annotated[
        str | None, typer.Option(help="Pipeline or alias; without it the stream's configuration decides.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option(help="Parameter of the pipeline; may be repeated.", metavar="NAME=VALUE")
    ] = None,
    source: Annotated[Path, typer.Option("--input", help="Stream to read; - is standard input.", metavar="FILE")] = (
        STANDARD
    ),
    target: Annotated[Path, typer.Option("--output", help="Stream to write; - is standard output.", metavar="FILE")] = (
        STANDARD
    ),
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 leaves one core free.", min=0)] = None,
    v2: Annotated[bool, typer.Option("--v2", help="Read and write MRD version 2.")] = False,
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting.", metavar="NAME=VALUE", show_default=False)
    ] = None,
) -> None:
    r"""Reconstruct one scan from a stream into a stream, as `gadgetron --from_stream` does.

    In: perhaps a configuration, then the header, readouts and waveforms, CLOSE or the end. Out: the header again, each
    image as soon as it is done, texts of the input, CLOSE. What is to be said goes to standard error. If the scan
    fails, the images done before are written, then the error as a text, but no CLOSE.

    \b
    Example:
        echotrain convert scan.h5 - --to v1 | echotrain recon --pipeline sense > images.mrd
        echotrain convert images.mrd images.h5

    \b
    Exit statuses: 0 all images written, 1 the scan failed or nobody reads the output, 2 wrong arguments or settings.
    """
    flags = {"workers.device": device, "workers.threads": threads}
    given = {name: value for name, value in flags.items() if value is not None}
    settings = config.load(file, given | parse_values(values or [])).settings
    parameters = parse_parameters(parameter or [])
    logs.configure("warning")
    with (
        asyncio.Runner() as loop,
        _executor(settings, loop) as executor,
        open_input(source) as data,
        open_output(target) as output,
        _formats(data, output, settings, v2=v2) as (events, sink),
    ):
        recon = StreamRecon(settings, executor, loop, sink, _say, pipeline=pipeline, parameters=parameters)
        tally = recon.run(events)
    _say(f"{tally.acquisitions} readouts in, {tally.images} images out")


@contextmanager
def _executor(settings: Settings, loop: asyncio.Runner) -> Generator[InlineExecutor]:
    """Reconstruction in this process, with as many threads as the only worker of a server: equal bits."""
    threads = settings.workers.threads or max(1, (os.cpu_count() or 1) - 1)
    executor = InlineExecutor(
        settings.workers.device,
        settings.limits.memory_bytes,
        threads=threads,
        models_directory=settings.models.directory,
    )
    loop.run(executor.start())
    try:
        yield executor
    except KeyboardInterrupt:
        interrupts.end_at_once_from_now_on()  # the running reconstruction cannot be stopped, only left alone
        raise
    finally:
        loop.run(executor.stop())


@contextmanager
def _formats(
    data: Input, output: Output, settings: Settings, *, v2: bool
) -> Generator[tuple[Iterator[Event], ImageSink]]:
    """The input as events, and where images go."""
    limits = settings.limits.for_wire()
    if not v2:
        connection = Connection(Role.STREAM, limits)
        yield read_events(data, connection), Version1Sink(output, connection)
        return
    from server.mrd2.recon import version_2

    with version_2(data, output, limits, _say) as formats:
        yield formats


def _say(text: str) -> None:
    """One line on standard error."""
    typer.echo(f"echotrain: {text}", err=True)
