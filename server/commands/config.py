"""`echotrain config`: every setting, its value, and where the value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server import config
from server.commands.serve import parse_values
from server.config import Leaf


def main(
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as `serve` would get it.", metavar="NAME=VALUE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print a TOML file with comments, to edit and to use.")
    ] = False,
) -> None:
    r"""Show every setting as `echotrain serve` would use it here, and where each value came from.

    \b
    Example:
        echotrain config --toml > echotrain.toml
        echotrain serve --config echotrain.toml

    \b
    Exit statuses: 0 shown, 2 a setting is wrong.
    """
    leaves = config.load(file, parse_values(values or [])).leaves
    if as_json:
        typer.echo(json.dumps([_as_dict(leaf) for leaf in leaves], indent=2))
    elif as_toml:
        typer.echo(as_toml_file(leaves), nl=False)
    else:
        _show(leaves)


def _as_dict(leaf: Leaf) -> dict[str, Any]:
    return {
        "setting": leaf.path,
        "value": leaf.value,
        "default": leaf.default,
        "unit": leaf.unit,
        "origin": leaf.origin,
        "environment": leaf.variable,
        "description": leaf.description,
    }


def as_toml_file(leaves: tuple[Leaf, ...]) -> str:
    """The settings as TOML, each with its description as a comment; `server.config.load` reads it back."""
    lines: list[str] = []
    section = ""
    for leaf in leaves:
        table, _, name = leaf.path.rpartition(".")
        if table != section:
            lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
            section = table
        unit = f" [{leaf.unit}]" if leaf.unit else ""
        lines.append(f"# {leaf.description}{unit}")
        lines.append(f"{name} = {_toml(leaf.value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    match value:
        case dict():
            return "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            # Texts, numbers and truth values are written as in JSON.
            return json.dumps(value, ensure_ascii=False)


def _show(leaves: tuple[Leaf, ...]) -> None:
    table = Table(title="Settings: file < environment < flags", title_justify="left", row_styles=["", "dim"])
    for heading in ("setting", "value", "from", "what it is"):
        table.add_column(heading, overflow="fold")
    for leaf in leaves:
        unit = f" {leaf.unit}" if leaf.unit else ""
        value = f"{_readable(leaf.value)}{unit}"
        table.add_row(
            leaf.path, value, leaf.origin, leaf.description, style=None if leaf.origin == "default" else "bold"
        )
    Console().print(table)


def _readable(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20} Mi"
    return str(value)
