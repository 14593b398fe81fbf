"""Simulate radial, golden-angle and spiral scans: k-space of the object by a direct non-uniform Fourier transform.

With pixels r counted from n//2 of both axes, coil sensitivities c, image x of `N` pixels and the coordinates k of
`pipelines.simulation.trajectories`, a raw sample is

    y(k) = 1 / sqrt(N) sum_r c(r) x(r) exp(-2 pi i k r) + n,    E[n n^H] = C

which on a Cartesian grid without oversampling is the orthonormal transform of `pipelines.simulate`. It is evaluated
exactly, in chunks; nothing is gridded.

The counter kspace_encode_step_1 is the number of the spoke or interleaf; with golden angle it goes on from frame to
frame, so that the angle follows from it alone. Where the trajectory is sent, it has the units of
`pipelines.simulation.trajectories`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import ACQUISITION_HEADER, Acquisitions
from pipelines.phantom import draw_noise
from pipelines.scan_header import Limit, Space, TrajectoryType
from pipelines.simulate import as_frames, checked_covariance, checked_maps, counter_limits, header_of, with_phase
from pipelines.simulated_header import EncodingContent, write_scan_header
from pipelines.simulated_protocol import Protocol
from pipelines.simulation import trajectories
from pipelines.simulation.plan import PLAN, Plan, flag_order
from pipelines.simulation.readouts import READOUTS_PER_BATCH, image_headers, noise_scan
from pipelines.simulation.scan import SimulatedScan, Truth

SAMPLES_PER_CHUNK: Final = 1024
"""Of the direct transform: keeps its two factors and the half-transformed image within some tens of megabytes."""


@dataclass(frozen=True, slots=True)
class Shots:
    """What a non-Cartesian scan measures.

    Attributes:
        kind: radial, goldenangle or spiral.
        n_shots: spokes or interleaves measured for each frame.
        n_full: interleaves of a spiral that fill k-space; those measured otherwise.
        sends_trajectory: whether the readouts carry their coordinates; radial ones can be computed.
    """

    kind: TrajectoryType = TrajectoryType.RADIAL
    n_shots: int = 64
    n_full: int = 0
    sends_trajectory: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ValueError: a value is out of range; the message names it.
        """
        if self.kind not in (TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE, TrajectoryType.SPIRAL):
            raise ValueError(f"kind must be radial, goldenangle or spiral, not {self.kind.value}")
        if self.n_shots < 1:
            raise ValueError(f"n_shots must be at least 1, not {self.n_shots}")
        if self.kind is TrajectoryType.SPIRAL and not self.sends_trajectory:
            raise ValueError("sends_trajectory must be set for a spiral: its coordinates cannot be computed")

    def coordinates(self, frame: int, matrix: int, oversampling: int) -> NDArray[np.float32]:
        """`(shots, samples, 2)` of one frame of `matrix` pixels along x."""
        n_samples = matrix * oversampling
        if self.kind is TrajectoryType.RADIAL:
            return trajectories.radial(self.n_shots, n_samples)
        if self.kind is TrajectoryType.GOLDENANGLE:
            return trajectories.golden_angle(frame * self.n_shots, self.n_shots, n_samples)
        return trajectories.spiral(self.n_full or self.n_shots, self.n_shots, matrix, oversampling)


def simulate_noncartesian(
    anatomy: NDArray[np.inexact],
    protocol: Protocol | None = None,
    shots: Shots | None = None,
    *,
    maps: NDArray[np.complex64] | None = None,
    covariance: NDArray[np.complex128] | None = None,
) -> SimulatedScan:
    """Simulate a scan of square slices.

    Args:
        anatomy: `(y, x)`, `(slices, y, x)` or `(frames, slices, y, x)` with as many rows as columns.
        protocol: coils, noise, geometry, repetitions, oversampling; nothing that concerns Cartesian lines.
        shots: the trajectory.
        maps: `(slices, coils, y, x)` instead of birdcage coils.
        covariance: `(coils, coils)` instead of one of the protocol's noise level.

    Raises:
        ValueError: the object is not square, maps or covariance do not fit it, or the protocol asks for what only
            Cartesian lines have.
    """
    protocol, shots = protocol or Protocol(), shots or Shots()
    plain = Protocol()
    for name in ("acceleration", "averages", "partial_fourier", "partial_echo", "phase_oversampling"):
        if getattr(protocol, name) != getattr(plain, name):
            raise ValueError(f"{name} is for Cartesian lines; a {shots.kind.value} scan is undersampled with n_shots")
    frames = as_frames(anatomy, protocol)
    n_frames, n_slices, n_y, n_x = frames.shape
    if n_y != n_x:
        raise ValueError(f"a {shots.kind.value} scan has square images, not {n_x} x {n_y}")
    rng = np.random.default_rng(protocol.seed)
    maps = checked_maps(maps, protocol, (n_slices, n_y, n_x))
    covariance = checked_covariance(covariance, protocol, rng)
    image = with_phase(frames, protocol, rng)
    batches = list(noise_scan(protocol, covariance, rng))
    plan = _plan(protocol, shots, n_frames, n_slices)
    headers = _headers(plan, protocol, shots, frames.shape)
    at = 0
    for frame in range(n_frames):
        coordinates = shots.coordinates(frame, n_x, protocol.oversampling)
        headers["number_of_samples"] = coordinates.shape[1]
        for number in range(n_slices):
            samples = direct_transform(image[frame, number] * maps[number], coordinates)
            for start in range(0, shots.n_shots, READOUTS_PER_BATCH):
                part = slice(start, min(start + READOUTS_PER_BATCH, shots.n_shots))
                noisy = samples[part] + draw_noise(covariance, (part.stop - start, coordinates.shape[1]), rng)
                own = headers[at + start : at + part.stop]
                sent = coordinates[part] if shots.sends_trajectory else None
                batches.append(Acquisitions.from_arrays(own, noisy, sent))
            at += shots.n_shots
    counts = np.ones((n_frames, n_slices, shots.n_shots), np.float32)
    header = header_of(protocol, n_frames, _encoding(protocol, shots, frames.shape, plan))
    truth = Truth(image, maps, covariance, counts)
    return SimulatedScan(write_scan_header(header), batches, truth, protocol, content=header)


def direct_transform(coil_images: NDArray[np.complex64], coordinates: NDArray[np.floating]) -> NDArray[np.complex64]:
    """The sum of the module's docstring, `(readouts, coils, samples)`.

    Args:
        coil_images: `(coils, y, x)`.
        coordinates: `(readouts, samples, 2)`, kx then ky, in cycles a pixel.
    """
    n_coils, n_y, n_x = coil_images.shape
    points = np.asarray(coordinates, np.float64).reshape(-1, 2)
    rows = coil_images.reshape(n_coils * n_y, n_x)
    x, y = np.arange(n_x) - n_x // 2, np.arange(n_y) - n_y // 2
    values = np.empty((n_coils, len(points)), np.complex64)
    for start in range(0, len(points), SAMPLES_PER_CHUNK):
        chunk = points[start : start + SAMPLES_PER_CHUNK]
        # Phases in double precision: k r reaches hundreds of cycles' fractions that single precision would blur.
        along_x = np.exp(-2j * np.pi * x[:, None] * chunk[:, 0]).astype(np.complex64)
        along_y = np.exp(-2j * np.pi * y[:, None] * chunk[:, 1]).astype(np.complex64)
        half = (rows @ along_x).reshape(n_coils, n_y, len(chunk))
        values[:, start : start + len(chunk)] = np.einsum("cys,ys->cs", half, along_y)
    values /= np.float32(np.sqrt(n_y * n_x))
    return np.ascontiguousarray(values.reshape(n_coils, *coordinates.shape[:2]).swapaxes(0, 1))


def _plan(protocol: Protocol, shots: Shots, n_frames: int, n_slices: int) -> Plan:
    frames, slices, numbers = np.meshgrid(
        np.arange(n_frames), np.arange(n_slices), np.arange(shots.n_shots), indexing="ij"
    )
    plan = np.zeros(numbers.size, PLAN)
    plan["frame"], plan["slice"], plan["line"] = frames.ravel(), slices.ravel(), numbers.ravel()
    if shots.kind is TrajectoryType.GOLDENANGLE:
        plan["offset"] = plan["frame"].astype(np.int32) * shots.n_shots
    return flag_order(plan, protocol, n_frames)


def _headers(plan: Plan, protocol: Protocol, shots: Shots, shape: tuple[int, ...]) -> NDArray[np.void]:
    n_frames, n_slices, n_y, n_x = shape
    grid = (1, shots.n_shots, n_x * protocol.oversampling)
    headers = image_headers(plan, protocol, (n_frames, n_slices, n_y, n_x), (0, 0), grid)
    headers["idx"]["user"] = 0
    headers["trajectory_dimensions"] = 2 if shots.sends_trajectory else 0
    if shots.kind is TrajectoryType.SPIRAL:
        headers["center_sample"] = 0
    return np.asarray(headers, ACQUISITION_HEADER)


def _encoding(protocol: Protocol, shots: Shots, shape: tuple[int, ...], plan: Plan) -> EncodingContent:
    n_frames, n_slices, n_y, n_x = shape
    field_x, field_y = protocol.field_of_view_mm
    last = shots.n_shots * (n_frames if shots.kind is TrajectoryType.GOLDENANGLE else 1) - 1
    limits = {
        "kspace_encoding_step_1": Limit(0, last, 0),
        "kspace_encoding_step_2": Limit(0, 0, 0),
        **counter_limits(protocol, n_frames, n_slices, plan),
    }
    # A spoke is a readout through the centre, oversampled like any other; a spiral's encoded space is the image's.
    oversampling = 1 if shots.kind is TrajectoryType.SPIRAL else protocol.oversampling
    recon_x, recon_y = protocol.recon_matrix or (n_x, n_y)
    return EncodingContent(
        encoded=Space((n_x * oversampling, n_y, 1), (field_x * oversampling, field_y, protocol.slice_thickness_mm)),
        recon=Space((recon_x, recon_y, 1), (field_x, field_y, protocol.slice_thickness_mm)),
        limits=limits,
        trajectory=shots.kind,
    )
