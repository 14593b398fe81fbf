"""`echotrain config`."""

from __future__ import annotations

import typer


def main() -> None:
    """Run `echotrain config`.

    Example: echotrain config
    """
    typer.echo("config")
