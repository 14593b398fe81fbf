"""Frames made ready for an unrolled network: planes with their encoding, adjoint image, data term and noise.

Cartesian planes are those of `pipelines.recon.planes`. Maps come from the calibration region of the slice and of its
neighbours where the group has them, from any smooth centre of k-space where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.operators.plane_data import CartesianData, DataTerm, NonUniformData
from pipelines.operators.plane_encoding import CartesianPlanes, PlaneEncoding, RadialPlanes
from pipelines.operators.toeplitz import Toeplitz
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.joint_start import largest_eigenvalue
from pipelines.recon.nonuniform_zero_filled import frame_densities, trajectory_of
from pipelines.recon.plane_maps import maps_without_calibration
from pipelines.recon.planes import make_planes
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import measured_columns


@dataclass(frozen=True, slots=True)
class PlaneScan:
    """Planes that are reconstructed side by side.

    Attributes:
        maps: coil sensitivities.
        encoding: with them.
        adjoint: `A^H y` of the encoding.
        noise: root of `E|n|^2` of a sample of weight 1.
        data: how far coil images are from what was measured.
        draw_noise: `A^H n` of noise as the measurement has it.
    """

    maps: Complex64[Tensor, "items coils p q"]
    encoding: PlaneEncoding
    adjoint: Complex64[Tensor, "items p q"]
    noise: Float32[Tensor, "items"]
    data: DataTerm
    draw_noise: Callable[[torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class PlaneScans:
    """All planes of a job, in parts that fit into memory.

    Attributes:
        parts: made one at a time.
        to_volumes: what brings planes `(items, p, q)`, parts joined, to `(frames, z, y, x)`.
    """

    parts: Iterator[PlaneScan]
    to_volumes: Callable[[Tensor], Tensor]


def make_scans(prepared: Prepared, most_values: int) -> PlaneScans:
    """Planes of Cartesian or non-Cartesian frames.

    Args:
        prepared: frames.
        most_values: complex values of coil images in one part; a part holds at least one plane.
    """
    return _nonuniform(prepared, most_values) if prepared.trajectory is not None else _cartesian(prepared, most_values)


def _cartesian(prepared: Prepared, most_values: int) -> PlaneScans:
    planes = make_planes(prepared)
    shape = tuple(prepared.kspace.shape[2:])
    known = _calibrated(prepared, (shape[0], shape[1], shape[2]))
    items, coils, rows, columns = planes.kspace.shape
    size = max(1, most_values // (coils * rows * columns))

    def parts() -> Iterator[PlaneScan]:
        for first in range(0, items, size):
            part = slice(first, min(first + size, items))
            kspace, counts = planes.kspace[part], planes.weights[part]
            if known is None:
                maps = maps_without_calibration(kspace)
            else:
                maps = planes.of_volumes(known, range(part.start, part.stop))
            encoding = CartesianPlanes(maps, counts)
            root = prepared.noise_std * torch.where(counts > 0, counts, torch.inf).rsqrt()

            def draw(generator: torch.Generator, encoding: CartesianPlanes = encoding, root: Tensor = root) -> Tensor:
                items, coils, rows, columns = encoding.maps.shape
                white = torch.randn((items, coils, rows, columns), dtype=torch.complex64, generator=generator)
                return encoding.adjoint(white.to(root.device) * root[:, None])

            yield PlaneScan(
                maps,
                encoding,
                encoding.adjoint(kspace),
                prepared.noise_std / encoding.most.sqrt(),
                CartesianData.of_kspace(kspace, counts, prepared.noise_std),
                draw,
            )

    return PlaneScans(parts(), planes.to_volumes)


def _nonuniform(prepared: Prepared, most_values: int) -> PlaneScans:
    trajectory = trajectory_of(prepared)
    shape = trajectory.shape
    known = _calibrated(prepared, (1, *shape))
    density = frame_densities(trajectory)
    which, first = distinct_frames(trajectory.positions, trajectory.measured)
    size = max(1, most_values // (prepared.kspace.shape[1] * prod(shape)))
    jobs: list[tuple[int, list[int]]] = []
    for index in range(len(first)):
        frames = [frame for frame, its in enumerate(which) if its == index]
        jobs.extend((index, frames[at : at + size]) for at in range(0, len(frames), size))
    order = [frame for _, frames in jobs for frame in frames]

    def parts() -> Iterator[PlaneScan]:
        for index, frames in jobs:
            area = density[first[index]]
            toeplitz = Toeplitz(trajectory.positions[first[index]], area, shape)
            largest = largest_eigenvalue(toeplitz, shape, prepared.kspace.device)
            some = NonUniform(trajectory.positions[frames], shape, trajectory.measured[frames])
            coils = some.adjoint(prepared.kspace[frames] * area)[:, :, 0]
            if known is None:
                maps = maps_without_calibration(to_kspace(coils))
            else:
                maps = known[:, 0].expand(len(frames), -1, -1, -1)
            total, squares = (float(each.sum()) for each in (area, area.square()))
            # Weighted noise is not white; this white one has its power.
            noise_std = prepared.noise_std * (squares / max(total, torch.finfo(torch.float32).tiny)) ** 0.5
            n = len(frames)
            power = torch.view_as_real(prepared.kspace[frames]).square().sum((1, 2, -1))
            data = NonUniformData(
                toeplitz,
                coils,
                (power * area).sum((1, 2), dtype=torch.float64),
                torch.full((n,), noise_std, device=coils.device),
                torch.full((n,), coils.shape[1] * total**2 / max(squares, 1e-30), dtype=torch.float64),
                largest,
            )

            def draw(
                generator: torch.Generator,
                some: NonUniform = some,
                area: Tensor = area,
                maps: Tensor = maps,
                largest: float = largest,
            ) -> Tensor:
                white = torch.randn((len(maps), *prepared.kspace.shape[1:]), dtype=torch.complex64, generator=generator)
                noise = some.adjoint(white.to(area.device) * (prepared.noise_std * area))[:, :, 0]
                return (noise * maps.conj()).sum(1) / largest

            yield PlaneScan(
                maps,
                RadialPlanes(maps, toeplitz, largest),
                (coils * maps.conj()).sum(1) / largest,
                torch.full((n,), noise_std / largest**0.5, device=coils.device),
                data,
                draw,
            )

    def to_volumes(planes: Tensor) -> Tensor:
        frames = torch.empty_like(planes)
        frames[order] = planes
        return frames[:, None]

    return PlaneScans(parts(), to_volumes)


def _calibrated(prepared: Prepared, shape: tuple[int, int, int]) -> Complex64[Tensor, "coils z y x"] | None:
    """Maps from the calibration region of the slice and its neighbours; None without one."""
    if prepared.calibration is None:
        return None
    blocks = [prepared.calibration, *prepared.neighbours]
    if prepared.trajectory is None:
        blocks = [measured_columns(block, prepared.readout_sampled) for block in blocks]
    return estimate_maps(blocks[0], shape, blocks[1:])
