"""Image attributes: what is written can be read, and what is hostile is refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ProtocolError
from server.wire.attributes import MAX_DEPTH, read_attributes, write_attributes
from tests.server.wire import examples

BOMB = (
    b'<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    b"<ismrmrdMeta><meta><name>x</name><value>&b;</value></meta></ismrmrdMeta>"
)
EXTERNAL = (
    b'<!DOCTYPE m [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    b"<ismrmrdMeta><meta><name>x</name><value>&a;</value></meta></ismrmrdMeta>"
)


@given(examples.metas)
@settings(max_examples=80)
def test_what_is_written_is_read(meta: dict[str, list[str]]):
    assert read_attributes(write_attributes(meta)) == meta


@given(st.text(max_size=30), st.text(min_size=1, max_size=30))
@settings(max_examples=150)
def test_any_text_becomes_xml_that_every_parser_takes(value: str, name: str):
    xml = write_attributes({name: [value]})

    ((read_name, (read,)),) = read_attributes(xml).items()

    assert ET.fromstring(xml).findtext("meta/value") == read  # noqa: S314 (our own text)
    assert (len(read_name), len(read)) == (len(name), len(value))
    assert all(
        char == other or char == "\ufffd" or 0x2400 <= ord(char) < 0x2420
        for char, other in zip(read, value, strict=True)
    )


def test_no_attributes_are_no_bytes():
    assert write_attributes({}) == write_attributes({"name without a value": []}) == b""
    assert read_attributes(b"") == read_attributes(b"\0\0\0") == {}


def test_trailing_nuls_white_space_other_elements_and_repeated_names_are_read():
    xml = (
        b"<?xml version='1.0' encoding='UTF-8'?>\n<!-- c --><ismrmrdMeta version='1'>\n "
        b"<other><meta><name>no</name></meta></other>"
        b"<meta><value> 1\n</value><comment>x</comment><name>a</name><value><![CDATA[<2>]]></value></meta>"
        b"<meta><name>a</name><value/></meta><meta><name>b</name></meta></ismrmrdMeta>\n\0\0"
    )

    assert read_attributes(xml) == {"a": [" 1\n", "<2>", ""], "b": []}


def test_a_declared_encoding_is_followed():
    xml = "<ismrmrdMeta><meta><name>ü</name><value>µ</value></meta></ismrmrdMeta>".encode("latin-1")

    assert read_attributes(b'<?xml version="1.0" encoding="ISO-8859-1"?>' + xml) == {"ü": ["µ"]}


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (BOMB, "DTDForbidden"),
        (EXTERNAL, "DTDForbidden"),
        (b"<!DOCTYPE m><ismrmrdMeta/>", "DTDForbidden"),
        (b"<ismrmrdMeta><meta><name>x</name>", "ParseError"),
        (b"<ismrmrdMeta/><ismrmrdMeta/>", "ParseError"),
        (b"<ismrmrdMeta>&nbsp;</ismrmrdMeta>", "ParseError"),
        (b"<ismrmrdMeta>\0</ismrmrdMeta>", "ParseError"),
        (b"<ismrmrdMeta>\xff</ismrmrdMeta>", "ParseError"),
        (b"<?xml version='1.0' encoding='nobody-knows'?><ismrmrdMeta/>", "XML"),
        (b"<?xml version='1.0' encoding='shift_jis'?><ismrmrdMeta/>", "XML"),
        (b"not XML", "ParseError"),
        (b"   ", "ParseError"),
        (b"<meta><name>x</name></meta>", "root is not ismrmrdMeta"),
        (b"<ismrmrdMeta><meta><value>1</value></meta></ismrmrdMeta>", "without a name"),
        (b"<ismrmrdMeta><meta><name/><value>1</value></meta></ismrmrdMeta>", "without a name"),
        (b"<ismrmrdMeta>" + b"<meta>" * 500_000, f"nested deeper than {MAX_DEPTH}"),
    ],
)
def test_what_is_not_safe_xml_is_refused(xml: bytes, words: str):
    with pytest.raises(ProtocolError, match=words) as caught:
        read_attributes(xml)

    assert caught.value.kind == "bad_xml"
    assert "etc" not in str(caught.value)


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_any_bytes_are_attributes_or_a_protocol_error(junk: bytes):
    for xml in (junk, b"<ismrmrdMeta>" + junk + b"</ismrmrdMeta>"):
        with suppress(ProtocolError):
            assert all(isinstance(name, str) for name in read_attributes(xml))


def test_a_name_that_is_empty_is_not_written():
    with pytest.raises(ProtocolError, match="without a name"):
        write_attributes({"": ["1"]})
