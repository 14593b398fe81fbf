"""The slot of a group, seen as one readout a row: frames, rows, coils, samples, with the trajectory behind.

One readout is one contiguous block, so that it goes into place with one copy; the trajectory lies in the same slot, so
that it travels to a worker in shared memory like the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import Slot


@dataclass(frozen=True, slots=True)
class BufferShape:
    """What a group has room for.

    Attributes:
        n_frames: frames.
        n_rows: readouts of each frame.
        n_coils: coils of each readout.
        n_samples: samples of each readout and coil.
        n_dimensions: of the trajectory; 0 without one.
    """

    n_frames: int
    n_rows: int
    n_coils: int
    n_samples: int
    n_dimensions: int = 0

    @property
    def kspace_bytes(self) -> int:
        """Memory of the samples, complex64."""
        return self.n_frames * self.n_rows * self.n_coils * self.n_samples * 8

    @property
    def n_bytes(self) -> int:
        """Memory of samples and trajectory (float32)."""
        return self.kspace_bytes + self.n_frames * self.n_rows * self.n_samples * self.n_dimensions * 4

    def with_room(self, n_frames: int, n_rows: int) -> BufferShape:
        """This shape, or, where it lacks room, one with the next power of two of what it lacks.

        So the memory of a group depends on what came and not on how the stream was cut, and at most half of it is idle.
        """
        return replace(
            self,
            n_frames=self.n_frames if n_frames <= self.n_frames else 1 << (n_frames - 1).bit_length(),
            n_rows=self.n_rows if n_rows <= self.n_rows else 1 << (n_rows - 1).bit_length(),
        )


class GroupBuffer:
    """A slot and its views.

    Attributes:
        slot: the memory.
        shape: what there is room for.
        n_bytes: of the slot.
        samples: `(frames, rows, coils, samples * 8)` bytes of complex64.
        trajectory: `(frames, rows, samples, dimensions * 4)` bytes of float32; None without one.
    """

    def __init__(self, slot: Slot, shape: BufferShape) -> None:
        self.slot = slot
        self.shape = shape
        data, rows, n_kspace = slot.data, (shape.n_frames, shape.n_rows), shape.kspace_bytes
        self.n_bytes = data.nbytes
        self.samples: NDArray[np.uint8] = data[:n_kspace].reshape(*rows, shape.n_coils, shape.n_samples * 8)
        self.trajectory: NDArray[np.uint8] | None = (
            data[n_kspace:].reshape(*rows, shape.n_samples, shape.n_dimensions * 4) if shape.n_dimensions else None
        )

    def copy_from(self, other: GroupBuffer) -> None:
        """Take over what a smaller buffer holds."""
        frames, rows = other.shape.n_frames, other.shape.n_rows
        self.samples[:frames, :rows] = other.samples
        if self.trajectory is not None and other.trajectory is not None:
            self.trajectory[:frames, :rows] = other.trajectory

    def bring_together(self, places: list[int]) -> slice:
        """Make the frames at these places selectable by a slice, in this order.

        They are where they should be when they are evenly spaced; only otherwise are frames exchanged.
        """
        step = places[1] - places[0] if len(places) > 1 else 1
        if step and places == list(range(places[0], places[0] + len(places) * step, step)):
            stop = places[0] + len(places) * step
            return slice(places[0], stop if stop >= 0 else None, step)
        at = {place: place for place in places}
        for target, place in enumerate(places):
            source = at[place]
            for array in (self.samples, self.trajectory):
                if array is not None and source != target:
                    array[[source, target]] = array[[target, source]]
            for other, where in at.items():
                if where == target:
                    at[other] = source
            at[place] = target
        return slice(0, len(places), 1)
