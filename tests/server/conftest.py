"""A server in this process with an executor that does what a test says, and a small scan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pipelines.assembly.buffer import HeapSlot
from pipelines.mrd import IMAGE_HEADER, Image
from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.config import load
from server.execution.executor import Health, Job, JobResult
from server.listener import Server
from server.metrics import Metrics


class CountedSlot(HeapSlot):
    """A slot that tells its source when it is released."""

    def __init__(self, n_bytes: int, source: CountedSlots) -> None:
        super().__init__(n_bytes)
        self._source = source

    def release(self) -> None:
        self._source.taken.discard(self)


class CountedSlots:
    """Slots that can be counted: what is taken must come back."""

    def __init__(self) -> None:
        self.taken: set[CountedSlot] = set()
        self.n_taken = 0

    def take(self, n_bytes: int) -> CountedSlot:
        slot = CountedSlot(n_bytes, self)
        self.taken.add(slot)
        self.n_taken += 1
        return slot


@dataclass
class FakeExecutor:
    """Answers each job with two images as large as asked, once `gate` is open; a job may be made to fail.

    Attributes:
        held: the only pipeline that waits for the gate; all do where it is empty.
        failing: what jobs of a pipeline fail with.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    slots: CountedSlots = field(default_factory=CountedSlots)
    columns: int = 16
    rows: int = 1
    failures: dict[int, Exception] = field(default_factory=dict)
    delays_s: dict[int, float] = field(default_factory=dict)
    outside_domain: dict[int, tuple[str, ...]] = field(default_factory=dict)
    progress: dict[int, tuple[str, ...]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    held: str = ""
    failing: dict[str, Exception] = field(default_factory=dict)
    stopped: bool = False

    async def start(self) -> None:
        """Nothing to start."""

    async def run(self, job: Job, *, on_progress: Callable[[str], None] | None = None) -> JobResult:
        number = len(self.jobs)
        self.jobs.append(job)
        for text in self.progress.get(number, ()):
            assert on_progress is not None
            on_progress(text)
        if not self.held or job.pipeline == self.held:
            await self.gate.wait()
        if job.pipeline in self.failing:
            raise self.failing[job.pipeline]
        await asyncio.sleep(self.delays_s.get(number, 0))
        if number in self.failures:
            raise self.failures[number]
        images = (self._image(number, 1), self._image(number, 2))
        outside = self.outside_domain.get(number, ())
        return JobResult(images, {"queue": 0.5, "recon": 0.25}, outside_domain=outside)

    def _image(self, number: int, series: int) -> Image:
        header = np.zeros((), IMAGE_HEADER)
        header["version"], header["data_type"], header["image_type"] = 1, 5, 1
        header["matrix_size"], header["channels"] = (self.columns, self.rows, 1), 1
        header["image_index"], header["image_series_index"] = number, series
        meta = {"ReconUncertaintyKind": ["noise"]} if series == 2 else {"DataRole": ["Image"]}
        return Image(header, np.full((1, 1, self.rows, self.columns), number, np.float32), meta)

    def health(self) -> Health:
        return Health({"idle": 1}, 0)

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def executor() -> FakeExecutor:
    """An executor whose gate is open."""
    fake = FakeExecutor()
    fake.gate.set()
    return fake


@pytest.fixture
async def serving(executor: FakeExecutor) -> AsyncIterator[Callable[..., Any]]:
    """Start a server with settings of the test's choice; at the end nothing of it may be left."""
    servers: list[Server] = []

    async def start(**settings: object) -> Server:
        flags = {name.replace("__", "."): value for name, value in settings.items()}
        flags |= {"listen.port": 0, "admin.enabled": False, "pipelines.default": "zero_filled"}
        server = Server(load(flags=flags, environment={}).settings, executor, Metrics())
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        if not executor.stopped:
            await server.stop(0)
        assert not server.sessions
    assert executor.stopped or not servers
    assert not executor.slots.taken
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not [task for task in left if "session" in task.get_name() or "_keep" in str(task.get_coro())]


@pytest.fixture(scope="session")
def small_scan() -> SimulatedScan:
    """One slice, twelve repetitions, two coils."""
    return simulate(head_phantom(1, 32, 32), Protocol(n_coils=2, calibration_lines=0, repetitions=12, noise_readouts=4))
