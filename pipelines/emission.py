"""Results become MRD images: geometry, counters, series, meta. Numpy only; knows no torch, no tensors and no sockets.

Two series come out of every reconstruction: `MAGNITUDE_SERIES` and, with the same geometry and the same units,
`UNCERTAINTY_SERIES` (standard deviation of the magnitude); each further encoding space has two of its own, because a
series has one matrix size. Pixels are float32; `SeriesScaler` makes integers of them for scanners that want those.

Header fields and meta names: what MRD, Gadgetron and FIRE consumers rely on (MRD specification, "Image"; DICOM
correspondences in the names). Nothing that identifies a patient is written: no ids, no names, no dates; the protocol
name goes into the series description only.

Windows: DICOM applies a window after rescaling, and window values are whole numbers here. They are therefore given in
rescaled units, and left out where those are too small to be whole: a scanner then chooses a window itself, instead of
flattening the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import Group
from pipelines.errors import ReconstructionError
from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType, ImageType, Meta
from pipelines.scan_header import Encoding

MAGNITUDE_SERIES: Final = 1
UNCERTAINTY_SERIES: Final = 2
_SERIES_PER_SPACE: Final = 2
_INDEX_COUNTERS: Final = ("slice", "contrast", "phase", "set", "repetition")
_LAST_INDEX: Final = 65535
_COPIED: Final = (
    "measurement_uid",
    "position",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
    "user_int",
    "user_float",
)
_SMALLEST_WINDOW: Final = 32
_LARGEST_SCALE: Final = 1e30
_SEQUENCE_FLAGS: Final = sum(1 << (flag - 1) for flag in range(1, 19)) | 1 << 24
"""FIRST_IN_* and LAST_IN_* of every counter, and LAST_IN_MEASUREMENT: the flags that make sense on an image."""


@dataclass(frozen=True, slots=True)
class Emission:
    """What is known about a result besides its pixels.

    Attributes:
        kind: what the deviation holds (`pipelines.recon.reconstruction.UncertaintyKind`).
        calibration: how it was calibrated.
        noise_is_measured: whether the noise level comes from a noise scan.
        details: attributes of the reconstruction, such as iterations.
        pipeline: name in the registry.
        parameters_digest: digest of the parameters.
        provenance: attributes of the session (product, version, session id, whether degraded); they win over ours.
    """

    kind: str
    calibration: str
    noise_is_measured: bool
    pipeline: str
    parameters_digest: str
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])


def emit(
    group: Group, magnitude: NDArray[np.float32], deviation: NDArray[np.float32], emission: Emission
) -> tuple[tuple[Image, ...], list[str]]:
    """Images of a group, magnitude then uncertainty for each frame, and warnings.

    Args:
        group: the group they were reconstructed from.
        magnitude: `(frames, z, y, x)` on the grid of the recon space.
        deviation: standard deviation of `magnitude`, same shape and units.
        emission: kind, calibration, provenance.
    """
    warnings: list[str] = []
    images: list[Image] = []
    encoding = group.scan.encodings[group.key.encoding]
    for frame, acquisition in enumerate(group.headers):
        header = _header(acquisition, encoding, magnitude.shape[1:], warnings)
        first = _images_before(group.scan.encodings[: group.key.encoding])
        header["image_index"] = image_index(acquisition, encoding, warnings, first=first)
        common = _common_meta(group, acquisition, emission)
        for pixels, series, meta in (
            (magnitude[frame], MAGNITUDE_SERIES, {**_magnitude_meta(group, emission), **window(magnitude[frame])}),
            (deviation[frame], UNCERTAINTY_SERIES, _uncertainty_meta(group, emission)),
        ):
            own = header.copy()
            own["image_series_index"] = series + _SERIES_PER_SPACE * group.key.encoding
            images.append(Image(own, np.ascontiguousarray(pixels[None], np.float32), {**common, **meta}))
    return tuple(images), list(dict.fromkeys(warnings))


def _images_before(encodings: Sequence[Encoding]) -> int:
    """Images that these encoding spaces promise: the next space numbers its own after them."""
    return sum(
        prod(encoding.limits[name].maximum + 1 for name in _INDEX_COUNTERS if name in encoding.limits)
        for encoding in encodings
    )


def image_index(acquisition: NDArray[np.void], encoding: Encoding, warnings: list[str], *, first: int = 0) -> int:
    """Number of an image within its series, from 1: mixed radix over slice, contrast, phase, set and repetition.

    The same rule as Gadgetron's (ImageArraySendMixin), without channel and average. Repetition is the most
    significant digit, so that a scan that goes on longer than its header says still numbers its images uniquely.
    Numbers beyond 16 bits start again at 1. `first` is the number of images before those of this encoding space.
    """
    number, radix = first, 1
    for name in _INDEX_COUNTERS:
        value = int(acquisition["idx"][name])
        limit = encoding.limits.get(name)
        size = limit.maximum + 1 if limit else 1
        if value >= size and name != "repetition":
            warnings.append(
                f"Counter {name} is {value} but its limit in the header is {size - 1}: image numbers may repeat."
            )
        number += value * radix
        radix *= size
    if number >= _LAST_INDEX:
        warnings.append("The scan has more than 65535 images; their numbers start again at 1.")
    return number % _LAST_INDEX + 1


def _header(
    acquisition: NDArray[np.void], encoding: Encoding, shape: tuple[int, ...], warnings: list[str]
) -> NDArray[np.void]:
    """Image header from the header of the readout at the centre of k-space."""
    header: NDArray[np.void] = np.zeros((), IMAGE_HEADER)
    header["version"] = 1
    header["data_type"] = ImageDataType.FLOAT
    header["image_type"] = ImageType.MAGNITUDE
    header["flags"] = int(acquisition["flags"]) & _SEQUENCE_FLAGS
    header["matrix_size"] = shape[::-1]
    header["field_of_view"] = encoding.recon.field_of_view_mm
    header["channels"] = 1
    for name in _COPIED:
        header[name] = acquisition[name]
    for name in ("position", "patient_table_position"):
        if not np.isfinite(acquisition[name]).all():
            header[name] = 0
            warnings.append(
                f"The {name} of readouts is not finite; the origin of the patient coordinate system is used."
            )
    for name in ("average", "slice", "contrast", "phase", "repetition", "set"):
        header[name] = acquisition["idx"][name]
    for axis, name in enumerate(("read_dir", "phase_dir", "slice_dir")):
        header[name] = acquisition[name]
        if not 0 < float(np.linalg.norm(acquisition[name])) < np.inf:
            header[name] = np.eye(3, dtype=np.float32)[axis]
            warnings.append(f"Readouts have no {name}; the axis of the patient coordinate system is used.")
    return header


def _common_meta(group: Group, acquisition: NDArray[np.void], emission: Emission) -> Meta:
    """Attributes that both series share."""
    meta: dict[str, str] = {
        "Keep_image_geometry": "1",
        "ReconSoftware": "echotrain",
        "ReconSoftwareVersion": _product_version(),
        "ReconPipeline": emission.pipeline,
        "ReconConfigDigest": emission.parameters_digest,
        "ReconQualification": "RESEARCH",
        "ReconDegraded": "false",
        "ReconCompletion": group.completion.value,
        "ReconNoise": "measured" if emission.noise_is_measured else "estimated",
        **emission.details,
        **group.notes,
        **emission.provenance,
    }
    echo_times_ms = group.scan.echo_times_ms
    contrast = int(acquisition["idx"]["contrast"])
    if contrast < len(echo_times_ms):
        meta["EchoTime"] = f"{echo_times_ms[contrast]:g}"
    if not group.is_complete:
        n_measured = int((group.counts > 0).sum())
        of = f" of {group.expected_lines}" if group.expected_lines else ""
        meta["Incomplete"] = f"{n_measured}{of} lines"
    return {name: [value] for name, value in meta.items()}


def _magnitude_meta(group: Group, emission: Emission) -> Meta:
    return {
        "DataRole": ["Image"],
        "ImageProcessingHistory": ["ECHOTRAIN", emission.pipeline.upper()],
        "SequenceDescriptionAdditional": [f"echotrain_{emission.pipeline}"],
        **_description(group, "recon"),
    }


def _uncertainty_meta(group: Group, emission: Emission) -> Meta:
    return {
        "DataRole": ["Quantitative"],
        "ImageProcessingHistory": ["ECHOTRAIN", emission.pipeline.upper(), "STANDARD_DEVIATION"],
        "SequenceDescriptionAdditional": [f"echotrain_{emission.pipeline}_std"],
        "ImageComments": ["Standard deviation of the magnitude series, in its units"],
        "ReconUncertaintyKind": [emission.kind],
        "ReconUncertaintyUnit": ["magnitude"],
        "ReconUncertaintyCalibration": [emission.calibration],
        **_description(group, "echotrain_std"),
    }


def _description(group: Group, suffix: str) -> Meta:
    """Series description `<protocol>_<suffix>`; none without a protocol name, so that the scanner keeps its own."""
    return {"SeriesDescription": [f"{group.scan.protocol_name}_{suffix}"]} if group.scan.protocol_name else {}


@cache
def _product_version() -> str:
    try:
        return version("echotrain")
    except PackageNotFoundError:
        return "unknown"


def window(pixels: NDArray[np.float32]) -> Meta:
    """Window of an image in its own units, from zero to its maximum; none where whole numbers are too coarse for it."""
    top = float(pixels.max(initial=0))
    if not _SMALLEST_WINDOW <= top < 2**31:
        return {}
    return {"WindowCenter": [str(round(top / 2))], "WindowWidth": [str(round(top))]}


class SeriesScaler:
    """Makes uint16 of the float32 magnitude images of one session, with one scale for the whole series.

    The scale is chosen at the first image that is not zero, so that its maximum lies at `1 / headroom` of the range:
    later images may be that much brighter. What is brighter still is set to the largest value, counted, and reported;
    values never wrap.

    Every image tells its scale: `GADGETRON_ScaleRatio` is stored over original units, and `RescaleSlope` brings
    stored values back. The uncertainty stays float32 and is multiplied by the scale of the magnitude series, so that
    both are in the same stored units and a stored deviation can be read against a stored magnitude without
    arithmetic.

    Args:
        bits: bits stored a pixel, 12 where the scan header does not say (`ScanHeader.bits_stored`), as FIRE does.
        headroom: range over the maximum of the first image; the first slice of a head is often its darkest.
    """

    def __init__(self, bits: int = 12, *, headroom: float = 4.0) -> None:
        if not (1 <= bits <= 16 and headroom >= 1):
            raise ValueError(f"bits must lie in 1 to 16 and headroom be at least 1, not {bits} and {headroom}")
        self._largest = (1 << bits) - 1
        self._headroom = headroom
        self._scale: float | None = None
        self._window: Meta = {}
        self._reported = False
        self.clipped = 0
        """Pixels set to the largest value so far."""

    def __call__(self, image: Image) -> Image:
        """The image in stored units.

        Args:
            image: float32, of a magnitude or an uncertainty series, magnitude first.

        Raises:
            ReconstructionError: pixels are not finite.
        """
        pixels = np.asarray(image.pixels, np.float32)
        if not np.isfinite(pixels).all():
            raise ReconstructionError("an image holds values that are not finite and cannot be scaled")
        is_magnitude = int(image.header["image_series_index"]) % _SERIES_PER_SPACE == MAGNITUDE_SERIES
        if self._scale is None:
            self._choose(pixels, is_magnitude)
        scale = 1.0 if self._scale is None else self._scale  # every image so far is zero, whatever it is multiplied by
        with np.errstate(over="ignore"):  # what no float32 can hold counts as the largest: clipped below, still finite
            scaled = np.minimum(pixels * np.float32(scale), np.finfo(np.float32).max)
        stored: NDArray[np.generic] = scaled
        header = image.header.copy()
        meta = {name: values for name, values in image.meta.items() if name not in {"WindowCenter", "WindowWidth"}}
        if is_magnitude:
            self.clipped += int(np.count_nonzero(scaled > self._largest + 0.5))
            stored = np.rint(np.clip(scaled, 0, self._largest)).astype(np.uint16)
            header["data_type"] = ImageDataType.USHORT
            meta |= self._window
        if self._scale is not None:
            meta |= {
                "GADGETRON_ScaleRatio": [f"{scale:.9g}"],
                "RescaleSlope": [f"{1 / scale:.9g}"],
                "RescaleIntercept": ["0"],
            }
        return Image(header, stored, meta)

    def take_warnings(self) -> list[str]:
        """A sentence at the first clipped pixel, once."""
        if self.clipped == 0 or self._reported:
            return []
        self._reported = True
        return [
            f"{self.clipped} pixels were brighter than {self._largest} and were clipped; float32 pixels avoid this."
        ]

    def _choose(self, pixels: NDArray[np.float32], is_magnitude: bool) -> None:
        """Choose the scale from the first image that is not zero; a deviation that comes first is stored as 16."""
        top = float(pixels.max(initial=0))
        if not top > 0:
            return
        self._scale = min(self._largest / (self._headroom * top) if is_magnitude else 16 / top, _LARGEST_SCALE)
        self._window = window(pixels) if is_magnitude else {}
