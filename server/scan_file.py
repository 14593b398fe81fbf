"""Scans in ISMRMRD HDF5 files: read in blocks as batches of readouts, written for every ISMRMRD reader.

Knows nothing of sessions or images. Reading block by block takes microseconds a readout, where reading one by one
through ismrmrd-python takes milliseconds. Layout: `/<group>/xml`, `/<group>/data` (header, trajectory, samples of each
readout, the latter two of variable length), `/<group>/waveforms`; the group is usually called `dataset` (ISMRMRD 1.x
`dataset.c`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import ACQUISITION_HEADER, WAVEFORM_HEADER, Acquisitions, Waveform
from server.errors import FileError
from server.hdf5 import Hdf5, is_group, read_hdf5, write_hdf5

DEFAULT_GROUP: Final = "dataset"
READOUTS_PER_BLOCK: Final = 256

_FLOATS = h5py.vlen_dtype(np.dtype("<f4"))
_FILE_READOUT: Final = np.dtype([("head", ACQUISITION_HEADER), ("traj", _FLOATS), ("data", _FLOATS)])
_FILE_WAVEFORM: Final = np.dtype([("head", WAVEFORM_HEADER), ("data", h5py.vlen_dtype(np.dtype("<u4")))])


class ScanFile:
    """An open scan; see `open_scan`.

    Attributes:
        header: XML of the scan header.
        n_readouts: how many there are, noise readouts included.
        n_waveforms: how many there are.
    """

    def __init__(self, group: Hdf5, name: str) -> None:
        self._group = group
        self._name = name
        self.header: bytes = _read_xml(group, name)
        self.n_readouts: int = group["data"].shape[0] if "data" in group else 0
        self.n_waveforms: int = group["waveforms"].shape[0] if "waveforms" in group else 0

    def batches(self, readouts_per_block: int = READOUTS_PER_BLOCK) -> Iterator[Acquisitions]:
        """Readouts in the order of the file; each batch is a run of one shape out of one block.

        Raises:
            FileError: a readout's samples do not agree with its header, or the block cannot be read.
        """
        for start in range(0, self.n_readouts, readouts_per_block):
            block = self._read("data", start, readouts_per_block)
            heads = _convert(block["head"], ACQUISITION_HEADER, self._name)
            shape = np.stack(
                [heads[name] for name in ("active_channels", "number_of_samples", "trajectory_dimensions")]
            )
            cuts = np.flatnonzero((shape[:, 1:] != shape[:, :-1]).any(axis=0)) + 1
            edges = [0, *cuts.tolist(), len(block)]
            for first, last in pairwise(edges):
                yield self._batch(heads[first:last], block[first:last], start + first)

    def waveforms(self) -> Iterator[Waveform]:
        """Waveforms in the order of the file.

        Raises:
            FileError: a waveform's samples do not agree with its header.
        """
        for start in range(0, self.n_waveforms, READOUTS_PER_BLOCK):
            block = self._read("waveforms", start, READOUTS_PER_BLOCK)
            for number, head in enumerate(_convert(block["head"], WAVEFORM_HEADER, self._name)):
                shape = int(head["channels"]), int(head["number_of_samples"])
                samples = np.asarray(block["data"][number], "<u4")
                if samples.size != shape[0] * shape[1]:
                    raise FileError(
                        f"{self._name}: waveform {start + number} holds {samples.size} samples, its header says "
                        f"{shape[0]} channels of {shape[1]}"
                    )
                yield Waveform(np.asarray(head), samples.reshape(shape))

    def _read(self, dataset: str, start: int, count: int) -> NDArray[np.void]:
        try:
            return np.asarray(self._group[dataset][start : start + count])
        except (OSError, ValueError, TypeError) as error:
            raise FileError(f"{self._name}: entries {start} and on of '{dataset}' cannot be read ({error})") from error

    def _batch(self, heads: NDArray[np.void], rows: NDArray[np.void], first: int) -> Acquisitions:
        coils, samples = int(heads[0]["active_channels"]), int(heads[0]["number_of_samples"])
        dimensions = int(heads[0]["trajectory_dimensions"])
        data = self._stack(rows["data"], 2 * coils * samples, first, "floats")
        batch_samples = data.view(np.complex64).reshape(len(heads), coils, samples)
        if dimensions == 0:
            return Acquisitions.from_arrays(heads, batch_samples)
        trajectory = self._stack(rows["traj"], dimensions * samples, first, "trajectory values")
        return Acquisitions.from_arrays(heads, batch_samples, trajectory.reshape(len(heads), samples, dimensions))

    def _stack(self, values: NDArray[np.object_], expected: int, first: int, what: str) -> NDArray[np.float32]:
        for number, value in enumerate(values):
            if len(value) != expected:
                raise FileError(
                    f"{self._name}: readout {first + number} holds {len(value)} {what}, its header says {expected}"
                )
        return np.ascontiguousarray(np.stack(list(values)), "<f4")


@contextmanager
def open_scan(path: Path, group: str | None = None) -> Generator[ScanFile]:
    """Open a scan for reading.

    Args:
        path: the file.
        group: name of the group; by default `dataset`, else the only group that holds a header.

    Raises:
        FileError: no such file, not HDF5, no such group, or no header in it.
    """
    with read_hdf5(path) as file:
        name = group or _find_group(file, path)
        if name not in file or not is_group(file[name]):
            raise FileError(f"{path} has no group '{name}'; it has: {', '.join(file) or 'nothing'}")
        yield ScanFile(file[name], path.name)


def write_scan(path: Path, header: bytes, batches: Iterable[Acquisitions], waveforms: Iterable[Waveform] = ()) -> int:
    """Write a scan as an ISMRMRD file, replacing what was there; returns the number of readouts.

    Raises:
        FileError: the file cannot be written.
    """
    with write_hdf5(path) as file:
        group = file.create_group(DEFAULT_GROUP)
        write_header(group, header)
        data = make_readouts(group)
        for batch in batches:
            add_readouts(data, batch)
        write_waveforms(group, list(waveforms))
        return int(data.shape[0])


def write_header(group: Hdf5, header: bytes) -> None:
    """Put the scan header into a group."""
    group.create_dataset("xml", data=np.array([header], object), dtype=h5py.string_dtype("utf-8"))


def make_readouts(group: Hdf5) -> Hdf5:
    """An empty list of readouts in a group."""
    return group.create_dataset("data", (0,), _FILE_READOUT, maxshape=(None,), chunks=(64,))


def add_readouts(data: Hdf5, batch: Acquisitions) -> None:
    """Append readouts to the list in a file."""
    rows = np.empty(len(batch), _FILE_READOUT)
    rows["head"] = batch.headers
    floats = batch.complex_samples().view(np.float32).reshape(len(batch), -1)
    if batch.trajectory is None:
        trajectory = np.empty((len(batch), 0), np.float32)
    else:
        trajectory = np.ascontiguousarray(batch.trajectory).view(np.float32)
    for row in range(len(batch)):
        rows["data"][row], rows["traj"][row] = floats[row], trajectory[row]
    _append(data, rows)


def write_waveforms(group: Hdf5, waveforms: list[Waveform]) -> None:
    """Put waveforms into a group, if there are some."""
    if not waveforms:
        return
    rows = np.empty(len(waveforms), _FILE_WAVEFORM)
    for row, waveform in enumerate(waveforms):
        rows["head"][row], rows["data"][row] = waveform.header, waveform.samples.ravel()
    group.create_dataset("waveforms", data=rows, dtype=_FILE_WAVEFORM, maxshape=(None,), chunks=(64,))


def _append(data: Hdf5, rows: NDArray[np.void]) -> None:
    start = data.shape[0]
    data.resize(start + len(rows), axis=0)
    data[start:] = rows


def _find_group(file: Hdf5, path: Path) -> str:
    if DEFAULT_GROUP in file:
        return DEFAULT_GROUP
    holding = [name for name, member in file.items() if is_group(member) and "xml" in member]
    if len(holding) != 1:
        found = (
            f"several scans ({', '.join(holding)}); say which" if holding else "no scan: no group with a scan header"
        )
        raise FileError(f"{path} holds {found}")
    return str(holding[0])


def _read_xml(group: Hdf5, name: str) -> bytes:
    if "xml" not in group:
        raise FileError(f"{name} holds no scan header (group '{group.name}' has no 'xml')")
    value = group["xml"][...].ravel()
    if value.size == 0:
        raise FileError(f"{name}: the scan header is empty")
    text = value[0]
    return text.encode() if isinstance(text, str) else bytes(text).rstrip(b"\0")


def _convert(heads: NDArray[np.void], wanted: np.dtype[np.void], name: str) -> NDArray[np.void]:
    """Headers in our layout, field by field: files of other versions order and align them differently."""
    if heads.dtype == wanted:
        return np.ascontiguousarray(heads)
    missing = [field for field in wanted.names or () if field not in (heads.dtype.names or ())]
    if missing:
        raise FileError(f"{name}: headers lack the fields {', '.join(missing)}: not an ISMRMRD 1.x file")
    converted = np.zeros(heads.shape, wanted)
    for field in wanted.names or ():
        if wanted[field].names:
            converted[field] = _convert(heads[field], wanted[field], name)
        else:
            converted[field] = heads[field]
    return converted
