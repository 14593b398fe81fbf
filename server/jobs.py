"""The jobs of one session: started as groups complete, handed back in that order, their memory released on every road.

A group may have a second, quick job for a preview. Previews keep an order of their own and are handed back as soon as
they are ready; one that is late for its image is dropped, one that fails hurts nothing.

Knows the executor and the clock; no socket and no protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from pipelines.errors import PipelineError
from pipelines.gadgetron import ImageArray
from pipelines.mrd import Acquisitions, Image, Waveform
from server.errors import OverdueError, ServerError, WorkerLostError
from server.execution.executor import Executor, Job, JobResult
from server.logs import logger
from server.orders import FallbackReason, Order, as_fallback, fallback_reason
from server.outcome import explain, log_message, trace_of


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
        preview: the job of its preview, until that was handed on or dropped.
    """

    task: asyncio.Future[JobResult] | asyncio.Future[Returned]
    n_bytes: int
    submitted_at: float
    preview: Pending | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What is to be sent next.

    Attributes:
        result: images, or a message that goes back.
        completed_at: when the group was complete (`time.monotonic`).
        is_preview: whether the images that were asked for are still to come.
    """

    result: JobResult | Returned
    completed_at: float
    is_preview: bool = False


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
        on_lost_preview: Callable[[Exception], None] | None = None,
    ) -> None:
        """Jobs of one session.

        Args:
            executor: where they run.
            timeout_s: longest time for one job, its wait included.
            on_change: hears by how many bytes `waiting_bytes` has changed.
            on_progress: hears how far long jobs are, whichever their place in the order.
            on_lost_preview: hears why a preview could not be made.
        """
        self.waiting_bytes = 0
        self._executor = executor
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._on_progress = on_progress
        self._on_lost_preview = on_lost_preview
        self._pending: deque[Pending] = deque()
        self._previews: deque[Pending] = deque()
        self._news = asyncio.Event()
        self._is_finished = False
        self._handed_on: deque[Pending] | None = None
        """The queue whose first entry was handed on and may be being sent."""

    def __len__(self) -> int:
        return len(self._pending)

    def submit(self, order: Order) -> None:
        """Start the jobs of a group; its slots are released when they have ended, however they end."""
        # The preview first, for a worker that has nothing to do.
        quick = None if order.preview is None else self._start(self._run(order.preview), 0)
        asked = self._start(self._run_or_fall_back(order), order.job.group.n_bytes)
        asked.preview = quick
        self._pending.append(asked)
        if quick is not None:
            self._previews.append(quick)
        running = [each for each in (quick, asked) if each is not None]
        group, left = order.job.group, len(running)

        def ended(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                group.release()

        # Not a `finally` in the coroutine: a task that is cancelled before its first step never gets to it.
        for each in running:
            each.task.add_done_callback(ended)
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

    async def next(self) -> Done | None:
        """What is ready next, each kind in order; None when all are done, or after `stop`.

        The images count as waiting until the following call.

        Raises:
            PipelineError: what the pipeline raised.
            ServerError: what the executor raised, or the job was not done in time.
        """
        self._drop_sent()
        while True:
            self._drop_failed_previews()
            for queue in (self._previews, self._pending):
                if queue and queue[0].task.done():
                    return self._hand_on(queue)
            if self._is_finished and not self._pending:
                return None
            self._news.clear()
            await self._news.wait()

    async def stop(self) -> None:
        """Cancel what is not done, and wait until nothing of it is left."""
        self.finish()
        tasks: list[asyncio.Future[Any]] = [pending.task for pending in (*self._pending, *self._previews)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._handed_on = None
        for queue in (self._pending, self._previews):
            while queue:
                self._change(-queue.popleft().n_bytes)

    def _start(self, work: Coroutine[Any, Any, JobResult], n_bytes: int) -> Pending:
        task = asyncio.get_running_loop().create_task(work)
        pending = Pending(task, n_bytes, time.monotonic())
        task.add_done_callback(lambda task: self._resize(pending, task))
        self._change(n_bytes)
        return pending

    async def _run(self, job: Job) -> JobResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._executor.run(job, on_progress=self._on_progress)
        except TimeoutError as error:
            raise OverdueError(f"a reconstruction did not end within {self._timeout_s:g} s") from error

    async def _run_or_fall_back(self, order: Order) -> JobResult:
        """Images of the job, or of the first fallback that makes some.

        Raises:
            PipelineError, ServerError: why the job failed, where no fallback could help.
        """
        try:
            return await self._run(order.job)
        except Exception as error:
            reason = fallback_reason(error)
            if reason is None:
                raise
            for other in order.fallbacks:
                try:
                    result = await self._run(other)
                except WorkerLostError:
                    break  # the data kill workers
                except (PipelineError, ServerError):
                    continue
                return _degraded(result, order.job, other.pipeline, error, reason)
            raise

    def _hand_on(self, queue: deque[Pending]) -> Done | None:
        """The first of a queue, which is done; None where it was cancelled."""
        pending = queue[0]
        if pending.task.cancelled():
            return None
        self._handed_on = queue
        if pending.preview is not None:
            self._drop_preview(pending.preview)
            pending.preview = None
        return Done(pending.task.result(), pending.submitted_at, is_preview=queue is self._previews)

    def _drop_preview(self, preview: Pending) -> None:
        """Forget a preview that was not sent before its image was ready."""
        if preview in self._previews:
            self._previews.remove(preview)
            self._change(-preview.n_bytes)
            preview.n_bytes = 0
            preview.task.cancel()

    def _drop_failed_previews(self) -> None:
        """Say why there is none."""
        while self._previews and (task := self._previews[0].task).done():
            error = None if task.cancelled() else task.exception()
            if not isinstance(error, Exception):
                break
            self._previews.popleft()
            if self._on_lost_preview is not None:
                self._on_lost_preview(error)

    def _resize(self, pending: Pending, task: asyncio.Task[JobResult]) -> None:
        done = not task.cancelled() and task.exception() is None
        images = sum(image.pixels.nbytes for image in task.result().images) if done else 0
        if pending in self._pending or pending in self._previews:
            self._change(images - pending.n_bytes)
            pending.n_bytes = images
        self._news.set()

    def _drop_sent(self) -> None:
        if self._handed_on is not None:
            self._change(-self._handed_on.popleft().n_bytes)
            self._handed_on = None

    def _change(self, n_bytes: int) -> None:
        self.waiting_bytes += n_bytes
        self._on_change(n_bytes)


def _degraded(result: JobResult, job: Job, made_by: str, error: Exception, reason: FallbackReason) -> JobResult:
    """The result of a fallback for a job that failed, marked, with words for the scanner and the log."""
    (code, message), asked = explain(error), job.pipeline
    log = logger().bind(session=job.session)
    log.warning("fallback", asked=asked, made_by=made_by, code=code, message=log_message(error), trace=trace_of(error))
    why = f"{asked} failed ({code}: {message}); {made_by} made the image instead, in a series marked DEGRADED"
    images = tuple(as_fallback(image, asked, made_by, code) for image in result.images)
    return replace(result, images=images, warnings=(why, *result.warnings), fallback=str(reason))
