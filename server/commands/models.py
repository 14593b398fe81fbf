"""`echotrain models`: the models of learned reconstructions, listed, shown, or verified against their cards."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.catalogue import SHIPPED, Entry, check_weights, entries, find, read_card, strays, use_directory
from models.errors import CardError, ModelError
from server import config
from server.commands.serve import parse_values


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    SHOW = "show"
    VERIFY = "verify"


def main(
    action: Annotated[Action, typer.Argument(help="`list` all, `show` the card of one, or `verify` all.")],
    name: Annotated[str, typer.Argument(help="Name or name@version of the model to show.", metavar="NAME")] = "",
    directory: Annotated[
        Path | None,
        typer.Option(help="Models of your own; the setting models.directory otherwise.", metavar="DIRECTORY"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", metavar="FILE")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as `serve` would get it.", metavar="NAME=VALUE")
    ] = None,
) -> None:
    r"""List the models that pipelines can open, show a card, or check that all weights are those of their cards.

    `list` compares digests; `verify` also the tensors with their architecture, and names files that belong to no model.

    \b
    Example:
        echotrain models list
        echotrain models show energy-brain > energy-brain.md
        echotrain models verify --directory /srv/models && echo all match

    \b
    Exit statuses: 0 done, 1 something does not match or there is no such model, 2 wrong arguments or settings.
    """
    settings = config.load(file, parse_values(values or [])).settings
    own = directory or (Path(settings.models.directory) if settings.models.directory else None)
    use_directory(own)
    if (action is Action.SHOW) != bool(name):
        raise typer.BadParameter("`show` needs the NAME of a model; `list` and `verify` take none")
    if action is Action.LIST:
        _list()
    elif action is Action.SHOW:
        typer.echo(read_card(find(name)).markdown(), nl=False)
    else:
        _verify()


def _list() -> None:
    there = entries()
    table = Table(box=SIMPLE_HEAD)
    for heading in ("name", "version", "architecture", "size", "digest", "licence", "where"):
        table.add_column(heading, overflow="fold")
    for entry in there:
        table.add_row(entry.name, entry.version, *_row(entry), "installed" if entry.root == SHIPPED else "directory")
    if there:
        Console().print(table)
    else:
        _say("no models are installed, and models.directory adds none")
    for path in strays():
        _say(f"{path} belongs to no model")


def _row(entry: Entry) -> tuple[str, str, str, str]:
    """Architecture, size, whether the digest is that of the card, licence; a model that is not served says why."""
    try:
        card = read_card(entry)
    except CardError as error:
        _say(str(error))
        return "", "", "no card" if not entry.card.exists() else "bad card", ""
    try:
        check_weights(entry, card)
    except ModelError as error:
        _say(str(error))
        verdict = "DIFFERS"
    else:
        verdict = "ok"
    return card.architecture, f"{card.bytes / 1e6:.2f} MB", verdict, card.licence


def _verify() -> None:
    from models.store import verify

    problems = verify()
    for title, problem in problems.items():
        _say(problem if title in problem else f"{title}: {problem}")
    for entry in entries():
        typer.echo(f"{entry.title}: {'does not match' if entry.title in problems else 'ok'}")
    if not entries():
        _say("there are no models to verify")
    if problems:
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(f"echotrain: {text}", err=True)
