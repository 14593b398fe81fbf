"""Two networks that learn from a single scan what a reconstruction of its frames left wrong, judged by lines held out.

One network corrects the low-rank background L of the frames, the other one the dynamic rest S. Their weights begin
random and see nothing but this scan; each looks at a frame and its neighbours, with the same weights for all of them,
so that a cine of 24 frames holds some 400 000 examples. Some lines are held out, the reconstruction is made from the
others, and the networks learn to change it so that it fits the lines held out:

    min over weights   sum over parts i   1/2 |A_i (X_i + f(L_i) + g(S_i)) - y_i|^2,    X_i made without y_i

The noise of held-out lines is independent of all that the networks see, so that fitting it does not pay. (Fitted to
all lines instead, the same networks learn nothing: 0.00 dB in 100 steps, since the reconstruction fits them already.
U-Nets that bring forth all frames as channels from noise, the classic deep image prior, reach 28.7 dB in 1600 steps
where these begin with 34.1 and end at 34.4 dB, 30.4 and 31.1 around the heart: R = 8, `pipelines.recon.space_time_tv`.
Networks that take and give all frames as channels gain nothing from held-out lines either: they see one example.)

Lines of one more part are held out of learning too: they say when to stop.

References: Ulyanov, Vedaldi, Lempitsky 2018, arXiv 1711.10925; Yaman 2022, arXiv 2102.07737 (zero-shot learning from
held-out lines); Otazo, Candès, Sodickson 2015, doi 10.1002/mrm.25240 (L + S).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor
from torch.nn.functional import pad

from models.deep_prior import DeepPriorConfiguration, SideBySide
from pipelines.recon.frame_system import FrameSystem
from pipelines.solvers.low_rank import leading_part

CHANNELS = 12
"""Real channels that each network sees: six complex images."""
RANK = 3
"""Of the background that one network sees. 3 and 8 differ by 0.03 dB."""
RATE = 2e-3
"""Of Adam at the beginning. 1e-3 gains 0.1 dB less in as many steps, 4e-3 as much."""
FRAMES_AT_A_TIME = 8
CHECK_EVERY = 15
PATIENCE = 3
"""Checks without an improvement after which learning ends."""


@dataclass(frozen=True, slots=True)
class Part:
    """Lines held out, and the frames as reconstructed without them.

    Attributes:
        held: system of the lines held out.
        frames: reconstructed from all other lines, to be corrected.
        classic: low rank plus sparse of all other lines.
    """

    held: FrameSystem
    frames: Complex64[Tensor, "frames pixels"]
    classic: Complex64[Tensor, "frames pixels"]


@dataclass(frozen=True, slots=True)
class Learned:
    """How learning went.

    Attributes:
        steps: made.
        best: step whose weights are used; 0 when no change fits the lines held out better than none.
        gain: part by which the squared error of the last part's lines fell, its noise included.
    """

    steps: int
    best: int
    gain: float


def best_share(parts: Sequence[Part]) -> float:
    """How much of classic low rank plus sparse to mix into the frames, 0 to 1, to fit the lines held out best."""
    along, across = 0.0, 0.0
    for part in parts:
        change = part.classic - part.frames
        slope = part.held.normal(part.frames) - part.held.right_side
        along -= float((change.conj() * slope).real.sum(dtype=torch.float64))
        across += float((change.conj() * part.held.normal(change)).real.sum(dtype=torch.float64))
    return min(max(along / across, 0.0), 1.0) if across > 0 else 0.0


class FrameCorrections:
    """The two networks of a slice.

    Args:
        system: of all lines: how rows of pixels lie.
        frames: reconstructed from all lines; they give the phase and the unit of what networks see.
        configuration: size of each network.
        seed: of weights and of the order of examples.
    """

    def __init__(
        self,
        system: FrameSystem,
        frames: Complex64[Tensor, "frames pixels"],
        configuration: DeepPriorConfiguration,
        seed: int,
    ) -> None:
        self._system, self._seed = system, seed
        mean = system.to_images(frames.mean(0, keepdim=True).expand_as(frames))[:1]
        self._phase = mean / mean.abs().clamp(min=1e-30)
        self._unit = float(frames.abs().square().mean().sqrt()) or 1.0
        generators = [torch.Generator("cpu").manual_seed(2 * seed + number) for number in range(2)]
        with torch.inference_mode(mode=False):
            networks = SideBySide(configuration, 2, generators).to(frames.device)
            self._networks = networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # it has it

    def learn(
        self,
        parts: Sequence[Part],
        *,
        steps: int,
        should_stop: Callable[[], bool] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Learned:
        """Fit the networks.

        Args:
            parts: at least two; the last one only says when to stop.
            steps: most of them.
            should_stop: asked before each step.
            on_step: hears after each step how many are made, and how many there may be.
        """
        *taught, judge = parts
        seen = [self._see(part.frames, part.classic) for part in taught]
        judged = self._see(judge.frames, judge.classic)
        before = self._misfit(judge, judge.frames)
        best, best_step, since, made = before, 0, 0, 0
        kept: dict[str, Tensor] | None = None
        with torch.inference_mode(mode=False), torch.enable_grad():
            average = copy.deepcopy(self._networks)
            optimiser = torch.optim.Adam(self._networks.parameters(), RATE)
            generator = torch.Generator("cpu").manual_seed(self._seed)
            for step in range(1, steps + 1):
                if should_stop is not None and should_stop():
                    break
                made = step
                which = int(torch.randint(len(taught), (1,), generator=generator))
                self._step(optimiser, taught[which], seen[which], generator)
                for group in optimiser.param_groups:
                    group["lr"] = RATE * min(1.0, 2 * (1 - step / steps)) + RATE / 100
                with torch.no_grad():
                    for own, other in zip(average.parameters(), self._networks.parameters(), strict=True):
                        own.lerp_(other, max(0.02, 1 / (step / 4 + 1)))
                if on_step is not None:
                    on_step(step, steps)
                if step % CHECK_EVERY and step < steps:
                    continue
                misfit = self._misfit(judge, judge.frames + self._apply(average, judged))
                if misfit < best:
                    best, best_step, since = misfit, step, 0
                    kept = {name: each.detach().clone() for name, each in average.state_dict().items()}
                elif (since := since + 1) >= PATIENCE:
                    break
            if kept is not None:
                self._networks.load_state_dict(kept)
        if kept is None:
            self._networks.last.weight.data.zero_()
            if self._networks.last.bias is not None:
                self._networks.last.bias.data.zero_()
        return Learned(made, best_step, 1 - best / before if before > 0 else 0.0)

    def __call__(
        self, frames: Complex64[Tensor, "frames pixels"], classic: Complex64[Tensor, "frames pixels"]
    ) -> tuple[Complex64[Tensor, "frames pixels"], Complex64[Tensor, "frames pixels"]]:
        """Background and dynamic part, each corrected, of frames and of low rank plus sparse of the same lines."""
        low_rank = leading_part(frames[None], RANK)[0]
        first, second = self._outputs(self._networks, self._see(frames, classic))
        return low_rank + self._rows(first), frames - low_rank + self._rows(second)

    def _step(self, optimiser: torch.optim.Optimizer, part: Part, seen: Tensor, generator: torch.Generator) -> None:
        """One step on some of the frames of a part; its gradient is computed by hand up to the networks' outputs."""
        frames, planes = part.frames.shape[0], seen.shape[1]
        chosen = torch.randperm(frames, generator=generator)[: max(1, FRAMES_AT_A_TIME // planes)].to(seen.device)
        found = self._run(self._networks, seen[chosen].flatten(0, 1).clone())
        with torch.no_grad():
            change = self._complex(found.detach()).sum(1)
            change = change.reshape(len(chosen), planes, *change.shape[1:])
            whole = change.new_zeros((frames, *change.shape[1:])).index_copy(0, chosen, change)
            estimate = part.frames + self._rows(whole)
            slope = self._system.to_images(part.held.normal(estimate) - part.held.right_side)[chosen]
            slope = (slope * self._phase.conj() / self._unit).flatten(0, 1)
            parts = torch.stack([slope.real, slope.imag], 1)
        optimiser.zero_grad()
        torch.autograd.backward(found, parts.repeat(1, 2, 1, 1).clone())
        optimiser.step()

    def _misfit(self, part: Part, frames: Tensor) -> float:
        """|A_i X - y_i|^2, less what does not depend on X."""
        fitted = part.held.normal(frames) - 2 * part.held.right_side
        constant = part.held.energy
        return float((frames.conj() * fitted).real.sum(dtype=torch.float64)) + constant

    def _see(
        self, frames: Complex64[Tensor, "frames pixels"], classic: Complex64[Tensor, "frames pixels"]
    ) -> Float32[Tensor, "frames z channels y x"]:
        """What both networks see of each frame: itself, its neighbours, what all have in common, what classic adds."""
        background = self._normalised(leading_part(frames[None], RANK)[0])
        own = self._normalised(frames)
        dynamic = own - background
        mean = background.mean(0, keepdim=True).expand_as(background)
        added = self._normalised(classic) - own
        added_below = self._normalised(leading_part(classic[None], RANK)[0]) - background
        first = [*_neighbours(background), mean, added, added_below]
        second = [*_neighbours(dynamic), background, added, added_below]
        return torch.stack([part for image in (*first, *second) for part in (image.real, image.imag)], 2)

    def _normalised(self, frames: Tensor) -> Complex64[Tensor, "frames z y x"]:
        return self._system.to_images(frames) * self._phase.conj() / self._unit

    def _rows(self, changes: Complex64[Tensor, "frames z y x"]) -> Complex64[Tensor, "frames pixels"]:
        return self._system.to_rows(changes * self._phase * self._unit)

    def _apply(self, networks: SideBySide, seen: Tensor) -> Complex64[Tensor, "frames pixels"]:
        """What both networks change, together."""
        first, second = self._outputs(networks, seen)
        return self._rows(first + second)

    def _outputs(self, networks: SideBySide, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What each network changes, as normalised images `(frames, z, y, x)`."""
        with torch.no_grad():
            found = torch.stack([self._complex(self._run(networks, frame.clone())) for frame in seen])
        return found[:, :, 0], found[:, :, 1]

    def _run(self, networks: SideBySide, seen: Float32[Tensor, "n channels y x"]) -> Float32[Tensor, "n 4 y x"]:
        """Through the networks, on a grid that they can halve."""
        y, x = seen.shape[-2:]
        rows, columns = networks.padded((y, x))
        whole = pad(seen, (0, columns - x, 0, rows - y), mode="replicate")
        found: Tensor = networks(whole.contiguous(memory_format=torch.channels_last))
        return found[..., :y, :x]

    @staticmethod
    def _complex(found: Float32[Tensor, "n 4 y x"]) -> Complex64[Tensor, "n 2 y x"]:
        return torch.complex(found[:, 0::2].contiguous(), found[:, 1::2].contiguous())


def _neighbours(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The frame before, each frame, the frame after; ends have themselves beside them."""
    return torch.cat([images[:1], images[:-1]]), images, torch.cat([images[1:], images[-1:]])
