"""The scan header's parser, against ismrmrd-python's generated schema classes and against hostile documents."""

from __future__ import annotations

from pathlib import Path

import h5py
import ismrmrd.xsd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import HeaderError
from pipelines.readout_gradient import Trapezoid
from pipelines.scan_header import (
    DEFAULT_NOISE_BANDWIDTH,
    CalibrationMode,
    Limit,
    ScanHeader,
    Space,
    TrajectoryType,
    parse_scan_header,
)

SIEMENS = Path("/work/shared/data/kspace/siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5")
LIMITS = {"kspace_encoding_step_1": "kspace_encode_step_1", "kspace_encoding_step_2": "kspace_encode_step_2"} | {
    name: name for name in ("average", "slice", "contrast", "phase", "repetition", "set", "segment")
}


def space(x: object = 64, y: object = 48, z: object = 1, fov: object = "300.0") -> str:
    return (
        f"<matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize>"
        f"<fieldOfView_mm><x>{fov}</x><y>250</y><z>5.5</z></fieldOfView_mm>"
    )


def document(
    *, encoded: str = space(), recon: str = space(), limits: str = "", more: str = "", after: str = ""
) -> bytes:
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>123</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding><encodedSpace>{encoded}</encodedSpace><reconSpace>{recon}</reconSpace>"
        f"<encodingLimits>{limits}</encodingLimits><trajectory>cartesian</trajectory>{more}</encoding>{after}"
        "</ismrmrdHeader>"
    ).encode()


def limit(name: str, low: object, high: object, center: object) -> str:
    return f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{center}</center></{name}>"


def agrees_with_schema_classes(parsed: ScanHeader, xml: bytes) -> None:
    """Every value against those of ismrmrd-python."""
    oracle = ismrmrd.xsd.CreateFromDocument(xml)
    assert len(parsed.encodings) == len(oracle.encoding)
    for ours, theirs in zip(parsed.encodings, oracle.encoding, strict=True):
        for mine, other in ((ours.encoded, theirs.encodedSpace), (ours.recon, theirs.reconSpace)):
            matrix, fov = other.matrixSize, other.fieldOfView_mm
            assert mine == Space((matrix.x, matrix.y, matrix.z), (fov.x, fov.y, fov.z))
        assert ours.trajectory.value == theirs.trajectory.value
        for element, counter in LIMITS.items():
            expected = getattr(theirs.encodingLimits, element)
            if expected is None:
                assert counter not in ours.limits
            elif counter in ours.limits:
                assert ours.limits[counter] == Limit(expected.minimum, expected.maximum, expected.center)
            else:  # documented: 0..0 for a phase-encoding step of a larger matrix means "not given"
                assert expected.maximum == 0
        parallel = theirs.parallelImaging
        factors = parallel.accelerationFactor if parallel else None
        expected_factors = (factors.kspace_encoding_step_1, factors.kspace_encoding_step_2) if factors else (1, 1)
        assert ours.acceleration == expected_factors
        mode = parallel.calibrationMode if parallel else None
        assert ours.calibration_mode.value == (mode.value if mode else "other")
    system, measurement = oracle.acquisitionSystemInformation, oracle.measurementInformation
    assert parsed.receiver_channels == (system.receiverChannels if system else None)
    bandwidth = system.relativeReceiverNoiseBandwidth if system else None
    assert parsed.noise_bandwidth == (DEFAULT_NOISE_BANDWIDTH if bandwidth is None else bandwidth)
    assert parsed.protocol_name == ((measurement.protocolName if measurement else None) or "")
    assert parsed.measurement_id == ((measurement.measurementID if measurement else None) or "")
    assert [(each.kind, each.measurement_id) for each in parsed.dependencies] == [
        (each.dependencyType.lower(), each.measurementID)
        for each in (measurement.measurementDependency if measurement else [])
    ]
    assert [(each.number, each.name) for each in parsed.coil_labels] == [
        (each.coilNumber, each.coilName) for each in (system.coilLabel if system else [])
    ]
    assert parsed.echo_times_ms == tuple(oracle.sequenceParameters.TE if oracle.sequenceParameters else ())


@pytest.mark.localdata
@pytest.mark.skipif(not SIEMENS.exists(), reason="the Siemens file without a stated licence is not on this machine")
def test_header_of_a_real_scanner_parses_as_ismrmrd_python_does():
    with h5py.File(SIEMENS, "r") as file:
        xml = bytes(file["dataset/xml"][0])
    parsed = parse_scan_header(xml)
    agrees_with_schema_classes(parsed, xml)
    assert parsed.encodings[0].encoded.matrix == (384, 144, 1)
    assert parsed.encodings[0].limits["kspace_encode_step_1"] == Limit(0, 105, 54)
    assert parsed.encodings[0].acceleration == (3, 1)
    assert parsed.encodings[0].calibration_mode is CalibrationMode.EMBEDDED
    assert [each.kind for each in parsed.dependencies] == ["senmap", "noise"]
    assert len(parsed.coil_labels) == 14


sizes = st.integers(1, 512)
lengths = st.floats(0.5, 2000, allow_nan=False).map(lambda value: round(value, 3))
words = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<>&"), max_size=20).map(str.strip)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    encodings = []
    for _ in range(draw(st.integers(1, 3))):
        y, z = draw(sizes), draw(sizes)
        spaces = [space(draw(sizes), y, z, draw(lengths)), space(draw(sizes), draw(sizes), draw(sizes), draw(lengths))]
        limits = ""
        for name in LIMITS:  # the schema's order differs, and no reader minds
            if draw(st.booleans()):
                low, middle, high = sorted(draw(st.lists(st.integers(0, 65_535), min_size=3, max_size=3)))
                limits += limit(name, low, high, middle)
        parallel = ""
        if draw(st.booleans()):
            mode = draw(st.sampled_from([mode.value for mode in CalibrationMode]))
            parallel = (
                f"<parallelImaging><accelerationFactor><kspace_encoding_step_1>{draw(st.integers(1, y))}"
                f"</kspace_encoding_step_1><kspace_encoding_step_2>{draw(st.integers(1, z))}</kspace_encoding_step_2>"
                f"</accelerationFactor><calibrationMode>{mode}</calibrationMode></parallelImaging>"
            )
        trajectory = draw(st.sampled_from([kind.value for kind in TrajectoryType]))
        encodings.append(
            f"<encoding><encodedSpace>{spaces[0]}</encodedSpace><reconSpace>{spaces[1]}</reconSpace><encodingLimits>"
            f"{limits}</encodingLimits><trajectory>{trajectory}</trajectory>{parallel}</encoding>"
        )
    system = (
        f"<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>{draw(st.floats(0.01, 2))}"
        f"</relativeReceiverNoiseBandwidth><receiverChannels>{draw(st.integers(1, 256))}</receiverChannels>"
        "</acquisitionSystemInformation>"
        if draw(st.booleans())
        else ""
    )
    measurement = (
        f"<measurementInformation><measurementID>{draw(words)}</measurementID><patientPosition>HFS</patientPosition>"
        f"<protocolName>{draw(words)}</protocolName></measurementInformation>"
        if draw(st.booleans())
        else ""
    )
    echo_times = "".join(f"<TE>{value}</TE>" for value in draw(st.lists(lengths, max_size=3)))
    return (
        f'<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">{measurement}{system}<experimentalConditions>'
        "<H1resonanceFrequency_Hz>63000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"{''.join(encodings)}<sequenceParameters>{echo_times}</sequenceParameters></ismrmrdHeader>"
    ).encode()


@settings(max_examples=60, deadline=None)
@given(documents())
def test_any_valid_header_parses_as_ismrmrd_python_does(xml: bytes):
    agrees_with_schema_classes(parse_scan_header(xml), xml)


def test_absent_optional_parts_get_their_defaults():
    parsed = parse_scan_header(document())
    encoding = parsed.encodings[0]
    assert (encoding.limits, encoding.acceleration) == ({}, (1, 1))
    assert encoding.calibration_mode is CalibrationMode.OTHER
    assert (parsed.receiver_channels, parsed.noise_bandwidth) == (None, 0.793)
    assert (parsed.protocol_name, parsed.echo_times_ms, parsed.bits_stored) == ("", (), None)


def test_header_without_a_namespace_is_accepted():
    xml = document().replace(b' xmlns="http://www.ismrm.org/ISMRMRD"', b"")
    assert parse_scan_header(xml) == parse_scan_header(document())


def test_trailing_nul_bytes_are_ignored():
    assert parse_scan_header(document() + b"\0") == parse_scan_header(document())


def test_limit_without_a_center_gets_the_middle_of_its_range():
    limits = "<kspace_encoding_step_1><minimum>0</minimum><maximum>47</maximum></kspace_encoding_step_1>"
    assert parse_scan_header(document(limits=limits)).encodings[0].limits["kspace_encode_step_1"] == Limit(0, 47, 24)


def test_limits_of_zero_on_a_larger_matrix_mean_not_given():
    limits = limit("kspace_encoding_step_1", 0, 0, 0) + limit("kspace_encoding_step_2", 0, 0, 0)
    found = parse_scan_header(document(limits=limits)).encodings[0].limits
    assert found == {"kspace_encode_step_2": Limit(0, 0, 0)}


def test_limits_beyond_the_matrix_are_accepted():
    limits = limit("kspace_encoding_step_1", 0, 199, 100)
    assert parse_scan_header(document(limits=limits)).encodings[0].limits["kspace_encode_step_1"].maximum == 199


def test_bits_stored_comes_from_the_user_parameters():
    after = (
        "<userParameters><userParameterLong><name>Other</name><value>3</value></userParameterLong>"
        "<userParameterLong><name>BitsStored</name><value>12</value></userParameterLong></userParameters>"
    )
    assert parse_scan_header(document(after=after)).bits_stored == 12


def test_names_are_bounded_and_lose_control_characters():
    after = (
        f"<measurementInformation><protocolName>head&#10;scan&#9;{'x' * 500}</protocolName></measurementInformation>"
    )
    name = parse_scan_header(document(after=after)).protocol_name
    assert name.startswith("headscanxxx")
    assert len(name) == 256


def test_patient_data_are_not_kept():
    after = (
        "<subjectInformation><patientName>ZZ^CANARY</patientName><patientID>CANARY</patientID></subjectInformation>"
        "<studyInformation><studyDate>1999-01-01</studyDate></studyInformation>"
    )
    assert "CANARY" not in repr(parse_scan_header(document(after=after)))


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (document(encoded=space(x=0)), ["encoding[0]/encodedSpace/matrixSize/x", "'0'"]),
        (document(encoded=space(y=65_535)), ["encodedSpace/matrixSize/y", "65535"]),
        (document(encoded=space(x="12.5")), ["encodedSpace/matrixSize/x", "12.5"]),
        (document(encoded=space(x="9" * 40)), ["encodedSpace/matrixSize/x"]),
        (document(encoded=space(x="١٢")), ["encodedSpace/matrixSize/x"]),
        (document(recon=space(x=0)), ["reconSpace/matrixSize/x"]),
        (document(recon=space(fov="0")), ["reconSpace/fieldOfView_mm/x", "'0'"]),
        (document(recon=space(fov="-1")), ["reconSpace/fieldOfView_mm/x"]),
        (document(recon=space(fov="NaN")), ["reconSpace/fieldOfView_mm/x", "NaN"]),
        (document(recon=space(fov="inf")), ["reconSpace/fieldOfView_mm/x"]),
        (document(recon=space(fov="1e9999")), ["reconSpace/fieldOfView_mm/x"]),
        (document(recon=""), ["reconSpace/matrixSize", "missing"]),
        (document(limits=limit("slice", 5, 2, 3)), ["encodingLimits/slice", "maximum 2", "minimum 5"]),
        (document(limits=limit("kspace_encoding_step_1", 0, 9, 10)), ["kspace_encoding_step_1", "center 10"]),
        (document(limits=limit("phase", 0, 70_000, 0)), ["phase/maximum", "70000"]),
        (document(limits=limit("set", 0, 1, 0) * 2), ["set", "2 times"]),
        (document(more="<parallelImaging><calibrationMode>odd</calibrationMode></parallelImaging>"), ["text", "embed"]),
        (
            document(
                more="<parallelImaging><accelerationFactor><kspace_encoding_step_1>0</kspace_encoding_step_1>"
                "</accelerationFactor></parallelImaging>"
            ),
            ["accelerationFactor/kspace_encoding_step_1"],
        ),
        (document().replace(b"cartesian", b"zigzag"), ["trajectory", "another text"]),
        (document().replace(b"<trajectory>cartesian</trajectory>", b""), ["trajectory is missing"]),
        (
            document(after="<acquisitionSystemInformation><receiverChannels>0"
                     "</receiverChannels></acquisitionSystemInformation>"),
            ["receiverChannels"],
        ),
        (b"<ismrmrdHeader/>", ["encoding"]),
        (b"<ismrmrdMeta/>", ["ismrmrdHeader", "ismrmrdMeta"]),
        (b"<ismrmrdHeader xmlns='urn:other'/>", ["namespace", "urn:other"]),
        (document().replace(b"<encoding>", b"<encoding xmlns='urn:other'>"), ["encoding"]),
        (b"Dummy XML header", ["not XML"]),
        (b"", ["not XML"]),
        (document()[:-20], ["not XML"]),
        (document().decode().encode("utf-16"), ["UTF-8"]),
        (document().replace(b'"1.0"', b'"1.0" encoding="utf-7"'), ["utf-7"]),
        (document() + b"<more/>", ["not XML"]),
    ],
)  # fmt: skip
def test_impossible_header_is_refused_naming_the_field(xml: bytes, words: list[str]):
    with pytest.raises(HeaderError) as caught:
        parse_scan_header(xml)
    for word in words:
        assert word in str(caught.value)


LAUGHS = b'<!DOCTYPE a [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "xml",
    [
        LAUGHS + document().split(b"?>", 1)[1].replace(b"cartesian", b"&b;"),
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd">' + document().split(b"?>", 1)[1],
        b'<!doctype a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ismrmrdHeader>&x;</ismrmrdHeader>',
        document(after="<!-- <!ENTITY hidden 'x'> -->"),
    ],
)
def test_doctype_and_entities_are_refused_before_parsing(xml: bytes):
    with pytest.raises(HeaderError, match="DOCTYPE or ENTITY"):
        parse_scan_header(xml)


@pytest.mark.parametrize(
    "xml",
    [
        b"<a>" * 1_000_000,
        b"<ismrmrdHeader>" + b"<a>" * 1_000_000,
        b"<ismrmrdHeader>" + b"<encoding>x<!---->" * 1_000_000,
    ],
)
def test_a_million_tags_are_refused(xml: bytes):
    with pytest.raises(HeaderError):
        parse_scan_header(xml, max_bytes=1 << 30)
    with pytest.raises(HeaderError, match="limit is 1048576"):
        parse_scan_header(xml)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damaged_header_is_parsed_or_refused_and_nothing_else(position: int, damage: bytes):
    xml = document(limits=limit("slice", 0, 3, 0))
    at = position % len(xml)
    damaged = xml[:at] + damage + xml[at + len(damage) :]
    try:
        parsed = parse_scan_header(damaged)
    except HeaderError:
        return
    assert parsed.encodings


def test_a_value_that_is_no_number_is_never_quoted():
    xml = document()
    for old, new in ((b"<x>", b"<x>ZZ^CANARY"), (b"cartesian", b"ZZ^CANARY")):
        with pytest.raises(HeaderError, match=r"found another text \(\d+ characters\)"):
            parse_scan_header(xml.replace(old, new))


@pytest.mark.parametrize("encoding", ["UTF-8", "utf-8", "ascii", "us-ascii", "ISO-8859-1"])
def test_encodings_that_writers_declare_are_read(encoding: str):
    xml = document().decode().partition("?>")[2]
    assert parse_scan_header(f'<?xml version="1.0" encoding="{encoding}"?>{xml}'.encode()) == parse_scan_header(
        document()
    )


def test_a_header_written_by_ismrmrd_python_is_read():
    xsd = pytest.importorskip("ismrmrd").xsd
    written = xsd.CreateFromDocument(document()).toXML().encode()
    assert b'encoding="ascii"' in written
    assert parse_scan_header(written) == parse_scan_header(document())


def description(*parameters: tuple[str, str, object]) -> str:
    inside = "".join(
        f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"
        for kind, name, value in parameters
    )
    return f"<trajectoryDescription><identifier>ConventionalEPI</identifier>{inside}</trajectoryDescription>"


def test_readout_gradient_of_epi_is_read_from_the_trajectory_description():
    times = [("rampUpTime", 120), ("rampDownTime", 110), ("flatTopTime", 280), ("acqDelayTime", 20), ("etl", 64)]
    more = description(*(("Long", *each) for each in times), ("Double", "dwellTime", 3.4))
    xml = document(more=more).replace(b"cartesian", b"epi")

    agrees_with_schema_classes(parse_scan_header(xml), xml)

    found = parse_scan_header(xml).encodings[0].readout_gradient
    assert found == Trapezoid(ramp_up=120, flat_top=280, ramp_down=110, delay=20, dwell=3.4)


@pytest.mark.parametrize(
    "parameters",
    [
        [],
        [("Long", "rampUpTime", "soon"), ("Double", "dwellTime", "-3")],
        [("Double", "flatTopTime", "1e99"), ("Long", "interleaves", 1)],
    ],
)
def test_trajectory_descriptions_that_cannot_be_read_are_ignored(parameters: list[tuple[str, str, object]]):
    broken = "<userParameterLong><name>rampUpTime</name><name>a</name></userParameterLong></trajectoryDescription>"
    for more in (description(*parameters), description(*parameters).replace("</trajectoryDescription>", broken)):
        assert parse_scan_header(document(more=more)).encodings[0].readout_gradient is None
