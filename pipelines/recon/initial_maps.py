"""Where the joint estimation of image and coil maps begins: smooth maps that carry the phase of the image.

The low-resolution coil images of the calibration region, or of whatever was measured near the centre, tell direction
and phase where there is signal. Elsewhere maps follow from being smooth:

    S = argmin_S  sum over pixels of q |S_c - t_c|^2  +  nu F(S)

t are the sensitivities (`estimate_maps` where a calibration region exists, else the low-resolution images themselves)
times the phase of the low-resolution image, q its power relative to a typical one. The system is solved by conjugate
gradients for all coils at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.operators import sine
from pipelines.recon.joint_problem import unit_maps
from pipelines.solvers.cg import conjugate_gradients

NU = 0.05
"""Weight of the smoothness where the power is typical: fills what has no signal, leaves the rest."""

FULL_TRUST = 0.3
"""Magnitude, relative to the brightest 0.2 %, from which on a pixel has full weight."""

ITERATIONS = 60
TOLERANCE = 1e-3


def with_phase(
    maps: Complex64[Tensor, "items coils y x"], low_resolution: Complex64[Tensor, "items coils y x"]
) -> tuple[Complex64[Tensor, "items coils y x"], Complex64[Tensor, "items y x"]]:
    """Smooth maps of length 1 times the phase of the image, and that phase.

    Args:
        maps: sensitivities, zero where unknown.
        low_resolution: coil images from the centre of k-space, without sharp edges of the window.
    """
    combined = (low_resolution * maps.conj()).sum(1)
    magnitude = combined.abs()
    reference = torch.quantile(magnitude.flatten(1), 0.998, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    trust = (magnitude / (FULL_TRUST * reference[:, None, None])).square().clamp(max=1)
    phase = combined / magnitude.clamp(min=torch.finfo(torch.float32).tiny)
    return unit_maps(_fill(maps * phase[:, None], trust)), phase


def from_images(
    coils: Complex64[Tensor, "items coils y x"],
) -> tuple[Complex64[Tensor, "items coils y x"], Complex64[Tensor, "items y x"]]:
    """Smooth maps from low-resolution coil images alone, and the phase of the brightest coil."""
    magnitude = torch.view_as_real(coils).square().sum((1, -1)).sqrt()
    reference = torch.quantile(magnitude.flatten(1), 0.998, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    trust = (magnitude / (FULL_TRUST * reference[:, None, None])).square().clamp(max=1)
    brightest = torch.view_as_real(coils).square().sum((0, 2, 3, 4)).argmax()
    maps = unit_maps(_fill(unit_maps(coils), trust))
    return maps, torch.polar(torch.ones_like(magnitude), maps[:, brightest].angle())


def _fill(
    target: Complex64[Tensor, "items coils y x"], trust: Float32[Tensor, "items y x"]
) -> Complex64[Tensor, "items coils y x"]:
    weights = trust[:, None]

    def system(maps: Tensor) -> Tensor:
        return maps * weights + NU * sine.laplacian(maps)

    return conjugate_gradients(system, target * weights, iterations=ITERATIONS, tolerance=TOLERANCE).solution
