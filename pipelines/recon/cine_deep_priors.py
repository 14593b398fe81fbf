"""Frames whose background and dynamic part are what two untrained networks bring forth: the deep image prior proper.

    min over weights, L, S   1/2 |A (L + S) - y|^2 + lambda_L |f|_* + lambda_S |F_t g|_1    with L = f, S = g

by extrapolated ADMM (`pipelines.solvers.admm`), from classic low rank plus sparse on; f and g are frames that two
U-Nets make of fixed noise (`pipelines.recon.deep_low_rank_sparse`). Sooner or later networks fit noise and aliases:
some lines are held out, and the parts that fit these best, averaged over iterations, are the result.

For comparison and research: it is slower than networks that correct frames (`pipelines.recon.frame_corrections`) and
was worse on the hearts that both were tried on (BENCHMARKS.md).

References: Sun 2026, arXiv 2605.18709 (two deep image priors); Yoo 2021, doi 10.1109/TMI.2021.3084288.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex64
from torch import Tensor

from models.deep_prior import DeepPriorConfiguration
from pipelines.recon.cine_start import CineStart, classic_weights
from pipelines.recon.deep_low_rank_sparse import NetworkPriors, penalties_of
from pipelines.recon.frame_system import FrameSystem
from pipelines.recon.low_rank_sparse import LowRankSparse
from pipelines.solvers.admm import admm

SMOOTHING = 0.8
"""Of the error of held-out lines, and of the parts, from iteration to iteration."""
PATIENCE = 15
"""Iterations without an improvement after which it ends."""


@dataclass(frozen=True, slots=True)
class FittedParts:
    """Where networks were when lines held out were fitted best.

    Attributes:
        parts: f and g, averaged over iterations.
        iterations: made.
        best: iteration that the parts are of; 0 for none.
        gain: part by which the squared error of the lines held out fell, their noise included.
        priors: the networks as they ended.
    """

    parts: Complex64[Tensor, "2 frames pixels"]
    iterations: int
    best: int
    gain: float
    priors: NetworkPriors


def network_priors(
    start: CineStart, configuration: DeepPriorConfiguration, seed: int, shape: tuple[int, int]
) -> NetworkPriors:
    """Two networks that know nothing yet, priced like the parts of classic low rank plus sparse.

    Args:
        start: the frames.
        configuration: size of each network.
        seed: of both.
        shape: y and x of a frame.
    """
    right_side = start.system.right_side
    return NetworkPriors(
        configuration,
        right_side.shape[0],
        shape,
        (2 * seed, 2 * seed + 1),
        penalties=penalties_of(right_side, *classic_weights(start)),
        to_rows=start.system.to_rows,
        to_images=start.system.to_images,
        device=right_side.device,
    )


def fit_parts(
    priors: NetworkPriors,
    kept: FrameSystem,
    held: FrameSystem,
    begin: LowRankSparse,
    *,
    mode: Literal["theory", "fast"],
    iterations: int,
    should_stop: Callable[[], bool] | None = None,
) -> FittedParts:
    """Fit networks to lines, and judge them by others.

    Args:
        priors: the networks; they move.
        kept: lines to fit.
        held: lines to judge by.
        begin: classic low rank plus sparse of the lines to fit.
        mode: of the solver; theory only takes steps that its proof of descent allows.
        iterations: most of them.
        should_stop: asked before each one.
    """
    start = torch.stack([begin.low_rank, begin.sparse])
    before = _misfit(held, start.sum(0))
    mean, best_parts = priors.parts(), start
    smooth, best, best_step, made = before, before, 0, 0

    def judge(_: Tensor) -> bool:
        nonlocal mean, best_parts, smooth, best, best_step, made
        made += 1
        mean = torch.lerp(priors.parts(), mean, SMOOTHING if made > 1 else 0.0)
        smooth = _misfit(held, mean.sum(0))
        if smooth < best:
            best, best_step, best_parts = smooth, made, mean
        return made - best_step >= PATIENCE and best_step > 0

    admm(
        kept.normal,
        kept.right_side,
        priors,
        start,
        curvature=kept.curvature,
        mode=mode,
        iterations=iterations,
        should_stop=should_stop,
        on_iterate=judge,
    )
    return FittedParts(best_parts, made, best_step, 1 - best / before if before > 0 else 0.0, priors)


def refit(
    fitted: FittedParts,
    kept: FrameSystem,
    begin: LowRankSparse,
    iterations: int,
    should_stop: Callable[[], bool] | None = None,
) -> Complex64[Tensor, "2 frames pixels"]:
    """Parts after some iterations more with other lines; the networks of `fitted` stay as they are."""
    with torch.inference_mode(mode=False):  # weights made in it could never give a gradient
        priors = copy.deepcopy(fitted.priors)
    start = torch.stack([begin.low_rank, begin.sparse])
    admm(
        kept.normal,
        kept.right_side,
        priors,
        start,
        curvature=kept.curvature,
        mode="fast",
        iterations=iterations,
        should_stop=should_stop,
    )
    return priors.parts()


def _misfit(held: FrameSystem, frames: Tensor) -> float:
    """|A_i X - y_i|^2."""
    fitted = held.normal(frames) - 2 * held.right_side
    return float((frames.conj() * fitted).real.sum(dtype=torch.float64)) + held.energy
