"""The scan header in both versions; the oracle for version 1 is the schema's classes in ismrmrd-python."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import types
import typing
from typing import Any

import ismrmrd
import mrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xsdata.models.datatype import XmlDate, XmlTime

from pipelines.errors import HeaderError
from pipelines.scan_header import parse_scan_header
from server.errors import ConversionError
from server.losses import Losses
from server.mrd2.header import to_version_1, to_version_2
from tests.server.wire.examples import xml_text

# Carriage returns: ismrmrd-python writes them as they are, and every parser then reads line feeds.
TEXTS = xml_text.filter(lambda text: "\r" not in text)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 65535),
    float: st.floats(width=32, allow_nan=False),
    str: TEXTS,
    bytes: st.binary(max_size=12),
    XmlDate: st.dates().map(XmlDate.from_date),
    XmlTime: st.integers(0, 86400 * 10**9 - 1).map(
        lambda t: XmlTime(t // 3600 // 10**9, t // 60 // 10**9 % 60, t // 10**9 % 60, t % 10**9)
    ),
}


def of(kind: Any, *, required: bool) -> st.SearchStrategy[Any]:
    """Anything that the schema allows for a type of its classes."""
    arguments = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is list:
        return st.lists(of(arguments[0], required=True), min_size=int(required), max_size=2)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        value = of(arguments[0], required=True)
        return value if required else st.none() | value
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    if dataclasses.is_dataclass(kind):
        return records(kind)
    return VALUES[kind]


@st.composite
def records(draw: st.DrawFn, kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        data = field.metadata
        required = bool(data.get("required")) or bool(data.get("min_occurs"))
        if data.get("pattern") == "[MFO]":
            values[field.name] = draw(st.none() | st.sampled_from("MFO"))
        else:
            values[field.name] = draw(of(hints[field.name], required=required))
    return kind(**values)


def plain(value: Any) -> Any:
    """A header as nested values; floats as the 32 bits that the schema gives them."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return np.float32(value).tobytes() if isinstance(value, float) else value


def written(header: Any) -> bytes:
    """XML by ismrmrd-python, which declares ASCII and leaves it to the caller to make it true."""
    return ismrmrd.xsd.ToXML(header).encode("ascii", "xmlcharrefreplace")


def minimal(inner: str = "", encoding: str = "") -> bytes:
    space = "<matrixSize><x>8</x><y>6</y><z>1</z></matrixSize><fieldOfView_mm><x>9</x><y>9</y><z>9</z></fieldOfView_mm>"
    limits = "<encodingLimits/>" if "<encodingLimits>" not in encoding else ""
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>1</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace>{limits}{encoding}"
        f"<trajectory>cartesian</trajectory></encoding>{inner}</ismrmrdHeader>"
    ).encode()


@settings(max_examples=60, deadline=None)
@given(records(ismrmrd.xsd.ismrmrdHeader))
def test_every_element_of_version_1_comes_back_from_version_2(header: Any) -> None:
    losses = Losses()
    xml = written(header)

    again = to_version_1(to_version_2(xml, losses), losses)

    assert plain(ismrmrd.xsd.CreateFromDocument(again)) == plain(ismrmrd.xsd.CreateFromDocument(xml))
    assert list(losses) == []


@settings(max_examples=30, deadline=None)
@given(records(ismrmrd.xsd.ismrmrdHeader))
def test_version_2_comes_back_from_version_1(header: Any) -> None:
    losses = Losses()
    first = to_version_2(written(header), losses)

    assert to_version_2(to_version_1(first, losses), losses) == first


def test_values_stand_where_the_names_say() -> None:
    xml = minimal(
        "<sequenceParameters><TR>5.5</TR><TE>2</TE><TE>4</TE><flipAngle_deg>30</flipAngle_deg></sequenceParameters>"
        "<userParameters><userParameterDouble><name>d</name><value>0.1</value></userParameterDouble></userParameters>",
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        "<calibrationMode>separate</calibrationMode></parallelImaging>",
    )
    header = to_version_2(xml, Losses())

    assert header.sequence_parameters is not None
    assert header.sequence_parameters.t_e == [2.0, 4.0]
    assert header.user_parameters is not None
    assert header.user_parameters.user_parameter_double[0].value == 0.1
    encoding = header.encoding[0]
    assert (encoding.encoded_space.matrix_size.x, encoding.encoded_space.matrix_size.y) == (8, 6)
    assert encoding.parallel_imaging is not None
    assert encoding.parallel_imaging.acceleration_factor.kspace_encoding_step_1 == 3
    assert encoding.parallel_imaging.calibration_mode == mrd.CalibrationMode.SEPARATE


def test_what_version_2_has_no_place_for_is_named_and_counted_without_its_value() -> None:
    losses = Losses()
    to_version_2(minimal("<vendor>Doe^Jane</vendor><vendor>x</vendor>", "<secret><x>1</x></secret>"), losses)

    assert sorted(losses) == [
        "header: MRD 2 has no place for the element encoding/secret",
        "header: MRD 2 has no place for the element vendor (2 times)",
    ]
    assert losses.total == 3


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ("<studyInformation><studyDate>2026-01-02+01:00</studyDate></studyInformation>", "its time zone"),
        ("<studyInformation><studyTime>10:00:00.1234567891</studyTime></studyInformation>", "below a nanosecond"),
        ("<studyInformation><studyDate>20260102</studyDate></studyInformation>", "studyDate is not a date"),
        ("<subjectInformation><patientGender>X</patientGender></subjectInformation>", "patientGender is not one of"),
        ("<studyInformation><studyID>a</studyID><studyID>b</studyID></studyInformation>", "more than once"),
        ("<measurementInformation/>", "patientPosition is missing; MRD 2 needs it and got H_FP"),
    ],
)
def test_each_loss_is_a_sentence(inner: str, said: str) -> None:
    losses = Losses()
    to_version_2(minimal(inner), losses)

    assert any(said in sentence for sentence in losses)
    assert not any("2026" in sentence for sentence in losses)


def test_a_missing_centre_is_read_alike_from_both_versions() -> None:
    limits = (
        "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>5</maximum></kspace_encoding_step_1>"
        "</encodingLimits>"
    )
    xml, losses = minimal(encoding=limits), Losses()

    assert parse_scan_header(to_version_1(to_version_2(xml, losses), losses)) == parse_scan_header(xml)
    assert any("center is missing" in sentence for sentence in losses)


@pytest.mark.parametrize(
    "xml",
    [
        b"Dummy XML header",
        b"<other/>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><ismrmrdHeader/>",
        minimal().replace(b"<x>8</x>", b"<x>eight</x>", 1),
        minimal().replace(b"<x>8</x>", b"<x>70000</x>", 1),
        minimal().replace(b"cartesian", b"zigzag"),
    ],
)
def test_headers_that_cannot_be_read_are_refused(xml: bytes) -> None:
    with pytest.raises(HeaderError, match="scan header"):
        to_version_2(xml, Losses())


def test_values_that_version_1_needs_and_cannot_hold_are_refused() -> None:
    header = to_version_2(minimal(), Losses())
    header.encoding[0].encoded_space.matrix_size.x = 70000

    with pytest.raises(ConversionError, match="encoding/encodedSpace/matrixSize/x: MRD 1 holds only a whole number"):
        to_version_1(header, Losses())


def test_values_that_version_1_can_do_without_are_noted() -> None:
    header, losses = to_version_2(minimal(), Losses()), Losses()
    header.encoding[0].parallel_imaging = mrd.ParallelImagingType(calibration_mode=mrd.CalibrationMode.NOACCELERATION)
    header.study_information = mrd.StudyInformationType(study_description="a\0b", study_date=datetime.date(2026, 1, 2))

    again = ismrmrd.xsd.CreateFromDocument(to_version_1(header, losses))

    assert again.encoding[0].parallelImaging.calibrationMode is None
    assert str(again.studyInformation.studyDate) == "2026-01-02"
    assert [sentence.split(": ")[1] for sentence in losses] == [
        "studyInformation/studyDescription",
        "encoding/parallelImaging/calibrationMode",
    ]
