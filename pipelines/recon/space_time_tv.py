"""Frames of least total variation in space and time: what networks of a single scan begin with.

    min over X   1/2 |A X - y|^2 + weight TV(X),    TV: `pipelines.solvers.total_variation`

A measured cine with simulated phase and 8 coils (128 x 128 x 24, noise 0.02 of the brightest pixel, random lines):
37.0, 34.1 and 31.7 dB at R = 4, 8 and 12. Low rank plus sparse has 34.3, 31.4 and 29.2 dB: it knows nothing of what
neighbouring pixels have in common. Weights of 0.1 to 0.35 times the noise in a pixel of A^H y and temporal ones of 3 to
8 differ by less than 1 dB. A low-rank background beside it takes 0.3 to 0.4 dB away.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Complex64
from torch import Tensor

from pipelines.recon.frame_system import FrameSystem
from pipelines.solvers.fista import fista
from pipelines.solvers.total_variation import shrink_total_variation

TEMPORAL = 5.0
"""Weight of differences from frame to frame relative to those from pixel to pixel."""
WEIGHT = 0.15
"""Over the noise of a pixel of A^H y (root of E|n|^2)."""
INNER_ITERATIONS = 8


def space_time_tv(
    system: FrameSystem,
    weight: float,
    start: Complex64[Tensor, "frames pixels"],
    *,
    iterations: int,
    tolerance: float,
    should_stop: Callable[[], bool] | None = None,
) -> Complex64[Tensor, "frames pixels"]:
    """Minimise, from `start` on.

    Args:
        system: A^H A and A^H y.
        weight: in the units of a pixel of A^H y, above 0.
        start: first frames.
        iterations: most of them.
        tolerance: relative change at which the frames are done.
        should_stop: asked before each iteration.
    """
    dual: Tensor | None = None

    def gradient(frames: Tensor) -> Tensor:
        return (system.normal(frames[0]) - system.right_side)[None]

    def proximal(frames: Tensor, step: Tensor) -> Tensor:
        nonlocal dual
        images, dual = shrink_total_variation(
            system.to_images(frames[0]), weight * float(step), TEMPORAL, dual, iterations=INNER_ITERATIONS
        )
        return system.to_rows(images)[None]

    found = fista(
        gradient,
        proximal,
        start[None],
        curvature=torch.full((1,), system.curvature, dtype=torch.float64, device=start.device),
        iterations=iterations,
        tolerance=tolerance,
        should_stop=should_stop,
    )
    return found.x[0]
