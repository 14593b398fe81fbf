"""From the last readout sent to the first image byte received, on a warm server, by stage.

    python tests/benchmarks/latency.py [SCANS] [PIPELINE] [MATRIX] [COILS]

256 x 256 x 8 coils unless said otherwise, every second line (R = 2) and 24 calibration lines, one slice a scan. All but
the last readout are sent and taken before the clock starts. What the worker itself spends (preparation, maps, solve,
uncertainty, emission) is read from the server's own metrics; the rest is the server's overhead. Medians over the scans.
"""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from pipelines.phantom import head_phantom
from pipelines.simulate import simulate
from pipelines.simulated_protocol import Protocol
from server.wire.connection import Connection, Role

WORK = ("noise", "csm", "recon", "uncertainty", "post")


def stages(admin_port: str) -> dict[str, float]:
    """Seconds by stage so far, the wait for a worker and the time to the first image as the server sees it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/metrics") as reply:
        text = reply.read().decode()
    found = {
        match[1]: float(match[2]) for match in re.finditer(r'stage_duration_seconds_sum\{.*stage="(\w+)"\} (\S+)', text)
    }
    for name in ("queue_wait", "first_image"):
        found[name] = sum(float(value) for value in re.findall(rf"echotrain_{name}_seconds_sum{{.*}} (\S+)", text))
    return found


def main(scans: int, pipeline: str, matrix: int, coils: int) -> None:
    scan = simulate(head_phantom(1, matrix, matrix), Protocol(n_coils=coils, acceleration=2))
    connection = Connection(Role.CLIENT)
    start = b"".join([*connection.config_file(pipeline), *connection.header(scan.header)])
    readouts = b"".join(part for batch in scan.batches for part in connection.acquisitions(batch))
    close = b"".join(connection.close())
    last = len(readouts) - (342 + scan.batches[-1].samples[0].nbytes)

    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli", "serve", "--port", "0", "--admin-port", "0"),
            *("--pipeline", pipeline, "--set", "logs.level=error"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port, admin_port = re.findall(r":(\d+) ", server.stdout.readline())
    rows: list[dict[str, float]] = []
    for number in range(scans + 3):
        before = stages(admin_port)
        with socket.create_connection(("127.0.0.1", int(port))) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(start + readouts[:last])
            time.sleep(0.1)
            started = time.perf_counter()
            sock.sendall(readouts[last:])
            first = sock.recv(1)
            total = time.perf_counter() - started
            assert first == b"\xfe", first
            sock.sendall(close)
            while sock.recv(1 << 20):
                pass
        after = stages(admin_port)
        row = {name: after[name] - before.get(name, 0.0) for name in after}
        row["total"] = total
        row["work"] = sum(row.get(name, 0.0) for name in WORK)
        row["overhead"] = total - row["work"]
        if number >= 3:  # the first ones warm caches up
            rows.append(row)
    server.terminate()
    server.wait()
    what = f"{pipeline}, {matrix} x {matrix} x {coils} coils, R = 2, {scans} scans"
    print(f"{what}; medians in ms (10th to 90th percentile)")
    for name in ("total", "first_image", *WORK, "work", "queue_wait", "send", "overhead"):
        values = sorted(row.get(name, 0.0) * 1e3 for row in rows)
        low, high = values[len(values) // 10], values[-1 - len(values) // 10]
        print(f"{name:>12} {statistics.median(values):>8.2f}   ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    given = [*sys.argv[1:], *("30", "sense", "256", "8")[len(sys.argv) - 1 :]]
    main(int(given[0]), given[1], int(given[2]), int(given[3]))
