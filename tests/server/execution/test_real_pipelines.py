"""The pipelines of the registry through both executors."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ParameterError, UnknownPipelineError
from server.execution.executor import Job, JobResult
from server.execution.inline import InlineExecutor
from server.execution.process_pool import ProcessExecutor
from server.execution.warm_up import tiny_group

NAMES = ("zero_filled", "sense")


def job(name: str, **parameters: Any) -> Job:
    return Job("session-1", name, parameters, tiny_group(), {"ReconSession": "session-1"})


def essence(result: JobResult) -> list[Any]:
    return [(image.header.tobytes(), image.pixels.tobytes(), image.meta) for image in result.images]


async def test_both_executors_give_the_same_images_and_a_killed_worker_changes_no_bit() -> None:
    inline = InlineExecutor("cpu", 16 << 20)
    pool = ProcessExecutor(1, "cpu", 1, 16 << 20, warm=[(name, {}) for name in NAMES])
    await inline.start()
    await pool.start()
    try:
        for name in NAMES:
            expected = essence(await inline.run(job(name)))
            assert essence(await pool.run(job(name))) == expected
            # Several at once, so that the kill meets one of them at work.
            running = [asyncio.create_task(pool.run(job(name, whiten=True))) for _ in range(12)]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            results = await asyncio.gather(*running)
            assert sum(result.attempts for result in results) == 13
            assert all(essence(result)[0][1] == expected[0][1] for result in results)
        assert pool.health().problems == ()
        with pytest.raises(UnknownPipelineError, match="this server offers"):
            await pool.run(job("os.system"))
        with pytest.raises(ParameterError, match="iterations"):
            await pool.run(job("sense", iterations=0))
    finally:
        await pool.stop()
        await inline.stop()


async def test_an_image_and_its_uncertainty_come_back_in_order() -> None:
    pool = ProcessExecutor(1, "auto", 1, 16 << 20)
    await pool.start()
    try:
        for name in NAMES:
            magnitude, deviation = (await pool.run(job(name))).images
            assert magnitude.pixels.dtype == deviation.pixels.dtype == np.float32
            assert magnitude.header["image_series_index"] != deviation.header["image_series_index"]
            assert 0 < np.median(deviation.pixels) < np.median(magnitude.pixels[magnitude.pixels > 0.5])
            assert magnitude.meta["ReconSession"] == ["session-1"]
    finally:
        await pool.stop()
