"""A job on its way through the process pool, from its submission to its outcome, and what its worker says meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import ExecutionError
from server.execution.encoding import Reply, decode_result
from server.execution.executor import Job, JobResult
from server.execution.failure import decode_failure
from server.execution.heart import SILENCE_S
from server.execution.launcher import WorkerDiedError, WorkerProcess

_log = logging.getLogger(__name__)

MOST_PROGRESS = 10_000
"""Replies about the progress of one job; pipelines send one in five seconds."""
MOST_PROGRESS_CHARACTERS = 500


@dataclass(slots=True, eq=False)
class Pending:
    """A job until its end; `result` is done when the caller has gone away."""

    job: Job
    result: asyncio.Future[JobResult]
    submitted_at: float
    on_progress: Callable[[str], None] | None = None
    attempts: int = 0

    def settle(self, outcome: JobResult | Exception) -> None:
        """End the wait of the caller, unless it has gone away."""
        if self.result.done():
            return
        if isinstance(outcome, JobResult):
            self.result.set_result(outcome)
        else:
            self.result.set_exception(outcome)

    def tell(self, text: str) -> None:
        """Tell the caller how far the job is; nothing that goes wrong with it hurts the job."""
        if self.on_progress is not None and not self.result.done():
            try:
                self.on_progress(text[:MOST_PROGRESS_CHARACTERS])
            except Exception as error:  # noqa: BLE001  whatever it is, the job goes on
                _log.warning("how far a job is could not be told (%s)", type(error).__name__)


async def final_reply(worker: WorkerProcess, pending: Pending) -> Reply:
    """What a worker says of its job in the end; how far it is meanwhile is passed on.

    Raises:
        WorkerDiedError: the worker is gone, says that it gives up, or gives no sign of life.
        ExecutionError: the worker sent what no worker sends; it has to be killed.
    """
    texts = 0
    while texts <= MOST_PROGRESS:
        try:
            async with asyncio.timeout(SILENCE_S):
                reply = await worker.receive()
        except TimeoutError:
            raise WorkerDiedError("hang") from None
        if reply.kind == "alive":
            continue
        if reply.kind != "progress":
            return reply
        texts += 1
        text = reply.fields.get("text")
        if not isinstance(text, str) or reply.images:
            raise ExecutionError("a worker sent progress that cannot be read")
        pending.tell(text)
        await asyncio.sleep(0)  # a socket that is never empty must not hold up the loop
    raise ExecutionError(f"a worker sent more than {MOST_PROGRESS} texts about its progress")


def outcome(reply: Reply, queue_s: float, attempts: int) -> JobResult | Exception:
    """What a final reply means to the caller."""
    if reply.kind != "result":
        return decode_failure(reply.fields)
    try:
        return decode_result(reply, queue_s, attempts)
    except ExecutionError as error:
        return error
