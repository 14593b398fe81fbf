"""How long a cold server takes to answer its first connection, and to be ready to reconstruct.

    python tests/benchmarks/cold_start.py [STARTS]

A client tries to connect from the moment the process is started, every 5 ms, and asks a QUERY (id 6), which the front
answers by itself while torch is still loading in the workers. Scanners give up after about ten tries of 3 s.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

from server.wire.connection import Connection, Role
from server.wire.messages import Response


def free_port() -> int:
    """A port of loopback that nobody listens on now.

    Below the range that the system hands out: a client that tries such a port before the server has it may be given the
    same port for itself, and then talks to itself.
    """
    for port in range(20_000, 30_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def answered(port: int) -> str:
    """Try for a minute until a QUERY is answered; the answer."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = Connection(Role.CLIENT)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(b"".join(connection.query(1, "gadgetron::version")))
            while n_bytes := sock.recv_into(connection.writable()):
                connection.received(n_bytes)
                event = connection.next_event()
                if isinstance(event, Response):
                    return event.text
        time.sleep(0.005)
    raise TimeoutError("the server did not answer within a minute")


def ready(port: int) -> None:
    """Wait until /readyz answers 200, a minute at most."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            return
        time.sleep(0.02)
    raise TimeoutError("the server was not ready within a minute")


def start() -> tuple[float, float]:
    """Seconds from the start of the process to its first answer, and to ready."""
    port = free_port()
    admin_port = port + 10_000
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port), "--admin-port", str(admin_port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answered(port)
        first = time.perf_counter() - began
        ready(admin_port)
        return first, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def main(starts: int) -> None:
    times = [start() for _ in range(starts)]
    for name, column in zip(("first answer", "ready to reconstruct"), zip(*times, strict=True), strict=True):
        print(f"{name}: median {statistics.median(column):.2f} s, min {min(column):.2f}, max {max(column):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
