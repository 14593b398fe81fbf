"""What real streams contain besides the lines of an image; each function takes a scan and gives another one.

What they add is drawn from the scan's seed and their own name, so the same scan always gives the same bytes. Headers
keep their order of arrival: `scan_counter` is renewed. The truth stays that of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import NEVER_IMAGING, AcquisitionFlag, Acquisitions, flagged
from pipelines.phantom import draw_noise
from pipelines.scan_header import Limit, Space
from pipelines.simulated_header import EncodingContent, HeaderContent
from pipelines.simulation.readouts import centred_fft
from pipelines.simulation.scan import SimulatedScan

GARBAGE: Final = 1e6
"""Magnitude of samples that must never reach an image, in the object's units: one of them would drown everything."""

LAST_FLAGS: Final = sum(1 << (flag - 1) for flag in range(2, 19, 2)) | AcquisitionFlag.LAST_IN_MEASUREMENT.mask
"""LAST_IN_* of every counter, and LAST_IN_MEASUREMENT."""


def mix_in(scan: SimulatedScan, kinds: Sequence[AcquisitionFlag] = NEVER_IMAGING, *, every: int = 5) -> SimulatedScan:
    """Put a readout of one of the kinds, full of garbage, before every `every`-th readout that is no noise.

    Their counters are those of the readout behind them, so that only the flag tells them apart. Half of them are a
    quarter shorter.
    """
    rng = _rng(scan, 11)
    batches: list[Acquisitions] = []
    number = 0
    for batch in scan.batches:
        if flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all():
            batches.append(batch)
            continue
        for start in range(0, len(batch), every):
            flag = kinds[number % len(kinds)]
            n_samples = batch.n_samples if number % 2 == 0 else max(batch.n_samples * 3 // 4, 1)
            headers = batch.headers[start : start + 1].copy()
            headers["flags"] = flag.mask | (AcquisitionFlag.LAST_IN_SLICE.mask if number % 3 == 0 else 0)
            headers["number_of_samples"], headers["center_sample"] = n_samples, n_samples // 2
            headers["discard_pre"] = headers["discard_post"] = headers["trajectory_dimensions"] = 0
            batches.append(Acquisitions.from_arrays(headers, _garbage((1, batch.n_coils, n_samples), rng)))
            batches.append(_part(batch, slice(start, start + every)))
            number += 1
    return _renumbered(replace(scan, batches=batches))


def with_discards(scan: SimulatedScan, before: int, after: int) -> SimulatedScan:
    """Lengthen image and calibration readouts by samples to be discarded, which hold garbage; in the order of time."""
    rng = _rng(scan, 12)
    batches: list[Acquisitions] = []
    for batch in scan.batches:
        if flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all():
            batches.append(batch)
            continue
        samples = batch.complex_samples()
        ends = [_garbage((len(batch), batch.n_coils, n), rng) for n in (before, after)]
        headers = batch.headers.copy()
        headers["discard_pre"] += before
        headers["discard_post"] += after
        headers["center_sample"] += before
        headers["number_of_samples"] += before + after
        trajectory = _trajectory(batch)
        if trajectory is not None:
            trajectory = np.pad(trajectory, ((0, 0), (before, after), (0, 0)), mode="edge")
        batches.append(Acquisitions.from_arrays(headers, np.concatenate([ends[0], samples, ends[1]], -1), trajectory))
    return replace(scan, batches=batches)


def without_last_flags(scan: SimulatedScan) -> SimulatedScan:
    """Take every LAST flag away."""
    return _with_flags(scan, lambda headers: headers["flags"] & ~np.uint64(LAST_FLAGS))


def with_early_last_flags(scan: SimulatedScan, lines: int) -> SimulatedScan:
    """Move the LAST flags of image readouts `lines` readouts of the same slice and frame forward: lines come after."""
    headers = np.concatenate([batch.headers for batch in scan.batches])
    flags = headers["flags"].copy()
    keys = np.stack([headers["idx"][name].astype(np.int64) for name in _GROUP], axis=1)
    for at in np.flatnonzero(headers["flags"] & np.uint64(LAST_FLAGS)):
        same = np.flatnonzero((keys[:at] == keys[at]).all(axis=1) & ~flagged(headers[:at], *_NOT_IMAGE))
        if len(same) >= lines:
            flags[same[-lines]] |= flags[at] & np.uint64(LAST_FLAGS)
        flags[at] &= ~np.uint64(LAST_FLAGS)
    taken = iter(flags.tolist())
    return _with_flags(scan, lambda own: np.array([next(taken) for _ in range(len(own))], np.uint64))


def cut_short(scan: SimulatedScan, n_readouts: int) -> SimulatedScan:
    """Leave out the last readouts, as a scan that is stopped does."""
    kept = scan.n_readouts - n_readouts
    batches: list[Acquisitions] = []
    for batch in scan.batches:
        if kept > 0:
            batches.append(_part(batch, slice(0, kept)))
        kept -= len(batch)
    return replace(scan, batches=batches)


def repeated_late(scan: SimulatedScan, n_readouts: int) -> SimulatedScan:
    """Send the first image readouts once more after everything else, filled with garbage."""
    rng = _rng(scan, 13)
    part = _first_image_lines(scan, n_readouts)
    headers = part.headers.copy()
    headers["flags"] &= ~np.uint64(LAST_FLAGS)
    late = Acquisitions.from_arrays(
        headers, _garbage((len(part), part.n_coils, part.n_samples), rng), _trajectory(part)
    )
    return _renumbered(replace(scan, batches=[*scan.batches, late]))


def apart_from_noise(scan: SimulatedScan, noise_id: str = "simulated_1_1_0") -> tuple[SimulatedScan, SimulatedScan]:
    """The noise scan as a measurement of its own, and the scan without it, whose header says that it depends on it."""
    content = _content(scan)
    is_noise = [bool(flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all()) for batch in scan.batches]
    noise = replace(scan, batches=[b for b, is_it in zip(scan.batches, is_noise, strict=True) if is_it])
    image = replace(scan, batches=[b for b, is_it in zip(scan.batches, is_noise, strict=True) if not is_it])
    return (
        noise.with_content(replace(content, measurement_id=noise_id)),
        image.with_content(replace(content, dependencies={**content.dependencies, "Noise": noise_id})),
    )


def whitened(scan: SimulatedScan) -> SimulatedScan:
    """What a scanner sends that has whitened the data already: noise of unit variance, and no noise scan."""
    matrix = np.linalg.inv(np.linalg.cholesky(scan.truth.covariance)).astype(np.complex64)
    batches = [
        Acquisitions.from_arrays(batch.headers, np.matmul(matrix, batch.complex_samples()), _trajectory(batch))
        for batch in scan.batches
        if not flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all()
    ]
    return replace(scan, batches=batches)


def with_reference(
    scan: SimulatedScan, matrix: tuple[int, int], *, flags: Sequence[AcquisitionFlag] = (), is_first: bool = True
) -> SimulatedScan:
    """Measure the first frame at low resolution too, in an encoding space of its own behind the others.

    Args:
        scan: of slices.
        matrix: x and y of the reference, without oversampling, over the same field of view.
        flags: of its readouts, `IS_PARALLEL_CALIBRATION` for a reference of the coils; none for images of its own.
        is_first: whether it comes before the image lines, after the noise.
    """
    content, truth, rng = _content(scan), scan.truth, _rng(scan, 14)
    n_slices, _, n_y, n_x = truth.maps.shape
    n_low_x, n_low_y = matrix
    space = content.encodings[0]
    kspace = centred_fft(truth.image[0][:, None] * truth.maps)
    y, x = n_y // 2 - n_low_y // 2, n_x // 2 - n_low_x // 2
    # The transform of fewer points is smaller by the root of their ratio for the same pixel values.
    kspace = kspace[..., y : y + n_low_y, x : x + n_low_x] * np.float32(np.sqrt(n_low_x * n_low_y / (n_x * n_y)))
    pattern = _first_image_lines(scan, 1).headers
    batches: list[Acquisitions] = []
    for number in range(n_slices):
        headers = np.repeat(pattern, n_low_y)
        headers["flags"] = sum(flag.mask for flag in flags)
        headers["encoding_space_ref"] = len(content.encodings)
        headers["number_of_samples"], headers["center_sample"] = n_low_x, n_low_x // 2
        headers["trajectory_dimensions"] = headers["discard_pre"] = headers["discard_post"] = 0
        headers["idx"] = 0
        headers["idx"]["kspace_encode_step_1"], headers["idx"]["slice"] = np.arange(n_low_y), number
        headers["position"] = _position_of(scan, number)
        samples = kspace[number].swapaxes(0, 1)
        batches.append(
            Acquisitions.from_arrays(headers, samples + draw_noise(truth.covariance, (n_low_y, n_low_x), rng))
        )
    limits = {name: Limit(0, 0, 0) for name in space.limits}
    limits["kspace_encoding_step_1"] = Limit(0, n_low_y - 1, n_low_y // 2)
    limits["slice"] = Limit(0, n_slices - 1, 0)
    low = Space((n_low_x, n_low_y, 1), space.recon.field_of_view_mm)
    is_noise = [bool(flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).all()) for batch in scan.batches]
    at = sum(is_noise) if is_first else len(scan.batches)
    scan = replace(scan, batches=[*scan.batches[:at], *batches, *scan.batches[at:]])
    reference = EncodingContent(low, low, limits)
    return _renumbered(scan.with_content(content.with_encoding(reference, len(content.encodings))))


_GROUP: Final = ("slice", "contrast", "phase", "repetition", "set")
_NOT_IMAGE: Final = (
    AcquisitionFlag.IS_NOISE_MEASUREMENT,
    AcquisitionFlag.IS_PARALLEL_CALIBRATION,
    *NEVER_IMAGING,
)


def _rng(scan: SimulatedScan, salt: int) -> np.random.Generator:
    return np.random.default_rng([scan.protocol.seed, salt])


def _content(scan: SimulatedScan) -> HeaderContent:
    if scan.content is None:
        raise ValueError("the header of this scan was not written by the simulation")
    return scan.content


def _garbage(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.complex64]:
    return np.asarray(GARBAGE * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)), np.complex64)


def _trajectory(batch: Acquisitions) -> NDArray[np.float32] | None:
    if batch.trajectory is None:
        return None
    return np.ascontiguousarray(batch.trajectory).view(np.float32).reshape(len(batch), batch.n_samples, -1)


def _part(batch: Acquisitions, which: slice) -> Acquisitions:
    trajectory = None if batch.trajectory is None else batch.trajectory[which]
    return Acquisitions(batch.headers[which], batch.samples[which], trajectory)


def _first_image_lines(scan: SimulatedScan, n: int) -> Acquisitions:
    """At most `n` of the first readouts that are for the image alone."""
    for batch in scan.batches:
        rows = np.flatnonzero(~flagged(batch.headers, *_NOT_IMAGE))[:n]
        if len(rows):
            trajectory = None if batch.trajectory is None else batch.trajectory[rows]
            return Acquisitions(batch.headers[rows], batch.samples[rows], trajectory)
    raise ValueError("this scan has no readout for an image")


def _position_of(scan: SimulatedScan, number: int) -> NDArray[np.float32]:
    return next(
        np.asarray(batch.headers["position"][batch.headers["idx"]["slice"] == number][0])
        for batch in scan.batches
        if not flagged(batch.headers, AcquisitionFlag.IS_NOISE_MEASUREMENT).any()
        and (batch.headers["idx"]["slice"] == number).any()
    )


def _with_flags(scan: SimulatedScan, change: Callable[[NDArray[np.void]], NDArray[np.uint64]]) -> SimulatedScan:
    batches: list[Acquisitions] = []
    for batch in scan.batches:
        headers = batch.headers.copy()
        headers["flags"] = change(batch.headers)
        batches.append(replace(batch, headers=headers))
    return replace(scan, batches=batches)


def _renumbered(scan: SimulatedScan) -> SimulatedScan:
    """Count the readouts in the order in which they come."""
    batches: list[Acquisitions] = []
    at = 1
    for batch in scan.batches:
        headers = batch.headers.copy()
        headers["scan_counter"] = np.arange(at, at + len(batch))
        batches.append(replace(batch, headers=headers))
        at += len(batch)
    return replace(scan, batches=batches)
