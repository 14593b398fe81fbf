"""Density compensation: the area of k-space that each non-Cartesian sample stands for.

Iterated by Pipe and Menon's rule `w <- w / (K w)`, where K spreads samples over k-space with a kernel: at the fixed
point the compensated density, seen through the kernel, is 1 at every sample, so that tissue keeps its brightness. The
kernel is the transform of an image window; as the window we take the overlap of two discs (the autocorrelation of a
disc), whose transform is nowhere negative. So all weights are positive and the iteration settles within three steps. A
sharp field of view instead (K = A A^H) diverges on undersampled data.

Weights seen through the kernel of the whole field of view fall short in gaps wider than one over the field of view, as
between the outer parts of few spokes. One last step with half the field of view, a kernel twice as wide, fills those:
each sample then stands for the gap around it, as a line of a regularly undersampled Cartesian scan does.

Compared by the root-sum-of-squares image of a brain (8 coils, 230 x 230) from 64 spokes, 361 spokes, and 60, 30 and 20
of 60 spiral interleaves: NRMSE 0.054, 0.022, 0.023, 0.028, 0.113 and brightness within 0.7 % (20 interleaves: 8 %).
Areas of Voronoi cells give 0.057, 0.023, 0.022, 0.027, 0.114 but take 1 to 6 s instead of 10 to 60 ms; without the last
step 0.083, 0.022, 0.023, 0.040, 0.142. More steps change nothing.

Reference: Pipe and Menon 1999, doi 10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V; Zwart 2012 (kernel),
doi 10.1002/mrm.23041.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from pipelines.operators.points import Points

REACHES = (1.0, 1.0, 1.0, 0.5)
"""Diameter of the window of each step, in fields of view."""


def density_weights(
    positions: Float32[Tensor, "readouts samples 2"],
    measured: Bool[Tensor, "readouts samples"],
    shape: tuple[int, int],
) -> Float32[Tensor, "readouts samples"]:
    """Area that each sample stands for, in cells of the Cartesian grid (one over the field of view along each axis).

    Their sum is the area of k-space that was reached. 0 for samples that were not measured.

    Args:
        positions: x before y, in cycles a pixel, -0.5 to 0.5.
        measured: samples that exist.
        shape: y and x of the image.
    """
    doubled = (2 * shape[0], 2 * shape[1])
    points = Points(positions, measured, doubled)
    windows = {reach: _window(doubled, reach, positions.device) / math.prod(shape) for reach in set(REACHES)}
    weights = measured.reshape(1, -1).to(torch.float32)
    for reach in REACHES:
        density = points.samples(points.image(weights.to(torch.complex64)) * windows[reach]).real
        # The smallest kernel value that rounding leaves; the density at a sample holds at least its own weight.
        weights = torch.where(weights > 0, weights / density.clamp(min=torch.finfo(torch.float32).eps), 0.0)
    return weights.view(measured.shape)


def _window(doubled: tuple[int, int], reach: float, device: torch.device) -> Tensor:
    """Overlap of two discs of the diameter `reach` fields of view, by their distance; 1 at distance 0."""
    y, x = ((torch.arange(n, device=device) - n // 2) / (n / 2) for n in doubled)
    distance = ((y[:, None].square() + x.square()).sqrt() / reach).clamp(max=1)
    return (2 / math.pi) * (torch.arccos(distance) - distance * (1 - distance.square()).sqrt())
