"""An unrolled network: steps that fit the measured data, and corrections that have learnt what images look like.

    z_t = x_t + CNN_t(x_t, A^H A x_t, A^H y, s_t, noise)        correction, inside the support of the coil maps
    x_(t+1) = z_t - a_t (A^H A x_t - A^H y)                     consistency "gradient" (E2E-VarNet, in image space)
    x_(t+1) = z_t - (A^H A + w_t)^-1 (A^H A z_t - A^H y)        consistency "conjugate_gradient" (MoDL)

The latter is `argmin |A x - y|^2 + w_t |x - z_t|^2`, solved for what is left of it. Each a_t and w_t is learnt, with
the power of the noise that it grows by.

What makes the unrolling adaptive (Xin 2024): the correction sees besides the image what the data say of it (its image
under the normal operator and the adjoint image), and a memory s_t that it writes itself, as an adaptive optimiser keeps
a running sum of squared gradients. Both can be switched off: without them the network is a plain unrolled gradient
network (Sriram 2020) or MoDL (Aggarwal 2019), for comparison in the same code.

Physics comes as an `Encoding`: the normal operator and a solve with it. Both are Hermitian, so gradients go through
them by applying them once more, and nothing inside of them is kept. x_0 solves `(A^H A + start_weight) x = A^H y`, so
the network need not learn parallel imaging again.

Every image is divided by the brightness of its x_0, and the noise is given in that unit: `a y` gives `a x`. Networks
work on cells of 2 x 2 pixels with U-Nets of a few stages; images of any size are padded inside of them.

Corrections and memory are bounded (tanh), the former by the brightness of the image: without, networks diverged after
200 updates at a rate of 2e-3.

A second head predicts the deviation of `|x|`, from what is there when the image is done; it never changes the image.

References: Xin 2024 (ECCV), doi 10.1007/978-3-031-73254-6_13 for the idea, nothing of its code; Sriram 2020, doi
10.1007/978-3-030-59713-9_7; Aggarwal 2019, doi 10.1109/TMI.2018.2865356.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu
from torch.utils.checkpoint import checkpoint

from models.energy import reference_magnitude
from models.unrolled_physics import Encoding, apply_normal, apply_solve

LEAST_NOISE = 1e-4
"""In units of the image; less is taken as this."""

FIRST_WEIGHT = 10 * math.exp(-4)
"""w_t before training where the level of the noise is 0; with a slope of 2 it is ten times the noise everywhere. With a
constant less than 1, steps without corrections yet would bring back noise that x_0 has less of."""

LEAST_WEIGHT, MOST_WEIGHT = 5e-4, 0.2
"""Of the first solve."""

LEAST_SCALE, MOST_SCALE = -9.0, 1.0
"""Logarithm of the predicted deviation in units of the image, so that no value overflows."""


@dataclass(frozen=True, slots=True)
class UnrolledConfiguration:
    """Size and kind of the network.

    Attributes:
        cascades: steps, each with weights of its own.
        stages: resolutions of a correction, each half of the one before; the first has half the pixels of the image.
        features: channels of the first stage.
        growth: ratio of the channels of a stage to those of the one before; rounded to multiples of 8.
        blocks: residual blocks a stage, on the way down and up.
        memory: channels of s_t at half resolution; 0 for none.
        sees_data: whether corrections see `A^H A x` and `A^H y`.
        consistency: how a step fits the data.
        shared: whether all cascades have the same weights.
        start_weight: of the first solve, in squares of the noise over the brightness of the image; 0 begins with the
            adjoint image.
        head: channels of the head for the deviation.
    """

    cascades: int = 6
    stages: int = 3
    features: int = 32
    growth: float = 1.5
    blocks: int = 1
    memory: int = 16
    sees_data: bool = True
    consistency: Literal["gradient", "conjugate_gradient"] = "gradient"
    shared: bool = False
    start_weight: float = 8.0
    head: int = 16

    def __post_init__(self) -> None:
        """Refuse what makes no network."""
        sizes = (
            (self.cascades, 1, 32), (self.stages, 1, 6), (self.features, 8, 512), (self.growth, 1, 4),
            (self.blocks, 1, 8), (self.memory, 0, 128), (self.head, 8, 256), (self.start_weight, 0, 1000),
        )  # fmt: skip
        if not all(least <= value <= most for value, least, most in sizes):
            raise ValueError(
                "a network has cascades 1 to 32, stages 1 to 6, features 8 to 512, growth 1 to 4, blocks 1 to 8, "
                f"memory 0 to 128, head 8 to 256, start_weight 0 to 1000, not {self}"
            )
        if self.consistency not in {"gradient", "conjugate_gradient"}:
            raise ValueError(f"consistency is gradient or conjugate_gradient, not {self.consistency!r}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(max(8, 8 * round(self.features * self.growth**stage / 8)) for stage in range(self.stages))

    def as_dict(self) -> dict[str, Any]:
        """As a card keeps it."""
        return asdict(self)


SMALL = UnrolledConfiguration()
"""Serves on a CPU core."""

BASE = UnrolledConfiguration(cascades=8, stages=4, features=64, growth=1.5, blocks=2, memory=32, head=32)
"""Needs a GPU to be trained."""


@dataclass(frozen=True, slots=True)
class UnrolledResult:
    """What the network makes of some planes.

    Attributes:
        image: x_T.
        start: x_0.
        deviation: predicted standard deviation of `|image|`.
    """

    image: Complex[Tensor, "items p q"]
    start: Complex[Tensor, "items p q"]
    deviation: Float[Tensor, "items p q"]


class UnrolledModel(nn.Module):
    """Cascades and the head; free of devices, files and global state.

    Args:
        configuration: size and kind.
    """

    def __init__(self, configuration: UnrolledConfiguration = SMALL) -> None:
        super().__init__()
        self.configuration = configuration
        n = 1 if configuration.shared else configuration.cascades
        images = 3 if configuration.sees_data else 1
        memory = configuration.memory
        widths = configuration.widths
        self.corrections = nn.ModuleList(
            _CellNet(2 * images, memory + 1, 2, memory, widths, configuration.blocks) for _ in range(n)
        )
        is_solved = configuration.consistency == "conjugate_gradient"
        first = math.log(FIRST_WEIGHT) if is_solved else 0.0
        self.steps = nn.Parameter(torch.full((configuration.cascades,), first))
        """Logarithms of a_t or w_t where the level of the noise is 0."""
        self.slopes = nn.Parameter(torch.full((configuration.cascades,), 2.0 if is_solved else 0.0))
        """What they grow by with the level."""
        head = (configuration.head, 2 * configuration.head)
        self.head = _CellNet(3, memory + 1, 1, 0, head, 1)

    def forward(
        self,
        adjoint: Complex[Tensor, "items p q"],
        encoding: Encoding,
        noise: Float[Tensor, "items"],
        *,
        save_memory: bool = False,
    ) -> UnrolledResult:
        """Images of some planes.

        Args:
            adjoint: `A^H y`.
            encoding: A, with a largest eigenvalue of about 1 where everything is measured.
            noise: root of `E|n|^2` of a sample of y, in the units of y.
            save_memory: compute corrections again for the gradient instead of keeping what is inside of them.
        """
        configuration = self.configuration
        start = self._start(adjoint, encoding, noise)
        unit = reference_magnitude(start.abs())
        scale = unit[:, None, None]
        level = torch.log((noise / unit).clamp(min=LEAST_NOISE)) / 2 + 2
        x = before = start / scale
        b = adjoint / scale
        memory = x.real.new_zeros((len(x), configuration.memory, 0, 0))
        for number in range(configuration.cascades):
            step = torch.exp(self.steps[number] + self.slopes[number] * level)
            fitted = apply_normal(encoding, x) if self._needs_normal else b
            inputs = torch.cat([_parts(each) for each in ((x, fitted, b) if configuration.sees_data else (x,))], 1)
            network = self.corrections[0 if configuration.shared else number]
            if save_memory and self.training:
                change, memory = checkpoint(network, inputs, memory, level, use_reentrant=False)
            else:
                change, memory = network(inputs, memory, level)
            z = x + _complex(torch.tanh(change)) * encoding.support
            before = x
            if configuration.consistency == "gradient":
                x = z - step[:, None, None] * (fitted - b)
            else:
                x = z - apply_solve(encoding, apply_normal(encoding, z) - b, step)
        magnitude = x.abs()
        seen = torch.stack([magnitude, (x - start / scale).abs(), (x - before).abs()], 1)
        logarithm, _ = self.head(seen.detach(), memory.detach(), level)
        deviation = torch.exp((logarithm[:, 0] - 4).clamp(LEAST_SCALE, MOST_SCALE)) * (encoding.support > 0)
        return UnrolledResult(x * scale, start, deviation * scale)

    def _start(
        self, adjoint: Complex[Tensor, "items p q"], encoding: Encoding, noise: Float[Tensor, "items"]
    ) -> Complex[Tensor, "items p q"]:
        """x_0: least squares with the weight that suits the noise, as far as the adjoint image tells the brightness."""
        if self.configuration.start_weight == 0:
            return adjoint
        relative = noise / reference_magnitude(adjoint.abs())
        weight = (self.configuration.start_weight * relative.square()).clamp(LEAST_WEIGHT, MOST_WEIGHT)
        return encoding.solve(adjoint, weight)

    @property
    def _needs_normal(self) -> bool:
        return self.configuration.sees_data or self.configuration.consistency == "gradient"


def make_unrolled(**configuration: Any) -> UnrolledModel:
    """A network of a card's configuration, weights not loaded.

    Raises:
        TypeError: an argument is unknown.
        ValueError: a size makes no network.
    """
    return UnrolledModel(UnrolledConfiguration(**configuration))


class _CellNet(nn.Module):
    """A U-Net on cells of 2 x 2 pixels: images and a memory in, images and a memory out.

    Begins as zero: the last layer has no weights yet.

    Args:
        channels: of images in.
        extra: channels at half resolution in: memory, and the level of the noise.
        out: channels of images out.
        memory: channels of memory out.
        widths: channels of each stage.
        blocks: residual blocks a stage.
    """

    def __init__(self, channels: int, extra: int, out: int, memory: int, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self._memory = memory
        self._extra = extra
        self.cell = 2 ** len(widths)
        self.first = nn.Conv2d(4 * channels + extra, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(width, blocks) for width in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.finer = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_stage(width, blocks) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4 * out + memory, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]  # it has one

    def forward(
        self, images: Float[Tensor, "items channels p q"], memory: Tensor, level: Float[Tensor, "items"]
    ) -> tuple[Float[Tensor, "items out p q"], Tensor]:
        """Images out, and memory on whole cells; memory of size 0 counts as zeros."""
        p, q = images.shape[-2:]
        rows, columns = (-n % self.cell for n in (p, q))
        cells = pixel_unshuffle(pad(images, (0, columns, 0, rows)), 2)
        items, _, height, width = cells.shape
        if memory.shape[1] and not memory.numel():
            memory = cells.new_zeros((items, memory.shape[1], height, width))
        memory = pad(memory, (0, width - memory.shape[-1], 0, height - memory.shape[-2])) if memory.numel() else memory
        levels = level[:, None, None, None].expand(items, 1, height, width)
        inputs = [cells, memory, levels] if memory.numel() else [cells, levels]
        features = silu(self.first(torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)))
        skipped: list[Tensor] = []
        for stage, coarser in zip(self.down, self.coarser, strict=False):
            skipped.append(stage(features))
            features = coarser(skipped[-1])
        features = self.down[-1](features)
        for stage, finer, skip in zip(reversed(self.up), reversed(self.finer), reversed(skipped), strict=True):
            features = stage(finer(features) + skip)
        found = self.last(features)
        n = found.shape[1] - self._memory
        return pixel_shuffle(found[:, :n].contiguous(), 2)[..., :p, :q].float(), torch.tanh(found[:, n:])


class _Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = features + self.second(silu(self.first(features)))
        return found


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(blocks)))


def _parts(image: Complex[Tensor, "items p q"]) -> Float[Tensor, "items 2 p q"]:
    return torch.stack([image.real, image.imag], 1)


def _complex(parts: Float[Tensor, "items 2 p q"]) -> Complex[Tensor, "items p q"]:
    return torch.complex(parts[:, 0].contiguous(), parts[:, 1].contiguous())
