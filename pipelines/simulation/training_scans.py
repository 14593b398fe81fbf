"""Undersampled scans of magnitude images, drawn at random: what a network is trained with.

Drawn for each batch: coils (1 to 32; more than `MOST_COILS` are compressed as the server compresses them), the kind of
pattern (lines at random or evenly, points with a Gaussian density or of a Poisson disc), its acceleration, its
calibration lines (sometimes too few for maps, sometimes none) and whether a side of k-space is missing (partial
Fourier). For each item: coil sensitivities, a smooth phase with some finer detail, the noise and the pattern itself.

Maps are not those that made the data: they are estimated from the noisy calibration lines by what the server uses.

Lines phase-encode the second axis of an image; the images come flipped and transposed, so both directions are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from numpy.typing import NDArray
from torch import Tensor

from models.training.unrolled import Scans
from pipelines.evaluation.samplings import Lines, Plane
from pipelines.operators.fourier import to_kspace
from pipelines.operators.plane_encoding import CartesianPlanes
from pipelines.phantom import birdcage_coils, smooth_phase
from pipelines.preprocess.coils import compress, compression_matrix
from pipelines.preprocess.preparation import centred_box
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES
from pipelines.recon.initial_maps import unit_phase
from pipelines.recon.plane_maps import maps_of_plane, maps_without_calibration
from pipelines.simulation.sampling import poisson_disc

Mask = NDArray[np.bool_]

COILS = (1, 2, 4, 6, 8, 8, 8, 8, 12, 16, 32)
"""How many coils a batch has, each as likely."""
MOST_COILS = 8
RADII, OFFSETS, WINDOWS = (1.15, 2.0), (0.0, 0.6), (0.6, 1.0)
"""Of the coil ring, and the part of its field of view that an image covers."""
UNEVEN = 0.25
"""Standard deviation of the logarithm of what a coil deviates from the ring's by, smoothly."""
NOISE = (0.002, 0.06)
"""Over the brightest pixel, log uniform."""
LINES = 0.6
"""Part of the batches that are sampled along lines."""
LINE_ACCELERATIONS, POINT_ACCELERATIONS = (2.0, 8.0), (3.0, 12.0)
"""Up to these where there are coils enough: of lines at most `1.5 + coils / 2`, of points at most `3 + coils`."""
MOST_SHARE = 0.12
"""Of the lines that calibrate."""
FEW_LINES, PARTIAL = 0.06, 0.05
"""Part of the batches with too few calibration lines, and with partial Fourier."""
BANK, BANK_SIDE = 12, 128
"""Poisson discs take long: so many are drawn once, and cut, turned and flipped."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What all items of a batch have in common."""

    draw: Callable[[np.random.Generator], Mask]


class ScanSimulator:
    """Draws scans; what is drawn depends on the generator alone.

    Args:
        noise: range of the noise over the brightest pixel.
        largest_side: of images, in pixels; `BANK_SIDE` at least.
    """

    def __init__(self, noise: tuple[float, float] = NOISE, largest_side: int = BANK_SIDE) -> None:
        self._noise = noise
        self._side = side = max(largest_side, BANK_SIDE)
        rng = np.random.default_rng(0)
        self._accelerations = np.geomspace(*POINT_ACCELERATIONS, BANK)
        self._discs = [poisson_disc((side, side), each, (10, 10), rng) for each in self._accelerations]

    def __call__(self, images: Float32[Tensor, "items p q"], random: np.random.Generator) -> Scans:
        """Scans of magnitude images."""
        items, p, q = images.shape
        n_coils = COILS[random.integers(len(COILS))]
        draw = self._pattern((p, q), n_coils, random)
        brightest = images.amax((1, 2)).clamp(min=1e-6)
        low, high = np.log(self._noise)
        noise = torch.from_numpy(np.exp(random.uniform(low, high, items)).astype(np.float32)).to(images.device)
        noise = noise * brightest
        coils = torch.stack([_coil_images(image, n_coils, random) for image in images])
        masks = np.stack([draw(random) for _ in range(items)])
        counts = torch.from_numpy(masks).to(images.device, torch.float32)
        white = torch.from_numpy(random.standard_normal((*coils.shape, 2), np.float32)).to(images.device)
        kspace = to_kspace(coils) + torch.view_as_complex(white) * (noise / 2**0.5)[:, None, None, None]
        kspace = kspace * counts[:, None]
        if n_coils > MOST_COILS:
            kspace, coils = _compressed(kspace, coils)
        maps = _maps(kspace, masks)
        encoding = CartesianPlanes(maps, counts)
        phase = unit_phase((maps.conj() * coils).sum(1))
        return Scans(encoding.adjoint(kspace), encoding, noise, images * phase * encoding.support)

    def _pattern(
        self, shape: tuple[int, int], n_coils: int, random: np.random.Generator
    ) -> Callable[[np.random.Generator], Mask]:
        """What draws a mask `(p, q)` for each item of a batch."""
        p, q = shape
        fewest = FEWEST_CALIBRATION_LINES
        central = int(random.integers(fewest, max(fewest + 1, round(MOST_SHARE * q) + 1)))
        if random.random() < FEW_LINES:
            central = int(random.integers(0, fewest))
        one_side = random.uniform(0.6, 0.85) if random.random() < PARTIAL else 1.0
        if random.random() < LINES:
            low, high = LINE_ACCELERATIONS
            most = min(high, 1.5 + n_coils / 2, q / (central + 4))
            acceleration = random.uniform(min(low, most), most)
            lines = Lines(acceleration, central / q, is_even=random.random() < 0.5)

            def draw_lines(rng: np.random.Generator) -> Mask:
                line = lines.mask(q, rng)
                line[round(one_side * q) :] = False
                return np.broadcast_to(line, (p, q)).copy()

            return draw_lines
        low, high = POINT_ACCELERATIONS
        acceleration = random.uniform(low, min(high, 3 + n_coils))
        if random.random() < 0.5:
            plane = Plane(acceleration, max(central, fewest) / min(p, q))
            return lambda rng: plane.mask((p, q), rng)
        return lambda rng: self._disc((p, q), acceleration, rng)

    def _disc(self, shape: tuple[int, int], acceleration: float, rng: np.random.Generator) -> Mask:
        """A disc of the bank, of the acceleration next to this."""
        disc = self._discs[int(np.abs(self._accelerations - acceleration).argmin())]
        disc = disc.T if rng.random() < 0.5 else disc
        p, q = shape
        rows, columns = (np.arange(n) - n // 2 + self._side // 2 for n in (p, q))
        if max(p, q) > self._side:
            raise ValueError(f"images of at most {self._side} pixels a side are simulated, not {p} x {q}")
        return np.ascontiguousarray(disc[np.ix_(rows, columns)])


def _coil_images(
    image: Float32[Tensor, "p q"], n_coils: int, random: np.random.Generator
) -> Complex64[Tensor, "coils p q"]:
    """What coils see of an image, its root sum of squares the image."""
    p, q = image.shape
    part = random.uniform(*WINDOWS)
    full = (round(p / part), round(q / part))
    maps = birdcage_coils(n_coils, full, radius=random.uniform(*RADII), slice_offset=random.uniform(*OFFSETS))
    y, x = (int(random.integers(whole - n + 1)) for whole, n in zip(full, (p, q), strict=True))
    maps = maps[:, y : y + p, x : x + q]
    if n_coils > 1:
        maps = maps * np.exp(UNEVEN * _waves(n_coils, (p, q), random)).astype(np.complex64)
        maps = maps / np.sqrt((np.abs(maps) ** 2).sum(0))
    phase = smooth_phase((p, q), random, strength=random.uniform(0, 1.5))
    fine = _waves(1, (p, q), random, highest=6)[0].real * random.uniform(0, 0.4)
    seen = maps * (phase * np.exp(1j * fine))
    return torch.from_numpy(seen.astype(np.complex64)).to(image.device) * image


def _waves(n: int, shape: tuple[int, int], random: np.random.Generator, highest: int = 1) -> NDArray[np.complex128]:
    """Smooth complex fields of variance about 1: sums of waves of up to `highest` periods along either axis."""
    y, x = (np.exp(1j * np.pi * np.outer(np.arange(-highest, highest + 1), np.linspace(-1, 1, size))) for size in shape)
    k = 2 * highest + 1
    weights = (random.standard_normal((n, k, k)) + 1j * random.standard_normal((n, k, k))) / (2**0.5 * k)
    return np.asarray(np.einsum("nab,ay,bx->nyx", weights, y, x, optimize=True), np.complex128)


def _compressed(kspace: Tensor, coils: Tensor) -> tuple[Tensor, Tensor]:
    """Virtual coils, found from the noisy samples; of k-space and of the true coil images alike."""
    matrices = [compression_matrix(each.flatten(1), MOST_COILS) for each in kspace]
    found = [
        torch.stack([compress(each[:, None], matrix)[:, 0] for each, matrix in zip(some, matrices, strict=True)])
        for some in (kspace, coils)
    ]
    return found[0], found[1]


def _maps(kspace: Complex64[Tensor, "items coils p q"], masks: Mask) -> Complex64[Tensor, "items coils p q"]:
    """As the server estimates them."""
    if kspace.shape[1] == 1:
        return torch.ones_like(kspace)
    found: list[Tensor] = []
    for each, mask in zip(kspace, masks, strict=True):
        box = centred_box(mask, FEWEST_CALIBRATION_LINES)
        if box is None or min(side.stop - side.start for side in box) < FEWEST_CALIBRATION_LINES:
            found.append(maps_without_calibration(each[None])[0])
            continue
        found.append(maps_of_plane(each[:, box[0], box[1]], each.shape[1:]))
    return torch.stack(found)
