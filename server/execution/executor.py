"""What the server asks of a place to run reconstructions: one interface, backends beside this file.

Knows no torch: jobs carry numpy arrays, results carry images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Group
from pipelines.image_group import ImageGroup
from pipelines.mrd import Image


@dataclass(frozen=True, slots=True)
class Job:
    """One group to reconstruct.

    Attributes:
        session: session id, for logs and provenance.
        pipeline: name in the registry.
        parameters: parameters as given by the peer, already checked by `PipelineEntry.parse`.
        group: the data, readouts or images; its slots stay taken until the job has ended.
        provenance: image attributes to put on every image (product, version, session).
        is_urgent: whether it goes before those that wait and are not: somebody looks at the screen for it.
        budget_s: seconds that a worker may take for it; it is then given up and not tried again. 0 for no budget.
    """

    session: str
    pipeline: str
    parameters: Mapping[str, object]
    group: Group | ImageGroup
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])
    is_urgent: bool = False
    budget_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobResult:
    """What came of a job.

    Attributes:
        images: float32 images in the order to send: magnitude first, then uncertainty.
        stages_s: seconds by stage (`queue`, `noise`, `csm`, `recon`, `uncertainty`, `post`).
        warnings: sentences for the scanner, without patient data.
        attempts: 1, or 2 when a worker was lost and the job was run again.
        outside_domain: why the result lies outside the domain of its model (`pipelines.domain`); empty where it does
            not.
        fallback: why another pipeline than the one asked for made the images (`server.orders.FallbackReason`).
    """

    images: tuple[Image, ...]
    stages_s: Mapping[str, float] = field(default_factory=dict[str, float])
    warnings: tuple[str, ...] = ()
    attempts: int = 1
    outside_domain: tuple[str, ...] = ()
    fallback: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """State of an executor: how many workers are in which state, and what is waiting.

    Attributes:
        workers: count by state: starting, idle, busy, failed.
        queued: jobs waiting for a worker.
        restarts: workers replaced since the start, by reason.
        problems: one sentence for each thing that is wrong now: a pipeline that failed to warm up, a worker that does
            not start.
    """

    workers: Mapping[str, int]
    queued: int
    restarts: Mapping[str, int] = field(default_factory=dict[str, int])
    problems: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether at least one worker is warm."""
        return self.workers.get("idle", 0) + self.workers.get("busy", 0) > 0


class Executor(Protocol):
    """A place to run reconstructions. All methods are called from one event loop."""

    @property
    def slots(self) -> SlotSource:
        """Where assembly takes the memory for groups, so that workers can read it without a copy."""
        ...

    async def start(self) -> None:
        """Begin to start workers and return at once; jobs may be submitted before they are warm."""
        ...

    async def run(self, job: Job, *, on_progress: Callable[[str], None] | None = None) -> JobResult:
        """Run a job and return its images; the caller keeps order by awaiting in order.

        A job whose worker dies is run once more on a fresh worker. Cancelling stops waiting; the worker may finish in
        vain. The group's slots are the caller's to release, after this returned or raised.

        Args:
            job: what to run.
            on_progress: hears now and then, in the event loop and before the job's end, how far a long job is: a
                sentence as the worker sent it, cut to 500 characters. A job that is run again begins anew.

        Raises:
            PipelineError: what the pipeline raised, same type and message.
            WorkerLostError: two workers died on the job.
            ExecutionError: anything else that went wrong in a worker; its cause holds the worker's traceback, for the
                log only.
            DrainingError: the executor was stopped.
        """
        ...

    def health(self) -> Health:
        """State now, without waiting."""
        ...

    async def stop(self) -> None:
        """Stop all workers and give back all memory."""
        ...
