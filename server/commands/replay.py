"""`echotrain replay`: a captured session sent to a server again, its images compared with those of then."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from server.client import DEFAULT_PORT
from server.playback import Played, open_capture, play


def main(
    capture: Annotated[Path, typer.Argument(help="Either file of a capture.", metavar="SESSION.mrd")],
    host: Annotated[str, typer.Option(help="Name or address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the server.", min=1, max=65535)] = DEFAULT_PORT,
    speed: Annotated[float, typer.Option(help="1 as it came, 2 twice as fast; 0 without a pause.", min=0)] = 0.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check that neither file was changed; send nothing.")
    ] = False,
) -> None:
    r"""Play a captured session back and compare images bit for bit.

    A server keeps captures while `capture.directory` is set. The stream and its index are checked against their digests
    before anything is sent.

    \b
    Example:
        echotrain serve --set capture.directory=/var/lib/echotrain/captures
        echotrain replay /var/lib/echotrain/captures/4f2a77c1d09be35e.mrd --port 9002

    \b
    Exit statuses: 0 the same images came (or the files are unchanged), 1 other images, fewer or more, a file that was
    changed, or no server, 2 wrong arguments.
    """
    captured = open_capture(capture)
    n_bytes = sum(len(data) for _, data in captured.read())
    how = f"lost ({captured.lost})" if captured.lost else captured.end or "not ended"
    typer.echo(f"{captured.stream.stem}: {n_bytes} bytes, {len(captured.images)} images, {how}; unchanged")
    if verify:
        return
    played = asyncio.run(play(captured, host, port, speed=speed))
    for text in played.texts:
        typer.echo(f"server: {text}", err=True)
    typer.echo(_told(played))
    if not (played.is_same and played.closed):
        raise typer.Exit(1)


def _told(played: Played) -> str:
    parts = [f"{len(played.same)} images are the same to the bit"]
    for what, numbers in (("differ", played.different), ("are missing", played.missing), ("are new", played.new)):
        if numbers:
            shown = ", ".join(f"{series}/{number}" for series, number in numbers[:5])
            parts.append(f"{len(numbers)} {what} (series/number {shown}{', ...' if len(numbers) > 5 else ''})")
    if not played.closed:
        parts.append("the server did not end in good order")
    return "; ".join(parts)
