"""The scan header: XML of version 1 <-> the object of version 2, by the table in `header_table.py`.

What version 2 has no place for is noted, element by element. What it needs and the XML leaves out gets the value that
`pipelines.scan_header` assumes there, so that a scan is reconstructed alike in both formats; this is noted, too.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError

import mrd
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from pipelines.errors import HeaderError
from pipelines.scan_header import NAMESPACE
from server.errors import ConversionError
from server.losses import Losses
from server.mrd2.header_table import HEADER, LIMIT, Field, Occurs, Record
from server.mrd2.values import Leaf

_MISSING: Final = object()


def to_version_2(xml: bytes, losses: Losses) -> mrd.Header:
    """The header as an object.

    Raises:
        HeaderError: not a scan header, or a value that is needed is not of its kind.
    """
    try:
        root = ElementTree.fromstring(xml.rstrip(b"\0"), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise HeaderError("scan header: not XML, or it has a document type") from error
    if _local(root) != "ismrmrdHeader":
        raise HeaderError("scan header: expected the root ismrmrdHeader")
    return _read_record(HEADER, root, "", losses)


def to_version_1(header: mrd.Header, losses: Losses) -> bytes:
    """The header as XML, valid against `ismrmrd.xsd`.

    Raises:
        ConversionError: a value that version 1 needs does not fit into it.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<ismrmrdHeader xmlns="{NAMESPACE}">']
    _write_record(HEADER, header, "", lines, losses)
    lines.append("</ismrmrdHeader>\n")
    return "\n".join(lines).encode()


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _read_record(record: Record, element: Element, path: str, losses: Losses) -> Any:
    children: dict[str, list[Element]] = {}
    for child in element:
        children.setdefault(_local(child), []).append(child)
    values: dict[str, Any] = {}
    for field in record.fields:
        where = f"{path}/{field.v1}" if path else field.v1
        found = children.pop(field.v1, [])
        if field.occurs is Occurs.MANY:
            read = [_read(field, child, where, losses) for child in found]
            values[field.v2] = [value for value in read if value is not _MISSING]
            continue
        if len(found) > 1:
            losses.note(f"header: {where} stands there more than once; only the first is kept", len(found) - 1)
        value = _read(field, found[0], where, losses) if found else _MISSING
        if value is _MISSING and field.occurs is Occurs.ONCE:
            value = _assume(record, field, values, where, losses)
        if value is not _MISSING:
            values[field.v2] = value
    for name, others in children.items():
        where = f"{path}/{name}" if path else name
        losses.note(f"header: MRD 2 has no place for the element {where}", len(others))
    return record.make(**values)


def _read(field: Field, element: Element, where: str, losses: Losses) -> Any:
    if isinstance(field.kind, Record):
        return _read_record(field.kind, element, where, losses)
    text = element.text or ""
    try:
        return field.kind.read(text, lambda what: losses.note(f"header: {where}: {what}"))
    except ValueError as error:
        if field.occurs is Occurs.ONCE and text.strip():
            raise HeaderError(f"scan header, {where}: expected {field.kind.name}") from error
        losses.note(f"header: {where} is not {field.kind.name}; left out")
        return _MISSING


def _assume(record: Record, field: Field, values: dict[str, Any], where: str, losses: Losses) -> Any:
    """What version 2 gets for an element that it needs and that is not there."""
    if record is LIMIT and field.v2 == "center":
        losses.note(f"header: {where} is missing; the middle of the range was put there")
        return (values.get("minimum", 0) + values.get("maximum", 0) + 1) // 2
    if isinstance(field.kind, Leaf):
        losses.note(f"header: {where} is missing; MRD 2 needs it and got {_shown_default(record, field)}")
    return _MISSING if field.absent is None else field.absent


def _shown_default(record: Record, field: Field) -> str:
    default = getattr(record.make(), field.v2) if field.absent is None else field.absent
    shown = default.name if isinstance(default, Enum) else default
    return str(shown) or "an empty text"


def _write_record(record: Record, value: Any, path: str, lines: list[str], losses: Losses) -> None:
    for field in record.fields:
        where = f"{path}/{field.v1}" if path else field.v1
        held = getattr(value, field.v2)
        for item in held if field.occurs is Occurs.MANY else [] if held is None else [held]:
            _write(field, item, where, lines, losses)


def _write(field: Field, value: Any, where: str, lines: list[str], losses: Losses) -> None:
    indent = "  " * (where.count("/") + 1)
    if isinstance(field.kind, Record):
        lines.append(f"{indent}<{field.v1}>")
        _write_record(field.kind, value, where, lines, losses)
        lines.append(f"{indent}</{field.v1}>")
        return
    try:
        text = field.kind.write(value, lambda what: losses.note(f"header: {where}: {what}"))
    except ValueError as error:
        if field.occurs is not Occurs.OPTIONAL:
            raise ConversionError(f"header, {where}: MRD 1 holds only {field.kind.name} there") from error
        losses.note(f"header: {where}: MRD 1 holds only {field.kind.name} there; left out")
        return
    lines.append(f"{indent}<{field.v1}>{text}</{field.v1}>")
