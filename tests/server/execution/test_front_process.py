"""The process that owns an executor: free of torch, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
FRONT = """
import asyncio, json, os, sys
from fake_jobs import make_group, make_job
from server.execution.process_pool import ProcessExecutor
import pipelines.registry

async def main():
    pool = ProcessExecutor(2, "cpu", 1, 64 << 20, pipeline="fake_pipeline:FakePipeline")
    await pool.start()
    group = make_group(pool.slots)
    await pool.run(make_job(group))
    while len(pool.worker_pids) < 2:
        await asyncio.sleep(0.01)
    busy = asyncio.create_task(pool.run(make_job(group, sleep_s=60)))
    await asyncio.sleep(0.05)
    heavy = [name for name in ("torch", "matplotlib", "h5py", "scipy") if name in sys.modules]
    print(json.dumps({"pids": pool.worker_pids, "heavy": heavy}), flush=True)
    END

asyncio.run(main())
"""


def start_front(end: str) -> tuple[subprocess.Popen[bytes], dict[str, list[int]], list[psutil.Process]]:
    """A front process with two workers, one of them busy; what it said, and all its descendants."""
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT.replace("END", end)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
    )
    assert front.stdout is not None
    said = json.loads(front.stdout.readline())
    family = psutil.Process(front.pid).children(recursive=True) if "sleep" in end else []
    return front, said, family


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_front_process_never_imports_torch_and_a_killed_one_leaves_nothing() -> None:
    named_before = set(Path("/dev/shm").iterdir())
    front, said, family = start_front("await asyncio.sleep(60)")
    try:
        assert said["heavy"] == []
        assert {process.pid for process in family} > set(said["pids"])
        assert len(family) == 3
        os.kill(front.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not all(ended(process) for process in family):
            assert time.monotonic() < deadline, f"still there: {family}"
            time.sleep(0.01)
        assert set(Path("/dev/shm").iterdir()) <= named_before
    finally:
        front.kill()
        front.communicate()


@pytest.mark.parametrize("end", ["os._exit(3)", "raise KeyError('x')"])
def test_a_front_process_that_does_not_stop_its_executor_leaves_no_worker(end: str) -> None:
    front, said, _ = start_front(end)
    _, _ = front.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while set(said["pids"]) & set(psutil.pids()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
