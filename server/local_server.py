"""A server of one's own on this machine: started as a process, waited for, stopped. For the demo and the benchmarks."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from server.errors import ServerError

_LISTENS: Final = re.compile(r"listens on \S*:(\d+) for scans and on \S*:(\d+) for health")
_STOP_S: Final = 15.0


class StartError(ServerError):
    """The server did not come up."""

    code = "no_start"
    advice = "Run `echotrain doctor`, and read the server's log."


@dataclass(frozen=True, slots=True)
class LocalServer:
    """Where the server listens on loopback."""

    port: int
    admin_port: int
    process_id: int


@contextmanager
def local_server(
    log: Path, arguments: Sequence[str] = (), *, timeout_s: float = 120.0, waiting: Callable[[str], None] | None = None
) -> Generator[LocalServer]:
    """Run `echotrain serve` on free loopback ports until the block ends.

    Settings of the environment (ECHOTRAIN_...) are left out, so that it always starts the same.

    Args:
        log: file for what it writes.
        arguments: further arguments of `serve`.
        timeout_s: to be ready to reconstruct, workers included.
        waiting: called with what is being waited for.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ECHOTRAIN_")}
    command = [sys.executable, "-m", "server.cli", "serve", "--host", "127.0.0.1", "--port", "0", "--admin-port", "0"]
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with log.open("w") as log_file:
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=log_file, text=True, env=environment
        )
        try:
            say = waiting or (lambda _: None)
            say("starting the server")
            port, admin_port = _ports(process, log, deadline)
            say("loading the workers")
            _wait_until_ready(process, admin_port, log, deadline)
            yield LocalServer(port, admin_port, process.pid)
        finally:
            _stop(process)


def _ports(process: subprocess.Popen[str], log: Path, deadline: float) -> tuple[int, int]:
    """The ports out of the line that `serve` prints once they are open."""
    lines: list[str] = []
    output = process.stdout
    if output is None:
        raise StartError("the server has no output")

    def read(stream: TextIO) -> None:
        # To the end: a full pipe would stop the server.
        lines.extend(iter(stream.readline, ""))

    threading.Thread(target=read, args=(output,), daemon=True, name="output of the server").start()
    while time.monotonic() < deadline:
        for line in lines:
            if match := _LISTENS.search(line):
                return int(match[1]), int(match[2])
        _check_alive(process, log)
        time.sleep(0.02)
    raise StartError("the server did not open its ports in time")


def _wait_until_ready(process: subprocess.Popen[str], admin_port: int, log: Path, deadline: float) -> None:
    said = "it did not answer"
    while time.monotonic() < deadline:
        _check_alive(process, log)
        connection = http.client.HTTPConnection("127.0.0.1", admin_port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            if response.status == 200:
                return
            said = response.read(500).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException):
            # Its HTTP side opens a little later than the port for scans.
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise StartError(f"the server was not ready in time ({said}); its log is {log}")


def _check_alive(process: subprocess.Popen[str], log: Path) -> None:
    if process.poll() is not None:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["(its log is empty)"]
        raise StartError(f"the server ended with status {process.returncode}: {last[0][:300]}")


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
