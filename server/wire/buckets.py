"""Buckets (id 1050) as bytes: readouts that a trigger of Gadgetron's closed.

    u16 1050 | 13 x u64: image readouts {count, bytes of headers, of samples, of trajectories}, calibration readouts
    {the same}, bytes of statistics of both, waveforms {count, bytes of headers, of samples}
    | for image and calibration: headers, trajectories, samples, statistics | headers of waveforms, samples of waveforms

Source: Gadgetron `core/readers/AcquisitionBucketReader.cpp`. Its RemoveROOversampling crops readouts but not their
trajectories, so the headers promise fewer bytes of trajectory than there are; the byte counts at the head are right,
and are the ones that are followed. Samples lie side by side: a run of readouts of one shape is viewed without a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.gadgetron import STATISTICS, Bucket
from pipelines.mrd import ACQUISITION_HEADER, WAVEFORM_HEADER, AcquisitionFlag, Acquisitions, Waveform
from server.errors import LimitError, ProtocolError
from server.wire.messages import Buffers, MessageId, WireLimits
from server.wire.walk import Cursor, Steps, view
from server.wire.waveforms import body_size, read_waveform, waveform_parts

_U64: Final = struct.Struct("<Q")
_COMPRESSION: Final = np.uint64(sum(AcquisitionFlag[f"COMPRESSION{n}"].mask for n in (1, 2, 3, 4)))


def walk_bucket(limits: WireLimits) -> Steps:
    """Read a bucket; its size is known after the 13 numbers."""
    cursor = Cursor("a bucket", limits)
    meta = yield from cursor.numbers(13, "sizes")
    n_statistics = (meta[8], meta[9])
    n_waveforms, waveform_header_bytes, waveform_bytes = meta[10:]
    starts: list[tuple[int, int, int, int]] = []
    for (count, header_bytes, data_bytes, track_bytes), statistics_bytes, field in zip(
        (meta[:4], meta[4:8]), n_statistics, ("image readouts", "calibration readouts"), strict=True
    ):
        _check_bytes(cursor, field, count, header_bytes, ACQUISITION_HEADER.itemsize)
        headers = cursor.reserve(header_bytes, f"headers of {field}")
        tracks = cursor.reserve(track_bytes, f"trajectories of {field}")
        samples = cursor.reserve(data_bytes, f"samples of {field}")
        starts.append((headers, tracks, samples, cursor.reserve(statistics_bytes, f"statistics of {field}")))
    if n_waveforms > limits.items:
        raise LimitError(f"the peer announced a bucket with {n_waveforms} waveforms; the limit is {limits.items}")
    _check_bytes(cursor, "waveforms", n_waveforms, waveform_header_bytes, WAVEFORM_HEADER.itemsize)
    waveforms = cursor.reserve(waveform_header_bytes, "waveforms")
    cursor.reserve(waveform_bytes, "waveforms")
    message = yield cursor.at
    data = _bucket_runs(message, meta[:4], starts[0], limits)
    reference = _bucket_runs(message, meta[4:8], starts[1], limits)
    data_statistics, reference_statistics = (
        _statistics(message[at : at + n_bytes]) for (_, _, _, at), n_bytes in zip(starts, n_statistics, strict=True)
    )
    bodies = _bucket_waveforms(message, waveforms, n_waveforms, waveform_bytes, limits)
    return Bucket(data, reference, data_statistics, reference_statistics, bodies)


def _check_bytes(cursor: Cursor, field: str, count: int, n_bytes: int, each: int) -> None:
    if n_bytes != count * each:
        raise ProtocolError(
            f"the peer sent {cursor.what} that announces {count} {field} with {n_bytes} bytes of headers; they take "
            f"{count * each}",
            kind="bad_length",
        )


def _bucket_runs(
    message: memoryview, counts: tuple[int, ...], places: tuple[int, int, int, int], limits: WireLimits
) -> tuple[Acquisitions, ...]:
    """Readouts of one half of a bucket where they lie, cut where their shape changes."""
    count, _, data_bytes, track_bytes = counts
    headers_at, tracks_at, samples_at, _ = places
    if not count:
        return ()
    headers: NDArray[np.void] = np.ndarray((count,), ACQUISITION_HEADER, message, headers_at)
    if bool((headers["flags"] & _COMPRESSION).any()):
        raise ProtocolError(
            "the peer sent a bucket with compressed acquisitions, which are not supported", kind="bad_header"
        )
    shapes = np.stack(
        [headers[name] for name in ("number_of_samples", "active_channels", "trajectory_dimensions")], axis=1
    ).astype(np.int64)
    for column, most in enumerate((limits.samples, limits.channels, limits.trajectory_dimensions)):
        if shapes[:, column].max() > most:
            raise LimitError(
                "the peer sent a bucket whose readouts have up to {} samples, {} channels, {} trajectory dimensions; "
                "the limits are {}, {}, {}".format(
                    *shapes.max(0), limits.samples, limits.channels, limits.trajectory_dimensions
                )
            )
    sizes = 8 * shapes[:, 0] * shapes[:, 1]
    if int(sizes.sum()) != data_bytes:
        raise ProtocolError(
            f"the peer sent a bucket with {data_bytes} bytes of samples; its headers promise {int(sizes.sum())}",
            kind="bad_length",
        )
    tracks = _track_sizes(shapes, track_bytes)
    cuts = np.flatnonzero((shapes[1:] != shapes[:-1]).any(1)) + 1
    if len(cuts) >= limits.items:
        raise LimitError(f"the peer sent a bucket whose readouts change shape {len(cuts)} times")
    sample_starts = samples_at + np.concatenate([[0], np.cumsum(sizes)])
    track_starts = tracks_at + np.concatenate([[0], np.cumsum(tracks)])
    runs: list[Acquisitions] = []
    for first, stop in zip([0, *cuts.tolist()], [*cuts.tolist(), count], strict=True):
        n_samples, n_coils, _ = shapes[first].tolist()
        n = stop - first
        samples = view(message, (int(sample_starts[first]), (n, n_coils, 8 * n_samples)), np.uint8)
        track = view(message, (int(track_starts[first]), (n, int(tracks[first]))), np.uint8) if tracks[first] else None
        runs.append(Acquisitions(headers[first:stop], samples, track))
    return tuple(runs)


def _track_sizes(shapes: NDArray[np.int64], track_bytes: int) -> NDArray[np.int64]:
    """Bytes of trajectory of each readout: as the headers promise, or all longer by the same factor.

    Raises:
        ProtocolError: the bytes there are cannot be divided like that.
    """
    promised = 4 * shapes[:, 0] * shapes[:, 2]
    total = int(promised.sum())
    if total == track_bytes:
        return promised
    common = max(gcd(total, track_bytes), 1)
    parts, remainder = np.divmod(promised, max(total // common, 1))
    found = parts * (track_bytes // common)
    is_whole = total > 0 and not remainder.any() and not (found % np.maximum(4 * shapes[:, 2], 1)).any()
    if not is_whole or track_bytes < total:
        raise ProtocolError(
            f"the peer sent a bucket with {track_bytes} bytes of trajectories; its headers promise {total}",
            kind="bad_length",
        )
    return found


def _statistics(block: memoryview) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    """For each encoding space the values of each counter."""
    at = 0

    def count(each: int) -> int:
        nonlocal at
        number = _U64.unpack_from(block, at)[0] if len(block) - at >= _U64.size else -1
        at += _U64.size
        if not 0 <= number <= (len(block) - at) // each:
            raise ProtocolError(
                f"the peer sent a bucket whose {len(block)} bytes of statistics do not hold what they announce",
                kind="bad_length",
            )
        return int(number)

    if not len(block):
        return ()
    spaces: list[dict[str, tuple[int, ...]]] = []
    for _ in range(count(len(STATISTICS) * _U64.size)):
        values: dict[str, tuple[int, ...]] = {}
        for name in STATISTICS:
            n = count(2)
            values[name] = struct.unpack_from(f"<{n}H", block, at)
            at += 2 * n
        spaces.append(values)
    return tuple(spaces)


def _bucket_waveforms(
    message: memoryview, start: int, count: int, n_bytes: int, limits: WireLimits
) -> tuple[Waveform, ...]:
    """Waveforms of a bucket: all headers, then all samples."""
    at = start + count * WAVEFORM_HEADER.itemsize
    stop = at + n_bytes
    waveforms: list[Waveform] = []
    for number in range(count):
        header_at = start + number * WAVEFORM_HEADER.itemsize
        size = body_size(message, header_at, limits)
        if at + size > stop:
            break
        waveforms.append(read_waveform(message, header_at, at))
        at += size
    if at != stop or len(waveforms) != count:
        raise ProtocolError(
            f"the peer sent a bucket whose {count} waveforms have {n_bytes} bytes of samples; their headers promise "
            "another number",
            kind="bad_length",
        )
    return tuple(waveforms)


def encode_bucket(bucket: Bucket) -> Buffers:
    """The bytes of a bucket.

    Raises:
        ProtocolError: headers do not agree with samples.
    """
    halves = [_encode_runs(runs) for runs in (bucket.data, bucket.reference)]
    statistics = [_encode_statistics(spaces) for spaces in (bucket.data_statistics, bucket.reference_statistics)]
    waves = [waveform_parts(waveform) for waveform in bucket.waveforms]
    wave_headers, wave_samples = (b"".join(part) for part in (zip(*waves, strict=True) if waves else ((), ())))
    sizes = [number for headers, tracks, samples in halves for number in _sizes(headers, samples, tracks)]
    sizes += [len(block) for block in statistics]
    sizes += [len(bucket.waveforms), len(wave_headers), len(wave_samples)]
    parts: Buffers = [MessageId.BUCKET.to_bytes(2, "little") + struct.pack("<13Q", *sizes)]
    for (headers, tracks, samples), block in zip(halves, statistics, strict=True):
        parts += [*headers, *tracks, *samples, block]
    return [part for part in (*parts, wave_headers, wave_samples) if len(part)]


def _encode_runs(runs: Sequence[Acquisitions]) -> tuple[Buffers, Buffers, Buffers]:
    """Headers, trajectories and samples."""
    headers: Buffers = []
    tracks: Buffers = []
    samples: Buffers = []
    for run in runs:
        agrees = (run.headers["number_of_samples"] == run.n_samples) & (run.headers["active_channels"] == run.n_coils)
        if not bool(agrees.all()) or len(run.samples) != len(run.headers):
            raise ProtocolError(
                "we may not send a bucket whose headers do not agree with its samples", kind="bad_length"
            )
        headers.append(np.ascontiguousarray(run.headers).tobytes())
        samples.append(np.ascontiguousarray(run.samples).tobytes())
        if run.trajectory is not None:
            tracks.append(np.ascontiguousarray(run.trajectory).tobytes())
    return headers, tracks, samples


def _sizes(headers: Buffers, samples: Buffers, tracks: Buffers) -> tuple[int, int, int, int]:
    header_bytes, sample_bytes, track_bytes = (sum(map(len, part)) for part in (headers, samples, tracks))
    return header_bytes // ACQUISITION_HEADER.itemsize, header_bytes, sample_bytes, track_bytes


def _encode_statistics(spaces: Sequence[Mapping[str, tuple[int, ...]]]) -> bytes:
    parts = [_U64.pack(len(spaces))]
    for space in spaces:
        for name in STATISTICS:
            values = sorted(set(space.get(name, ())))
            parts.append(struct.pack(f"<Q{len(values)}H", len(values), *values))
    return b"".join(parts)
