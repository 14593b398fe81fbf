"""What Gadgetron has gathered becomes readouts again, so that one assembly places everything (torch-free).

Buckets hold readouts, some of them twice. Recon data hold k-space that Gadgetron's BucketToBuffer has placed; each line
that was measured becomes the readout that it is, at the counters of its row, with the centre of k-space where the
sampling description puts it. Where upstream gadgets have removed the readout oversampling the scan header still
describes it; `without_oversampling` gives the header that fits.

Source: Gadgetron `gadgets/mri_core/BucketToBufferGadget.cpp`, `RemoveROOversamplingGadget.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import AssemblyError
from pipelines.gadgetron import Bucket, ReconBuffer, ReconData
from pipelines.mrd import Acquisitions
from pipelines.scan_header import CalibrationMode, Encoding, ScanHeader, Space, TrajectoryType

_NOWHERE = 65_535
"""Counter of a row outside the matrix: assembly counts such readouts and leaves them out."""

_LEAST_RATIO = 1.01


# ---- readout oversampling


def oversampling(scan: ScanHeader) -> float:
    """Ratio of encoded to reconstructed field of view along the readout of encoding space 0, as Gadgetron takes it."""
    encoding = scan.encodings[0]
    encoded_mm, recon_mm = encoding.encoded.field_of_view_mm[0], encoding.recon.field_of_view_mm[0]
    return encoded_mm / recon_mm if encoded_mm > 0 and recon_mm > 0 else 1.0


def is_oversampling_removed(scan: ScanHeader, encoding: int, n_samples: int) -> bool:
    """Whether a readout of this length shows that oversampling was removed before it came here.

    It has at most the samples that then are left. A readout that short with its oversampling still in would have
    measured less than half of k-space, and not its centre. Lines of non-Cartesian scans have no such length.
    """
    if encoding >= len(scan.encodings) or oversampling(scan) < _LEAST_RATIO:
        return False
    space = scan.encodings[encoding]
    is_line = space.trajectory in (TrajectoryType.CARTESIAN, TrajectoryType.EPI)
    return is_line and n_samples <= round(space.encoded.matrix[0] / oversampling(scan))


def without_oversampling(scan: ScanHeader) -> ScanHeader:
    """The header as it would be for readouts whose oversampling has been removed: all encoding spaces, one ratio."""
    ratio = oversampling(scan)

    def cropped(encoding: Encoding) -> Encoding:
        (x, *rest), (x_mm, *rest_mm) = encoding.encoded.matrix, encoding.encoded.field_of_view_mm
        space = Space((max(1, round(x / ratio)), *rest), (x_mm / ratio, *rest_mm))  # type: ignore[arg-type]
        return replace(encoding, encoded=space)

    return replace(scan, encodings=tuple(cropped(encoding) for encoding in scan.encodings))


# ---- buckets


def bucket_readouts(bucket: Bucket) -> Iterator[Acquisitions]:
    """The readouts of a bucket, each once: calibration that is not image as well, then the image."""
    in_data = {header.tobytes() for run in bucket.data for header in run.headers}
    for run in bucket.reference:
        is_new = np.array([header.tobytes() not in in_data for header in run.headers], np.bool_)
        if is_new.any():
            yield fitted(run if is_new.all() else _part(run, is_new))
    for run in bucket.data:
        yield fitted(run)


def _part(run: Acquisitions, wanted: NDArray[np.bool_]) -> Acquisitions:
    track = None if run.trajectory is None else run.trajectory[wanted]
    return Acquisitions(run.headers[wanted], run.samples[wanted], track)


def fitted(run: Acquisitions) -> Acquisitions:
    """The run with a trajectory of as many samples as its readouts have.

    Gadgetron removes oversampling by cropping the image of a readout: fewer samples with the same extent in k-space.
    It leaves the trajectory as it was, so the positions of the samples lie evenly spread over it, centre on centre.
    """
    dimensions = int(run.headers["trajectory_dimensions"][0]) if len(run) else 0
    if run.trajectory is None or not dimensions or not run.n_samples:
        return run
    track = np.ascontiguousarray(run.trajectory).view(np.float32).reshape(len(run), -1, dimensions)
    n = track.shape[1]
    if n == run.n_samples:
        return run
    at = (np.arange(run.n_samples) - run.n_samples // 2) * (n / run.n_samples) + n // 2
    low = np.clip(np.floor(at).astype(np.intp), 0, n - 1)
    high = np.clip(low + 1, 0, n - 1)
    part = (at - low).astype(np.float32)[:, None]
    found = np.ascontiguousarray(track[:, low] * (1 - part) + track[:, high] * part, np.float32)
    return Acquisitions(run.headers, run.samples, found.view(np.uint8).reshape(len(run), -1))


# ---- recon data


def recon_readouts(recon: ReconData, scan: ScanHeader) -> Iterator[Acquisitions]:
    """The lines of recon data as readouts, each once: calibration that is not image as well, then the image.

    Args:
        recon: as read; nothing of it is kept, but what is yielded views it.
        scan: the header that fits the data.

    Raises:
        AssemblyError: arrays of a buffer contradict each other, or a line is of an encoding space that does not exist.
    """
    for bit in recon.bits:
        in_data = {header.tobytes() for header in bit.data.headers.reshape(-1)}
        if bit.reference is not None:
            yield from _lines(bit.reference, scan, in_data, is_reference=True)
        yield from _lines(bit.data, scan, set(), is_reference=False)


def _lines(buffer: ReconBuffer, scan: ScanHeader, known: set[bytes], *, is_reference: bool) -> Iterator[Acquisitions]:
    """Lines of a buffer whose headers are not known yet, one run for each (loc, s, n) and z."""
    if not buffer.data.size:
        return
    loc, s, n, n_coils, z, y, _ = buffer.data.shape
    if buffer.headers.shape != (loc, s, n, z, y):
        raise AssemblyError(
            f"recon data: expected headers of {(loc, s, n, z, y)} lines (loc, s, n, z, y), found {buffer.headers.shape}"
        )
    if buffer.trajectory is not None and buffer.trajectory.shape[:6] != (loc, s, n, z, y, buffer.data.shape[6]):
        raise AssemblyError(f"recon data: the trajectory has shape {buffer.trajectory.shape}, not that of the samples")
    for at in np.ndindex(loc, s, n):
        headers = _complete_headers(buffer, at)
        for plane in range(z):
            rows = np.flatnonzero(
                [header["number_of_samples"] > 0 and header.tobytes() not in known for header in headers[plane]]
            )
            if not rows.size:
                continue
            samples = np.moveaxis(buffer.data[at][:, plane], 0, 1)[_index(rows)]  # lines, coils, x: a view if evenly
            placed = _placed(headers[plane, rows], buffer, rows, plane, scan, is_reference=is_reference)
            placed["active_channels"] = n_coils
            track: NDArray[np.uint8] | None = None
            if buffer.trajectory is not None:
                placed["trajectory_dimensions"] = buffer.trajectory.shape[-1]
                values = np.ascontiguousarray(buffer.trajectory[at][plane][rows], np.float32)
                track = values.view(np.uint8).reshape(len(rows), -1)
            yield Acquisitions(placed, samples.view(np.uint8), track)


def _complete_headers(buffer: ReconBuffer, at: tuple[int, ...]) -> NDArray[np.void]:
    """Headers `(z, y)`; lines that a gadget has filled in without a header get that of the nearest line."""
    headers: NDArray[np.void] = buffer.headers[at].copy()
    is_there = headers["number_of_samples"] > 0
    if is_there.all() or not is_there.any():
        return headers
    missing = np.argwhere(~is_there)
    filled = missing[[bool(np.any(buffer.data[at][:, plane, row])) for plane, row in missing]]
    there = np.argwhere(is_there)
    for plane, row in filled:
        nearest = there[np.abs(there - (plane, row)).sum(1).argmin()]
        headers[plane, row] = headers[tuple(nearest)]
    return headers


def _placed(
    headers: NDArray[np.void],
    buffer: ReconBuffer,
    rows: NDArray[np.intp],
    plane: int,
    scan: ScanHeader,
    *,
    is_reference: bool,
) -> NDArray[np.void]:
    """Headers that describe the lines as they lie in the buffer: samples, discards, centre, phase-encoding counters."""
    headers = headers.copy()
    n_x = buffer.data.shape[6]
    limits = buffer.sampling["limits"]
    is_described = bool(limits["maximum"].any())
    before = {name: headers[name].astype(np.int64) for name in ("number_of_samples", "discard_pre", "discard_post")}
    center = headers["center_sample"].astype(np.int64)
    n_samples, pre, n_kept = before["number_of_samples"], before["discard_pre"], before["number_of_samples"].copy()
    n_kept -= pre + before["discard_post"]
    # As BucketToBuffer does: whole centred rows stay where they are, others have their centre on that of the row.
    is_whole = (n_samples == n_x) & (center == n_samples // 2)
    offset = np.where(is_whole, pre, int(limits["center"][0]) - center if is_described else n_x // 2 - center)
    # Anything else was cropped or resampled on the way; then the convention is all there is.
    is_usual = ((n_samples == n_x) | (n_kept == n_x)) & (offset >= 0) & (offset + n_kept <= n_x) & (n_kept > 0)
    headers["number_of_samples"] = n_x
    headers["discard_pre"] = np.where(is_usual, offset, 0)
    headers["discard_post"] = np.where(is_usual, n_x - offset - n_kept, 0)
    headers["center_sample"] = np.where(is_usual, offset + center - pre, n_x // 2)
    encoding = int(headers["encoding_space_ref"][0])
    if encoding >= len(scan.encodings):
        raise AssemblyError(f"encoding_space_ref {encoding}: the header has {len(scan.encodings)} encoding spaces")
    space = scan.encodings[encoding]
    is_on_grid = space.trajectory in (TrajectoryType.CARTESIAN, TrajectoryType.EPI) and (
        not is_reference or space.calibration_mode is CalibrationMode.EMBEDDED
    )
    if is_on_grid:  # other lines are numbered by their headers alone
        sizes = (buffer.data.shape[5], buffer.data.shape[4])
        for axis, name, row in ((1, "kspace_encode_step_1", rows), (2, "kspace_encode_step_2", np.array([plane]))):
            limit = space.limits.get(name)
            middle = limit.center if limit is not None else space.encoded.matrix[axis] // 2
            at = int(limits["center"][axis]) if is_described else sizes[axis - 1] // 2
            counter = row - at + middle
            headers["idx"][name] = np.where((counter >= 0) & (counter < _NOWHERE), counter, _NOWHERE)
    return headers


def _index(rows: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Something that selects these rows; a slice, where possible, makes a view."""
    if len(rows) == 1:
        return slice(int(rows[0]), int(rows[0]) + 1)
    step = int(rows[1] - rows[0])
    if (np.diff(rows) == step).all():
        return slice(int(rows[0]), int(rows[-1]) + 1, step)
    return rows
