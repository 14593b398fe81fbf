"""Frames as independent planes, each with a data term of its own, for reconstructions whose prior is of images.

A plane is what is coupled by the sampling and looked at by the prior:

- `x y` (readout along x) of each frame and partition, when z was not phase-encoded or was measured fully alike: the
  Fourier transform along z is done once. The axis that is left to transform lies last, where its values are neighbours
  in memory: a Fourier transform takes a quarter of the time;
- `z y` of each frame and readout position, when z was undersampled: the transform along x is done once, what an
  asymmetric echo left out of it is zero;
- `y x` of each frame of a non-Cartesian scan.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators.fourier import to_image
from pipelines.operators.sampling import sampling_weights
from pipelines.recon.reconstruction import Prepared


@dataclass(frozen=True, slots=True)
class Planes:
    """Cartesian k-space as planes.

    Attributes:
        kspace: centred; p and q are the axes of the plane.
        weights: how often each point was measured.
        frames: number of frames; items are frames times partitions (or readout positions), frames first.
        is_across: whether planes are `z y` instead of `x y`.
    """

    kspace: Complex64[Tensor, "items coils p q"]
    weights: Float32[Tensor, "items p q"]
    frames: int
    is_across: bool

    def of_volumes(self, volumes: Tensor, items: range) -> Tensor:
        """Some planes `(items, coils, p, q)` of maps `(coils, z, y, x)` that all frames share."""
        planes = rearrange(volumes, "c z y x -> x c z y" if self.is_across else "c z y x -> z c x y")
        return planes[[item % len(planes) for item in items]]

    def to_volumes(self, planes: Tensor) -> Tensor:
        """Images `(frames, z, y, x)` of planes `(items, p, q)`."""
        pattern = "(f x) z y -> f z y x" if self.is_across else "(f z) x y -> f z y x"
        return rearrange(planes, pattern, f=self.frames).contiguous()


def make_planes(prepared: Prepared) -> Planes:
    """Planes of Cartesian frames."""
    weights = sampling_weights(prepared.counts, prepared.readout_sampled)
    kspace = prepared.kspace
    if bool((prepared.counts == prepared.counts[:, :1]).all()):
        kspace = to_image(kspace, (-3,))
        return Planes(
            rearrange(kspace, "f c z y x -> (f z) c x y").contiguous(),
            rearrange(weights, "f z y x -> (f z) x y").contiguous(),
            len(kspace),
            False,
        )
    kspace = to_image(kspace, (-1,))
    counts = prepared.counts[..., None].expand(*prepared.counts.shape, kspace.shape[-1])
    return Planes(
        rearrange(kspace, "f c z y x -> (f x) c z y"), rearrange(counts, "f z y x -> (f x) z y"), len(kspace), True
    )
