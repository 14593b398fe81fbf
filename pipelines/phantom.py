"""Things to simulate: a head phantom, smooth image phase, coil sensitivities and receiver noise; knows no protocol.

Lengths are relative: the field of view goes from -1 to 1 along x (left to right of the array) and y (top to bottom).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Ellipsoids of the phantom: added intensity, half axes (x, y, z), centre (x, y, z), rotation in the plane in degrees.
# Proportions after Shepp & Logan 1974 (doi:10.1109/TNS.1974.6499235), contrasts chosen like a T1-weighted head.
_ELLIPSOIDS: Final = (
    (0.85, (0.69, 0.92, 0.95), (0.0, 0.0, 0.0), 0.0),  # scalp
    (-0.75, (0.655, 0.875, 0.90), (0.0, 0.0, 0.0), 0.0),  # skull
    (0.45, (0.61, 0.825, 0.85), (0.0, 0.01, 0.0), 0.0),  # grey matter
    (0.20, (0.50, 0.70, 0.75), (0.0, 0.01, 0.0), 0.0),  # white matter
    (-0.55, (0.09, 0.27, 0.35), (0.16, 0.05, 0.05), -18.0),  # ventricles
    (-0.55, (0.09, 0.27, 0.35), (-0.16, 0.05, 0.05), 18.0),
    (-0.20, (0.13, 0.16, 0.20), (0.24, 0.02, 0.0), 0.0),  # deep grey matter
    (-0.20, (0.13, 0.16, 0.20), (-0.24, 0.02, 0.0), 0.0),
    (0.25, (0.05, 0.05, 0.25), (0.0, -0.42, 0.0), 0.0),
    (-0.15, (0.03, 0.06, 0.20), (-0.32, -0.45, 0.0), 30.0),
    (0.20, (0.035, 0.035, 0.15), (0.30, 0.50, 0.0), 0.0),
    (0.20, (0.018, 0.018, 0.15), (0.20, 0.58, 0.0), 0.0),
)
_SUPERSAMPLING = 4


def head_phantom(n_slices: int, n_y: int, n_x: int) -> NDArray[np.float32]:
    """A head of ellipsoids, `(slices, y, x)` float32 between 0 and 1.

    Each pixel is the mean over a 4 x 4 grid of points within it, so that edges are not jagged. Slices lie evenly
    within the
    middle third of the head.
    """
    fine_y, fine_x = np.meshgrid(
        _centred_axis(n_y * _SUPERSAMPLING), _centred_axis(n_x * _SUPERSAMPLING), indexing="ij", sparse=True
    )
    image = np.zeros((n_slices, n_y, n_x), np.float32)
    for index, z in enumerate((np.arange(n_slices) - (n_slices - 1) / 2) * (0.6 / max(n_slices, 1))):
        fine = np.zeros((n_y * _SUPERSAMPLING, n_x * _SUPERSAMPLING), np.float32)
        for intensity, half_axes, centre, degrees in _ELLIPSOIDS:
            cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
            x, y = fine_x - centre[0], fine_y - centre[1]
            along = (cosine * x + sine * y) / half_axes[0]
            across = (-sine * x + cosine * y) / half_axes[1]
            fine += np.float32(intensity) * (along**2 + across**2 + ((z - centre[2]) / half_axes[2]) ** 2 <= 1)
        blocks = fine.reshape(n_y, _SUPERSAMPLING, n_x, _SUPERSAMPLING)
        image[index] = np.clip(blocks.mean(axis=(1, 3)), 0, 1)
    return image


def smooth_phase(shape: tuple[int, int], rng: np.random.Generator, *, strength: float = 1.0) -> NDArray[np.complex64]:
    """Smooth phase as field inhomogeneity and receive chain leave it, `(y, x)` complex64 of magnitude 1.

    A random polynomial of third order plus three slow waves; `strength` is the standard deviation of the angle in
    radians.
    """
    y, x = np.meshgrid(_centred_axis(shape[0]), _centred_axis(shape[1]), indexing="ij")
    angle = np.zeros(shape)
    for order_y in range(4):
        for order_x in range(4 - order_y):
            angle += rng.normal() * y**order_y * x**order_x
    for _ in range(3):
        wave_y, wave_x, start = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0, 2 * np.pi)
        angle += 0.5 * np.cos(np.pi * (wave_y * y + wave_x * x) + start)
    spread = float(angle.std())
    if spread > 0:
        angle = (angle - angle.mean()) * (strength / spread)
    return np.asarray(np.exp(1j * angle), np.complex64)


def birdcage_coils(
    n_coils: int, shape: tuple[int, int], *, slice_offset: float = 0.0, radius: float = 1.5
) -> NDArray[np.complex64]:
    """Sensitivities of coils around the object, `(coils, y, x)` complex64, root sum of squares 1 everywhere.

    Each coil falls off with the inverse distance to its centre and carries the phase of its angle, as in the birdcage
    model.

    Args:
        n_coils: coils on the ring; one coil has a constant sensitivity of 1.
        shape: y, x.
        slice_offset: distance of the slice from the plane of the ring, relative to half the field of view.
        radius: radius of the ring, relative to half the field of view.
    """
    if n_coils == 1:
        return np.ones((1, *shape), np.complex64)
    y, x = np.meshgrid(_centred_axis(shape[0]), _centred_axis(shape[1]), indexing="ij")
    maps = np.empty((n_coils, *shape), np.complex128)
    for coil in range(n_coils):
        angle = 2 * np.pi * coil / n_coils
        dx, dy = x - radius * np.cos(angle), y - radius * np.sin(angle)
        distance = np.sqrt(dx**2 + dy**2 + slice_offset**2)
        maps[coil] = np.exp(1j * (np.arctan2(dx, -dy) + angle)) / distance
    maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    return maps.astype(np.complex64)


def birdcage_coils_3d(
    n_coils: int, shape: tuple[int, int, int], *, aspect: float = 1.0, radius: float = 1.5
) -> NDArray[np.complex64]:
    """Sensitivities that vary along z as well, `(coils, z, y, x)` complex64, root sum of squares 1 everywhere.

    Coils sit on two rings, in turn above and below the middle of the slab, so that aliases along z can be told apart.

    Args:
        n_coils: coils in all; one coil has a constant sensitivity of 1.
        shape: z, y, x.
        aspect: extent of the slab along z over the field of view along y.
        radius: radius of the rings, relative to half the field of view.
    """
    if n_coils == 1:
        return np.ones((1, *shape), np.complex64)
    z, y, x = np.meshgrid(*(_centred_axis(n) for n in shape), indexing="ij", sparse=True)
    maps = np.empty((n_coils, *shape), np.complex128)
    for coil in range(n_coils):
        angle = 2 * np.pi * coil / n_coils
        height = (0.5 if coil % 2 else -0.5) * aspect
        dx, dy, dz = x - radius * np.cos(angle), y - radius * np.sin(angle), z * aspect - height
        # A loop sees along its axis, so sensitivity falls off faster along z than with the distance alone.
        distance = np.sqrt(dx**2 + dy**2 + (3 * dz) ** 2)
        maps[coil] = np.exp(1j * (np.arctan2(dx, -dy) + angle + 0.5 * dz)) / distance
    maps /= np.sqrt((np.abs(maps) ** 2).sum(axis=0))
    return maps.astype(np.complex64)


def beating_heart(n_phases: int, n_y: int, n_x: int) -> NDArray[np.float32]:
    """A chest with a beating ventricle through one heart cycle, `(phases, y, x)` float32 between 0 and 1.

    Phase 0 is the R peak (end of diastole). The ventricle contracts to two thirds of its radius at 35 % of the cycle,
    relaxes, and rests from 75 % on; its wall thickens so that its area stays. The rest of the chest is still.
    """
    s = _SUPERSAMPLING
    y, x = np.meshgrid(_centred_axis(n_y * s), _centred_axis(n_x * s), indexing="ij", sparse=True)
    chest = 0.35 * ((x / 0.85) ** 2 + (y / 0.62) ** 2 <= 1)
    chest = chest - 0.25 * (((np.abs(x) - 0.42) / 0.28) ** 2 + (y / 0.42) ** 2 <= 1)
    chest = chest + 0.45 * ((x / 0.09) ** 2 + ((y - 0.45) / 0.09) ** 2 <= 1)
    from_heart = np.sqrt((x - 0.12) ** 2 + ((y + 0.08) / 1.1) ** 2)
    frames = np.empty((n_phases, n_y, n_x), np.float32)
    for number in range(n_phases):
        blood = 0.20 * heart_radius(number / n_phases)
        wall = np.sqrt(blood**2 + 0.26**2 - 0.20**2)
        fine = np.where(from_heart <= wall, 0.5, chest)
        fine = np.where(from_heart <= blood, 1.0, fine)
        frames[number] = fine.reshape(n_y, s, n_x, s).mean(axis=(1, 3))
    return frames


def heart_radius(phase: float) -> float:
    """Radius of the ventricle relative to the end of diastole, by the part of the heart cycle that is over (0 to 1)."""
    phase %= 1.0
    if phase < 0.35:
        return float(1 - np.sin(np.pi * phase / 0.7) ** 2 / 3)
    if phase < 0.75:
        return float(1 - np.cos(np.pi * (phase - 0.35) / 0.8) ** 2 / 3)
    return 1.0


def noise_covariance(
    n_coils: int, standard_deviation: float, rng: np.random.Generator, *, correlation: float = 0.25, spread: float = 0.2
) -> NDArray[np.complex128]:
    """Covariance E[n n^H] of receiver noise, `(coils, coils)` complex128, Hermitian and positive definite.

    Args:
        n_coils: receive channels.
        standard_deviation: root of the mean over coils of E|n|^2.
        rng: draws the gains and phases of the channels.
        correlation: magnitude of the correlation between neighbours on the ring; it falls geometrically with the
            distance.
        spread: relative spread of the noise level from coil to coil.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation of neighbouring coils must be at least 0 and less than 1, not {correlation}")
    difference = np.abs(np.arange(n_coils)[:, None] - np.arange(n_coils)[None, :])
    # Exponential decay with the distance along a circle is positive definite (its Fourier coefficients are positive).
    ring = np.minimum(difference, n_coils - difference)
    levels = np.clip(1 + spread * rng.standard_normal(n_coils), 0.4, 2.0)
    gains = levels * np.exp(2j * np.pi * rng.uniform(size=n_coils))
    covariance = (np.float64(correlation) ** ring) * (gains[:, None] * gains[None, :].conj())
    level = float(np.trace(covariance).real) / n_coils
    return np.asarray(covariance * (standard_deviation**2 / level), np.complex128)


def draw_noise(
    covariance: NDArray[np.complex128], shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Circular complex Gaussian noise with this covariance of coils, `(*shape[:-1], coils, shape[-1])` complex64."""
    n_coils = len(covariance)
    if not np.any(covariance):
        return np.zeros((*shape[:-1], n_coils, shape[-1]), np.complex64)
    white = rng.standard_normal((*shape[:-1], n_coils, 2 * shape[-1]), np.float32).view(np.complex64)
    colour = (np.linalg.cholesky(covariance) * np.sqrt(0.5)).astype(np.complex64)
    return np.asarray(np.matmul(colour, white), np.complex64)


def _centred_axis(n: int) -> NDArray[np.float64]:
    """Coordinates from -1 to 1 with 0 at index n//2, where the centred Fourier transform has its centre too."""
    return np.asarray((np.arange(n) - n // 2) * (2 / n), np.float64)
