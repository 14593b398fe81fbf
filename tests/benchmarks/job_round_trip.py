"""What the way to a worker and back costs, apart from the reconstruction itself.

    python tests/benchmarks/job_round_trip.py [--jobs 200]

A group of 256 x 256 x 8 coils lies in shared memory; two float32 images of 256 x 256 come back. The pipelines here do
nothing (`echo`), or read every sample once (`read`), so what is left is the executor. All cases are interleaved in
one run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.assembly.frame import Completion, Group, GroupKey
from pipelines.mrd import ACQUISITION_HEADER, IMAGE_HEADER, Image
from pipelines.scan_header import Encoding, ScanHeader, Space
from server.execution.encoding import encode_job
from server.execution.executor import Job
from server.execution.inline import InlineExecutor
from server.execution.process_pool import ProcessExecutor
from server.execution.shared_memory import SharedSlots

COILS, N = 8, 256
MIB = 1 << 20


@dataclass
class Output:
    images: tuple[Image, ...]
    stages_s: dict[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()


class EchoPipeline:
    """Returns two images that were made before; `read` also adds up all samples."""

    def __init__(self, name: str, parameters: Mapping[str, object], device: str) -> None:  # noqa: ARG002
        self._reads = name == "read"
        header = np.zeros((), IMAGE_HEADER)
        meta = {f"Name{i}": ["a value of usual length"] for i in range(25)}
        self._images = tuple(Image(header, np.ones((1, 1, N, N), np.float32), meta) for _ in range(2))

    def __call__(self, group: Group, provenance: Mapping[str, str]) -> Output:  # noqa: ARG002
        started = time.perf_counter()
        if self._reads:
            group.kspace.sum()
        return Output(self._images, {"recon": time.perf_counter() - started})


def make_job(slots: SharedSlots, name: str) -> Job:
    slot = slots.take(N * COILS * N * 8 + 4 * N)
    memory = slot.data[: -4 * N].view(np.complex64).reshape(1, 1, N, COILS, N)
    memory[...] = 1
    space = Space((N, N, 1), (256.0, 256.0, 5.0))
    group = Group(
        key=GroupKey(0, 0, 0, 0, 0, 0),
        kspace=np.moveaxis(memory, 3, 1),
        counts=slot.data[-4 * N :].view(np.float32).reshape(1, 1, N),
        calibration_lines=np.ones((1, N), np.bool_),
        readout_extent=(0, N),
        headers=np.zeros(1, ACQUISITION_HEADER),
        scan=ScanHeader((Encoding(space, space),)),
        completion=Completion.FLAG,
        slots=(slot,),
    )
    return Job("session", name, {}, group, {"Session": "x", "Product": "echotrain"})


def show(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    print(
        f"  {name:58s} median {1e3 * statistics.median(ordered):8.3f} ms   "
        f"min {1e3 * ordered[0]:8.3f}   p95 {1e3 * ordered[int(0.95 * (len(ordered) - 1))]:8.3f}"
    )


def ping(n: int) -> list[float]:
    """One byte to a thread and back over a socket pair: a floor that only waking up costs."""
    ours, theirs = socket.socketpair()

    def echo() -> None:
        while data := theirs.recv(1):
            theirs.send(data)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    found: list[float] = []
    for _ in range(n):
        started = time.perf_counter()
        ours.send(b"x")
        ours.recv(1)
        found.append(time.perf_counter() - started)
    ours.close()
    thread.join()
    theirs.close()
    return found


async def round_trips(n: int) -> None:
    pipeline = "job_round_trip:EchoPipeline"
    started = time.perf_counter()
    pool = ProcessExecutor(1, "cpu", 1, 512 * MIB, pipeline=pipeline)
    await pool.start()
    start_s = time.perf_counter() - started
    inline = InlineExecutor(memory_budget_bytes=64 * MIB, pipeline=pipeline)
    jobs = {name: make_job(pool.slots, name) for name in ("echo", "read")}
    await pool.run(jobs["echo"])
    print("start")
    ready_s = time.perf_counter() - started
    print(f"  start() returned after {1e3 * start_s:.1f} ms, the first job was done after {ready_s:.2f} s")
    await inline.start()
    inline_job = make_job(inline.slots, "echo")
    await inline.run(inline_job)
    times: dict[str, list[float]] = {
        name: [] for name in ("echo", "read", "read, outside the pipeline", "inline", "encode")
    }
    for i in range(n + 20):
        for name in ("echo", "read"):
            started = time.perf_counter()
            result = await pool.run(jobs[name])
            taken = time.perf_counter() - started
            if i >= 20:
                times[name].append(taken)
                if name == "read":
                    times["read, outside the pipeline"].append(taken - result.stages_s["recon"])
        started = time.perf_counter()
        await inline.run(inline_job)
        times["inline"].append(time.perf_counter() - started)
        started = time.perf_counter()
        encode_job(jobs["echo"], pool.slots)
        times["encode"].append(time.perf_counter() - started)
    size = f"{N} x {N} x {COILS} ({N * N * COILS * 8 / MIB:.0f} MiB)"
    print(f"round trip, {size}, two float32 images back, {n} interleaved jobs")
    show("process: nothing read", times["echo"])
    show("process: every sample read", times["read"])
    show("process: every sample read, time outside the pipeline", times["read, outside the pipeline"])
    show("inline: nothing read", times["inline"])
    show("of which encoding of the job", times["encode"])
    show("one byte to a thread and back", ping(n))
    await deaths(pool, jobs["echo"])
    await pool.stop()
    await inline.stop()


async def deaths(pool: ProcessExecutor, job: Job) -> None:
    seen, replaced = [], []
    for _ in range(20):
        restarts = sum(pool.health().restarts.values())
        while not pool.health().workers.get("idle"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        started = time.perf_counter()
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        while sum(pool.health().restarts.values()) == restarts:  # noqa: ASYNC110
            await asyncio.sleep(0)
        seen.append(time.perf_counter() - started)
        await pool.run(job)
        replaced.append(time.perf_counter() - started)
    print("kill -9 of an idle worker, 20 times")
    show("until it is seen", seen)
    show("until a new worker has done a job", replaced)


def slots(n: int) -> None:
    size = N * N * COILS * 8
    times: dict[str, list[float]] = {name: [] for name in ("take", "fill", "release", "fresh")}
    source = SharedSlots(512 * MIB, prefault_bytes=0)
    data = np.ones(size, np.uint8)
    source.take(size).release()
    for i in range(n):
        started = time.perf_counter()
        slot = source.take(size)
        taken = time.perf_counter()
        slot.data[...] = data
        filled = time.perf_counter()
        slot.release()
        released = time.perf_counter()
        if i:
            times["take"].append(taken - started)
            times["fill"].append(filled - taken)
            times["release"].append(released - filled)
    held = []
    for _ in range(min(n, 60)):
        slot = source.take(size)
        started = time.perf_counter()
        slot.data[...] = data
        times["fresh"].append(time.perf_counter() - started)
        held.append(slot)
    source.close()
    print(f"slots of {size / MIB:.0f} MiB")
    show("take", times["take"])
    show("fill pages in use", times["fill"])
    show("release (zeroes)", times["release"])
    show("fill fresh pages, as the first scan would without prefault", times["fresh"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    n = parser.parse_args().jobs
    asyncio.run(round_trips(n))
    slots(n)


if __name__ == "__main__":
    sys.exit(main())
