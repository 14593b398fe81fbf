"""Readouts (id 1008) as bytes: runs of equal shape are found by one vectorised comparison and viewed in place.

    u16 1008 | header, 340 bytes | f32[samples][dimensions] trajectory | c64[channels][samples]

Source: MRD streaming protocol, "Acquisition"; `ismrmrd.h`. One run is one event: a readout costs no Python object of
its own.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions, flag_names
from server.errors import LimitError, ProtocolError
from server.wire.messages import Buffers, MessageId, WireLimits

HEADER_BYTES: Final = 2 + ACQUISITION_HEADER.itemsize
"""Id and header; trajectory and samples follow."""

_FIXED: Final = struct.Struct(
    "<HHQ24xHHH136xH"
)  # id, version, flags, ..., samples, available and active channels, ..., dimensions
FIXED_BYTES: Final = _FIXED.size
"""Bytes, with the id, after which the size of a readout is known."""

_COMPRESSION: Final = (
    AcquisitionFlag.COMPRESSION1.mask | AcquisitionFlag.COMPRESSION2.mask
    | AcquisitionFlag.COMPRESSION3.mask | AcquisitionFlag.COMPRESSION4.mask
)  # fmt: skip

# The fields that tell whether a record continues a run. Flags 53 to 56 are the upper half of byte 6 of the flags.
_PROBE: Final = np.dtype(
    {
        "names": ["id", "compression", "samples", "channels", "dimensions"],
        "formats": ["<u2", "u1", "<u2", "<u2", "<u2"],
        "offsets": [0, 10, 36, 40, 178],
        "itemsize": FIXED_BYTES,
    }
)
_COMPRESSION_IN_BYTE_6: Final = 0xF0

_GATHER_BYTES: Final = 32 << 10
"""Samples of one readout from which on a gathered write is cheaper than putting readouts side by side first."""


def readout_size(data: memoryview, start: int, limits: WireLimits) -> int:
    """Bytes of the readout at `start`, from its first `FIXED_BYTES`.

    Raises:
        LimitError: samples, channels, trajectory dimensions or their product are over a limit.
        ProtocolError: the samples are compressed, so that their size is not what the header says.
    """
    _, _, flags, samples, _, channels, dimensions = _FIXED.unpack_from(data, start)
    if flags & _COMPRESSION:
        raise ProtocolError(
            f"the peer sent a compressed acquisition ({', '.join(flag_names(flags & _COMPRESSION))}), "
            "which is not supported",
            kind="bad_header",
            advice="Switch compression off: gadgetron_ismrmrd_client without -P, -T, -Z; FIRE CompressionPrecision 0.",
        )
    for name, value, limit in (
        ("number_of_samples", samples, limits.samples),
        ("active_channels", channels, limits.channels),
        ("trajectory_dimensions", dimensions, limits.trajectory_dimensions),
    ):
        if value > limit:
            raise LimitError(f"the peer announced an acquisition with {name} {value}; the limit is {limit}")
    body: int = 4 * samples * dimensions + 8 * samples * channels
    most = min(limits.acquisition_bytes, limits.message_bytes - HEADER_BYTES)
    if body > most:
        raise LimitError(
            f"the peer announced an acquisition of {body} bytes ({samples} samples, {channels} channels, "
            f"{dimensions} trajectory dimensions); the limit is {most}"
        )
    return HEADER_BYTES + body


def decode_run(data: memoryview, start: int, end: int, stride: int, limits: WireLimits) -> Acquisitions:
    """View the readout at `start`, and those of the same shape that follow it completely, without copying.

    Args:
        data: the receive buffer.
        start: where the first readout begins, already checked by `readout_size`.
        end: end of the bytes received.
        stride: size of the first readout; the run takes `len(run) * stride` bytes.
        limits: `run_readouts` bounds the run.
    """
    _, _, _, samples, _, channels, dimensions = _FIXED.unpack_from(data, start)
    n = _run_length(data, start, min((end - start) // stride, limits.run_readouts), stride)
    behind_header = start + HEADER_BYTES
    trajectory_bytes = 4 * samples * dimensions
    headers = np.ndarray((n,), ACQUISITION_HEADER, data, start + 2, (stride,))
    shape = (n, channels, 8 * samples)
    behind = behind_header + trajectory_bytes
    # An array of no bytes may not lie at the very end of its buffer.
    values = np.ndarray(shape, np.uint8, data, behind if samples * channels else start, (stride, 8 * samples, 1))
    if not dimensions:
        return Acquisitions(headers, values)
    return Acquisitions(
        headers,
        values,
        np.ndarray((n, trajectory_bytes), np.uint8, data, behind_header if trajectory_bytes else start, (stride, 1)),
    )


def _run_length(data: memoryview, start: int, most: int, stride: int) -> int:
    """Readouts from `start` on, at most `most`, with the same shape as the first; looks in growing blocks.

    Growing, so that a stream that changes shape at every readout is not looked through again and again.
    """
    _, _, _, samples, _, channels, dimensions = _FIXED.unpack_from(data, start)
    if most == 1:
        return 1
    # The second alone and without arrays, for streams in which two shapes take turns.
    next_id, _, _, next_samples, _, next_channels, _ = _FIXED.unpack_from(data, start + stride)
    if (next_id, next_samples, next_channels) != (MessageId.ACQUISITION, samples, channels):
        return 1
    n, block = 1, 8
    while n < most:
        count = min(block, most - n)
        probe = np.ndarray((count,), _PROBE, data, start + n * stride, (stride,))
        continues = (
            (probe["id"] == MessageId.ACQUISITION)
            & (probe["samples"] == samples)
            & (probe["channels"] == channels)
            & (probe["dimensions"] == dimensions)
            & (probe["compression"] & _COMPRESSION_IN_BYTE_6 == 0)
        )
        if not continues.all():
            return n + int(continues.argmin())
        n += count
        block *= 8
    return n


def encode_run(batch: Acquisitions) -> Buffers:
    """The bytes of the readouts: small ones copied side by side into one block, large ones gathered without a copy.

    Raises:
        ProtocolError: the headers do not agree with the arrays, or say that the samples are compressed.
    """
    n = len(batch)
    if n == 0:
        return []
    dimensions = _check_consistent(batch)
    trajectory_bytes = 4 * batch.n_samples * dimensions
    sample_bytes = batch.n_coils * 8 * batch.n_samples
    gather = sample_bytes >= _GATHER_BYTES and batch.samples[0].flags.c_contiguous
    block = np.empty((n, HEADER_BYTES + trajectory_bytes + (0 if gather else sample_bytes)), np.uint8)
    block[:, :2] = np.frombuffer(MessageId.ACQUISITION.to_bytes(2, "little"), np.uint8)
    block[:, 2:HEADER_BYTES] = np.ascontiguousarray(batch.headers).view(np.uint8).reshape(n, -1)
    if batch.trajectory is not None:
        block[:, HEADER_BYTES : HEADER_BYTES + trajectory_bytes] = batch.trajectory
    if gather:
        return [part for i in range(n) for part in (block[i].data, batch.samples[i].reshape(-1).data)]
    # Filled through a shape that keeps coils apart, so that strided samples are copied once.
    block[:, HEADER_BYTES + trajectory_bytes :].reshape(batch.samples.shape)[...] = batch.samples
    return [block.reshape(-1).data]


def _check_consistent(batch: Acquisitions) -> int:
    """Trajectory dimensions of the batch, when its headers say what its arrays hold."""
    headers, n = batch.headers, len(batch)
    dimensions = int(headers["trajectory_dimensions"][0])
    trajectory_bytes = 0 if batch.trajectory is None else int(batch.trajectory.shape[1])
    wanted = {
        "number_of_samples": batch.n_samples,
        "active_channels": batch.n_coils,
        "trajectory_dimensions": dimensions,
    }
    for name, value in wanted.items():
        if not bool((headers[name] == value).all()):
            raise ProtocolError(
                f"we may not send acquisitions whose {name} is not {value} as in their arrays", kind="bad_length"
            )
    if len(batch.samples) != n or trajectory_bytes != 4 * batch.n_samples * dimensions:
        raise ProtocolError(
            f"we may not send {n} acquisitions with {len(batch.samples)} sets of samples "
            f"and {trajectory_bytes} bytes of trajectory each",
            kind="bad_length",
        )
    if bool((headers["flags"] & np.uint64(_COMPRESSION)).any()):
        raise ProtocolError("we may not send acquisitions flagged as compressed", kind="bad_header")
    return dimensions
