"""The jobs of one session: started as groups complete, handed back in that order, their memory released on every road.

Knows the executor and the clock; no socket and no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.gadgetron import ImageArray
from pipelines.mrd import Acquisitions, Image, Waveform
from server.errors import ExecutionError
from server.execution.executor import Executor, Job, JobResult


@dataclass(frozen=True, slots=True)
class Returned:
    """A message of the peer's that goes back unchanged, in its place among the results (external nodes of Gadgetron).

    Attributes:
        message: as it came, on memory of its own.
        n_bytes: what it holds, roughly.
    """

    message: Acquisitions | Waveform | Image | ImageArray
    n_bytes: int


@dataclass(slots=True, eq=False)
class Pending:
    """A job whose result has not been handed on.

    Attributes:
        n_bytes: what it holds now: the k-space until it is done, then its images.
        submitted_at: when its group was complete (`time.monotonic`).
    """

    task: asyncio.Future[JobResult] | asyncio.Future[Returned]
    n_bytes: int
    submitted_at: float


class OrderedJobs:
    """Jobs in the order of their submission.

    Attributes:
        waiting_bytes: k-space of jobs that are not done, and images that have not been sent.
    """

    def __init__(
        self,
        executor: Executor,
        timeout_s: float,
        on_change: Callable[[int], None],
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Jobs of one session.

        Args:
            executor: where they run.
            timeout_s: longest time for one job, its wait included.
            on_change: hears by how many bytes `waiting_bytes` has changed.
            on_progress: hears how far long jobs are, whichever their place in the order.
        """
        self.waiting_bytes = 0
        self._executor = executor
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._on_progress = on_progress
        self._pending: deque[Pending] = deque()
        self._news = asyncio.Event()
        self._is_finished = False
        self._is_first_handed_on = False

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, job: Job) -> None:
        """Start a job; the group's slots are released when it has ended, however it ends."""
        loop = asyncio.get_running_loop()
        n_bytes = job.group.n_bytes
        group = job.group
        task = loop.create_task(self._run(job))
        pending = Pending(task, n_bytes, time.monotonic())
        # Not a `finally` in the coroutine: a task that is cancelled before its first step never gets to it.
        task.add_done_callback(lambda _: group.release())
        task.add_done_callback(lambda task: self._resize(pending, task))
        self._pending.append(pending)
        self._change(n_bytes)
        self._news.set()

    def hand_on(self, returned: Returned) -> None:
        """Put a message that needs no work behind the jobs so far."""
        done: asyncio.Future[Returned] = asyncio.get_running_loop().create_future()
        done.set_result(returned)
        self._pending.append(Pending(done, returned.n_bytes, time.monotonic()))
        self._change(returned.n_bytes)
        self._news.set()

    def finish(self) -> None:
        """No more jobs will come."""
        self._is_finished = True
        self._news.set()

    async def next(self) -> tuple[JobResult | Returned, float] | None:
        """The next result in order, and when its group was complete; None when all are done, or after `stop`.

        The images count as waiting until the following call.

        Raises:
            PipelineError: what the pipeline raised.
            ServerError: what the executor raised, or the job was not done in time.
        """
        self._drop_sent()
        while not self._pending:
            if self._is_finished:
                return None
            self._news.clear()
            await self._news.wait()
        pending = self._pending[0]
        await asyncio.wait((pending.task,))
        if pending.task.cancelled():
            return None
        self._is_first_handed_on = True
        return pending.task.result(), pending.submitted_at

    async def stop(self) -> None:
        """Cancel what is not done, and wait until nothing of it is left."""
        self.finish()
        tasks: list[asyncio.Future[Any]] = [pending.task for pending in self._pending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._is_first_handed_on = False
        while self._pending:
            self._change(-self._pending.popleft().n_bytes)

    async def _run(self, job: Job) -> JobResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._executor.run(job, on_progress=self._on_progress)
        except TimeoutError as error:
            raise ExecutionError(f"a reconstruction did not end within {self._timeout_s:g} s") from error

    def _resize(self, pending: Pending, task: asyncio.Task[JobResult]) -> None:
        done = not task.cancelled() and task.exception() is None
        images = sum(image.pixels.nbytes for image in task.result().images) if done else 0
        if pending in self._pending:
            self._change(images - pending.n_bytes)
            pending.n_bytes = images

    def _drop_sent(self) -> None:
        if self._is_first_handed_on:
            self._is_first_handed_on = False
            self._change(-self._pending.popleft().n_bytes)

    def _change(self, n_bytes: int) -> None:
        self.waiting_bytes += n_bytes
        self._on_change(n_bytes)
