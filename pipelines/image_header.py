"""The header of an image: geometry and counters of the readout at the centre of k-space, and the image's number.

Numpy only; knows no pixels and no meta attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import IMAGE_HEADER
from pipelines.scan_header import Encoding

LAST_INDEX: Final = 65535
_INDEX_COUNTERS: Final = ("slice", "contrast", "phase", "set", "repetition")
_COPIED: Final = (
    "measurement_uid",
    "position",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
    "user_int",
    "user_float",
)
_SEQUENCE_FLAGS: Final = sum(1 << (flag - 1) for flag in range(1, 19)) | 1 << 24
"""FIRST_IN_* and LAST_IN_* of every counter, and LAST_IN_MEASUREMENT: the flags that make sense on an image."""


def images_before(encodings: Sequence[Encoding]) -> int:
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
    if number >= LAST_INDEX:
        warnings.append("The scan has more than 65535 images; their numbers start again at 1.")
    return number % LAST_INDEX + 1


def image_header(
    acquisition: NDArray[np.void], encoding: Encoding, shape: tuple[int, ...], warnings: list[str]
) -> NDArray[np.void]:
    """Image header from the header of the readout at the centre of k-space."""
    header: NDArray[np.void] = np.zeros((), IMAGE_HEADER)
    header["version"] = 1
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
