"""Memory that readouts are copied into: slots that are taken, filled, and given back.

Assembly knows only this interface. In the server the slots lie in shared memory (`server.execution.shared_memory`), so
that the one copy that assembly makes is the one that a worker reads; in tests and offline tools they lie on the heap.
"""

from __future__ import annotations

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
