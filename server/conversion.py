"""Scans and images from one format of MRD into another: HDF5 files and streams of version 1, streams of version 2.

A source gives a header and then readouts, waveforms, images and texts in their order; a target takes them one by one.
Between streams no more is held than one item; an HDF5 file is made in memory (`server/hdf5.py`). What a format cannot
hold is noted in the `Losses`, never dropped in silence. Version 2 is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from pipelines.mrd import Acquisitions, Image, Waveform
from server.conversion_targets import FileTarget, StreamTarget, Target
from server.errors import FileError, SettingsError
from server.hdf5 import Hdf5, is_group, read_hdf5, write_hdf5
from server.image_file import image_series, read_series
from server.losses import Losses
from server.scan_file import DEFAULT_GROUP, ScanFile
from server.streams import STANDARD, Rewound, open_input, open_output, read_events
from server.wire import codec
from server.wire.connection import Connection, Role
from server.wire.messages import Close, ConfigFile, ConfigText, Header, Text, WireLimits


class Format(StrEnum):
    """A format; the values are what --from and --to take."""

    FILE = "h5"
    STREAM = "v1"
    STREAM_2 = "v2"


SUFFIXES: Final = {
    ".h5": Format.FILE, ".hdf5": Format.FILE, ".mrd": Format.STREAM, ".mrd1": Format.STREAM,
    ".mrd2": Format.STREAM_2, ".bin": Format.STREAM_2,
}  # fmt: skip
_NAMES: Final = {
    Format.FILE: "an HDF5 file of MRD version 1",
    Format.STREAM: "a stream of MRD version 1",
    Format.STREAM_2: "a stream of MRD version 2",
}
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_YARDL: Final = b"yardl"
_BATCH: Final = 256
"""Readouts of version 2 that are put together before they are written."""

Item = Acquisitions | Waveform | Image | Text


@dataclass(slots=True)
class Source:
    """What is read.

    Attributes:
        header: XML of version 1; None where there is none.
        items: in their order; readouts are valid until the next item.
    """

    header: bytes | None
    items: Iterator[Item]


@dataclass(slots=True)
class Tally:
    """How much was converted."""

    readouts: int = 0
    waveforms: int = 0
    images: int = 0


def convert(
    source: Path,
    target: Path,
    losses: Losses,
    *,
    given: Format | None = None,
    wanted: Format | None = None,
    group: str | None = None,
    limits: WireLimits | None = None,
) -> Tally:
    """Convert `source` to `target`; `-` is standard input or output.

    An ordinary file appears only when it is whole.

    Args:
        source: where from.
        target: where to.
        losses: what could not be carried over.
        given: format of the source; by default told from its first bytes.
        wanted: format of the target; by default told from its suffix.
        group: of an HDF5 source; by default `dataset`, else the only one.
        limits: of what a stream may announce.

    Raises:
        SettingsError: the formats are not known, or the same.
        FileError, ProtocolError, HeaderError, ConversionError: it cannot be read, written or converted.
    """
    wanted = wanted or _by_suffix(target)
    limits = limits or WireLimits()
    if target != STANDARD and source != STANDARD and target.exists() and target.samefile(source):
        raise SettingsError("the output would replace the input")
    with (
        _open_source(source, given, wanted, group, limits, losses) as content,
        _open_target(target, wanted, content, losses) as sink,
    ):
        return _copy(content.items, sink)


def _copy(items: Iterable[Item], sink: Target) -> Tally:
    tally = Tally()
    for item in items:
        match item:
            case Text():
                sink.text(item)
                continue
            case Acquisitions():
                tally.readouts += len(item)
            case Waveform():
                tally.waveforms += 1
            case Image():
                tally.images += 1
        sink.put(item)
    sink.close()
    return tally


def _by_suffix(path: Path) -> Format:
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise SettingsError(
            f"the format of {path} cannot be told from its name; give --to with one of {', '.join(Format)} "
            f"(or a name that ends with one of {', '.join(SUFFIXES)})"
        )
    return found


# ---- sources


@contextmanager
def _open_source(
    path: Path, given: Format | None, wanted: Format, group: str | None, limits: WireLimits, losses: Losses
) -> Generator[Source]:
    with open_input(path) as data:
        begun = Rewound(data, len(_HDF5))
        found = given or _by_content(begun.head, path)
        if found is wanted:
            raise SettingsError(f"the input is {_NAMES[found]} already; there is nothing to convert")
        if found is Format.STREAM:
            yield _from_stream(begun, limits, losses)
            return
        if found is Format.STREAM_2:
            yield _from_version_2(begun, limits, losses)
            return
    if path == STANDARD:
        raise SettingsError("an HDF5 file cannot be read from standard input; give its name")
    with read_hdf5(path) as file:
        yield _from_file(file, path, group, losses)


def _by_content(head: bytes, path: Path) -> Format:
    if head.startswith(_HDF5):
        return Format.FILE
    if head.startswith(_YARDL):
        return Format.STREAM_2
    if len(head) >= codec.ID_BYTES and codec.read_id(memoryview(head), 0) in codec.LAYOUTS:
        return Format.STREAM
    raise FileError(f"{path} is none of these: {', '.join(_NAMES.values())}")


def _from_stream(data: Rewound, limits: WireLimits, losses: Losses) -> Source:
    """A stream of version 1, read up to its header, or to the first data if it has none."""
    rest = _stream_items(data, limits, losses)
    begun: list[Item] = []
    for item in rest:
        if isinstance(item, Header):
            return Source(item.xml, chain(begun, _data(rest)))
        begun.append(item)
        if not isinstance(item, Text):
            break
    return Source(None, chain(begun, _data(rest)))


def _stream_items(data: Rewound, limits: WireLimits, losses: Losses) -> Iterator[Item | Header]:
    for event in read_events(data, Connection(Role.STREAM, limits)):
        match event:
            case Acquisitions() | Waveform() | Image() | Text() | Header():
                yield event
            case Close(announced):
                if not announced:
                    losses.note("the input ended without CLOSE; there may have been more")
            case ConfigFile() | ConfigText():
                losses.note("the configuration in the stream is left out")
            case _:
                losses.note("queries, responses and errors in the stream are left out")


def _data(items: Iterator[Item | Header]) -> Iterator[Item]:
    """All but headers, of which the wire lets none come behind data."""
    for item in items:
        if not isinstance(item, Header):
            yield item


def _from_version_2(data: Rewound, limits: WireLimits, losses: Losses) -> Source:
    from server.mrd2.stream import Reader, header_to_version_1

    reader = Reader(data, limits)
    return Source(header_to_version_1(reader.header, losses), _joined(reader.items(losses)))


def _joined(items: Iterable[Acquisitions | Waveform | Image]) -> Iterator[Item]:
    """Readouts of one shape that follow each other as one batch: a file takes them far faster than one by one."""
    waiting: list[Acquisitions] = []
    for item in items:
        is_next = isinstance(item, Acquisitions) and (not waiting or _shape(item) == _shape(waiting[0]))
        if waiting and (not is_next or len(waiting) == _BATCH):
            yield _stacked(waiting)
            waiting = []
        if isinstance(item, Acquisitions):
            waiting.append(item)
        else:
            yield item
    if waiting:
        yield _stacked(waiting)


def _shape(batch: Acquisitions) -> tuple[object, ...]:
    return batch.samples.shape[1:], None if batch.trajectory is None else batch.trajectory.shape[1:]


def _stacked(batches: list[Acquisitions]) -> Acquisitions:
    tracks = [batch.trajectory for batch in batches if batch.trajectory is not None]
    return Acquisitions(
        np.concatenate([batch.headers for batch in batches]),
        np.concatenate([batch.samples for batch in batches]),
        np.concatenate(tracks) if tracks else None,
    )


def _from_file(file: Hdf5, path: Path, group: str | None, losses: Losses) -> Source:
    name = group or _find_group(file, path)
    if name not in file or not is_group(file[name]):
        raise FileError(f"{path} has no group '{name}'; it has: {', '.join(file) or 'nothing'}")
    member = file[name]
    series = image_series(member)
    for other in member:
        if other not in {"xml", "data", "waveforms", *series}:
            losses.note(f"file: what '{name}/{other}' holds is not known; left out")
    for other in file:
        if other != name:
            losses.note(f"file: only the group '{name}' is converted; '{other}' is left out")
    header: bytes | None = None
    readings: Iterator[Acquisitions | Waveform] = iter(())
    if "xml" in member or "data" in member or "waveforms" in member:
        scan = ScanFile(member, path.name)
        header, readings = scan.header, interleave(scan.batches(), scan.waveforms())
    if header is None and not series:
        raise FileError(f"{path}: the group '{name}' holds neither a scan nor images")
    return Source(header, chain(readings, (image for one in series for image in read_series(member[one], path))))


def _find_group(file: Hdf5, path: Path) -> str:
    if DEFAULT_GROUP in file:
        return DEFAULT_GROUP
    holding = [
        str(name) for name, member in file.items() if is_group(member) and ("xml" in member or image_series(member))
    ]
    if len(holding) != 1:
        found = f"several groups ({', '.join(holding)}); say which" if holding else "neither a scan nor images"
        raise FileError(f"{path} holds {found}")
    return holding[0]


def interleave(batches: Iterable[Acquisitions], waveforms: Iterable[Waveform]) -> Iterator[Acquisitions | Waveform]:
    """Readouts and waveforms by time stamp, as `ismrmrd_hdf5_to_stream` does; each kind keeps its order."""
    waiting = iter(waveforms)
    waveform = next(waiting, None)
    for batch in batches:
        times = batch.headers["acquisition_time_stamp"]
        start = 0
        while waveform is not None:
            later = np.flatnonzero(times[start:] >= waveform.header["time_stamp"])
            if not len(later):
                break
            if later[0]:
                yield _part(batch, start, start + int(later[0]))
            start += int(later[0])
            yield waveform
            waveform = next(waiting, None)
        yield _part(batch, start, len(batch))
    while waveform is not None:
        yield waveform
        waveform = next(waiting, None)


def _part(batch: Acquisitions, start: int, stop: int) -> Acquisitions:
    if (start, stop) == (0, len(batch)):
        return batch
    trajectory = None if batch.trajectory is None else batch.trajectory[start:stop]
    return Acquisitions(batch.headers[start:stop], batch.samples[start:stop], trajectory)


# ---- targets


@contextmanager
def _open_target(path: Path, wanted: Format, content: Source, losses: Losses) -> Generator[Target]:
    if wanted is Format.FILE:
        if path == STANDARD:
            raise SettingsError("an HDF5 file cannot be written to standard output; give its name")
        with write_hdf5(path) as file:
            yield FileTarget(file.create_group(DEFAULT_GROUP), content.header, losses)
        return
    with open_output(path, whole_or_not=True) as output:
        if wanted is Format.STREAM:
            yield StreamTarget(output, content.header)
        else:
            from server.mrd2.target import Version2Target

            yield Version2Target(output, content.header, losses)
