"""An energy of magnitude images: the negative logarithm, in nats, of how plausible an image is.

    R(u; s) = 1/2 sum over pixels of |U(u, s)|^2,        p_s(u) = exp(-R(u; s)) / Z

U is a convolutional network that looks for what does not belong into an image, in units of s; p_s is the density of
images with white Gaussian noise of standard deviation s added. The gradient of R is then that noise over s: `u - s^2
grad R` is the image without it (Tweedie). A small s is the prior of a reconstruction and of posterior sampling; larger
ones smooth the prior, for a solver to come down from.

Why this form: an energy needs a scalar, and half the square of a network of full resolution reaches the sharpness of a
network that predicts the score directly (Salimans and Ho 2021), which the scalar end of an encoder (Zach 2023) did only
for small noise: after 200 s on one core 38.0, 29.3, 22.7 dB at s = 0.015, 0.05, 0.15 on subjects kept apart, against
37.7, 28.7, 19.0 dB.

U is a U-Net on quarter-resolution channels (each 2 x 2 pixels become four channels), so that the widest layers are
cheap. Every layer is a convolution: images of any size pass, padded with zeros at the lower right to whole cells.

References: Zach, Knoll, Pock 2023, doi 10.1109/TMI.2023.3288631; Salimans and Ho 2021, "Should EBMs model the energy or
the score?"; Vincent 2011, doi 10.1162/NECO_a_00142.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu

REFERENCE_QUANTILE = 0.998
"""The magnitude that becomes 1: nearly the brightest, but not a single bright vessel."""

MOST_VALUES = 1 << 22
"""Values that a quantile is taken of at most; of larger images every n-th."""

SMALLEST_DEVIATION = 0.015
"""Noise that training images have at least (Zach 2023), in units of the normalised image: the sharpest prior."""

LARGEST_DEVIATION = 0.3

_TYPICAL_SPREAD = 0.15
"""Standard deviation of normalised images about their mean; keeps the input of U near 1 for any noise."""


@dataclass(frozen=True, slots=True)
class EnergyConfiguration:
    """Size of the network.

    Attributes:
        stages: resolutions, each half of the one before; the first has half the pixels of the image along each axis.
        features: channels of the first stage.
        growth: ratio of the channels of a stage to those of the one before; rounded to multiples of 8.
        blocks: residual blocks a stage, on the way down and up.
    """

    stages: int = 4
    features: int = 48
    growth: float = 1.4
    blocks: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        sizes = (self.stages, 1, 8), (self.features, 8, 512), (self.growth, 1, 4), (self.blocks, 1, 8)
        if not all(least <= value <= most for value, least, most in sizes):
            raise ValueError(
                f"a network has stages 1 to 8, features 8 to 512, growth 1 to 4, blocks 1 to 8, not {self}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(max(8, 8 * round(self.features * self.growth**stage / 8)) for stage in range(self.stages))

    def as_dict(self) -> dict[str, int | float]:
        """As a card keeps it."""
        return asdict(self)


SMALL = EnergyConfiguration()
"""0.6 million weights; serves on two CPU cores."""

LARGE = EnergyConfiguration(stages=6, features=48, growth=1.75, blocks=2)
"""26 million weights, six stages as Zach 2023; needs a GPU."""


class EnergyModel(nn.Module):
    """R and its gradient; free of devices, files and global state.

    Args:
        configuration: size of the network.
    """

    def __init__(self, configuration: EnergyConfiguration = SMALL) -> None:
        super().__init__()
        self.configuration = configuration
        widths = configuration.widths
        self.cell = 2**configuration.stages
        self.first = nn.Conv2d(5, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_stage(width, configuration.blocks) for width in widths)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.finer = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_stage(width, configuration.blocks) for width in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4, 3, padding=1)

    def residual(
        self, image: Float[Tensor, "items y x"], deviation: Float[Tensor, "items"]
    ) -> Float[Tensor, "items yc xc"]:
        """U: what does not belong into the image, in units of the deviation; on whole cells."""
        rows, columns = (-n % self.cell for n in image.shape[-2:])
        spread = torch.sqrt(deviation.square() + _TYPICAL_SPREAD**2)[:, None, None]
        four = pixel_unshuffle(pad(image / spread, (0, columns, 0, rows))[:, None], 2)
        level = (torch.log(deviation) / 2 + 1.5)[:, None, None, None].expand_as(four[:, :1])
        features = silu(self.first(torch.cat([four, level], 1).contiguous(memory_format=torch.channels_last)))
        skipped: list[Tensor] = []
        for stage, coarser in zip(self.down, self.coarser, strict=False):
            skipped.append(stage(features))
            features = coarser(skipped[-1])
        features = self.down[-1](features)
        for stage, finer, skip in zip(reversed(self.up), reversed(self.finer), reversed(skipped), strict=True):
            features = stage(finer(features) + skip)
        found: Tensor = pixel_shuffle(self.last(features), 2)[:, 0]
        return found

    def forward(self, image: Float[Tensor, "items y x"], deviation: Float[Tensor, "items"]) -> Float64[Tensor, "items"]:
        """Energy of each image, in nats.

        Args:
            image: normalised magnitudes (`reference_magnitude`).
            deviation: s of each item, `SMALLEST_DEVIATION` to `LARGEST_DEVIATION`.
        """
        return self.residual(image, deviation).square().sum((1, 2), dtype=torch.float64) / 2

    def value_and_gradient(
        self, image: Float[Tensor, "items y x"], deviation: float
    ) -> tuple[Float64[Tensor, "items"], Float[Tensor, "items y x"]]:
        """Energy and its gradient, in one pass forward and one back; inside `torch.inference_mode` too.

        Computes in the precision of image and network: float32, or float64 to check derivatives with.
        """
        with torch.inference_mode(mode=False), torch.enable_grad():
            point = image.detach().clone().requires_grad_(True)
            value = self(point, _levels(image, deviation))
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    def value(self, image: Float[Tensor, "items y x"], deviation: float) -> Float64[Tensor, "items"]:
        """Energy alone, for a third of the work."""
        with torch.no_grad():
            energy: Tensor = self(image, _levels(image, deviation))
            return energy


def make_energy(**configuration: int | float) -> EnergyModel:
    """A network of a card's configuration, weights not loaded.

    Raises:
        TypeError: an argument is unknown.
        ValueError: a size makes no network.
    """
    return EnergyModel(EnergyConfiguration(**configuration))  # type: ignore[arg-type]  # checked there


def deepened(model: EnergyModel, blocks: int) -> EnergyModel:
    """The same energy from a network with more residual blocks a stage, to train on.

    New blocks come after those there are and begin as the identity: their convolutions are zero, and so is silu(0). So
    a longer training goes on from what a shorter one of a smaller network has learnt, instead of anew.

    Raises:
        ValueError: fewer blocks than there are.
    """
    if blocks < model.configuration.blocks:
        raise ValueError(f"the network has {model.configuration.blocks} blocks a stage already, more than {blocks}")
    deeper = EnergyModel(replace(model.configuration, blocks=blocks))
    known = model.state_dict()
    deeper.load_state_dict({name: known.get(name, torch.zeros_like(new)) for name, new in deeper.state_dict().items()})
    return deeper


def reference_magnitude(magnitude: Float32[Tensor, "items *shape"]) -> Float32[Tensor, "items"]:
    """What a magnitude image is divided by before the energy sees it; 1 for an image of zeros.

    The one place where images are normalised, for training and for reconstruction.
    """
    flat = magnitude.flatten(1)
    flat = flat[:, :: -(-flat.shape[1] // MOST_VALUES)]
    reference = torch.quantile(flat, REFERENCE_QUANTILE, dim=1)
    largest = flat.amax(1)
    reference = torch.where(reference > 0, reference, largest)
    return torch.where(reference > 0, reference, 1.0)


class _Residual(nn.Module):
    """A convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = features + silu(self.convolution(features))
        return found


def _levels(image: Tensor, deviation: float) -> Float[Tensor, "items"]:
    return torch.full((image.shape[0],), deviation, dtype=image.dtype, device=image.device)


def _stage(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(blocks)))
