"""The SENSE encoding operator, and its normal operator split into small independent systems.

`A = sqrt(W) F C`: coil sensitivities, Fourier transform, sampling weights. Along every axis on which the weights are
constant (the readout, nearly always) the Fourier transform cancels in `A^H A`, so that the problem falls apart: one
system for each column of x, coupled only along the phase-encoding axes. `ColumnNormal` uses that. It is several times
cheaper than the transform of the whole plane, its working set stays in cache, and a solver can stop each column when
it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.fourier import Fourier, uncentred
from pipelines.operators.linear import LinearOperator
from pipelines.operators.sampling import Sampling
from pipelines.operators.sensitivity import Sensitivity

# Bytes of coil images a block of columns works on at once. Measured on 1 MiB of L2 a core: 320 x 320 x 8 takes 1.3 ms a
# product in blocks of 0.7 to 3 MB, 1.5 ms at 0.3 MB (overhead of calls) and 5 ms in one piece (memory).
BLOCK_BYTES_CPU = 2 << 20
# On a GPU one large block fills the device; the limit only keeps a large volume from exhausting its memory.
BLOCK_BYTES_GPU = 1 << 30


def encoding(maps: Complex64[Tensor, "coils z y x"], weights: Float32[Tensor, "frames z y x"]) -> LinearOperator:
    """`sqrt(W) F C` with the whole transform over (z, y, x): the plain form, for reference and for right-hand sides."""
    return Sampling(weights) @ Fourier((-3, -2, -1)) @ Sensitivity(maps)


class ColumnNormal:
    """`C^H F^H W F C` as a batch of independent systems.

    Args:
        maps: coil sensitivities.
        weights: how often each point of k-space was measured (centred); 0 where it was not.
        penalty: P, of the shape of the weights; None for none.

    With `penalty`, `M F^H P F M` is added, M the pixels in which any coil sees something: what the image's own k-space
    may not hold, such as the part that partial Fourier never measured. P may vary only along axes on which W does.

    A system is called a column: a vector over the coupled axes (those on which the weights vary), one for each frame
    and each position on the other axes. Without coupled axes (full sampling) a column is one pixel.
    """

    def __init__(
        self,
        maps: Complex64[Tensor, "coils z y x"],
        weights: Float32[Tensor, "frames z y x"],
        penalty: Float32[Tensor, "frames z y x"] | None = None,
    ) -> None:
        self._shape = tuple(weights.shape)
        first = [weights.narrow(axis, 0, 1) for axis in (1, 2, 3)]
        self._coupled = [axis for axis in (1, 2, 3) if not bool((weights == first[axis - 1]).all())]
        self._free = [axis for axis in (1, 2, 3) if axis not in self._coupled]
        self._columns_per_frame = prod(self._shape[axis] for axis in self._free)
        self._column = tuple(self._shape[axis] for axis in self._coupled)
        # maps: (columns of a frame, coils, *column); weights in FFT order: (frames, *column)
        arranged = maps.permute([*self._free, 0, *self._coupled]).reshape(
            self._columns_per_frame, maps.shape[0], *self._column
        )
        self._maps = arranged.contiguous()
        self._conjugate = self._maps.conj().resolve_conj()
        self._axes = tuple(range(-len(self._column), 0))
        self._weights = self._of_column(weights)
        self._penalty = None if penalty is None else self._of_column(penalty)
        self._support = None if penalty is None else (self._maps != 0).any(1).float()

    def _of_column(self, weights: Float32[Tensor, "frames z y x"]) -> Tensor:
        """Weights `(frames, *column)` in the order of the FFT."""
        for axis in self._free:
            weights = weights.narrow(axis, 0, 1)
        weights = weights.reshape(self._shape[0], *self._column)
        return uncentred(weights, self._axes) if self._column else weights

    def to_columns(self, image: Complex64[Tensor, "frames z y x"]) -> Tensor:
        """Arrange an image as `(columns, *coupled axes)`."""
        return image.permute([0, *self._free, *self._coupled]).reshape(-1, *self._column)

    def to_image(self, columns: Tensor) -> Complex64[Tensor, "frames z y x"]:
        """Undo `to_columns`."""
        order = [0, *self._free, *self._coupled]
        arranged = columns.reshape([self._shape[axis] for axis in order])
        return arranged.permute([order.index(axis) for axis in range(4)]).contiguous()

    def blocks(self) -> Iterator[tuple[slice, Block]]:
        """Runs of columns that fit into cache, each with its normal operator; a solver may treat each run by itself.

        A run holds whole frames when several fit, else a part of the columns of one frame.
        """
        frames, columns = self._shape[0], self._columns_per_frame
        limit = BLOCK_BYTES_CPU if self._maps.device.type == "cpu" else BLOCK_BYTES_GPU
        fits = max(1, limit // max(1, self._maps[0].numel() * self._maps.element_size()))
        frames_a_run = _even(frames, fits // columns)
        columns_a_run = _even(columns, fits)
        for frame in range(0, frames, frames_a_run):
            last = min(frame + frames_a_run, frames)
            for start in range(0, columns, columns_a_run):
                stop = min(start + columns_a_run, columns)
                beyond = None
                if self._penalty is not None and self._support is not None:
                    beyond = self._support[start:stop], self._penalty[frame:last]
                block = Block(
                    self._maps[start:stop], self._conjugate[start:stop], self._weights[frame:last], self._axes, beyond
                )
                yield slice(frame * columns + start, (last - 1) * columns + stop), block

    def __call__(self, columns: Tensor) -> Tensor:
        """Apply the normal operator to all columns."""
        result = torch.empty_like(columns)
        for where, block in self.blocks():
            result[where] = block(columns[where])
        return result


def _even(total: int, most: int) -> int:
    """The size of equal parts of `total`, none above `most`."""
    return -(-total // -(-total // max(1, most)))


class Block:
    """Normal operator of some columns of some frames."""

    def __init__(
        self,
        maps: Tensor,
        conjugate: Tensor,
        weights: Tensor,
        axes: tuple[int, ...],
        penalty: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._maps = maps
        self._conjugate = conjugate
        self._weights = weights[:, None, None]
        self._axes = axes
        self._penalty = penalty

    def __call__(self, columns: Tensor) -> Tensor:
        """`C^H F^H W F C`, and the penalty, of `(frames * columns, *coupled axes)`."""
        coils = columns.view(self._weights.shape[0], self._maps.shape[0], 1, *self._maps.shape[2:]) * self._maps
        if self._axes:
            coils = torch.fft.fftn(coils, dim=self._axes)
            coils *= self._weights
            coils = torch.fft.ifftn(coils, dim=self._axes)
        else:
            coils *= self._weights
        coils *= self._conjugate
        result = coils.sum(dim=2).view(columns.shape)
        if self._penalty is not None:
            support, penalty = self._penalty
            own = columns.view(self._weights.shape[0], *support.shape) * support
            own = torch.fft.ifftn(torch.fft.fftn(own, dim=self._axes) * penalty[:, None], dim=self._axes)
            result += (own * support).view(columns.shape)
        return result
