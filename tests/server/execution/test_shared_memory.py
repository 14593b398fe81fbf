"""Slots: zeroed, reused, bounded, and not reused while somebody reads them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.buffer import SlotSource
from pipelines.errors import BudgetError
from server.execution.shared_memory import PAGE, SharedSlot, SharedSlots

MIB = 1 << 20


@pytest.fixture
def slots():
    made = SharedSlots(64 * MIB, prefault_bytes=0)
    yield made
    made.close()


def memory_files() -> list[str]:
    targets = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [target for target in targets if "echotrain-slots" in target]


def bytes_held(slots: SharedSlots) -> int:
    return Path(f"/proc/self/fd/{slots._fd}").stat().st_blocks * 512


def test_a_slot_has_the_bytes_asked_for_and_is_zero(slots: SharedSlots) -> None:
    source: SlotSource = slots
    slot = source.take(12345)
    assert slot.data.shape == (12345,)
    assert slot.data.dtype == np.uint8
    assert not slot.data.any()
    assert slot.data.flags.writeable


@pytest.mark.parametrize("n_bytes", [1, PAGE - 1, PAGE + 1, 3 * MIB, 40 * MIB])
def test_memory_is_reused_and_zero_when_taken_again(slots: SharedSlots, n_bytes: int) -> None:
    first = slots.take(n_bytes)
    first.data[...] = 0xDE
    first.release()
    second = slots.take(64 * MIB)
    assert second.offset == first.offset
    assert not second.data.any()


def test_the_budget_is_enforced_and_comes_back(slots: SharedSlots) -> None:
    large = slots.take(60 * MIB)
    with pytest.raises(BudgetError, match=r"10\.0 MiB wanted, but 60\.0 MiB of the server's 64\.0 MiB"):
        slots.take(10 * MIB)
    assert slots.bytes_in_use == 60 * MIB
    large.release()
    assert slots.take(10 * MIB).n_bytes == 10 * MIB


def test_a_slot_beyond_every_budget_is_refused_without_touching_memory(slots: SharedSlots) -> None:
    with pytest.raises(BudgetError):
        slots.take(1 << 60)
    assert slots.bytes_in_use == 0


def test_nonsense_sizes_are_refused(slots: SharedSlots) -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        slots.take(-1)
    with pytest.raises(ValueError, match="0 bytes"):
        SharedSlots(0)


def test_scattered_free_memory_still_serves_a_large_slot(slots: SharedSlots) -> None:
    taken = [slots.take(MIB) for _ in range(64)]
    for slot in taken[::2]:
        slot.data[...] = 1
        slot.release()
    large = slots.take(32 * MIB)
    assert not large.data.any()
    large.data[...] = 1
    assert slots.bytes_in_use == 64 * MIB
    assert bytes_held(slots) <= 64 * MIB, "what is free was given back to the system"


def test_a_second_release_does_nothing(slots: SharedSlots) -> None:
    slot = slots.take(100)
    slot.release()
    other = slots.take(100)
    slot.release()
    assert slots.take(100).offset != other.offset
    with pytest.raises(ValueError, match="released"):
        _ = slot.data


def test_a_pinned_slot_is_reused_only_after_the_last_unpin(slots: SharedSlots) -> None:
    slot = slots.take(100)
    slot.data[...] = 7
    view = slot.data
    slot.pin()
    slot.pin()
    slot.release()
    assert slots.take(100).offset != slot.offset
    slot.unpin()
    assert view.all()
    slot.unpin()
    assert not view.any()
    assert slots.take(100).offset == slot.offset
    with pytest.raises(ValueError, match="not pinned"):
        slot.unpin()


def test_arrays_are_located_by_their_memory(slots: SharedSlots) -> None:
    slots.take(1000)
    slot = slots.take(8 * 600)
    array = slot.data.view(np.float64).reshape(20, 30)
    assert slots.locate(array) == (slot, 0)
    assert slots.locate(array[3:, 4:]) == (slot, 8 * (3 * 30 + 4))
    assert slots.locate(array[::-1]) == (slot, 8 * 19 * 30)
    assert slots.locate(np.zeros(5)) is None
    assert slots.locate(array[:0]) is None
    slot.release()
    with pytest.raises(ValueError, match="given back"):
        slots.locate(array)


def test_an_array_that_reaches_beyond_its_slot_is_refused(slots: SharedSlots) -> None:
    slot, _ = slots.take(PAGE), slots.take(PAGE)
    beyond = np.lib.stride_tricks.as_strided(slot.data, (PAGE + 1,), (1,))
    with pytest.raises(ValueError, match="given back"):
        slots.locate(beyond)


def test_a_reader_can_neither_write_nor_resize(slots: SharedSlots) -> None:
    slot = slots.take(PAGE)
    fd = slots.open_for_reading()
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE)
        with pytest.raises(OSError, match="Invalid argument"):
            os.ftruncate(fd, 0)
        with mmap.mmap(fd, PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[0] = 1
            assert slot.data[0] == 0
        with pytest.raises(PermissionError):
            os.ftruncate(slots._fd, 0)
    finally:
        os.close(fd)


def test_close_gives_memory_back_although_views_exist() -> None:
    before = memory_files()
    slots = SharedSlots(64 * MIB, prefault_bytes=8 * MIB)
    slots.prefault().result()
    view = slots.take(MIB).data
    view[...] = 1
    slots.close()
    assert not view.any()
    assert slots.bytes_in_use == 0
    with pytest.raises(ValueError, match="closed"):
        slots.take(1)
    slots.close()
    del view
    assert memory_files() == before


def test_prefault_makes_pages_ready_and_keeps_what_is_written() -> None:
    slots = SharedSlots(64 * MIB, prefault_bytes=16 * MIB)
    slot = slots.take(4 * MIB)
    slot.data[...] = 5
    slots.prefault().result()
    assert (slot.data == 5).all()
    assert bytes_held(slots) == 16 * MIB
    slots.close()


def test_nothing_has_a_name() -> None:
    before = set(Path("/dev/shm").iterdir())
    slots = SharedSlots(MIB)
    slots.take(100)
    assert set(Path("/dev/shm").iterdir()) == before
    slots.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * MIB), st.sampled_from(["take", "pin", "release", "unpin"]), st.integers(0, 9))
    )
)
def test_slots_never_overlap_and_are_always_zero(steps: list[tuple[int, str, int]]) -> None:
    slots = SharedSlots(8 * MIB, prefault_bytes=0)
    held: list[tuple[SharedSlot, np.ndarray, int]] = []
    pins: list[SharedSlot] = []
    mark = 0
    for n_bytes, what, which in steps:
        if what == "take":
            try:
                slot = slots.take(n_bytes)
            except BudgetError:
                assert slots.bytes_in_use + n_bytes + PAGE > slots.budget
                continue
            assert not slot.data.any()
            mark = mark % 255 + 1
            slot.data[...] = mark
            held.append((slot, slot.data, mark))
        elif what == "release" and held:
            slot, _, _ = held.pop(which % len(held))
            slot.release()
        elif what == "pin" and held:
            slot = held[which % len(held)][0]
            slot.pin()
            pins.append(slot)
        elif what == "unpin" and pins:
            pins.pop().unpin()
        for _, data, value in held:
            assert (data == value).all()
    for slot in pins:
        slot.unpin()
    for slot, _, _ in held:
        slot.release()
    assert slots.bytes_in_use == 0
    assert not slots.take(8 * MIB).data.any()
    slots.close()
