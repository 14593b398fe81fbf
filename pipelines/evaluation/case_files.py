"""HDF5 files that evaluation cases come from: which slices there are, told without loading any, and one slice loaded.

Understood are

1. real arrays `(slice, y, x)`, one dataset a subject, alone or in one group a patient: magnitude images;
2. complex arrays `(slice, y, x)` called `image...`: complex images, all of one scan: nothing says otherwise;
3. complex arrays `(slice, ky, kx)` whose name holds `kspace`: fully sampled, one channel;
4. `kspace` `(coil, ky, kx)` or `coil_images` `([slice,] coil, y, x)` in the root: fully sampled, several channels;
5. fastMRI (arXiv 1811.08839): `kspace` `(slice, coil, ky, kx)`, or `(slice, ky, kx)` beside `reconstruction_esc`;
   where `reconstruction_rss` or `_esc` is there, images are cut to its size. Files with one `patient_id` are one scan.

K-space has its centre at n//2. Files come from elsewhere: shapes and sizes are checked before anything is loaded, and
links inside files are not followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from models.training.air import has_dark_air
from pipelines.errors import EvaluationError
from pipelines.operators.fourier import to_image, to_kspace

SIDES = (16, 2048)
"""Fewest and most pixels along y and x."""
MOST_COILS = 128
MOST_SLICES = 100_000
MOST_BYTES = 1 << 30
"""Of one slice with all its coils."""
FAINT = 0.25
"""A slice of integers whose maximum is below this part of their range lies beyond the object."""
MOST_MISSING = 0.01
"""Part of the points within the measured extent of k-space that may be zero."""
ROUNDING = 1e-7
"""Of single precision, relative to the largest value."""


class Content(Enum):
    """What a slice is stored as."""

    MAGNITUDE = auto()
    IMAGE = auto()
    KSPACE = auto()
    COIL_IMAGES = auto()


@dataclass(frozen=True, slots=True)
class StoredSlice:
    """One slice of a file, not loaded.

    Attributes:
        path: file.
        dataset: name of the dataset in it.
        index: slice; None where the dataset is one slice.
        from_middle: slices between it and the middle one of its dataset.
        content: what is stored.
        name: unique among the slices of all files with different names.
        scan: the exchangeable unit (subject, patient).
        size: y and x that images are cut to; None keeps them.
    """

    path: Path
    dataset: str
    index: int | None
    from_middle: int
    content: Content
    name: str
    scan: str
    size: tuple[int, int] | None = None

    @property
    def is_measured(self) -> bool:
        """Whether its coils are those of a scanner."""
        return self.content in (Content.KSPACE, Content.COIL_IMAGES)


def find_slices(path: Path) -> list[StoredSlice]:
    """All slices of a file.

    Raises:
        EvaluationError: the file is not HDF5, holds nothing that is understood, or a size is out of range.
    """
    try:
        with h5py.File(path, "r") as file:
            return _slices_of(path, file)
    except OSError as error:
        raise EvaluationError(f"{path.name} is not an HDF5 file that can be read: {error}") from error


def load_slice(stored: StoredSlice) -> NDArray[Any] | None:
    """One slice: magnitude float32 or complex64 image `(y, x)`, or complex64 coil images `(coils, y, x)`.

    None for a slice without any object in it, or a magnitude that was painted white around the object.

    Raises:
        EvaluationError: values are not finite, or k-space is not fully sampled.
    """
    with h5py.File(stored.path, "r") as file:
        dataset = cast("h5py.Dataset", file[stored.dataset])
        raw = np.asarray(dataset[() if stored.index is None else stored.index])
    where = f"{stored.path.name}: {stored.name}"
    if not np.isfinite(raw).all():
        raise EvaluationError(f"{where}: values are not finite")
    if not raw.any() or (np.issubdtype(raw.dtype, np.integer) and raw.max() < FAINT * np.iinfo(raw.dtype).max):
        return None
    if stored.content is Content.MAGNITUDE:
        if raw.min() < 0:
            raise EvaluationError(f"{where}: a magnitude image has negative values (down to {raw.min()})")
        return raw.astype(np.float32) if has_dark_air(raw) else None
    values = raw.astype(np.complex64)
    if stored.content is Content.IMAGE:
        return values
    coils = values if values.ndim == 3 else values[None]
    images, kspace = torch.from_numpy(coils), torch.from_numpy(coils)
    if stored.content is Content.KSPACE:
        images = to_image(kspace)
    else:
        kspace = to_kspace(images)
    missing = missing_part(kspace.numpy())
    if missing > MOST_MISSING:
        raise EvaluationError(f"{where}: k-space is not fully sampled: {100 * missing:.0f} % of it is zero")
    return _cut(images.numpy(), stored.size)


def missing_part(kspace: NDArray[np.complex64]) -> float:
    """Part of the points of `(coils, ky, kx)` that are zero in all coils, within the extent that holds others.

    Zero up to rounding: coil images may be zero-filled ones of an undersampled scan.
    """
    power = np.abs(kspace).max(0)
    if not power.any():
        return 1.0
    rows, columns = np.nonzero(power > ROUNDING * power.max())
    return 1 - len(rows) / int((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1))


def _slices_of(path: Path, file: h5py.File) -> list[StoredSlice]:
    kspace = _dataset(file, "kspace")
    if kspace is not None:
        target = _dataset(file, "reconstruction_rss") or _dataset(file, "reconstruction_esc")
        size = None if target is None else (int(target.shape[-2]), int(target.shape[-1]))
        has_slices = kspace.ndim == 4 or "reconstruction_esc" in file
        scan = str(file.attrs.get("patient_id", path.stem))
        return _slices(path, kspace, Content.KSPACE, scan, size, has_slices=has_slices)
    coil_images = _dataset(file, "coil_images")
    if coil_images is not None:
        return _slices(path, coil_images, Content.COIL_IMAGES, path.stem, None, has_slices=coil_images.ndim == 4)
    found: list[StoredSlice] = []
    others: list[str] = []

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        content = _content_of(name, item)
        if content is None:
            others.append(f"{name} {item.shape} {item.dtype}"[:100])
            return
        found.extend(_slices(path, item, content, f"{path.stem}/{name.split('/')[0]}", None, has_slices=True))

    file.visititems(visit)
    if not found:
        raise EvaluationError(
            f"{path.name} holds nothing to evaluate on; expected real images (slice, y, x), complex ones called image, "
            f"or complex k-space called kspace; found: {'; '.join(others[:10]) or 'no dataset'}"
        )
    return found


def _dataset(file: h5py.File, name: str) -> h5py.Dataset | None:
    """A dataset of the root that lies in this file; None where there is none."""
    link = file.get(name, getlink=True)
    item = file.get(name) if isinstance(link, h5py.HardLink) else None
    return item if isinstance(item, h5py.Dataset) else None


def _content_of(name: str, dataset: h5py.Dataset) -> Content | None:
    """What a dataset `(slice, y, x)` holds; None for anything else."""
    leaf = name.rsplit("/", 1)[-1].lower()
    if dataset.ndim != 3 or dataset.dtype.kind not in "uifc":
        return None
    if dataset.dtype.kind != "c":
        return Content.MAGNITUDE
    if "kspace" in leaf:
        return Content.KSPACE
    return Content.IMAGE if leaf.startswith("image") else None


def _slices(
    path: Path, dataset: h5py.Dataset, content: Content, scan: str, size: tuple[int, int] | None, *, has_slices: bool
) -> list[StoredSlice]:
    name = str(dataset.name).strip("/")
    shape = tuple(int(n) for n in dataset.shape)
    _check(f"{path.name}: {name}", dataset, content, has_slices=has_slices)
    if size is not None and any(wanted > n or wanted < SIDES[0] for wanted, n in zip(size, shape[-2:], strict=True)):
        raise EvaluationError(f"{path.name}: reconstructions of {size} pixels do not fit k-space of {shape[-2:]}")
    whole = f"{path.stem}/{name}"
    if not has_slices:
        return [StoredSlice(path, name, None, 0, content, whole, scan, size)]
    return [
        StoredSlice(
            path,
            name,
            index,
            abs(index - shape[0] // 2),
            content,
            f"{whole}/{index}",
            scan,
            size,
        )
        for index in range(shape[0])
    ]


def _check(where: str, dataset: h5py.Dataset, content: Content, *, has_slices: bool) -> None:
    shape = tuple(int(n) for n in dataset.shape)
    one = shape[1:] if has_slices else shape
    if dataset.external or dataset.is_virtual:
        raise EvaluationError(f"{where}: its values lie in another file")
    expected = (2,) if content in (Content.MAGNITUDE, Content.IMAGE) else ((2, 3) if has_slices else (3,))
    if len(one) not in expected or (content is not Content.MAGNITUDE and dataset.dtype.kind != "c"):
        raise EvaluationError(f"{where}: expected complex ([slice,] coil, y, x), got {shape} {dataset.dtype}")
    if not all(SIDES[0] <= n <= SIDES[1] for n in one[-2:]):
        raise EvaluationError(f"{where}: images of {one[-2:]} pixels; {SIDES[0]} to {SIDES[1]} are understood")
    if has_slices and not 1 <= shape[0] <= MOST_SLICES:
        raise EvaluationError(f"{where}: {shape[0]} slices; 1 to {MOST_SLICES} are understood")
    if len(one) == 3 and not 1 <= one[0] <= MOST_COILS:
        raise EvaluationError(f"{where}: {one[0]} coils; 1 to {MOST_COILS} are understood")
    if prod(one) * 8 > MOST_BYTES:
        raise EvaluationError(f"{where}: a slice of {prod(one) * 8} bytes; at most {MOST_BYTES} are understood")


def _cut(coils: NDArray[np.complex64], size: tuple[int, int] | None) -> NDArray[np.complex64]:
    """The pixels around the centre n//2."""
    if size is None:
        return coils
    top, left = (n // 2 - wanted // 2 for n, wanted in zip(coils.shape[-2:], size, strict=True))
    return np.ascontiguousarray(coils[:, top : top + size[0], left : left + size[1]])
