"""The Fourier transform from an image to samples anywhere in k-space, with exact adjoint and fast normal operator.

    y(k) = 1 / sqrt(ny nx) * sum over pixels r of x(r) exp(-2 pi i k r),    r = 0 at index n//2

with k in cycles a pixel. Scale and centre are those of `pipelines.operators.fourier`: at the points of a Cartesian grid
both give the same. Forward and adjoint spread and interpolate with the same kernel, so that they are adjoint to
rounding, whatever their accuracy (measured: 2e-7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from pipelines.operators.linear import LinearOperator
from pipelines.operators.points import Points
from pipelines.operators.toeplitz import Toeplitz


class NonUniform(LinearOperator):
    """Image `(frames, 1, y, x)` or `(frames, coils, 1, y, x)` to samples `(frames, [coils,] 1, readouts, samples)`.

    Frames with the same trajectory share plans and are transformed together.

    Args:
        positions: x before y, in cycles a pixel, -0.5 to 0.5; each frame has its own.
        shape: y and x of the image.
        measured: samples that exist; the others are zero in the range and ignored by the adjoint. None: all.
    """

    def __init__(
        self,
        positions: Float32[Tensor, "frames readouts samples 2"],
        shape: tuple[int, int],
        measured: Bool[Tensor, "frames readouts samples"] | None = None,
    ) -> None:
        self._shape = shape
        self._samples = (1, int(positions.shape[1]), int(positions.shape[2]))
        self._scale = 1 / math.sqrt(shape[0] * shape[1])
        measured = torch.ones_like(positions[..., 0], dtype=torch.bool) if measured is None else measured
        self._which, first = distinct_frames(positions, measured)
        self._points = [Points(positions[frame], measured[frame], shape) for frame in first]
        self._weighted = [(positions[frame], measured[frame].to(torch.float32)) for frame in first]
        self._toeplitz: list[Toeplitz] = []

    def __call__(self, tensor: Tensor, /) -> Tensor:
        """Samples of an image."""
        flat = tensor.reshape(tensor.shape[0], -1, *self._shape)
        samples = flat.new_empty((*flat.shape[:2], math.prod(self._samples)))
        for index, frames in self._frames():
            samples[frames] = self._points[index].samples(flat[frames].flatten(0, 1)).view(-1, *samples.shape[1:])
        return samples.mul_(self._scale).view(*tensor.shape[:-3], *self._samples)

    def adjoint(self, tensor: Tensor, /) -> Tensor:
        """Image of samples: the sum of their waves, without any weight."""
        flat = tensor.reshape(tensor.shape[0], -1, math.prod(self._samples))
        image = flat.new_empty((*flat.shape[:2], *self._shape))
        for index, frames in self._frames():
            image[frames] = self._points[index].image(flat[frames].flatten(0, 1)).view(-1, *image.shape[1:])
        return image.mul_(self._scale).view(*tensor.shape[:-3], 1, *self._shape)

    def normal(self, tensor: Tensor, /) -> Tensor:
        """`A^H A` through the Toeplitz embedding, which is computed at the first call."""
        if not self._toeplitz:
            self._toeplitz = [Toeplitz(*weighted, self._shape) for weighted in self._weighted]
        flat = tensor.reshape(tensor.shape[0], -1, *self._shape)
        result = torch.empty_like(flat)
        for index, frames in self._frames():
            result[frames] = self._toeplitz[index](flat[frames].flatten(0, 1)).view(-1, *flat.shape[1:])
        return result.view(tensor.shape)

    def _frames(self) -> Iterator[tuple[int, list[int]]]:
        """Each distinct trajectory with its frames."""
        for index in range(len(self._points)):
            yield index, [frame for frame, its in enumerate(self._which) if its == index]


def distinct_frames(*tensors: Tensor) -> tuple[list[int], list[int]]:
    """For each frame the number of its trajectory, and for each trajectory its first frame.

    Args:
        tensors: what tells trajectories apart, frames first; frames with equal bytes are the same.
    """
    seen: dict[bytes, int] = {}
    first: list[int] = []
    which: list[int] = []
    on_cpu = [tensor.cpu().contiguous() for tensor in tensors]
    for frame in range(on_cpu[0].shape[0]):
        key = b"".join(tensor[frame].numpy().tobytes() for tensor in on_cpu)
        if key not in seen:
            seen[key] = len(first)
            first.append(frame)
        which.append(seen[key])
    return which, first
