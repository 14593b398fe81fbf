"""Image attributes: `Meta` <-> XML with the root `ismrmrdMeta`.

    <ismrmrdMeta><meta><name>N</name><value>V</value>...</meta>...</ismrmrdMeta>

What comes from a peer is parsed as a stream, without a tree, without DOCTYPE and entities, to a bounded depth (the
caller bounds the bytes). Elements that the format does not know are skipped. Source: ismrmrd `meta.h`, `meta.cpp`.
"""

from __future__ import annotations

import re
from html import escape
from typing import Final, Protocol, cast

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from pipelines.mrd import Meta
from server.errors import ProtocolError

MAX_DEPTH: Final = 16
"""Nested elements; the format has three."""

_DECLARATION: Final = (
    '<?xml version="1.0"?>\n'  # no encoding named, which means UTF-8, so that strict readers also take it as text
)
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PATHS: Final[dict[tuple[str, ...], str]] = {
    ("ismrmrdMeta", "meta", "name"): "name",
    ("ismrmrdMeta", "meta", "value"): "value",
}


def write_attributes(meta: Meta) -> bytes:
    """Attributes as UTF-8 XML; no bytes when there are none.

    A carriage return is written as a reference, else parsers turn it into a line feed. Characters that XML 1.0 cannot
    hold are replaced: control characters by their picture (U+2400 and on), others by U+FFFD. Names without a value
    are left out, because ismrmrd's C++ reader refuses them.

    Raises:
        ProtocolError: a name is empty.
    """
    parts: list[str] = []
    for name, values in meta.items():
        if not name:
            raise ProtocolError("we may not send an image attribute without a name", kind="bad_xml")
        if values:
            inner = "".join(f"<value>{_text(value)}</value>" for value in values)
            parts.append(f"<meta><name>{_text(name)}</name>{inner}</meta>\n")
    if not parts:
        return b""
    return f"{_DECLARATION}<ismrmrdMeta>\n{''.join(parts)}</ismrmrdMeta>\n".encode()


def read_attributes(xml: bytes) -> Meta:
    """Attributes from XML; none from no bytes.

    Trailing NULs are ignored: Gadgetron counts one, ismrmrd-python sends none. Values of a name that occurs again are
    appended. White space is kept.

    Raises:
        ProtocolError: the XML is malformed or nested too deep, has a DOCTYPE or another root, or a name is missing.
    """
    xml = xml.rstrip(b"\0")
    if not xml:
        return {}
    reader = _Reader()
    parser = cast("_Feed", DefusedXMLParser(target=reader, forbid_dtd=True))
    try:
        parser.feed(xml)
        parser.close()
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:  # LookupError: an encoding nobody knows
        # The error's own text may quote the peer's, which may hold anything.
        raise ProtocolError(
            f"the peer sent image attributes that are not safe, well-formed XML ({type(error).__name__})",
            kind="bad_xml",
        ) from error
    return reader.meta


class _Feed(Protocol):
    """The part of a parser that is used."""

    def feed(self, data: bytes) -> None: ...

    def close(self) -> object: ...


class _Reader:
    """Target of the parser: collects names and values as their elements end."""

    def __init__(self) -> None:
        self.meta: Meta = {}
        self._path: tuple[str, ...] = ()
        self._text: list[str] = []
        self._name: str | None = None
        self._values: list[str] = []

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        if not self._path and tag != "ismrmrdMeta":
            raise ProtocolError("the peer sent image attributes whose root is not ismrmrdMeta", kind="bad_xml")
        if len(self._path) >= MAX_DEPTH:
            raise ProtocolError(f"the peer sent image attributes nested deeper than {MAX_DEPTH}", kind="bad_xml")
        self._path = (*self._path, tag)
        if len(self._path) <= 3:
            self._text = []
        if len(self._path) == 2:
            self._name, self._values = None, []

    def data(self, text: str) -> None:
        if self._path in _PATHS:
            self._text.append(text)

    def end(self, _tag: str) -> None:
        match _PATHS.get(self._path):
            case "name":
                self._name = "".join(self._text)
            case "value":
                self._values.append("".join(self._text))
            case _ if self._path == ("ismrmrdMeta", "meta"):
                self._finish_attribute()
            case _:
                pass
        self._path = self._path[:-1]

    def close(self) -> None:
        """The document has ended; the parser itself has checked that it is complete."""

    def _finish_attribute(self) -> None:
        if not self._name:
            raise ProtocolError("the peer sent an image attribute without a name", kind="bad_xml")
        self.meta.setdefault(self._name, []).extend(self._values)


def xml_text(value: str) -> tuple[str, int]:
    """A text as it stands between two tags, and the number of characters that had to be replaced."""
    written, n_replaced = _NOT_XML.subn(_picture, value)
    return escape(written, quote=False).replace("\r", "&#13;"), n_replaced


def _text(value: str) -> str:
    return xml_text(value)[0]


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
