"""Cine frames of a slice, from this scan alone: low rank plus sparse with two networks that no other data taught.

1. Coil maps from the average over time; classic low rank plus sparse; frames of least total variation in space and
   time (`pipelines.recon.space_time_tv`).
2. The same without some lines, for five sets of lines that have none in common. How much of L + S to mix into the
   frames of total variation is what fits the lines left out best (`best_share`): L + S knows best what hardly moves,
   total variation what moves; a heart in a still chest gains 1 dB by half of each, one in a breathing chest nothing.
3. Two networks, one for the background L and one for the dynamic rest S, learn to change these so that they fit the
   lines left out (`pipelines.recon.frame_corrections`); a fifth set says when to stop.
4. With `a = L0 + f(L0)` and `c = S0 + g(S0)` of all lines, the frames that fit both the data and the networks
   (`pipelines.recon.frame_closing`). S has no mean over time.

The method `deep_priors` has networks that bring forth the frames from noise instead, with the same last step
(`pipelines.recon.cine_deep_priors`).

The deviation is a delete-group jackknife: with the share h of the lines in set i, and `X_i` made without them,

    variance = (1 - h) / h  mean over sets of (|X_i| - |X|)^2,    smoothed, times a factor that was measured

What hangs on single lines is uncertain, be it for their noise or for the aliases that they hold down. The sets exist
already, for learning. For frames of total variation (a measured cine, R = 4 to 12, noise 0.005 to 0.02) the area
between its sparsification curve and the oracle's is 0.27 to 0.35, that of a parametric bootstrap (data made anew from
X) 0.34 to 0.42, and the factors that make each cover 90 % are within 15 % and within a factor of 1.6 of their means:
the bootstrap sees no structure that X has lost.

References: Otazo, Candès, Sodickson 2015, doi 10.1002/mrm.25240; Sun 2026, arXiv 2605.18709 (two deep image priors);
Yaman 2022, arXiv 2102.07737 (learning from lines held out); Shao and Wu 1989, doi 10.1214/aos/1176347263 (jackknife).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from models.deep_prior import LARGE, MEDIUM, SMALL, DeepPriorConfiguration
from pipelines.errors import ReconstructionError
from pipelines.parameters import CineLsDipParameters
from pipelines.progress import Stage, stages
from pipelines.recon.cine_deep_priors import fit_parts, network_priors, refit
from pipelines.recon.cine_start import TOLERANCE, CineStart, classic, make_start
from pipelines.recon.frame_closing import closing
from pipelines.recon.frame_corrections import CHANNELS, FRAMES_AT_A_TIME, FrameCorrections, Learned, Part, best_share
from pipelines.recon.frame_lines import hold_out, measured_lines, with_lines
from pipelines.recon.frame_system import FrameSystem
from pipelines.recon.low_rank_sparse import LowRankSparse
from pipelines.recon.posterior import smooth
from pipelines.recon.reconstruction import ExtraSeries, Prepared, Reconstructed, UncertaintyKind
from pipelines.recon.space_time_tv import WEIGHT, space_time_tv

SIZES = {
    "small": DeepPriorConfiguration((16, 24, 32), skip=16, inputs=CHANNELS),
    "medium": DeepPriorConfiguration((32, 48, 64), skip=16, inputs=CHANNELS),
    "large": DeepPriorConfiguration((48, 96, 128, 128), skip=24, inputs=CHANNELS),
}
DEEP_PRIOR_SIZES = {"small": SMALL, "medium": MEDIUM, "large": LARGE}
CLASSIC_ITERATIONS = 60
TV_ITERATIONS = 60
SET_ITERATIONS = 30
"""Of total variation without some lines, from the frames of all lines on."""
SETS = 5
HELD = 0.12
"""Of a frame's lines in each set."""
LOW_RANK_SPARSE = "low rank plus sparse"
TOTAL_VARIATION = "total variation"
SETS_OF_LINES = "some lines left out"
LEARNING = "networks learn"
FITTING = "networks are fitted"
CLOSING = "last fit to the data"
CLASSIC_COST = 15.0
"""Of what takes time on a CPU, in iterations of total variation (8 coils, a slice of 24 frames, November 2026)."""
STEP_COST = 11.0
"""Of a step of learning of small networks, if all frames took part in it."""
CLOSING_COST = 3.5
FITTING_COST = 130.0
"""Of an iteration of the deep priors."""
REFITTING = 5
"""Iterations of the deep priors without each set of lines."""
FACTORS = {"networks": 1.07, "low_rank_sparse": 0.93}
"""Of deviations, by method. With it 90 % intervals cover 90 % on average over new scans like those that it was fitted
to, hearts of eight patients (`tests/benchmarks/cine_calibration.py`). By itself the jackknife covers 84 to 94 % of
these with networks, 89 to 98 % with classic low rank plus sparse."""
CALIBRATION_SCANS = 8


@dataclass(frozen=True, slots=True)
class _LineSet:
    """Some lines of the frames.

    Attributes:
        held: system of these lines.
        kept: system of all others.
        share: of all lines that these are.
    """

    held: FrameSystem
    kept: FrameSystem
    share: float


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Frames of one reconstruction.

    Attributes:
        low_rank: L, with the mean over time of what is dynamic.
        sparse: S.
        learned: how the networks learned; None where none did.
        iterations: of classic L + S; 0 where it is not the result.
        share: of classic L + S in what the networks began with; None where they began with noise.
    """

    low_rank: Complex64[Tensor, "frames pixels"]
    sparse: Complex64[Tensor, "frames pixels"]
    learned: Learned | None
    iterations: int = 0
    share: float | None = None

    @property
    def frames(self) -> Complex64[Tensor, "frames pixels"]:
        """X."""
        return self.low_rank + self.sparse


@dataclass(frozen=True, slots=True)
class _Task:
    """What every method begins with.

    Attributes:
        start: the frames.
        first: classic low rank plus sparse of all lines.
        sets: of lines that are left out in turn.
        ahead: what is to be reported.
        should_stop: whether time is up.
    """

    start: CineStart
    first: LowRankSparse
    sets: list[_LineSet]
    ahead: dict[str, Stage]
    should_stop: Callable[[], bool] | None


class CineLsDip:
    """The reconstruction of all frames of a slice together."""

    def __init__(self, parameters: CineLsDipParameters, device: str) -> None:
        self._parameters = parameters
        self._device = torch.device(device)

    def __call__(self, prepared: Prepared) -> Reconstructed:
        """Reconstruct frames.

        Raises:
            ReconstructionError: what `make_start` and `hold_out` refuse.
        """
        started = self._clock()
        start = make_start(prepared)
        limit = self._parameters.time_limit_s
        should_stop = None if limit is None else lambda: time.perf_counter() - started > limit
        mapped = self._clock()
        ahead = self._stages(prepared.kspace.shape[0])
        first = self._classic(start, start.system, ahead[LOW_RANK_SPARSE], should_stop)
        task = _Task(start, first, self._line_sets(start), ahead, should_stop)
        methods = {"networks": self._teach, "low_rank_sparse": self._decompose, "deep_priors": self._fit}
        found, others = methods[self._parameters.method](task)
        solved = self._clock()
        is_over = should_stop is not None and should_stop()
        factor = FACTORS.get(self._parameters.method)
        deviation = _jackknife(task, found.frames, others) * (start.scale if factor is None else factor * start.scale)
        warnings: list[str] = []
        if is_over:
            warnings.append(f"The time limit of {limit:g} s ended the reconstruction early.")
        if factor is None:
            warnings.append("The uncertainty of this method was not calibrated.")
        return Reconstructed(
            image=start.system.to_images(found.frames) * start.scale,
            deviation=deviation,
            kind=UncertaintyKind.ENSEMBLE,
            calibration="none" if factor is None else f"conformal over {CALIBRATION_SCANS} scans: factor {factor:.3g}",
            details=_details(found),
            stages_s={"csm": mapped - started, "recon": solved - mapped, "uncertainty": self._clock() - solved},
            warnings=tuple(warnings),
            extras=self._extras(start, found),
        )

    def _stages(self, frames: int) -> dict[str, Stage]:
        """What lies ahead, in iterations of total variation of all frames."""
        if self._parameters.method == "low_rank_sparse":
            return stages({LOW_RANK_SPARSE: 1, SETS_OF_LINES: SETS})
        if self._parameters.method == "deep_priors":
            fitting = FITTING_COST * (self._parameters.steps + SETS * REFITTING)
            return stages({LOW_RANK_SPARSE: CLASSIC_COST, SETS_OF_LINES: SETS * CLASSIC_COST, FITTING: fitting})
        learning = STEP_COST * self._parameters.steps * min(FRAMES_AT_A_TIME, frames) / frames
        return stages(
            {
                LOW_RANK_SPARSE: CLASSIC_COST,
                TOTAL_VARIATION: TV_ITERATIONS,
                SETS_OF_LINES: SETS * (SET_ITERATIONS + CLASSIC_COST),
                LEARNING: learning,
                CLOSING: (1 + SETS) * CLOSING_COST,
            }
        )

    def _classic(
        self, start: CineStart, system: FrameSystem, stage: Stage, should_stop: Callable[[], bool] | None
    ) -> LowRankSparse:
        iterations = self._parameters.iterations
        return classic(start, system, iterations, stage.counting(iterations, should_stop))

    def _line_sets(self, start: CineStart) -> list[_LineSet]:
        """Sets of lines that are left out in turn."""
        measured = measured_lines(start.prepared)
        return [
            _LineSet(
                start.system_of(with_lines(start.prepared, held)),
                start.system_of(with_lines(start.prepared, measured & ~held)),
                float(held.sum() / measured.sum()),
            )
            for held in hold_out(start.prepared, HELD, SETS, self._parameters.seed)
        ]

    def _decompose(self, task: _Task) -> tuple[Decomposition, list[Tensor]]:
        """Classic low rank plus sparse."""
        first = task.first
        others = [each.frames for each in self._classic_sets(task)]
        return Decomposition(first.low_rank, first.sparse, None, first.iterations), others

    def _classic_sets(self, task: _Task) -> list[LowRankSparse]:
        """Without the lines of each set."""
        stage = task.ahead[SETS_OF_LINES]
        return [
            self._classic(task.start, each.kept, stage.step_of(i, SETS), task.should_stop)
            for i, each in enumerate(task.sets)
        ]

    def _fit(self, task: _Task) -> tuple[Decomposition, list[Tensor]]:
        """Networks that bring forth all frames.

        Raises:
            ReconstructionError: frames are volumes, or too small for the networks.
        """
        start, steps = task.start, self._parameters.steps
        _, z, y, x = start.system.to_images(task.first.frames).shape
        configuration = DEEP_PRIOR_SIZES[self._parameters.networks]
        if z > 1 or min(y, x) < 2 ** len(configuration.widths):
            raise ReconstructionError(
                f"deep priors bring forth planes of at least {2 ** len(configuration.widths)} pixels along each side, "
                f"not {x} x {y} x {z}; use the method networks"
            )
        whole = steps + SETS * REFITTING
        stage, done = task.ahead[FITTING], count()

        def should_stop() -> bool:
            stage.report(min(next(done), whole), whole)
            return task.should_stop is not None and task.should_stop()

        begin = self._classic_sets(task)
        fitted = fit_parts(
            network_priors(start, configuration, self._parameters.seed, (y, x)),
            task.sets[-1].kept,
            task.sets[-1].held,
            begin[-1],
            mode=self._parameters.solver,
            iterations=steps,
            should_stop=should_stop,
        )
        low_rank, sparse = closing(start.system, *fitted.parts)
        mean = sparse.mean(0, keepdim=True)
        others = [
            sum(closing(each.kept, *refit(fitted, each.kept, plain, REFITTING, should_stop)), torch.zeros_like(mean))
            for each, plain in zip(task.sets, begin, strict=True)
        ]
        learned = Learned(fitted.iterations, fitted.best, fitted.gain)
        return Decomposition(low_rank + mean, sparse - mean, learned), others

    def _teach(self, task: _Task) -> tuple[Decomposition, list[Tensor]]:
        """Frames of all lines, and of all but those of each set, with what the networks have learned."""
        start, first, ahead, should_stop = task.start, task.first.frames, task.ahead, task.should_stop

        def vary_least(system: FrameSystem, begin: Tensor, iterations: int, stage: Stage) -> Tensor:
            stop = stage.counting(iterations, should_stop)
            return space_time_tv(
                system, WEIGHT * start.noise, begin, iterations=iterations, tolerance=TOLERANCE, should_stop=stop
            )

        def close(number: int, system: FrameSystem, begin: Tensor, classic: Tensor) -> tuple[Tensor, Tensor]:
            ahead[CLOSING].report(number, 1 + SETS)
            return closing(system, *corrections(begin, classic))

        frames = vary_least(start.system, first, TV_ITERATIONS, ahead[TOTAL_VARIATION])
        parts = list[Part]()
        for number, each in enumerate(task.sets):
            whole = ahead[SETS_OF_LINES].step_of(number, SETS)
            varying, mixing = whole.split(SET_ITERATIONS / (SET_ITERATIONS + CLASSIC_COST))
            without = vary_least(each.kept, frames, SET_ITERATIONS, varying)
            parts.append(Part(each.held, without, self._classic(start, each.kept, mixing, should_stop).frames))
        share = best_share(parts[:-1])
        frames = torch.lerp(frames, first, share)
        parts = [replace(part, frames=torch.lerp(part.frames, part.classic, share)) for part in parts]
        corrections = FrameCorrections(start.system, frames, SIZES[self._parameters.networks], self._parameters.seed)
        learned = corrections.learn(
            parts, steps=self._parameters.steps, should_stop=should_stop, on_step=ahead[LEARNING].report
        )
        low_rank, sparse = close(0, start.system, frames, first)
        mean = sparse.mean(0, keepdim=True)
        others = [
            sum(close(i, each.kept, part.frames, part.classic), torch.zeros_like(frames))
            for i, (each, part) in enumerate(zip(task.sets, parts, strict=True), 1)
        ]
        return Decomposition(low_rank + mean, sparse - mean, learned, share=share), others

    def _extras(self, start: CineStart, found: Decomposition) -> tuple[ExtraSeries, ...]:
        series = {
            "low_rank": (found.low_rank, "Background L of the frames"),
            "sparse": (found.sparse, "Dynamic part S of the frames, without mean over time"),
        }
        return tuple(
            ExtraSeries(
                name,
                (start.system.to_images(series[name][0]) * start.scale)[:, None],
                series[name][1],
                role="Image",
                in_image_units=True,
            )
            for name in self._parameters.extra_series
        )

    def _clock(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _jackknife(
    task: _Task, frames: Complex64[Tensor, "frames pixels"], others: Sequence[Tensor]
) -> Float32[Tensor, "frames z y x"]:
    """Deviation of the magnitude, in the units of the system.

    Args:
        task: the sets.
        frames: of all lines.
        others: without those of each set.
    """
    to_images = task.start.system.to_images
    share = sum(each.share for each in task.sets) / len(task.sets)
    magnitude = to_images(frames).abs()
    squares = [(to_images(other).abs() - magnitude).square() for other in others]
    variance = torch.stack(squares).mean(0) * ((1 - share) / share)
    return smooth(variance.flatten(0, 1)).view(variance.shape).sqrt()


def _details(found: Decomposition) -> dict[str, str]:
    share = float(found.sparse.norm() / found.low_rank.norm().clamp(min=1e-30))
    details = {"ReconSparseShare": f"{share:.3g}"}
    if found.learned is None:
        return {**details, "ReconMethod": "low rank plus sparse", "ReconIterations": str(found.iterations)}
    details["ReconMethod"] = "deep priors" if found.share is None else "networks"
    details["ReconIterations"] = str(found.learned.steps)
    details["ReconBestIteration"] = str(found.learned.best)
    details["ReconHeldOutGain"] = f"{found.learned.gain:.3f}"
    if found.share is not None:
        details["ReconClassicShare"] = f"{found.share:.3f}"
    return details
