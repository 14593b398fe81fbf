"""What only worker processes can do: die, hang, and be replaced."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import uvloop
from fake_jobs import Gate, make_group, make_job
from pools import pixels, run, running_pool, until, until_idle

from server.errors import DrainingError, ExecutionError, WorkerLostError
from server.execution.process_pool import ProcessExecutor

in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ProcessExecutor]:
    async with running_pool(1, job_timeout_s=20.0) as made:
        yield made


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@in_module_loop
async def test_an_idle_worker_that_is_killed_is_replaced(pool: ProcessExecutor) -> None:
    await until_idle(pool)
    (pid,) = pool.worker_pids
    restarts = pool.health().restarts.get("crash", 0)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool.health().restarts.get("crash", 0) == restarts + 1)
    result = await run(pool)
    assert result.attempts == 1
    assert result.images[0].meta["pid"] != [str(pid)]
    assert pool.worker_pids != (pid,)


@in_module_loop
async def test_a_job_submitted_right_after_a_kill_succeeds(pool: ProcessExecutor) -> None:
    await until_idle(pool)
    os.kill(pool.worker_pids[0], signal.SIGKILL)
    assert pixels(await run(pool, 1)) == pixels(await run(pool, 1))


@in_module_loop
async def test_a_kill_during_a_job_changes_nothing_in_its_images(pool: ProcessExecutor, tmp_path: Path) -> None:
    undisturbed, gate = await run(pool, 2), Gate(tmp_path)
    await until_idle(pool)
    running = asyncio.create_task(run(pool, 2, hold=str(gate)))
    await gate.reached()
    os.kill(pool.worker_pids[0], signal.SIGKILL)
    gate.open()
    result = await running
    assert result.attempts == 2
    assert pixels(result) == pixels(undisturbed)
    assert pool.slots.bytes_in_use == 0


@in_module_loop
async def test_progress_begins_anew_on_the_second_worker(pool: ProcessExecutor, tmp_path: Path) -> None:
    heard: list[str] = []
    result = await run(pool, on_progress=heard.append, report=[10], deaths=str(tmp_path / "deaths"), die=1)
    assert result.attempts == 2
    assert [text.partition(",")[0] for text in heard] == ["waits: 10 %"] * 2


@in_module_loop
async def test_progress_that_is_no_text_fails_the_job_and_the_worker_is_replaced(pool: ProcessExecutor) -> None:
    await until_idle(pool)
    pids = pool.worker_pids
    with pytest.raises(ExecutionError, match="progress that cannot be read"):
        await run(pool, say=7)
    assert (await run(pool)).attempts == 1
    assert pool.worker_pids != pids
    assert pool.slots.bytes_in_use == 0


@in_module_loop
async def test_what_a_dying_worker_wrote_does_not_reach_the_next(pool: ProcessExecutor, tmp_path: Path) -> None:
    undisturbed = await run(pool, 3)
    result = await run(pool, 3, deaths=str(tmp_path / "deaths"), die=1)
    assert result.attempts == 2
    assert pixels(result) == pixels(undisturbed)
    assert result.images[0].meta["digest"] == undisturbed.images[0].meta["digest"]


@in_module_loop
async def test_a_job_that_kills_two_workers_is_given_up_and_the_pool_goes_on(
    pool: ProcessExecutor, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    with pytest.raises(WorkerLostError):
        await run(pool, 4, deaths=str(deaths), die=99)
    assert deaths.read_bytes() == b"xx"
    assert (await run(pool, 4)).attempts == 1
    assert pool.slots.bytes_in_use == 0


@in_module_loop
async def test_a_job_whose_worker_died_keeps_its_place_in_the_queue(pool: ProcessExecutor, tmp_path: Path) -> None:
    ended: list[str] = []

    async def note(name: str, **parameters: Any) -> None:
        await run(pool, **parameters)
        ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note("dies", deaths=str(tmp_path / "deaths"), die=1))
        tasks.create_task(note("second"))
        tasks.create_task(note("third"))
    assert ended == ["dies", "second", "third"]


@in_module_loop
async def test_a_cancelled_job_whose_worker_dies_is_not_run_again(pool: ProcessExecutor, tmp_path: Path) -> None:
    await until_idle(pool)
    touched, gate = tmp_path / "ran", Gate(tmp_path)
    running = asyncio.create_task(run(pool, 5, hold=str(gate), touch=str(touched)))
    await gate.reached()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert pool.slots.bytes_in_use > 0
    os.kill(pool.worker_pids[0], signal.SIGKILL)
    await until(lambda: pool.slots.bytes_in_use == 0)
    gate.open()
    await run(pool, 6)
    assert not touched.exists()


@in_module_loop
async def test_a_worker_whose_pipeline_keeps_a_view_is_replaced(pool: ProcessExecutor) -> None:
    first = await run(pool, 7, keep=True)
    assert first.attempts == 1
    second = await run(pool, 7)
    assert second.attempts == 1
    assert second.images[0].meta["pid"] != first.images[0].meta["pid"]
    assert pool.health().restarts["recycle"] == 1


def fork_server_of(pool: ProcessExecutor) -> psutil.Process:
    """The parent of the pool's workers; this process may have other children, of other tests."""
    parent = psutil.Process(pool.worker_pids[0]).parent()
    assert parent is not None
    assert parent.ppid() == os.getpid()
    return parent


@in_module_loop
async def test_signals_of_a_terminal_or_service_manager_do_not_end_workers(pool: ProcessExecutor) -> None:
    await until_idle(pool)
    pids = pool.worker_pids
    fork_server = fork_server_of(pool)
    for child in (fork_server, *fork_server.children(recursive=True)):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
    assert (await run(pool)).attempts == 1
    assert pool.worker_pids == pids


@in_module_loop
async def test_urgent_jobs_overtake_those_that_wait_and_keep_their_order(pool: ProcessExecutor, tmp_path: Path) -> None:
    await until_idle(pool)
    gate, ended = Gate(tmp_path), list[str]()

    async def note(name: str, *, is_urgent: bool) -> None:
        job = replace(make_job(make_group(pool.slots)), is_urgent=is_urgent)
        await pool.run(job)
        job.group.release()
        ended.append(name)

    running = asyncio.create_task(run(pool, hold=str(gate)))
    await gate.reached()
    waiting = [asyncio.create_task(note(name, is_urgent=name.startswith("urgent"))) for name in
               ("first", "second", "urgent 1", "third", "urgent 2")]  # fmt: skip
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(running, *waiting)
    assert ended == ["urgent 1", "urgent 2", "first", "second", "third"]


@in_module_loop
async def test_the_death_of_the_fork_server_is_survived(pool: ProcessExecutor, tmp_path: Path) -> None:
    await until_idle(pool)
    undisturbed, gate = pixels(await run(pool, 8)), Gate(tmp_path)
    fork_server = fork_server_of(pool)
    workers = fork_server.children()
    running = asyncio.create_task(run(pool, 8, hold=str(gate)))
    await gate.reached()
    fork_server.kill()
    await until(lambda: all(has_ended(worker) for worker in workers))
    gate.open()
    assert pixels(await running) == undisturbed


@in_module_loop
async def test_two_hundred_jobs_leak_nothing(pool: ProcessExecutor) -> None:
    async def burst() -> None:
        await asyncio.gather(*(run(pool, seed) for seed in range(20)))

    await burst()
    await until_idle(pool)
    gc.collect()  # descriptors of workers that earlier tests killed close with their objects
    front, worker = psutil.Process(), psutil.Process(pool.worker_pids[0])
    before = front.num_fds(), worker.num_fds(), worker.num_threads(), len(worker.memory_maps(grouped=False))
    for _ in range(10):
        await burst()
    await until_idle(pool)
    gc.collect()
    after = front.num_fds(), worker.num_fds(), worker.num_threads(), len(worker.memory_maps(grouped=False))
    assert all(late <= early for late, early in zip(after[:3], before[:3], strict=True)), (before, after)
    assert after[3] <= before[3] + 8, "arenas of malloc may grow, mappings of jobs may not stay"
    assert pool.slots.bytes_in_use == 0


async def test_two_workers_share_the_work() -> None:
    async with running_pool(2) as pool:
        await until_idle(pool, 2)
        results = await asyncio.gather(*(run(pool, seed, sleep_s=0.1) for seed in range(4)))
        assert {result.images[0].meta["pid"][0] for result in results} == {str(pid) for pid in pool.worker_pids}


async def test_zero_workers_means_one_for_every_core_and_the_process_that_forks_them_has_one_thread() -> None:
    others = descendants()
    async with running_pool(0, threads_per_worker=0) as pool:
        await run(pool)
        (fork_server,) = (child for child in psutil.Process().children() if child not in others)
        assert fork_server.num_threads() == 1
        n_workers = len(os.sched_getaffinity(0))
        await until_idle(pool, n_workers)
        assert len(set(pool.worker_pids)) == n_workers


async def test_a_memory_limit_ends_the_job_and_not_the_worker() -> None:
    async with running_pool(worker_memory_bytes=2 << 30) as pool:
        with pytest.raises(ExecutionError, match="more memory than there is"):
            await run(pool, allocate=4 << 30)
        pids = pool.worker_pids
        await run(pool)
        assert pool.worker_pids == pids


async def test_a_worker_that_cannot_start_fails_waiting_jobs_with_a_code() -> None:
    async with running_pool(preload=["no_such_module"]) as pool:
        with pytest.raises(ExecutionError, match="no worker can be started"):
            await run(pool)
        health = pool.health()
        assert not health.is_usable
        assert health.workers == {"failed": 1}
        assert "could not be started" in health.problems[0]


async def test_asking_for_cuda_without_a_gpu_is_said() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    async with running_pool(device="cuda") as pool:
        for _ in range(2):  # trying again does not forget it
            with pytest.raises(ExecutionError, match="no worker can be started"):
                await run(pool)
        assert not pool.health().is_usable
        assert "the settings ask for cuda, but torch finds 0 GPUs" in pool.health().problems[0]


async def test_stopping_ends_every_process_and_fails_what_still_runs() -> None:
    others = descendants()
    async with running_pool(stop_grace_s=0.1) as pool:
        await run(pool)
        children = descendants() - others
        assert children
        running = asyncio.create_task(run(pool, sleep_s=30))
        await asyncio.sleep(0.05)
        await pool.stop()
        with pytest.raises(DrainingError):
            await running
        assert not any(child.is_running() for child in children)
        assert pool.health().restarts == {}


async def test_stopping_while_torch_is_still_loading_ends_every_process() -> None:
    others = descendants()
    async with running_pool() as pool:
        waiting = asyncio.create_task(run(pool))
        await until(lambda: bool(descendants() - others))
        children = descendants() - others
        await pool.stop()
        with pytest.raises(DrainingError):
            await waiting
        assert not any(child.is_running() for child in children)


async def test_a_pool_that_never_started_can_be_stopped() -> None:
    pool = ProcessExecutor(1, "cpu", 1, 1 << 20)
    await pool.stop()
    with pytest.raises(RuntimeError):
        await pool.start()


def test_it_works_on_uvloop(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_pool() as pool:
            undisturbed, gate = await run(pool, 9), Gate(tmp_path)
            running = asyncio.create_task(run(pool, 9, hold=str(gate)))
            await gate.reached()
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            gate.open()
            result = await running
            assert result.attempts == 2
            assert pixels(result) == pixels(undisturbed)
            large = make_group(pool.slots, 1, (1, 8, 1, 256, 256), rich=True)
            assert (await pool.run(make_job(large))).images[0].pixels.shape == (1, 1, 256, 256)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
