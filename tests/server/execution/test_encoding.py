"""Replies from workers: the identity for any images, and an error for any nonsense."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_jobs import make_group, make_job
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines.mrd import IMAGE_HEADER, WAVEFORM_HEADER, Image, ImageDataType, Waveform
from server.errors import ExecutionError
from server.execution.encoding import (
    JOB_HEAD,
    REPLY_HEAD,
    Reply,
    SlotViews,
    check_reply_head,
    decode_job,
    decode_reply,
    encode_job,
    encode_reply,
)
from server.execution.shared_memory import SharedSlots

pixels = st.sampled_from(list(ImageDataType)).flatmap(
    lambda kind: hnp.arrays(kind.dtype, hnp.array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=4))
)
metas = st.dictionaries(st.text(), st.lists(st.text(), max_size=3), max_size=3)


def parse(stream: bytes) -> Reply:
    n_text, n_payload = check_reply_head(stream[: REPLY_HEAD.size])
    text = stream[REPLY_HEAD.size : REPLY_HEAD.size + n_text]
    payload = np.frombuffer(stream, np.uint8)[REPLY_HEAD.size + n_text :]
    assert len(payload) == n_payload
    return decode_reply(text, payload)


@settings(max_examples=60)
@given(st.lists(st.tuples(pixels, metas, st.binary(min_size=198, max_size=198)), max_size=3))
def test_encode_then_decode_is_the_identity(contents: list[tuple[Any, dict[str, list[str]], bytes]]) -> None:
    images = [
        Image(np.frombuffer(raw, IMAGE_HEADER)[0:1].reshape(()), array[..., ::-1], meta)
        for array, meta, raw in contents
    ]
    reply = Reply("result", {"stages_s": {"recon": 0.5}, "warnings": ["ü"]}, tuple(images))
    found = parse(b"".join(bytes(block) for block in encode_reply(reply)))
    assert (found.kind, found.fields) == (reply.kind, reply.fields)
    for image, expected in zip(found.images, images, strict=True):
        assert image.header.tobytes() == expected.header.tobytes()
        assert image.pixels.dtype == expected.pixels.dtype
        assert image.pixels.shape == expected.pixels.shape
        assert image.pixels.tobytes() == expected.pixels.tobytes()
        assert image.meta == expected.meta


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"kind": "result", "fields": {}, "images": [{}]}',
        json.dumps(
            {"kind": "result", "fields": {}, "images": [{"type": "|O", "shape": [1, 1, 1, 1], "meta": {}}]}
        ).encode(),
        json.dumps(
            {"kind": "result", "fields": {}, "images": [{"type": "<f4", "shape": [1, 1, 9, 99], "meta": {}}]}
        ).encode(),
        json.dumps(
            {"kind": "result", "fields": {}, "images": [{"type": "<f4", "shape": [1, 1, -1, -1], "meta": {}}]}
        ).encode(),
    ],
)
def test_nonsense_from_a_worker_is_a_coded_error(text: bytes) -> None:
    with pytest.raises(ExecutionError, match="cannot be read"):
        decode_reply(text, np.zeros(256, np.uint8))


@pytest.mark.parametrize("lengths", [((16 << 20) + 1, 0), (0, (4 << 30) + 1), (2**64 - 1, 2**64 - 1)])
def test_an_impossible_size_is_refused_before_memory_is_taken(lengths: tuple[int, int]) -> None:
    with pytest.raises(ExecutionError, match="impossible size"):
        check_reply_head(REPLY_HEAD.pack(*lengths))


def test_a_group_takes_its_waveforms_along() -> None:
    slots = SharedSlots(16 << 20, prefault_bytes=0)
    header = np.zeros((), WAVEFORM_HEADER)
    header["waveform_id"], header["time_stamp"] = 1024, 77
    waveforms = (Waveform(header, np.arange(10, dtype=np.uint32).reshape(2, 5)),)
    group = replace(make_group(slots), waveforms=waveforms)
    (head, *buffers), _ = encode_job(make_job(group), slots)
    n_buffers, n_text = JOB_HEAD.unpack_from(head)
    text = bytes(head)[JOB_HEAD.size + 8 * n_buffers :]
    assert len(text) == n_text
    fd = slots.open_for_reading()
    found = decode_job(memoryview(text), [bytearray(buffer) for buffer in buffers], SlotViews(fd)).group
    os.close(fd)
    assert [each.header.tobytes() for each in found.waveforms] == [header.tobytes()]
    np.testing.assert_array_equal(found.waveforms[0].samples, waveforms[0].samples)
    del found
    group.release()
    slots.close()
