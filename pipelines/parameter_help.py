"""What a parameter may be, in words: for errors that a radiographer reads at the console, and for listings.

Works on the JSON schema that pydantic makes of a parameters model; knows no particular pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

_TYPES = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
MOST_SHOWN = 60


def allowed(model: type[BaseModel], name: str) -> str:
    """What the parameter of that name may be, for example `a whole number, at least 1, at most 500`."""
    schema = model.model_json_schema()
    return _describe(schema["properties"][name], schema.get("$defs", {}))


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """The first thing that is wrong: the parameter, what came, and what is allowed."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"there is no parameter {shown(name)}; it has {known}"
    came = first["input"]
    return f"parameter '{name}': expected {allowed(model, name)}; {shown(came)} came"


def shown(value: object) -> str:
    """A value of a peer for a message: escaped, on one line, bounded."""
    text = str(value)
    return ascii(text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "...")


def _describe(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _describe(definitions[str(schema["$ref"]).rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        choices = cast("list[object]", schema.get("enum", [schema.get("const")]))
        return choices[0] if len(choices) == 1 and isinstance(choices[0], str) else f"one of {_join(choices)}"
    if "anyOf" in schema:
        options = [_describe(option, definitions) for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(options) + (", or nothing" if len(options) < len(schema["anyOf"]) else "")
    if schema.get("type") == "array":
        items = _describe(schema.get("items", {}), definitions)
        return f"a list, separated by commas, of {items.removeprefix('one of ')}"
    bounds = [f"{words} {schema[key]:g}" for key, words in _BOUNDS.items() if key in schema]
    return ", ".join([_TYPES.get(str(schema.get("type")), "a value"), *bounds])


def _join(choices: list[object]) -> str:
    return ", ".join(str(choice) for choice in choices)
