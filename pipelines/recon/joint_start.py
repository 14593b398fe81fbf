"""Frames made ready for the joint estimation: planes with their data term, first image and first maps.

The first maps come from the calibration region (ESPIRiT, `estimate_maps`), from any smooth centre of k-space where
there is none; they carry the phase of a low-resolution image. The first image is the root of the sum of squares of what
was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.coils import power_of_coils
from pipelines.operators.fourier import to_image, to_kspace
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.operators.plane_data import CartesianData, DataTerm, NonUniformData
from pipelines.operators.toeplitz import Toeplitz
from pipelines.preprocess.sensitivities import CALIBRATION_SIZE, estimate_maps
from pipelines.recon.initial_maps import from_images, with_phase
from pipelines.recon.nonuniform_zero_filled import frame_densities, trajectory_of
from pipelines.recon.planes import make_planes
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import measured_columns

POWER_ITERATIONS = 12


@dataclass(frozen=True, slots=True)
class Start:
    """Planes that are estimated side by side.

    Attributes:
        numbers: those of the planes in the job.
        data: D in the units of k-space.
        noise_std: of one measurement, in the units of k-space.
        image: first image.
        maps: first maps, length 1 where known, with the phase of the image.
        phase: that of the image, to give it back.
    """

    numbers: tuple[int, ...]
    data: DataTerm
    noise_std: float
    image: Float32[Tensor, "items p q"]
    maps: Complex64[Tensor, "items coils p q"]
    phase: Complex64[Tensor, "items p q"]


@dataclass(frozen=True, slots=True)
class Starts:
    """All planes of a job, in parts that fit into memory.

    Attributes:
        parts: made one at a time.
        n_parts: how many there will be.
        to_volumes: what brings planes `(items, p, q)`, parts joined, to `(frames, z, y, x)`.
    """

    parts: Iterator[Start]
    n_parts: int
    to_volumes: Callable[[Tensor], Tensor]


def make_starts(prepared: Prepared, most_values: int) -> Starts:
    """Planes of Cartesian or non-Cartesian frames.

    Args:
        prepared: frames.
        most_values: complex values of coil images in one part; a part holds at least one plane.
    """
    return _nonuniform(prepared, most_values) if prepared.trajectory is not None else _cartesian(prepared, most_values)


def _cartesian(prepared: Prepared, most_values: int) -> Starts:
    planes = make_planes(prepared)
    volume = tuple(prepared.kspace.shape[2:])
    items, coils, rows, columns = planes.kspace.shape
    known = _from_calibration(prepared, volume)
    reference = strongest_coil(planes.kspace)
    size = max(1, most_values // (coils * rows * columns))

    def parts() -> Iterator[Start]:
        for first in range(0, items, size):
            part = range(first, min(first + size, items))
            kspace = planes.kspace[part.start : part.stop]
            if known is None:
                maps, phase = from_images(low_resolution(kspace), reference)
            else:
                espirit, images = (planes.of_volumes(each, part) for each in known)
                maps, phase = with_phase(espirit, images)
            yield Start(
                tuple(part),
                CartesianData.of_kspace(kspace, planes.weights[part.start : part.stop], prepared.noise_std),
                prepared.noise_std,
                _magnitude(to_image(kspace)),
                maps,
                phase,
            )

    return Starts(parts(), -(-items // size), planes.to_volumes)


def _nonuniform(prepared: Prepared, most_values: int) -> Starts:
    trajectory = trajectory_of(prepared)
    shape = trajectory.shape
    density = frame_densities(trajectory)
    weighted = prepared.kspace * density[:, None, None]
    coils = NonUniform(trajectory.positions, shape, trajectory.measured).adjoint(weighted)[:, :, 0]
    maps, phase = _nonuniform_maps(prepared, coils, shape)
    which, first = distinct_frames(trajectory.positions, trajectory.measured)
    size = max(1, most_values // coils[0].numel())
    jobs: list[tuple[int, list[int]]] = []
    for index in range(len(first)):
        frames = [frame for frame, its in enumerate(which) if its == index]
        jobs.extend((index, frames[at : at + size]) for at in range(0, len(frames), size))
    order = [frame for _, frames in jobs for frame in frames]

    def parts() -> Iterator[Start]:
        made = -1
        toeplitz, largest = None, 1.0
        for index, frames in jobs:
            area = density[first[index]]
            if toeplitz is None or made != index:
                made, toeplitz = index, Toeplitz(trajectory.positions[first[index]], area, shape)
                largest = largest_eigenvalue(toeplitz, shape, coils.device)
            total, squares = (float(each.sum()) for each in (area, area.square()))
            # Nothing measured in these frames: no noise, and nothing that it would be compared with.
            noise_std = prepared.noise_std * (squares / total) ** 0.5 if total > 0 else prepared.noise_std
            n_samples = coils.shape[1] * total**2 / squares if total > 0 else 0.0
            power = torch.view_as_real(prepared.kspace[frames]).square().sum((1, 2, -1))
            data = NonUniformData(
                toeplitz,
                coils[frames],
                (power * area).sum((1, 2), dtype=torch.float64),
                torch.full((len(frames),), noise_std, device=coils.device),
                torch.full((len(frames),), n_samples, dtype=torch.float64, device=coils.device),
                largest,
            )
            yield Start(tuple(frames), data, noise_std, _magnitude(coils[frames]), maps[frames], phase[frames])

    def to_volumes(planes: Tensor) -> Tensor:
        frames = torch.empty_like(planes)
        frames[order] = planes
        return frames[:, None]

    return Starts(parts(), len(jobs), to_volumes)


def _nonuniform_maps(prepared: Prepared, coils: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps and phase of each frame."""
    known = _from_calibration(prepared, (1, *shape))
    if known is None:
        return from_images(low_resolution(to_kspace(coils)), strongest_coil(coils))
    maps, phase = with_phase(known[0].transpose(0, 1), known[1].transpose(0, 1))
    return maps.expand(coils.shape[0], -1, -1, -1), phase.expand(coils.shape[0], -1, -1)


def _from_calibration(
    prepared: Prepared, shape: tuple[int, ...]
) -> tuple[Complex64[Tensor, "coils z y x"], Complex64[Tensor, "coils z y x"]] | None:
    """Sensitivities, and images of low resolution; None without a calibration region."""
    calibration = prepared.calibration
    if calibration is None:
        return None
    if prepared.trajectory is None:
        calibration = measured_columns(calibration, prepared.readout_sampled)
    grid = (shape[0], shape[1], shape[2])
    return _from_block(calibration, grid)


def maps_of_images(coils: Complex64[Tensor, "items coils p q"]) -> Complex64[Tensor, "items coils p q"]:
    """Maps with the phase of the image, from fully sampled coil images: each item for itself."""
    found: list[Tensor] = []
    for images in coils:
        block = to_kspace(images)[:, None]
        for axis in (-2, -1):
            n = block.shape[axis]
            size = min(n, CALIBRATION_SIZE)
            block = block.narrow(axis, n // 2 - size // 2, size)
        maps, low_resolution = _from_block(block.contiguous(), (1, images.shape[1], images.shape[2]))
        found.append(with_phase(maps.transpose(0, 1), low_resolution.transpose(0, 1))[0])
    return torch.cat(found)


def _from_block(
    calibration: Complex64[Tensor, "coils cz cy cx"], grid: tuple[int, int, int]
) -> tuple[Complex64[Tensor, "coils z y x"], Complex64[Tensor, "coils z y x"]]:
    """Sensitivities, and images of low resolution, of the centre of k-space."""
    maps = estimate_maps(calibration, grid)
    embedded = calibration.new_zeros((calibration.shape[0], *grid))
    centre = calibration
    for axis, n in enumerate(grid, 1):
        size = min(n, centre.shape[axis], CALIBRATION_SIZE)
        centre = centre.narrow(axis, centre.shape[axis] // 2 - size // 2, size)
        window = _window(size, centre.device)
        centre = centre * window.view(-1, *(1 for _ in range(3 - axis)))
    where = [
        slice(n // 2 - size // 2, n // 2 - size // 2 + size) for n, size in zip(grid, centre.shape[1:], strict=True)
    ]
    embedded[:, where[0], where[1], where[2]] = centre
    return maps, to_image(embedded, (-3, -2, -1))


def low_resolution(kspace: Complex64[Tensor, "items coils p q"]) -> Complex64[Tensor, "items coils p q"]:
    """Images of what was measured near the centre of k-space."""
    for axis in (-2, -1):
        n = kspace.shape[axis]
        size = min(n, CALIBRATION_SIZE)
        window = torch.zeros(n, device=kspace.device)
        window[n // 2 - size // 2 : n // 2 - size // 2 + size] = _window(size, kspace.device)
        kspace = kspace * (window[:, None] if axis == -2 else window)
    return to_image(kspace)


def _window(size: int, device: torch.device) -> Tensor:
    """Hamming's window with its peak at size//2; ones where there is nothing to smooth."""
    if size < 4:
        return torch.ones(size, device=device)
    distance = (torch.arange(size, device=device) - size // 2) / size
    return 0.54 + 0.46 * torch.cos(2 * torch.pi * distance)


def _magnitude(coils: Complex64[Tensor, "items coils p q"]) -> Float32[Tensor, "items p q"]:
    return power_of_coils(coils).sqrt_()


def strongest_coil(coils: Complex64[Tensor, "items coils p q"]) -> int:
    """The coil with the most energy in all items together."""
    return int(torch.view_as_real(coils).square().sum((0, 2, 3, 4), dtype=torch.float64).argmax())


def largest_eigenvalue(toeplitz: Toeplitz, shape: tuple[int, int], device: torch.device) -> float:
    """By power iteration from noise, and a little more: it depends on the trajectory alone."""
    vector = torch.randn((1, *shape), dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).to(device)
    largest = 1.0
    for _ in range(POWER_ITERATIONS):
        vector = toeplitz(vector)
        largest = float(torch.linalg.vector_norm(vector))
        vector = vector / max(largest, torch.finfo(torch.float32).tiny)
    return 1.05 * max(largest, torch.finfo(torch.float32).tiny)
