"""What a peer's configuration selects: a pipeline of the registry with parameters, or nothing at all.

Configurations come as a name (CONFIG_FILE, CONFIG_TEXT), as JSON (ours, or the additional configuration of FIRE and
OpenRecon), or as Gadgetron XML. None of them is ever imported, opened or used as a path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, cast
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from pipelines import registry
from pipelines.errors import ParameterError, UnknownPipelineError
from pipelines.registry import PipelineEntry
from server.config import Pipelines
from server.errors import ProtocolError
from server.logs import printable

ANY_XML = "<xml>"
"""Alias that decides about a Gadgetron XML configuration none of whose gadgets has an alias."""

MAX_PARAMETERS = 100
MAX_VALUE = 4096


class Purpose(StrEnum):
    """What a session is for; all but the first may stand where a pipeline could."""

    IMAGES = "images"
    """Data for a pipeline."""
    NOTHING = "none"
    """Liveness checks."""
    NOISE = "noise"
    """A noise measurement, kept for later scans."""
    NOISE_QUERY = "noise_query"
    """Whether a noise measurement is kept."""


_OTHER_PURPOSES = frozenset(set(Purpose) - {Purpose.IMAGES})


@dataclass(frozen=True, slots=True)
class Selection:
    """What a session does.

    Attributes:
        entry: the pipeline; None when nothing is reconstructed (liveness checks, noise sessions).
        parameters: checked parameters as they go to the pipeline; `noise_file` as it came of a noise query.
        warnings: sentences for the peer.
        purpose: what it is for; IMAGES exactly when there is a pipeline.
    """

    entry: PipelineEntry | None
    parameters: Mapping[str, object] = field(default_factory=dict[str, object])
    warnings: tuple[str, ...] = ()
    purpose: Purpose = Purpose.IMAGES

    @property
    def needs_header(self) -> bool:
        """Whether data mean something only behind a scan header."""
        return self.purpose in {Purpose.IMAGES, Purpose.NOISE}


def select(text: str, settings: Pipelines) -> Selection:
    """What a configuration asks for: a name, JSON or XML.

    Raises:
        UnknownPipelineError: the name is neither a pipeline nor an alias.
        ParameterError: a parameter is unknown or out of range.
        ProtocolError: JSON or XML that is none.
    """
    text = text.strip()
    if text.startswith("{"):
        return _from_json(text, None, settings)
    if text.startswith("<"):
        return _from_xml(text, settings)
    return _checked(_find(text, settings), {}, settings)


def refine(text: str, current: Selection, settings: Pipelines) -> Selection:
    """The selection after the JSON configuration that FIRE sends behind the header; errors as in `select`."""
    return _from_json(text, current, settings)


def _find(name: str, settings: Pipelines) -> PipelineEntry | Purpose:
    target = settings.aliases.get(name, name)
    if target in _OTHER_PURPOSES:
        return Purpose(target)
    if target == "default" and name in settings.aliases:
        target = settings.default
    return registry.find(target)


def _checked(
    entry: PipelineEntry | Purpose, given: Mapping[str, object], settings: Pipelines, warnings: tuple[str, ...] = ()
) -> Selection:
    if isinstance(entry, Purpose):
        return Selection(None, {}, warnings, entry)
    values = dict(settings.parameters.get(entry.name, {})) | dict(given)
    return Selection(entry, entry.parse(values).model_dump(), warnings)


def _from_json(text: str, current: Selection | None, settings: Pipelines) -> Selection:
    content = _parse_json(text)
    given = content.get("parameters", {})
    if not isinstance(given, dict):
        raise ParameterError("'parameters' in the JSON configuration is not an object")
    parameters = _bounded(cast("dict[str, object]", given))
    known = {"version", "parameters", "pipeline"}
    ignored = sorted(printable(key, 40) for key in content if key not in known)[:5]
    warnings = (f"ignored in the JSON configuration: {', '.join(ignored)}",) if ignored else ()

    config = parameters.pop("config", "")
    custom = parameters.pop("customconfig", "")
    name = content.get("pipeline") or custom or config
    if not isinstance(name, str):
        raise ParameterError("the name of the pipeline in the JSON configuration is not a text")
    if name:
        entry = _find(name.strip(), settings)
    elif current is not None:
        entry = current.entry or current.purpose
    else:
        entry = _find(settings.default, settings)
    if current is not None and current.entry is entry:
        parameters = dict(current.parameters) | parameters
    return _checked(entry, parameters, settings, warnings)


def _parse_json(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        where = (
            f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "in its values"
        )
        raise ParameterError(f"the JSON configuration is malformed: {where}") from error
    if not isinstance(content, dict):
        raise ParameterError("the JSON configuration is not an object")
    return cast("dict[str, Any]", content)


def _bounded(values: dict[str, object]) -> dict[str, object]:
    if len(values) > MAX_PARAMETERS:
        raise ParameterError(f"{len(values)} parameters in the JSON configuration; at most {MAX_PARAMETERS} are read")
    for name, value in values.items():
        shown = printable(name, 64)
        if not isinstance(value, str | int | float | bool):
            raise ParameterError(f"parameter '{shown}' is not a text, number or truth value")
        if isinstance(value, str) and len(value) > MAX_VALUE:
            raise ParameterError(f"parameter '{shown}' has {len(value)} characters; at most {MAX_VALUE} are read")
    return dict(values)


def _from_xml(text: str, settings: Pipelines) -> Selection:
    try:
        root = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise ProtocolError("the XML configuration is malformed, or has a document type", kind="bad_xml") from error
    gadgets = [(name, element) for element in root.iter() if (name := _gadget_name(element))]
    for name, element in gadgets:
        if name in settings.aliases or name in registry.pipelines():
            return _from_gadget(name, element, settings)
    if ANY_XML in settings.aliases:
        return _checked(_find(ANY_XML, settings), {}, settings)
    shown = ", ".join(f"'{printable(name, 40)}'" for name, _ in gadgets[:8]) or "none"
    raise UnknownPipelineError(
        f"a Gadgetron XML configuration cannot be run here (gadgets: {shown}); "
        f"this server offers: {', '.join(sorted(registry.pipelines()))}"
    )


def _gadget_name(element: Element) -> str:
    """Class of a gadget in either dialect of Gadgetron's configurations; empty for any other element."""
    names = [child.text or "" for child in element if _local(child) in {"classname", "class"}]
    return names[0].strip() if names else ""


def _from_gadget(name: str, element: Element, settings: Pipelines) -> Selection:
    """What a gadget stands for. Those of its properties that the pipeline has are its parameters."""
    entry, properties = _find(name, settings), _properties(element)
    if isinstance(entry, Purpose):
        asked = {"noise_file": properties.get("noise_file", "")} if entry is Purpose.NOISE_QUERY else {}
        return Selection(None, asked, purpose=entry)
    given = _bounded(properties)
    ours = {key: value for key, value in given.items() if key in entry.parameters.model_fields}
    others = ", ".join(printable(key, 40) for key in given if key not in ours)
    warnings = (f"properties of the gadget {printable(name, 40)} that mean nothing here: {others}",) if others else ()
    return _checked(entry, ours, settings, warnings)


def _properties(element: Element) -> dict[str, object]:
    found: dict[str, object] = {}
    for child in element:
        if _local(child) == "property":
            parts = {_local(part): part.text or "" for part in child} | dict(child.attrib)
            found[parts.get("name", "").strip()] = parts.get("value", "").strip()
    return found


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]
