"""Reconstructions in this process, one after another in a thread: for tests and offline tools, not for a server.

It keeps every promise of the process pool except those about dying workers, and imports torch when the first job runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.errors import PipelineError
from server.errors import DrainingError
from server.execution.encoding import encode_job
from server.execution.executor import Health, Job, JobResult
from server.execution.failure import decode_failure
from server.execution.pending import MOST_PROGRESS_CHARACTERS
from server.execution.shared_memory import SharedSlots
from server.execution.worker_settings import PIPELINE

if TYPE_CHECKING:
    from server.execution.worker import Runner


class InlineExecutor:
    """Runs jobs in one thread; see `server.execution.executor.Executor`.

    Args:
        device: torch device.
        memory_budget_bytes: most memory for raw data.
        warm: pipelines with parameters to load and run once at the start.
        threads: of torch for one reconstruction; 0 leaves torch's own choice.
        pipeline: what makes a pipeline, `module:attribute` of a callable `(name, parameters, device)`.
        models_directory: directory of models of the user's own; empty for none. Holds for the whole process.
    """

    def __init__(
        self,
        device: str = "cpu",
        memory_budget_bytes: int = 1 << 30,
        warm: Sequence[tuple[str, Mapping[str, object]]] = (),
        *,
        threads: int = 0,
        pipeline: str = PIPELINE,
        models_directory: str = "",
    ) -> None:
        self._device = device
        self._threads = threads
        self._warm = tuple(warm)
        self._pipeline = pipeline
        self._models_directory = models_directory
        self._slots = SharedSlots(memory_budget_bytes, prefault_bytes=0)
        self._thread = ThreadPoolExecutor(1, "reconstruct")
        self._runner: Runner | None = None
        self._problems: tuple[str, ...] = ()
        self._jobs: set[Future[JobResult]] = set()
        self._is_started = False
        self._is_stopping = False

    @property
    def slots(self) -> SharedSlots:
        """Memory for groups."""
        return self._slots

    async def start(self) -> None:
        """Begin to load and warm up pipelines, and return at once.

        Raises:
            RuntimeError: it was started before.
        """
        if self._is_started or self._is_stopping:
            raise RuntimeError("an executor starts once")
        self._is_started = True
        self._thread.submit(self._warm_up)

    async def run(self, job: Job, *, on_progress: Callable[[str], None] | None = None) -> JobResult:
        """Run a job; see `server.execution.executor.Executor.run`.

        Raises:
            DrainingError: the executor stops, or has stopped.
            RuntimeError: it was never started.
        """
        if self._is_stopping:
            raise DrainingError("the server is shutting down")
        if not self._is_started:
            raise RuntimeError("the executor was not started")
        _, slots = encode_job(
            job, self._slots
        )  # finds the slots, and refuses what would not travel to a worker process
        for slot in slots:
            slot.pin()
        loop = asyncio.get_running_loop()

        def unpin() -> None:
            for slot in slots:
                slot.unpin()

        def told(text: str) -> None:
            if on_progress is not None and not waiting.done():
                on_progress(text[:MOST_PROGRESS_CHARACTERS])

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(told, text)

        future = self._thread.submit(self._work, job, time.monotonic(), None if on_progress is None else tell)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(unpin))
        waiting = asyncio.wrap_future(future)
        return await waiting

    def health(self) -> Health:
        """State now."""
        n_jobs = len(self._jobs)
        state = "starting" if self._runner is None else "busy" if n_jobs else "idle"
        return Health({state: 1}, max(0, n_jobs - 1), {}, self._problems)

    async def stop(self) -> None:
        """Finish the running job, refuse those that wait, and give back all memory; a second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.sleep(0)  # the last job's slots are unpinned by a callback
        self._slots.close()

    def _warm_up(self) -> Runner:
        # Imported here so that whoever makes an executor does not wait for torch, nor needs it before the first job.
        from server.execution.worker import Runner, add_models, count_devices, device_name, limit_threads, warm_up

        if self._runner is None:
            limit_threads(self._threads)
            add_models(self._models_directory)
            runner = Runner(device_name(self._device, 0, count_devices(self._device)), self._pipeline)
            self._problems = tuple(warm_up(runner, self._warm))
            self._runner = runner
        return self._runner

    def _work(self, job: Job, submitted_at: float, tell: Callable[[str], None] | None) -> JobResult:
        if self._is_stopping:
            raise DrainingError("the server is shutting down")
        queue_s = time.monotonic() - submitted_at
        try:
            result = self._warm_up().run(job, tell)
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, it becomes an error with a code
            from server.execution.worker import failure_of

            failure = decode_failure(failure_of(error).fields)
            raise failure from failure.__cause__  # the exception itself may quote data
        return replace(result, stages_s={"queue": queue_s, **result.stages_s})
