"""Readouts a second through the wire's parser alone: no socket, no assembly.

    python tests/benchmarks/wire_parse.py [SECONDS]

A stream of readouts is put into the receive buffer as a transport would, in pieces as large as `writable()` offers (at
most 256 KiB, what a socket returns), and parsed. The copy that stands for the socket is also measured alone. Medians of
interleaved rounds, one thread.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from pipelines.mrd import ACQUISITION_HEADER, Acquisitions
from server.wire.connection import Connection, Role

SHAPES = ((128, 1), (256, 8), (512, 32), (4096, 32))
PIECE = 256 << 10


def _stream(samples: int, coils: int) -> tuple[bytes, int]:
    """Bytes of about 16 MiB of readouts, and how many there are."""
    n = max(16, (16 << 20) // (342 + 8 * samples * coils))
    headers = np.zeros(n, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["active_channels"] = samples, coils
    data = np.zeros((n, coils, samples), np.complex64)
    client = Connection(Role.CLIENT)
    client.config_file("default")
    client.header(b"<x/>")
    return b"".join(client.acquisitions(Acquisitions.from_arrays(headers, data))), n


def _server() -> Connection:
    """A server that waits for data."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    start = b"".join([*client.config_file("default"), *client.header(b"<x/>")])
    server.writable()[: len(start)] = start
    server.received(len(start))
    while server.next_event() is not None:
        pass
    return server


def _parse(server: Connection, stream: bytes) -> tuple[float, int, int]:
    """Seconds, readouts and events of one pass."""
    source, position, readouts, events = memoryview(stream), 0, 0, 0
    start = time.perf_counter()
    while position < len(source):
        room = server.writable()
        n = min(len(room), PIECE, len(source) - position)
        room[:n] = source[position : position + n]
        server.received(n)
        position += n
        while (event := server.next_event()) is not None:
            assert isinstance(event, Acquisitions)
            readouts += len(event)
            events += 1
    return time.perf_counter() - start, readouts, events


def _copy(stream: bytes) -> float:
    """Seconds of the copies alone."""
    target, source = memoryview(bytearray(PIECE)), memoryview(stream)
    start = time.perf_counter()
    for position in range(0, len(source), PIECE):
        n = min(PIECE, len(source) - position)
        target[:n] = source[position : position + n]
    return time.perf_counter() - start


def main(seconds: float) -> None:
    """Print a line for each shape."""
    cases = {shape: (*_stream(*shape), _server()) for shape in SHAPES}
    times: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    events_per_pass = {}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for shape, (stream, n, server) in cases.items():
            elapsed, readouts, events = _parse(server, stream)
            assert readouts == n
            events_per_pass[shape] = events
            times[shape].append((elapsed, _copy(stream)))
    titles = ("readout", "readouts/s", "MB/s", "us each less copy", "readouts/event", "bare copy MB/s")
    print("".join(f"{title:>19}" for title in titles))
    for shape, (stream, n, _) in cases.items():
        total = statistics.median(elapsed for elapsed, _ in times[shape])
        copy = statistics.median(bare for _, bare in times[shape])
        alone = statistics.median(elapsed - bare for elapsed, bare in times[shape])
        row = (
            f"{shape[0]}x{shape[1]}",
            f"{n / total:,.0f}",
            f"{len(stream) / total / 1e6:,.0f}",
            f"{alone / n * 1e6:.3f}",
            f"{n / events_per_pass[shape]:.1f}",
            f"{len(stream) / copy / 1e6:,.0f}",
        )
        print("".join(f"{cell:>19}" for cell in row))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
