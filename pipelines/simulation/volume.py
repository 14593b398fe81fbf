"""Simulate a three-dimensional Cartesian scan: two phase encodings, coils that vary along z.

The conventions are those of `pipelines.simulate`. The slab's partitions are the axis `slices` of the object and of the
truth; `Protocol.slice_thickness_mm` is the thickness of one, without gaps; the position of the readouts is that of the
pixel n//2 along every axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from pipelines.phantom import birdcage_coils_3d
from pipelines.scan_header import CalibrationMode, Limit, Space
from pipelines.simulate import as_frames, checked_covariance, counter_limits, header_of, with_phase
from pipelines.simulated_header import EncodingContent, HeaderContent, write_scan_header
from pipelines.simulated_protocol import Protocol
from pipelines.simulation import sampling
from pipelines.simulation.plan import PLAN, Plan, PlanEdit, flag_calibration, flag_order, separate_calibration
from pipelines.simulation.readouts import Distortion, Scene, image_headers, measure, noise_scan
from pipelines.simulation.scan import SimulatedScan, Truth


class VolumePattern(StrEnum):
    """Which lines of the two phase encodings are measured."""

    LATTICE = "lattice"
    """Every `acceleration`-th along y and `acceleration_z`-th along z, CAIPIRINHA with a shift."""
    POISSON = "poisson"
    """Random with a distance that grows from the centre; `acceleration` is that of all lines."""


@dataclass(frozen=True, slots=True)
class VolumeSampling:
    """What a volume adds to `Protocol`, which gives acceleration, calibration and partial Fourier along y.

    Attributes:
        acceleration_z: R along z.
        caipi_shift: lines along y by which each measured partition lies off the one before.
        calibration_partitions: size along z of the calibration block; 0 for as many as lines.
        partial_fourier_z: part of the partitions that is measured; the earliest are left out.
        slice_oversampling: partitions added along z for a larger field of view, relative.
        is_elliptical: whether the corners of k-space are left out.
        recon_partitions: partitions that the header asks for; the object's otherwise.
    """

    pattern: VolumePattern = VolumePattern.LATTICE
    acceleration_z: int = 1
    caipi_shift: int = 0
    calibration_partitions: int = 0
    partial_fourier_z: float = 1.0
    slice_oversampling: float = 0.0
    is_elliptical: bool = False
    recon_partitions: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: a value is out of range; the message names it.
        """
        if self.acceleration_z < 1:
            raise ValueError(f"acceleration_z must be at least 1, not {self.acceleration_z}")
        if not 0.5 < self.partial_fourier_z <= 1:
            raise ValueError(f"partial_fourier_z must be more than 0.5 and at most 1, not {self.partial_fourier_z}")
        for name in ("calibration_partitions", "slice_oversampling", "caipi_shift"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    def encoded_partitions(self, n_z: int) -> int:
        """Planes of the encoded grid for `n_z` partitions, oversampling included; of the same parity."""
        return n_z + 2 * round(n_z * self.slice_oversampling / 2)

    def skipped_partitions(self, n_z: int) -> int:
        """Planes at the start of the encoded grid that partial Fourier leaves out."""
        planes = self.encoded_partitions(n_z)
        return planes - round(planes * self.partial_fourier_z)


def simulate_volume(
    anatomy: NDArray[np.inexact],
    protocol: Protocol | None = None,
    volume: VolumeSampling | None = None,
    *,
    maps: NDArray[np.complex64] | None = None,
    covariance: NDArray[np.complex128] | None = None,
    edit: PlanEdit | None = None,
    distort: Distortion | None = None,
) -> SimulatedScan:
    """Simulate a scan of a slab.

    Args:
        anatomy: `(z, y, x)` or `(frames, z, y, x)`, magnitude or complex.
        protocol: what is measured; its slice order, gap and random pattern do not apply.
        volume: the second phase encoding.
        maps: `(z, coils, y, x)` instead of coils on two rings.
        covariance: `(coils, coils)` instead of one of the protocol's noise level.
        edit: changes the order of readouts before they are measured.
        distort: changes samples before noise comes to them.

    Raises:
        ValueError: object, maps or covariance do not fit, or the sampling asks for what cannot be.
    """
    protocol, volume = protocol or Protocol(), volume or VolumeSampling()
    if anatomy.ndim not in (3, 4):
        raise ValueError(f"a volume has the axes z, y, x or frames, z, y, x; not the shape {anatomy.shape}")
    frames = as_frames(anatomy, protocol)
    n_frames, n_z, n_y, n_x = frames.shape
    rng = np.random.default_rng(protocol.seed)
    if maps is None:
        aspect = n_z * protocol.slice_thickness_mm / protocol.field_of_view_mm[1]
        maps = birdcage_coils_3d(protocol.n_coils, (n_z, n_y, n_x), aspect=aspect).swapaxes(0, 1)
    if maps.shape != (n_z, protocol.n_coils, n_y, n_x):
        raise ValueError(f"maps must have the shape {(n_z, protocol.n_coils, n_y, n_x)}, not {maps.shape}")
    covariance = checked_covariance(covariance, protocol, rng)
    image = _with_common_phase(frames, protocol, rng)
    grid = (volume.encoded_partitions(n_z), protocol.encoded_lines(n_y), n_x * protocol.oversampling)
    batches = list(noise_scan(protocol, covariance, rng))
    skipped = (protocol.skipped_lines(n_y), volume.skipped_partitions(n_z))
    plan = plan_volume(protocol, volume, n_frames, grid, skipped[0])
    plan = edit(plan) if edit is not None else plan
    headers = image_headers(plan, protocol, (n_frames, 1, n_y, n_x), skipped, grid)
    scene = Scene(image[:, None], maps.swapaxes(0, 1)[None], covariance, grid)
    batches.extend(measure(scene, protocol, plan, headers, rng, distort))
    counts = np.zeros((n_frames, *grid[:2]), np.float32)
    imaging = plan[~plan["is_separate"]]
    np.add.at(counts, (imaging["frame"], imaging["partition"], imaging["line"]), 1)
    content = _header_content(protocol, volume, frames.shape, plan)
    truth = Truth(image, maps, covariance, counts)
    return SimulatedScan(write_scan_header(content), batches, truth, protocol, content=content)


def plan_volume(
    protocol: Protocol, volume: VolumeSampling, n_frames: int, grid: tuple[int, int, int], skipped: int
) -> Plan:
    """The readouts of a volume, line by line within partition by partition, with their flags.

    `skipped` rows at the start of the grid have no counter.
    """
    plans: list[Plan] = []
    for frame in range(n_frames):
        in_image, in_region = choose_lines(protocol, volume, frame, grid[:2])
        is_embedded = protocol.calibration_mode is CalibrationMode.EMBEDDED
        planes, lines = np.nonzero(in_image | in_region if is_embedded else in_image)
        plan = np.zeros(len(lines) * protocol.averages, PLAN)
        plan["frame"], plan["average"] = frame, np.repeat(np.arange(protocol.averages), len(lines))
        plan["partition"], plan["line"] = np.tile(planes, protocol.averages), np.tile(lines, protocol.averages)
        at = plan["partition"], plan["line"]
        if is_embedded and not in_image.all():
            flag_calibration(plan, in_region[at], in_image[at])
        if protocol.is_calibrated_apart and frame == 0:
            planes, lines = np.nonzero(in_region)
            plans.append(separate_calibration(protocol, np.zeros_like(lines), planes, lines, skipped))
        plans.append(plan)
    return flag_order(np.concatenate(plans), protocol, n_frames)


def choose_lines(
    protocol: Protocol, volume: VolumeSampling, frame: int, shape: tuple[int, int]
) -> tuple[sampling.Mask, sampling.Mask]:
    """Masks `(z, y)` of the encoded grid: lines measured for the image, and lines of the calibration block."""
    n_calibration = protocol.calibration_lines
    size = (min(volume.calibration_partitions or n_calibration, shape[0]), min(n_calibration, shape[1]))
    measurable = sampling.late_part(shape, (volume.partial_fourier_z, protocol.partial_fourier))
    if volume.is_elliptical:
        measurable &= sampling.ellipse(shape)
    is_accelerated = protocol.acceleration > 1 or volume.acceleration_z > 1
    is_interleaved = protocol.calibration_mode is CalibrationMode.INTERLEAVED
    block = sampling.centre_block(shape, size if is_accelerated and not is_interleaved else (0, 0))
    if volume.pattern is VolumePattern.POISSON:
        rng = np.random.default_rng([protocol.seed, 2, frame])
        chosen = sampling.poisson_disc(shape, protocol.acceleration * volume.acceleration_z, size, rng)
    else:
        steps = (protocol.acceleration, volume.acceleration_z)
        chosen = sampling.lattice(shape, steps, volume.caipi_shift, frame if is_interleaved else 0)
    return chosen & measurable, block & measurable


def _with_common_phase(
    frames: NDArray[np.inexact], protocol: Protocol, rng: np.random.Generator
) -> NDArray[np.complex64]:
    """`(frames, z, y, x)` with one smooth phase that turns slowly along z, unless it is complex already."""
    n_z = frames.shape[1]
    plane = with_phase(np.ones((1, 1, *frames.shape[2:]), np.float32), protocol, rng)
    turn = np.exp(1j * protocol.phase_std_rad * (np.arange(n_z) - n_z // 2) / n_z)[:, None, None]
    return np.asarray(frames if np.iscomplexobj(frames) else frames * plane * turn, np.complex64)


def _header_content(protocol: Protocol, volume: VolumeSampling, shape: tuple[int, ...], plan: Plan) -> HeaderContent:
    n_frames, n_z, n_y, n_x = shape
    lines, skipped_y = protocol.encoded_lines(n_y), protocol.skipped_lines(n_y)
    planes, skipped_z = volume.encoded_partitions(n_z), volume.skipped_partitions(n_z)
    field_x, field_y = protocol.field_of_view_mm
    slab = n_z * protocol.slice_thickness_mm
    limits = {
        "kspace_encoding_step_1": Limit(0, lines - skipped_y - 1, lines // 2 - skipped_y),
        "kspace_encoding_step_2": Limit(0, planes - skipped_z - 1, planes // 2 - skipped_z),
        **counter_limits(protocol, n_frames, 1, plan),
    }
    is_lattice = volume.pattern is VolumePattern.LATTICE
    acceleration = (protocol.acceleration, volume.acceleration_z) if is_lattice else (1, 1)
    is_parallel = acceleration != (1, 1) or protocol.is_calibrated_apart
    recon_x, recon_y = protocol.recon_matrix or (n_x, n_y)
    encoding = EncodingContent(
        encoded=Space(
            (n_x * protocol.oversampling, lines, planes),
            (field_x * protocol.oversampling, field_y * lines / n_y, slab * planes / n_z),
        ),
        recon=Space((recon_x, recon_y, volume.recon_partitions or n_z), (field_x, field_y, slab)),
        limits=limits,
        acceleration=acceleration,
        calibration_mode=protocol.calibration_mode if is_parallel else None,
    )
    return header_of(protocol, n_frames, encoding)
