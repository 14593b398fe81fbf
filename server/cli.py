"""The `echotrain` command: a table of commands, each one file in `server/commands`, imported only when it is asked for.

So `echotrain serve` never pays for, nor loads, what other commands need (torch, matplotlib, h5py). To add a command,
write `server/commands/NAME.py` with a function `main` whose annotated arguments are typer's, and add its line to
`COMMANDS`.

Exit statuses of every command: 0 done, 1 what was asked for did not succeed, 2 wrong arguments or settings,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

from models.errors import ModelError
from pipelines.errors import PipelineError
from server import interrupts
from server.errors import ServerError, SettingsError

if TYPE_CHECKING:
    import typer

COMMANDS: Final = {
    "serve": "Run the server: raw data in over MRD, images with uncertainty out.",
    "send": "Send a scan from a file to a server and save the images.",
    "recon": "Reconstruct a stream from standard input to standard output, without a server.",
    "convert": "Convert between MRD version 1 files and streams and MRD version 2 streams.",
    "replay": "Send a captured session again and compare its images.",
    "simulate": "Simulate a scan into a file, or send it to a server.",
    "inspect": "Show what a scan file holds: header, encoding, flags, sampling, noise.",
    "view": "Make a picture of images: magnitude, uncertainty, difference to a reference.",
    "calibrate": "Compare a pipeline's uncertainty with errors of known data, and fit its scale.",
    "bench": "Show how a method behaves: quality against iterations, sizes of networks, seeds.",
    "demo": "Start a server here, stream scans through it, leave pictures and files.",
    "train": "Train a model on images that one has.",
    "noise": "List or export the noise measurements that a server has kept.",
    "models": "List the models of learned reconstructions, show their cards, verify their weights.",
    "config": "Show every setting, its value and where the value came from.",
    "doctor": "Check this machine and print a fix for whatever is wrong.",
}
"""Name of each command and what it does, in the order of the help page."""


def program() -> typer.Typer:
    """The table of commands as a program; typer is imported here, so that `main` sees an interrupt of that."""
    import typer

    app = typer.Typer(
        name="echotrain",
        help="MR reconstruction server: raw data in over MRD/Gadgetron, images with pixel-wise uncertainty out.\n\n"
        "Example: echotrain serve --port 9002",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    # Nothing is common to all commands yet; with this the program keeps its sub-commands even if there is only one.
    app.callback()(_common)
    for name, summary in COMMANDS.items():
        _register(app, name, summary)
    return app


def _common() -> None:
    pass


def _register(app: typer.Typer, name: str, summary: str) -> None:
    import typer

    def forward(context: typer.Context) -> None:
        run_command(name, context.args)

    # typer reads the annotation, and this module knows the name only while it is checked.
    forward.__annotations__["context"] = typer.Context
    # No help option here: `echotrain NAME --help` belongs to the command's own file.
    forwarded = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}
    app.command(name, help=summary, context_settings=forwarded)(forward)


def run_command(name: str, arguments: list[str]) -> None:
    """Import the file of a command and run it with these arguments."""
    if name == "serve":
        # numpy makes its threads at import. In the front process they would only be in the way: summing a noise readout
        # of 64 coils took 0.4 ms with one thread, and 1 to 20 ms with two on a busy machine.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with interrupts.interrupts_end_at_once():
        import inspect

        import typer

        module = import_module(f"server.commands.{name}")
    command = typer.Typer(
        help=inspect.cleandoc(module.__doc__ or ""),
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    # A file with MODELS holds one command for each of them.
    for member, function in getattr(module, "MODELS", {name: module.main}).items():
        # In a raw docstring \b is two characters; click's mark for "keep these lines" is what it stands for.
        text = inspect.cleandoc(function.__doc__ or "").replace("\\b\n", "\b\n")
        command.command(member, help=text)(function)
    typer.main.get_command(command).main(args=arguments, prog_name=f"echotrain {name}", standalone_mode=True)


def main() -> None:
    """Run the command line; errors that were raised on purpose become one line and an exit status."""
    try:
        with interrupts.interrupts_end_at_once():
            app = program()
        app()
    except SettingsError as error:
        say(error.code, str(error), error.advice)
        sys.exit(2)
    except (ServerError, PipelineError, ModelError) as error:
        say(error.code, str(error), error.advice)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(interrupts.STATUS)


def say(code: str, message: str, advice: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"echotrain: {code}: {message.rstrip('.')}. {advice}\n")


if __name__ == "__main__":
    main()
