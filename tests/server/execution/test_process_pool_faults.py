"""Workers that hang, are slow, lose their GPU or die while they start: jobs go on, or fail with a code."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_jobs import Gate, make_group, make_job
from pools import pixels, run, running_pool, until_idle

from server.errors import OverdueError, WorkerLostError
from server.execution import pending
from server.execution.launcher import WorkerDiedError
from server.execution.process_pool import ProcessExecutor


async def test_a_hung_worker_is_killed_and_the_job_given_up_after_the_second() -> None:
    # Long enough for the first job of a fresh worker on a machine that is busy with other things.
    async with running_pool(job_timeout_s=2.0) as pool:
        with pytest.raises(WorkerLostError):
            await run(pool, 1, stop_itself=True)
        assert (await run(pool, 1)).attempts == 1
        assert pool.health().restarts == {"hang": 2}


async def test_a_worker_without_signs_of_life_is_replaced_in_time_to_run_its_job_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pending, "SILENCE_S", 6.0)
    async with running_pool() as pool:
        await until_idle(pool)
        undisturbed, gate = pixels(await run(pool, 4)), Gate(tmp_path)
        (pid,) = pool.worker_pids
        running = asyncio.create_task(run(pool, 4, hold=str(gate)))
        await gate.reached()
        await asyncio.sleep(7)  # held that long, and alive
        assert not running.done()
        assert pool.worker_pids == (pid,)
        os.kill(pid, signal.SIGSTOP)
        gate.open()
        result = await running
        assert (result.attempts, pixels(result)) == (2, undisturbed)
        assert pool.health().restarts == {"hang": 1}


async def test_workers_that_die_while_they_start_cost_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    until_ready, left = ProcessExecutor._until_ready, [2]

    async def unlucky(self: ProcessExecutor, seat: Any, worker: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise WorkerDiedError
        await until_ready(self, seat, worker)

    monkeypatch.setattr(ProcessExecutor, "_until_ready", unlucky)
    async with running_pool() as pool:
        assert (await run(pool, 1)).attempts == 1
        assert pool.health().restarts == {"crash": 2}


async def test_a_job_over_its_budget_is_given_up_at_once_and_the_next_one_runs() -> None:
    async with running_pool() as pool:
        await until_idle(pool)
        group = make_group(pool.slots)
        with pytest.raises(OverdueError, match=r"longer than its 0\.3 s"):
            await pool.run(replace(make_job(group, sleep_s=60.0), budget_s=0.3))
        group.release()
        assert (await run(pool, 1)).attempts == 1
        assert pool.health().restarts == {"budget": 1}


async def test_a_worker_that_lost_its_gpu_is_replaced_and_the_job_run_again() -> None:
    async with running_pool() as pool:
        with pytest.raises(WorkerLostError):
            await run(pool, **{"break": "CUDA error: device-side assert triggered"})
        await until_idle(pool)
        assert pool.health().restarts == {"cuda_error": 2}
