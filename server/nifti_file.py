"""Images as NIfTI files with the right orientation; knows image headers, nothing of files in other formats.

MRD positions and directions are in patient coordinates with x to the left, y to the back and z to the head (LPS);
NIfTI has x to the right and y to the front (RAS). The header's position is where k-space has its phase reference: pixel
n//2 of each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import nibabel
import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import Image
from server.errors import FileError

_FRAME_COUNTERS: Final = ("average", "contrast", "phase", "repetition", "set")
_TOLERANCE_MM: Final = 0.01


def write_nifti(stem: Path, images: Sequence[Image]) -> list[Path]:
    """Write one series as `stem.nii.gz`: x, y, slices, and frames when there are several.

    Slices that are not evenly spaced and parallel (a localiser, say), or that not every frame has, give a file each:
    `stem_slice_0.nii.gz` and so on.

    Args:
        stem: path without suffix.
        images: one series, of one shape; the first channel is written.

    Raises:
        FileError: the series is empty, or the file cannot be written.
    """
    if not images:
        raise FileError("a series without images cannot be written")
    slices = sorted({int(image.header["slice"]) for image in images})
    stacks = {number: [image for image in images if int(image.header["slice"]) == number] for number in slices}
    if _is_even_stack(stacks):
        return [_write(stem.with_name(f"{stem.name}.nii.gz"), _along_normal(stacks))]
    return [_write(stem.with_name(f"{stem.name}_slice_{number}.nii.gz"), [stack]) for number, stack in stacks.items()]


def affine_of(first: Image, step_mm: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """From pixel (x, y, slice) to millimetres in RAS, `(4, 4)`.

    Args:
        first: the first slice, or a volume.
        step_mm: from one slice to the next in LPS; by default along `slice_dir` by the header's field of view.
    """
    header = first.header
    matrix = np.asarray(header["matrix_size"], np.float64)
    spacing = np.asarray(header["field_of_view"], np.float64) / matrix
    axes = [np.asarray(header[name], np.float64) for name in ("read_dir", "phase_dir", "slice_dir")]
    columns = [axis * length for axis, length in zip(axes, spacing, strict=True)]
    if step_mm is not None:
        columns[2] = step_mm
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1)
    affine[:3, 3] = np.asarray(header["position"], np.float64) - affine[:3, :3] @ (matrix // 2)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _is_even_stack(stacks: dict[int, list[Image]]) -> bool:
    """Whether the slices are parallel, evenly spaced, single partitions, with equally many frames."""
    first = [stack[0] for stack in stacks.values()]
    if len(first) == 1:
        return True
    if len({len(stack) for stack in stacks.values()}) > 1 or int(first[0].header["matrix_size"][2]) > 1:
        return False
    for name in ("read_dir", "phase_dir", "slice_dir"):
        directions = np.array([image.header[name] for image in first])
        if np.abs(directions - directions[0]).max() > 1e-4:
            return False
    steps = np.diff(np.array([image.header["position"] for image in _sorted_along_normal(first)], np.float64), axis=0)
    is_even = np.abs(steps - steps[0]).max() < _TOLERANCE_MM
    return bool(is_even and np.linalg.norm(steps[0]) > _TOLERANCE_MM)


def _along_normal(stacks: dict[int, list[Image]]) -> list[list[Image]]:
    by_slice = {int(stack[0].header["slice"]): stack for stack in stacks.values()}
    return [by_slice[int(image.header["slice"])] for image in _sorted_along_normal([s[0] for s in stacks.values()])]


def _sorted_along_normal(images: list[Image]) -> list[Image]:
    normal = np.asarray(images[0].header["slice_dir"], np.float64)
    return sorted(images, key=lambda image: float(np.asarray(image.header["position"], np.float64) @ normal))


def _write(path: Path, stacks: list[list[Image]]) -> Path:
    """Write slices with their frames; `stacks` is in the order of the third axis."""
    ordered = [
        sorted(stack, key=lambda image: [int(image.header[name]) for name in _FRAME_COUNTERS]) for stack in stacks
    ]
    volumes = [np.concatenate([frame[number].pixels[0] for frame in ordered]) for number in range(len(ordered[0]))]
    data = np.stack(volumes, axis=-1).transpose(2, 1, 0, 3)
    step = None
    if len(ordered) > 1:
        positions = [np.asarray(stack[0].header["position"], np.float64) for stack in ordered[:2]]
        step = positions[1] - positions[0]
    nib = cast("Any", nibabel)  # without usable types
    image = nib.Nifti1Image(data[..., 0] if data.shape[-1] == 1 else data, affine_of(ordered[0][0], step))
    image.header.set_xyzt_units("mm", "sec")
    meta = ordered[0][0].meta
    described = meta.get("SeriesDescriptionAdditional") or meta.get("SequenceDescriptionAdditional") or [""]
    image.header["descrip"] = " ".join(described)[:79].encode("ascii", "replace")
    try:
        nib.save(image, path)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error.strerror or error})") from error
    return path
