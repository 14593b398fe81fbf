"""Results become MRD images: geometry, counters, series, meta. Numpy only; knows no torch, no tensors and no sockets.

Two series come out of every reconstruction: `MAGNITUDE_SERIES` and, with the same geometry and the same units,
`UNCERTAINTY_SERIES` (standard deviation of the magnitude); each further encoding space has two of its own, because a
series has one matrix size. Who asks for it gets phase, real and imaginary part or the complex image as series of their
own (`pipelines.parts`), or instead of the magnitude. The parts of the image come first, then the uncertainty, then what
was made for research (`pipelines.extra_series`): hosts show originals before what was derived from them. Pixels are
float32 (complex64); `pipelines.scaling` makes integers of them for scanners that want those.

Header fields and meta names: what MRD, Gadgetron and FIRE consumers rely on (MRD specification, "Image"; DICOM
correspondences in the names). Nothing that identifies a patient is written: no ids, no names, no dates; the protocol
name goes into the series description only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipelines.assembly.frame import Group, NoiseSource
from pipelines.domain import domain_comment
from pipelines.extra_series import Extra, extra_images
from pipelines.image_header import image_header, image_index, images_before
from pipelines.mrd import TICK_S, Image, Meta
from pipelines.parts import Part
from pipelines.scaling import window

MAGNITUDE_SERIES: Final = 1
UNCERTAINTY_SERIES: Final = 2
_SERIES_PER_SPACE: Final = 2


@dataclass(frozen=True, slots=True)
class Emission:
    """What is known about a result besides its pixels.

    Attributes:
        kind: what the deviation holds (`pipelines.recon.reconstruction.UncertaintyKind`).
        calibration: how it was calibrated.
        noise: where the noise level comes from.
        details: attributes of the reconstruction, such as iterations.
        pipeline: name in the registry.
        parameters_digest: digest of the parameters.
        provenance: attributes of the session (product, version, session id, whether degraded); they win over ours.
        parts: parts of the image to send, in this order.
    """

    kind: str
    calibration: str
    noise: NoiseSource
    pipeline: str
    parameters_digest: str
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])
    parts: tuple[Part, ...] = (Part.MAGNITUDE,)


def emit(
    group: Group,
    image: NDArray[np.complex64],
    deviation: NDArray[np.float32],
    emission: Emission,
    extras: Sequence[Extra] = (),
) -> tuple[tuple[Image, ...], list[str]]:
    """Images of a group, for each frame the parts asked for, then the uncertainty, then extra series; and warnings.

    Args:
        group: the group they were reconstructed from.
        image: `(frames, z, y, x)` on the grid of the recon space.
        deviation: standard deviation of the magnitude of `image`, same shape and units.
        emission: kind, calibration, provenance, parts.
        extras: further series with as many frames, on the same grid.
    """
    warnings: list[str] = []
    images: list[Image] = []
    if _assumes_phase(emission) and set(emission.parts) != {Part.MAGNITUDE}:
        warnings.append(
            "Partial Fourier by homodyne or pocs assumes that the phase is as smooth as the symmetric part of k-space: "
            "parts other than the magnitude show no finer phase."
        )
    encoding = group.scan.encodings[group.key.encoding]
    for frame, acquisition in enumerate(group.headers):
        header = image_header(acquisition, encoding, image.shape[1:], warnings)
        first = images_before(group.scan.encodings[: group.key.encoding])
        header["image_index"] = image_index(acquisition, encoding, warnings, first=first)
        common = _common_meta(group, acquisition, emission)
        for part in emission.parts:
            pixels = part.of(image[frame])
            meta = {**common, **_part_meta(group, emission, part)}
            if part is Part.MAGNITUDE:
                meta |= window(np.asarray(pixels, np.float32))
            images.append(_image(header, MAGNITUDE_SERIES + part.series_offset, group, part, pixels, meta))
        meta = {**common, **_uncertainty_meta(group, emission)}
        images.append(_image(header, UNCERTAINTY_SERIES, group, Part.MAGNITUDE, deviation[frame], meta))
        for extra in extras:
            meta = {**common, **_extra_meta(group, emission, extra)}
            images.extend(extra_images(extra, frame, header, _series(MAGNITUDE_SERIES, group), meta, warnings))
    return tuple(images), list(dict.fromkeys(warnings))


def _image(
    header: NDArray[np.void], series: int, group: Group, part: Part, pixels: NDArray[np.generic], meta: Meta
) -> Image:
    own = header.copy()
    own["image_series_index"] = _series(series, group)
    own["image_type"], own["data_type"] = part.image_type, part.data_type
    return Image(own, np.ascontiguousarray(pixels[None], part.data_type.dtype), meta)


def _series(number: int, group: Group) -> int:
    """Series number in the group's encoding space of what has this number in the first one."""
    return number + _SERIES_PER_SPACE * group.key.encoding


def _common_meta(group: Group, acquisition: NDArray[np.void], emission: Emission) -> Meta:
    """Attributes that all series share."""
    details = {
        "ReconCompletion": group.completion.value,
        "ReconNoise": emission.noise.value,
        **emission.details,
        **group.notes,
    }
    if "NominalInterval" in group.notes:  # gated: the time stamp is the delay of the cardiac phase after its trigger
        details["TriggerTime"] = f"{int(acquisition['physiology_time_stamp'][0]) * TICK_S * 1e3:g}"
    meta = provenance_meta(emission.pipeline, emission.parameters_digest, details, emission.provenance)
    echo_times_ms = group.scan.echo_times_ms
    contrast = int(acquisition["idx"]["contrast"])
    if contrast < len(echo_times_ms):
        meta["EchoTime"] = f"{echo_times_ms[contrast]:g}"
    if not group.is_complete:
        n_measured = int((group.counts > 0).sum())
        of = f" of {group.expected_lines}" if group.expected_lines else ""
        meta["Incomplete"] = f"{n_measured}{of} lines"
    return {name: [value] for name, value in meta.items()}


def provenance_meta(
    pipeline: str, digest: str, details: Mapping[str, str], provenance: Mapping[str, str]
) -> dict[str, str]:
    """Attributes that every image made here has: what made it, with which parameters, in which session."""
    return {
        "Keep_image_geometry": "1",
        "ReconSoftware": "echotrain",
        "ReconSoftwareVersion": _product_version(),
        "ReconPipeline": pipeline,
        "ReconConfigDigest": digest,
        "ReconQualification": "RESEARCH",
        "ReconDegraded": "false",
        **details,
        **provenance,
    }


def parameters_digest(pipeline: str, parameters: BaseModel) -> str:
    """SHA-256 of a pipeline's name and parameters."""
    content = json.dumps([pipeline, parameters.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _part_meta(group: Group, emission: Emission, part: Part) -> Meta:
    """Attributes of one part; the magnitude has the plain names, the others say what they are."""
    if part is Part.MAGNITUDE:
        role, suffix, description = "Image", "", "recon"
    else:
        role, suffix, description = "Phase" if part is Part.PHASE else "Image", f"_{part}", f"recon_{part}"
    meta = {
        "DataRole": [role],
        "ImageProcessingHistory": ["ECHOTRAIN", emission.pipeline.upper()],
        "SequenceDescriptionAdditional": [f"echotrain_{emission.pipeline}{suffix}"],
        **_description(group, description),
    }
    comments = list(filter(None, [domain_comment(emission.details)]))
    if part is Part.PHASE:
        comments.append("Phase in radians, relative to the dominant combination of the coils")
    if part is not Part.MAGNITUDE and _assumes_phase(emission):
        comments.append("phase assumed to be as smooth as the symmetric part of k-space")
    if comments:
        meta["ImageComments"] = ["; ".join(comments)]
    return meta


def _assumes_phase(emission: Emission) -> bool:
    """Whether fine phase was lost because it was assumed to be smooth; to POCS as much as to homodyne (measured)."""
    note = emission.details.get("ReconPartialFourier", "")
    return "homodyne" in note or "pocs" in note


def _uncertainty_meta(group: Group, emission: Emission) -> Meta:
    comments = [domain_comment(emission.details), "Standard deviation of the magnitude series, in its units"]
    return {
        "DataRole": ["Quantitative"],
        "ImageProcessingHistory": ["ECHOTRAIN", emission.pipeline.upper(), "STANDARD_DEVIATION"],
        "SequenceDescriptionAdditional": [f"echotrain_{emission.pipeline}_std"],
        "ImageComments": ["; ".join(filter(None, comments))],
        "ReconUncertaintyKind": [emission.kind],
        "ReconUncertaintyUnit": ["magnitude"],
        "ReconUncertaintyCalibration": [emission.calibration],
        **_description(group, "echotrain_std"),
    }


def _extra_meta(group: Group, emission: Emission, extra: Extra) -> Meta:
    """Names of an extra series; what its pixels hold is said by `extra_images`, behind what concerns the result."""
    comment = domain_comment(emission.details)
    return {
        **({"ImageComments": [comment]} if comment else {}),
        "ImageProcessingHistory": ["ECHOTRAIN", emission.pipeline.upper(), extra.name.upper()],
        "SequenceDescriptionAdditional": [f"echotrain_{emission.pipeline}_{extra.name}"],
        **_description(group, f"echotrain_{extra.name}"),
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
