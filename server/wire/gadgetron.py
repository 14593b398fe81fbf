"""Messages between Gadgetron and an external node as bytes: recon data (1023) and image arrays (1024).

    1023     list of (buffer, optional buffer)
    buffer   array c64, optional array f32, optional array f32, array of 340-byte headers, 56 bytes of sampling
    1024     array c64, array of 198-byte headers, list of (u64 n, n bytes), optional list of waveforms,
             optional array of 340-byte headers

Lists, arrays and optional parts: `walk.py`; buckets (1050): `buckets.py`. Source: Gadgetron `core/readers` and
`core/writers`. The package `gadgetron` writes the id 1026 before each waveform of an image array, and reads none
there; Gadgetron has none. Both are read, none is written.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.gadgetron import SAMPLING_DESCRIPTION, ImageArray, ReconBit, ReconBuffer, ReconData
from pipelines.mrd import ACQUISITION_HEADER, IMAGE_HEADER, WAVEFORM_HEADER
from server.errors import LimitError, ProtocolError
from server.wire.messages import Buffers, MessageId, WireLimits
from server.wire.walk import ID_BYTES, Cursor, Place, Steps, view
from server.wire.waveforms import body_size, read_waveform, waveform_parts

MAX_BITS: Final = 64
"""Encoding spaces of one message; as many as a scan header may have."""

_DATA_RANK, _HEADER_RANK, _IMAGES_RANK = 7, 5, 3
_BufferPlaces = tuple[Place, Place | None, Place | None, Place, int]
"""Samples, trajectory, density, headers, sampling description."""


def walk_recon_data(limits: WireLimits) -> Steps:
    """Read recon data; arrays are views of the receive buffer."""
    cursor = Cursor("recon data", limits)
    n_bits = yield from cursor.count("encoding spaces", MAX_BITS)
    places: list[tuple[_BufferPlaces, _BufferPlaces | None]] = []
    for number in range(n_bits):
        data = yield from _buffer(cursor, f"buffer {number}")
        has_reference = yield from cursor.is_there(f"the calibration of buffer {number}")
        places.append((data, (yield from _buffer(cursor, f"calibration {number}")) if has_reference else None))
    message = yield cursor.at
    return ReconData(
        tuple(
            ReconBit(_recon_buffer(message, data), None if reference is None else _recon_buffer(message, reference))
            for data, reference in places
        )
    )


def _buffer(cursor: Cursor, field: str) -> Generator[int, memoryview, _BufferPlaces]:
    data = yield from cursor.array(8, _DATA_RANK, field)
    trajectory = yield from cursor.optional_array(4, _DATA_RANK, f"the trajectory of {field}")
    density = yield from cursor.optional_array(4, _DATA_RANK - 1, f"the density of {field}")
    headers = yield from cursor.array(ACQUISITION_HEADER.itemsize, _HEADER_RANK, f"the headers of {field}")
    return data, trajectory, density, headers, cursor.reserve(SAMPLING_DESCRIPTION.itemsize, f"the sampling of {field}")


def _recon_buffer(message: memoryview, places: _BufferPlaces) -> ReconBuffer:
    data, trajectory, density, headers, sampling = places
    return ReconBuffer(
        view(message, data, "<c8"),
        view(message, headers, ACQUISITION_HEADER),
        np.frombuffer(message, SAMPLING_DESCRIPTION, 1, sampling)[0:1].reshape(()).copy(),
        None if trajectory is None else view(message, trajectory, "<f4"),
        None if density is None else view(message, density, "<f4"),
    )


def walk_image_array(limits: WireLimits) -> Steps:
    """Read an image array, which owns its memory."""
    cursor = Cursor("an image array", limits)
    data = yield from cursor.array(8, _DATA_RANK, "pixels")
    headers = yield from cursor.array(IMAGE_HEADER.itemsize, _IMAGES_RANK, "image headers")
    n_meta = yield from cursor.count("attributes", limits.items)
    meta: list[tuple[int, int]] = []
    for _ in range(n_meta):
        (length,) = yield from cursor.numbers(1, "attributes")
        if length > limits.attribute_bytes:
            raise LimitError(
                f"the peer announced image attributes of {length} bytes; the limit is {limits.attribute_bytes}"
            )
        meta.append((cursor.reserve(length, "attributes"), length))
    waveforms: list[tuple[int, int]] | None = None
    if (yield from cursor.is_there("waveforms")):
        waveforms = []
        for _ in range((yield from cursor.count("waveforms", limits.items))):
            waveforms.append((yield from _waveform(cursor)))
    acquisitions = yield from cursor.optional_array(ACQUISITION_HEADER.itemsize, _HEADER_RANK, "acquisition headers")
    message = yield cursor.at
    # Copied: images are kept and handed on, long after the receive buffer holds something else.
    return ImageArray(
        view(message, data, "<c8").copy(),
        view(message, headers, IMAGE_HEADER).copy(),
        tuple(bytes(message[start : start + length]) for start, length in meta),
        None if waveforms is None else tuple(read_waveform(message, *place) for place in waveforms),
        None if acquisitions is None else view(message, acquisitions, ACQUISITION_HEADER).copy(),
    )


def _waveform(cursor: Cursor) -> Generator[int, memoryview, tuple[int, int]]:
    """Where header and samples of a waveform lie; an id before it is passed over."""
    start = cursor.reserve(ID_BYTES, "waveforms")
    message = yield cursor.at
    # Where there is no id this is the version of the waveform format, which is 1.
    if int.from_bytes(message[start : cursor.at], "little") == MessageId.WAVEFORM:
        start = cursor.reserve(WAVEFORM_HEADER.itemsize, "waveforms")
    else:
        cursor.reserve(WAVEFORM_HEADER.itemsize - ID_BYTES, "waveforms")
    message = yield cursor.at
    return start, cursor.reserve(body_size(message, start, cursor.limits), "waveforms")


def encode_recon_data(recon: ReconData) -> Buffers:
    """The bytes of recon data; large contiguous arrays are not copied.

    Raises:
        ProtocolError: an array has the wrong number of axes.
    """
    parts: Buffers = [MessageId.RECON_DATA.to_bytes(2, "little") + struct.pack("<Q", len(recon.bits))]
    for bit in recon.bits:
        parts += _encode_buffer(bit.data)
        parts.append(struct.pack("<B", bit.reference is not None))
        if bit.reference is not None:
            parts += _encode_buffer(bit.reference)
    return parts


def _encode_buffer(buffer: ReconBuffer) -> Buffers:
    sampling = np.zeros((), SAMPLING_DESCRIPTION)  # filled by name: the padding carries nothing
    for name in SAMPLING_DESCRIPTION.names or ():
        sampling[name] = buffer.sampling[name]
    return [
        *_encode_array(buffer.data, "<c8", _DATA_RANK),
        *_encode_optional(buffer.trajectory, "<f4", _DATA_RANK),
        *_encode_optional(buffer.density, "<f4", _DATA_RANK - 1),
        *_encode_array(buffer.headers, ACQUISITION_HEADER, _HEADER_RANK),
        sampling.tobytes(),
    ]


def encode_image_array(images: ImageArray) -> Buffers:
    """The bytes of an image array; large contiguous arrays are not copied.

    Raises:
        ProtocolError: an array has the wrong number of axes, or a waveform's header does not agree with its samples.
    """
    parts: Buffers = [
        MessageId.IMAGE_ARRAY.to_bytes(2, "little"),
        *_encode_array(images.data, "<c8", _DATA_RANK),
        *_encode_array(images.headers, IMAGE_HEADER, _IMAGES_RANK),
        struct.pack("<Q", len(images.meta)) + b"".join(struct.pack("<Q", len(xml)) + xml for xml in images.meta),
    ]
    if images.waveforms is None:
        parts.append(b"\0")
    else:
        bodies = [b"".join(waveform_parts(waveform)) for waveform in images.waveforms]
        parts.append(struct.pack("<BQ", 1, len(bodies)) + b"".join(bodies))
    return [*parts, *_encode_optional(images.acquisition_headers, ACQUISITION_HEADER, _HEADER_RANK)]


def _encode_optional(array: NDArray[Any] | None, dtype: Any, rank: int) -> Buffers:
    return [b"\0"] if array is None else [b"\1", *_encode_array(array, dtype, rank)]


def _encode_array(array: NDArray[Any], dtype: Any, rank: int) -> Buffers:
    if array.ndim != rank:
        raise ProtocolError(f"we may not send an array of {array.ndim} axes where {rank} belong", kind="bad_length")
    head = struct.pack(f"<{rank + 1}Q", rank, *array.shape[::-1])
    if not array.size:
        return [head]
    return [head, np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data]
