"""Inverse Fourier transform of what was measured, coils combined: needs nothing else, so it is the last fallback.

Brightness of undersampled data: each measured line is weighted by the length of k-space it stands for (half the
distance to either neighbour; 1 where lines are dense, R where every R-th was measured). The point spread function
then has its peak at 1, so that tissue is as bright as in a fully sampled image with or without extra calibration
lines, and different accelerations can be compared. Aliases keep the strength that they have in the data; nothing
hides that the image is not a parallel-imaging reconstruction. K-space that was never reached (partial Fourier) stays
zero, unless a method to restore it is chosen (`pipelines/preprocess/partial_fourier.py`).
"""

from __future__ import annotations

import time

import torch
from jaxtyping import Bool, Complex64, Float32
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipelines.errors import ReconstructionError
from pipelines.operators.fourier import to_image
from pipelines.parameters import PartialFourierMethod, ZeroFilledParameters
from pipelines.parts import Part
from pipelines.preprocess.partial_fourier import restore_frames
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES, estimate_maps
from pipelines.recon.magnitude import magnitude_deviation, root_sum_of_squares
from pipelines.recon.nonuniform_zero_filled import nonuniform_zero_filled
from pipelines.recon.reconstruction import Prepared, Reconstructed, UncertaintyKind

DENSITY_WINDOW = 9
"""Lines along z and y over which the density of a pattern without structure is averaged."""


class ZeroFilled:
    """`x = combine(F^H D y)` with density weights D; root sum of squares, or `sum_c conj(S_c) x_c` with sensitivities.

    The noise of every coil image is white with variance `s^2 sum(d^2 / counts) / n`, the same in every pixel.
    Sensitivities are normalised, so the combined noise has that variance too; the root of the sum of squares is
    noncentral chi distributed. Partial Fourier filters that noise: its weights go into the sum.
    """

    def __init__(self, parameters: ZeroFilledParameters, device: str) -> None:
        self._combine = parameters.combine
        self._partial_fourier: PartialFourierMethod = parameters.partial_fourier
        self._needs_phase = set(parameters.parts) != {Part.MAGNITUDE}
        self._device = torch.device(device)

    def __call__(self, prepared: Prepared) -> Reconstructed:
        """Reconstruct frames.

        Raises:
            ReconstructionError: no line was measured; or parts with a phase are wanted of several coils whose maps
                cannot be estimated.
        """
        if not bool((prepared.counts > 0).any()):
            raise ReconstructionError("no line of k-space was measured")
        if self._needs_phase and prepared.calibration is None and prepared.kspace.shape[1] > 1:
            raise ReconstructionError(
                f"{prepared.kspace.shape[1]} coils, but no {FEWEST_CALIBRATION_LINES} adjacent lines around the centre "
                "of k-space to estimate their maps from, without which the image has no phase"
            )
        if prepared.trajectory is not None:
            return nonuniform_zero_filled(prepared, self._combine, self._clock)
        started = self._clock()
        maps = None
        if self._combine == "sensitivity" and prepared.calibration is not None:
            maps = estimate_maps(prepared.calibration, _grid(prepared.kspace))
        elif self._needs_phase:
            maps = torch.ones((1, *_grid(prepared.kspace)), dtype=torch.complex64, device=prepared.kspace.device)
        mapped = self._clock()
        weights = density_weights(prepared.counts)
        coils = to_image(prepared.kspace * weights[:, None, :, :, None], (-3, -2, -1))
        kept = prepared.counts, prepared.readout_sampled
        if maps is not None:
            coils = (coils * maps.conj()).sum(1, keepdim=True)
        restored = restore_frames(coils, *kept, self._partial_fourier, is_unaliased=False)
        image = restored.image[:, 0] if maps is not None else root_sum_of_squares(restored.image)
        combined = self._clock()
        share = weights.square() / prepared.counts.clamp(min=1)
        power = torch.ones(coils.shape[-1:], device=coils.device) if maps is None else maps.abs().square().sum(0)
        deviation = torch.empty(image.shape, device=image.device)
        for frame, response in enumerate(restored.responses):
            filtered = response.weights.to(image.device).square() * share[frame][:, :, None] * prepared.readout_sampled
            variance = (prepared.noise_std**2 * filtered.mean() * power).expand(image.shape[1:])
            n_channels = coils.shape[1] * response.channels
            deviation[frame] = magnitude_deviation(image[frame].abs(), variance, n_channels)
        stages_s = {
            "csm": mapped - started,
            "recon": combined - mapped,
            "uncertainty": self._clock() - combined,
        }
        details = {"ReconCoilCombination": "rss" if maps is None else "sensitivity"}
        if restored.note:
            details["ReconPartialFourier"] = restored.note
        return Reconstructed(
            image, deviation, UncertaintyKind.NOISE, "analytic", details, stages_s, warnings=restored.warnings
        )

    def _clock(self) -> float:
        """Seconds, once the device has finished what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def density_weights(counts: Float32[Tensor, "frames z y"]) -> Float32[Tensor, "frames z y"]:
    """Length of k-space (area, with two phase-encoding axes) that each measured line stands for; 0 if not measured.

    A pattern that is the product of one along z and one along y gets the product of the two lengths; any other, the
    inverse of the local density of lines.
    """
    return torch.stack([_frame_weights(frame > 0) for frame in counts]).to(counts.device)


def _frame_weights(sampled: Bool[Tensor, "z y"]) -> Float32[Tensor, "z y"]:
    along_z, along_y = sampled.any(1), sampled.any(0)
    if bool((sampled == along_z[:, None] & along_y).all()):
        return _lengths(along_z)[:, None] * _lengths(along_y)
    density = avg_pool2d(sampled.float()[None], DENSITY_WINDOW, 1, DENSITY_WINDOW // 2, count_include_pad=False)[0]
    return sampled.float() / density.clamp(min=1 / DENSITY_WINDOW**2)


def _lengths(sampled: Bool[Tensor, "lines"]) -> Float32[Tensor, "lines"]:
    """Half the distance to the neighbour on either side; the outermost lines stand for as much outwards as inwards."""
    lengths = torch.zeros(sampled.shape, device=sampled.device)
    positions = torch.nonzero(sampled)[:, 0].float()
    if len(positions) < 2:
        lengths[sampled] = 1.0
        return lengths
    gaps = positions.diff()
    lengths[sampled] = (torch.cat([gaps[:1], gaps]) + torch.cat([gaps, gaps[-1:]])) / 2
    return lengths


def _grid(kspace: Complex64[Tensor, "frames coils z y x"]) -> tuple[int, int, int]:
    return int(kspace.shape[2]), int(kspace.shape[3]), int(kspace.shape[4])
