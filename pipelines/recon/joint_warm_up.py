"""What `joint_ipalm` begins with: an image of total variation, and maps of what it fills in between the lines.

Few calibration lines tell the maps and the phase of the image too coarsely, and the joint estimation, whose maps may
change only smoothly, does not mend that. But total variation, whose iterations need no network, soon gives an image
that is good enough to say what the missing lines near the centre would have held. So, in rounds: some steps with the
maps held, then maps and phase from the centre of k-space as if it were measured whole (measured samples as they are,
others of the image), as many lines as the estimate ever uses. Maps that the calibration lines had told well stay what
they are.

Gain of four rounds, R = 4 at random, 8 coils: with 4 % calibration lines a measured brain 25.7 to 27.5 dB (with maps
of all its lines 27.5), a T2-weighted head with measured phase 29.1 to 30.2 dB, an IXI head 25.7 to 26.3 dB; with 8 %
0.1 dB. To begin with total variation instead of more noise levels of the energy gains 0.2 dB in the same time.

The idea of calibrating again with what was reconstructed: Ying and Sheng 2007, doi 10.1002/mrm.21245 (JSENSE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from models.energy import reference_magnitude
from pipelines.recon.joint_problem import JointProblem, unit_maps
from pipelines.recon.joint_start import Start, maps_of_images
from pipelines.recon.priors import TOTAL_VARIATION
from pipelines.solvers.ipalm import ipalm
from pipelines.solvers.items import spread

LEAST_NOISE = 0.02
"""The data count as at least so noisy; tissue is about 1."""

FIRST_STEPS, STEPS, ROUNDS = 40, 40, 4
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Begun:
    """Where the joint estimation goes on.

    Attributes:
        image: normalised by `unit`.
        unit: brightness of the image in the units of k-space.
        maps: S_0, of length 1, with the phase of the image.
    """

    image: Float32[Tensor, "items p q"] | Complex64[Tensor, "items p q"]
    unit: Float32[Tensor, "items"]
    maps: Complex64[Tensor, "items coils p q"]


def warm_up(
    start: Start, noise_std: float, *, is_complex: bool, new_maps: bool, should_stop: Callable[[], bool] | None
) -> Begun:
    """Image, unit and maps to go on with.

    Args:
        start: planes.
        noise_std: of one measurement, in the units of k-space.
        is_complex: whether the image has an imaginary part.
        new_maps: whether maps may be estimated anew.
        should_stop: asked before each step and round; what there is by then is returned.
    """
    unit = reference_magnitude(start.image)
    image = start.image / spread(unit, start.image)
    maps = start.maps
    if is_complex:
        image = image.to(torch.complex64)
    for number in range(1 + (ROUNDS if new_maps else 0)):
        if number > 0:
            if should_stop is not None and should_stop():
                break
            completed = start.data.completed(unit_maps(maps) * (image * spread(unit, image))[:, None])
            if completed is None:
                break
            maps = maps_of_images(completed)
        noise = (noise_std / unit).clamp(min=LEAST_NOISE)
        data = start.data.of_unit(unit, noise)
        problem = JointProblem(
            data, TOTAL_VARIATION, TOTAL_VARIATION.value, 1.0, torch.zeros_like(data.curvature), maps
        )
        image = ipalm(
            problem,
            image,
            unit_maps(maps),
            iterations=STEPS if number else FIRST_STEPS,
            tolerance=TOLERANCE,
            fix_v=True,
            start_constants=(data.curvature + 1 / noise.to(torch.float64).square(), data.curvature),
            should_stop=should_stop,
        ).u
        # Aliases and gaps make the first image darker or brighter than tissue is.
        magnitude = image.abs()
        change = reference_magnitude(magnitude)
        image, unit = image / spread(change, magnitude), unit * change
    return Begun(image, unit, maps)
