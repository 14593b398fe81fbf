"""Runs in a network namespace of its own: the network between a server and its client goes away; when is it noticed?

    unshare --net python half_open.py idle|sending|slow

Prints seconds from the drop rule to the end of the session, or `alive` where it goes on as it should.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import uvloop

from pipelines.assembly.buffer import HeapSlots
from pipelines.mrd import IMAGE_HEADER, Image
from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server import logs
from server.config import load
from server.execution.executor import Health, Job, JobResult
from server.listener import Server
from server.metrics import Metrics
from server.wire.connection import Connection, Role

MOST_S = 40.0
SLOW_S = 14.0
"""For how long a client that lives reads nothing: longer than what is sent may go unacknowledged."""


class Brings:
    """Answers every job with one image of 32 MiB at once; no sockets hold that, and sixteen of them take a while."""

    def __init__(self) -> None:
        self.slots = HeapSlots()

    async def start(self) -> None: ...

    async def run(self, job: Job, **_: Any) -> JobResult:  # noqa: ARG002
        header = np.zeros((), IMAGE_HEADER)
        header["version"], header["data_type"], header["image_type"] = 1, 5, 1
        header["matrix_size"], header["channels"] = (4096, 2048, 1), 1
        return JobResult((Image(header, np.zeros((1, 1, 2048, 4096), np.float32), {}),))

    def health(self) -> Health:
        return Health({"idle": 1}, 0)

    async def stop(self) -> None: ...


async def main(case: str) -> str:
    logs.configure("error")
    server = Server(load(flags={"listen.port": 0}, environment={}).settings, Brings(), Metrics())
    await server.start()
    sock = socket.create_connection(("127.0.0.1", server.port))
    connection = Connection(Role.CLIENT)
    scan = simulate(head_phantom(1, 32, 32), Protocol(n_coils=2, calibration_lines=0, noise_readouts=4, repetitions=16))
    parts = [*connection.config_file("zero_filled"), *connection.header(scan.header)]
    if case != "idle":
        for batch in scan.batches:
            parts += connection.acquisitions(batch)
    sock.sendall(b"".join(parts))
    await asyncio.sleep(0.5)
    assert server.sessions
    session = next(iter(server.sessions.values()))
    if case == "slow":
        assert not session.socket.keeps_up
        await asyncio.sleep(SLOW_S)
        assert session.socket.is_open
        return "alive"
    if case == "sending":
        # The client reads at first, so that there is something on its way when the network goes.
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(64):
            await loop.sock_recv(sock, 1 << 14)
        # And goes on reading while it goes: a peer that has no room for more is another case, and waited for longer.
        with_room = asyncio.get_running_loop().create_task(_keep_reading(sock))
    await asyncio.to_thread(drop_all, server.port)
    started = time.monotonic()
    while server.sessions and time.monotonic() - started < MOST_S:  # noqa: ASYNC110 - a server has no event for this
        await asyncio.sleep(0.02)
    if case == "sending":
        with_room.cancel()
    return f"{time.monotonic() - started:.1f}"


def drop_all(port: int) -> None:
    """Both ways: nothing comes through any more, and nobody is told."""
    for side in ("--sport", "--dport"):
        rule = ["iptables", "-A", "INPUT", "-p", "tcp", side, str(port), "-j", "DROP"]
        subprocess.run(rule, check=True)


async def _keep_reading(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        pass


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print(uvloop.run(main(sys.argv[1])), flush=True)
