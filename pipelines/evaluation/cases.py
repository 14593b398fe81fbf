"""Evaluation cases: slices whose truth is known, and the same slices undersampled, ready for a reconstruction.

`undersample` gives what `pipelines.preprocess` makes of such a scan behind the server: whitened k-space, line counts,
the noise level, the fully sampled centre to estimate coil sensitivities from.

Truth is the root of the sum of squares over coils of the noise-free (as far as the file is), fully sampled coil images,
scaled so that its maximum is 1. Simulated sensitivities have root sum of squares 1, so there it is the image's
magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot, isfinite
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Complex64, Float32
from torch import Tensor

from pipelines.errors import EvaluationError
from pipelines.evaluation.case_files import StoredSlice, find_slices, load_slice
from pipelines.evaluation.samplings import Lines, Plane, Radial, Sampling, find_sampling
from pipelines.operators.fourier import to_kspace
from pipelines.operators.nonuniform import NonUniform
from pipelines.phantom import birdcage_coils, smooth_phase
from pipelines.preprocess.central_kspace import central_kspace
from pipelines.preprocess.noise import noise_level_at_edges
from pipelines.preprocess.preparation import centred_box
from pipelines.preprocess.sensitivities import FEWEST_CALIBRATION_LINES
from pipelines.recon.reconstruction import Prepared, Trajectory

RADII = (1.3, 1.7)
"""Radius of simulated coil rings relative to half the field of view, from and to."""
OFFSETS = (0.0, 0.4)
"""Distance of slices from the plane of the ring, likewise."""
ZERO_FILLED = 0.01
"""Rows of k-space with less power than this part of the median one were not measured."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fully sampled slice.

    Attributes:
        name: of the slice, unique in its data set.
        scan: the exchangeable unit it belongs to: subject, patient, or the file where nothing tells them apart.
        coil_images: fully sampled; they carry the image's phase.
        truth: root sum of squares of them, maximum 1.
        noise_std: root of `E|n|^2` that a sample of `coil_images` holds already, estimated at the edges of k-space;
            0 for simulated arrays, whose image is the truth with all that is in it.
    """

    name: str
    scan: str
    coil_images: Complex64[Tensor, "coils y x"]
    truth: Float32[Tensor, "y x"]
    noise_std: float = 0.0


def load_cases(path: Path | str, coils: int = 8, seed: int = 0, limit: int | None = None) -> Iterator[Case]:
    """Cases of a file, or of all `*.h5` files of a folder; see `pipelines.evaluation.case_files`.

    The middle slice of every dataset comes first, then its neighbours, so that a few cases already are of many
    scans. Slices without an object are left out.

    Args:
        path: file or folder.
        coils: of simulated arrays; measured ones keep theirs.
        seed: of the phase and the arrays simulated. A slice gets the same whatever comes before it.
        limit: most cases.

    Raises:
        EvaluationError: there is no such file, or one is not understood.
    """
    if coils < 1:
        raise EvaluationError(f"arrays have at least 1 coil, not {coils}")
    stored = stored_slices(path)
    left = len(stored) if limit is None else limit
    for one in stored:
        if left <= 0:
            return
        case = _load(one, coils, seed)
        if case is not None:
            left -= 1
            yield case


def stored_slices(path: Path | str) -> list[StoredSlice]:
    """Slices of a file or folder, not loaded; the middle ones of all datasets first.

    Raises:
        EvaluationError: there is no such file, or one is not understood.
    """
    path = Path(path)
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise EvaluationError(f"no file {path}" if not path.is_dir() else f"no *.h5 files in {path}")
    return sorted((one for file in files for one in find_slices(file)), key=lambda one: one.from_middle)


def undersample(case: Case, sampling: str, noise: float, seed: int) -> Prepared:
    """Measure a case.

    A pattern of lines phase-encodes y (`z` is 1), one of points phase-encodes both axes (`z`, `y` are the image's y
    and x, `x` is 1), a radial one gives a trajectory. `plane_of` brings images back to `(y, x)`, `truth_of` gives the
    truth beside which they can be laid.

    Args:
        case: what to measure.
        sampling: name of the pattern (`pipelines.evaluation.samplings`).
        noise: root of `E|n|^2` added to a sample of k-space (orthonormal transform) over the maximum of the truth.
        seed: of noise and pattern, which also depend on the case's name. Each point of Cartesian k-space gets the same
            noise in every pattern.

    Raises:
        EvaluationError: there is no such pattern, or the noise is not a number of at least 0.
    """
    pattern = find_sampling(sampling)
    if not (isfinite(noise) and noise >= 0):
        raise EvaluationError(f"noise must be at least 0, not {noise}")
    added = noise * float(case.truth.max())
    noise_rng = np.random.default_rng([seed, crc32(case.name.encode()), 1])
    pattern_rng = np.random.default_rng([seed, crc32(case.name.encode()), 2])
    level = hypot(added, case.noise_std)
    is_measured = added >= case.noise_std
    if isinstance(pattern, Radial):
        return _radial(case, pattern, (noise_rng, pattern_rng), added, level, is_measured=is_measured)
    kspace = to_kspace(case.coil_images)
    kspace = kspace + _noise(tuple(kspace.shape), added, noise_rng)
    if isinstance(pattern, Plane):
        mask = torch.from_numpy(pattern.mask((kspace.shape[1], kspace.shape[2]), pattern_rng))
        kspace = kspace[..., None]
    else:
        kspace = (kspace.mT if pattern.is_swapped else kspace)[:, None]
        mask = torch.from_numpy(pattern.mask(kspace.shape[2], pattern_rng))[None]
    kspace = torch.where(mask[..., None], kspace, 0).contiguous()
    box = centred_box(mask.numpy(), min(FEWEST_CALIBRATION_LINES, mask.shape[1]))
    return Prepared(
        kspace=kspace[None],
        counts=mask.float()[None],
        calibration=None if box is None else kspace[:, box[0], box[1]].contiguous(),
        noise_std=level,
        noise_is_measured=is_measured,
        readout_sampled=torch.ones(kspace.shape[-1], dtype=torch.bool),
    )


def truth_of(case: Case, sampling: str) -> Float32[Tensor, "y x"]:
    """The truth as it lies in images of a pattern: transposed where the pattern swaps the axes."""
    return case.truth.mT.contiguous() if _is_swapped(find_sampling(sampling)) else case.truth


def plane_of(image: Tensor) -> Tensor:
    """`(frames, y, x)` of images `(frames, z, y, x)`; `(frames, z, y)` where both of those are phase-encoded."""
    return image[..., 0] if image.shape[-1] == 1 else image[:, 0]


def _load(stored: StoredSlice, coils: int, seed: int) -> Case | None:
    values = load_slice(stored)
    if values is None:
        return None
    if stored.is_measured:
        coil_images = torch.from_numpy(values)
    else:
        rng = np.random.default_rng([seed, crc32(stored.name.encode()), 0])
        shape = (values.shape[0], values.shape[1])
        maps = birdcage_coils(coils, shape, radius=rng.uniform(*RADII), slice_offset=rng.uniform(*OFFSETS))
        phase = np.complex64(1) if np.iscomplexobj(values) else smooth_phase(shape, rng)
        coil_images = torch.from_numpy(np.asarray(maps * (values * phase), np.complex64))
    truth = torch.linalg.vector_norm(coil_images, dim=0, dtype=torch.complex128)
    largest = float(truth.max())
    coil_images = coil_images / largest
    own = noise_level_of(coil_images) if stored.is_measured else 0.0
    return Case(stored.name, stored.scan, coil_images, (truth / largest).float(), own)


def noise_level_of(coil_images: Complex64[Tensor, "coils y x"]) -> float:
    """Noise in fully sampled coil images, from the edges of k-space, as the server tells it where nothing else does.

    Rows and columns that were zero-filled say nothing of it.
    """
    kspace = to_kspace(coil_images)
    for axis in (1, 2):
        power = kspace.abs().square().mean((0, 3 - axis))
        measured = torch.nonzero(power > ZERO_FILLED * power.median())[:, 0]
        if len(measured):
            kspace = kspace.narrow(axis, int(measured[0]), int(measured[-1] - measured[0]) + 1)
    n = kspace.shape[1]
    edge = max(1, n // 6)
    return noise_level_at_edges(torch.cat([kspace[:, :edge], kspace[:, n - edge :]], 1).transpose(0, 1))


def _noise(shape: tuple[int, ...], std: float, rng: np.random.Generator) -> Tensor:
    """Circular complex noise with `E|n|^2 = std^2`."""
    parts = rng.standard_normal((*shape, 2), np.float32) * np.float32(std / 2**0.5)
    return torch.view_as_complex(torch.from_numpy(parts))


def _radial(
    case: Case,
    pattern: Radial,
    rngs: tuple[np.random.Generator, np.random.Generator],
    added: float,
    level: float,
    *,
    is_measured: bool,
) -> Prepared:
    noise_rng, pattern_rng = rngs
    shape = (case.truth.shape[0], case.truth.shape[1])
    positions = torch.from_numpy(pattern.positions(shape, pattern_rng))[None]
    kspace = NonUniform(positions, shape)(case.coil_images[None, :, None])
    kspace = kspace + _noise(tuple(kspace.shape), added, noise_rng)
    measured = torch.ones(positions.shape[:-1], dtype=torch.bool)
    centre = central_kspace(kspace, positions, measured, shape, level)
    return Prepared(
        kspace=kspace,
        counts=torch.ones((1, 1, positions.shape[1])),
        calibration=None if centre is None else centre.kspace,
        noise_std=level,
        noise_is_measured=is_measured,
        readout_sampled=torch.ones(kspace.shape[-1], dtype=torch.bool),
        trajectory=Trajectory(positions, shape, measured),
    )


def _is_swapped(pattern: Sampling) -> bool:
    return isinstance(pattern, Lines) and pattern.is_swapped
