"""HDF5 files opened with errors that people understand; knows nothing of what is in them.

h5py has no usable types, so files and groups are `Any` from here on.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from server.errors import FileError

Hdf5 = Any
"""An `h5py.File` or `h5py.Group`."""


@contextmanager
def read_hdf5(path: Path) -> Generator[Hdf5]:
    """A file opened for reading.

    Raises:
        FileError: no such file, or not HDF5.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except OSError as error:
        raise FileError(f"{path} is not an HDF5 file, or it is damaged or still being written") from error
    with file:
        yield file


@contextmanager
def write_hdf5(path: Path) -> Generator[Hdf5]:
    """A new file, which replaces what was there once it is whole.

    It is made in memory: on a disk that is full HDF5 does not only fail, it ends the process when the file is closed.

    Raises:
        FileError: the file cannot be written.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content.getbuffer())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error


def is_group(member: object) -> bool:
    """Whether this is a group."""
    return isinstance(member, h5py.Group)
