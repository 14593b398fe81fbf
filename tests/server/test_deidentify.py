"""Headers without patient: what goes, what stays, what still refers to what."""

from __future__ import annotations

import pytest

from pipelines.errors import HeaderError
from pipelines.phantom import head_phantom
from pipelines.scan_header import parse_scan_header
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server.deidentify import without_patient

CANARY = "ZZ^CANARY"
SECRETS = f"""
<subjectInformation><patientName>{CANARY}</patientName><patientID>{CANARY}</patientID>
<patientBirthdate>1970-01-01</patientBirthdate></subjectInformation>
<studyInformation><studyDate>2026-01-01</studyDate><accessionNumber>4711</accessionNumber>
<studyInstanceUID>{CANARY}</studyInstanceUID></studyInformation>
<measurementInformation><measurementID>scan_{CANARY}</measurementID><seriesDate>2026-01-01</seriesDate>
<patientPosition>HFS</patientPosition><protocolName>{CANARY}</protocolName>
<measurementDependency><dependencyType>Noise</dependencyType><measurementID>noise_{CANARY}</measurementID>
</measurementDependency><frameOfReferenceUID>{CANARY}</frameOfReferenceUID></measurementInformation>
<acquisitionSystemInformation><systemVendor>Vendor</systemVendor><institutionName>{CANARY}</institutionName>
<stationName>{CANARY}</stationName><deviceSerialNumber>{CANARY}</deviceSerialNumber>
<receiverChannels>4</receiverChannels></acquisitionSystemInformation>
"""
MORE = f"""
<userParameters><userParameterLong><name>n</name><value>3</value></userParameterLong>
<userParameterString><name>{CANARY}</name><value>{CANARY}</value></userParameterString></userParameters>
<somethingNew>{CANARY}</somethingNew>
"""


def header() -> bytes:
    plain = simulate(head_phantom(1, 32, 32), Protocol(n_coils=4, noise_readouts=0)).header.decode()
    begin, end = plain.index("<experimentalConditions"), plain.index("</ismrmrdHeader>")
    top = plain[: plain.index(">", plain.index("<ismrmrdHeader")) + 1]
    return (top + SECRETS + plain[begin:end] + MORE + plain[end:]).encode()


def test_nothing_tells_whose_scan_it_is_and_the_scan_is_the_same():
    clean = without_patient(header())
    for secret in (CANARY, "1970", "2026", "4711"):
        assert secret.encode() not in clean
    before, after = parse_scan_header(header()), parse_scan_header(clean)
    assert after.encodings == before.encodings
    assert b"<systemVendor>Vendor</systemVendor>" in clean
    assert b"<name>n</name>" in clean


def test_measurements_still_refer_to_each_other():
    own = parse_scan_header(without_patient(header()))
    other = parse_scan_header(without_patient(header().replace(b"scan_ZZ^CANARY", b"noise_ZZ^CANARY")))
    assert [each.measurement_id for each in own.dependencies] == [other.measurement_id]
    assert other.measurement_id != own.measurement_id


@pytest.mark.parametrize("xml", [b"Dummy XML header", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b""])
def test_what_cannot_be_read_is_not_kept(xml: bytes):
    with pytest.raises(HeaderError):
        without_patient(xml)
