"""A beating heart, undersampled with other lines in each frame: what tests of cine reconstructions work on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.operators.fourier import to_kspace
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import beating_heart, birdcage_coils
from pipelines.recon.reconstruction import Prepared, Trajectory

FRAMES, ROWS, COLUMNS, COILS = 10, 64, 48, 4
CENTRAL = 6


def complex_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def coil_images(coils: int = COILS) -> tuple[Tensor, Tensor]:
    """Coil images `(frames, coils, 1, y, x)` with a smooth phase, and the magnitude of the truth."""
    truth = torch.from_numpy(beating_heart(FRAMES, ROWS, COLUMNS))
    phase = torch.exp(1j * torch.linspace(0, 2, COLUMNS)).to(torch.complex64)
    maps = torch.from_numpy(birdcage_coils(coils, (ROWS, COLUMNS)))
    return (truth * phase)[:, None, None] * maps[:, None], truth


def cartesian_cine(
    lines: int = 14, noise_std: float = 0.02, *, coils: int = COILS, same: bool = False, seed: int = 1
) -> tuple[Prepared, Tensor]:
    """Frames with `lines` lines each, `CENTRAL` of them at the centre; `same` for the same ones in all frames."""
    images, truth = coil_images(coils)
    generator = torch.Generator().manual_seed(seed)
    first = ROWS // 2 - CENTRAL // 2
    outer = torch.tensor([line for line in range(ROWS) if not first <= line < first + CENTRAL])
    counts = torch.zeros(FRAMES, 1, ROWS)
    counts[:, :, first : first + CENTRAL] = 1
    for frame in range(FRAMES):
        chosen = outer[torch.randperm(len(outer), generator=generator)[: lines - CENTRAL]]
        counts[slice(None) if same else frame, 0, chosen] = 1
        if same:
            break
    kspace = to_kspace(images, (-3, -2, -1))
    kspace = (kspace + noise_std * complex_noise(*kspace.shape)) * (counts > 0)[:, None, ..., None]
    total = counts.sum(0)
    box = slice(ROWS // 2 - 8, ROWS // 2 + 8) if bool((total[0, ROWS // 2 - 8 : ROWS // 2 + 8] > 0).all()) else None
    box = box or slice(first, first + CENTRAL)
    calibration = kspace[:, :, :, box].sum(0) / total[:, box, None].clamp(min=1)
    return Prepared(
        kspace, counts, calibration.contiguous(), noise_std, True, torch.ones(COLUMNS, dtype=torch.bool)
    ), truth


def radial_cine(spokes: int = 16, noise_std: float = 0.01, *, same: bool = False) -> tuple[Prepared, Tensor]:
    """Frames with golden-angle spokes on a square grid; `same` for the same spokes in all frames."""
    truth = torch.from_numpy(beating_heart(FRAMES, COLUMNS, COLUMNS))
    maps = torch.from_numpy(birdcage_coils(COILS, (COLUMNS, COLUMNS)))
    images = truth.to(torch.complex64)[:, None, None] * maps[:, None]
    golden = math.pi * (math.sqrt(5) - 1) / 2
    numbers = torch.arange(FRAMES * spokes).reshape(FRAMES, spokes)
    angles = golden * (numbers[:1].expand(FRAMES, spokes) if same else numbers)
    radius = (torch.arange(2 * COLUMNS) - COLUMNS) / (2 * COLUMNS)
    positions = torch.stack([radius * angle[..., None] for angle in (torch.cos(angles), torch.sin(angles))], -1)
    positions = positions.to(torch.float32)
    measured = torch.ones(positions.shape[:-1], dtype=torch.bool)
    shape = (COLUMNS, COLUMNS)
    kspace = NonUniform(positions, shape, measured)(images)
    kspace = kspace + noise_std * complex_noise(*kspace.shape)
    centre = to_kspace(images.mean(0), (-3, -2, -1))[..., COLUMNS // 2 - 8 : COLUMNS // 2 + 8, :]
    return Prepared(
        kspace, torch.ones(FRAMES, 1, spokes), centre.contiguous(), noise_std, True,
        torch.ones(2 * COLUMNS, dtype=torch.bool), Trajectory(positions, shape, measured),
    ), truth  # fmt: skip


def error(images: Tensor, truth: Tensor) -> float:
    """NRMSE of the magnitude of `(frames, 1, y, x)`."""
    return float((images[:, 0].abs() - truth).norm() / truth.norm())
