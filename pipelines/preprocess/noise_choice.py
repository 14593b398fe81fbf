"""Which noise holds for a group: the noise scan's, one given as a parameter, or an estimate; and what is odd about it.

The same for readouts on a grid and for those with a trajectory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import Group, NoiseSource
from pipelines.parameters import Parameters
from pipelines.preprocess.noise import NoiseModel, estimate_noise_model

MOST_NOISE_IN_MARGIN = 2.0
"""Noise next to the field of view, relative to the noise scan, from which on the noise scan is doubted: scanners show
1.0 to 1.1, a little more with tissue there."""

LEAST_NOISE = 0.7
"""Noise in the image readouts, relative to what was measured or given, below which that is doubted."""


def noise_source_of(group: Group, parameters: Parameters, model: NoiseModel | None) -> NoiseSource:
    """Where the noise level of the group comes from."""
    if model is not None and group.noise is not None:
        return group.noise.source
    return NoiseSource.ESTIMATED if parameters.noise_level is None else NoiseSource.GIVEN


def doubts(promise: str, ratio: float, *, is_from_margin: bool) -> list[str]:
    """Warnings when the image readouts hold `ratio` times the noise that was measured or given."""
    warnings: list[str] = []
    if is_from_margin and ratio > MOST_NOISE_IN_MARGIN:
        warnings.append(
            f"Next to the field of view, image readouts hold {ratio:.1f} times the noise that the {promise} promises; "
            "uncertainties may be too small."
        )
    if ratio < LEAST_NOISE:
        warnings.append(
            f"The {promise} promises {1 / max(ratio, 1e-6):.1f} times the noise that the image readouts hold; "
            "uncertainties may be too large."
        )
    return warnings


def noise_model_for(group: Group, parameters: Parameters) -> tuple[NoiseModel | None, list[str]]:
    """Whitening of the group, or None where there is nothing to whiten with or data are white already; warnings."""
    if group.noise is None or not parameters.whiten:
        return None, []
    if parameters.noise_level is not None:
        return None, ["The parameter noise_level says that the data are white; the noise scan is not used."]
    return estimate_noise_model(group.noise, group.kspace.shape[1], group.scan.noise_bandwidth)


def dwell_times(group: Group) -> tuple[list[float], NDArray[np.float32] | None]:
    """Dwell time of each frame and, where its lines differ, how much longer than it that of each line is.

    Returns:
        Microseconds, the shortest of the frame where lines differ; `(frames, z, y)`, at least one, 1 for lines whose
        dwell time is unknown.
    """
    frames = [float(header["sample_time_us"]) for header in group.headers]
    if group.dwell_us is None:
        return frames, None
    gain = np.ones(group.dwell_us.shape, np.float32)
    for number, dwell_us in enumerate(group.dwell_us):
        known = dwell_us > 0
        if known.any():
            frames[number] = float(dwell_us[known].min())
            gain[number][known] = dwell_us[known] / np.float32(frames[number])
    return frames, gain
