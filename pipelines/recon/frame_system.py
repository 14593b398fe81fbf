"""Frames of one slice as one linear system: A^H A and A^H y of all of them, each frame a row.

Reconstructions that use what frames have in common look at the matrix of frames by pixels (Casorati matrix). Its pixels
lie here in the order in which A^H A is fastest, not in that of an image; `to_images` brings rows back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.encoding import ColumnNormal
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.operators.sampling import sampling_weights
from pipelines.operators.toeplitz import Toeplitz
from pipelines.recon.nonuniform_zero_filled import frame_densities, trajectory_of
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import right_side


@dataclass(frozen=True, slots=True)
class FrameSystem:
    """`A^H A x = A^H y` of all frames.

    Attributes:
        normal: A^H A of frames `(frames, pixels)`.
        right_side: A^H y.
        to_images: rows of pixels as images `(frames, z, y, x)`.
        to_rows: the other way.
        curvature: a bound on the largest eigenvalue of A^H A.
        noise_std: root of `E|n|^2` of the noise in a pixel of A^H y.
        energy: `|y|^2`, weighted as A^H A weights it.
    """

    normal: Callable[[Tensor], Tensor]
    right_side: Complex64[Tensor, "frames pixels"]
    to_images: Callable[[Tensor], Tensor]
    to_rows: Callable[[Tensor], Tensor]
    curvature: float
    noise_std: float
    energy: float


POWER_ITERATIONS = 10
MARGIN = 1.1
"""Over the largest eigenvalue that power iterations find, which is below the true one."""


def frame_system(
    prepared: Prepared,
    maps: Complex64[Tensor, "coils z y x"],
    scale: float,
    density: Float32[Tensor, "frames readouts samples"] | None = None,
) -> FrameSystem:
    """Of Cartesian or non-Cartesian frames that share their maps.

    Args:
        prepared: frames.
        maps: root of the sum of squares 1 inside the object, 0 outside of it.
        scale: what k-space is divided by.
        density: weights of samples along trajectories; their own by default.
    """
    if prepared.trajectory is None:
        return cartesian_system(prepared, maps, scale)
    return nonuniform_system(prepared, maps, scale, density)


def cartesian_system(prepared: Prepared, maps: Complex64[Tensor, "coils z y x"], scale: float) -> FrameSystem:
    """Of Cartesian frames that share their maps.

    A line measured n times counts n times, relative to the mean of the lines measured.

    Args:
        prepared: frames.
        maps: root of the sum of squares 1 inside the object, 0 outside of it.
        scale: what k-space is divided by.
    """
    weights = sampling_weights(prepared.counts, prepared.readout_sampled)
    usual = float(weights[weights > 0].mean())
    weights = weights / usual
    normal = ColumnNormal(maps, weights)
    frames = prepared.kspace.shape[0]

    def apply(rows: Tensor) -> Tensor:
        return normal(rows.view(columns.shape)).view(frames, -1)

    def to_rows(images: Tensor) -> Tensor:
        return normal.to_columns(images).reshape(frames, -1)

    columns = normal.to_columns(right_side(prepared.kspace / scale, maps, weights))
    # A^H W y holds noise of variance W noise_std^2 / usual in k-space: a line's own is 1 / counts.
    noise = prepared.noise_std / scale * (float(weights.mean()) / usual) ** 0.5
    return FrameSystem(
        apply,
        columns.reshape(frames, -1),
        lambda rows: normal.to_image(rows.reshape(columns.shape)),
        to_rows,
        float(weights.max()),
        noise,
        _energy(prepared.kspace / scale, weights[:, None]),
    )


def nonuniform_system(
    prepared: Prepared,
    maps: Complex64[Tensor, "coils 1 y x"],
    scale: float,
    density: Float32[Tensor, "frames readouts samples"] | None = None,
) -> FrameSystem:
    """Of frames along trajectories, samples weighted by the area of k-space that each stands for.

    With these weights A^H A is near the identity, and they cost little (`pipelines.recon.nonuniform_sense`).

    Args:
        prepared: frames with a trajectory; samples that were not measured carry no weight.
        maps: root of the sum of squares 1 inside the object, 0 outside of it.
        scale: what k-space is divided by.
        density: weights of samples; their own by default. Those of all readouts suit some of them better.
    """
    trajectory = trajectory_of(prepared)
    frames, shape, plane = prepared.kspace.shape[0], trajectory.shape, maps[:, 0]
    density = (frame_densities(trajectory) if density is None else density) * trajectory.measured
    weighted = prepared.kspace / scale * density[:, None, None]
    coils = NonUniform(trajectory.positions, shape, trajectory.measured).adjoint(weighted)[:, :, 0]
    which, first = distinct_frames(trajectory.positions, trajectory.measured)
    toeplitz = [Toeplitz(trajectory.positions[frame], density[frame], shape) for frame in first]

    def apply(rows: Tensor) -> Tensor:
        images = rows.view(frames, *shape)
        return torch.stack(
            [toeplitz[index].between(plane, image) for index, image in zip(which, images, strict=True)]
        ).view(frames, -1)

    right_side = (coils * plane.conj()).sum(1).reshape(frames, -1)
    noise = prepared.noise_std / scale * (float(density.square().sum()) / (frames * shape[0] * shape[1])) ** 0.5
    return FrameSystem(
        apply,
        right_side,
        lambda rows: rows.reshape(frames, 1, *shape),
        lambda images: images.reshape(frames, -1),
        _largest_eigenvalue(apply, right_side),
        noise,
        _energy(prepared.kspace / scale, density[:, None, None]),
    )


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Of all frames, with a margin; 1 where there is nothing."""
    generator = torch.Generator("cpu").manual_seed(0)
    vector = torch.randn(like.shape, dtype=like.dtype, generator=generator).to(like.device)
    largest = 0.0
    for _ in range(POWER_ITERATIONS):
        vector = vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-30)
        vector = apply(vector)
        largest = float(vector.norm(dim=1).max())
    return MARGIN * largest or 1.0


def _energy(kspace: Tensor, weights: Tensor) -> float:
    return float((torch.view_as_real(kspace).square().sum(-1) * weights).sum(dtype=torch.float64))
