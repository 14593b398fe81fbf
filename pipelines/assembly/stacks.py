"""Slices with their neighbours in space: gathers the slices of a frame and hands each on with those next to it.

A slice is handed on as soon as it and its neighbours are assembled: one to either side, at the ends of the stack one in
all; `slice_order.py` says which, and when that is certain. A neighbour that will not come any more is not waited for:
its frame was given up, or the same slice of a later repetition is assembled already (and repetitions do not
interleave). At CLOSE every slice is handed on with the neighbours that are there.

The memory of a slice is shared by the groups that need it, and kept here until the last of them has been handed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import Slot, SlotShares
from pipelines.assembly.frame import Group
from pipelines.assembly.layout import Key
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.slice_order import SliceOrder
from pipelines.scan_header import ScanHeader

_ENCODING, _SLICE, _REPETITION = 0, 1, 4


@dataclass(frozen=True, slots=True)
class _Slice:
    """A slice that is assembled: its group without slots, shares of these, and one of each share that is kept here."""

    group: Group
    shares: tuple[SlotShares, ...]
    kept: tuple[Slot, ...]

    @property
    def n_bytes(self) -> int:
        return sum(slot.data.nbytes for slot in self.kept)


@dataclass(slots=True)
class _Stack:
    """The slices of one frame: those that are kept, handed on, and that will not come."""

    kept: dict[int, _Slice] = field(default_factory=dict[int, _Slice])
    handed_on: set[int] = field(default_factory=set[int])
    gone: set[int] = field(default_factory=set[int])


class Stacks:
    """Gathers slices, of several frames at a time where these interleave.

    Attributes:
        n_bytes: memory of the slices that are kept.
    """

    def __init__(self, scan: ScanHeader, ledger: Ledger) -> None:
        self.n_bytes = 0
        self._ledger = ledger
        self._stacks: dict[Key, _Stack] = {}
        self._orders = [SliceOrder(encoding) for encoding in scan.encodings]

    def see(self, key: Key, header: NDArray[np.void]) -> list[Group]:
        """Take note of the first readout of a frame; groups whose neighbours are known because of it."""
        if not self._orders[key[_ENCODING]].see(key[_SLICE], header):
            return []
        return [group for at in list(self._stacks) for group in self._hand_on(at)]

    def add(self, group: Group, may_come: Callable[[Key], bool]) -> list[Group]:
        """Take a slice that is assembled, and hand on what is ready.

        Args:
            group: of one slice and frame; its slots are taken over.
            may_come: whether the slice of an earlier repetition may still be assembled.
        """
        key = astuple(group.key)
        shares = tuple(SlotShares(slot) for slot in group.slots)
        taken = _Slice(replace(group, slots=()), shares, tuple(share.share() for share in shares))
        self._stacks.setdefault(_stack_key(key), _Stack()).kept[key[_SLICE]] = taken
        self.n_bytes += taken.n_bytes
        ready: list[Group] = []
        for at, stack in list(self._stacks.items()):
            missing = (*at[:_SLICE], key[_SLICE], *at[_SLICE + 1 :])
            is_earlier = _without_repetition(at) == _without_repetition(_stack_key(key)) and (
                at[_REPETITION] < key[_REPETITION]
            )
            if is_earlier and key[_SLICE] not in stack.kept.keys() | stack.handed_on and not may_come(missing):
                ready += self.give_up(missing)
        return ready + self._hand_on(_stack_key(key))

    def give_up(self, key: Key) -> list[Group]:
        """A slice that will not come; groups that waited for it."""
        at = _stack_key(key)
        if at not in self._stacks:
            return []
        self._stacks[at].gone.add(key[_SLICE])
        return self._hand_on(at)

    def finish(self) -> list[Group]:
        """Everything that is left, with the neighbours that are there."""
        return [group for at in list(self._stacks) for group in self._hand_on(at, is_last=True)]

    def abandon(self) -> None:
        """Give back all memory that is kept here."""
        for stack in self._stacks.values():
            for each in stack.kept.values():
                _release(each)
        self._stacks.clear()
        self.n_bytes = 0

    def _hand_on(self, at: Key, *, is_last: bool = False) -> list[Group]:
        """Groups of one stack that are ready; memory that no other needs is given back."""
        stack, order = self._stacks[at], self._orders[at[_ENCODING]]
        ready: list[Group] = []
        for slice_, each in stack.kept.items():
            if slice_ in stack.handed_on:
                continue
            near, is_certain = order.neighbours(slice_)
            if is_last or (is_certain and all(other in stack.kept or other in stack.gone for other in near)):
                ready.append(self._with_neighbours(each, [stack.kept[other] for other in near if other in stack.kept]))
                stack.handed_on.add(slice_)
                if any(other not in stack.kept for other in near):
                    text = f"slice {slice_}: a neighbouring slice did not come; the stack is reconstructed without it"
                    self._ledger.warn("neighbour", text)
        for slice_ in [slice_ for slice_ in stack.kept if is_last or not self._is_needed(slice_, stack, order)]:
            each = stack.kept.pop(slice_)
            self.n_bytes -= each.n_bytes
            _release(each)
        if not stack.kept and (is_last or not stack.gone):  # what is gone has to be known to slices yet to come
            del self._stacks[at]
        return ready

    @staticmethod
    def _is_needed(slice_: int, stack: _Stack, order: SliceOrder) -> bool:
        """Whether the slice, or one that it is next to, has still to be handed on."""
        if slice_ not in stack.handed_on:
            return True
        done = stack.handed_on | stack.gone
        near, _ = order.neighbours(slice_)
        return not done.issuperset(near) or any(
            slice_ in order.neighbours(other)[0] for other in order.seen if other not in done
        )

    @staticmethod
    def _with_neighbours(each: _Slice, near: list[_Slice]) -> Group:
        slots = tuple(share.share() for one in (each, *near) for share in one.shares)
        return replace(each.group, neighbours=tuple(one.group for one in near), slots=slots)


def _stack_key(key: Key) -> Key:
    return (*key[:_SLICE], 0, *key[_SLICE + 1 :])


def _without_repetition(key: Key) -> Key:
    return (*key[:_REPETITION], *key[_REPETITION + 1 :])


def _release(each: _Slice) -> None:
    for slot in each.kept:
        slot.release()
