# ruff: noqa: ASYNC110 - tests watch from outside what has no event
"""Jobs of a session and their previews: what comes when, what becomes of memory."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from pipelines.errors import BudgetError, ModelUnavailableError, ReconstructionError
from pipelines.mrd import IMAGE_HEADER, Image
from server.errors import DrainingError, ExecutionError, OutOfMemoryError, OverdueError, WorkerLostError
from server.execution.executor import Health, Job, JobResult
from server.jobs import OrderedJobs
from server.orders import FALLBACK_OFFSET, Order

IMAGE_BYTES = 24
GROUP_BYTES = 100


class Group:
    """What jobs of a session need to know of a group."""

    n_bytes = GROUP_BYTES

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Executor:
    """Ends a job when the test says so."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[JobResult]] = {}

    async def run(self, job: Job, **_: Any) -> JobResult:
        future = self.running[job.pipeline] = asyncio.get_running_loop().create_future()
        return await future

    async def end(self, name: str, error: Exception | None = None) -> None:
        while name not in self.running:
            await asyncio.sleep(0)
        if error is None:
            pixels = np.ones((1, 1, 2, 3), np.float32)
            self.running[name].set_result(JobResult((Image(np.zeros((), IMAGE_HEADER), pixels, {"of": [name]}),)))
        else:
            self.running[name].set_exception(error)
        for _ in range(5):
            await asyncio.sleep(0)

    def health(self) -> Health:
        raise NotImplementedError


class Desk:
    """Jobs under test, with what they said."""

    def __init__(self) -> None:
        self.executor = Executor()
        self.bytes = 0
        self.lost: list[Exception] = []
        self.groups: list[Group] = []
        executor: Any = self.executor
        self.jobs = OrderedJobs(executor, 5.0, self._change, on_lost_preview=self.lost.append)

    def _change(self, n_bytes: int) -> None:
        self.bytes += n_bytes

    def submit(self, number: int) -> None:
        group: Any = Group()
        self.groups.append(group)
        job, preview = (Job("s", f"{kind}{number}", {}, group) for kind in ("image", "preview"))
        self.jobs.submit(Order(job, preview))

    async def next(self) -> tuple[str, bool] | None:
        async with asyncio.timeout(5):
            done = await self.jobs.next()
        if done is None:
            return None
        assert isinstance(done.result, JobResult)
        return done.result.images[0].meta["of"][0], done.is_preview


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_previews_come_at_once_and_images_in_order(desk: Desk):
    for number in (1, 2):
        desk.submit(number)
    await desk.executor.end("preview1")
    assert await desk.next() == ("preview1", True)
    waiting = asyncio.create_task(desk.next())
    await desk.executor.end("image2")
    assert not waiting.done(), "the second image waits for the first"
    await desk.executor.end("preview2")
    assert await waiting == ("preview2", True)
    await desk.executor.end("image1")
    desk.jobs.finish()
    assert [await desk.next() for _ in range(3)] == [("image1", False), ("image2", False), None]
    assert (desk.bytes, desk.jobs.waiting_bytes) == (0, 0)
    assert [group.released for group in desk.groups] == [1, 1]


async def test_a_worker_with_nothing_to_do_begins_with_the_preview(desk: Desk):
    desk.submit(1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert list(desk.executor.running) == ["preview1", "image1"]
    await desk.jobs.stop()


async def test_a_preview_of_a_group_that_comes_later_interrupts_the_wait_for_an_image(desk: Desk):
    desk.submit(1)
    await desk.executor.end("preview1")
    assert await desk.next() == ("preview1", True)
    waiting = asyncio.create_task(desk.next())
    await asyncio.sleep(0)
    desk.submit(2)
    await desk.executor.end("preview2")
    assert await waiting == ("preview2", True)
    await desk.jobs.stop()


async def test_a_preview_that_is_later_than_its_image_is_dropped(desk: Desk):
    desk.submit(1)
    await desk.executor.end("image1")
    assert await desk.next() == ("image1", False)
    for _ in range(5):
        await asyncio.sleep(0)
    assert desk.executor.running["preview1"].cancelled()
    desk.jobs.finish()
    assert await desk.next() is None
    assert desk.bytes == 0
    assert desk.groups[0].released == 1
    assert desk.lost == []


async def test_a_preview_that_fails_is_told_and_hurts_nothing(desk: Desk):
    desk.submit(1)
    await desk.executor.end("preview1", ReconstructionError("too few lines"))
    await desk.executor.end("image1")
    desk.jobs.finish()
    assert [await desk.next() for _ in range(2)] == [("image1", False), None]
    assert [str(error) for error in desk.lost] == ["too few lines"]
    assert desk.bytes == 0


async def test_memory_of_a_group_is_kept_until_both_jobs_have_ended(desk: Desk):
    desk.submit(1)
    await desk.executor.end("preview1")
    assert desk.groups[0].released == 0
    assert desk.bytes == GROUP_BYTES + IMAGE_BYTES
    await desk.executor.end("image1")
    assert desk.groups[0].released == 1
    assert desk.bytes == 2 * IMAGE_BYTES
    await desk.jobs.stop()
    assert desk.bytes == 0


@pytest.mark.parametrize("ended", [(), ("preview1",), ("image2",), ("preview1", "image1", "preview2")])
async def test_a_stop_gives_everything_back(desk: Desk, ended: tuple[str, ...]):
    for number in (1, 2):
        desk.submit(number)
    for name in ended:
        await desk.executor.end(name)
    await desk.jobs.stop()
    assert (desk.bytes, desk.jobs.waiting_bytes) == (0, 0)
    assert [group.released for group in desk.groups] == [1, 1]
    assert await desk.next() is None


async def test_the_failure_of_an_image_is_raised_though_its_preview_was_sent(desk: Desk):
    desk.submit(1)
    await desk.executor.end("preview1")
    assert await desk.next() == ("preview1", True)
    await desk.executor.end("image1", ReconstructionError("no"))
    with pytest.raises(ReconstructionError, match="no"):
        await desk.next()
    await desk.jobs.stop()
    assert desk.bytes == 0


class Falling(Desk):
    """A desk whose jobs have two fallbacks and no preview."""

    def submit(self, number: int) -> None:
        group: Any = Group()
        self.groups.append(group)
        job, first, second = (Job("s", f"{kind}{number}", {}, group) for kind in ("image", "sense", "zero"))
        self.jobs.submit(Order(job, None, (first, second)))

    async def result(self) -> JobResult:
        async with asyncio.timeout(5):
            done = await self.jobs.next()
        assert done is not None
        assert isinstance(done.result, JobResult)
        return done.result


LOST = [
    (ReconstructionError("no"), "reconstruction_failed"),
    (ModelUnavailableError("no"), "model_unavailable"),
    (OutOfMemoryError("no"), "oom"),
    (OverdueError("no"), "timeout"),
    (WorkerLostError("no"), "worker_lost"),
    (ExecutionError("no"), "execution"),
]


@pytest.mark.parametrize(("error", "reason"), LOST)
async def test_another_pipeline_makes_the_image_that_failed_and_it_is_marked(error: Exception, reason: str):
    desk = Falling()
    desk.submit(1)
    await desk.executor.end("image1", error)
    await desk.executor.end("sense1")
    result = await desk.result()
    (image,) = result.images
    assert result.fallback == reason
    assert image.meta["of"] == ["sense1"]
    assert image.meta["ReconDegraded"] == ["true"]
    assert image.meta["ReconInsteadOf"] == ["image1"]
    assert image.meta["ImageComments"] == ["DEGRADED: made by sense1, because image1 failed"]
    assert int(image.header["image_series_index"]) == FALLBACK_OFFSET
    assert "image1 failed" in result.warnings[0]
    desk.jobs.finish()
    assert await desk.next() is None
    assert desk.groups[0].released == 1
    assert desk.bytes == 0


async def test_the_next_fallback_is_tried_when_one_fails_too():
    desk = Falling()
    desk.submit(1)
    await desk.executor.end("image1", ReconstructionError("frames share a mask"))
    await desk.executor.end("sense1", ReconstructionError("no calibration"))
    await desk.executor.end("zero1")
    result = await desk.result()
    assert result.images[0].meta["of"] == ["zero1"]
    assert "frames share a mask" in result.warnings[0]
    await desk.jobs.stop()


async def test_the_first_error_is_told_when_nothing_helps():
    desk = Falling()
    desk.submit(1)
    await desk.executor.end("image1", ReconstructionError("first"))
    await desk.executor.end("sense1", ReconstructionError("second"))
    await desk.executor.end("zero1", ExecutionError("third"))
    with pytest.raises(ReconstructionError, match="first"):
        await desk.next()
    await desk.jobs.stop()
    assert desk.bytes == 0


async def test_data_that_kill_workers_twice_are_not_given_to_a_third_pipeline():
    desk = Falling()
    desk.submit(1)
    for name in ("image1", "sense1"):
        await desk.executor.end(name, WorkerLostError(name))
    with pytest.raises(WorkerLostError, match="image1"):
        await desk.next()
    assert "zero1" not in desk.executor.running
    await desk.jobs.stop()


@pytest.mark.parametrize("error", [DrainingError("ends"), BudgetError("too large"), RuntimeError("a bug")])
async def test_no_fallback_where_it_would_be_of_no_use(error: Exception):
    desk = Falling()
    desk.submit(1)
    await desk.executor.end("image1", error)
    with pytest.raises(type(error)):
        await desk.next()
    assert "sense1" not in desk.executor.running
    await desk.jobs.stop()


async def test_a_job_that_takes_too_long_is_replaced():
    desk = Falling()
    desk.jobs._timeout_s = 0.05
    desk.submit(1)
    await asyncio.sleep(0.06)
    await desk.executor.end("sense1")
    assert (await desk.result()).fallback == "timeout"
    await desk.jobs.stop()
