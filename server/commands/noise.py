"""`echotrain noise`: the noise measurements that a server has kept, listed or taken out for other programs."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from server import config
from server.errors import FileError, SettingsError
from server.noise_file import StoredNoise
from server.noise_store import stored_noise


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    EXPORT = "export"


def main(
    action: Annotated[Action, typer.Argument(help="`list` what is kept, or `export` one measurement.")],
    key: Annotated[str, typer.Argument(help="The first characters of its key in the list.", metavar="KEY")] = "",
    output: Annotated[Path | None, typer.Option(help="File to write.", metavar="FILE.npz")] = None,
    directory: Annotated[
        Path | None, typer.Option(help="Where they are; the setting noise.directory otherwise.", metavar="DIRECTORY")
    ] = None,
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
) -> None:
    r"""Show the noise measurements kept for later scans, or write one as a file that numpy reads.

    A key is a digest: which measurement it belongs to cannot be told from it. The file has `covariance`, `n_samples`,
    `sample_time_us`, `bandwidth`, `measured_at`, `coil_numbers` and `coil_names`.

    \b
    Example:
        echotrain noise list --directory /var/lib/echotrain/noise
        echotrain noise export 3fa2 --output noise.npz
        python -c "import numpy; print(numpy.load('noise.npz')['covariance'])"

    \b
    Exit statuses: 0 done, 1 no such measurement or directory, 2 wrong arguments or settings.
    """
    directory = directory or _from_settings(file)
    if action is Action.LIST:
        _list(directory)
    elif not key or output is None:
        raise typer.BadParameter("export needs a KEY of the list and --output FILE.npz")
    else:
        path, noise = _find(directory, key)
        _export(noise, output)
        typer.echo(f"{path.stem[:12]}: {noise.covariance.n_coils} channels, written to {output}")


def _from_settings(file: Path | None) -> Path:
    configured = config.load(file).settings.noise.directory
    if not configured:
        raise SettingsError("noise.directory is not set, so noise measurements are kept in the server's memory only")
    return Path(configured)


def _list(directory: Path) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("key", "age", "channels", "samples", "dwell time", "noise of the coils"):
        table.add_column(heading, overflow="fold")
    for path, noise in stored_noise(directory):
        name = path.stem[:12]
        if isinstance(noise, FileError):
            table.add_row(name, "", "", "", "", str(noise))
            continue
        covariance, sigmas = noise.covariance, noise.sigmas()
        table.add_row(
            name,
            f"{(time.time() - noise.measured_at) / 3600:.1f} h",
            str(covariance.n_coils),
            str(covariance.n_samples),
            f"{covariance.sample_time_us:g} us",
            f"{sigmas.min():.3g} to {sigmas.max():.3g}, mean {sigmas.mean():.3g}",
        )
    Console().print(table)


def _find(directory: Path, key: str) -> tuple[Path, StoredNoise]:
    found = [(path, noise) for path, noise in stored_noise(directory) if path.stem.startswith(key)]
    if len(found) != 1:
        raise FileError(f"{len(found)} noise measurements have a key that begins so; one is needed")
    ((path, noise),) = found
    if isinstance(noise, FileError):
        raise noise
    return path, noise


def _export(noise: StoredNoise, output: Path) -> None:
    covariance = noise.covariance
    try:
        with output.open("wb") as file:
            np.savez(
                file,
                covariance=covariance.sums / max(covariance.n_samples - 1, 1),
                n_samples=covariance.n_samples,
                sample_time_us=covariance.sample_time_us,
                bandwidth=np.nan if covariance.bandwidth is None else covariance.bandwidth,
                measured_at=noise.measured_at,
                coil_numbers=np.array([label.number for label in noise.coil_labels], np.int64),
                coil_names=np.array([label.name for label in noise.coil_labels], "<U64"),
            )
    except OSError as error:
        raise FileError(f"{output} cannot be written: {error.strerror}") from error
