"""Where the joint estimation of image and coil maps begins: smooth maps that carry the phase of the image.

The low-resolution coil images of the calibration region, or of whatever was measured near the centre, tell direction
and phase where there is signal. Elsewhere maps follow from being smooth:

    S = argmin_S  sum over pixels of q |S_c - t_c|^2  +  nu F(S)

t are the sensitivities (`estimate_maps` where a calibration region exists, else the low-resolution images themselves)
times the phase of the low-resolution image, q its power relative to a typical one. The system is solved by conjugate
gradients for all coils at once, from means over ever larger squares: an iteration carries what is known by one pixel
only, and a map that stays zero far from the object would have a curvature of 1 / `SMALLEST_LENGTH`^2 there, for which
the steps of the whole image would shrink.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Complex64, Float32
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipelines.operators import sine
from pipelines.operators.coils import power_of_coils
from pipelines.recon.joint_problem import unit_maps
from pipelines.solvers.cg import conjugate_gradients

NU = 0.05
"""Weight of the smoothness where the power is typical: fills what has no signal, leaves the rest."""

FULL_TRUST = 0.3
"""Magnitude, relative to the brightest 0.2 %, from which on a pixel has full weight."""

ITERATIONS = 60
TOLERANCE = 1e-3

_TINY = torch.finfo(torch.float32).tiny


def with_phase(
    maps: Complex64[Tensor, "items coils y x"], low_resolution: Complex64[Tensor, "items coils y x"]
) -> tuple[Complex64[Tensor, "items coils y x"], Complex64[Tensor, "items y x"]]:
    """Smooth maps of length 1 times the phase of the image, and that phase: 1 where the maps are unknown.

    Args:
        maps: sensitivities, zero where unknown.
        low_resolution: coil images from the centre of k-space, without sharp edges of the window.
    """
    combined = (low_resolution * maps.conj()).sum(1)
    filled = unit_maps(_fill(maps * unit_phase(combined)[:, None], _trust(combined.abs())))
    # As smooth as the maps that carry it, so that the image's phase is what was estimated.
    return filled, unit_phase((filled * maps.conj()).sum(1))


def from_images(
    coils: Complex64[Tensor, "items coils y x"], reference: int
) -> tuple[Complex64[Tensor, "items coils y x"], Complex64[Tensor, "items y x"]]:
    """Smooth maps from low-resolution coil images alone, and the phase of one coil.

    Args:
        coils: coil images from the centre of k-space.
        reference: the coil whose sensitivity counts as real, since nothing tells its phase from the image's.
    """
    magnitude = power_of_coils(coils).sqrt_()
    maps = unit_maps(_fill(unit_maps(coils), _trust(magnitude)))
    return maps, unit_phase(maps[:, reference])


def unit_phase(image: Complex64[Tensor, "*shape"]) -> Complex64[Tensor, "*shape"]:
    """Each value over its magnitude; 1 for zero."""
    magnitude = image.abs()
    return torch.where(magnitude > 0, image / magnitude.clamp(min=_TINY), 1.0)


def _trust(magnitude: Float32[Tensor, "items y x"]) -> Float32[Tensor, "items y x"]:
    reference = torch.quantile(magnitude.flatten(1), 0.998, dim=1)
    # Little signal in few pixels: a coil at the edge of a large field of view.
    reference = torch.where(reference > 0, reference, magnitude.flatten(1).amax(1)).clamp(min=_TINY)
    return (magnitude / (FULL_TRUST * reference[:, None, None])).square().clamp(max=1)


def _fill(
    target: Complex64[Tensor, "items coils y x"], trust: Float32[Tensor, "items y x"]
) -> Complex64[Tensor, "items coils y x"]:
    weights = trust[:, None]
    coils = target.shape[1]
    parts = rearrange(torch.view_as_real(target * weights), "items coils y x part -> items (coils part) y x")
    rough = rearrange(_means(parts, weights), "items (coils part) y x -> items coils y x part", coils=coils)
    first = torch.view_as_complex(rough.contiguous())

    def system(maps: Tensor) -> Tensor:
        return maps * weights + NU * sine.laplacian(maps)

    rest = target * weights - system(first)
    return first + conjugate_gradients(system, rest, iterations=ITERATIONS, tolerance=TOLERANCE).solution


def _means(sums: Float32[Tensor, "items n y x"], weights: Float32[Tensor, "items 1 y x"]) -> Tensor:
    """Weighted means: of a pixel where its weight is 1, of ever larger squares around it where there is less.

    Args:
        sums: values times weights.
        weights: 0 to 1.
    """
    here = sums / weights.clamp(min=_TINY)
    if max(sums.shape[-2:]) == 1:
        return here
    coarse = [avg_pool2d(each, 2, ceil_mode=True) for each in (sums, weights)]
    around = interpolate(_means(*coarse), size=sums.shape[-2:], mode="bilinear")
    return around + weights * (here - around)
