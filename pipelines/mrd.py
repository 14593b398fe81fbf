"""The vocabulary of MRD version 1: header layouts, flags, and the values that travel.

Pure data on numpy: no parsing state, no I/O, no torch. Layouts are those of ISMRMRD 1.x `ismrmrd.h` and `waveform.h`
(https://ismrmrd.readthedocs.io), little-endian, 2-byte packed except the waveform header.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray


class AcquisitionFlag(IntEnum):
    """Flags by number; flag k is bit k-1 of the header's `flags` (MRD specification, "Acquisition flags")."""

    FIRST_IN_ENCODE_STEP1 = 1
    LAST_IN_ENCODE_STEP1 = 2
    FIRST_IN_ENCODE_STEP2 = 3
    LAST_IN_ENCODE_STEP2 = 4
    FIRST_IN_AVERAGE = 5
    LAST_IN_AVERAGE = 6
    FIRST_IN_SLICE = 7
    LAST_IN_SLICE = 8
    FIRST_IN_CONTRAST = 9
    LAST_IN_CONTRAST = 10
    FIRST_IN_PHASE = 11
    LAST_IN_PHASE = 12
    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    FIRST_IN_SET = 15
    LAST_IN_SET = 16
    FIRST_IN_SEGMENT = 17
    LAST_IN_SEGMENT = 18
    IS_NOISE_MEASUREMENT = 19
    IS_PARALLEL_CALIBRATION = 20
    IS_PARALLEL_CALIBRATION_AND_IMAGING = 21
    IS_REVERSE = 22
    IS_NAVIGATION_DATA = 23
    IS_PHASECORR_DATA = 24
    LAST_IN_MEASUREMENT = 25
    IS_HPFEEDBACK_DATA = 26
    IS_DUMMYSCAN_DATA = 27
    IS_RTFEEDBACK_DATA = 28
    IS_SURFACECOILCORRECTIONSCAN_DATA = 29
    IS_PHASE_STABILIZATION_REFERENCE = 30
    IS_PHASE_STABILIZATION = 31
    COMPRESSION1 = 53
    COMPRESSION2 = 54
    COMPRESSION3 = 55
    COMPRESSION4 = 56
    USER1 = 57
    USER2 = 58
    USER3 = 59
    USER4 = 60
    USER5 = 61
    USER6 = 62
    USER7 = 63
    USER8 = 64

    @property
    def mask(self) -> int:
        """The bit of this flag in the 64-bit field."""
        return 1 << (self.value - 1)


NEVER_IMAGING: Final = (
    AcquisitionFlag.IS_NAVIGATION_DATA,
    AcquisitionFlag.IS_PHASECORR_DATA,
    AcquisitionFlag.IS_HPFEEDBACK_DATA,
    AcquisitionFlag.IS_DUMMYSCAN_DATA,
    AcquisitionFlag.IS_RTFEEDBACK_DATA,
    AcquisitionFlag.IS_SURFACECOILCORRECTIONSCAN_DATA,
    AcquisitionFlag.IS_PHASE_STABILIZATION_REFERENCE,
    AcquisitionFlag.IS_PHASE_STABILIZATION,
)
"""Flags of readouts that are not meant for an image, whatever else they carry; noise and calibration have their own."""

COUNTERS: Final = (
    "kspace_encode_step_1", "kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set",
    "segment",
)  # fmt: skip
"""Encoding counters in the order of the wire."""

ENCODING_COUNTERS: Final = np.dtype([*((name, "<u2") for name in COUNTERS), ("user", "<u2", (8,))])

ACQUISITION_HEADER: Final = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", ENCODING_COUNTERS),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
"""340 bytes, packed; `idx` holds the encoding counters."""

IMAGE_HEADER: Final = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", (3,)),
        ("field_of_view", "<f4", (3,)),
        ("channels", "<u2"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
        ("attribute_string_len", "<u4"),
    ]
)
"""198 bytes, packed; `matrix_size` and `field_of_view` in the order x, y, z."""

WAVEFORM_HEADER: Final = np.dtype(
    {
        "names": ["version", "flags", "measurement_uid", "scan_counter", "time_stamp", "number_of_samples",
        "channels", "sample_time_us",
                  "waveform_id"],
        "formats": ["<u2", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<f4", "<u2"],
        "offsets": [0, 8, 16, 20, 24, 28, 30, 32, 36],
        "itemsize": 40,
    }
)  # fmt: skip
"""40 bytes with natural alignment, unlike the other two."""

if (ACQUISITION_HEADER.itemsize, IMAGE_HEADER.itemsize, WAVEFORM_HEADER.itemsize) != (340, 198, 40):
    raise RuntimeError("MRD header layouts have the wrong size")


class ImageDataType(IntEnum):
    """Pixel types of an image; only USHORT, FLOAT and CXFLOAT are read correctly by every peer."""

    USHORT = 1
    SHORT = 2
    UINT = 3
    INT = 4
    FLOAT = 5
    DOUBLE = 6
    CXFLOAT = 7
    CXDOUBLE = 8

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy type of one pixel."""
        return np.dtype(("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16")[self.value - 1])


class ImageType(IntEnum):
    """What the pixels mean."""

    MAGNITUDE = 1
    PHASE = 2
    REAL = 3
    IMAG = 4
    COMPLEX = 5
    RGB = 6


@dataclass(frozen=True, slots=True)
class Acquisitions:
    """A run of readouts of one shape, viewed where they lie; whoever keeps them must copy.

    Attributes:
        headers: `(n,)` of `ACQUISITION_HEADER`.
        samples: `(n, coils, samples * 8)` bytes: little-endian complex64, viewed as bytes because the wire does not
            align them.
        trajectory: `(n, samples * dimensions * 4)` bytes of float32, dimension fastest; None without a trajectory.
    """

    headers: NDArray[np.void]
    samples: NDArray[np.uint8]
    trajectory: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.headers)

    @property
    def n_coils(self) -> int:
        """Active channels of each readout."""
        return int(self.samples.shape[1])

    @property
    def n_samples(self) -> int:
        """Complex samples of each readout and coil."""
        return int(self.samples.shape[2]) // 8

    def complex_samples(self) -> NDArray[np.complex64]:
        """The samples as an aligned copy, `(n, coils, samples)` complex64."""
        return np.ascontiguousarray(self.samples).view(np.complex64)

    @classmethod
    def from_arrays(
        cls, headers: NDArray[np.void], samples: NDArray[np.complex64], trajectory: NDArray[np.float32] | None = None
    ) -> Acquisitions:
        """Readouts from arrays: `samples` is `(n, coils, samples)`, `trajectory` `(n, samples, dimensions)`."""
        n, coils, n_samples = samples.shape
        as_bytes = np.ascontiguousarray(samples, np.complex64).view(np.uint8).reshape(n, coils, n_samples * 8)
        if trajectory is None:
            return cls(headers, as_bytes)
        return cls(headers, as_bytes, np.ascontiguousarray(trajectory, np.float32).view(np.uint8).reshape(n, -1))


@dataclass(frozen=True, slots=True)
class Waveform:
    """One physiology waveform: header scalar of `WAVEFORM_HEADER` and `(channels, samples)` uint32."""

    header: NDArray[np.void]
    samples: NDArray[np.uint32]


TICK_S: Final = 2.5e-3
"""Unit of MRD time stamps, as Siemens writes and Gadgetron and FIRE read them: ticks since midnight or a trigger."""

_TICKS_A_DAY: Final = round(86_400 / TICK_S)


def seconds_of(stamps: NDArray[np.uint32], reference: int) -> NDArray[np.float64]:
    """Time stamps in seconds, whole microseconds, counted on over midnight.

    Args:
        stamps: ticks since midnight, any shape.
        reference: a time stamp of the same scan; stamps more than half a day from it are of the day before or after.
    """
    behind = stamps.astype(np.int64) - reference + _TICKS_A_DAY // 2
    return np.round((reference + behind % _TICKS_A_DAY - _TICKS_A_DAY // 2).astype(np.float64) * TICK_S, 6)


Meta = dict[str, list[str]]
"""Image attributes: each name has one or more values (root `ismrmrdMeta` on the wire)."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image as it travels.

    Attributes:
        header: 0-d array of `IMAGE_HEADER`; `matrix_size`, `channels` and `data_type` agree with the pixels.
        pixels: `(channels, z, y, x)`, C-contiguous.
        meta: attributes.
    """

    header: NDArray[np.void]
    pixels: NDArray[np.generic]
    meta: Meta = field(default_factory=dict[str, list[str]])


def flagged(headers: NDArray[np.void], *flags: AcquisitionFlag) -> NDArray[np.bool_]:
    """Which of the headers carry at least one of the flags, `(n,)` bool."""
    bits = np.uint64(sum(flag.mask for flag in flags))
    return np.asarray((headers["flags"] & bits) != 0)


def flag_names(flags: int) -> list[str]:
    """Names of the flags set in a 64-bit field, in the order of their numbers."""
    return [flag.name for flag in AcquisitionFlag if flags & flag.mask]
