"""Waveforms (id 1026) as bytes; the same without the id inside messages of Gadgetron's.

    u16 1026 | header, 40 bytes | u32 [channels][samples]

Source: MRD streaming protocol, "Waveform"; `waveform.h`. The header has natural alignment, unlike the others.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from pipelines.mrd import WAVEFORM_HEADER, Waveform
from server.errors import LimitError, ProtocolError
from server.wire.messages import Buffers, MessageId, WireLimits

_ID_BYTES: Final = 2
FIXED_BYTES: Final = _ID_BYTES + WAVEFORM_HEADER.itemsize
"""Bytes, with the id, after which the size of a waveform is known."""

_SHAPE: Final = struct.Struct("<28xHH8x")  # ..., samples, channels, ...


def body_size(data: memoryview, header_at: int, limits: WireLimits) -> int:
    """Bytes of the samples of the waveform whose header is there.

    Raises:
        LimitError: samples, channels or their product are over a limit.
    """
    samples, channels = _SHAPE.unpack_from(data, header_at)
    size: int = 4 * samples * channels
    if samples > limits.samples or channels > limits.channels or FIXED_BYTES + size > limits.message_bytes:
        raise LimitError(
            f"the peer announced a waveform of {samples} samples and {channels} channels ({FIXED_BYTES + size} bytes); "
            f"the limits are {limits.samples}, {limits.channels} and {limits.message_bytes}"
        )
    return size


def waveform_size(data: memoryview, start: int, limits: WireLimits) -> int:
    """Bytes of the message at `start`; errors as in `body_size`."""
    return FIXED_BYTES + body_size(data, start + _ID_BYTES, limits)


def read_waveform(data: memoryview, header_at: int, samples_at: int) -> Waveform:
    """The waveform with its header and its samples at these places, on memory of its own."""
    samples, channels = _SHAPE.unpack_from(data, header_at)
    header = np.frombuffer(data, WAVEFORM_HEADER, 1, header_at)[0:1].reshape(()).copy()
    body = bytes(data[samples_at : samples_at + 4 * samples * channels])
    return Waveform(header, np.frombuffer(body, "<u4").reshape(channels, samples))


def decode_waveform(data: memoryview, start: int, size: int) -> Waveform:
    """The waveform of the message at `start`."""
    del size
    return read_waveform(data, start + _ID_BYTES, start + FIXED_BYTES)


def encode_waveform(waveform: Waveform) -> Buffers:
    """Id 1026; errors as in `waveform_parts`."""
    return [MessageId.WAVEFORM.to_bytes(2, "little") + b"".join(waveform_parts(waveform))]


def waveform_parts(waveform: Waveform) -> tuple[bytes, bytes]:
    """Header and samples as bytes.

    Raises:
        ProtocolError: the header does not agree with the samples.
    """
    header = np.zeros((), WAVEFORM_HEADER)  # filled by name, so that the padding does not carry old memory to the peer
    for name in WAVEFORM_HEADER.names or ():
        header[name] = waveform.header[name]
    announced = (int(header["channels"]), int(header["number_of_samples"]))
    if waveform.samples.shape != announced:
        raise ProtocolError(
            f"we may not send waveform samples of shape {waveform.samples.shape} as channels, samples = {announced}",
            kind="bad_length",
        )
    return header.tobytes(), np.ascontiguousarray(waveform.samples, "<u4").tobytes()
