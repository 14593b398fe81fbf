"""What the frames of a slice begin with: coil maps, the linear system, and classic low rank plus sparse.

Frames share their maps, which come from their average over time. Weights of L + S come from the noise alone: lambda_L
is the largest singular value that noise of A^H y has, `sigma (sqrt P + sqrt T)` for P pixels and T frames, lambda_S
twice its size in a pixel. On a measured cine (`pipelines.recon.space_time_tv`) half as much of either costs 1 dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.errors import ReconstructionError
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES, estimate_maps
from pipelines.recon.frame_lines import measured_lines, share_one_pattern
from pipelines.recon.frame_system import FrameSystem, frame_system
from pipelines.recon.low_rank_sparse import LowRankSparse, low_rank_sparse
from pipelines.recon.nonuniform_zero_filled import frame_densities
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import checked_scale, measured_columns

SPARSE_WEIGHT = 2.0
LEAST_NOISE = 2e-4
"""Noise of a pixel of A^H y relative to its largest that weights are made for at least: cleaner data have aliases."""
TOLERANCE = 1e-4
FEWEST_FRAMES = 3


@dataclass(frozen=True, slots=True)
class CineStart:
    """Frames as one linear problem.

    Attributes:
        prepared: the frames.
        maps: of all frames.
        scale: what k-space is divided by.
        density: weights of samples along trajectories; None for Cartesian frames.
        system: of all lines.
        noise: of a pixel of A^H y, or the least that weights are made for; 1 where there is nothing but zeros.
    """

    prepared: Prepared
    maps: Complex64[Tensor, "coils z y x"]
    scale: float
    density: Float32[Tensor, "frames readouts samples"] | None
    system: FrameSystem
    noise: float

    def system_of(self, prepared: Prepared) -> FrameSystem:
        """The system of other data of the same frames, or of some of their lines."""
        return frame_system(prepared, self.maps, self.scale, self.density)


def make_start(prepared: Prepared) -> CineStart:
    """Check frames and make their system.

    Raises:
        ReconstructionError: too few frames, a pattern that all frames share, a frame without lines, no lines to
            estimate coil maps from, or values that are not finite.
    """
    frames = prepared.kspace.shape[0]
    if frames < FEWEST_FRAMES:
        raise ReconstructionError(
            f"{frames} frame{'s' if frames > 1 else ''} of the slice, but at least {FEWEST_FRAMES} are needed to tell "
            "what moves from what does not; use sense for single frames"
        )
    scale = checked_scale(prepared)
    if share_one_pattern(prepared):
        raise ReconstructionError(
            "all frames leave out the same lines of k-space, so that their aliases do not move and nothing tells them "
            "from the image; use sense, or a pattern that changes from frame to frame"
        )
    empty = torch.nonzero(~measured_lines(prepared).flatten(1).any(1))[:, 0]
    if len(empty):
        raise ReconstructionError(f"frame {int(empty[0]) + 1} of {frames} has no line of k-space")
    maps = _maps(prepared)
    density = None if prepared.trajectory is None else frame_densities(prepared.trajectory)
    system = frame_system(prepared, maps, scale, density)
    noise = max(system.noise_std, LEAST_NOISE * float(system.right_side.abs().max()))
    return CineStart(prepared, maps, scale, density, system, noise or 1.0)


def classic(
    start: CineStart, system: FrameSystem, iterations: int, should_stop: Callable[[], bool] | None = None
) -> LowRankSparse:
    """Classic L + S of a system of these frames."""
    return low_rank_sparse(
        system,
        *classic_weights(start),
        iterations=iterations,
        tolerance=TOLERANCE,
        should_stop=should_stop,
    )


def classic_weights(start: CineStart) -> tuple[float, float]:
    """Weights of L (the largest singular value of a matrix of noise) and of S."""
    frames, pixels = start.system.right_side.shape
    return start.noise * (pixels**0.5 + frames**0.5), start.noise * SPARSE_WEIGHT


def _maps(prepared: Prepared) -> Complex64[Tensor, "coils z y x"]:
    coils, z, y, x = prepared.kspace.shape[1:]
    if prepared.trajectory is not None:
        z, (y, x) = 1, prepared.trajectory.shape
    if coils == 1:
        return torch.ones((1, z, y, x), dtype=torch.complex64, device=prepared.kspace.device)
    if prepared.calibration is None:
        raise ReconstructionError(
            f"{coils} coils, but no {FEWEST_CALIBRATION_LINES} adjacent lines around the centre of k-space in all "
            "frames together, to estimate coil maps from"
        )
    calibration = prepared.calibration
    if prepared.trajectory is None:
        calibration = measured_columns(calibration, prepared.readout_sampled)
    return estimate_maps(calibration, (z, y, x))
