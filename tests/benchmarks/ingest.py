"""How fast the front takes readouts, from a real socket into shared memory.

    python tests/benchmarks/ingest.py [ROUNDS]

One sender process; the reader under test in another: `echotrain` is the whole front (uvloop, wire, assembly into the
executor's shared memory, jobs that are dropped), `bare` only `recv_into`s, `ismrmrd` reads each readout with
ismrmrd-python's deserialiser as peers written in Python do. A round sends the same bytes to each in turn; the time runs
from the first byte until the reader has said that it has read the last. Medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import uvloop

from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server import logs
from server.config import load
from server.execution.executor import Health, Job, JobResult
from server.execution.shared_memory import SharedSlots
from server.listener import Server
from server.metrics import Metrics
from server.wire.connection import Connection, Role

SHAPES = ((128, 1), (256, 8), (512, 32))
READERS = ("bare", "echotrain", "ismrmrd")
BYTES_PER_ROUND = 192 << 20
LINES = 256


class DroppingExecutor:
    """Takes jobs and drops them: what is timed is the front."""

    def __init__(self) -> None:
        self.slots = SharedSlots(2 << 30)

    async def start(self) -> None:
        self.slots.prefault()

    async def run(self, job: Job, *, on_progress: Callable[[str], None] | None = None) -> JobResult:  # noqa: ARG002
        return JobResult(())

    def health(self) -> Health:
        return Health({"idle": 1}, 0)

    async def stop(self) -> None:
        self.slots.close()


def read_with_echotrain() -> None:
    async def run() -> None:
        flags = {"listen.port": 0, "admin.enabled": False, "logs.level": "error"}
        settings = load(flags=flags, environment={}).settings
        logs.configure("error")
        server = Server(settings, DroppingExecutor(), Metrics())
        await server.start()
        print(server.port, flush=True)
        await asyncio.Event().wait()

    uvloop.run(run())


def read_with(consume) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            consume(sock)
            sock.sendall(struct.pack("<H", 4))


def consume_bare(sock: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    while sock.recv_into(buffer):
        pass


def consume_with_ismrmrd(sock: socket.socket) -> None:
    import ismrmrd

    stream = sock.makefile("rb", buffering=1 << 20)
    while True:
        message_id = struct.unpack("<H", stream.read(2))[0]
        if message_id == 1008:
            ismrmrd.Acquisition.deserialize_from(stream.read)
        elif message_id == 1:
            stream.read(1024)
        elif message_id == 3:
            stream.read(struct.unpack("<I", stream.read(4))[0])
        elif message_id == 4:
            return


def build(samples: int, coils: int) -> tuple[bytes, int]:
    """A session's bytes, and how many readouts it has."""
    scan = simulate(
        head_phantom(1, LINES, samples // 2), Protocol(n_coils=coils, noise_readouts=0, calibration_lines=0)
    )
    header = re.sub(rb"(<repetition>\s*<minimum>0</minimum>\s*<maximum>)\d+", rb"\g<1>65535", scan.header)
    frame_headers = np.concatenate([batch.headers for batch in scan.batches])
    frame_samples = np.concatenate([batch.samples for batch in scan.batches])
    n_frames = max(2, BYTES_PER_ROUND // (LINES * (342 + 8 * samples * coils)))
    connection = Connection(Role.CLIENT)
    parts = [*connection.config_file("zero_filled"), *connection.header(header)]
    for frame in range(n_frames):
        heads = frame_headers.astype(ACQUISITION_HEADER)
        heads["idx"]["repetition"] = frame
        heads["flags"][-1] = AcquisitionFlag.LAST_IN_SLICE.mask
        parts.append(b"".join(connection.acquisitions(Acquisitions(heads, frame_samples))))
    parts += connection.close()
    return b"".join(parts), n_frames * LINES


def send(samples: int, coils: int) -> None:
    """The sender: a port a line comes in, the time goes out."""
    stream, readouts = build(samples, coils)
    view = memoryview(stream)
    print(json.dumps({"bytes": len(stream), "readouts": readouts}), flush=True)
    for line in sys.stdin:
        with socket.create_connection(("127.0.0.1", int(line))) as sock:
            started = time.perf_counter()
            for at in range(0, len(view), 1 << 20):
                sock.sendall(view[at : at + (1 << 20)])
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(1 << 16)
            seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "answer": answer.hex()}), flush=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def main(rounds: int) -> None:
    readers = {name: start("--read", name) for name in READERS}
    ports = {name: reader.stdout.readline() for name, reader in readers.items() if reader.stdout}
    print(f"{'samples x coils':>16} {'reader':>10} {'readouts/s':>12} {'MB/s':>8} {'of bare':>8} {'x ismrmrd':>10}")
    for samples, coils in SHAPES:
        sender = start("--send", str(samples), str(coils))
        assert sender.stdin is not None
        assert sender.stdout is not None
        size = json.loads(sender.stdout.readline())
        seconds: dict[str, list[float]] = {name: [] for name in READERS}
        for number in range(rounds + 1):
            for name in READERS:
                sender.stdin.write(ports[name])
                sender.stdin.flush()
                reply = json.loads(sender.stdout.readline())
                assert reply["answer"] == "0400", bytes.fromhex(reply["answer"])
                if number:  # the first one warms up
                    seconds[name].append(reply["seconds"])
        sender.stdin.close()
        sender.wait()
        median = {name: statistics.median(values) for name, values in seconds.items()}
        for name in READERS:
            print(
                f"{samples:>12} x {coils:<2} {name:>9} {size['readouts'] / median[name]:>12,.0f}"
                f" {size['bytes'] / median[name] / 1e6:>8,.0f} {median['bare'] / median[name]:>8.2f}"
                f" {median['ismrmrd'] / median[name]:>10.1f}",
                flush=True,
            )
    for reader in readers.values():
        reader.terminate()
        reader.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        if sys.argv[2] == "echotrain":
            read_with_echotrain()
        else:
            read_with({"bare": consume_bare, "ismrmrd": consume_with_ismrmrd}[sys.argv[2]])
    elif sys.argv[1:2] == ["--send"]:
        send(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
