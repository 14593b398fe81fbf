"""Series of images joined into one picture: magnitude, uncertainty, and the difference to a reference.

Knows which series is which and how they are labelled; files and matplotlib are elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.extra_series import is_extra
from pipelines.mrd import Image, ImageType
from pipelines.preview import is_preview
from pipelines.quality import Agreement, compare
from server.errors import FileError
from server.pictures import MOST_COLUMNS, Row, View, grey_limits, replace_pixels, turn, write_montage

_COUNTERS: Final = ("contrast", "phase", "repetition", "set")


@dataclass(frozen=True, slots=True)
class Pair:
    """One slice of one frame with its uncertainty, if there is any."""

    magnitude: Image
    deviation: Image | None

    @property
    def key(self) -> tuple[int, ...]:
        """Counters that tell it from other slices and frames."""
        return key_of(self.magnitude)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the images agree with a reference.

    Attributes:
        agreement: over all slices.
        within: fraction of the object's pixels whose difference is at most 1.96 standard deviations; 0.95 is expected
            of a calibrated uncertainty where noise is all there is. None without uncertainty.
    """

    agreement: Agreement
    within: float | None


def key_of(image: Image) -> tuple[int, ...]:
    """Slice and frame counters."""
    return tuple(int(image.header[name]) for name in ("slice", *_COUNTERS))


def is_deviation(image: Image) -> bool:
    """Whether an image is an uncertainty map."""
    return "ReconUncertaintyKind" in image.meta


def pair_images(images: Sequence[Image]) -> list[Pair]:
    """Magnitude images with the uncertainty maps of the same slice and frame, in the order of slice and frame.

    Complex images stand in where no magnitude came, previews where nothing else did; phase, real and imaginary parts
    and extra series are not shown.
    """
    images = [image for image in images if not is_preview(image)] or images
    deviations = {key_of(image): image for image in images if is_deviation(image)}
    others = [image for image in images if not is_deviation(image) and not is_extra(image)]
    magnitudes = [image for image in others if int(image.header["image_type"]) in (0, ImageType.MAGNITUDE)]
    magnitudes = magnitudes or [image for image in others if int(image.header["image_type"]) == ImageType.COMPLEX]
    return sorted((Pair(image, deviations.get(key_of(image))) for image in magnitudes), key=lambda pair: pair.key)


def compare_pairs(pairs: Sequence[Pair], reference: Mapping[tuple[int, ...], NDArray[np.floating]]) -> Comparison:
    """Compare with reference images `(z, y, x)` by slice and frame.

    Raises:
        FileError: the reference lacks a slice or has another matrix.
    """
    image, target = _stack(pairs, reference)
    agreement = compare(image, target)
    deviations = [pair.deviation for pair in pairs]
    if any(deviation is None for deviation in deviations):
        return Comparison(agreement, None)
    deviation = np.stack([d.pixels[0] for d in deviations if d is not None]) * agreement.scale
    inside = target > 0.1 * target.max()
    difference = np.abs(image * agreement.scale - target)
    return Comparison(agreement, float((difference <= 1.96 * deviation)[inside].mean()))


def write_gallery(
    path: Path,
    title: str,
    pairs: Sequence[Pair],
    reference: Mapping[tuple[int, ...], NDArray[np.floating]] | None = None,
) -> Comparison | None:
    """Write the picture; of many slices or frames evenly chosen ones.

    Args:
        path: of the PNG.
        title: first line.
        pairs: what to show.
        reference: `(z, y, x)` by slice and frame (`key_of`), when there is one.

    Raises:
        FileError: nothing to show, the reference does not fit, or the picture cannot be written.
    """
    if not pairs:
        raise FileError("there are no magnitude images to show")
    comparison = compare_pairs(pairs, reference) if reference is not None else None
    chosen = [pairs[round(index)] for index in np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_COLUMNS))]
    views = [turn(pair.magnitude) for pair in chosen]
    rows = [Row("magnitude", "signal (units of the scan)", views, grey_limits(views))]
    deviations = [turn(pair.deviation) for pair in chosen if pair.deviation is not None]
    top = 0.0
    if len(deviations) == len(chosen):
        top = grey_limits(deviations)[1]
        rows.append(Row("uncertainty", "standard deviation (same units)", deviations, (0.0, top), "inferno"))
    if reference is not None and comparison is not None:
        differences = [_difference(pair, view, reference, comparison) for pair, view in zip(chosen, views, strict=True)]
        limit = 3 * top if top else grey_limits(differences)[1]
        rows.append(Row("|difference| to truth", "same units", differences, (0.0, limit), "inferno"))
    write_montage(path, title, _subtitle(pairs, len(chosen), views[0], comparison), [_heading(p) for p in chosen], rows)
    return comparison


def _stack(
    pairs: Sequence[Pair], reference: Mapping[tuple[int, ...], NDArray[np.floating]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    images: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float32]] = []
    for pair in pairs:
        target = reference.get(pair.key)
        pixels = np.abs(pair.magnitude.pixels[0]).astype(np.float32)
        if target is None:
            raise FileError(f"the reference has no image of slice {pair.key[0]} and its frame")
        if target.shape != pixels.shape:
            raise FileError(f"the reference is {target.shape[::-1]} pixels, the image {pixels.shape[::-1]} (x, y, z)")
        images.append(pixels)
        targets.append(np.asarray(target, np.float32))
    return np.stack(images), np.stack(targets)


def _difference(
    pair: Pair, view: View, reference: Mapping[tuple[int, ...], NDArray[np.floating]], comparison: Comparison
) -> View:
    """|difference| in the units of the image."""
    target = np.asarray(reference[pair.key], np.float32) / comparison.agreement.scale
    difference = np.abs(np.abs(pair.magnitude.pixels[0]) - target)
    return replace_pixels(view, turn(Image(pair.magnitude.header, difference[None])).pixels)


def _heading(pair: Pair) -> str:
    header = pair.magnitude.header
    frame = [f"{name} {int(header[name])}" for name in _COUNTERS if int(header[name])]
    along = float(np.asarray(header["position"], np.float64) @ np.asarray(header["slice_dir"], np.float64))
    return ", ".join([f"slice {int(header['slice'])} at {along:.0f} mm", *frame])


def _subtitle(pairs: Sequence[Pair], n_shown: int, view: View, comparison: Comparison | None) -> str:
    meta = pairs[0].magnitude.meta
    n_y, n_x = pairs[0].magnitude.pixels.shape[-2:]
    parts = [f"{view.plane} {n_x} x {n_y}"]
    if "ReconPipeline" in meta:
        parts.append(f"pipeline {meta['ReconPipeline'][0]}")
    if "ReconNoise" in meta:
        parts.append(f"noise level {meta['ReconNoise'][0]}")
    if n_shown < len(pairs):
        parts.append(f"{n_shown} of {len(pairs)} images shown")
    if meta.get("ReconQualification"):
        parts.append("for research only")
    if comparison is not None:
        agreement = comparison.agreement
        parts.append(f"PSNR {agreement.psnr_db:.1f} dB, SSIM {agreement.ssim:.3f}, NRMSE {100 * agreement.nrmse:.1f} %")
        if comparison.within is not None:
            parts.append(f"{100 * comparison.within:.0f} % of the object within 1.96 standard deviations of the truth")
    # Two lines at most: figures of the comparison under the rest.
    cut = len(parts) - (0 if comparison is None else (1 if comparison.within is None else 2))
    return "   ·   ".join(parts[:cut]) + ("\n" + "   ·   ".join(parts[cut:]) if parts[cut:] else "")
