"""Simulate a scan: object, coils, sampling, noise -> header XML and acquisitions in the order a scanner sends them.

The object lies in the image grid; readout oversampling and phase oversampling surround it with empty field of view.
With the centred orthonormal Fourier transform F of the encoded grid, coil sensitivities c and image x a raw sample of
coil k is

    y_k = F(c_k x) + n_k,    E[n n^H] = C

Noise convention. C is the covariance of complex noise between coils of one raw readout sample at the imaging dwell time
(`Protocol.dwell_us`, oversampling included), white along the readout. The receiver's filter lowers the variance of the
noise scan by `noise_bandwidth` (relativeReceiverNoiseBandwidth), and its variance goes with the bandwidth, so

    C_noise = C * noise_bandwidth * dwell_us / noise_dwell_us.

Whitening with W = sqrt(noise_bandwidth * dwell_us / noise_dwell_us) * inverse(cholesky(C_noise)) therefore gives
E|n|^2 = 1 in every channel. Gadgetron's NoiseAdjust has another factor of sqrt(2): unit deviation in real and in
imaginary part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.phantom import birdcage_coils, draw_noise, noise_covariance, smooth_phase
from pipelines.scan_header import CalibrationMode, Limit, Space
from pipelines.simulated_header import HeaderContent, write_scan_header
from pipelines.simulated_protocol import FrameCounter, Pattern, Protocol, plan_frame

READOUTS_PER_BATCH = 128
_TICK_MS = 2.5
_START_TICK = 10 * 3600 * 1000 * 10 // 25
_MEASUREMENT_UID = 20_261_121


@dataclass(frozen=True, slots=True)
class Truth:
    """What was simulated.

    Attributes:
        image: `(frames, slices, y, x)` complex64: the object with its phase.
        maps: `(slices, coils, y, x)` complex64: sensitivities, root sum of squares 1.
        covariance: `(coils, coils)` complex128: C of the module's docstring.
        counts: `(frames, slices, lines)` float32: how often each row of the encoded grid was measured for the image,
            embedded
            calibration included.
    """

    image: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    covariance: NDArray[np.complex128]
    counts: NDArray[np.float32]

    def whitened_magnitude(self) -> NDArray[np.float32]:
        """What an ideal reconstruction of whitened data shows, `(frames, slices, y, x)`.

        Root sum of squares over coils of the whitened, noise-free, fully sampled coil images, in units of the noise of
        one
        coil: with W of the module's docstring, `|x| sqrt(sum_k |(W c)_k|^2)`. Without noise W is the identity.
        """
        if not np.any(self.covariance):
            return np.abs(self.image)
        whitening = np.linalg.inv(np.linalg.cholesky(self.covariance))
        whitened = np.einsum("dc,sc...->sd...", whitening, self.maps)
        return np.asarray(np.abs(self.image) * np.sqrt((np.abs(whitened) ** 2).sum(axis=1)), np.float32)


@dataclass(frozen=True, slots=True)
class SimulatedScan:
    """A scan as it would be sent: HEADER, then the batches, then CLOSE; and what is behind it."""

    header: bytes
    batches: list[Acquisitions]
    truth: Truth
    protocol: Protocol

    @property
    def n_readouts(self) -> int:
        """Readouts of all batches, noise readouts included."""
        return sum(len(batch) for batch in self.batches)


def simulate(
    anatomy: NDArray[np.floating],
    protocol: Protocol | None = None,
    *,
    maps: NDArray[np.complex64] | None = None,
    covariance: NDArray[np.complex128] | None = None,
) -> SimulatedScan:
    """Simulate a Cartesian two-dimensional scan of an object.

    Args:
        anatomy: `(y, x)`, `(slices, y, x)` or `(frames, slices, y, x)`: non-negative magnitude in any units.
        protocol: what is measured; the defaults of `Protocol` otherwise.
        maps: `(slices, coils, y, x)` instead of birdcage coils.
        covariance: `(coils, coils)` instead of one drawn from the protocol's noise level.

    Raises:
        ValueError: the object has another number of axes or is not finite, or maps or covariance do not fit it.
    """
    protocol = protocol or Protocol()
    magnitude = _as_frames(anatomy, protocol)
    n_frames, n_slices, n_y, n_x = magnitude.shape
    rng = np.random.default_rng(protocol.seed)
    if maps is None:
        pitch = 2 * (protocol.slice_thickness_mm + protocol.slice_gap_mm) / protocol.field_of_view_mm[1]
        offsets = (np.arange(n_slices) - (n_slices - 1) / 2) * pitch
        maps = np.stack([birdcage_coils(protocol.n_coils, (n_y, n_x), slice_offset=offset) for offset in offsets])
    if maps.shape != (n_slices, protocol.n_coils, n_y, n_x):
        raise ValueError(f"maps must have the shape {(n_slices, protocol.n_coils, n_y, n_x)}, not {maps.shape}")
    if covariance is None:
        covariance = noise_covariance(protocol.n_coils, protocol.noise_std, rng, correlation=protocol.noise_correlation)
    if covariance.shape != (protocol.n_coils, protocol.n_coils):
        raise ValueError(f"covariance must be {protocol.n_coils} x {protocol.n_coils}, not {covariance.shape}")
    phase = np.stack([smooth_phase((n_y, n_x), rng, strength=protocol.phase_std_rad) for _ in range(n_slices)])
    image = (magnitude * phase).astype(np.complex64)

    counts = np.zeros((n_frames, n_slices, protocol.encoded_lines(n_y)), np.float32)
    batches = list(_noise_scan(protocol, covariance, rng))
    first_readout = protocol.noise_readouts
    for frame in range(n_frames):
        plan = plan_frame(protocol, frame, n_slices, n_y)
        if frame == n_frames - 1 and protocol.order_flags:
            plan["flags"][-1] |= AcquisitionFlag.LAST_IN_MEASUREMENT.mask
        imaging = plan[~plan["is_separate"]]
        np.add.at(counts[frame], (imaging["slice"], imaging["line"]), 1)
        headers = _headers(plan, protocol, n_slices, (n_y, n_x), first_readout)
        batches.extend(_measure(image[frame], maps, plan, headers, protocol, covariance, rng))
        first_readout += len(plan)
    header = write_scan_header(_header_content(protocol, magnitude.shape))
    return SimulatedScan(header, batches, Truth(image, maps, covariance, counts), protocol)


def _as_frames(anatomy: NDArray[np.floating], protocol: Protocol) -> NDArray[np.float32]:
    """The object as `(frames, slices, y, x)`, repeated as the protocol asks."""
    if anatomy.ndim not in (2, 3, 4) or anatomy.size == 0:
        raise ValueError(
            f"an object has the axes y, x or slices, y, x or frames, slices, y, x; not the shape {anatomy.shape}"
        )
    magnitude = np.asarray(anatomy, np.float32).reshape((1,) * (4 - anatomy.ndim) + anatomy.shape)
    if not np.isfinite(magnitude).all():
        raise ValueError("the object holds values that are not finite")
    if protocol.repetitions > 1:
        if len(magnitude) > 1:
            raise ValueError(f"an object of {len(magnitude)} frames cannot be repeated; set repetitions to 1")
        magnitude = np.repeat(magnitude, protocol.repetitions, axis=0)
    return magnitude


def _noise_scan(
    protocol: Protocol, covariance: NDArray[np.complex128], rng: np.random.Generator
) -> Iterator[Acquisitions]:
    """Noise readouts at their own dwell time, before everything else."""
    n = protocol.noise_readouts
    if n == 0:
        return
    scale = protocol.noise_bandwidth * protocol.dwell_us / protocol.noise_dwell_us
    samples = draw_noise(covariance * scale, (n, protocol.noise_samples), rng)
    headers = np.zeros(n, ACQUISITION_HEADER)
    _fill_common(headers, protocol, 0)
    headers["flags"] = AcquisitionFlag.IS_NOISE_MEASUREMENT.mask
    headers["number_of_samples"] = protocol.noise_samples
    headers["center_sample"] = protocol.noise_samples // 2
    headers["sample_time_us"] = protocol.noise_dwell_us
    yield Acquisitions.from_arrays(headers, samples)


def _measure(
    image: NDArray[np.complex64],
    maps: NDArray[np.complex64],
    plan: NDArray[np.void],
    headers: NDArray[np.void],
    protocol: Protocol,
    covariance: NDArray[np.complex128],
    rng: np.random.Generator,
) -> Iterator[Acquisitions]:
    """The readouts of one frame: k-space of all slices, the planned lines of it, noise on each."""
    n_y, n_x = image.shape[-2:]
    pad_y = (protocol.encoded_lines(n_y) - n_y) // 2
    n_samples = n_x * protocol.oversampling
    # The image's centre n//2 has to land on the encoded grid's centre, for odd sizes too.
    first_x = n_samples // 2 - n_x // 2
    padding = ((0, 0), (0, 0), (pad_y, pad_y), (first_x, n_samples - n_x - first_x))
    kspace = centred_fft(np.pad(image[:, None] * maps, padding))
    first = protocol.skipped_samples(n_x)
    for start in range(0, len(plan), READOUTS_PER_BATCH):
        part = plan[start : start + READOUTS_PER_BATCH]
        samples = kspace[part["slice"], :, part["line"], first:]
        samples = samples + draw_noise(covariance, (len(part), samples.shape[-1]), rng)
        yield Acquisitions.from_arrays(headers[start : start + len(part)], samples)


def centred_fft(image: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Orthonormal Fourier transform over the last two axes with the centre at n//2 on both sides."""
    axes = (-2, -1)
    kspace = np.fft.fftn(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho")
    return np.asarray(np.fft.fftshift(kspace, axes=axes), np.complex64)


def _fill_common(headers: NDArray[np.void], protocol: Protocol, first_readout: int) -> None:
    """What noise and image readouts share; time goes on by one repetition time a readout."""
    index = np.arange(first_readout, first_readout + len(headers))
    headers["version"] = 1
    headers["measurement_uid"] = _MEASUREMENT_UID
    headers["scan_counter"] = index + 1
    headers["acquisition_time_stamp"] = _START_TICK + np.floor(index * protocol.repetition_time_ms / _TICK_MS)
    headers["available_channels"] = headers["active_channels"] = protocol.n_coils
    for word in range(16):
        headers["channel_mask"][:, word] = (1 << min(max(protocol.n_coils - 64 * word, 0), 64)) - 1
    headers["read_dir"] = protocol.geometry.read_dir
    headers["phase_dir"] = protocol.geometry.phase_dir
    headers["slice_dir"] = protocol.geometry.slice_dir
    headers["position"] = protocol.geometry.position_mm


def _headers(
    plan: NDArray[np.void], protocol: Protocol, n_slices: int, shape: tuple[int, int], first_readout: int
) -> NDArray[np.void]:
    n_y, n_x = shape
    headers = np.zeros(len(plan), ACQUISITION_HEADER)
    _fill_common(headers, protocol, first_readout)
    skipped = protocol.skipped_samples(n_x)
    headers["flags"] = plan["flags"]
    headers["number_of_samples"] = n_x * protocol.oversampling - skipped
    headers["center_sample"] = n_x * protocol.oversampling // 2 - skipped
    headers["sample_time_us"] = protocol.dwell_us
    counters = headers["idx"]
    counters["kspace_encode_step_1"] = plan["line"] - protocol.skipped_lines(n_y)
    counters["average"], counters["slice"] = plan["average"], plan["slice"]
    counters[protocol.frame_counter.value] = plan["frame"]
    # Siemens converters leave the counter of the centre line in user[5].
    counters["user"][:, 5] = protocol.encoded_lines(n_y) // 2 - protocol.skipped_lines(n_y)
    pitch = protocol.slice_thickness_mm + protocol.slice_gap_mm
    offset = (plan["slice"].astype(np.float64) - (n_slices - 1) / 2) * pitch
    headers["position"] += (offset[:, None] * np.asarray(protocol.geometry.slice_dir)).astype(np.float32)
    if protocol.frame_counter is FrameCounter.PHASE:
        # Frames as cardiac phases of 40 ms: time since the trigger.
        headers["physiology_time_stamp"][:, 0] = plan["frame"] * int(40 / _TICK_MS)
    return headers


def _header_content(protocol: Protocol, shape: tuple[int, ...]) -> HeaderContent:
    n_frames, n_slices, n_y, n_x = shape
    lines, skipped = protocol.encoded_lines(n_y), protocol.skipped_lines(n_y)
    field_x, field_y = protocol.field_of_view_mm
    limits = {
        "kspace_encoding_step_1": Limit(0, lines - skipped - 1, lines // 2 - skipped),
        "kspace_encoding_step_2": Limit(0, 0, 0),
        "average": Limit(0, protocol.averages - 1, 0),
        "slice": Limit(0, n_slices - 1, 0),
        **{counter.value: Limit(0, 0, 0) for counter in FrameCounter},
        "segment": Limit(0, 0, 0),
    }
    limits[protocol.frame_counter.value] = Limit(0, n_frames - 1, 0)
    # Random lines are compressed sensing, not parallel imaging: no promise of a regular pattern is made.
    regular = protocol.is_accelerated and protocol.pattern is Pattern.REGULAR
    separate = protocol.calibration_mode is CalibrationMode.SEPARATE
    n_contrasts = n_frames if protocol.frame_counter is FrameCounter.CONTRAST else 1
    return HeaderContent(
        encoded=Space(
            (n_x * protocol.oversampling, lines, 1),
            (field_x * protocol.oversampling, field_y * lines / n_y, protocol.slice_thickness_mm),
        ),
        recon=Space((n_x, n_y, 1), (field_x, field_y, protocol.slice_thickness_mm)),
        limits=limits,
        receiver_channels=protocol.n_coils,
        noise_bandwidth=protocol.noise_bandwidth,
        protocol_name=protocol.protocol_name,
        echo_times_ms=tuple(protocol.echo_time_ms * (index + 1) for index in range(n_contrasts)),
        repetition_time_ms=protocol.repetition_time_ms,
        flip_angle_deg=protocol.flip_angle_deg,
        acceleration=(protocol.acceleration if regular else 1, 1),
        calibration_mode=protocol.calibration_mode if regular or separate else None,
    )
