"""The `echotrain` command: a table of commands, each one file in `server/commands`, imported only when it is asked for.

So `echotrain serve` never pays for, nor loads, what other commands need (torch, matplotlib, h5py). To add a command,
write `server/commands/NAME.py` with a function `main` whose annotated arguments are typer's, and add its line to
`COMMANDS`.

Exit statuses of every command: 0 done, 1 what was asked for did not succeed, 2 wrong arguments or settings,
130 interrupted.
"""

from __future__ import annotations

import inspect
import os
import sys
from importlib import import_module
from typing import Final

import typer

from pipelines.errors import PipelineError
from server.errors import ServerError, SettingsError

COMMANDS: Final = {
    "serve": "Run the server: raw data in over MRD, images with uncertainty out.",
    "send": "Send a scan from a file to a server and save the images.",
    "recon": "Reconstruct a stream from standard input to standard output, without a server.",
    "convert": "Convert between MRD version 1 files and streams and MRD version 2 streams.",
    "simulate": "Simulate a scan into a file, or send it to a server.",
    "inspect": "Show what a scan file holds: header, encoding, flags, sampling, noise.",
    "view": "Make a picture of images: magnitude, uncertainty, difference to a reference.",
    "calibrate": "Compare a pipeline's uncertainty with errors of known data, and fit its scale.",
    "demo": "Start a server here, stream scans through it, leave pictures and files.",
    "noise": "List or export the noise measurements that a server has kept.",
    "config": "Show every setting, its value and where the value came from.",
    "doctor": "Check this machine and print a fix for whatever is wrong.",
}
"""Name of each command and what it does, in the order of the help page."""

app = typer.Typer(
    name="echotrain",
    help="MR reconstruction server: raw data in over MRD/Gadgetron, images with pixel-wise uncertainty out.\n\n"
    "Example: echotrain serve --port 9002",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common() -> None:
    """Nothing is common to all commands yet; with this the program keeps its sub-commands even if there is only one."""


def run_command(name: str, arguments: list[str]) -> None:
    """Import the file of a command and run it with these arguments."""
    if name == "serve":
        # numpy makes its threads at import. In the front process they would only be in the way: summing a noise readout
        # of 64 coils took 0.4 ms with one thread, and 1 to 20 ms with two on a busy machine.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module = import_module(f"server.commands.{name}")
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    # In a raw docstring \b is two characters; click's mark for "keep these lines as they are" is the one it stands for.
    text = inspect.cleandoc(module.main.__doc__ or "").replace("\\b\n", "\b\n")
    command.command(name, help=text)(module.main)
    typer.main.get_command(command).main(args=arguments, prog_name=f"echotrain {name}", standalone_mode=True)


def _register(name: str, summary: str) -> None:
    def forward(context: typer.Context) -> None:
        run_command(name, context.args)

    # No help option here: `echotrain NAME --help` belongs to the command's own file.
    forwarded = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}
    app.command(name, help=summary, context_settings=forwarded)(forward)


for _name, _summary in COMMANDS.items():
    _register(_name, _summary)


def main() -> None:
    """Run the command line; errors that were raised on purpose become one line and an exit status."""
    try:
        app()
    except SettingsError as error:
        say(error.code, str(error), error.advice)
        sys.exit(2)
    except (ServerError, PipelineError) as error:
        say(error.code, str(error), error.advice)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def say(code: str, message: str, advice: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"echotrain: {code}: {message.rstrip('.')}. {advice}\n")


if __name__ == "__main__":
    main()
