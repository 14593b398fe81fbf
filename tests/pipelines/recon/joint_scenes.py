"""Frames of phantoms with known truth, for tests of the joint reconstruction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import birdcage_coils, head_phantom, smooth_phase
from pipelines.recon.reconstruction import Prepared, Trajectory


def complex_noise(*shape: int, seed: int = 1) -> Tensor:
    """`E|n|^2 = 1`."""
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def coil_images(coils: int, rows: int, columns: int, frames: int = 1, phase: float = 1.0) -> tuple[Tensor, Tensor]:
    """`(frames, coils, 1, y, x)` and the truth: the image that the root of the sum of squares has, with its phase.

    The last of several frames is half as bright as the first.
    """
    rng = np.random.default_rng(5)
    still = torch.from_numpy(head_phantom(1, rows, columns) * smooth_phase((rows, columns), rng, strength=phase))
    image = still * torch.linspace(1, 0.5, frames)[:, None, None, None]
    maps = torch.from_numpy(birdcage_coils(coils, (rows, columns)))[:, None]
    return image[:, None] * maps, image * maps.abs().square().sum(0).sqrt()


def cartesian(
    coils: int = 4,
    rows: int = 64,
    columns: int = 64,
    *,
    acceleration: int = 1,
    noise_std: float = 0.02,
    calibration: int = 16,
    frames: int = 1,
    seed: int = 2,
    phase_spots: bool = False,
) -> tuple[Prepared, Tensor]:
    """Lines of a phantom, with calibration lines unless these are 0; perhaps with spots out of phase, like fat."""
    images, truth = coil_images(coils, rows, columns, frames)
    if phase_spots:
        turn = torch.ones(rows, columns, dtype=torch.complex64)
        for y, x in ((0.3, 0.4), (0.5, 0.6), (0.7, 0.45)):
            turn[round(y * rows) :, round(x * columns) :][:4, :4] = 1j
        images, truth = images * turn, truth * turn
    kspace = to_kspace(images) + noise_std * complex_noise(*images.shape, seed=seed)
    counts = torch.zeros(frames, 1, rows)
    counts[..., rows // 2 % acceleration :: acceleration] = 1
    first = rows // 2 - calibration // 2
    counts[..., first : first + calibration] = 1
    centre = kspace[0, :, :, first : first + calibration].contiguous() if calibration else None
    columns_measured = torch.ones(columns, dtype=torch.bool)
    kspace = kspace * counts[:, None, ..., None]
    return Prepared(kspace, counts, centre, noise_std, True, columns_measured), truth


def volume(z: int = 12, y: int = 16, x: int = 10, coils: int = 4, noise_std: float = 0.02) -> tuple[Prepared, Tensor]:
    """A slab with both phase encodings undersampled around a calibration block."""
    images, truth = coil_images(coils, y, x)
    profile = torch.hann_window(z + 2, periodic=False)[1:-1][:, None, None]
    images, truth = images * profile, truth * profile
    kspace = to_kspace(images, (-3, -2, -1)) + noise_std * complex_noise(*images.shape)
    counts = (torch.rand((1, z, y), generator=torch.Generator().manual_seed(3)) < 0.4).float()
    block = (slice(z // 2 - 4, z // 2 + 4), slice(y // 2 - 4, y // 2 + 4))
    counts[:, *block] = 1
    centre = kspace[0][:, *block].contiguous()
    prepared = Prepared(
        kspace * counts[:, None, ..., None], counts, centre, noise_std, True, torch.ones(x, dtype=torch.bool)
    )
    return prepared, truth


def radial(
    spokes: int = 48,
    n: int = 48,
    *,
    coils: int = 4,
    noise_std: float = 0.02,
    frames: int = 1,
    turned: bool = False,
    has_calibration: bool = True,
) -> tuple[Prepared, Tensor]:
    """Radial readouts; `turned` ones have another angle in every other frame."""
    images, truth = coil_images(coils, n, n, frames)
    angle = torch.arange(spokes) * torch.pi / spokes
    radius = (torch.arange(n) - n // 2) / n
    angles = torch.stack([angle + (0.02 if turned and frame % 2 else 0.0) for frame in range(frames)])
    positions = torch.stack([angles.cos()[..., None] * radius, angles.sin()[..., None] * radius], -1)
    measured = torch.ones(frames, spokes, n, dtype=torch.bool)
    samples = NonUniform(positions, (n, n), measured)(images)
    samples = samples + noise_std * complex_noise(*samples.shape)
    low = slice(n // 2 - 8, n // 2 + 8)
    centre = to_kspace(images)[0, :, :, low, low].contiguous() if has_calibration else None
    prepared = Prepared(
        samples,
        torch.ones(frames, 1, spokes),
        centre,
        noise_std,
        True,
        torch.ones(n, dtype=torch.bool),
        Trajectory(positions, (n, n), measured),
    )
    return prepared, truth


def nrmse(image: Tensor, truth: Tensor) -> float:
    """Of magnitudes, without any factor: brightness counts."""
    apart = torch.linalg.vector_norm(image.abs() - truth.abs())
    return float(apart / torch.linalg.vector_norm(truth))
