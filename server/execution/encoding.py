"""Jobs and replies as bytes between the front process and a worker; no I/O.

A job goes to the worker as a pickle (protocol 5) in which arrays that lie in shared memory are references: slot,
first byte, shape and strides. Other arrays follow as raw buffers. The front process is the only writer of such a
pickle.

A reply comes back as JSON and raw pixels, never as a pickle: a worker runs code and weights of others, and must not
be able to make the front process run anything.

    job     `n_buffers u64` `length of pickle u64` `length of each buffer u64 ...` pickle buffers...
    reply   `length of JSON u64` `length of payload u64` JSON payload
            the payload holds header and pixels of each image, each at a multiple of 64 bytes
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import struct
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import IMAGE_HEADER, Image, ImageDataType
from server.errors import ExecutionError
from server.execution.executor import Job, JobResult
from server.execution.repeated import RepeatedArrays
from server.execution.shared_memory import SharedSlot, SharedSlots

Buffers = list[bytes | memoryview]

JOB_HEAD = struct.Struct("<QQ")
REPLY_HEAD = struct.Struct("<QQ")
MAX_REPLY_TEXT_BYTES = 16 << 20
MAX_REPLY_PIXELS_BYTES = 4 << 30
_ALIGNMENT = 64
PIXEL_TYPES = {kind.dtype.str: kind.dtype for kind in ImageDataType}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker says.

    Attributes:
        kind: `hello` (its pid, right after the fork), `ready` (what failed to warm up), `alive` (a sign of life
            during a job), `progress` (a text about the job, some of them before its end), `result`, `refused` (an
            error that the pipeline raised on purpose), `failed` (any other exception), `dying` (why it gives up).
        fields: text, numbers and lists by name.
        images: of a `result`.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: tuple[Image, ...] = ()


def encode_job(job: Job, slots: SharedSlots, repeated: RepeatedArrays | None = None) -> tuple[Buffers, set[SharedSlot]]:
    """A job as bytes, and the slots that its arrays lie in, which must stay as they are until the worker has answered.

    Args:
        job: what to run.
        slots: where arrays lie that need not travel.
        repeated: puts other large arrays there when they come again; None to let them travel every time.

    Raises:
        ExecutionError: the job holds something that cannot travel, or an array in a slot that was released.
    """
    stream, buffers = io.BytesIO(), list[memoryview]()
    pickler = _JobPickler(stream, slots, repeated, buffers)
    travelling = replace(
        job, parameters=dict(job.parameters), provenance=dict(job.provenance), group=replace(job.group, slots=())
    )
    try:
        pickler.dump(travelling)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        raise ExecutionError("the job could not be handed to a worker") from error
    text = stream.getbuffer()
    head = JOB_HEAD.pack(len(buffers), len(text)) + struct.pack(f"<{len(buffers)}Q", *(len(b) for b in buffers))
    return [b"".join((head, text)), *buffers], pickler.used


def decode_job(text: memoryview, buffers: Sequence[bytearray], views: SlotViews) -> Job:
    """The job behind `encode_job`'s bytes, in a worker; arrays in shared memory are private views."""
    return cast("Job", _JobUnpickler(io.BytesIO(text), buffers, views).load())


class SlotViews:
    """Private, copy-on-write views of slots in a worker.

    A slot is mapped for one job and no longer (0.3 ms for 4 MiB): a mapping kept over jobs would show pages that an
    earlier job wrote to, and data of the next session to whoever kept a view. Being private, it can be written to
    without changing what a second worker reads when this one dies.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._open: list[weakref.ref[mmap.mmap]] = []

    def map(self, offset: int, size: int) -> mmap.mmap:
        """The bytes of a slot."""
        view = mmap.mmap(self._fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
        self._open.append(weakref.ref(view))
        return view

    def n_kept(self) -> int:
        """How many mappings somebody still holds; forgets those that nobody does."""
        self._open = [view for view in self._open if view() is not None]
        return len(self._open)


class _JobPickler(pickle.Pickler):
    """Pickles arrays in shared memory as references."""

    def __init__(
        self, stream: io.BytesIO, slots: SharedSlots, repeated: RepeatedArrays | None, buffers: list[memoryview]
    ) -> None:
        super().__init__(stream, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
        self._slots = slots
        self._repeated = repeated
        self.used: set[SharedSlot] = set()

    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        if type(obj) is not np.ndarray or obj.dtype.hasobject:
            return None
        place = self._slots.locate(obj)
        if place is None and self._repeated is not None:
            place = self._repeated.place(obj)
        if place is None:
            return None
        slot, first = place
        self.used.add(slot)
        return slot.offset, slot.size, first, obj.shape, obj.strides, obj.dtype


class _JobUnpickler(pickle.Unpickler):
    """Turns references into views."""

    def __init__(self, stream: io.BytesIO, buffers: Sequence[bytearray], views: SlotViews) -> None:
        super().__init__(stream, buffers=buffers)
        self._views = views
        self._mapped: dict[int, mmap.mmap] = {}

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        offset, size, first, shape, strides, dtype = pid
        if offset not in self._mapped:
            self._mapped[offset] = self._views.map(offset, size)
        return np.ndarray(shape, dtype, buffer=self._mapped[offset], offset=first, strides=strides)


def result_reply(result: JobResult) -> Reply:
    """What a worker says about a job that ended well."""
    fields = {"stages_s": result.stages_s, "warnings": result.warnings, "outside_domain": result.outside_domain}
    return Reply("result", fields, result.images)


def decode_result(reply: Reply, queue_s: float, attempts: int) -> JobResult:
    """The result behind `result_reply`, with how long the job waited and how often it was begun.

    Raises:
        ExecutionError: not what a worker sends.
    """
    try:
        stages = {str(name): float(seconds) for name, seconds in reply.fields["stages_s"].items()}
        warnings = tuple(str(text) for text in reply.fields["warnings"])
        outside = tuple(str(reason) for reason in reply.fields["outside_domain"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExecutionError("a worker sent a result that cannot be read") from error
    return JobResult(reply.images, {"queue": queue_s, **stages}, warnings, attempts, outside)


def encode_reply(reply: Reply) -> Buffers:
    """A reply as bytes."""
    payload: Buffers = []
    pixels: list[dict[str, object]] = []
    length = 0

    def add(block: bytes | memoryview) -> None:
        nonlocal length
        payload.append(block)
        length += len(block)
        padding = -length % _ALIGNMENT
        if padding:
            payload.append(bytes(padding))
            length += padding

    for image in reply.images:
        add(image.header.tobytes())
        flat = np.ascontiguousarray(image.pixels).reshape(-1)
        add(flat.view(np.uint8).data)
        pixels.append({"type": flat.dtype.str, "shape": image.pixels.shape, "meta": image.meta})
    text = json.dumps({"kind": reply.kind, "fields": reply.fields, "images": pixels}).encode()
    return [REPLY_HEAD.pack(len(text), length) + text, *payload]


def check_reply_head(head: bytes | bytearray) -> tuple[int, int]:
    """Lengths of text and payload.

    Raises:
        ExecutionError: a length is beyond reason; whoever sent it is broken.
    """
    n_text, n_payload = REPLY_HEAD.unpack(head)
    if n_text > MAX_REPLY_TEXT_BYTES or n_payload > MAX_REPLY_PIXELS_BYTES:
        raise ExecutionError("a worker announced a result of an impossible size")
    return n_text, n_payload


def decode_reply(text: bytes | bytearray, payload: NDArray[np.uint8]) -> Reply:
    """The reply behind `encode_reply`'s bytes; pixels are views of the payload.

    Raises:
        ExecutionError: not what a worker sends; whoever sent it is broken.
    """
    try:
        said = json.loads(text)
        images: list[Image] = []
        start = 0
        for entry in said["images"]:
            dtype, shape = PIXEL_TYPES[entry["type"]], tuple(int(n) for n in entry["shape"])
            header = np.frombuffer(payload, IMAGE_HEADER, 1, start)[0:1].reshape(())
            start = _aligned(start + IMAGE_HEADER.itemsize)
            n_pixels = int(np.prod(shape, dtype=np.int64))
            pixels = np.frombuffer(payload, dtype, n_pixels, start).reshape(shape)
            start = _aligned(start + n_pixels * dtype.itemsize)
            images.append(
                Image(header, pixels, {str(name): [str(v) for v in values] for name, values in entry["meta"].items()})
            )
        return Reply(str(said["kind"]), dict(said["fields"]), tuple(images))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExecutionError("a worker sent a result that cannot be read") from error


def _aligned(n: int) -> int:
    return n + -n % _ALIGNMENT
