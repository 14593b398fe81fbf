"""The scan header (MRD XML) of a simulated scan; only formats what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree

from pipelines.scan_header import CalibrationMode, Limit, Space, TrajectoryType

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"


@dataclass(frozen=True, slots=True)
class TrajectoryDescription:
    """What trajectoryDescription says of an echo-planar or spiral readout."""

    identifier: str
    longs: Mapping[str, int] = field(default_factory=dict[str, int])
    doubles: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class EncodingContent:
    """One encoding space.

    Attributes:
        limits: by element name (`kspace_encoding_step_1`, `slice`, ...).
        acceleration: along y and z; with `calibration_mode` None there is no parallelImaging element at all.
    """

    encoded: Space
    recon: Space
    limits: Mapping[str, Limit]
    trajectory: TrajectoryType = TrajectoryType.CARTESIAN
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: CalibrationMode | None = None
    description: TrajectoryDescription | None = None


@dataclass(frozen=True, slots=True)
class HeaderContent:
    """What the XML says; see `pipelines.scan_header.ScanHeader` for the meaning of the fields that recur there.

    Attributes:
        encodings: at least one.
        h1_frequency_hz: proton frequency, required by the schema.
        dependencies: measurement id by kind of dependency (`Noise`, `SenMap`).
        user_longs: userParameterLong by name.
        waveforms: waveformType of the waveforms of the stream (`ecg`, `pulse`).
    """

    encodings: tuple[EncodingContent, ...]
    receiver_channels: int
    noise_bandwidth: float
    protocol_name: str
    echo_times_ms: tuple[float, ...]
    repetition_time_ms: float
    flip_angle_deg: float
    h1_frequency_hz: int = 123_250_000
    field_strength_t: float = 2.8936
    measurement_id: str = "simulated_1_1_1"
    dependencies: Mapping[str, str] = field(default_factory=dict[str, str])
    user_longs: Mapping[str, int] = field(default_factory=dict[str, int])
    waveforms: tuple[str, ...] = ()

    def with_limits(self, limits: Mapping[str, Limit], number: int = 0) -> HeaderContent:
        """The same with other limits of some counters of one encoding space."""
        own = self.encodings[number]
        return self.with_encoding(replace(own, limits={**own.limits, **limits}), number)

    def with_encoding(self, encoding: EncodingContent, number: int) -> HeaderContent:
        """The same with one encoding space replaced, or added at the end."""
        return replace(self, encodings=(*self.encodings[:number], encoding, *self.encodings[number + 1 :]))


def write_scan_header(content: HeaderContent) -> bytes:
    """The XML, valid against `ismrmrd.xsd` of ISMRMRD 1.x, UTF-8."""
    root = ElementTree.Element("ismrmrdHeader", {"xmlns": _NAMESPACE})
    _measurement(root, content)
    for encoding in content.encodings:
        _encoding(ElementTree.SubElement(root, "encoding"), encoding)
    sequence = ElementTree.SubElement(root, "sequenceParameters")
    _text(sequence, "TR", f"{content.repetition_time_ms:g}")
    for echo_time_ms in content.echo_times_ms:
        _text(sequence, "TE", f"{echo_time_ms:g}")
    _text(sequence, "flipAngle_deg", f"{content.flip_angle_deg:g}")
    if content.user_longs:
        user = ElementTree.SubElement(root, "userParameters")
        for name, value in content.user_longs.items():
            entry = ElementTree.SubElement(user, "userParameterLong")
            _text(entry, "name", name)
            _text(entry, "value", str(value))
    for kind in content.waveforms:
        waveform = ElementTree.SubElement(root, "waveformInformation")
        _text(waveform, "waveformName", kind.upper())
        _text(waveform, "waveformType", kind)
        ElementTree.SubElement(waveform, "userParameters")  # required by the schema
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + bytes(ElementTree.tostring(root, encoding="utf-8"))


def _measurement(root: ElementTree.Element, content: HeaderContent) -> None:
    measurement = ElementTree.SubElement(root, "measurementInformation")
    _text(measurement, "measurementID", content.measurement_id)
    _text(measurement, "patientPosition", "HFS")
    _text(measurement, "protocolName", content.protocol_name)
    for kind, measurement_id in content.dependencies.items():
        dependency = ElementTree.SubElement(measurement, "measurementDependency")
        _text(dependency, "dependencyType", kind)
        _text(dependency, "measurementID", measurement_id)
    system = ElementTree.SubElement(root, "acquisitionSystemInformation")
    _text(system, "systemVendor", "Echotrain simulation")
    _text(system, "systemModel", "none")
    _text(system, "systemFieldStrength_T", f"{content.field_strength_t:g}")
    _text(system, "relativeReceiverNoiseBandwidth", f"{content.noise_bandwidth:g}")
    _text(system, "receiverChannels", str(content.receiver_channels))
    for coil in range(content.receiver_channels):
        label = ElementTree.SubElement(system, "coilLabel")
        _text(label, "coilNumber", str(coil))
        _text(label, "coilName", f"Birdcage{coil + 1}")
    conditions = ElementTree.SubElement(root, "experimentalConditions")
    _text(conditions, "H1resonanceFrequency_Hz", str(content.h1_frequency_hz))


def _encoding(encoding: ElementTree.Element, content: EncodingContent) -> None:
    for name, space in (("encodedSpace", content.encoded), ("reconSpace", content.recon)):
        element = ElementTree.SubElement(encoding, name)
        matrix = ElementTree.SubElement(element, "matrixSize")
        field_of_view = ElementTree.SubElement(element, "fieldOfView_mm")
        for axis, size, length_mm in zip("xyz", space.matrix, space.field_of_view_mm, strict=True):
            _text(matrix, axis, str(size))
            _text(field_of_view, axis, f"{length_mm:.6f}")
    limits = ElementTree.SubElement(encoding, "encodingLimits")
    for name, limit in content.limits.items():
        element = ElementTree.SubElement(limits, name)
        _text(element, "minimum", str(limit.minimum))
        _text(element, "maximum", str(limit.maximum))
        _text(element, "center", str(limit.center))
    _text(encoding, "trajectory", content.trajectory.value)
    if content.description is not None:
        description = ElementTree.SubElement(encoding, "trajectoryDescription")
        _text(description, "identifier", content.description.identifier)
        numbers = (
            ("userParameterLong", content.description.longs),
            ("userParameterDouble", content.description.doubles),
        )
        for element_name, values in numbers:
            for name, value in values.items():
                entry = ElementTree.SubElement(description, element_name)
                _text(entry, "name", name)
                _text(entry, "value", str(value))
    if content.calibration_mode is not None:
        parallel = ElementTree.SubElement(encoding, "parallelImaging")
        factor = ElementTree.SubElement(parallel, "accelerationFactor")
        _text(factor, "kspace_encoding_step_1", str(content.acceleration[0]))
        _text(factor, "kspace_encoding_step_2", str(content.acceleration[1]))
        _text(parallel, "calibrationMode", content.calibration_mode.value)


def _text(parent: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(parent, name).text = value
