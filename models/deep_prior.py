"""Untrained networks as priors of frames (deep image prior): U-Nets with all frames of a slice as output channels.

A network gets one fixed image of noise and is fitted to the data of a single scan; that a U-Net brings forth smooth,
connected structures sooner than noise is all it knows (Ulyanov 2018). Frames as channels of one output share all
layers but the last, which ties them together over time, and one pass gives all of them.

Several networks that know nothing of each other (background and motion, or seeds of an ensemble) compute side by side
as groups of each convolution: one pass instead of many small ones. What a network is and gives depends on its own seed
alone, not on which others run beside it.

Upsampling is bilinear: it is a good part of the prior; transposed convolutions fit noise sooner.

References: Ulyanov, Vedaldi, Lempitsky 2018, arXiv 1711.10925; Yoo 2021, doi 10.1109/TMI.2021.3084288 (cine).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu

SLOPE = 0.1
"""Of the leaky ReLU below zero."""

NORM_GROUPS = 4
LAST_SCALE = 0.1
"""Of the last layer's weights at the beginning, so that a network begins near zero."""

INPUT_DEVIATION = 0.1


@dataclass(frozen=True, slots=True)
class DeepPriorConfiguration:
    """Size of a network.

    Attributes:
        widths: channels of each resolution, the finest first; multiples of 4.
        skip: channels of the connections between encoder and decoder.
        inputs: channels of the input.
    """

    widths: tuple[int, ...] = (32, 48, 64)
    skip: int = 8
    inputs: int = 16

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        if not 1 <= len(self.widths) <= 6 or any(width < 4 or width % NORM_GROUPS for width in self.widths):
            raise ValueError(f"a network has 1 to 6 widths, multiples of {NORM_GROUPS}, not {self.widths}")
        if self.skip < 1 or self.inputs < 1:
            raise ValueError(f"a network has at least one channel each of skip and inputs, not {self}")


SMALL = DeepPriorConfiguration((24, 32, 48))
"""0.1 million weights for a dozen frames."""
MEDIUM = DeepPriorConfiguration()
LARGE = DeepPriorConfiguration((32, 64, 128, 128))
"""A million weights; for a GPU."""


class SideBySide(nn.Module):
    """U-Nets that know nothing of each other, as groups of the same convolutions.

    Args:
        configuration: size of each.
        outputs: channels that each brings forth.
        generators: one for each network, to draw its first weights from.
    """

    def __init__(
        self, configuration: DeepPriorConfiguration, outputs: int, generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__()
        n, widths, skip = len(generators), configuration.widths, configuration.skip
        self._networks = n
        self._cell: int = 2 ** (len(widths) - 1)
        coming = (configuration.inputs, *widths[:-1])
        self.down = nn.ModuleList(_Block(n, a, b) for a, b in zip(coming, widths, strict=True))
        self.skips = nn.ModuleList(_convolution(n, width, skip, 1) for width in widths[:-1])
        self.up = nn.ModuleList(_Block(n, below + skip, width) for width, below in pairwise(widths))
        self.last = _convolution(n, widths[0], outputs, 1)
        for number, generator in enumerate(generators):
            self._begin(number, generator)

    def forward(self, inputs: Float32[Tensor, "n channels y x"]) -> Float32[Tensor, "n outputs y x"]:
        """Outputs, network by network, of inputs, network by network; y and x are multiples of `cell`."""
        features = inputs
        kept: list[Tensor] = []
        for number, block in enumerate(self.down):
            features = block(features if number == 0 else avg_pool2d(features, 2))
            kept.append(features)
        for block, skip, beside in zip(reversed(self.up), reversed(self.skips), reversed(kept[:-1]), strict=True):
            finer = interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = block(self._join(finer, skip(beside)))
        found: Tensor = self.last(features)
        return found

    def padded(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The least multiples of the coarsest pixel that hold y and x."""
        y, x = (self._cell * math.ceil(size / self._cell) for size in shape)
        return y, x

    def _join(self, a: Tensor, b: Tensor) -> Tensor:
        """Channels of both, network by network."""
        groups = [each.reshape(each.shape[0], self._networks, -1, *each.shape[2:]) for each in (a, b)]
        return torch.cat(groups, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)

    def _begin(self, number: int, generator: torch.Generator) -> None:
        """First weights of one network (He 2015)."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    size = module.out_channels // self._networks
                    own = slice(number * size, (number + 1) * size)
                    bound = math.sqrt(6 / ((1 + SLOPE**2) * module.weight[0].numel()))
                    scale = LAST_SCALE if module is self.last else 1.0
                    module.weight[own] = (
                        scale * bound * (2 * torch.rand(module.weight[own].shape, generator=generator) - 1)
                    )


class DeepPriors(nn.Module):
    """Networks that bring forth all frames of a slice from fixed noise, side by side.

    Args:
        configuration: size of each.
        frames: complex images that each brings forth.
        shape: y and x of an image, at least 2 pixels for each resolution.
        seeds: one for each network: its first weights and its input.
    """

    noise: Tensor

    def __init__(
        self, configuration: DeepPriorConfiguration, frames: int, shape: tuple[int, int], seeds: Sequence[int]
    ) -> None:
        super().__init__()
        if frames < 1 or not seeds:
            raise ValueError(f"at least one frame and one seed are needed, not {frames} and {len(seeds)}")
        if min(shape) < 2 ** len(configuration.widths):
            raise ValueError(f"images of {shape} pixels are too small for {len(configuration.widths)} resolutions")
        self.frames, self.shape = frames, shape
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        cell = 2 ** (len(configuration.widths) - 1)
        padded = [cell * math.ceil(size / cell) for size in shape]
        noise = torch.cat(
            [INPUT_DEVIATION * torch.randn(configuration.inputs, *padded, generator=each) for each in generators]
        )
        self.networks = SideBySide(configuration, 2 * frames, generators)
        self.register_buffer("noise", noise[None].contiguous(memory_format=torch.channels_last))

    def forward(self) -> Complex64[Tensor, "networks frames y x"]:
        """The frames of each network."""
        found = self.networks(self.noise)[0].float()
        parts = found.reshape(-1, 2, self.frames, *found.shape[1:])
        parts = parts[..., : self.shape[0], : self.shape[1]]
        return torch.complex(parts[:, 0], parts[:, 1])


class _Block(nn.Module):
    """Two convolutions with normalisation."""

    def __init__(self, networks: int, coming: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(networks, n, width, 3) for n in (coming, width))
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS * networks, networks * width) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            features = leaky_relu(norm(convolution(features)), SLOPE)
        return features


def _convolution(networks: int, coming: int, going: int, size: int) -> nn.Conv2d:
    """One for each network; biases begin at zero."""
    made = nn.Conv2d(
        networks * coming, networks * going, size, padding=size // 2, padding_mode="reflect" if size > 1 else "zeros",
        groups=networks,
    )  # fmt: skip
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]  # it has one
    return made
