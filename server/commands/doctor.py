"""`echotrain doctor`."""

from __future__ import annotations

import typer


def main() -> None:
    """Run `echotrain doctor`.

    Example: echotrain doctor
    """
    typer.echo("doctor")
