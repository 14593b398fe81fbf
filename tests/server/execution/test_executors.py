"""What every executor promises, run against both backends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from fake_jobs import Gate, make_group, make_job
from fake_pipeline import digest

from pipelines import errors
from pipelines.errors import PipelineError
from server.errors import DrainingError, ExecutionError
from server.execution.inline import InlineExecutor
from server.execution.process_pool import ProcessExecutor

pytestmark = pytest.mark.asyncio(loop_scope="module")
FAKE = "fake_pipeline:FakePipeline"
AnyExecutor = ProcessExecutor | InlineExecutor
SECRET = "PATIENT^CANARY /etc/secret"  # noqa: S105


def make_executor(kind: str, **options: Any) -> ProcessExecutor | InlineExecutor:
    if kind == "process":
        return ProcessExecutor(1, "cpu", 1, 256 << 20, pipeline=FAKE, **options)
    return InlineExecutor(memory_budget_bytes=256 << 20, pipeline=FAKE, **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["process", "inline"])
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[AnyExecutor]:
    made = make_executor(request.param)
    await made.start()
    yield made
    await made.stop()


async def until_unused(executor: AnyExecutor) -> None:
    async with asyncio.timeout(10):
        while executor.slots.bytes_in_use:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_worker_sees_every_array_as_it_was(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 3, (2, 4, 1, 16, 32), rich=True)
    assert not group.kspace.flags.c_contiguous
    result = await executor.run(make_job(group))
    assert result.images[0].meta["digest"] == [digest(group)]
    group.release()


async def test_progress_is_heard_in_order_before_the_result_which_it_does_not_change(executor: AnyExecutor) -> None:
    group, heard = make_group(executor.slots, 3), list[str]()
    undisturbed = await executor.run(make_job(group))
    job = make_job(group, report=[0, 30, 60, 90])
    running = asyncio.create_task(executor.run(job, on_progress=heard.append))
    running.add_done_callback(lambda _: heard.append("the end"))
    result = await running
    await asyncio.sleep(0)
    unheard = await executor.run(job)
    group.release()
    assert [text.partition(",")[0] for text in heard] == [*(f"waits: {n} %" for n in (0, 30, 60, 90)), "the end"]
    for other in (result, unheard):
        assert [image.pixels.tobytes() for image in other.images] == [i.pixels.tobytes() for i in undisturbed.images]


async def test_images_come_back_with_header_pixels_and_meta(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 4)
    result = await executor.run(make_job(group, provenance={"Session": "ü\n<&>"}))
    expected = np.sqrt((np.abs(np.fft.ifft2(group.kspace, norm="ortho")) ** 2).sum(1))
    magnitude, deviation = result.images
    assert magnitude.pixels.dtype == np.float32
    np.testing.assert_allclose(magnitude.pixels, expected, rtol=1e-4)
    np.testing.assert_array_equal(deviation.pixels, magnitude.pixels / 2)
    assert magnitude.header["matrix_size"].tolist() == [32, 16, 1]
    assert magnitude.meta["Session"] == ["ü\n<&>"]
    assert result.stages_s["recon"] == 0.25
    assert result.stages_s["queue"] >= 0
    assert result.warnings == ("a warning",)
    assert result.attempts == 1
    group.release()


async def test_heap_groups_run_too(executor: AnyExecutor) -> None:
    from pipelines.assembly.buffer import HeapSlots

    group = make_group(HeapSlots(), 5, rich=True)
    result = await executor.run(make_job(group))
    assert result.images[0].meta["digest"] == [digest(group)]


async def test_an_image_that_views_the_slot_outlives_it(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 6)
    expected = group.kspace.real[0, :1].copy()
    result = await executor.run(make_job(group, name="alias"))
    group.release()
    await until_unused(executor)
    np.testing.assert_array_equal(result.images[0].pixels, expected)


async def test_jobs_end_in_the_order_of_submission(executor: AnyExecutor) -> None:
    ended: list[int] = []

    async def run(seed: int) -> None:
        group = make_group(executor.slots, seed)
        result = await executor.run(make_job(group, sleep_s=0.01 * (seed % 3)))
        assert result.images[0].meta["digest"] == [digest(group)]
        group.release()
        ended.append(seed)

    async with asyncio.TaskGroup() as tasks:
        for seed in range(12):
            tasks.create_task(run(seed))
    assert ended == list(range(12))
    await until_unused(executor)


async def test_random_numbers_do_not_depend_on_earlier_jobs(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 7)
    first, second = [(await executor.run(make_job(group))).images[0].meta["random"] for _ in range(2)]
    assert first == second
    group.release()


async def test_a_pipeline_is_loaded_once_for_equal_parameters(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 7)
    runs = [
        (await executor.run(make_job(group, sleep_s=seconds))).images[0].meta["runs"][0]
        for seconds in (0.001, 0.002, 0.001, 0.002)
    ]
    assert runs == ["1", "1", "2", "2"]
    group.release()


@pytest.mark.parametrize(
    "name", [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, PipelineError)]
)
async def test_errors_of_pipelines_keep_their_type(executor: AnyExecutor, name: str) -> None:
    group = make_group(executor.slots, 8)
    with pytest.raises(PipelineError, match="line 97 lies outside 0 to 95") as caught:
        await executor.run(make_job(group, refuse=name))
    group.release()
    kind = getattr(errors, name)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.advice) == (kind.code, kind.advice)


async def test_an_unknown_kind_of_pipeline_error_keeps_its_code_and_advice(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 8)
    with pytest.raises(errors.ReconstructionError) as caught:
        await executor.run(make_job(group, refuse="HomemadeError"))
    group.release()
    assert (caught.value.code, caught.value.advice) == ("homemade", "Ask its maker.")


async def test_other_exceptions_tell_the_log_where_and_nobody_what_they_said(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 9)
    with pytest.raises(ExecutionError) as caught:
        await executor.run(make_job(group, **{"break": SECRET}))
    group.release()
    assert str(caught.value) == "the reconstruction failed inside the server (RuntimeError)"
    cause = str(caught.value.__cause__)
    assert cause.startswith("RuntimeError at ")
    assert "fake_pipeline.py" in cause
    assert SECRET not in cause


async def test_a_pipeline_that_cannot_be_loaded_is_a_coded_error(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 9)
    with pytest.raises(ExecutionError, match="failed inside the server"):
        await executor.run(make_job(group, name="unloadable"))
    group.release()


async def test_a_result_that_is_no_image_is_a_coded_error(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 9)
    with pytest.raises(ExecutionError):
        await executor.run(make_job(group, name="unsendable"))
    group.release()


async def test_too_little_memory_is_said_plainly(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 9)
    with pytest.raises(ExecutionError, match="more memory than there is"):
        await executor.run(make_job(group, allocate=1 << 50))
    group.release()


async def test_a_failed_job_does_not_disturb_the_next(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 10)
    expected = (await executor.run(make_job(group))).images[0].pixels
    with pytest.raises(ExecutionError):
        await executor.run(make_job(group, **{"break": "x"}))
    result = await executor.run(make_job(group))
    np.testing.assert_array_equal(result.images[0].pixels, expected)
    group.release()


async def test_a_cancelled_waiting_job_never_runs(executor: AnyExecutor, tmp_path: Path) -> None:
    groups, gate = [make_group(executor.slots, seed) for seed in range(3)], Gate(tmp_path)
    running = asyncio.create_task(executor.run(make_job(groups[0], hold=str(gate))))
    await gate.reached()
    waiting = asyncio.create_task(executor.run(make_job(groups[1], touch=str(tmp_path / "ran"))))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    groups[1].release()
    gate.open()
    await running
    await executor.run(make_job(groups[2]))
    assert not (tmp_path / "ran").exists()
    groups[0].release()
    groups[2].release()
    await until_unused(executor)


async def test_a_cancelled_running_job_keeps_its_slots_until_it_has_ended(
    executor: AnyExecutor, tmp_path: Path
) -> None:
    group = make_group(executor.slots, 11, rich=True)
    expected = digest(group)
    wanted, gate = tmp_path / "digest", Gate(tmp_path)
    running = asyncio.create_task(executor.run(make_job(group, hold=str(gate), write_digest=str(wanted))))
    await gate.reached()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    group.release()
    assert executor.slots.bytes_in_use > 0
    others = [executor.slots.take(64 << 10) for _ in range(100)]
    for slot in others:
        slot.data[...] = 0xFF
        slot.release()
    gate.open()
    await until_unused(executor)
    assert wanted.read_text() == expected


async def test_a_group_in_a_released_slot_is_refused(executor: AnyExecutor) -> None:
    group = make_group(executor.slots, 12)
    group.release()
    with pytest.raises(ExecutionError, match="could not be handed"):
        await executor.run(make_job(group))


async def test_the_loop_goes_on_while_a_job_runs(executor: AnyExecutor, tmp_path: Path) -> None:
    group, gate = make_group(executor.slots, 13), Gate(tmp_path)
    running = asyncio.create_task(executor.run(make_job(group, hold=str(gate))))
    await gate.reached()
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not running.done()
    gate.open()
    await running
    group.release()


async def test_health_tells_what_is_going_on(executor: AnyExecutor, tmp_path: Path) -> None:
    groups, gate = [make_group(executor.slots, seed) for seed in range(3)], Gate(tmp_path)
    assert executor.health().workers == {"idle": 1}
    running = [asyncio.create_task(executor.run(make_job(group, hold=str(gate)))) for group in groups]
    await gate.reached()
    health = executor.health()
    assert (health.workers, health.queued, health.is_usable) == ({"busy": 1}, 2, True)
    gate.open()
    await asyncio.gather(*running)
    assert executor.health().queued == 0
    for group in groups:
        group.release()


@pytest.mark.parametrize("kind", ["process", "inline"])
async def test_life_from_start_to_stop(kind: str, tmp_path: Path) -> None:
    made = make_executor(kind, warm=[("fake", {}), ("unloadable", {})])
    group = make_group(made.slots, 1)
    with pytest.raises(RuntimeError, match="not started"):
        await made.run(make_job(group))
    assert not made.health().is_usable
    await made.start()
    with pytest.raises(RuntimeError, match="once"):
        await made.start()
    early = await made.run(make_job(group))
    assert early.images[0].meta["runs"] == ["2"], "the warm-up ran first"
    (problem,) = made.health().problems
    assert "unloadable" in problem
    assert made.health().is_usable
    gate = Gate(tmp_path)
    running = asyncio.create_task(made.run(make_job(group, hold=str(gate))))
    waiting = asyncio.create_task(made.run(make_job(replace(group))))
    await gate.reached()
    stopping = asyncio.create_task(made.stop())
    await asyncio.sleep(0.1)
    gate.open()
    await stopping
    assert (await running).attempts == 1
    with pytest.raises(DrainingError):
        await waiting
    with pytest.raises(DrainingError):
        await made.run(make_job(group))
    group.release()
    assert made.slots.bytes_in_use == 0
    await made.stop()
