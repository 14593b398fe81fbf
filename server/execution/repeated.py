"""Large arrays on the heap that come with one job after another: put into shared memory once.

Sending 16 MiB with every slice cost 3 to 6 ms a job. An array is shared at its second job, because
most arrays have only one, and until it is garbage. It is made read-only then, so that the copy cannot become a
different one.
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import BudgetError
from server.execution.shared_memory import SharedSlot, SharedSlots

_LEAST_BYTES: Final = 256 << 10
_MOST_OF_BUDGET: Final = 1 / 4


@dataclass(slots=True)
class _Known:
    array: weakref.ref[NDArray[Any]]
    slot: SharedSlot | None = None


class RepeatedArrays:
    """Shared copies of arrays that come again. Belongs to the event loop that is running when it is made.

    Attributes:
        n_bytes: memory that copies take, at most a quarter of the budget of the slots.
    """

    def __init__(self, slots: SharedSlots) -> None:
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._known: dict[int, _Known] = {}
        self.n_bytes = 0

    def place(self, array: NDArray[Any]) -> tuple[SharedSlot, int] | None:
        """The slot with a copy of the array, and where in it; None for one that travels by itself."""
        if array.nbytes < _LEAST_BYTES or not array.flags.c_contiguous:
            return None
        key = id(array)
        known = self._known.get(key)
        if known is not None and known.array() is not array:
            self._forget(key, known.array)  # another array had this id, and its end has not been told yet
            known = None
        if known is None:

            def told(gone: weakref.ref[NDArray[Any]]) -> None:
                # The garbage collector runs in any thread.
                self._loop.call_soon_threadsafe(self._forget, key, gone)

            self._known[key] = _Known(weakref.ref(array, told))
            return None
        if known.slot is None and not self._share(array, known):
            return None
        return (known.slot, 0) if known.slot is not None else None

    def close(self) -> None:
        """Forget all arrays, and release their slots."""
        for key, known in list(self._known.items()):
            self._forget(key, known.array)

    def _share(self, array: NDArray[Any], known: _Known) -> bool:
        if self.n_bytes + array.nbytes > _MOST_OF_BUDGET * self._slots.budget:
            return False
        try:
            slot = self._slots.take(array.nbytes)
        except BudgetError:
            return False  # k-space needs the room more; the array travels by itself
        array.setflags(write=False)
        slot.data[...] = array.reshape(-1).view(np.uint8)
        self.n_bytes += array.nbytes
        known.slot = slot
        return True

    def _forget(self, key: int, array: weakref.ref[NDArray[Any]]) -> None:
        known = self._known.get(key)
        if known is None or known.array is not array:
            return
        del self._known[key]
        if known.slot is not None:
            self.n_bytes -= known.slot.n_bytes
            known.slot.release()
