"""The scan header (MRD XML) as frozen values, with only what reconstruction needs; patient data are not kept.

Reference: ISMRMRD 1.x `ismrmrd.xsd`. Absent optional elements get documented defaults; impossible values are refused by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_NOISE_BANDWIDTH = 0.793
"""relativeReceiverNoiseBandwidth where the header has none (ISMRMRD, Gadgetron NoiseAdjust)."""


class TrajectoryType(StrEnum):
    """How k-space is traversed."""

    CARTESIAN = "cartesian"
    EPI = "epi"
    RADIAL = "radial"
    GOLDENANGLE = "goldenangle"
    SPIRAL = "spiral"
    OTHER = "other"


class CalibrationMode(StrEnum):
    """How calibration lines come."""

    EMBEDDED = "embedded"
    INTERLEAVED = "interleaved"
    SEPARATE = "separate"
    EXTERNAL = "external"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Space:
    """A matrix with its field of view, both in the order x, y, z."""

    matrix: tuple[int, int, int]
    field_of_view_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Limit:
    """Range of a counter and the value it has at the centre of k-space."""

    minimum: int
    maximum: int
    center: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoding space.

    Attributes:
        encoded: matrix and field of view as measured, readout oversampling included.
        recon: matrix and field of view of the images wanted.
        limits: by counter name of `pipelines.mrd.COUNTERS`; counters without limits in the header are absent.
        acceleration: along y and z.
    """

    encoded: Space
    recon: Space
    trajectory: TrajectoryType = TrajectoryType.CARTESIAN
    limits: dict[str, Limit] = field(default_factory=dict[str, Limit])
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: CalibrationMode = CalibrationMode.OTHER


@dataclass(frozen=True, slots=True)
class ScanHeader:
    """What the scan header says.

    Attributes:
        encodings: at least one.
        receiver_channels: from acquisitionSystemInformation; None where absent.
        noise_bandwidth: relativeReceiverNoiseBandwidth.
        protocol_name: for series descriptions; bounded, control characters removed. Never in logs.
        measurement_id: opaque; never in logs, never a path.
        echo_times_ms: sequenceParameters TE, one a contrast; may be empty.
        bits_stored: userParameterLong BitsStored, the scanner's pixel depth; None where absent.
    """

    encodings: tuple[Encoding, ...]
    receiver_channels: int | None = None
    noise_bandwidth: float = DEFAULT_NOISE_BANDWIDTH
    protocol_name: str = ""
    measurement_id: str = ""
    echo_times_ms: tuple[float, ...] = ()
    bits_stored: int | None = None


def parse_scan_header(xml: bytes, *, max_bytes: int = 1 << 20) -> ScanHeader:
    """Parse the XML of a HEADER message.

    Raises:
        HeaderError: not XML, a DOCTYPE or entity, too deep or long, an element missing, or an impossible value; names the field.
    """
    raise NotImplementedError
