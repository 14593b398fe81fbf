"""The scan header (MRD XML) of a simulated scan; only formats what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from pipelines.scan_header import CalibrationMode, Limit, Space, TrajectoryType

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"


@dataclass(frozen=True, slots=True)
class HeaderContent:
    """What the XML says; see `pipelines.scan_header.ScanHeader` for the meaning of the fields that recur there.

    Attributes:
        trajectory: how k-space is traversed; anything but Cartesian has its trajectory with each readout.
        acceleration: along y and z; with `calibration_mode` None there is no parallelImaging element at all.
        h1_frequency_hz: proton frequency, required by the schema.
        user_longs: userParameterLong by name.
    """

    encoded: Space
    recon: Space
    limits: Mapping[str, Limit]
    receiver_channels: int
    noise_bandwidth: float
    protocol_name: str
    echo_times_ms: tuple[float, ...]
    repetition_time_ms: float
    flip_angle_deg: float
    trajectory: TrajectoryType = TrajectoryType.CARTESIAN
    acceleration: tuple[int, int] = (1, 1)
    calibration_mode: CalibrationMode | None = None
    h1_frequency_hz: int = 123_250_000
    field_strength_t: float = 2.8936
    measurement_id: str = "simulated_1_1_1"
    user_longs: Mapping[str, int] = field(default_factory=dict[str, int])


def write_scan_header(content: HeaderContent) -> bytes:
    """The XML, valid against `ismrmrd.xsd` of ISMRMRD 1.x, UTF-8."""
    root = ElementTree.Element("ismrmrdHeader", {"xmlns": _NAMESPACE})
    _measurement(root, content)
    _encoding(ElementTree.SubElement(root, "encoding"), content)
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
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + bytes(ElementTree.tostring(root, encoding="utf-8"))


def _measurement(root: ElementTree.Element, content: HeaderContent) -> None:
    measurement = ElementTree.SubElement(root, "measurementInformation")
    _text(measurement, "measurementID", content.measurement_id)
    _text(measurement, "patientPosition", "HFS")
    _text(measurement, "protocolName", content.protocol_name)
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


def _encoding(encoding: ElementTree.Element, content: HeaderContent) -> None:
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
    if content.calibration_mode is not None:
        parallel = ElementTree.SubElement(encoding, "parallelImaging")
        factor = ElementTree.SubElement(parallel, "accelerationFactor")
        _text(factor, "kspace_encoding_step_1", str(content.acceleration[0]))
        _text(factor, "kspace_encoding_step_2", str(content.acceleration[1]))
        _text(parallel, "calibrationMode", content.calibration_mode.value)


def _text(parent: ElementTree.Element, name: str, value: str) -> None:
    ElementTree.SubElement(parent, name).text = value
