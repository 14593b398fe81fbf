"""`A^H W A` of non-uniform samples as a convolution, without touching a sample.

The entry that couples two pixels depends on their distance d only: the point spread function
`p(d) = 1/(ny nx) sum over samples of w exp(2 pi i k d)`, with d from 1-n to n-1 along each axis. A convolution of that
reach is a product with the transform of p on a grid of twice the size. It is computed once; after that a product costs
a few FFTs.

The transform of the doubled grid falls apart into those of its even and odd frequencies along each axis: with m >= n,

    FFT_2m(x)[2u + s] = FFT_m(x(j) exp(-pi i s j / m))[u],    s = 0, 1.

So four transforms of the single grid, between two modulations each, replace one of the doubled grid. Nothing is padded
to twice the size, a coil stays in cache, and m may be any length that the FFT likes (240 is three times as fast as
230).

Reference: Fessler 2005, doi 10.1109/TSP.2005.853152; Baron 2018, doi 10.1002/mrm.26824.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.points import Points

BLOCK_BYTES_CPU = 1 << 20
"""Bytes of images transformed at once; see `pipelines.operators.encoding`."""
BLOCK_BYTES_GPU = 1 << 30


class Toeplitz:
    """`A^H W A` of one trajectory.

    Args:
        positions: x before y, in cycles a pixel, -0.5 to 0.5.
        weights: W, one number a sample, 0 where nothing was measured.
        shape: y and x of the image.

    Attributes:
        spread: `p(d)`, d from 1-n to n-1, d = 0 in the middle.
    """

    def __init__(
        self,
        positions: Float32[Tensor, "readouts samples 2"],
        weights: Float32[Tensor, "readouts samples"],
        shape: tuple[int, int],
    ) -> None:
        self._grid = (fast_length(shape[0]), fast_length(shape[1]))
        points = Points(positions, weights != 0, (2 * shape[0] - 1, 2 * shape[1] - 1))
        self.spread = points.image(weights.reshape(1, -1).to(torch.complex64))[0] / (shape[0] * shape[1])
        wrapped = wrap(self.spread, (2 * self._grid[0], 2 * self._grid[1]))
        # Real because p(-d) is the conjugate of p(d).
        eigenvalues = torch.fft.fft2(wrapped).real
        self._transfer = [[eigenvalues[y::2, x::2] / 4 for x in (0, 1)] for y in (0, 1)]
        self._waves = [_half_waves(n, m, weights.device) for n, m in zip(shape, self._grid, strict=True)]
        limit = BLOCK_BYTES_CPU if weights.device.type == "cpu" else BLOCK_BYTES_GPU
        self._at_once = max(1, limit // (8 * math.prod(self._grid)))

    def __call__(self, images: Complex64[Tensor, "n y x"]) -> Complex64[Tensor, "n y x"]:
        """Apply the operator to each of some images."""
        result = torch.zeros_like(images)
        for some, total in zip(torch.split(images, self._at_once), torch.split(result, self._at_once), strict=True):
            for odd_y, odd_x in ((0, 0), (0, 1), (1, 0), (1, 1)):
                wave = self._wave(odd_y, odd_x)
                total += wave.conj() * self._filter(wave * some, odd_y, odd_x)
        return result

    def between(
        self, maps: Complex64[Tensor, "coils y x"], image: Complex64[Tensor, "y x"]
    ) -> Complex64[Tensor, "y x"]:
        """`C^H A^H W A C` of one image, with the coil sensitivities C."""
        total = torch.zeros_like(image)
        for odd_y, odd_x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            wave = self._wave(odd_y, odd_x)
            modulated = wave * image
            part = torch.zeros_like(image)
            for some in torch.split(maps, self._at_once):
                part += (self._filter(modulated * some, odd_y, odd_x) * some.conj()).sum(0)
            total += wave.conj() * part
        return total

    def _filter(self, images: Tensor, odd_y: int, odd_x: int) -> Tensor:
        """The share of one parity of frequencies, between the modulations."""
        spectrum = torch.fft.fft2(images, s=self._grid)
        spectrum *= self._transfer[odd_y][odd_x]
        filtered: Tensor = torch.fft.ifft2(spectrum)
        return filtered[..., : images.shape[-2], : images.shape[-1]]

    def _wave(self, odd_y: int, odd_x: int) -> Tensor:
        """`exp(-pi i s j / m)` along both axes."""
        along_y, along_x = self._waves
        return along_y[odd_y][:, None] * along_x[odd_x]


def wrap(spread: Complex64[Tensor, "rows columns"], grid: tuple[int, int]) -> Complex64[Tensor, "y x"]:
    """An array with d = 0 in its middle, on a periodic grid with d = 0 at index 0; entries that meet add up."""
    for axis, n in enumerate(grid):
        middle = spread.shape[axis] // 2
        index = (torch.arange(spread.shape[axis], device=spread.device) - middle) % n
        shape = list(spread.shape)
        shape[axis] = n
        spread = spread.new_zeros(shape).index_add_(axis, index, spread)
    return spread


def fast_length(n: int) -> int:
    """The smallest length of at least n that has no prime factor above 5."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


def _half_waves(n: int, m: int, device: torch.device) -> list[Tensor]:
    """`exp(-pi i s j / m)` for s = 0, 1."""
    angles = -math.pi / m * torch.arange(n, dtype=torch.float64)
    waves = torch.polar(torch.ones_like(angles), torch.stack([0 * angles, angles])).to(device, torch.complex64)
    return list(waves)
