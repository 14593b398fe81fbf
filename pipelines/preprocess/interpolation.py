"""From a coarse periodic grid to the grid of the image: plain values, and vectors that have no phase of their own.

A unit vector known up to its phase (an eigenvector) is made interpolable by a gauge: one of its components is made
real. Where that component passes through zero inside the object, at single points of a plane and on lines of a volume,
the gauge winds around the point like a vortex, and interpolation across it mixes opposite phases: the result points in
a wrong direction, and an image made with it has a dotted streak there. Around such points each pixel is interpolated
in a gauge of its own, the phase of the coarse vector next to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor
from torch.nn.functional import max_pool3d

LANCZOS_REACH = 4

SMOOTH_STEP_RAD = 0.5
"""Largest change of phase from one coarse point to the next that is interpolated with all other pixels. With 0.8 or
less the maps of a 14-channel phantom and of brains with 8 and 12 channels are those of the full grid, with 1.2 or more
not quite; without this their largest error was 0.25, 0.9 and 1.4 (unit vectors)."""

PIXELS_AT_ONCE = 1 << 9
"""Their neighbours stay in cache."""


def interpolate(values: Complex64[Tensor, "n gz gy gx"], shape: Sequence[int]) -> Complex64[Tensor, "n z y x"]:
    """Periodic Lanczos interpolation along each axis; the last first, while the others are still short."""
    for axis, n in reversed(list(enumerate(shape, start=1))):
        coarse = values.shape[axis]
        if coarse == n:
            continue
        weights = _lanczos(n, coarse).to(values.device)
        if axis == 3:
            values = values @ weights.mT.to(values.dtype)
        else:
            # The weights are real: on the real view this is half the work of a complex product.
            parts = torch.view_as_real(values.contiguous())
            rest = math.prod(parts.shape[axis + 1 :])
            parts = weights @ parts.reshape(-1, coarse, rest)
            values = torch.view_as_complex(parts.view(*values.shape[:axis], n, *values.shape[axis + 1 :], 2))
    return values.contiguous()


def interpolate_directions(
    vectors: Complex64[Tensor, "gz gy gx components"], inside: Bool[Tensor, "z y x"]
) -> Complex64[Tensor, "components z y x"]:
    """Interpolate unit vectors whose phase means nothing; in the result the first component is real and not negative.

    Args:
        vectors: on the coarse grid, each with any phase.
        inside: pixels where the direction matters; elsewhere it may be wrong near a vortex.
    """
    vectors = _first_real(vectors)
    values = interpolate(vectors.movedim(-1, 0), inside.shape)
    pixels = torch.nonzero(_near_vortex(vectors, inside.shape) & inside)
    for some in torch.split(pixels, PIXELS_AT_ONCE) if len(pixels) else ():
        values[:, some[:, 0], some[:, 1], some[:, 2]] = _first_real(_in_own_gauge(vectors, some, inside.shape)).mT
    return values


def _first_real(vectors: Complex64[Tensor, "... n"]) -> Complex64[Tensor, "... n"]:
    """Vectors turned so that their first component is real and not negative."""
    first = vectors[..., :1]
    return vectors * torch.where(first == 0, 1.0, torch.sgn(first).conj())


def _near_vortex(vectors: Complex64[Tensor, "gz gy gx n"], shape: Sequence[int]) -> Bool[Tensor, "z y x"]:
    """Pixels whose interpolation reaches over a step of phase that is not smooth."""
    steep = torch.zeros(vectors.shape[:3], dtype=torch.bool, device=vectors.device)
    for axis in range(3):
        if vectors.shape[axis] > 1:
            step = torch.linalg.vecdot(vectors, vectors.roll(-1, axis)).angle().abs() > SMOOTH_STEP_RAD
            steep |= step | step.roll(1, axis)
    reach = [min(LANCZOS_REACH, coarse) if coarse != n else 0 for coarse, n in zip(steep.shape, shape, strict=True)]
    around = steep[None].float()
    for axis, size in enumerate(reach):
        around = torch.cat([around.narrow(axis + 1, steep.shape[axis] - size, size), around,
                            around.narrow(axis + 1, 0, size)], axis + 1)  # fmt: skip
    around = max_pool3d(around, [2 * size + 1 for size in reach], stride=1)[0] > 0
    nearest = [_nearest(n, coarse).to(vectors.device) for n, coarse in zip(shape, steep.shape, strict=True)]
    return around[nearest[0]][:, nearest[1]][:, :, nearest[2]]


def _in_own_gauge(
    vectors: Complex64[Tensor, "gz gy gx n"], pixels: Tensor, shape: Sequence[int]
) -> Complex64[Tensor, "pixels n"]:
    """Lanczos interpolation of some pixels `(pixels, 3)`, with neighbours turned to the phase of the nearest one."""
    nearest: list[Tensor] = []
    index: list[Tensor] = []
    weights = torch.ones(len(pixels), 1, 1, 1, device=vectors.device)
    for axis, (n, coarse) in enumerate(zip(shape, vectors.shape[:3], strict=True)):
        where = pixels[:, axis]
        nearest.append(_nearest(n, coarse).to(vectors.device)[where])
        if n == coarse:
            index.append(where[:, None])
            continue
        row = _lanczos(n, coarse).to(vectors.device)[where]
        largest = row.abs().topk(min(2 * LANCZOS_REACH, coarse), 1).indices
        index.append(largest)
        view = [-1 if each == axis else 1 for each in range(3)]
        weights = weights * row.gather(1, largest).view(len(pixels), *view)
    z, y, x = (each.view(len(pixels), *(-1 if a == axis else 1 for a in range(3))) for axis, each in enumerate(index))
    around = vectors[z, y, x].flatten(1, 3)
    own = vectors[nearest[0], nearest[1], nearest[2]]
    turn = torch.sgn(torch.linalg.vecdot(around, own[:, None]))
    return ((weights.expand(-1, *(each.shape[1] for each in index)).flatten(1) * turn)[:, None] @ around)[:, 0]


def _positions(n: int, n_coarse: int) -> Tensor:
    """Pixels of a grid of n in units of a coarse one, both with their centre at index n//2."""
    return (torch.arange(n, dtype=torch.float64) - n // 2) * n_coarse / n + n_coarse // 2


def _nearest(n: int, n_coarse: int) -> Tensor:
    return _positions(n, n_coarse).round().long() % n_coarse


def _lanczos(n: int, n_coarse: int) -> Float32[Tensor, "n n_coarse"]:
    """Weights from a periodic grid of `n_coarse` points to one of `n`, both with their centre at index n//2."""
    gap = _positions(n, n_coarse)[:, None] - torch.arange(n_coarse)
    gap = torch.remainder(gap + n_coarse / 2, n_coarse) - n_coarse / 2
    weights = torch.where(gap.abs() < LANCZOS_REACH, torch.sinc(gap) * torch.sinc(gap / LANCZOS_REACH), 0.0)
    return (weights / weights.sum(1, keepdim=True)).to(torch.float32)
