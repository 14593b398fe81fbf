"""From a plan to readouts: headers, samples of the encoded grid, noise; for every Cartesian kind of scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.phantom import draw_noise
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation.plan import Plan

READOUTS_PER_BATCH: Final = 128
TICK_MS: Final = 2.5
START_TICK: Final = 10 * 3600 * 1000 * 10 // 25
"""Ten in the morning, in ticks since midnight."""

MEASUREMENT_UID: Final = 20_261_121

Distortion = Callable[[NDArray[np.complex64], Plan], NDArray[np.complex64]]
"""Changes noise-free rows `(n, coils, x)` of the encoded grid, k rising, that belong to some rows of the plan: timing
and phase errors of a sequence."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in the scanner, on the image grid.

    Attributes:
        image: `(frames, slices, z, y, x)` complex64.
        maps: `(slices, coils, z, y, x)` complex64.
        covariance: of the noise of a raw sample, `(coils, coils)`.
        grid: z, y, x of the encoded grid.
    """

    image: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    covariance: NDArray[np.complex128]
    grid: tuple[int, int, int]

    def kspace(self, frame: int) -> NDArray[np.complex64]:
        """Noise-free k-space of one frame, `(slices, coils, z, y, x)` of the encoded grid."""
        # The image's centre n//2 has to land on the encoded grid's centre, for odd sizes too.
        first = [size // 2 - n // 2 for size, n in zip(self.grid, self.image.shape[2:], strict=True)]
        padding = [(at, size - n - at) for at, size, n in zip(first, self.grid, self.image.shape[2:], strict=True)]
        padded = np.pad(self.image[frame][:, None] * self.maps, [(0, 0), (0, 0), *padding])
        return centred_fft(padded, axes=(-3, -2, -1) if self.grid[0] > 1 else (-2, -1))


def centred_fft(image: NDArray[np.complex64], axes: tuple[int, ...] = (-2, -1)) -> NDArray[np.complex64]:
    """Orthonormal Fourier transform, by default over the last two axes, with the centre at n//2 on both sides."""
    kspace = np.fft.fftn(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho")
    return np.asarray(np.fft.fftshift(kspace, axes=axes), np.complex64)


def noise_scan(
    protocol: Protocol, covariance: NDArray[np.complex128], rng: np.random.Generator
) -> Iterator[Acquisitions]:
    """Noise readouts at their own dwell time, before everything else; see `pipelines.simulate` for their level."""
    n = protocol.noise_readouts
    if n == 0:
        return
    scale = protocol.noise_bandwidth * protocol.dwell_us / protocol.noise_dwell_us
    samples = draw_noise(covariance * scale, (n, protocol.noise_samples), rng)
    headers = np.zeros(n, ACQUISITION_HEADER)
    fill_common(headers, protocol, np.arange(n))
    headers["flags"] = AcquisitionFlag.IS_NOISE_MEASUREMENT.mask
    headers["number_of_samples"] = protocol.noise_samples
    headers["center_sample"] = protocol.noise_samples // 2
    headers["sample_time_us"] = protocol.noise_dwell_us
    yield Acquisitions.from_arrays(headers, samples)


def measure(
    scene: Scene,
    protocol: Protocol,
    plan: Plan,
    headers: NDArray[np.void],
    rng: np.random.Generator,
    distort: Distortion | None = None,
) -> Iterator[Acquisitions]:
    """The planned readouts, noise on each, cut into batches; a frame's k-space is held only while rows need it."""
    last_use = {int(frame): int(np.flatnonzero(plan["frame"] == frame)[-1]) for frame in np.unique(plan["frame"])}
    held: dict[int, NDArray[np.complex64]] = {}
    n_x = scene.grid[2]
    skipped = protocol.skipped_samples(n_x // protocol.oversampling)
    columns = np.arange(skipped, n_x)
    is_same_order = bool((np.diff(plan["frame"].astype(np.int64)) >= 0).all())
    for start, stop in _parts(plan, cut_frames=is_same_order):
        part = plan[start:stop]
        samples = np.empty((len(part), scene.maps.shape[1], len(columns)), np.complex64)
        for frame in np.unique(part["frame"]).tolist():
            if frame not in held:
                held[frame] = scene.kspace(frame)
            kspace, rows = held[frame], part["frame"] == frame
            for is_reversed in (False, True):
                chosen = np.flatnonzero(rows & (part["is_reversed"] == is_reversed))
                # The echo comes as long after the start of the readout in both directions: sample j holds c - j
                # instead of j - c steps; n/2 steps either way are the same for an object on a grid of pixels.
                taken = (2 * (n_x // 2) - columns) % n_x if is_reversed else columns
                lines = part[chosen]
                full = kspace[lines["slice"], :, lines["partition"], lines["line"]]
                samples[chosen] = (full if distort is None else distort(full, lines))[..., taken]
            if last_use[frame] < stop:
                del held[frame]
        samples = samples + draw_noise(scene.covariance, (len(part), samples.shape[-1]), rng)
        yield Acquisitions.from_arrays(headers[start:stop], samples)


def _parts(plan: Plan, *, cut_frames: bool) -> Iterator[tuple[int, int]]:
    starts = [0]
    if cut_frames:
        starts += (np.flatnonzero(np.diff(plan["frame"].astype(np.int64))) + 1).tolist()
    for first, end in zip(starts, [*starts[1:], len(plan)], strict=True):
        for start in range(first, end, READOUTS_PER_BATCH):
            yield start, min(start + READOUTS_PER_BATCH, end)


def fill_common(headers: NDArray[np.void], protocol: Protocol, index: NDArray[np.integer]) -> None:
    """What all readouts share; time goes on by one repetition time a readout, of which `index` is the number."""
    headers["version"] = 1
    headers["measurement_uid"] = MEASUREMENT_UID
    headers["scan_counter"] = index + 1
    headers["acquisition_time_stamp"] = START_TICK + np.floor(index * protocol.repetition_time_ms / TICK_MS)
    headers["available_channels"] = headers["active_channels"] = protocol.n_coils
    for word in range(16):
        headers["channel_mask"][:, word] = (1 << min(max(protocol.n_coils - 64 * word, 0), 64)) - 1
    headers["read_dir"] = protocol.geometry.read_dir
    headers["phase_dir"] = protocol.geometry.phase_dir
    headers["slice_dir"] = protocol.geometry.slice_dir
    headers["position"] = protocol.geometry.position_mm
    headers["patient_table_position"] = protocol.table_position_mm
    for name, first in protocol.first_counters.items():
        headers["idx"][name] = first


def image_headers(
    plan: Plan,
    protocol: Protocol,
    shape: tuple[int, int, int, int],
    skipped: tuple[int, int],
    grid: tuple[int, int, int],
) -> NDArray[np.void]:
    """Headers of planned readouts.

    Args:
        plan: all of them, in order.
        protocol: what is measured.
        shape: frames, slices, y, x of the object; partitions of a volume are no slices.
        skipped: rows and planes that partial Fourier leaves out at the start: counters begin behind them.
        grid: z, y, x of the encoded grid.
    """
    n_frames, n_slices, _, n_x = shape
    headers = np.zeros(len(plan), ACQUISITION_HEADER)
    fill_common(headers, protocol, protocol.noise_readouts + np.arange(len(plan)))
    missing = protocol.skipped_samples(n_x)
    headers["flags"] = plan["flags"]
    headers["flags"][plan["is_reversed"]] |= AcquisitionFlag.IS_REVERSE.mask
    headers["number_of_samples"] = grid[2] - missing
    headers["center_sample"] = grid[2] // 2 - missing
    headers["sample_time_us"] = protocol.dwell_us
    counters = headers["idx"]
    counters["kspace_encode_step_1"] = plan["line"].astype(np.int64) - skipped[0] + plan["offset"]
    counters["kspace_encode_step_2"] = plan["partition"] - skipped[1]
    for name in ("average", "slice", "segment"):
        counters[name] += plan[name]
    for counter, values in protocol.counters_of_frames(n_frames).items():
        counters[counter.value] += values[plan["frame"]].astype(np.uint16)
        if counter is FrameCounter.PHASE:
            # Cardiac phases of 40 ms: time since the trigger.
            headers["physiology_time_stamp"][:, 0] = values[plan["frame"]] * int(40 / TICK_MS)
    # Siemens converters leave the counter of the centre line in user[5], and of the centre partition in user[6].
    counters["user"][:, 5] = grid[1] // 2 - skipped[0]
    counters["user"][:, 6] = grid[0] // 2 - skipped[1]
    pitch = protocol.slice_thickness_mm + protocol.slice_gap_mm
    offset = (plan["slice"].astype(np.float64) - (n_slices - 1) / 2) * pitch
    headers["position"] += (offset[:, None] * np.asarray(protocol.geometry.slice_dir)).astype(np.float32)
    return headers
