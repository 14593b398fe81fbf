"""Magnitude images to train from: read from HDF5 files, kept in memory, cut into augmented patches.

What is read: every three-dimensional dataset `(slice, y, x)` of numbers in a file. Real ones are magnitudes, a dataset
or group a subject; complex ones are k-space of one coil, centred. Of a file with `reconstruction_rss` (fastMRI) only
that is read, and its subject is the attribute `patient_id`, or else the file. Sources (files, or directories) count
alike, however many slices they hold: two patients at high resolution say as much about edges as a hundred at 2 mm.

Subjects, not slices, are kept apart for validation: slices of a head resemble each other. Nothing can tell that two
files with other names show the same person.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from models.energy import REFERENCE_QUANTILE
from models.errors import TrainingDataError
from models.training.air import has_dark_air
from models.training.held_out import held_out

SMALLEST_SIDE = 48
"""Images with a shorter side hold too little anatomy."""

VOLUME_SIDE = 80
"""Stacks of at least so many slices are volumes with nearly cubic voxels: cut along all three axes."""

FEWEST_BRIGHT = 0.1
"""Share of pixels above a tenth of the brightest below which a slice is left out."""

MOST_BYTES = 8 << 30
"""Of images of one source, in memory."""

RECONSTRUCTED = "reconstruction_rss"
"""fastMRI's name for images; beside them lie k-space and further images of the same slices."""


@dataclass(frozen=True, slots=True)
class Source:
    """Slices of one file or directory.

    Attributes:
        name: of the file, without its ending.
        licence: as the file's attribute says; empty when it says nothing; of a directory all that occur.
        origin: the attribute `source`, likewise.
        attribution: the attribute `attribution`, likewise.
        subjects: names of the subjects used.
        slices: magnitudes `(y, x)`, uint8 or float16.
        references: of each slice, the magnitude that becomes 1.
    """

    name: str
    licence: str
    origin: str
    attribution: str
    subjects: tuple[str, ...]
    slices: tuple[NDArray[np.generic], ...]
    references: tuple[float, ...]


def read_sources(paths: Sequence[Path], *, validation: bool) -> list[Source]:
    """Slices of all files, of the subjects for training or of those for validation.

    Args:
        paths: HDF5 files, or directories of them; the files of a directory are one source (fastMRI).
        validation: which of the subjects.

    Raises:
        TrainingDataError: a path does not exist, a file cannot be read or forbids training (its name holds
            `localonly`), the data exceed `MOST_BYTES`, or there are no images.
    """
    found = [_read(path, validation=validation) for path in paths]
    sources = [source for source in found if source.slices]
    if not sources:
        names = ", ".join(path.name for path in paths)
        raise TrainingDataError(
            f"no subjects for validation in {names}: three are needed at least"
            if validation
            else f"no images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} in {names}"
        )
    return sources


def _read(path: Path, *, validation: bool) -> Source:
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files:
        raise TrainingDataError(f"{path} holds no .h5 files")
    subjects: dict[str, list[NDArray[np.generic]]] = {}
    said: dict[str, list[str]] = {"licence": [], "source": [], "attribution": []}
    total = 0
    for file in files:
        if "localonly" in file.resolve().name or "localonly" in file.name:
            raise TrainingDataError(f"{file} may not be trained on: it has no licence that allows it")
        try:
            with h5py.File(file) as opened:
                for name, texts in said.items():
                    texts.append(str(opened.attrs.get(name, "")).strip())
                for subject, stack in _stacks(opened, file.stem):
                    subjects.setdefault(subject, []).append(stack)
                    total += stack.nbytes
                    if total > MOST_BYTES:
                        raise TrainingDataError(f"{path} holds more than {MOST_BYTES >> 30} GiB of images")
        except OSError as error:
            raise TrainingDataError(f"{file} cannot be read as HDF5: {error}") from error
    kept_apart = held_out(subjects)
    chosen = [name for name in sorted(subjects) if (name in kept_apart) == validation]
    slices = [image for name in chosen for stack in subjects[name] for image in _slices(stack, every=validation)]
    references = [float(np.quantile(image.astype(np.float32), REFERENCE_QUANTILE)) for image in slices]
    licence, origin, attribution = (", ".join(dict.fromkeys(filter(None, texts))) for texts in said.values())
    return Source(path.stem, licence, origin, attribution, tuple(chosen), tuple(slices), tuple(references))


def _stacks(file: h5py.File, stem: str) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every stack of magnitudes with the subject it belongs to."""
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset) or item.ndim != 3 or item.dtype.kind not in "uifc":
            return
        if item.shape[0] and min(item.shape[1:]) >= SMALLEST_SIDE:
            found.append((name, item))

    file.visititems(visit)
    whole = str(file.attrs.get("patient_id", stem))
    reconstructed = [(name, dataset) for name, dataset in found if name == RECONSTRUCTED]
    found = reconstructed or found
    for name, dataset in found:
        if dataset.size * dataset.dtype.itemsize > MOST_BYTES:
            raise TrainingDataError(f"{file.filename}:{name} is larger than {MOST_BYTES >> 30} GiB")
        values = cast("NDArray[np.generic]", dataset[()])
        where = f"{file.filename}:{name}"
        if not np.isfinite(values).all():
            raise TrainingDataError(f"{where} holds values that are not finite")
        if not np.iscomplexobj(values) and float(np.min(values)) < 0:
            raise TrainingDataError(f"{where} holds negative values, but magnitudes are expected")
        if np.iscomplexobj(values):
            axes = (-2, -1)
            values = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(values, axes)), axes))
        if values.dtype != np.uint8:
            values = (values.astype(np.float32) / max(float(np.max(values)), 1e-30)).astype(np.float16)
        yield whole if reconstructed else f"{stem}/{name.split('/')[0]}", values


def _slices(stack: NDArray[np.generic], *, every: bool) -> Iterator[NDArray[np.generic]]:
    """Slices with something in them and dark air.

    Of volumes every second slice along all axes, for validation every tenth axial one.
    """
    is_volume = min(stack.shape) >= VOLUME_SIDE
    step = 1 if not is_volume else 10 if every else 2
    bright = 0.1 * float(np.max(stack))
    for axis in (0, 1, 2) if is_volume and not every else (0,):
        for index in range(0, stack.shape[axis], step):
            image = np.ascontiguousarray(np.take(stack, index, axis))
            if float((image > bright).mean()) >= FEWEST_BRIGHT and has_dark_air(image):
                yield image


BRIGHTNESS = (0.5, 1.2)
CURVED = 0.5
"""Share of the images that get a random curve of intensities."""
KNOTS = 5


class Patches:
    """Draws augmented patches; what is drawn depends on the generator alone.

    Augmentation: flips, transposition, zoom down to 0.6 (which also averages the noise of the images away), brightness
    0.5 to 1.2, and for half of the patches a random curve of intensities that keeps air dark: a contrast that no
    sequence of the training data has.

    Args:
        sources: each with equal weight.
        side: of patches, in pixels.

    Raises:
        TrainingDataError: a source has no image as large as a patch, or there are no sources.
    """

    ZOOM = (0.6, 1.0)
    EMPTIEST = 0.04
    """Patches with a smaller mean are drawn again, nine times out of ten."""

    MOST_TRIES = 1000
    """For one patch. One in ten is taken whatever it shows, so that none of so many is not chance."""

    def __init__(self, sources: Sequence[Source], side: int) -> None:
        self._sources = [
            [
                (image, reference)
                for image, reference in zip(source.slices, source.references, strict=True)
                if reference > 0 and min(image.shape) >= side
            ]
            for source in sources
        ]
        for source, images in zip(sources, self._sources, strict=True):
            if not images:
                raise TrainingDataError(f"{source.name}: no image has {side} x {side} pixels, the size of a patch")
        if not self._sources:
            raise TrainingDataError("no sources to draw patches from")
        self._side = side

    def draw(self, n: int, random: np.random.Generator) -> Float32[Tensor, "n side side"]:
        """Normalised patches."""
        return torch.stack([self._one(random) for _ in range(n)])

    def _one(self, random: np.random.Generator) -> Tensor:
        return torch.from_numpy(_varied(self._with_something(random), random))

    def _with_something(self, random: np.random.Generator) -> NDArray[np.float32]:
        """A normalised patch, rarely an empty one."""
        for _ in range(self.MOST_TRIES):
            source = self._sources[random.integers(len(self._sources))]
            image, reference = source[random.integers(len(source))]
            patch = self._cut(image, random) / reference
            if float(patch.mean()) >= self.EMPTIEST or random.random() < 0.1:
                return patch
        raise TrainingDataError(f"{self.MOST_TRIES} patches in a row were empty")

    def _cut(self, image: NDArray[np.generic], random: np.random.Generator) -> NDArray[np.float32]:
        """A patch of the image, scaled down where it is large enough to be."""
        zoom = random.uniform(*self.ZOOM)
        cut = self._side if random.random() < 0.4 else round(self._side / zoom)
        cut = min(cut, *image.shape)
        y, x = (int(random.integers(n - cut + 1)) for n in image.shape)
        patch = np.asarray(image[y : y + cut, x : x + cut], np.float32)
        if image.dtype == np.uint8:
            patch = patch + random.random(patch.shape, np.float32) - np.float32(0.5)
        if cut == self._side:
            return patch
        scaled = interpolate(
            torch.from_numpy(patch)[None, None], (self._side, self._side), mode="bilinear", antialias=True
        )
        return np.asarray(scaled[0, 0].numpy(), np.float32)


class WholeSlices:
    """Draws whole slices on grids that are asked for, scaled down to fit, with air around; varied like patches.

    Args:
        sources: each with equal weight.

    Raises:
        TrainingDataError: there are no sources.
    """

    SMALLEST = 0.75
    """Of the size that just fits."""

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise TrainingDataError("no sources to draw slices from")
        self._sources = [
            [pair for pair in zip(source.slices, source.references, strict=True) if pair[1] > 0] for source in sources
        ]

    def draw(self, n: int, shape: tuple[int, int], random: np.random.Generator) -> Float32[Tensor, "n rows columns"]:
        """Normalised slices."""
        return torch.stack([self._one(shape, random) for _ in range(n)])

    def _one(self, shape: tuple[int, int], random: np.random.Generator) -> Tensor:
        source = self._sources[random.integers(len(self._sources))]
        image, reference = source[random.integers(len(source))]
        found = np.asarray(image, np.float32)
        if image.dtype == np.uint8:
            found = found + random.random(found.shape, np.float32) - np.float32(0.5)
        varied = _varied(np.asarray(found.clip(min=0) / reference, np.float32), random)
        zoom = min(1.0, min(n / size for n, size in zip(shape, varied.shape, strict=True)))
        zoom *= random.uniform(self.SMALLEST, 1)
        size = tuple(max(1, round(zoom * n)) for n in varied.shape)
        scaled = interpolate(torch.from_numpy(varied)[None, None], size, mode="bicubic", antialias=True)[0, 0]
        framed = torch.zeros(shape)
        y, x = (int(random.integers(n - side + 1)) for n, side in zip(shape, size, strict=True))
        framed[y : y + size[0], x : x + size[1]] = scaled.clamp(min=0)
        return framed


def _varied(image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Another contrast or brightness, flipped and transposed at random."""
    if random.random() < CURVED:
        knots = np.concatenate([[0.0], random.random(KNOTS - 1)])
        varied = np.interp(np.clip(image, 0, 1), np.linspace(0, 1, KNOTS), knots).astype(np.float32)
    else:
        varied = image * np.float32(random.uniform(*BRIGHTNESS))
    if random.random() < 0.5:
        varied = varied[::-1]
    if random.random() < 0.5:
        varied = varied[:, ::-1]
    if random.random() < 0.5:
        varied = varied.T
    return np.ascontiguousarray(varied)


def validation_slices(sources: Sequence[Source], n: int) -> list[Float32[Tensor, "_y _x"]]:
    """`n` slices spread over all sources, normalised, each in its own size."""
    images: list[Tensor] = []
    for index in range(n):
        source = sources[index % len(sources)]
        at = (index // len(sources)) * len(source.slices) // max(1, -(-n // len(sources)))
        image = source.slices[at].astype(np.float32) / np.float32(max(source.references[at], 1e-6))
        images.append(torch.from_numpy(image))
    return images


def validation_images(sources: Sequence[Source], n: int, side: int) -> Float32[Tensor, "n side side"]:
    """The middle of those slices; smaller images are framed by zeros."""
    images: list[Tensor] = []
    for tensor in validation_slices(sources, n):
        image = tensor.numpy()
        framed = np.zeros((side, side), np.float32)
        from_y, from_x = (max(0, (size - side) // 2) for size in image.shape)
        part = image[from_y : from_y + side, from_x : from_x + side]
        to_y, to_x = ((side - size) // 2 for size in part.shape)
        framed[to_y : to_y + part.shape[0], to_x : to_x + part.shape[1]] = part
        images.append(torch.from_numpy(framed))
    return torch.stack(images)
