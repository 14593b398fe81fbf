"""The torch side: pipelines with their weights loaded, running one job after another.

`Runner` is what a worker process and the inline executor have in common; `serve` is the loop of a worker process,
which takes jobs from its socket and answers each before it takes the next, saying meanwhile how far a long one is. The
end of the socket ends the worker.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from models.catalogue import use_directory
from pipelines.assembly.frame import Group
from pipelines.image_group import ImageGroup
from pipelines.mrd import Image
from pipelines.progress import reporting
from server.execution.encoding import (
    JOB_HEAD,
    PIXEL_TYPES,
    Buffers,
    Reply,
    SlotViews,
    decode_job,
    encode_reply,
    result_reply,
)
from server.execution.executor import Job, JobResult
from server.execution.failure import encode_failure
from server.execution.heart import Heart
from server.execution.warm_up import tiny_work
from server.execution.worker_settings import PIPELINE, WorkerSettings

_MOST_PIPELINES = 8
"""Parameters come from peers, and every set of them has a pipeline of its own; the least recently used goes."""


class Output(Protocol):
    """What a pipeline returns."""

    @property
    def images(self) -> tuple[Image, ...]:
        """Images in the order to send."""
        ...

    @property
    def stages_s(self) -> Mapping[str, float]:
        """Seconds by stage."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the scanner."""
        ...

    @property
    def outside_domain(self) -> tuple[str, ...]:
        """Why the result lies outside the domain of its model; empty where it does not."""
        ...


class LoadedPipeline(Protocol):
    """A pipeline ready for any number of groups. It must keep no view of a group's arrays."""

    def __call__(self, group: Group | ImageGroup, provenance: Mapping[str, str]) -> Output:
        """Reconstruct a group."""
        ...


def count_devices(device: str) -> int:
    """Number of GPUs, 0 when the CPU is wanted; initialises CUDA, so never call it before a fork."""
    return torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0


def device_name(device: str, index: int, n_devices: int) -> str:
    """The torch device of worker `index`: workers take the GPUs in turn."""
    if device in {"auto", "cuda"} and n_devices:
        return f"cuda:{index % n_devices}"
    return "cpu" if device == "auto" else device


def limit_threads(n_threads: int) -> None:
    """Let torch use so many threads for one computation; 0 leaves its own choice."""
    if n_threads:
        torch.set_num_threads(n_threads)


def add_models(directory: str) -> None:
    """Let pipelines of this process find models in a directory of the user's own; empty for none."""
    use_directory(Path(directory) if directory else None)


@dataclass(slots=True)
class Runner:
    """Runs jobs on one device, with the pipelines it has loaded so far.

    Attributes:
        device: torch device.
        pipeline: see `worker_settings.PIPELINE`.
    """

    device: str
    pipeline: str = PIPELINE
    _loaded: OrderedDict[tuple[str, str], LoadedPipeline] = field(
        default_factory=OrderedDict[tuple[str, str], LoadedPipeline]
    )

    def run(self, job: Job, on_progress: Callable[[str], None] | None = None) -> JobResult:
        """Reconstruct one group; any exception of the pipeline passes. `on_progress` hears how far it is."""
        pipeline = self._load(job.pipeline, job.parameters)
        torch.manual_seed(0)  # a job's result does not depend on the jobs before it, nor on the worker
        with reporting(on_progress):
            output = pipeline(job.group, job.provenance)
        stages_s = {name: float(seconds) for name, seconds in output.stages_s.items()}
        images = tuple(map(_own, output.images))
        return JobResult(images, stages_s, tuple(output.warnings), outside_domain=tuple(output.outside_domain))

    def warm(self, name: str, parameters: Mapping[str, object]) -> None:
        """Load a pipeline and run it on a small phantom, so that the first scan pays for neither."""
        self._load(name, parameters)(tiny_work(name), {})

    def _load(self, name: str, parameters: Mapping[str, object]) -> LoadedPipeline:
        key = (name, repr(sorted(parameters.items())))
        found = self._loaded.get(key)
        if found is None:
            module, _, attribute = self.pipeline.partition(":")
            make = getattr(import_module(module), attribute)
            found = self._loaded[key] = cast("LoadedPipeline", make(name, parameters, self.device))
            if len(self._loaded) > _MOST_PIPELINES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return found


def serve(connection: socket.socket, memory_fd: int, settings: WorkerSettings, index: int, n_devices: int) -> None:
    """Run jobs until the other end closes the connection; the body of a worker process."""
    _send(connection, encode_reply(Reply("hello", {"pid": os.getpid()})))
    if settings.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (settings.memory_bytes, settings.memory_bytes))
    limit_threads(settings.threads)
    add_models(settings.models_directory)
    runner = Runner(device_name(settings.device, index, n_devices), settings.pipeline)
    _send(connection, encode_reply(Reply("ready", {"problems": warm_up(runner, settings.warm)})))
    views = SlotViews(memory_fd)

    sending = threading.Lock()

    def say(reply: Reply) -> None:
        blocks = encode_reply(reply)
        with sending:
            _send(connection, blocks)

    heart = Heart(lambda: say(Reply("alive")))
    while (message := _receive_job(connection)) is not None:
        with heart.beating():
            reply = _answer(runner, views, lambda text: say(Reply("progress", {"text": text})), *message)
        del message
        if views.n_kept():
            gc.collect()
        if views.n_kept():
            # Somebody keeps a view of this session's data and would see the next one's through it: this worker is done.
            reply = replace(reply, fields={**reply.fields, "recycle": True})
        try:
            blocks = encode_reply(reply)
        except (TypeError, ValueError) as error:  # attributes that are not text
            blocks = encode_reply(failure_of(error))
        _send(connection, blocks)


def warm_up(runner: Runner, wanted: Iterable[tuple[str, Mapping[str, object]]]) -> list[str]:
    """Load and run pipelines once; returns a sentence for each that does not run."""
    problems: list[str] = []
    for name, parameters in wanted:
        try:
            runner.warm(name, parameters)
        except Exception as error:  # noqa: BLE001  a broken pipeline must not take the others with it
            problems.append(f"pipeline {name!r} does not run: {type(error).__name__}: {str(error)[:500]}")
    return problems


def _answer(
    runner: Runner, views: SlotViews, tell: Callable[[str], None], text: memoryview, buffers: list[bytearray]
) -> Reply:
    try:
        job = decode_job(text, buffers, views)
        return result_reply(runner.run(job, tell))
    except Exception as error:  # noqa: BLE001  whatever it is, the front process hears of it
        if is_device_lost(error):
            return Reply("dying", {"reason": "cuda_error"})
        return failure_of(error)


def _own(image: Image) -> Image:
    """The image with pixels of its own, because a pipeline may return a view of memory that goes when the job ends."""
    if image.pixels.dtype.str not in PIXEL_TYPES:
        raise TypeError(f"pixels of type {image.pixels.dtype} cannot be sent")
    return Image(image.header.copy(), np.array(image.pixels), image.meta)


def failure_of(error: Exception) -> Reply:
    """What to say about an exception of a pipeline."""
    return encode_failure(error, out_of_memory=is_out_of_memory(error))


def is_device_lost(error: Exception) -> bool:
    """Whether CUDA cannot be used any more by this process (PyTorch issue 17425): only a new process helps."""
    kind = getattr(torch, "AcceleratorError", None)  # torch >= 2.8
    return (kind is not None and isinstance(error, kind)) or "CUDA error" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the CPU or the GPU had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator of torch has no exception of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _receive_job(connection: socket.socket) -> tuple[memoryview, list[bytearray]] | None:
    head = _receive(connection, JOB_HEAD.size)
    if head is None:
        return None
    n_buffers, n_text = JOB_HEAD.unpack(head)
    lengths = _receive(connection, 8 * n_buffers)
    text = _receive(connection, n_text)
    if lengths is None or text is None:
        return None
    buffers: list[bytearray] = []
    for (length,) in struct.iter_unpack("<Q", lengths):
        buffer = _receive(connection, length)
        if buffer is None:
            return None
        buffers.append(buffer)
    return memoryview(text), buffers


def _receive(connection: socket.socket, n_bytes: int) -> bytearray | None:
    """Exactly `n_bytes`; None when the other end has gone."""
    buffer = bytearray(n_bytes)
    rest = memoryview(buffer)
    while rest:
        try:
            n = connection.recv_into(rest)
        except ConnectionResetError:
            return None
        if n == 0:
            return None
        rest = rest[n:]
    return buffer


def _send(connection: socket.socket, blocks: Buffers) -> None:
    for block in blocks:
        connection.sendall(block)
