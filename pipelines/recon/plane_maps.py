"""Coil maps and encoding of planes for an unrolled network: one road for training and for serving.

With a calibration region maps are `estimate_maps`' (zero where no coil sees an object); without one they are smooth and
come from whatever lies near the centre of k-space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Complex64
from torch import Tensor

from pipelines.preprocess.sensitivities import estimate_maps
from pipelines.recon.initial_maps import from_images
from pipelines.recon.joint_start import low_resolution, strongest_coil


def maps_of_plane(
    calibration: Complex64[Tensor, "coils rows columns"], shape: Sequence[int]
) -> Complex64[Tensor, "coils p q"]:
    """Maps of one plane from the fully sampled centre of its k-space."""
    rows, columns = shape
    return estimate_maps(calibration[:, None], (1, rows, columns))[:, 0]


def maps_without_calibration(kspace: Complex64[Tensor, "items coils p q"]) -> Complex64[Tensor, "items coils p q"]:
    """Maps from low-resolution images with their aliases; a single coil has a map of ones."""
    if kspace.shape[1] == 1:
        return torch.ones_like(kspace)
    return from_images(low_resolution(kspace), strongest_coil(kspace))[0]
