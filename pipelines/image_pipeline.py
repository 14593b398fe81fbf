"""An image pipeline from the registry, ready for jobs: a scanner's images go in, originals and derived ones come out.

Originals first and unchanged, to the byte; then the derived image, then its uncertainty, each a series of its own, as
OpenRecon hosts expect (`SequenceDescriptionAdditional` always set, `Keep_image_geometry` 1, window kept where the units
are). Attributes of the original go along, also those that name a patient: they return to the peer that sent them and
to nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.derive.derivation import Derivation, Derived
from pipelines.domain import domain_comment, reasons_outside
from pipelines.emission import parameters_digest, provenance_meta
from pipelines.errors import ReconstructionError
from pipelines.image_group import ImageGroup
from pipelines.mrd import Image, ImageDataType, ImageType
from pipelines.parameters import ImageParameters
from pipelines.pipeline import PipelineOutput
from pipelines.registry import find

SERIES_STEP: Final = 10_000
"""Added to the number of the original series, once for the derived image and twice for its uncertainty. Scanners and
published applications number their series far below it; the absolute value means nothing to a host."""

_WINDOW: Final = ("WindowCenter", "WindowWidth")


class ImagePipeline:
    """One image entry of the registry with its parameters."""

    def __init__(self, name: str, parameters: Mapping[str, object], device: str) -> None:
        """Load a pipeline.

        Raises:
            UnknownPipelineError: the registry has no such name.
            ParameterError: a parameter is unknown or out of range.
            ModelUnavailableError: its model is missing, or does not match its card.
        """
        entry = find(name)
        parsed = cast("ImageParameters", entry.parse(parameters))
        self._name = name
        self._sends_originals = parsed.send_original
        self._digest = parameters_digest(name, parsed)
        self._derive = cast("Derivation", entry.load(parsed, device))

    def __call__(self, group: ImageGroup, provenance: Mapping[str, str]) -> PipelineOutput:
        """Derive images.

        Raises:
            ReconstructionError: an image cannot be used, or the result is not finite.
        """
        images: list[Image] = []
        warnings: list[str] = []
        outside: list[str] = []
        for original in group.images:
            derived = self._derive(original, warnings)
            if self._sends_originals or derived is None:
                images.append(original)
            if derived is not None:
                images.extend(self._emit(original, derived, provenance, warnings))
                outside.extend(reasons_outside(derived.details))
                if comment := domain_comment(derived.details):
                    warnings.append(f"Images are {comment}.")
        return PipelineOutput(tuple(images), {}, tuple(dict.fromkeys(warnings)), tuple(sorted(set(outside))))

    def _emit(
        self, original: Image, derived: Derived, provenance: Mapping[str, str], warnings: list[str]
    ) -> tuple[Image, Image]:
        for what, values in (("image", derived.pixels), ("uncertainty", derived.deviation)):
            if values.shape != original.pixels.shape or not np.isfinite(values).all():
                raise ReconstructionError(f"pipeline {self._name!r}: the {what} is not finite or has another matrix")
        common = provenance_meta(self._name, self._digest, derived.details, provenance)
        first = original.meta.get("SeriesDescription")
        comment = domain_comment(derived.details)

        def meta(suffix: str, role: str, **more: str) -> dict[str, list[str]]:
            return {
                **original.meta,
                **{name: [value] for name, value in {**common, **more}.items()},
                "DataRole": [role],
                "ImageProcessingHistory": [
                    *original.meta.get("ImageProcessingHistory", []), "ECHOTRAIN", self._name.upper()
                ],
                "SequenceDescriptionAdditional": [f"echotrain_{suffix}"],
                **({"SeriesDescription": [f"{first[0]}_{suffix}"]} if first else {}),
                **({"ImageComments": [comment]} if comment else {}),
            }  # fmt: skip

        about = "Standard deviation of the derived series, in its units"
        deviation_meta = meta(
            f"{derived.name}_std",
            "Quantitative",
            ReconUncertaintyKind=derived.kind,
            ReconUncertaintyUnit="magnitude",
            ReconUncertaintyCalibration=derived.calibration,
        )
        deviation_meta["ImageComments"] = ["; ".join(filter(None, [comment, about]))]
        for name in _WINDOW:
            deviation_meta.pop(name, None)
        image = _with_pixels(original, _in_type_of(original.pixels, derived.pixels), 1, warnings)
        deviation = _with_pixels(original, derived.deviation, 2, warnings)
        return (
            Image(image.header, image.pixels, meta(derived.name, "Image")),
            Image(deviation.header, deviation.pixels, deviation_meta),
        )


def _in_type_of(original: NDArray[np.generic], pixels: NDArray[np.float32]) -> NDArray[np.generic]:
    """The pixels in the type of the original, rounded and clipped, so that its window and rescaling still hold."""
    if original.dtype.kind not in "iu":
        return pixels.astype(original.dtype)
    range_ = np.iinfo(original.dtype.str)
    return np.rint(np.clip(pixels.astype(np.float64), range_.min, range_.max)).astype(original.dtype)


def _with_pixels(original: Image, pixels: NDArray[np.generic], step: int, warnings: list[str]) -> Image:
    header = original.header.copy()
    series = int(header["image_series_index"]) + step * SERIES_STEP
    if series > np.iinfo(np.uint16).max:
        series %= SERIES_STEP
        warnings.append("Series numbers of 45535 and more leave no room for derived series; numbers may repeat.")
    header["image_series_index"] = series
    header["data_type"] = next(kind for kind in ImageDataType if kind.dtype == pixels.dtype)
    header["image_type"] = ImageType.MAGNITUDE
    return Image(header, np.ascontiguousarray(pixels))
