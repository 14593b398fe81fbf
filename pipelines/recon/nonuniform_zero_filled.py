"""`zero_filled` for non-Cartesian readouts: the adjoint of density-compensated samples, coils combined.

    x = combine(A^H D y),    D the area of k-space that each sample stands for

Tissue is as bright as in a fully sampled Cartesian image. Every sample is a wave of the same strength in every pixel,
so the noise of a coil image has the variance `s^2 sum(d^2) / (ny nx)` everywhere: exact, as for Cartesian lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float32
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.operators.nonuniform import NonUniform, distinct_frames
from pipelines.preprocess.density import density_weights
from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.magnitude import magnitude_deviation, root_sum_of_squares
from pipelines.recon.reconstruction import Prepared, Reconstructed, Trajectory, UncertaintyKind


def nonuniform_zero_filled(prepared: Prepared, combine: str, clock: Callable[[], float]) -> Reconstructed:
    """Reconstruct frames.

    Args:
        prepared: with a trajectory.
        combine: `rss`, or `sensitivity` where there is a calibration.
        clock: seconds.
    """
    trajectory = trajectory_of(prepared)
    shape = trajectory.shape
    started = clock()
    maps = None
    if combine == "sensitivity" and prepared.calibration is not None:
        maps = estimate_maps(prepared.calibration, (1, *shape))
    mapped = clock()
    density = frame_densities(trajectory)
    coils = NonUniform(trajectory.positions, shape, trajectory.measured).adjoint(
        prepared.kspace * density[:, None, None]
    )
    image = (coils * maps.conj()).sum(1) if maps is not None else root_sum_of_squares(coils)
    combined = clock()
    variance = prepared.noise_std**2 * density.square().sum((1, 2)) / math.prod(shape)
    variance = variance[:, None, None, None].expand(image.shape)
    if maps is not None:
        deviation = magnitude_deviation(image.abs(), variance * maps.abs().square().sum(0))
    else:
        deviation = magnitude_deviation(image.abs(), variance, coils.shape[1])
    stages_s = {"csm": mapped - started, "recon": combined - mapped, "uncertainty": clock() - combined}
    details = {"ReconCoilCombination": "rss" if maps is None else "sensitivity"}
    return Reconstructed(image, deviation, UncertaintyKind.NOISE, "analytic", details, stages_s)


def trajectory_of(prepared: Prepared) -> Trajectory:
    """The trajectory of frames that must have one.

    Raises:
        ReconstructionError: there is none, or no sample was measured.
    """
    if prepared.trajectory is None:
        raise ReconstructionError("non-Cartesian reconstruction needs a trajectory")
    if not bool(prepared.trajectory.measured.any()):
        raise ReconstructionError("no sample of k-space was measured")
    return prepared.trajectory


def frame_densities(trajectory: Trajectory) -> Float32[Tensor, "frames readouts samples"]:
    """Density weights of every frame; equal trajectories are computed once."""
    which, first = distinct_frames(trajectory.positions, trajectory.measured)
    distinct = [
        density_weights(trajectory.positions[frame], trajectory.measured[frame], trajectory.shape) for frame in first
    ]
    return torch.stack([distinct[index] for index in which])
