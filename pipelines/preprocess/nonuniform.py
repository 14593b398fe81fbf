"""A group of non-Cartesian readouts made ready for reconstruction: places, whitening, coils, centre of k-space.

Readout oversampling stays in: samples beyond those that the field of view needs cost little, and each adds to the
signal. Nothing is gridded here.
"""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor

from pipelines.assembly.frame import Group, NoiseSource
from pipelines.errors import ReconstructionError
from pipelines.parameters import Parameters
from pipelines.preprocess.central_kspace import central_kspace, central_samples
from pipelines.preprocess.coils import compress, compression_matrix
from pipelines.preprocess.noise import whiten
from pipelines.preprocess.noise_choice import doubts, dwell_times, noise_model_for, noise_source_of
from pipelines.preprocess.preparation import Preparation
from pipelines.preprocess.trajectory import image_grid, place_samples
from pipelines.recon.reconstruction import Prepared, Trajectory

EDGE = 0.9
"""Samples farther from the centre than this part of the farthest one are the edge of k-space."""
MOST_UNEXPLAINED = 0.05
"""See `pipelines.preprocess.central_kspace`."""


def prepare_nonuniform(group: Group, parameters: Parameters, device: str) -> Preparation:
    """Prepare a group that has a trajectory.

    Args:
        group: frames as assembled; not changed.
        parameters: whether to whiten, how many virtual coils, and the units of the trajectory.
        device: where to compute.

    Raises:
        ReconstructionError: no readout was measured, samples are not finite, or the trajectory makes no sense.
        BudgetError: the header asks for too large an image.
    """
    if group.trajectory is None:
        raise ReconstructionError("a group of non-Cartesian readouts needs a trajectory")
    encoding = group.scan.encodings[group.key.encoding]
    frames, coils = group.kspace.shape[:2]
    shape = image_grid(encoding, frames * coils)
    counts = torch.from_numpy(np.array(group.counts, np.float32)).to(device)
    trajectory = torch.from_numpy(np.array(group.trajectory, np.float32)).to(device)
    positions, measured, warnings = place_samples(trajectory, counts, parameters.trajectory_units, encoding, shape)
    kspace = torch.from_numpy(np.array(group.kspace, np.complex64)).to(device)
    kspace = torch.where(measured[:, None, None], kspace, 0)
    if not bool(torch.isfinite(torch.view_as_real(kspace)).all()):
        raise ReconstructionError("k-space holds values that are not finite")

    model, noise_warnings = noise_model_for(group, parameters)
    warnings += noise_warnings
    dwell_us, gain = dwell_times(group)
    if gain is not None:
        warnings.append("Readouts of one image have different dwell times; the shortest is taken for all.")
    scale = torch.tensor([model.scale(each) if model else 1.0 for each in dwell_us], dtype=torch.float32, device=device)
    if model is not None:
        kspace = whiten(kspace, model, scale)
        if model.dwell_us > 0 and not all(each > 0 for each in dwell_us):
            warnings.append(
                "The dwell time of image readouts is not known: the noise level of the noise scan is not scaled to "
                "them."
            )
    if 0 < parameters.coil_compression < kspace.shape[1]:
        central = central_samples(positions, measured, shape)
        signal = kspace[:, :, 0].transpose(0, 1)[:, central if bool(central.any()) else measured]
        kspace = compress(kspace, compression_matrix(signal, parameters.coil_compression))
    level = noise_level_at_edge(kspace, positions, measured)
    if model is not None:
        noise_std = 1.0
        warnings += doubts("noise scan", level, is_from_margin=False)
    elif parameters.noise_level is not None:
        noise_std = parameters.noise_level
        warnings += doubts("parameter noise_level", level / noise_std, is_from_margin=False)
    else:
        noise_std = level
    noise_source = noise_source_of(group, parameters, model)
    if parameters.partial_fourier != "zero_fill":
        warnings.append("The parameter partial_fourier does nothing for readouts with a trajectory.")
    centre = central_kspace(kspace, positions, measured, shape, noise_std)
    if centre is not None and centre.unexplained > MOST_UNEXPLAINED:
        warnings.append(
            f"{100 * centre.unexplained:.0f} % of the signal at the centre of k-space fits no image in the field of "
            "view: the object may reach beyond it, or the trajectory be wrong; images of undersampled readouts may "
            "hold structures that are not there."
        )
    prepared = Prepared(
        kspace=kspace,
        counts=counts,
        calibration=None if centre is None else centre.kspace,
        noise_std=noise_std,
        noise_is_measured=noise_source is not NoiseSource.ESTIMATED,
        readout_sampled=torch.ones(kspace.shape[-1], dtype=torch.bool, device=kspace.device),
        trajectory=Trajectory(positions, shape, measured),
    )
    return Preparation(prepared, 1 / scale, noise_source, warnings)


def noise_level_at_edge(
    kspace: Complex64[Tensor, "frames coils 1 readouts samples"],
    positions: Float32[Tensor, "frames readouts samples 2"],
    measured: Bool[Tensor, "frames readouts samples"],
) -> float:
    """Standard deviation of the complex noise from the samples farthest out, where signal is weakest: an upper bound.

    The median of an exponential distribution is `ln 2` times its mean, and signal moves it less than it moves the mean.
    """
    distance = torch.linalg.vector_norm(positions, dim=-1)
    outer = measured & (distance >= EDGE * distance[measured].max())
    power = kspace[:, :, 0].transpose(0, 1)[:, outer].abs().square()
    return sqrt(float(power.median()) / log(2.0))
