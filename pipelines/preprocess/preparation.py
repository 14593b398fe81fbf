"""A group of readouts made ready for reconstruction: mean, whitening, readout oversampling, coils, calibration region.

Works on the measured lines only and spreads them out at the end, so that acceleration also makes this step cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from numpy.typing import NDArray
from torch import Tensor

from pipelines.assembly.frame import Group, NoiseSource
from pipelines.errors import ReconstructionError
from pipelines.parameters import Parameters
from pipelines.preprocess.coils import compress, compression_matrix
from pipelines.preprocess.noise import (
    NoiseModel,
    noise_level_at_edges,
    noise_level_in_margin,
    whiten,
)
from pipelines.preprocess.noise_choice import doubts, dwell_times, noise_model_for, noise_source_of
from pipelines.preprocess.phase_correction import (
    PhaseCorrection,
    correct_calibration,
    correct_lines,
    plan_correction,
)
from pipelines.preprocess.readout import (
    change_field_of_view,
    readout_length,
    remove_oversampling,
    sampled_columns,
    split_columns,
)
from pipelines.preprocess.resolution import at_recon_resolution
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES
from pipelines.recon.reconstruction import Prepared


@dataclass(frozen=True, slots=True)
class Preparation:
    """What preparation hands on.

    Attributes:
        prepared: what a reconstruction takes.
        signal_scale: factor of each frame that brings images from whitened units back to one scale for the whole
            scan. Whitening scales each frame by its own dwell time; without this, echoes of different bandwidth would
            change their relative brightness.
        noise_source: where the noise level comes from.
        warnings: sentences for the scanner.
        details: attributes for the meta.
    """

    prepared: Prepared
    signal_scale: Float32[Tensor, "frames"]
    noise_source: NoiseSource = NoiseSource.ESTIMATED
    warnings: list[str] = field(default_factory=list[str])
    details: dict[str, str] = field(default_factory=dict[str, str])


def prepare(group: Group, parameters: Parameters, device: str) -> Preparation:
    """Prepare a group.

    Args:
        group: frames as assembled; not changed.
        parameters: whether to whiten, the noise of data whitened elsewhere, and how many virtual coils.
        device: where to compute.

    Raises:
        ReconstructionError: no line was measured, or samples are not finite.
    """
    encoding = group.scan.encodings[group.key.encoding]
    counts = torch.from_numpy(np.array(group.counts, np.float32)).to(device)
    measured = _Lines(counts)
    n_x = group.kspace.shape[-1]
    length = readout_length(encoding) if n_x == encoding.encoded.matrix[0] else n_x
    lines = (
        measured.gather(_to_device(group.kspace, device))
        / counts.clamp(min=1)[:, *measured.index][:, None, None, :, None]
    )
    if not bool(torch.isfinite(torch.view_as_real(lines)).all()):
        raise ReconstructionError("k-space holds values that are not finite")
    correction = plan_correction(group, parameters.phase_correction)
    if correction.phase is not None and group.reversed_counts is not None:
        lines = correct_lines(lines, counts, group.reversed_counts, measured.index, correction.phase)

    model, warnings = noise_model_for(group, parameters)
    dwell_us, gain = dwell_times(group)
    if gain is not None:
        # The noise variance of a line is one over its dwell time: a longer one counts like more readouts.
        counts = counts * torch.from_numpy(gain).to(device)
        warnings.append("Lines of one frame have different dwell times; each is weighted by its own.")
    scale = torch.tensor([model.scale(each) if model else 1.0 for each in dwell_us], dtype=torch.float32, device=device)
    if model is not None:
        lines = whiten(lines, model, scale)
    level, is_from_margin = _level_in_data(lines, counts, measured, length, group.readout_extent)
    if model is not None and model.dwell_us > 0 and not all(each > 0 for each in dwell_us):
        warnings.append(
            "The dwell time of image readouts is not known: the noise level of the noise scan is not scaled to them."
        )
    if model is not None:
        noise_std = group.readout_noise
        warnings += doubts("noise scan", level / noise_std, is_from_margin=is_from_margin)
    elif parameters.noise_level is not None:
        noise_std = parameters.noise_level * group.readout_noise
        warnings += doubts("parameter noise_level", level / noise_std, is_from_margin=is_from_margin)
    else:
        noise_std = level
    noise_source = noise_source_of(group, parameters, model)

    calibration, is_separate = _calibration(group, measured, lines, counts, model, scale, correction)
    if group.calibration is not None and not is_separate:
        warnings.append(
            f"The separate calibration has fewer than {FEWEST_CALIBRATION_LINES} adjacent lines at its centre; "
            "it is not used."
        )
    lines = remove_oversampling(lines, length)
    if calibration is not None:
        if not is_separate:
            calibration = _measured_centre(calibration, group.readout_extent)
        calibration = _in_view(calibration, group, length, is_separate=is_separate).contiguous()
    neighbours = _neighbours(group, parameters, device) if calibration is not None else ()
    if 0 < parameters.coil_compression < lines.shape[1]:
        signal = calibration if calibration is not None else lines.movedim(1, 0)
        matrix = compression_matrix(signal.reshape(lines.shape[1], -1), parameters.coil_compression)
        lines = compress(lines, matrix)
        calibration = None if calibration is None else compress(calibration, matrix)
        neighbours = tuple(compress(each, matrix) for each in neighbours)
    readout_sampled = sampled_columns(group.readout_extent, n_x, length).to(device)
    prepared = Prepared(
        kspace=measured.scatter(lines * readout_sampled),
        counts=counts,
        calibration=calibration,
        noise_std=noise_std,
        noise_is_measured=noise_source is not NoiseSource.ESTIMATED,
        readout_sampled=readout_sampled,
    )
    prepared = replace(at_recon_resolution(prepared, encoding), neighbours=neighbours)
    return Preparation(prepared, 1 / scale, noise_source, [*correction.warnings, *warnings], correction.details)


def _neighbours(group: Group, parameters: Parameters, device: str) -> tuple[Tensor, ...]:
    """The calibration region of each neighbouring slice that has one, whitened, all coils kept."""
    plain = parameters.model_copy(update={"coil_compression": 0})
    found: list[Tensor] = []
    for neighbour in group.neighbours:
        try:
            calibration = prepare(neighbour, plain, device).prepared.calibration
        except ReconstructionError:
            continue  # what is wrong with a slice is said where that slice is reconstructed
        if calibration is not None and calibration.shape[0] == group.kspace.shape[1]:
            found.append(calibration)
    return tuple(found)


class _Lines:
    """The lines that at least one frame measured, as one axis instead of z and y."""

    def __init__(self, counts: Float32[Tensor, "frames z y"]) -> None:
        self.shape = (int(counts.shape[1]), int(counts.shape[2]))
        z, y = torch.nonzero((counts > 0).any(0), as_tuple=True)
        if len(z) == 0:
            raise ReconstructionError("no line of k-space was measured")
        self.index: tuple[Tensor, Tensor] = (z, y)

    def gather(self, kspace: Tensor) -> Complex64[Tensor, "frames coils 1 lines x"]:
        """Measured lines of `(frames, coils, z, y, x)`."""
        z, y = self.index
        return kspace.permute(0, 2, 3, 1, 4)[:, z, y].transpose(1, 2).contiguous()[:, :, None]

    def scatter(self, lines: Tensor) -> Complex64[Tensor, "frames coils z y x"]:
        """Lines in their places, zero elsewhere."""
        frames, coils, _, _, x = lines.shape
        full = lines.new_zeros((frames, coils, *self.shape, x))
        full[:, :, self.index[0], self.index[1]] = lines[:, :, 0]
        return full


def _to_device(kspace: NDArray[np.complex64], device: str) -> Tensor:
    """A tensor of the samples, sharing memory where that is possible; a read-only array is copied."""
    return torch.from_numpy(kspace if kspace.flags.writeable else kspace.copy()).to(device)


def _level_in_data(
    lines: Tensor, counts: Tensor, measured: _Lines, length: int, extent: tuple[int, int]
) -> tuple[float, bool]:
    """Noise level of one readout from the image readouts, and whether it comes from the oversampling margin.

    Without a margin it comes from the edges of k-space, which hold signal too.
    """
    root = counts[:, *measured.index].clamp(min=1).sqrt()
    readouts = (lines[:, :, 0] * root[:, None, :, None]).transpose(1, 2)
    z, y = measured.index
    distance = ((z - measured.shape[0] // 2) / measured.shape[0]).square() + (
        (y - measured.shape[1] // 2) / measured.shape[1]
    ).square()
    outer = torch.argsort(distance, stable=True)[-max(4, len(z) // 3) :]
    present = counts[:, z[outer], y[outer]] > 0
    readouts = readouts[:, outer][present]
    _, margin = split_columns(readouts, length)
    if margin.shape[-1] >= 8:
        # Samples that an asymmetric echo left out hold no noise.
        return noise_level_in_margin(margin) * sqrt(readouts.shape[-1] / max(1, extent[1] - extent[0])), True
    return noise_level_at_edges(readouts[..., extent[0] : extent[1]]), False


def _calibration(
    group: Group,
    measured: _Lines,
    lines: Tensor,
    counts: Tensor,
    whitening: NoiseModel | None,
    scale: Tensor,
    correction: PhaseCorrection,
) -> tuple[Complex64[Tensor, "coils cz cy cx"] | None, bool]:
    """The fully sampled centre to estimate sensitivities from: separate lines, flagged lines, or whatever is dense.

    Returns:
        The centre, or None, and whether it is of the separate lines.
    """
    fewest = min(FEWEST_CALIBRATION_LINES, int(counts.shape[-1]))
    if group.calibration is not None:
        weights = group.calibration.counts
        box = centred_box(weights > 0, fewest)
        if box is not None:
            kspace = _to_device(group.calibration.kspace, str(lines.device))
            if correction.calibration_phase is not None:
                kspace = correct_calibration(group.calibration, correction.calibration_phase, str(lines.device))
            kspace = kspace[:, box[0], box[1]]
            weight = torch.from_numpy(np.array(weights[box], np.float32)).to(lines.device)
            mean = kspace / weight[:, :, None]
            return (mean if whitening is None else whiten(mean[None], whitening, scale[:1])[0]), True
    total = counts.sum(0)
    sampled = (total > 0).cpu().numpy()
    box = centred_box(sampled & group.calibration_lines, fewest) or centred_box(sampled, fewest)
    if box is None:
        return None, False
    weighted = lines * counts[:, *measured.index][:, None, None, :, None]
    return measured.scatter(weighted.sum(0, keepdim=True))[0, :, box[0], box[1]] / total[box][:, :, None], False


def _in_view(
    calibration: Complex64[Tensor, "coils cz cy cx"], group: Group, length: int, *, is_separate: bool
) -> Complex64[Tensor, "coils vz vy vx"]:
    """The calibration region over the field of view of the image, readout oversampling removed.

    Lines of another encoding space (a reference scan of low resolution) have a field of view of their own.
    """
    image = group.scan.encodings[group.key.encoding].encoded.field_of_view_mm
    own = image
    if is_separate and group.calibration is not None and group.calibration.encoding is not None:
        own = group.scan.encodings[group.calibration.encoding].encoded.field_of_view_mm
    n_z, n_y, n_x = group.kspace.shape[2:]
    for axis, largest, part in ((-1, n_x, length / n_x), (-2, n_y, 1.0), (-3, n_z, 1.0)):
        n = calibration.shape[axis]
        wanted_mm, own_mm = image[-axis - 1] * part, own[-axis - 1]
        size = max(1, round(n * wanted_mm / own_mm)) if own_mm > 0 and wanted_mm > 0 else n
        if n > 1 and size <= max(n, largest):
            calibration = change_field_of_view(calibration, axis, size)
    return calibration


def _measured_centre(calibration: Tensor, extent: tuple[int, int]) -> Tensor:
    """The longest measured part of the readout around its centre n//2 (an asymmetric echo leaves one end out)."""
    centre = calibration.shape[-1] // 2
    half = max(1, min(centre - extent[0], extent[1] - centre))
    return calibration[..., centre - half : centre + half] if 2 * half < calibration.shape[-1] else calibration


def centred_box(sampled: NDArray[np.bool_], fewest: int) -> tuple[slice, slice] | None:
    """The largest block around the centre of `(z, y)` sampled completely; None with fewer than `fewest` lines of y."""
    best: tuple[slice, slice] | None = None
    n_z, n_y = sampled.shape
    for size_z in range(1, n_z + 1):
        along_z = slice(n_z // 2 - size_z // 2, n_z // 2 - size_z // 2 + size_z)
        size_y = _centred_run(np.asarray(sampled[along_z].all(0)))
        if size_z > 1 and size_y < FEWEST_CALIBRATION_LINES:
            break
        if size_y >= fewest and (best is None or size_z * size_y > _area(best)):
            best = along_z, slice(n_y // 2 - size_y // 2, n_y // 2 - size_y // 2 + size_y)
    return best


def _centred_run(sampled: NDArray[np.bool_]) -> int:
    """Length of the longest sampled run with the centre n//2 at its own length//2."""
    centre = len(sampled) // 2
    below = int(np.argmin(np.append(sampled[:centre][::-1], False)))
    above = int(np.argmin(np.append(sampled[centre:], False)))
    return max(0, min(2 * below + 1, 2 * above)) if above else 0


def _area(box: tuple[slice, slice]) -> int:
    return int(box[0].stop - box[0].start) * int(box[1].stop - box[1].start)
