"""Pools of worker processes for tests: one that runs, one to wait for, a job for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fake_jobs import make_group, make_job

from server.execution.executor import JobResult
from server.execution.process_pool import ProcessExecutor

FAKE = "fake_pipeline:FakePipeline"


@asynccontextmanager
async def running_pool(workers: int = 1, **options: Any) -> AsyncIterator[ProcessExecutor]:
    settings = {"device": "cpu", "threads_per_worker": 1, "memory_budget_bytes": 64 << 20, "pipeline": FAKE, **options}
    pool = ProcessExecutor(workers, **settings)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  nothing here tells when it happens
            await asyncio.sleep(0.005)


async def until_idle(pool: ProcessExecutor, workers: int = 1) -> None:
    await until(lambda: pool.health().workers == {"idle": workers})


async def run(
    pool: ProcessExecutor, seed: int = 0, *, on_progress: Callable[[str], None] | None = None, **parameters: Any
) -> JobResult:
    group = make_group(pool.slots, seed)
    try:
        return await pool.run(make_job(group, **parameters), on_progress=on_progress)
    finally:
        group.release()


def pixels(result: JobResult) -> bytes:
    return b"".join(image.pixels.tobytes() for image in result.images)
