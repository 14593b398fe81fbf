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

from pipelines.operators.fourier import to_image
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.operators.plane_data import CartesianData, DataTerm, NonUniformData
from pipelines.operators.toeplitz import Toeplitz
from pipelines.preprocess.sensitivities import CALIBRATION_SIZE, estimate_maps
from pipelines.recon.initial_maps import from_images, with_phase
from pipelines.recon.nonuniform_zero_filled import frame_densities, trajectory_of
from pipelines.recon.planes import make_planes
from pipelines.recon.reconstruction import Prepared

POWER_ITERATIONS = 12


@dataclass(frozen=True, slots=True)
class Start:
    """Planes that are estimated side by side.

    Attributes:
        data: D in the units of k-space.
        noise_std: of one measurement, in the units of k-space.
        image: first image.
        maps: first maps, length 1 where known, with the phase of the image.
        phase: that of the image, to give it back.
    """

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
        to_volumes: what brings planes `(items, p, q)`, parts joined, to `(frames, z, y, x)`.
    """

    parts: Iterator[Start]
    to_volumes: Callable[[Tensor], Tensor]


def make_starts(prepared: Prepared, most_values: int) -> Starts:
    """Planes of Cartesian or non-Cartesian frames.

    Args:
        prepared: frames.
        most_values: complex values of coil images in one part; a part holds at least one plane.
    """
    return _nonuniform(prepared) if prepared.trajectory is not None else _cartesian(prepared, most_values)


def _cartesian(prepared: Prepared, most_values: int) -> Starts:
    planes = make_planes(prepared)
    volume = tuple(prepared.kspace.shape[2:])
    items, coils, rows, columns = planes.kspace.shape
    known = None if prepared.calibration is None else _from_calibration(prepared.calibration, volume)
    size = max(1, most_values // (coils * rows * columns))

    def parts() -> Iterator[Start]:
        for first in range(0, items, size):
            part = slice(first, first + size)
            kspace = planes.kspace[part]
            if known is None:
                maps, phase = from_images(_low_resolution(kspace))
            else:
                espirit, images = (planes.of_volumes(each)[part] for each in known)
                maps, phase = with_phase(espirit, images)
            yield Start(
                CartesianData.of_kspace(kspace, planes.weights[part], prepared.noise_std),
                prepared.noise_std,
                _magnitude(to_image(kspace)),
                maps,
                phase,
            )

    return Starts(parts(), planes.to_volumes)


def _nonuniform(prepared: Prepared) -> Starts:
    trajectory = trajectory_of(prepared)
    shape = trajectory.shape
    density = frame_densities(trajectory)
    weighted = prepared.kspace * density[:, None, None]
    coils = NonUniform(trajectory.positions, shape, trajectory.measured).adjoint(weighted)[:, :, 0]
    maps, phase = _nonuniform_maps(prepared, coils, shape)
    which, first = distinct_frames(trajectory.positions, trajectory.measured)
    order = sorted(range(len(which)), key=lambda frame: which[frame])

    def parts() -> Iterator[Start]:
        for index, of in enumerate(first):
            frames = [frame for frame in order if which[frame] == index]
            area = density[of]
            toeplitz = Toeplitz(trajectory.positions[of], area, shape)
            noise_std = prepared.noise_std * float(area.square().sum() / area.sum()) ** 0.5
            energy = (density[frames][:, None, None] * prepared.kspace[frames].abs().square()).sum(
                (1, 2, 3, 4), dtype=torch.float64
            )
            n_samples = prepared.kspace.shape[1] * float(area.sum()) * prepared.noise_std**2 / noise_std**2
            data = NonUniformData(
                toeplitz,
                coils[frames],
                energy,
                torch.full((len(frames),), noise_std, device=coils.device),
                torch.full((len(frames),), n_samples, dtype=torch.float64, device=coils.device),
                _largest_eigenvalue(toeplitz, coils[frames[:1], :1]),
            )
            yield Start(data, noise_std, _magnitude(coils[frames]), maps[frames], phase[frames])

    def to_volumes(planes: Tensor) -> Tensor:
        frames = torch.empty_like(planes)
        frames[order] = planes
        return frames[:, None]

    return Starts(parts(), to_volumes)


def _nonuniform_maps(prepared: Prepared, coils: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps and phase of each frame."""
    if prepared.calibration is None:
        return from_images(coils)
    known = _from_calibration(prepared.calibration, (1, *shape))
    maps, phase = with_phase(known[0].transpose(0, 1), known[1].transpose(0, 1))
    return maps.expand(coils.shape[0], -1, -1, -1), phase.expand(coils.shape[0], -1, -1)


def _from_calibration(
    calibration: Complex64[Tensor, "coils cz cy cx"], shape: tuple[int, ...]
) -> tuple[Complex64[Tensor, "coils z y x"], Complex64[Tensor, "coils z y x"]]:
    """Sensitivities, and images of low resolution."""
    grid = (shape[0], shape[1], shape[2])
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


def _low_resolution(kspace: Complex64[Tensor, "items coils p q"]) -> Complex64[Tensor, "items coils p q"]:
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
    return torch.view_as_real(coils).square().sum((1, -1)).sqrt()


def _largest_eigenvalue(toeplitz: Toeplitz, start: Tensor) -> float:
    """By power iteration, and a little more."""
    vector = start[0] / torch.linalg.vector_norm(start)
    largest = 1.0
    for _ in range(POWER_ITERATIONS):
        vector = toeplitz(vector)
        largest = float(torch.linalg.vector_norm(vector))
        vector = vector / max(largest, torch.finfo(torch.float32).tiny)
    return 1.05 * max(largest, torch.finfo(torch.float32).tiny)
