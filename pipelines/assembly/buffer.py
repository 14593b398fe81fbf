"""Memory that readouts are copied into: slots that are taken, filled, and given back.

Assembly knows only this interface. In the server the slots lie in shared memory (`server.execution.shared_memory`), so
that the one copy that assembly makes is the one that a worker reads; in tests and offline tools they lie on the heap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Slot(Protocol):
    """A block of zeroed bytes owned by whoever took it, until `release`."""

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes, `(n_bytes,)`, zero when taken."""
        ...

    def release(self) -> None:
        """Give the block back; a second call does nothing. No view of `data` may be used afterwards."""
        ...


class SlotSource(Protocol):
    """Where slots come from."""

    def take(self, n_bytes: int) -> Slot:
        """A zeroed slot of exactly `n_bytes`.

        Raises:
            BudgetError: the block would exceed the budget of the source.
        """
        ...


class HeapSlot:
    """A slot on the heap."""

    __slots__ = ("_data",)

    def __init__(self, n_bytes: int) -> None:
        self._data: NDArray[np.uint8] = np.zeros(n_bytes, np.uint8)

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes."""
        return self._data

    def release(self) -> None:
        """Nothing to give back: the garbage collector does it."""


class HeapSlots:
    """Slots on the heap, without a budget: tests, offline tools and the inline executor."""

    def take(self, n_bytes: int) -> HeapSlot:
        """A zeroed slot of `n_bytes`."""
        return HeapSlot(n_bytes)


class SlotShares:
    """One slot with several holders: given back when the last share is released."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._n_out = 0

    def share(self) -> SlotShare:
        """One more share."""
        self._n_out += 1
        return SlotShare(self._slot, self._give_back)

    def _give_back(self) -> None:
        self._n_out -= 1
        if self._n_out == 0:
            self._slot.release()


class SlotShare:
    """The right to read a slot that others read as well."""

    __slots__ = ("_give_back", "_slot")

    def __init__(self, slot: Slot, give_back: Callable[[], None]) -> None:
        self._slot: Slot | None = slot
        self._give_back = give_back

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes.

        Raises:
            ValueError: this share was released.
        """
        if self._slot is None:
            raise ValueError("this share of a slot was released")
        return self._slot.data

    def release(self) -> None:
        """Give the share back; a second call does nothing."""
        if self._slot is not None:
            self._slot = None
            self._give_back()
