"""Frames of one slice as one linear system: A^H A and A^H y of all of them, each frame a row.

Reconstructions that use what frames have in common look at the matrix of frames by pixels (Casorati matrix). Its pixels
lie here in the order in which A^H A is fastest, not in that of an image; `to_images` brings rows back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Complex64
from torch import Tensor

from pipelines.operators.encoding import ColumnNormal
from pipelines.operators.sampling import sampling_weights
from pipelines.recon.reconstruction import Prepared
from pipelines.recon.sense import right_side


@dataclass(frozen=True, slots=True)
class FrameSystem:
    """`A^H A x = A^H y` of all frames.

    Attributes:
        normal: A^H A of frames `(frames, pixels)`.
        right_side: A^H y.
        to_images: rows of pixels as images `(frames, z, y, x)`.
        to_rows: the other way.
        curvature: a bound on the largest eigenvalue of A^H A.
        noise_std: root of `E|n|^2` of the noise in a pixel of A^H y.
    """

    normal: Callable[[Tensor], Tensor]
    right_side: Complex64[Tensor, "frames pixels"]
    to_images: Callable[[Tensor], Tensor]
    to_rows: Callable[[Tensor], Tensor]
    curvature: float
    noise_std: float


def cartesian_system(prepared: Prepared, maps: Complex64[Tensor, "coils z y x"], scale: float) -> FrameSystem:
    """Of Cartesian frames that share their maps.

    A line measured n times counts n times, relative to the mean of the lines measured.

    Args:
        prepared: frames.
        maps: root of the sum of squares 1 inside the object, 0 outside of it.
        scale: what k-space is divided by.
    """
    weights = sampling_weights(prepared.counts, prepared.readout_sampled)
    usual = float(weights[weights > 0].mean())
    weights = weights / usual
    normal = ColumnNormal(maps, weights)
    frames = prepared.kspace.shape[0]

    def apply(rows: Tensor) -> Tensor:
        return normal(rows.view(columns.shape)).view(frames, -1)

    def to_rows(images: Tensor) -> Tensor:
        return normal.to_columns(images).reshape(frames, -1)

    columns = normal.to_columns(right_side(prepared.kspace / scale, maps, weights))
    # A^H W y holds noise of variance W noise_std^2 / usual in k-space: a line's own is 1 / counts.
    noise = prepared.noise_std / scale * (float(weights.mean()) / usual) ** 0.5
    return FrameSystem(
        apply,
        columns.reshape(frames, -1),
        lambda rows: normal.to_image(rows.reshape(columns.shape)),
        to_rows,
        float(weights.max()),
        noise,
    )
