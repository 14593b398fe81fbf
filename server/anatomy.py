"""Objects to simulate: the shipped brain, a phantom, a beating heart, or the user's own array or NIfTI file."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.phantom import beating_heart, head_phantom
from server.errors import FileError

DATA: Final = files("pipelines") / "data"
BRAIN_SPACING_MM: Final = 10.0
HEART_PHASES: Final = 60
MOST_PIXELS: Final = 1 << 28


def load_anatomy(name: str, n_slices: int, matrix: int) -> NDArray[np.float32]:
    """An object scaled to a maximum of 1, `(slices, y, x)` or `(frames, slices, y, x)`.

    Args:
        name: `brain`, `phantom`, `heart` (60 instants of one heart cycle as frames), or a file: `.npy` with the axes
            [[frames,] slices,] y, x; `.nii` or `.nii.gz` with axial slices.
        n_slices: of the phantom, or the most to take evenly from a brain or file; 0 for all.
        matrix: pixels of phantom and heart along x and y.

    Raises:
        FileError: there is no such file or it does not hold an image.
    """
    if name == "phantom":
        return head_phantom(max(n_slices, 1), matrix, matrix)
    if name == "heart":
        return beating_heart(HEART_PHASES, matrix, matrix)[:, None]
    magnitude = load_brain() if name == "brain" else _load_file(Path(name))
    if magnitude.ndim == 3 and 0 < n_slices < len(magnitude):
        magnitude = magnitude[np.round(np.linspace(0, len(magnitude) - 1, n_slices + 2)[1:-1]).astype(int)]
    top = float(magnitude.max())
    if not np.isfinite(top) or top <= 0:
        raise FileError(f"{name} holds no image: its largest value is {top}")
    return np.asarray(magnitude / top, np.float32)


def load_brain() -> NDArray[np.float32]:
    """The shipped brain, `(5, 240, 192)` at 1 mm; its licence lies beside it."""
    with as_file(DATA / "brain_slices.h5") as path, h5py.File(path, "r") as file:
        return np.asarray(cast("Any", file["magnitude"])[...], np.float32)


def _load_file(path: Path) -> NDArray[np.float32]:
    if not path.exists():
        raise FileError(f"there is no file {path}; built in are 'brain', 'phantom' and 'heart'")
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _load_nifti(path)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"{path} cannot be read as .npy or NIfTI ({error})") from error
    if array.ndim not in (2, 3, 4) or array.size > MOST_PIXELS:
        raise FileError(f"{path} has the shape {array.shape}; expected [[frames,] slices,] y, x")
    return np.asarray(np.abs(array), np.float32)


def _load_nifti(path: Path) -> NDArray[Any]:
    """Slices from foot to head, rows from front to back, columns from the patient's right to the left."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        loaded = cast("Any", nibabel).as_closest_canonical(cast("Any", nibabel).load(path))
    except ImageFileError as error:
        raise OSError("neither .npy nor NIfTI") from error
    # Canonical NIfTI counts to the right, the front and the head; frames, if any, come last there and first here.
    return np.asarray(np.asarray(loaded.dataobj)[::-1, ::-1].T)
