"""`echotrain serve`."""

from __future__ import annotations

import typer


def main() -> None:
    """Run `echotrain serve`.

    Example: echotrain serve
    """
    typer.echo("serve")
