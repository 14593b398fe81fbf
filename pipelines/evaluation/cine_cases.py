"""Cine cases: slices of a beating heart whose truth is known at every frame, and the same slices undersampled.

Truth is a magnitude: a measured cine (`load_cine`), or a cycle between pictures at the ends of diastole and systole
(`load_cycle`). `undersample_cine` gives it phase, coils and noise, leaves lines out, and makes of them what
`pipelines.preprocess` makes of such a scan behind the server. Slices are cut to a square around the part that moves
and fade out towards its borders: a cut through the chest would be a jump of the periodic image that no scanner sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, pi
from pathlib import Path
from typing import Any, Literal, cast, get_args
from zlib import crc32

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pipelines.errors import EvaluationError
from pipelines.operators.fourier import to_kspace
from pipelines.phantom import birdcage_coils, heart_radius, smooth_phase
from pipelines.preprocess.preparation import centred_box
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES
from pipelines.recon.reconstruction import Prepared
from pipelines.simulation.sampling import centre_block

SIDE = 128
TAPER = 10
"""Pixels of the square that is cut out, and those along each border over which it fades to zero."""
MOVING = 0.97
"""Quantile of the deviation over time above which a pixel counts as moving."""
SAME_SLICE = 0.9
"""Correlation above which two pictures may be of one slice. End of diastole and of systole of a slice have 0.93 to 1.00
in 40 patients, neighbouring slices 0.48 to 0.94."""
LEVELS, WARPS, SWEEPS = 4, 6, 40
"""Resolutions of the search for a displacement, warps of each, sweeps of each warp."""
STIFFNESS = 0.03
"""alpha of Horn and Schunck, for intensities between 0 and 1."""
GOLDEN = (5**0.5 - 1) / 2

CineSampling = Literal["variable_density", "golden_step"]
Image = NDArray[np.float32]
Field = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CineCase:
    """One slice through a heart cycle.

    Attributes:
        name: unique among all cases.
        scan: the exchangeable unit it belongs to: the patient.
        truth: magnitude, maximum 1.
    """

    name: str
    scan: str
    truth: Float32[Tensor, "frames y x"]


def load_cine(path: Path | str) -> CineCase:
    """The cine of a file whose dataset `image` holds magnitudes `(frames, y, x)`.

    Raises:
        EvaluationError: there is no such file or dataset, or its values are no magnitudes.
    """
    name = Path(path).stem
    return CineCase(name, name, _cut(_read(Path(path), "image")))


def load_cycle(path: Path | str, patient: str, frames: int = 24) -> CineCase:
    """A cycle of the middle slice of a patient; `patient` is a dataset of pictures `(n, y, x)`, two of most slices.

    They follow each other in the Sunnybrook Cardiac Data, the end of systole first (the ventricle is the smaller one
    there in all 14 patients looked at).

    Raises:
        EvaluationError: there is no such file or patient, or no slice has both pictures.
    """
    pictures = _read(Path(path), patient)
    if not (pairs := same_slice_pairs(pictures)):
        raise EvaluationError(f"{patient}: no two pictures that follow each other are of one slice")
    at = pairs[len(pairs) // 2]
    return CineCase(f"{patient}/{at}", patient, _cut(warped_cycle(pictures[at + 1], pictures[at], frames)))


def same_slice_pairs(pictures: Image) -> list[int]:
    """First of each two pictures `(n, y, x)` that resemble each other more than either does its other neighbour."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    alike = [0.0, *(flat[1:] * flat[:-1]).sum(1).tolist(), 0.0]
    return [at for at in range(len(flat) - 1) if alike[at + 1] > max(SAME_SLICE, alike[at], alike[at + 2])]


def warped_cycle(end_diastole: Image, end_systole: Image, frames: int) -> Image:
    """A heart cycle `(frames, y, x)` between two pictures `(y, x)` of a slice; frame 0 is the end of diastole.

        frame(x) = (1 - w) ED(x + w u(x)) + w ES(x + (1 - w) v(x)),    ES(x) = ED(x + u(x)),    ED(x) = ES(x + v(x))

    w, from 0 to 1 and back, is the contraction of `pipelines.phantom.heart_radius`: the end of systole is at 35 % of
    the cycle, and the heart rests from 75 % on.

    Raises:
        ValueError: the pictures differ in shape, or there is no frame.
    """
    if end_diastole.shape != end_systole.shape or frames < 1:
        raise ValueError(f"no cycle of {frames} frames of pictures {end_diastole.shape} and {end_systole.shape}")
    from_diastole = displacement(end_systole, end_diastole)
    from_systole = displacement(end_diastole, end_systole)
    cycle = np.empty((frames, *end_diastole.shape), np.float32)
    for number in range(frames):
        w = (1 - heart_radius(number / frames)) / (1 - heart_radius(0.35))
        cycle[number] = (1 - w) * _warp(end_diastole, w * from_diastole) + w * _warp(
            end_systole, (1 - w) * from_systole
        )
    return cycle


def displacement(fixed: Image, moving: Image) -> Field:
    """Where a picture's pixels lie in another, `(2, y, x)` in pixels, y before x: `fixed(r) = moving(r + u(r))`.

        min over u   sum_r (moving(r + u) - fixed(r))^2 + alpha^2 |grad u|^2

    of square roots, from coarse to fine, linearised at the displacement found so far, whose outliers a median removes.
    Horn and Schunck 1981, doi 10.1016/0004-3702(81)90024-2; Sun 2010, doi 10.1109/CVPR.2010.5539939 (warps, median).
    """
    top = max(float(np.quantile([fixed, moving], 0.995)), 1e-12)
    images = [np.sqrt(np.clip(image.astype(np.float64) / top, 0, 1)) for image in (fixed, moving)]
    found = np.zeros((2, *fixed.shape))
    for level in reversed(range(LEVELS)):
        shape = tuple(max(4, round(n / 2**level)) for n in fixed.shape)
        to, of = (_resized(ndimage.gaussian_filter(image, 0.5 * 2**level), shape) for image in images)
        finer = np.array(shape) / found.shape[1:]
        found = np.stack([_resized(found[axis], shape) * finer[axis] for axis in range(2)])
        for _ in range(WARPS):
            warped = _warp(of, found)
            slope = np.stack([np.gradient((warped + to) / 2, axis=axis) for axis in range(2)])
            offset = warped - to - (slope * found).sum(0)
            for _ in range(SWEEPS):
                smooth = np.stack([ndimage.uniform_filter(found[axis], 3, mode="nearest") for axis in range(2)])
                misfit = (slope * smooth).sum(0) + offset
                found = smooth - slope * (misfit / (STIFFNESS**2 + (slope**2).sum(0)))
            found = np.asarray(ndimage.median_filter(found, (1, 5, 5), mode="nearest"), np.float64)
    return found


def undersample_cine(
    case: CineCase,
    sampling: CineSampling,
    acceleration: float,
    noise: float,
    seed: int,
    *,
    n_coils: int = 8,
    n_calibration: int = 6,
    frames: int = 24,
) -> tuple[Prepared, Float32[Tensor, "frames y x"]]:
    """Measure a case: y is phase-encoded, and each frame has lines of its own.

    Args:
        case: what to measure.
        sampling: pattern of `cine_masks`.
        acceleration: lines over lines measured, calibration included.
        noise: root of `E|n|^2` of a sample of k-space (orthonormal transform) over the maximum of the truth.
        seed: of phase, noise and pattern, which depend on the case's name, too; noise does not on the pattern.
        n_coils: of the simulated array.
        n_calibration: lines around the centre in every frame.
        frames: most of them; the first are taken, as triggered scans miss the end of the cycle.

    Returns:
        Frames and their truth. Calibration is the centre of the average over time; where no frame adds neighbours to
        `n_calibration` lines, those alone, though the server asks for 8.

    Raises:
        EvaluationError: there is no such pattern, or the noise is not a number of at least 0.
    """
    if not (isfinite(noise) and noise >= 0):
        raise EvaluationError(f"noise must be at least 0, not {noise}")
    phase_rng, noise_rng, pattern_rng = np.random.default_rng([seed, crc32(case.name.encode())]).spawn(3)
    truth = case.truth[:frames].contiguous()
    n_frames, y, x = truth.shape
    masks = torch.from_numpy(cine_masks(sampling, n_frames, y, acceleration, n_calibration, pattern_rng))
    maps = torch.from_numpy(birdcage_coils(n_coils, (y, x)) * smooth_phase((y, x), phase_rng))
    kspace = to_kspace(truth[:, None] * maps)
    level = noise * float(truth.max())
    parts = noise_rng.standard_normal((*kspace.shape, 2), np.float32) * np.float32(level / 2**0.5)
    kspace += torch.view_as_complex(torch.from_numpy(parts))
    kspace = torch.where(masks[:, None, :, None], kspace, 0)[:, :, None].contiguous()
    total = masks.sum(0)
    box = centred_box((total > 0)[None].numpy(), min(FEWEST_CALIBRATION_LINES, max(n_calibration, 1)))
    mean = kspace.sum(0) / total.clamp(min=1)[:, None]
    prepared = Prepared(
        kspace=kspace,
        counts=masks.float()[:, None],
        calibration=None if box is None else mean[:, box[0], box[1]].contiguous(),
        noise_std=level,
        noise_is_measured=True,
        readout_sampled=torch.ones(x, dtype=torch.bool),
    )
    return prepared, truth


def cine_masks(
    sampling: CineSampling, frames: int, n: int, acceleration: float, n_calibration: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which of n lines each frame measures, `(frames, n)`: `n / acceleration` of them, those at the centre always.

    The density of the others falls with the distance d from the centre (1 at the edge) like `(1 - d)^2 + 0.05`.

        variable_density  random lines
        golden_step       each the golden ratio after the one before, on an axis that the density stretches; the
                          sequence goes on from frame to frame

    Raises:
        EvaluationError: there is no such pattern, or calibration alone needs more lines than the acceleration leaves.
    """
    if sampling not in get_args(CineSampling):
        raise EvaluationError(f"unknown sampling {sampling!r}; known are {', '.join(get_args(CineSampling))}")
    wanted = round(n / acceleration)
    if not (isfinite(acceleration) and acceleration >= 1 and 0 <= n_calibration <= wanted and wanted >= 1):
        raise EvaluationError(
            f"{acceleration:g}-fold acceleration leaves {wanted} of {n} lines; {n_calibration} are calibration"
        )
    masks = np.repeat(centre_block((1, n), (1, n_calibration)), frames, axis=0)
    density = np.where(masks[0], 0, (1 - np.abs(np.arange(n) - n // 2) / (n / 2)) ** 2 + 0.05)
    density /= max(float(density.sum()), 1e-12)
    position = float(rng.uniform())
    for mask in masks if wanted > n_calibration else ():
        if sampling == "variable_density":
            mask[rng.choice(n, wanted - n_calibration, replace=False, p=density)] = True
        while np.count_nonzero(mask) < wanted:
            mask[min(int(np.searchsorted(np.cumsum(density), position, side="right")), n - 1)] = True
            position = (position + GOLDEN) % 1
    return masks


def heart_box(truth: Float32[Tensor, "frames y x"]) -> Bool[Tensor, "y x"]:
    """The box around the part that varies most over time, without the outermost tenths of its pixels."""
    deviation = truth.std(0)
    places = torch.nonzero(deviation >= deviation.quantile(MOVING)).double()
    (top, left), (bottom, right) = (places.quantile(part, dim=0).long().tolist() for part in (0.1, 0.9))
    box = torch.zeros_like(deviation, dtype=torch.bool)
    box[top : bottom + 1, left : right + 1] = True
    return box


def temporal_gradient_error(image: Float32[Tensor, "frames y x"], truth: Float32[Tensor, "frames y x"]) -> float:
    """NRMSE of the differences between each frame and the next, of images on one scale: how true motion is.

    Raises:
        ValueError: the shapes differ, or nothing moves in the truth.
    """
    step = truth.double().diff(dim=0)
    if image.shape != truth.shape or not step.any():
        raise ValueError(f"no motion to compare: image {tuple(image.shape)}, truth {tuple(truth.shape)}")
    return float((image.double().diff(dim=0) - step).norm() / step.norm())


def _read(path: Path, name: str) -> Image:
    try:
        with h5py.File(path, "r") as file:
            dataset = file.get(name)
            raw = np.asarray(cast("Any", dataset)[()]) if isinstance(dataset, h5py.Dataset) else np.empty(0)
    except OSError as error:
        raise EvaluationError(f"{path.name} is not an HDF5 file that can be read: {error}") from error
    if raw.ndim != 3 or raw.dtype.kind not in "uif" or not raw.any() or not np.isfinite(raw).all() or raw.min() < 0:
        raise EvaluationError(f"{path.name}: expected magnitudes (frames, y, x) called {name}: {raw.shape} {raw.dtype}")
    return raw.astype(np.float32)


def _cut(frames: Image) -> Float32[Tensor, "frames y x"]:
    """The square around what moves, fading to its borders; maximum 1."""
    whole = torch.from_numpy(frames)
    middle = torch.nonzero(heart_box(whole)).double().mean(0).long().tolist()
    for axis in (1, 2):
        n, size = whole.shape[axis], min(SIDE, whole.shape[axis])
        first = min(max(middle[axis - 1] - size // 2, 0), n - size)
        fade = np.minimum(1, (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / TAPER)
        weight = torch.from_numpy(np.sin(fade * (pi / 2)) ** 2).float()
        whole = whole.narrow(axis, first, size) * (weight[:, None] if axis == 1 else weight)
    return (whole / whole.max()).contiguous()


def _warp(image: NDArray[Any], field: Field) -> NDArray[np.float64]:
    """The image at each pixel plus its displacement; at the border the nearest pixel."""
    places = np.indices(image.shape) + field
    return np.asarray(ndimage.map_coordinates(image.astype(np.float64), places, order=1, mode="nearest"))


def _resized(image: Field, shape: tuple[int, ...]) -> Field:
    factors = np.array(shape) / image.shape
    return np.asarray(ndimage.zoom(image, factors, order=1, mode="nearest", grid_mode=True), np.float64)
