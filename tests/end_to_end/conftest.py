"""A real server process, a small scan, and a plain socket that says whatever a test wants."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pipelines.mrd import Image
from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Connection, Role
from server.wire.messages import Close, Text
from tests.end_to_end.gadgetron_node import Child, plain_images
from tests.end_to_end.gadgetron_parent import Parent


@dataclass
class Process:
    """`echotrain serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    admin_port: int
    records: Path
    gadgetron_port: int = 0

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as reply:
            return reply.read().decode()

    def log(self) -> str:
        return self.records.read_text()

    def wait_until_ready(self) -> None:
        due = time.monotonic() + 60
        while "true" not in _quietly(self.get, "/startupz"):
            assert time.monotonic() < due, self.log()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        return '"ready":true' in _quietly(self.get, "/readyz").replace(" ", "")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def _quietly(call: Callable[[str], str], argument: str) -> str:
    try:
        return call(argument)
    except OSError:
        return ""


@dataclass
class Heard:
    """What a server said until it closed."""

    texts: list[str] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    closed: bool = False
    ended_s: float = 0.0

    @property
    def error(self) -> str:
        return next((text for text in self.texts if text.startswith("ERROR")), "")


@dataclass
class Peer:
    """A plain socket; what comes back is read with the client's side of the wire."""

    sock: socket.socket

    def say(self, *parts: bytes | memoryview) -> None:
        self.sock.sendall(b"".join(parts))

    def hear(self, timeout_s: float = 20) -> Heard:
        connection, heard, started = Connection(Role.CLIENT), Heard(), time.monotonic()
        self.sock.settimeout(timeout_s)
        while n := self.sock.recv_into(connection.writable()):
            connection.received(n)
            while (event := connection.next_event()) is not None:
                if isinstance(event, Text):
                    heard.texts.append(event.text)
                elif isinstance(event, Image):
                    heard.images.append(event)
                elif isinstance(event, Close):
                    heard.closed = True
        heard.ended_s = time.monotonic() - started
        return heard


class Says:
    """Messages as bytes, right ones and wrong ones."""

    CLOSE = struct.pack("<H", 4)

    @staticmethod
    def config(name: str | bytes) -> bytes:
        return struct.pack("<H1024s", 1, name.encode() if isinstance(name, str) else name)

    @staticmethod
    def text(message_id: int, text: str | bytes, length: int | None = None) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return struct.pack("<HI", message_id, len(data) if length is None else length) + data

    @staticmethod
    def readouts(scan: SimulatedScan, n_batches: int | None = None) -> bytes:
        connection = Connection(Role.CLIENT)
        connection.config_file("x")
        connection.header(b"x")
        return b"".join(part for batch in scan.batches[:n_batches] for part in connection.acquisitions(batch))


@pytest.fixture(scope="session")
def scan() -> SimulatedScan:
    """Two slices, two repetitions, four coils, every second line."""
    protocol = Protocol(n_coils=4, acceleration=2, calibration_lines=16, repetitions=2, seed=7)
    return simulate(head_phantom(2, 64, 64), protocol)


@pytest.fixture(scope="session")
def says() -> type[Says]:
    return Says


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Process]:
    """Start a server process; whoever starts it stops it."""

    def start(*settings: str) -> Process:
        records = tmp_path_factory.mktemp("server") / "records.jsonl"
        arguments = [
            part for setting in ("workers.threads=1", "workers.device=cpu", *settings) for part in ("--set", setting)
        ]
        with records.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "serve", "--port", "0", "--admin-port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("ECHOTRAIN_")},
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
        ports = [int(port) for port in re.findall(r":(\d+) ", line)]
        assert len(ports) in (2, 3), records.read_text()
        return Process(process, ports[0], ports[1], records, *ports[2:])

    return start


@pytest.fixture(scope="session")
def running(start_server: Callable[..., Process]) -> Iterator[Process]:
    """A server with short timeouts that all tests share: what one of them does must not hurt the others.

    Short, but no shorter than a busy machine may pause a test between two messages; scans that are left open beside
    others wait for as long as twenty of those take.
    """
    server = start_server(
        "limits.sessions=8",
        "timeouts.first_message_s=2",
        "timeouts.message_s=2",
        "timeouts.idle_s=6",
        "timeouts.linger_s=1",
        "pipelines.default=zero_filled",
    )
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "unhandled" not in server.log()
    assert "an internal error" not in server.log()


@pytest.fixture
def connect(running: Process) -> Iterator[Callable[[], Peer]]:
    """Connect to the shared server, once it has closed what earlier tests left open."""
    due = time.monotonic() + 10
    while json.loads(running.get("/sessions"))["sessions"] and time.monotonic() < due:
        time.sleep(0.05)
    peers: list[Peer] = []

    def make() -> Peer:
        peers.append(Peer(socket.create_connection(("127.0.0.1", running.port), timeout=20)))
        return peers[-1]

    yield make
    for peer in peers:
        peer.sock.close()


# ---- external nodes of Gadgetron


@pytest.fixture(scope="module")
def node_scan() -> SimulatedScan:
    """One slice, three repetitions, two coils, no noise readouts: what a node sees behind NoiseAdjust."""
    protocol = Protocol(n_coils=2, calibration_lines=0, repetitions=3, noise_readouts=0, seed=3)
    return simulate(head_phantom(1, 48, 48), protocol)


@pytest.fixture(scope="module")
def serving(start_server: Callable[..., Any]) -> Iterator[Any]:
    """A server with a port for Gadgetron as well."""
    server = start_server(
        "gadgetron.enabled=true", "gadgetron.port=0", "pipelines.default=zero_filled", "timeouts.linger_s=1"
    )
    server.wait_until_ready()
    yield server
    assert server.stop() == 0
    assert "unhandled" not in server.log()
    assert "an internal error" not in server.log()


@pytest.fixture
def attach(serving: Any) -> Callable[[], Parent]:
    """Gadgetron connects to us."""
    return lambda: Parent(socket.create_connection(("127.0.0.1", serving.gadgetron_port), timeout=20))


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """We connect to Gadgetron: started by hand, or by Gadgetron through the package."""
    children: list[Child] = []

    def start(way: str, target: str = "zero_filled", **environment: str) -> Child:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.settimeout(60)
        port = str(listening.getsockname()[1])
        arguments = {
            "connect": ["-m", "server.cli", "serve", "--connect-to", port, "--pipeline", target, "--device", "cpu"],
            "execute": ["-m", "gadgetron", port, "server.gadgetron_node", target],
        }[way]
        ours = {
            "ECHOTRAIN_WORKERS__DEVICE": "cpu",
            "ECHOTRAIN_WORKERS__THREADS": "1",
            "ECHOTRAIN_TIMEOUTS__LINGER_S": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECHOTRAIN_")}
        records = tmp_path / f"records{len(children)}.txt"
        with records.open("w") as stream:
            process = subprocess.Popen([sys.executable, *arguments], stderr=stream, env=kept | ours | environment)
        sock, _ = listening.accept()
        listening.close()
        children.append(Child(process, Parent(sock), records))
        return children[-1]

    yield start
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait()


@pytest.fixture(scope="module")
def wanted(serving: Any, node_scan: SimulatedScan, says: Any) -> list[np.ndarray]:
    images = plain_images(serving, node_scan, says)
    assert len(images) == 6
    return images
