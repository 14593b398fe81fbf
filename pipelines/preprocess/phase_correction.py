"""Forward and reversed readouts of one image brought into the same phase: without this, EPI has ghosts.

Delays and eddy currents shift a reversed readout against a forward one, which is a phase constant and linear along x
once the readout is transformed. A few readouts without phase encoding, taken in both directions before the image
(flag 24), show it. With f and r the transformed navigators of either direction, summed over coils and adjacent pairs,

    P(x) = sum r(x) conj(f(x)) = |P(x)| exp(i (a + b x))
    b = arg sum P(x + 1) conj(P(x)),    a = arg sum P(x) exp(-i b x)

(autocorrelation: no phase has to be unwrapped, and columns count by their signal), then refined by weighted least
squares. Reversed lines are multiplied with `exp(-i (a + b x))`; noise keeps its level. Pairs where the reversed readout
came after the forward one and pairs where it came before count alike, so that the phase which off-resonance adds from
one readout to the next cancels out of the usual three (+ - +).

Reference: Ahn and Cho 1987, doi 10.1109/TMI.1987.4307795.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.assembly.frame import Calibration, Group, Navigators
from pipelines.operators.fourier import to_image, to_kspace

LEAST_COHERENCE = 0.5
"""|sum P exp(-i (a + b x))| over sum |P|; below it the navigators do not tell a linear phase: noise alone has up to
0.35 (64 columns) or 0.2 (256), sound navigators more than 0.9."""

REFINEMENTS = 2
"""Weighted least-squares steps; the second changes nothing any more unless the first was far off."""


@dataclass(frozen=True, slots=True)
class LinearPhase:
    """Phase of reversed readouts relative to forward ones.

    Attributes:
        constant_rad: at the centre of the field of view.
        slope_rad: from one edge of the encoded field of view to the other.
        coherence: how well the navigators agree with it, 0 to 1.
    """

    constant_rad: float
    slope_rad: float
    coherence: float


@dataclass(frozen=True, slots=True)
class PhaseCorrection:
    """What is to be done with the reversed lines of a group.

    Attributes:
        phase: for its lines; None leaves them.
        calibration_phase: for its separate calibration lines; None leaves them.
        details: attributes for the meta.
        warnings: sentences for the scanner.
    """

    phase: LinearPhase | None
    calibration_phase: LinearPhase | None
    details: dict[str, str]
    warnings: tuple[str, ...]


def plan_correction(group: Group, method: str) -> PhaseCorrection:
    """Find out whether lines of both directions are mixed, and the phase between them.

    Args:
        group: as assembled.
        method: `none` or `linear`. Images of one direction (bipolar multi-echo) need no correction and get none.
    """
    image = _directions(group.counts, group.reversed_counts)
    separate = group.calibration
    calibration = (False, False) if separate is None else _directions(separate.counts, separate.reversed_counts)
    if method == "none" or not (image[0] or calibration[0]):
        return PhaseCorrection(None, None, {}, ())
    warnings: dict[str, None] = {}
    if image[1] or calibration[1]:
        warnings[
            "Some lines are sums of forward and reversed readouts; their phases cannot be corrected any more, ghosts "
            "are likely."
        ] = None
    phase = _phase(group.navigators, warnings, for_calibration=False) if image[0] else None
    own = _phase(group.navigators, warnings, for_calibration=True) if calibration[0] else None
    details = {"ReconPhaseCorrection": "none"}
    if phase is not None:
        text = f"linear, {phase.constant_rad:.4f} rad and {phase.slope_rad:.4f} rad over the encoded field of view"
        details = {"ReconPhaseCorrection": text}
    return PhaseCorrection(phase, own, details if image[0] else {}, tuple(warnings))


def correct_lines(
    lines: Tensor,
    counts: Tensor,
    reversed_counts: NDArray[np.float32],
    index: tuple[Tensor, Tensor],
    phase: LinearPhase,
) -> Tensor:
    """Lines `(frames, coils, 1, lines, x)` with the phase taken off those that are reversed throughout.

    Args:
        lines: measured lines.
        counts: `(frames, z, y)`.
        reversed_counts: how many of the counts were reversed.
        index: z and y of each line.
        phase: to take off.
    """
    turned = torch.from_numpy(np.array(reversed_counts)).to(lines.device)
    is_reversed = ((turned > 0) & (turned == counts))[:, *index]
    by_line = lines[:, :, 0].movedim(1, 2).clone()
    by_line[is_reversed] = _without(by_line[is_reversed], phase)
    return by_line.movedim(2, 1)[:, :, None].contiguous()


def correct_calibration(calibration: Calibration, phase: LinearPhase, device: str) -> Tensor:
    """K-space of separate calibration lines `(coils, z, y, x)` with the phase taken off the reversed ones."""
    kspace = torch.from_numpy(np.array(calibration.kspace)).to(device)
    if calibration.reversed_counts is not None:
        is_reversed = (calibration.reversed_counts > 0) & (calibration.reversed_counts == calibration.counts)
        z, y = (torch.from_numpy(axis).to(device) for axis in np.nonzero(is_reversed))
        kspace[:, z, y] = _without(kspace[:, z, y], phase)
    return kspace


def estimate_phase(navigators: Navigators, *, for_calibration: bool = False) -> LinearPhase | None:
    """Phase of reversed navigators relative to forward ones; None when there are not both.

    Args:
        navigators: in the order of their arrival.
        for_calibration: prefer those that are flagged for calibration lines; otherwise the others.
    """
    chosen = navigators.is_calibration == for_calibration
    if not _has_both(navigators.is_reversed[chosen]):
        chosen = np.ones_like(chosen)
    is_reversed = navigators.is_reversed[chosen]
    if not _has_both(is_reversed):
        return None
    columns = to_image(torch.from_numpy(navigators.samples[chosen]), (-1,)).numpy().astype(np.complex128)
    product = columns[1:] * columns[:-1].conj()
    is_after = is_reversed[1:] & ~is_reversed[:-1]
    is_before = ~is_reversed[1:] & is_reversed[:-1]
    total = np.zeros(columns.shape[-1], np.complex128)
    if is_after.any():
        total += product[is_after].mean(0).sum(0)
    if is_before.any():
        total += product[is_before].mean(0).sum(0).conj()
    return _fit(total)


def _fit(product: NDArray[np.complex128]) -> LinearPhase | None:
    """Constant and slope of the phase of P."""
    n = len(product)
    position = np.arange(n) - n // 2
    weight = np.abs(product)
    if not weight.sum() > 0:
        return None
    slope = float(np.angle(np.sum(product[1:] * product[:-1].conj())))
    constant = float(np.angle(np.sum(product * np.exp(-1j * slope * position))))
    for _ in range(REFINEMENTS):
        rest = np.angle(product * np.exp(-1j * (constant + slope * position)))
        near = weight * (np.abs(rest) < np.pi / 2)
        total = near.sum()
        if not total > 0:
            break
        middle = (near * position).sum() / total
        spread = (near * (position - middle) ** 2).sum()
        step = float((near * (position - middle) * rest).sum() / spread) if spread > 0 else 0.0
        constant += float((near * rest).sum() / total) - step * float(middle)
        slope += step
    aligned = np.sum(product * np.exp(-1j * (constant + slope * position)))
    wrapped = float(np.angle(np.exp(1j * constant)))
    return LinearPhase(wrapped, slope * n, float(np.abs(aligned) / weight.sum()))


def _phase(navigators: Navigators | None, warnings: dict[str, None], *, for_calibration: bool) -> LinearPhase | None:
    """The phase to use, or None and a warning."""
    what = "one image" if not for_calibration else "the calibration lines"
    phase = None if navigators is None else estimate_phase(navigators, for_calibration=for_calibration)
    if phase is None:
        warnings[
            f"Forward and reversed readouts are mixed in {what}, but there are no phase-correction readouts (flag 24) "
            "of both directions: phases are not corrected, ghosts are likely."
        ] = None
        return None
    if phase.coherence < LEAST_COHERENCE:
        warnings[
            f"The phase-correction readouts agree on no linear phase (coherence {phase.coherence:.2f}, at least "
            f"{LEAST_COHERENCE} is needed): phases are not corrected, ghosts are likely."
        ] = None
        return None
    return phase


def _without(lines: Tensor, phase: LinearPhase) -> Tensor:
    """Lines `(..., x)` with the phase taken off."""
    n = lines.shape[-1]
    position = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    angle = -(phase.constant_rad + phase.slope_rad * position)
    factor = torch.polar(torch.ones_like(angle), angle).to(lines.device, torch.complex64)
    return to_kspace(to_image(lines, (-1,)) * factor, (-1,))


def _directions(counts: NDArray[np.float32], reversed_counts: NDArray[np.float32] | None) -> tuple[bool, bool]:
    """Whether some lines are reversed and others forward, and whether single lines are sums of both."""
    if reversed_counts is None:
        return False, False
    is_forward = (counts > 0) & (reversed_counts < counts)
    is_reversed = reversed_counts > 0
    is_summed = bool((is_forward & is_reversed).any())
    return bool(is_forward.any()) and bool(is_reversed.any()), is_summed


def _has_both(is_reversed: NDArray[np.bool_]) -> bool:
    return bool(is_reversed.any()) and not bool(is_reversed.all())
