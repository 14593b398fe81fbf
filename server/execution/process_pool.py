"""Reconstructions in worker processes: a queue, seats with a worker on each, and a new worker for one that died.

The front process stays free of torch: it hands references to shared memory to workers that were forked from a process
with torch imported (`server.execution.fork_server`).

Rules:
1. Jobs start in the order in which they were submitted, urgent ones before all others that wait. A job whose worker
   died goes back to the head of the queue, once.
2. A slot that a job's arrays lie in is pinned from the moment a worker may read it until that worker has answered or
   is gone.
3. Cancelling a job that waits removes it; a job that runs is finished in vain.
4. A job that takes longer than `job_timeout_s`, or whose worker gives no sign of life (`server.execution.heart`),
   counts as hung: its worker is killed, which makes it a job whose worker died. One that takes longer than its own
   budget loses its worker too, but is not run again.
5. A seat whose worker cannot be started tries again after a growing pause; when that has happened several times in a
   row on every seat, waiting jobs fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.errors import DrainingError, ExecutionError, OverdueError, WorkerLostError
from server.execution.encoding import Buffers, Reply, encode_job
from server.execution.executor import Health, Job, JobResult
from server.execution.launcher import ForkServer, WorkerDiedError, WorkerProcess
from server.execution.pending import Pending, final_reply, outcome
from server.execution.repeated import RepeatedArrays
from server.execution.shared_memory import SharedSlots
from server.execution.worker_settings import PIPELINE, WorkerSettings

_log = logging.getLogger(__name__)
_MOST_ATTEMPTS = 2
_HOPELESS_STARTS = 3
"""In a row: one alone may have been killed by whoever makes room in memory."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


class SeatState(StrEnum):
    """State of a seat; labels of `echotrain_workers`."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(slots=True)
class _Seat:
    """A place for one worker at a time."""

    index: int
    state: SeatState = SeatState.STARTING
    worker: WorkerProcess | None = None
    problems: tuple[str, ...] = ()
    failed_starts: int = 0


class ProcessExecutor:
    """Runs jobs in worker processes; see `server.execution.executor.Executor`.

    Args:
        workers: number of workers; 0 for one a GPU, or on the CPU one for every `threads_per_worker` cores.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.
        threads_per_worker: intra-op threads of torch in each worker. One is best when several workers are busy:
            two-thread medians reached 100 times their minimum under load.
        memory_budget_bytes: most shared memory for raw data.
        warm: pipelines with parameters that each worker loads and runs once before it takes jobs.
        pipeline: what makes a pipeline, `module:attribute` of a callable `(name, parameters, device)`.
        preload: further modules to import once for all workers.
        job_timeout_s: longest time for one job in a worker.
        start_timeout_s: longest time for a worker to start, with loading and warming up.
        stop_grace_s: how long `stop` lets running jobs finish.
        worker_memory_bytes: most private memory of each worker, 0 for no limit; do not set it with CUDA.
        models_directory: directory of models of the user's own; empty for none.
    """

    def __init__(
        self,
        workers: int,
        device: str,
        threads_per_worker: int,
        memory_budget_bytes: int,
        warm: Sequence[tuple[str, Mapping[str, object]]] = (),
        *,
        pipeline: str = PIPELINE,
        preload: Sequence[str] = (),
        job_timeout_s: float = 600.0,
        start_timeout_s: float = 300.0,
        stop_grace_s: float = 5.0,
        worker_memory_bytes: int = 0,
        models_directory: str = "",
    ) -> None:
        self._n_workers = workers
        self._settings = WorkerSettings(
            device=device,
            threads=threads_per_worker,
            pipeline=pipeline,
            preload=tuple(preload),
            warm=tuple((name, dict(parameters)) for name, parameters in warm),
            memory_bytes=worker_memory_bytes,
            models_directory=models_directory,
        )
        self._job_timeout_s = job_timeout_s
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._slots = SharedSlots(memory_budget_bytes)
        self._memory_fd = self._slots.open_for_reading()
        self._repeated: RepeatedArrays | None = None  # made by `start`, because it belongs to the event loop
        self._fork_server: ForkServer | None = None
        self._fork_server_lock = asyncio.Lock()
        self._seats = [_Seat(index) for index in range(max(workers, 1))]
        # Without a length of its own: every waiting job holds slots, and those have a budget.
        self._waiting: deque[Pending] = deque()
        self._running: set[Pending] = set()
        self._idle: list[asyncio.Future[Pending | None]] = []
        self._restarts: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_started = False
        self._is_stopping = False
        self._stop_asked = asyncio.Event()

    @property
    def slots(self) -> SharedSlots:
        """Shared memory for groups."""
        return self._slots

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that have reported."""
        return tuple(seat.worker.pid for seat in self._seats if seat.worker is not None and seat.worker.pid is not None)

    async def start(self) -> None:
        """Begin to start workers and return at once.

        Raises:
            RuntimeError: it was started before.
        """
        if self._is_started or self._is_stopping:
            raise RuntimeError("an executor starts once")
        self._is_started = True
        self._repeated = RepeatedArrays(self._slots)
        self._slots.prefault()
        for seat in self._seats:
            self._tasks.append(asyncio.create_task(self._keep(seat)))

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
        loop = asyncio.get_running_loop()
        pending = Pending(job, loop.create_future(), loop.time(), on_progress)
        self._enqueue(pending)
        self._dispatch()
        try:
            return await pending.result
        except asyncio.CancelledError:
            with contextlib.suppress(ValueError):  # it runs already
                self._waiting.remove(pending)
            raise

    def health(self) -> Health:
        """State now."""
        return Health(
            workers={state.value: n for state, n in Counter(seat.state for seat in self._seats).items()},
            queued=len(self._waiting),
            restarts=dict(self._restarts),
            problems=tuple(sorted({problem for seat in self._seats for problem in seat.problems})),
        )

    async def stop(self) -> None:
        """Let running jobs finish for a while, end all workers, give back all memory; a second call does nothing."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._stop_asked.set()
        while self._waiting:
            self._waiting.popleft().settle(DrainingError("the server is shutting down"))
        for seat in self._idle:
            if not seat.done():
                seat.set_result(None)
        if self._running:
            await asyncio.wait([pending.result for pending in self._running], timeout=self._stop_grace_s)
        if self._fork_server is not None:
            await self._fork_server.stop()
        await asyncio.gather(*self._tasks)
        if self._repeated is not None:
            self._repeated.close()
        self._slots.close()
        os.close(self._memory_fd)

    async def _keep(self, seat: _Seat) -> None:
        """Keep a worker on a seat until the executor stops."""
        pause_s = _FIRST_PAUSE_S
        while not self._is_stopping:
            seat.state, has_failed = SeatState.STARTING, False
            worker: WorkerProcess | None = None
            try:
                server = await self._ready_fork_server()
                worker = seat.worker = server.spawn(seat.index)
                await self._until_ready(seat, worker)
                pause_s, seat.failed_starts = _FIRST_PAUSE_S, 0
                while (pending := await self._next_job(seat, worker)) is not None:
                    await self._run_on(seat, worker, pending)
                    del pending
            except Exception as error:  # noqa: BLE001  a seat outlives whatever happens to its worker
                has_failed = self._note_loss(seat, error)
            finally:
                if worker is not None:
                    worker.kill()
                    await worker.ended()
                    worker.close()
                seat.worker = None
            if has_failed:
                seat.failed_starts += 1
                self._fail_waiting_without_hope()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop_asked.wait(), pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _ready_fork_server(self) -> ForkServer:
        async with self._fork_server_lock:
            if self._is_stopping:
                raise WorkerDiedError
            server = self._fork_server
            if server is None or not server.is_alive:
                server = self._fork_server = ForkServer(self._settings, self._memory_fd)
                try:
                    async with asyncio.timeout(self._start_timeout_s):
                        await server.start()
                except (ExecutionError, TimeoutError):
                    await server.stop()  # the next attempt begins afresh
                    raise
                if self._n_workers == 0:
                    self._add_seats(self._default_workers(server.n_devices))
            return server

    def _default_workers(self, n_devices: int) -> int:
        if n_devices:
            return 1 if ":" in self._settings.device else n_devices
        return max(1, len(os.sched_getaffinity(0)) // max(1, self._settings.threads))

    def _add_seats(self, n_wanted: int) -> None:
        for index in range(len(self._seats), n_wanted):
            self._seats.append(_Seat(index))
            self._tasks.append(asyncio.create_task(self._keep(self._seats[-1])))

    async def _until_ready(self, seat: _Seat, worker: WorkerProcess) -> None:
        async with asyncio.timeout(self._start_timeout_s):
            worker.pid = int((await worker.receive()).fields["pid"])
            ready = await worker.receive()
        seat.problems = tuple(str(problem) for problem in ready.fields["problems"])
        for problem in seat.problems:
            _log.error("worker %d: %s", seat.index, problem)

    async def _next_job(self, seat: _Seat, worker: WorkerProcess) -> Pending | None:
        """Wait for a job; None when the executor stops.

        Raises:
            WorkerDiedError: the worker died meanwhile.
        """
        if self._is_stopping:
            return None
        seat.state = SeatState.IDLE
        assigned: asyncio.Future[Pending | None] = asyncio.get_running_loop().create_future()

        def gone() -> None:
            if not assigned.done():
                assigned.set_exception(WorkerDiedError())

        worker.when_readable(gone)
        self._idle.append(assigned)
        self._dispatch()
        try:
            return await assigned
        finally:
            worker.stop_watching()
            with contextlib.suppress(ValueError):  # the job's dispatch took it out
                self._idle.remove(assigned)

    def _enqueue(self, pending: Pending) -> None:
        """Put a job behind those that wait, an urgent one before all that are not."""
        if not pending.job.is_urgent:
            self._waiting.append(pending)
            return
        place = next((i for i, other in enumerate(self._waiting) if not other.job.is_urgent), len(self._waiting))
        self._waiting.insert(place, pending)

    def _dispatch(self) -> None:
        """Give waiting jobs to idle workers; the one that worked last comes first, because its caches are warm."""
        while self._waiting and self._idle:
            assigned = self._idle.pop()
            if not assigned.done():
                assigned.set_result(self._waiting.popleft())

    async def _run_on(self, seat: _Seat, worker: WorkerProcess, pending: Pending) -> None:
        """Run one job on a worker.

        Raises:
            WorkerDiedError: the worker died or hung, or asks to be replaced; the job has been taken care of.
            ExecutionError: the worker's reply made no sense.
        """
        if pending.result.done():
            return
        seat.state = SeatState.BUSY
        pending.attempts += 1
        queue_s = asyncio.get_running_loop().time() - pending.submitted_at
        try:
            buffers, slots = encode_job(pending.job, self._slots, self._repeated)
        except ExecutionError as error:
            pending.settle(error)
            return
        for slot in slots:
            slot.pin()
        self._running.add(pending)
        try:
            reply = await self._exchange(worker, pending, buffers)
        finally:
            self._running.discard(pending)
            for slot in slots:
                slot.unpin()
        pending.settle(outcome(reply, queue_s, pending.attempts))
        if reply.fields.get("recycle"):
            raise WorkerDiedError("recycle")

    async def _exchange(self, worker: WorkerProcess, pending: Pending, buffers: Buffers) -> Reply:
        budget_s = pending.job.budget_s
        has_budget = 0 < budget_s <= self._job_timeout_s
        try:
            async with asyncio.timeout(budget_s if has_budget else self._job_timeout_s):
                await worker.send(buffers)
                return await final_reply(worker, pending)
        except ExecutionError as error:
            pending.settle(error)
            worker.kill()
            await worker.ended()
            raise
        except (WorkerDiedError, TimeoutError) as error:
            lost = error if isinstance(error, WorkerDiedError) else WorkerDiedError("budget" if has_budget else "hang")
            worker.kill()
            if lost.reason == "budget":
                pending.settle(OverdueError(f"{pending.job.pipeline} took longer than its {budget_s:g} s"))
            else:
                self._run_again(pending)
            await worker.ended()
            raise lost from None

    def _run_again(self, pending: Pending) -> None:
        if self._is_stopping:
            pending.settle(DrainingError("the server is shutting down"))
        elif pending.attempts >= _MOST_ATTEMPTS:
            pending.settle(WorkerLostError(f"{_MOST_ATTEMPTS} workers were lost on this reconstruction"))
        elif not pending.result.done():
            self._waiting.appendleft(pending)
            self._dispatch()

    def _note_loss(self, seat: _Seat, error: Exception) -> bool:
        """Count and log a lost worker; True when it could not even be started."""
        if self._is_stopping:
            return False
        reason = error.reason if isinstance(error, WorkerDiedError) else "crash"
        pid = seat.worker.pid if seat.worker is not None else None
        self._restarts[reason] += 1
        if seat.state is SeatState.STARTING:
            seat.state = SeatState.FAILED
            seat.problems = (f"a worker could not be started: {str(error) or type(error).__name__}",)
            _log.error("worker %d could not be started (%s): %s", seat.index, reason, error, exc_info=error)
        else:
            _log.warning("worker %d (pid %s) was lost (%s) and is replaced", seat.index, pid, reason)
        return seat.state is SeatState.FAILED

    def _fail_waiting_without_hope(self) -> None:
        if all(seat.failed_starts >= _HOPELESS_STARTS for seat in self._seats):
            while self._waiting:
                self._waiting.popleft().settle(ExecutionError("no worker can be started"))
