"""Readouts, waveforms and images: the values of version 1 <-> the stream items of version 2.

The same fields in both, so time stamps, user values and flags are carried bit for bit (as mrd's C++ converters do,
except that those forget waveform_id). Differences, all noted where they lose something:

 1. Version 1 has `channel_mask`, version 2 `channel_order`. A mask of as many bits as there are channels becomes the
    list of their numbers and comes back. No mask (what many writers leave) means the first channels, is the list
    0, 1, ..., and comes back as the mask that says so.
 2. `available_channels` exists in version 1 only; from version 2 it is the number of channels.
 3. Optional values of version 2 that are absent are 0 in version 1, except `center_sample`: 0 would mean a readout
    that begins at the centre of k-space, so the middle of the samples is put there.
 4. Version 2 knows no RGB images (image_type 6); the number is carried all the same.
 5. Attributes of images have types in version 2. From version 1 all are texts, as they were; numbers become texts on
    the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import mrd
import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import (
    ACQUISITION_HEADER,
    COUNTERS,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Acquisitions,
    Image,
    ImageDataType,
    Meta,
    Waveform,
)
from server.errors import ConversionError
from server.losses import Losses

_LARGEST: Final = 65_535
_MASK_BITS: Final = 1024
_READOUT_NUMBERS: Final = (
    "measurement_uid", "scan_counter", "acquisition_time_stamp", "discard_pre", "discard_post", "center_sample",
    "encoding_space_ref",
)  # fmt: skip
_VECTORS: Final = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")
_IMAGE_VECTORS: Final = {
    "field_of_view": "field_of_view", "position": "position", "read_dir": "col_dir", "phase_dir": "line_dir",
    "slice_dir": "slice_dir", "patient_table_position": "patient_table_position",
}  # fmt: skip
"""Fields of version 1 and what version 2 calls them."""
_IMAGE_NUMBERS: Final = (
    "average", "slice", "contrast", "phase", "repetition", "set", "image_index", "image_series_index",
)  # fmt: skip
_ITEMS: Final[dict[ImageDataType, Any]] = {
    ImageDataType.USHORT: mrd.StreamItem.ImageUint16,
    ImageDataType.SHORT: mrd.StreamItem.ImageInt16,
    ImageDataType.UINT: mrd.StreamItem.ImageUint32,
    ImageDataType.INT: mrd.StreamItem.ImageInt32,
    ImageDataType.FLOAT: mrd.StreamItem.ImageFloat,
    ImageDataType.DOUBLE: mrd.StreamItem.ImageDouble,
    ImageDataType.CXFLOAT: mrd.StreamItem.ImageComplexFloat,
    ImageDataType.CXDOUBLE: mrd.StreamItem.ImageComplexDouble,
}

IMAGE_ITEMS: Final[tuple[type[Any], ...]] = tuple(_ITEMS.values())
"""Stream items that hold one image."""


# ---- version 1 to version 2


def readouts_to_version_2(batch: Acquisitions, losses: Losses) -> Iterator[Any]:
    """A stream item for each readout."""
    samples = batch.complex_samples()
    trajectory: NDArray[np.float32] | None = None
    if batch.trajectory is not None:
        values = np.ascontiguousarray(batch.trajectory).view(np.float32)
        dimensions = int(batch.headers["trajectory_dimensions"][0]) if len(batch) else 0
        trajectory = values.reshape(len(batch), batch.n_samples, dimensions).transpose(0, 2, 1)
    for number, header in enumerate(batch.headers):
        track = np.zeros((0, 0), np.float32) if trajectory is None else np.ascontiguousarray(trajectory[number])
        head = _readout_header(header, losses)
        yield mrd.StreamItem.Acquisition(mrd.Acquisition(head=head, data=samples[number], trajectory=track))


def _readout_header(header: np.void, losses: Losses) -> mrd.AcquisitionHeader:
    if header["available_channels"] != header["active_channels"]:
        losses.note("readouts: MRD 2 has no place for available_channels")
    counters = header["idx"]
    lines: dict[str, Any] = {name: int(counters[name]) for name in COUNTERS}
    fields: dict[str, Any] = {name: int(header[name]) for name in _READOUT_NUMBERS}
    fields |= {name: np.array(header[name], np.float32) for name in _VECTORS}
    return mrd.AcquisitionHeader(
        flags=mrd.AcquisitionFlags(int(header["flags"])),
        idx=mrd.EncodingCounters(**lines, user=_integers(counters["user"])),
        physiology_time_stamp=_integers(header["physiology_time_stamp"]),
        channel_order=_channel_order(header, losses),
        sample_time_us=float(header["sample_time_us"]),
        user_int=_integers(header["user_int"]),
        user_float=header["user_float"].tolist(),
        **fields,
    )


def _channel_order(header: np.void, losses: Losses) -> list[int]:
    n_channels = int(header["active_channels"])
    mask = np.ascontiguousarray(header["channel_mask"], "<u8")
    if mask.any():
        numbers = _integers(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))
        if len(numbers) == n_channels:
            return numbers
        losses.note("readouts: channel_mask does not have one bit for each channel; left out")
    return list(range(n_channels))


def waveform_to_version_2(waveform: Waveform) -> Any:
    """A stream item."""
    header = waveform.header
    names = ("flags", "measurement_uid", "scan_counter", "time_stamp", "waveform_id")
    fields: dict[str, Any] = {name: int(header[name]) for name in names}
    samples = np.ascontiguousarray(waveform.samples, np.uint32)
    return mrd.StreamItem.WaveformUint32(
        mrd.Waveform(data=samples, sample_time_us=float(header["sample_time_us"]), **fields)
    )


def image_to_version_2(image: Image, losses: Losses) -> Any:
    """A stream item."""
    header = image.header
    kind = mrd.ImageType(int(header["image_type"]))
    if kind not in list(mrd.ImageType):
        losses.note(f"images: MRD 2 has no name for image_type {kind.value}; the number is kept")
    names = ("measurement_uid", "acquisition_time_stamp", *_IMAGE_NUMBERS)
    fields: dict[str, Any] = {name: int(header[name]) for name in names}
    fields |= {theirs: np.array(header[ours], np.float32) for ours, theirs in _IMAGE_VECTORS.items()}
    head = mrd.ImageHeader(
        flags=mrd.ImageFlags(int(header["flags"])),
        image_type=kind,
        physiology_time_stamp=_integers(header["physiology_time_stamp"]),
        user_int=_integers(header["user_int"]),
        user_float=header["user_float"].tolist(),
        **fields,
    )
    meta: Any = {name: [mrd.ImageMetaValue.String(value) for value in values] for name, values in image.meta.items()}
    data_type = ImageDataType(int(header["data_type"]))
    pixels = np.ascontiguousarray(image.pixels, data_type.dtype)
    return _ITEMS[data_type](mrd.Image(head=head, data=pixels, meta=meta))


def _integers(values: NDArray[Any]) -> list[int]:
    return [int(value) for value in values]


# ---- version 2 to version 1


def readout_to_version_1(acquisition: mrd.Acquisition, losses: Losses) -> Acquisitions:
    """A readout.

    Raises:
        ConversionError: more samples, channels or lines than version 1 can count, or a trajectory of another length.
    """
    head = acquisition.head
    n_channels, n_samples = acquisition.data.shape
    headers = np.zeros(1, ACQUISITION_HEADER)
    header = headers[0]
    header["version"] = 1
    header["flags"] = head.flags.value
    for name in ("measurement_uid", "scan_counter", "acquisition_time_stamp"):
        header[name] = getattr(head, name) or 0
    header["number_of_samples"] = _small(n_samples, "samples of a readout")
    header["available_channels"] = header["active_channels"] = _small(n_channels, "channels")
    header["channel_mask"] = _channel_mask(head.channel_order, n_channels, losses)
    for name in ("discard_pre", "discard_post", "encoding_space_ref"):
        header[name] = _small(getattr(head, name) or 0, name)
    if head.center_sample is None:
        losses.note("readouts: center_sample is absent; the middle of the samples was put there")
    center = n_samples // 2 if head.center_sample is None else head.center_sample
    header["center_sample"] = _small(center, "center_sample")
    header["sample_time_us"] = head.sample_time_us or 0
    for name in _VECTORS:
        header[name] = getattr(head, name)
    for name in COUNTERS:
        header["idx"][name] = _small(getattr(head.idx, name) or 0, name)
    user = [_small(value, "a user counter") for value in head.idx.user]
    header["idx"]["user"] = _first(user, 8, "readouts: user counters", losses)
    header["physiology_time_stamp"] = _first(
        head.physiology_time_stamp, 3, "readouts: physiology time stamps", losses
    )  # fmt: skip
    header["user_int"] = _first(head.user_int, 8, "readouts: user_int", losses)
    header["user_float"] = _first(head.user_float, 8, "readouts: user_float", losses)
    samples = np.ascontiguousarray(acquisition.data, np.complex64)[None]
    track = acquisition.trajectory
    if track.shape[0] == 0 or (track.size == 0 and n_samples):
        return Acquisitions.from_arrays(headers, samples)
    if track.shape[1] != n_samples:
        raise ConversionError(f"a readout of {n_samples} samples has a trajectory of {track.shape[1]}")
    header["trajectory_dimensions"] = _small(track.shape[0], "dimensions of a trajectory")
    return Acquisitions.from_arrays(headers, samples, np.ascontiguousarray(track.T, np.float32)[None])


def _channel_mask(order: list[int], n_channels: int, losses: Losses) -> NDArray[np.uint64]:
    bits = np.zeros(_MASK_BITS, np.uint8)
    if order:
        if len(order) == n_channels and order == sorted(set(order)) and order[-1] < _MASK_BITS:
            bits[order] = 1
        else:
            losses.note("readouts: MRD 1 cannot hold this channel_order; left out")
    return np.packbits(bits, bitorder="little").view("<u8")


def waveform_to_version_1(waveform: mrd.Waveform[Any]) -> Waveform:
    """A waveform.

    Raises:
        ConversionError: more channels or samples than version 1 can count.
    """
    header: NDArray[np.void] = np.zeros((), WAVEFORM_HEADER)
    header["version"] = 1
    header["channels"] = _small(waveform.data.shape[0], "channels of a waveform")
    header["number_of_samples"] = _small(waveform.data.shape[1], "samples of a waveform")
    header["waveform_id"] = _small(waveform.waveform_id, "waveform_id")
    for name in ("flags", "measurement_uid", "scan_counter", "time_stamp", "sample_time_us"):
        header[name] = getattr(waveform, name)
    return Waveform(header, np.ascontiguousarray(waveform.data, "<u4"))


def image_to_version_1(image: mrd.Image[Any], losses: Losses) -> Image:
    """An image.

    Raises:
        ConversionError: more pixels or larger counters than version 1 can count.
    """
    head = image.head
    header: NDArray[np.void] = np.zeros((), IMAGE_HEADER)
    header["version"] = 1
    data_type = next(kind for kind in ImageDataType if kind.dtype == image.data.dtype)
    header["data_type"] = data_type
    header["flags"] = head.flags.value
    header["image_type"] = _small(head.image_type.value, "image_type")
    header["channels"] = _small(image.data.shape[0], "channels of an image")
    header["matrix_size"] = [_small(size, "pixels along an axis") for size in image.data.shape[:0:-1]]
    for name in ("measurement_uid", "acquisition_time_stamp"):
        header[name] = getattr(head, name) or 0
    for name in _IMAGE_NUMBERS:
        header[name] = _small(getattr(head, name) or 0, name)
    for ours, theirs in _IMAGE_VECTORS.items():
        header[ours] = getattr(head, theirs)
    header["physiology_time_stamp"] = _first(head.physiology_time_stamp, 3, "images: physiology time stamps", losses)
    header["user_int"] = _first(head.user_int, 8, "images: user_int", losses)
    header["user_float"] = _first(head.user_float, 8, "images: user_float", losses)
    meta: Meta = {}
    for name, cases in image.meta.items():
        values: list[Any] = [cast("Any", case).value for case in cases]
        if any(not isinstance(value, str) for value in values):
            losses.note("images: numbers among the attributes became texts, all that MRD 1 has")
        if name and values:
            meta[name] = [str(value) for value in values]
        else:
            losses.note("images: MRD 1 cannot hold an attribute without a name or value; left out")
    return Image(header, np.ascontiguousarray(image.data, data_type.dtype), meta)


def _small(value: int, what: str) -> int:
    if not 0 <= value <= _LARGEST:
        raise ConversionError(f"{what}: MRD 1 counts to {_LARGEST}, found {value}")
    return value


def _first(values: list[Any], n: int, what: str, losses: Losses) -> list[Any]:
    """Exactly `n` values, with zeros for those that are absent."""
    if len(values) > n:
        losses.note(f"{what}: MRD 1 holds {n}; the others are left out")
    return [*values[:n], *[0] * (n - len(values))]
