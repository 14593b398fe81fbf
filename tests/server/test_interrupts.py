"""Ctrl-C at any moment: status 130 and no traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Role
from server.wire.messages import Close, Header
from tests.server.wire import examples

DURING_IMPORT = """
import os, signal, sys
from server import cli

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                print("still here", flush=True)
            except BaseException:
                pass  # as C extensions do

interrupted = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
cli.main()
"""

SLOW = """
import sys, time
from server.execution.inline import InlineExecutor
from server import cli

stop = InlineExecutor.stop

def work(*_):
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)

async def say_and_stop(self):
    print("stopping", file=sys.stderr, flush=True)
    await stop(self)

InlineExecutor._work, InlineExecutor.stop = work, say_and_stop
sys.argv[1:] = ["recon"]
cli.main()
"""


def start(script: str, *arguments: str, before: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
    """A process that SIGINT reaches, even where the tests run in the background of a script, which ignores it."""

    def reset() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if before is not None:
            before()

    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", preexec_fn=reset
    )


@pytest.mark.parametrize("module", ["typer", "server.commands.recon"])
def test_an_interrupt_during_imports_ends_the_command_silently(module: str) -> None:
    process = start(DURING_IMPORT, module, "recon", "--help")
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_a_second_interrupt_does_not_wait_for_the_reconstruction() -> None:
    scan = simulate(head_phantom(1, 16, 16), Protocol(n_coils=2, calibration_lines=0))
    stream = examples.encode(Role.STREAM, [Header(scan.header), *scan.batches, Close()])
    process = start(SLOW)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.buffer.write(stream)
    process.stdin.flush()
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    script = (
        "import os, signal; from server import interrupts\n"
        "with interrupts.interrupts_end_at_once(): os.kill(os.getpid(), signal.SIGINT)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    process = start(script, before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert process.communicate(timeout=60) == ("True\n", "")
    assert process.returncode == 0
