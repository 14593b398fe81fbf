"""The scan header (MRD XML) as frozen values, with only what reconstruction needs; patient data are not kept.

Reference: ISMRMRD 1.x `ismrmrd.xsd`. Absent optional elements get documented defaults; impossible values are refused by
field. Sections on the subject and the study are skipped while parsing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from xml.parsers import expat

from pipelines.errors import HeaderError
from pipelines.readout_gradient import GRADIENT_TIMES, Trapezoid
from pipelines.scan_relations import CoilLabel, Dependency, coil_labels, dependencies, opaque_id

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
        readout_gradient: of EPI, where the header describes it.
    """

    encoded: Space
    recon: Space
    trajectory: TrajectoryType = TrajectoryType.CARTESIAN
    limits: dict[str, Limit] = field(default_factory=dict[str, Limit])
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: CalibrationMode = CalibrationMode.OTHER
    readout_gradient: Trapezoid | None = None


@dataclass(frozen=True, slots=True)
class ScanHeader:
    """What the scan header says.

    Attributes:
        encodings: at least one.
        receiver_channels: from acquisitionSystemInformation; None where absent.
        noise_bandwidth: relativeReceiverNoiseBandwidth.
        protocol_name: for series descriptions; bounded, control characters removed. Never in logs.
        measurement_id: as `opaque_id` gives it; never in logs, never a path.
        echo_times_ms: sequenceParameters TE, one a contrast; may be empty.
        bits_stored: userParameterLong BitsStored, the scanner's pixel depth; None where absent.
        dependencies: scans that this one relies on.
        coil_labels: in the order of the channels; may be fewer than these, or none.
    """

    encodings: tuple[Encoding, ...]
    receiver_channels: int | None = None
    noise_bandwidth: float = DEFAULT_NOISE_BANDWIDTH
    protocol_name: str = ""
    measurement_id: str = ""
    echo_times_ms: tuple[float, ...] = ()
    bits_stored: int | None = None
    dependencies: tuple[Dependency, ...] = ()
    coil_labels: tuple[CoilLabel, ...] = ()


NAMESPACE: Final = "http://www.ismrm.org/ISMRMRD"
MAX_DEPTH: Final = 32
MAX_MATRIX: Final = 16_384
MAX_FIELD_OF_VIEW_MM: Final = 100_000.0
MAX_ENCODINGS: Final = 64
MAX_ECHO_TIMES: Final = 4096
MAX_TEXT: Final = 256

_SECTIONS: Final = frozenset(
    {"encoding", "acquisitionSystemInformation", "measurementInformation", "sequenceParameters", "userParameters"}
)
_LIMITS: Final = {
    "kspace_encoding_step_1": "kspace_encode_step_1",
    "kspace_encoding_step_2": "kspace_encode_step_2",
    **{name: name for name in ("average", "slice", "contrast", "phase", "repetition", "set", "segment")},
}
"""Element of encodingLimits -> counter."""
# `ascii` is what ismrmrd-python's own serializer declares (`toXML()` of xsdata without an argument)
_ENCODINGS_OF_TEXT: Final = frozenset({"utf-8", "us-ascii", "ascii", "iso-8859-1"})


def parse_scan_header(xml: bytes, *, max_bytes: int = 1 << 20) -> ScanHeader:
    """Parse the XML of a HEADER message.

    Defaults: a counter without limits is absent from `Encoding.limits`; so is a phase-encoding step with limits 0..0 on
    a matrix that has more lines (writers that leave the element empty mean "not given"). A limit without `center` gets
    the middle of its range, `(minimum + maximum + 1) // 2`. Limits may go beyond the matrix, as real headers do. The
    centre of a counter that places nothing (slice, repetition, ...) is moved into its range; that of a phase-encoding
    step has to lie inside. A matrix without one of x, y, z has 1 there, as the schema says.

    Args:
        xml: the document; trailing NULs are ignored.
        max_bytes: longest document that is looked at.

    Raises:
        HeaderError: not XML, a DOCTYPE or entity, too deep or long, an element missing, or an impossible value; names
            the field.
    """
    root = _parse_tree(xml, max_bytes)
    encodings = root.all("encoding")
    if not encodings:
        raise HeaderError("scan header: expected at least one element encoding, found none")
    if len(encodings) > MAX_ENCODINGS:
        raise HeaderError(f"scan header: expected at most {MAX_ENCODINGS} elements encoding, found {len(encodings)}")
    system = root.optional("acquisitionSystemInformation")
    measurement = root.optional("measurementInformation")
    echo_times = root.optional("sequenceParameters").all("TE")
    if len(echo_times) > MAX_ECHO_TIMES:
        raise HeaderError(f"scan header: expected at most {MAX_ECHO_TIMES} elements TE, found {len(echo_times)}")
    bandwidth = system.optional("relativeReceiverNoiseBandwidth")
    channels = system.optional("receiverChannels")
    return ScanHeader(
        encodings=tuple(_encoding(encoding) for encoding in encodings),
        receiver_channels=channels.integer(1, 65_535) if channels.is_present else None,
        noise_bandwidth=bandwidth.number(1e-6, 100.0) if bandwidth.is_present else DEFAULT_NOISE_BANDWIDTH,
        protocol_name=measurement.optional("protocolName").printable(),
        measurement_id=opaque_id(measurement.optional("measurementID").text),
        echo_times_ms=tuple(echo_time.number(0.0, 1e6) for echo_time in echo_times),
        bits_stored=_bits_stored(root.optional("userParameters")),
        dependencies=dependencies(measurement),
        coil_labels=coil_labels(system),
    )


def _encoding(element: _Element) -> Encoding:
    encoded = _space(element.required("encodedSpace"))
    parallel = element.optional("parallelImaging")
    mode = parallel.optional("calibrationMode")
    factor = parallel.optional("accelerationFactor")
    steps = (factor.optional("kspace_encoding_step_1"), factor.optional("kspace_encoding_step_2"))
    return Encoding(
        encoded=encoded,
        recon=_space(element.required("reconSpace")),
        trajectory=TrajectoryType(element.required("trajectory").choice([kind.value for kind in TrajectoryType])),
        limits=_limits(element.optional("encodingLimits"), encoded.matrix),
        acceleration=(
            steps[0].integer(1, encoded.matrix[1]) if steps[0].is_present else 1,
            steps[1].integer(1, encoded.matrix[2]) if steps[1].is_present else 1,
        ),
        calibration_mode=CalibrationMode(mode.choice([kind.value for kind in CalibrationMode]))
        if mode.is_present
        else CalibrationMode.OTHER,
        readout_gradient=_readout_gradient(element.all("trajectoryDescription")),
    )


def _readout_gradient(descriptions: list[_Element]) -> Trapezoid | None:
    """What of EPI's parameters can be read; their names are convention only, so that nothing here is an error."""
    found: dict[str, float] = {}
    for parameter in [p for d in descriptions for p in d.all("userParameterLong") + d.all("userParameterDouble")]:
        names, values = parameter.all("name"), parameter.all("value")
        if len(names) == len(values) == 1 and names[0].text in GRADIENT_TIMES:
            with suppress(HeaderError):
                found[GRADIENT_TIMES[names[0].text]] = values[0].number(0.0, 1e6)
    return Trapezoid(**found) if found else None


def _space(element: _Element) -> Space:
    matrix, field_of_view = element.required("matrixSize"), element.required("fieldOfView_mm")
    sizes = [matrix.optional(axis) for axis in "xyz"]
    nx, ny, nz = (size.integer(1, MAX_MATRIX) if size.is_present else 1 for size in sizes)
    x, y, z = (field_of_view.required(axis).number(1e-3, MAX_FIELD_OF_VIEW_MM) for axis in "xyz")
    return Space((nx, ny, nz), (x, y, z))


def _limits(element: _Element, matrix: tuple[int, int, int]) -> dict[str, Limit]:
    limits: dict[str, Limit] = {}
    lines = {"kspace_encode_step_1": matrix[1], "kspace_encode_step_2": matrix[2]}
    for name, counter in _LIMITS.items():
        limit = element.optional(name)
        if not limit.is_present:
            continue
        least, middle = limit.optional("minimum"), limit.optional("center")
        minimum = least.integer(0, 65_535) if least.is_present else 0
        maximum = limit.required("maximum").integer(0, 65_535)
        if maximum < minimum:
            raise HeaderError(f"scan header, {limit.path}: maximum {maximum} is less than minimum {minimum}")
        center = middle.integer(0, 65_535) if middle.is_present else (minimum + maximum + 1) // 2
        if counter in lines:
            if minimum == maximum == 0 and lines[counter] > 1:
                continue
            if not minimum <= center <= maximum:
                raise HeaderError(f"scan header, {limit.path}: center {center} lies outside {minimum} to {maximum}")
        limits[counter] = Limit(minimum, maximum, min(max(center, minimum), maximum))
    return limits


def _bits_stored(parameters: _Element) -> int | None:
    for parameter in parameters.all("userParameterLong"):
        if parameter.optional("name").text == "BitsStored":
            return parameter.required("value").integer(1, 64)
    return None


class _Element:
    """An element of the sections that are kept; an absent one has no children and `is_present` False."""

    __slots__ = ("_children", "_parts", "is_present", "path")

    def __init__(self, path: str, *, is_present: bool = True) -> None:
        self.path = path
        self.is_present = is_present
        self._parts: list[str] = []
        self._children: dict[str, list[_Element]] = {}

    @property
    def text(self) -> str:
        return "".join(self._parts).strip()

    def add_text(self, part: str) -> None:
        self._parts.append(part)

    def append(self, name: str) -> _Element:
        siblings = self._children.setdefault(name, [])
        ordinal = f"[{len(siblings)}]" if name == "encoding" else ""
        siblings.append(_Element(f"{self.path}/{name}{ordinal}" if self.path else f"{name}{ordinal}"))
        return siblings[-1]

    def all(self, name: str) -> list[_Element]:
        return self._children.get(name, [])

    def optional(self, name: str) -> _Element:
        found = self._children.get(name, [])
        path = f"{self.path}/{name}" if self.path else name
        if len(found) > 1:
            raise HeaderError(f"scan header: expected {path} once, found it {len(found)} times")
        return found[0] if found else _Element(path, is_present=False)

    def required(self, name: str) -> _Element:
        found = self.optional(name)
        if not found.is_present:
            raise HeaderError(f"scan header: {found.path} is missing")
        return found

    def integer(self, minimum: int, maximum: int) -> int:
        text = self.text
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text) is None or not minimum <= int(text) <= maximum:
            raise HeaderError(
                f"scan header, {self.path}: expected a whole number {minimum} to {maximum}, found {_shown_value(text)}"
            )
        return int(text)

    def number(self, minimum: float, maximum: float) -> float:
        text = self.text
        # float() alone would take nan, inf, underscores and digits of other scripts
        value = (
            float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?", text) else math.nan
        )
        if not minimum <= value <= maximum:
            raise HeaderError(
                f"scan header, {self.path}: expected a number {minimum:g} to {maximum:g}, found {_shown_value(text)}"
            )
        return value

    def choice(self, words: list[str]) -> str:
        text = self.text
        if text not in words:
            raise HeaderError(
                f"scan header, {self.path}: expected one of {', '.join(words)}, found {_shown_value(text)}"
            )
        return text

    def printable(self) -> str:
        return "".join(
            letter for letter in self.text[: 16 * MAX_TEXT] if not unicodedata.category(letter).startswith("C")
        )[:MAX_TEXT]


def _shown(text: str) -> str:
    return f"'{text[:32].encode('unicode_escape').decode('ascii')}'"


def _shown_value(text: str) -> str:
    # Messages go into logs: a short number helps, and any other content could be a name in the wrong place.
    if not text or re.fullmatch(r"[+-]?([0-9.]{1,12}([eE][+-]?[0-9]{1,4})?|(?i:nan|inf))", text):
        return f"'{text}'"
    return f"another text ({len(text)} characters)"


class _TreeBuilder:
    """Builds the kept sections from expat's events; holds no recursion, so depth costs nothing before it is refused."""

    def __init__(self) -> None:
        self.root = _Element("")
        self._stack: list[_Element | None] = []  # None: inside something that is not kept
        self._namespace = ""

    def start(self, name: str, _attributes: object) -> None:
        namespace, _, local = name.rpartition(" ")
        if not self._stack:
            if local != "ismrmrdHeader" or namespace not in {"", NAMESPACE}:
                raise HeaderError(
                    f"scan header: expected the root ismrmrdHeader of namespace {NAMESPACE}, "
                    f"found {_shown(local)} of {_shown(namespace) if namespace else 'no namespace'}"
                )
            self._namespace = namespace
            self._stack.append(self.root)
            return
        if len(self._stack) >= MAX_DEPTH:
            raise HeaderError(f"scan header: elements are nested more than {MAX_DEPTH} deep")
        parent = self._stack[-1]
        is_kept = (
            parent is not None and namespace == self._namespace and (parent is not self.root or local in _SECTIONS)
        )
        self._stack.append(parent.append(local) if is_kept and parent is not None else None)

    def end(self, _name: str) -> None:
        self._stack.pop()

    def text(self, data: str) -> None:
        element = self._stack[-1] if self._stack else None
        if element is not None:
            element.add_text(data)

    @staticmethod
    def declaration(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS_OF_TEXT:
            raise HeaderError(f"scan header: expected UTF-8, found text declared as {_shown(encoding)}")

    @staticmethod
    def refuse(*_arguments: object) -> None:
        raise HeaderError("scan header: a DOCTYPE or ENTITY declaration is not accepted")


def _parse_tree(xml: bytes, max_bytes: int) -> _Element:
    if len(xml) > max_bytes:
        raise HeaderError(f"scan header: {len(xml)} bytes, the limit is {max_bytes}")
    document = bytes(xml).rstrip(b"\0")
    if b"\0" in document:  # UTF-16 and UTF-32 would hide a declaration from the search below
        raise HeaderError("scan header: expected UTF-8, found a NUL byte")
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", document, re.IGNORECASE):
        _TreeBuilder.refuse()
    builder = _TreeBuilder()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.XmlDeclHandler = builder.declaration
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        reason = expat.errors.messages.get(error.code, "not well-formed")
        raise HeaderError(f"scan header: not XML: {reason} at line {error.lineno}, column {error.offset}") from error
    return builder.root
