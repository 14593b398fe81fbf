"""Proximal map of the total variation of series of images, in space and time. Knows no MRI.

    argmin_Z  t sum over pixels of sqrt(|d_y Z|^2 + |d_x Z|^2 + w^2 |d_t Z|^2)  +  |Z - X|^2 / 2

d are forward differences, 0 at the last pixel and frame: no image and no series is taken for periodic. Solved on its
dual, a projection onto unit balls, by accelerated projected gradient. A few iterations that go on from the dual of a
nearby problem do, such as that of the iteration before.

Reference: Beck and Teboulle 2009, doi 10.1109/TIP.2009.2028250.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float64
from torch import Tensor

AXES = (-2, -1, 0)
"""y, x and frames of images `(frames, ..., y, x)`."""


def shrink_total_variation(
    images: Complex[Tensor, "frames *n y x"],
    threshold: float,
    temporal: float,
    dual: Complex[Tensor, "3 frames *n y x"] | None,
    *,
    iterations: int,
) -> tuple[Complex[Tensor, "frames *n y x"], Complex[Tensor, "3 frames *n y x"]]:
    """The proximal map, and its dual to go on from.

    Args:
        images: X.
        threshold: t, above 0.
        temporal: w, weight of differences from frame to frame.
        dual: of a problem nearby, with the same `temporal`; None begins with 0.
        iterations: of the projected gradient.
    """
    length = threshold * (8 + 4 * temporal**2)  # at least the largest eigenvalue of D D^H, times t
    last: Tensor = images.new_zeros((len(AXES), *images.shape)) if dual is None else dual
    ahead, t = last, 1.0
    for _ in range(iterations):
        found = differences(images - threshold * adjoint_differences(ahead, temporal), temporal)
        found = ahead + found / length
        found = found / found.abs().square().sum(0).sqrt().clamp(min=1)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = found + (t - 1) / following * (found - last)
        last, t = found, following
    return images - threshold * adjoint_differences(last, temporal), last


def total_variation(images: Complex[Tensor, "frames *n y x"], temporal: float) -> Float64[Tensor, ""]:
    """The sum over pixels."""
    return differences(images, temporal).abs().square().sum(0).sqrt().sum(dtype=torch.float64)


def differences(images: Tensor, temporal: float) -> Tensor:
    """Forward differences along y, x and frames, those along frames times their weight."""
    found = images.new_zeros((len(AXES), *images.shape))
    for part, axis, weight in zip(found, AXES, (1.0, 1.0, temporal), strict=True):
        n = images.shape[axis] - 1
        ahead, here = images.narrow(axis, 1, n), images.narrow(axis, 0, n)
        part.narrow(axis, 0, n).copy_(ahead - here).mul_(weight)
    return found


def adjoint_differences(parts: Tensor, temporal: float) -> Tensor:
    """Adjoint of `differences`."""
    found = torch.zeros_like(parts[0])
    for part, axis, weight in zip(parts, AXES, (1.0, 1.0, temporal), strict=True):
        n = found.shape[axis] - 1
        found.narrow(axis, 1, n).add_(part.narrow(axis, 0, n), alpha=weight)
        found.narrow(axis, 0, n).sub_(part.narrow(axis, 0, n), alpha=weight)
    return found
