"""What a worker says while its job runs, and what is done with it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import numpy as np
import pytest
from fake_jobs import make_group, make_job

from pipelines.mrd import IMAGE_HEADER, Image
from server.errors import ExecutionError
from server.execution.encoding import Reply
from server.execution.executor import JobResult
from server.execution.launcher import WorkerProcess
from server.execution.pending import MOST_PROGRESS, MOST_PROGRESS_CHARACTERS, Pending, final_reply
from server.execution.shared_memory import SharedSlots

RESULT = Reply("result")
WITH_IMAGE = Reply("progress", {"text": "on"}, (Image(np.zeros((), IMAGE_HEADER), np.zeros((1, 1, 1, 1), np.float32)),))


class Worker:
    """Says what a test gives it."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = deque(replies)

    async def receive(self) -> Reply:
        return self._replies.popleft()


def said(text: Any) -> Reply:
    return Reply("progress", {"text": text})


async def listen(*replies: Reply, on_progress: Any = None, gone: bool = False) -> Reply:
    slots = SharedSlots(4 << 20, prefault_bytes=0)
    result: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
    group = make_group(slots)
    pending = Pending(make_job(group), result, 0.0, on_progress)
    if gone:
        result.cancel()
    try:
        return await final_reply(cast("WorkerProcess", Worker(*replies)), pending)
    finally:
        group.release()
        slots.close()


async def test_texts_are_heard_in_order_and_cut() -> None:
    heard: list[str] = []
    assert await listen(said("one"), said("x" * 9999), RESULT, on_progress=heard.append) is RESULT
    assert heard == ["one", "x" * MOST_PROGRESS_CHARACTERS]


async def test_signs_of_life_are_no_texts() -> None:
    heard: list[str] = []
    beats = [Reply("alive")] * (MOST_PROGRESS + 2)
    assert await listen(*beats, said("one"), RESULT, on_progress=heard.append) is RESULT
    assert heard == ["one"]


@pytest.mark.parametrize("nonsense", [said(7), said(None), said(["text"]), Reply("progress"), WITH_IMAGE])
async def test_progress_that_is_no_text_is_a_coded_error(nonsense: Reply) -> None:
    with pytest.raises(ExecutionError, match="cannot be read"):
        await listen(nonsense, RESULT)


async def test_progress_without_end_is_a_coded_error() -> None:
    assert await listen(*[said("on")] * MOST_PROGRESS, RESULT) is RESULT
    with pytest.raises(ExecutionError, match="more than"):
        await listen(*[said("on")] * (MOST_PROGRESS + 1), RESULT)


async def test_a_listener_that_fails_or_has_gone_does_not_matter() -> None:
    heard: list[str] = []

    def fail(text: str) -> None:
        heard.append(text)
        raise RuntimeError(text)

    assert await listen(said("one"), RESULT, on_progress=fail) is RESULT
    assert await listen(said("two"), RESULT, on_progress=heard.append, gone=True) is RESULT
    assert heard == ["one"]
