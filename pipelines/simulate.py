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

Two-dimensional Cartesian scans are simulated here. Other kinds, on the same conventions: `pipelines.simulation.volume`
(3D), `.echo_train` (bipolar echoes, EPI), `.noncartesian` (radial, spiral), `.free_running` (cine with an ECG); what
happens to streams on their way, in `pipelines.simulation.disturbances`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import COUNTERS
from pipelines.phantom import birdcage_coils, noise_covariance, smooth_phase
from pipelines.scan_header import Limit, Space
from pipelines.simulated_header import EncodingContent, HeaderContent, write_scan_header
from pipelines.simulated_protocol import FrameCounter, Pattern, Protocol
from pipelines.simulation.plan import Plan, PlanEdit, plan_scan
from pipelines.simulation.readouts import Distortion, Scene, centred_fft, image_headers, measure, noise_scan
from pipelines.simulation.scan import SimulatedScan, Truth

__all__ = ["SimulatedScan", "Truth", "centred_fft", "simulate"]


def simulate(
    anatomy: NDArray[np.inexact],
    protocol: Protocol | None = None,
    *,
    maps: NDArray[np.complex64] | None = None,
    covariance: NDArray[np.complex128] | None = None,
    edit: PlanEdit | None = None,
    distort: Distortion | None = None,
) -> SimulatedScan:
    """Simulate a Cartesian two-dimensional scan of an object.

    Args:
        anatomy: `(y, x)`, `(slices, y, x)` or `(frames, slices, y, x)`: non-negative magnitude in any units, or the
            complex image, which then gets no further phase.
        protocol: what is measured; the defaults of `Protocol` otherwise.
        maps: `(slices, coils, y, x)` instead of birdcage coils.
        covariance: `(coils, coils)` instead of one drawn from the protocol's noise level.
        edit: changes the order of readouts before they are measured (`pipelines.simulation.plan`).
        distort: changes samples before noise comes to them.

    Raises:
        ValueError: the object has another number of axes or is not finite, or maps or covariance do not fit it.
    """
    protocol = protocol or Protocol()
    frames = as_frames(anatomy, protocol)
    n_frames, n_slices, n_y, n_x = frames.shape
    rng = np.random.default_rng(protocol.seed)
    maps = checked_maps(maps, protocol, (n_slices, n_y, n_x))
    covariance = checked_covariance(covariance, protocol, rng)
    image = with_phase(frames, protocol, rng)
    grid = (1, protocol.encoded_lines(n_y), n_x * protocol.oversampling)
    batches = list(noise_scan(protocol, covariance, rng))
    plan = plan_scan(protocol, n_frames, n_slices, n_y)
    plan = edit(plan) if edit is not None else plan
    headers = image_headers(plan, protocol, frames.shape, (protocol.skipped_lines(n_y), 0), grid)
    scene = Scene(image[:, :, None], maps[:, :, None], covariance, grid)
    batches.extend(measure(scene, protocol, plan, headers, rng, distort))
    counts = np.zeros((n_frames, n_slices, grid[1]), np.float32)
    imaging = plan[~plan["is_separate"]]
    np.add.at(counts, (imaging["frame"], imaging["slice"], imaging["line"]), 1)
    content = _header_content(protocol, frames.shape, plan)
    truth = Truth(image, maps, covariance, counts)
    return SimulatedScan(write_scan_header(content), batches, truth, protocol, content=content)


def as_frames(anatomy: NDArray[np.inexact], protocol: Protocol) -> NDArray[np.inexact]:
    """The object as `(frames, slices, y, x)`, repeated as the protocol asks.

    Raises:
        ValueError: another number of axes, values that are not finite, or frames that cannot be repeated.
    """
    if anatomy.ndim not in (2, 3, 4) or anatomy.size == 0:
        raise ValueError(
            f"an object has the axes y, x or slices, y, x or frames, slices, y, x; not the shape {anatomy.shape}"
        )
    dtype = np.complex64 if np.iscomplexobj(anatomy) else np.float32
    frames = np.asarray(anatomy, dtype).reshape((1,) * (4 - anatomy.ndim) + anatomy.shape)
    if not np.isfinite(frames).all():
        raise ValueError("the object holds values that are not finite")
    if protocol.repetitions > 1:
        if len(frames) > 1:
            raise ValueError(f"an object of {len(frames)} frames cannot be repeated; set repetitions to 1")
        frames = np.repeat(frames, protocol.repetitions, axis=0)
    return frames


def with_phase(frames: NDArray[np.inexact], protocol: Protocol, rng: np.random.Generator) -> NDArray[np.complex64]:
    """`(frames, slices, y, x)` with a smooth phase for each slice, unless it is complex already."""
    phase = np.stack(
        [smooth_phase(frames.shape[2:], rng, strength=protocol.phase_std_rad) for _ in range(frames.shape[1])]
    )
    return np.asarray(frames if np.iscomplexobj(frames) else frames * phase, np.complex64)


def checked_maps(
    maps: NDArray[np.complex64] | None, protocol: Protocol, shape: tuple[int, int, int]
) -> NDArray[np.complex64]:
    """Sensitivities `(slices, coils, y, x)` of slices, y, x: those given, or birdcage coils around the stack.

    Raises:
        ValueError: the given ones have another shape.
    """
    n_slices, n_y, n_x = shape
    if maps is None:
        pitch = 2 * (protocol.slice_thickness_mm + protocol.slice_gap_mm) / protocol.field_of_view_mm[1]
        offsets = (np.arange(n_slices) - (n_slices - 1) / 2) * pitch
        maps = np.stack([birdcage_coils(protocol.n_coils, (n_y, n_x), slice_offset=offset) for offset in offsets])
    if maps.shape != (n_slices, protocol.n_coils, n_y, n_x):
        raise ValueError(f"maps must have the shape {(n_slices, protocol.n_coils, n_y, n_x)}, not {maps.shape}")
    return maps


def checked_covariance(
    covariance: NDArray[np.complex128] | None, protocol: Protocol, rng: np.random.Generator
) -> NDArray[np.complex128]:
    """The covariance given, or one of the protocol's level.

    Raises:
        ValueError: its size is not the number of coils.
    """
    if covariance is None:
        return noise_covariance(protocol.n_coils, protocol.noise_std, rng, correlation=protocol.noise_correlation)
    if covariance.shape != (protocol.n_coils, protocol.n_coils):
        raise ValueError(f"covariance must be {protocol.n_coils} x {protocol.n_coils}, not {covariance.shape}")
    return covariance


def counter_limits(protocol: Protocol, n_frames: int, n_slices: int, plan: Plan) -> dict[str, Limit]:
    """Limits of the counters that do not place lines, by element name."""
    sizes = {"average": max(int(plan["average"].max(initial=0)) + 1, protocol.averages), "slice": n_slices}
    sizes |= {counter.value: 1 for counter in FrameCounter}
    sizes |= {name.value: int(values.max()) + 1 for name, values in protocol.counters_of_frames(n_frames).items()}
    sizes["segment"] = int(plan["segment"].max(initial=0)) + 1
    first = {name: protocol.first_counters.get(name, 0) for name in COUNTERS}
    return {name: Limit(first[name], first[name] + size - 1, first[name]) for name, size in sizes.items()}


def header_of(protocol: Protocol, n_frames: int, encoding: EncodingContent) -> HeaderContent:
    """The header of a scan with one encoding space."""
    contrasts = protocol.counters_of_frames(n_frames).get(FrameCounter.CONTRAST)
    n_contrasts = 1 if contrasts is None else int(contrasts.max()) + 1
    n_contrasts += protocol.first_counters.get("contrast", 0)
    return HeaderContent(
        encodings=(encoding,),
        receiver_channels=protocol.n_coils,
        noise_bandwidth=protocol.noise_bandwidth,
        protocol_name=protocol.protocol_name,
        echo_times_ms=tuple(protocol.echo_time_ms * (index + 1) for index in range(n_contrasts)),
        repetition_time_ms=protocol.repetition_time_ms,
        flip_angle_deg=protocol.flip_angle_deg,
    )


def _header_content(protocol: Protocol, shape: tuple[int, ...], plan: Plan) -> HeaderContent:
    n_frames, n_slices, n_y, n_x = shape
    lines, skipped = protocol.encoded_lines(n_y), protocol.skipped_lines(n_y)
    field_x, field_y = protocol.field_of_view_mm
    limits = {
        "kspace_encoding_step_1": Limit(0, lines - skipped - 1, lines // 2 - skipped),
        "kspace_encoding_step_2": Limit(0, 0, 0),
        **counter_limits(protocol, n_frames, n_slices, plan),
    }
    # Random lines are compressed sensing, not parallel imaging: no promise of a regular pattern is made.
    regular = protocol.is_accelerated and protocol.pattern is Pattern.REGULAR
    recon_x, recon_y = protocol.recon_matrix or (n_x, n_y)
    encoding = EncodingContent(
        encoded=Space(
            (n_x * protocol.oversampling, lines, 1),
            (field_x * protocol.oversampling, field_y * lines / n_y, protocol.slice_thickness_mm),
        ),
        recon=Space((recon_x, recon_y, 1), (field_x, field_y, protocol.slice_thickness_mm)),
        limits=limits,
        acceleration=(protocol.acceleration if regular else 1, 1),
        calibration_mode=protocol.calibration_mode if regular or protocol.is_calibrated_apart else None,
    )
    return header_of(protocol, n_frames, encoding)
