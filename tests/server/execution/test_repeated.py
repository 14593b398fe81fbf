"""Arrays that come with job after job are shared once, and only as long as they live."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_jobs import make_group, make_job
from fake_pipeline import digest

from pipelines.assembly.frame import NoiseCovariance
from server.execution.encoding import encode_job
from server.execution.process_pool import ProcessExecutor
from server.execution.repeated import RepeatedArrays
from server.execution.shared_memory import SharedSlots

MIB = 1 << 20


@pytest.fixture
def slots() -> Iterator[SharedSlots]:
    made = SharedSlots(16 * MIB, prefault_bytes=0)
    yield made
    made.close()


def array(n_mib: int = 1, value: int = 1) -> np.ndarray[Any, Any]:
    return np.full((n_mib, MIB // 8), value, np.complex64)


async def test_an_array_is_shared_at_its_second_job_and_until_it_is_garbage(slots: SharedSlots) -> None:
    repeated, noise = RepeatedArrays(slots), array()
    assert repeated.place(noise) is None
    assert slots.bytes_in_use == 0
    first, second = repeated.place(noise), repeated.place(noise)
    assert first is not None
    assert first == second
    slot, offset = first
    assert slot.data[offset:].tobytes() == noise.tobytes()
    assert repeated.n_bytes == slots.bytes_in_use == MIB
    with pytest.raises(ValueError, match="read-only"):
        noise[0] = 2
    del noise
    gc.collect()
    await asyncio.sleep(0)
    assert repeated.n_bytes == slots.bytes_in_use == 0


async def test_a_new_array_at_an_old_address_is_not_taken_for_the_old_one(slots: SharedSlots) -> None:
    repeated = RepeatedArrays(slots)
    for value in range(50):  # no wait in between, so that no end has been told
        fresh = array(value=value)
        for _ in range(3):
            place = repeated.place(fresh)
        assert place is not None
        assert place[0].data.tobytes() == fresh.tobytes()
        del fresh
        await asyncio.sleep(0) if value % 3 == 0 else None
    await asyncio.sleep(0)
    assert slots.bytes_in_use == 0


async def test_small_strided_and_too_many_arrays_travel_by_themselves(slots: SharedSlots) -> None:
    repeated = RepeatedArrays(slots)
    arrays = [array(1)[:, :100], array(4)[::2], *(array(2) for _ in range(4))]
    places = [[repeated.place(a) for a in arrays] for _ in range(2)][1]
    assert [place is not None for place in places] == [False, False, True, True, False, False]
    repeated.close()
    assert repeated.n_bytes == slots.bytes_in_use == 0


async def test_room_for_kspace_comes_first(slots: SharedSlots) -> None:
    repeated, noise = RepeatedArrays(slots), array()
    slots.take(16 * MIB)
    assert [repeated.place(noise) for _ in range(3)] == [None, None, None]


async def test_the_noise_of_many_coils_travels_once() -> None:
    pool = ProcessExecutor(1, "cpu", 1, 64 * MIB, pipeline="fake_pipeline:FakePipeline")
    await pool.start()
    noise = NoiseCovariance.of(np.random.default_rng(0).standard_normal((1, 256, 20)).astype(np.complex64), 5.0)
    for seed in range(4):
        group = make_group(pool.slots, seed)
        with_noise = replace(group, noise=noise)
        result = await pool.run(make_job(with_noise))
        assert result.images[0].meta["digest"] == [digest(with_noise)]
        if seed == 3:
            buffers, _ = encode_job(make_job(with_noise), pool.slots, pool._repeated)
            assert sum(map(len, buffers)) < MIB // 10
        group.release()
        assert pool.slots.bytes_in_use == (0 if seed == 0 else noise.sums.nbytes)
    await pool.stop()
    assert pool.slots.bytes_in_use == 0
