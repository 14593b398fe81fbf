"""Where non-Cartesian samples lie on the image grid: grid, units, and samples that cannot be used.

The image grid spans the field of view of the images with pixels as the header has them along x (encoded field of view
over encoded matrix): along a radial or spiral readout only that resolution means something, for both axes.

Units differ between senders, and MRD says nothing about them. They are told apart by the farthest sample: cycles a
pixel reach 0.5 (0.71 in the corners of a square), radians a pixel pi, cycles over the field of view half the matrix.
What fits none is refused, because a guess could give an image of the wrong size.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from pipelines.errors import BudgetError, ReconstructionError
from pipelines.scan_header import Encoding

MOST_VALUES = 1 << 28
"""Frames times coils times pixels of the image grid: 2 GiB of coil images."""

MOST_CYCLES = 0.75
FEWEST_RADIANS, MOST_RADIANS = 2.2, 4.6
"""Farthest sample, as a distance from the centre, in the units that the sender may have used."""

MARGIN = 1e-3
"""Relative; so far beyond the edge of k-space a sample is taken to lie on it (rounding of the sender)."""


def image_grid(encoding: Encoding, n_images: int) -> tuple[int, int]:
    """Rows and columns of the image: the field of view of the images at the encoded pixel size along x.

    A field of view that is not given (0) leaves the recon matrix. Rounded up: no sample inside the encoded resolution
    may fall off the grid.

    Args:
        encoding: encoded and recon space.
        n_images: frames times coils, for the limit.

    Raises:
        BudgetError: the header asks for more than `MOST_VALUES`.
    """
    rows, columns = (_length(encoding, axis) for axis in (1, 0))
    if rows * columns * n_images > MOST_VALUES:
        raise BudgetError(
            f"the field of view of the images has {columns} x {rows} pixels of the encoded size; with "
            f"{n_images} coil images that is above the limit of {MOST_VALUES} values"
        )
    return rows, columns


def _length(encoding: Encoding, axis: int) -> int:
    """Pixels along x (0) or y (1)."""
    pixel_mm, view_mm = _pixel_mm(encoding), encoding.recon.field_of_view_mm[axis]
    if not (pixel_mm > 0 and 0 < view_mm < math.inf):
        return encoding.recon.matrix[axis]
    return max(1, math.ceil(min(view_mm / pixel_mm, MOST_VALUES + 1) - 1e-3))


def _pixel_mm(encoding: Encoding) -> float:
    return encoding.encoded.field_of_view_mm[0] / encoding.encoded.matrix[0]


def place_samples(
    trajectory: Float32[Tensor, "frames readouts samples dimensions"],
    counts: Float32[Tensor, "frames 1 readouts"],
    units: str,
    encoding: Encoding,
    shape: tuple[int, int],
) -> tuple[Float32[Tensor, "frames readouts samples 2"], Bool[Tensor, "frames readouts samples"], list[str]]:
    """Positions in cycles a pixel of the image grid, which samples can be used, and warnings.

    Args:
        trajectory: as the stream has it, x first.
        counts: 0 for rows without a readout.
        units: `auto`, or one of the names of `Parameters.trajectory_units`.
        encoding: encoded and recon space.
        shape: from `image_grid`.

    Raises:
        ReconstructionError: not a two-dimensional trajectory, units that cannot be told, or hardly a sample on the
            grid.
    """
    if trajectory.shape[-1] < 2:
        raise ReconstructionError(f"a trajectory needs 2 dimensions, these readouts have {trajectory.shape[-1]}")
    partitions = encoding.encoded.matrix[2]
    if partitions > 1:
        raise ReconstructionError(
            f"non-Cartesian readouts are reconstructed in two dimensions only, the encoded matrix has {partitions} "
            "partitions along z"
        )
    if not bool((counts > 0).any()):
        raise ReconstructionError("no readout was measured")
    warnings: list[str] = []
    present = (counts[:, 0] > 0)[..., None].expand(trajectory.shape[:-1])
    if bool((trajectory[..., 2:][present] != 0).any()):
        warnings.append(
            "Trajectories have a third dimension that is not zero; in a two-dimensional scan it is ignored."
        )
    positions = trajectory[..., :2]
    known = present & torch.isfinite(positions).all(-1)
    positions = torch.where(known[..., None], positions, 0.0) * _cycles_a_pixel(
        positions[known], units, encoding, shape
    )
    inside = (positions.abs() <= 0.5 * (1 + MARGIN)).all(-1)
    _judge(present, known, inside, warnings)
    measured = known & inside
    return torch.where(measured[..., None], positions.clamp(-0.5, 0.5), 0.0), measured, warnings


def _cycles_a_pixel(
    positions: Float32[Tensor, "n 2"], units: str, encoding: Encoding, shape: tuple[int, int]
) -> Float32[Tensor, "2"]:
    """Factors for x and y that bring positions to cycles a pixel of the grid."""
    rows, columns = shape
    if units == "auto":
        units = _guess(positions)
    if units == "cycles_per_fov":
        return torch.tensor([1 / columns, 1 / rows], device=positions.device)
    pixel_mm = _pixel_mm(encoding)
    cycles = 1 / (2 * math.pi) if units == "radians_per_pixel" else 1.0
    ratios = [
        view_mm / n / pixel_mm if pixel_mm > 0 and 0 < view_mm < math.inf else 1.0
        for view_mm, n in zip(encoding.recon.field_of_view_mm[:2], (columns, rows), strict=True)
    ]
    return torch.tensor([cycles * ratio for ratio in ratios], device=positions.device)


def _guess(positions: Float32[Tensor, "n 2"]) -> str:
    """The units, from the farthest sample."""
    farthest = float(torch.linalg.vector_norm(positions, dim=-1).max()) if len(positions) else 0.0
    if farthest == 0:
        raise ReconstructionError("the trajectory is zero everywhere: nothing is known of where the samples lie")
    if farthest <= MOST_CYCLES:
        return "cycles_per_pixel"
    if FEWEST_RADIANS <= farthest <= MOST_RADIANS:
        return "radians_per_pixel"
    if farthest > MOST_RADIANS:
        return "cycles_per_fov"
    raise ReconstructionError(
        f"the units of the trajectory cannot be told: its farthest sample is {farthest:.3g} from the centre, where "
        "cycles a pixel give about 0.5, radians a pixel about 3.14, cycles over the field of view half the matrix; "
        "set the parameter trajectory_units"
    )


def _judge(present: Tensor, known: Tensor, inside: Tensor, warnings: list[str]) -> None:
    """Warn of samples that cannot be used; refuse when they are most."""
    total = int(present.sum())
    unknown, beyond = int((present & ~known).sum()), int((known & ~inside).sum())
    if unknown:
        warnings.append(f"{unknown} of {total} samples have a position that is not finite and are left out.")
    if beyond:
        warnings.append(f"{beyond} of {total} samples lie beyond the k-space of the image grid and are left out.")
    if 2 * (unknown + beyond) > total:
        raise ReconstructionError(
            f"{unknown + beyond} of {total} samples have no place in the k-space of the image grid; check the encoded "
            "matrix and field of view, or set the parameter trajectory_units"
        )
