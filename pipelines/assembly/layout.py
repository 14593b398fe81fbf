"""What every encoding space tells about its readouts, however they are traversed, and which class knows the rest.

A readout has a cell: where it belongs (Cartesian: a line of the grid), or its number (non-Cartesian). Knows headers and
counters, never samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import Grouping
from pipelines.assembly.group_buffer import BufferShape
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.routing import Run
from pipelines.mrd import COUNTERS
from pipelines.scan_header import CalibrationMode, Encoding

GROUP_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
"""Counters that tell groups of one encoding space apart, in the order of the wire."""

Cells = NDArray[np.intp]

Key = tuple[int, ...]
"""Encoding space, then `GROUP_COUNTERS`: the fields of `GroupKey` in their order."""

SLICE, PHASE, REPETITION = 1, 3, 4
"""Places in a `Key`."""


@dataclass(frozen=True, slots=True)
class FrameAxis:
    """The counter that runs over the frames of a group.

    Attributes:
        position: of the counter in a `Key`; None where each group is one frame.
        first: its least value by the header.
        number: frames that the header promises; None when it does not say.
    """

    position: int | None = None
    first: int = 0
    number: int | None = 1

    def group_key(self, key: Key) -> Key:
        """What all frames of the group of `key` have in common, the counter of frames set to 0."""
        if self.position is None:
            return key
        return (*key[: self.position], 0, *key[self.position + 1 :])

    def value(self, key: Key) -> int:
        """The counter of frames; 0 where each group is one frame."""
        return 0 if self.position is None else key[self.position]

    @property
    def name(self) -> str:
        """The counter's name in MRD."""
        return "frame" if self.position is None else GROUP_COUNTERS[self.position - 1]


def frame_axis(encoding: Encoding, grouping: Grouping) -> FrameAxis:
    """Which counter runs over the frames of a group.

    `cine`: the phase; where the header's limits allow only one phase (or tell nothing of phases) and several
    repetitions, the repetition, because the frames of a real-time cine are repetitions. Without limits of either, the
    phases that come, however many. All other groupings have one frame.
    """
    if grouping is not Grouping.CINE:
        return FrameAxis()
    phase, repetition = (encoding.limits.get(name) for name in ("phase", "repetition"))
    has_one_phase = phase is None or phase.minimum == phase.maximum
    if has_one_phase and repetition is not None and repetition.maximum > repetition.minimum:
        return FrameAxis(REPETITION, repetition.minimum, repetition.maximum - repetition.minimum + 1)
    if phase is None:
        return FrameAxis(PHASE, 0, None)
    return FrameAxis(PHASE, phase.minimum, phase.maximum - phase.minimum + 1)


class Layout(ABC):
    """The readouts of one encoding space.

    Attributes:
        number: of the encoding space.
        axis: the counter of frames.
        averages: readouts promised for each line.
        last_average: the greatest average counter.
        is_embedded: whether calibration lines belong to the image as well.
        fewest: lines (non-Cartesian: readouts) that a frame has at least, by what the header promises; 0 for nothing.
        fewest_readouts: the same, each line as often as it is averaged.
        likely_rows: rows of a frame; where the header does not tell, how many there probably are.
        may_grow: whether the header does not tell what a group needs, so that its memory grows with what comes.
    """

    fewest: int
    fewest_readouts: int
    likely_rows: int
    may_grow: bool

    def __init__(self, encoding: Encoding, number: int, axis: FrameAxis) -> None:
        self.number = number
        self.axis = axis
        average = encoding.limits.get("average")
        self.averages = average.maximum - average.minimum + 1 if average else 1
        self.last_average = average.maximum if average else 0
        self.is_embedded = encoding.calibration_mode is CalibrationMode.EMBEDDED
        self._bounds = [encoding.limits.get(name) for name in GROUP_COUNTERS]
        self._range = [(0, 0), (0, 0)]

    def stray_counter(self, counters: tuple[int, ...]) -> str | None:
        """The first of `GROUP_COUNTERS` outside its limits, in words; None when all are inside."""
        for name, value, limit in zip(GROUP_COUNTERS, counters, self._bounds, strict=True):
            if limit is not None and not limit.minimum <= value <= limit.maximum:
                return f"{name} {value} lies outside {limit.minimum} to {limit.maximum}"
        return None

    def describe_range(self) -> str:
        """Phase-encoding counters that are accepted, for messages."""
        return " and ".join(
            f"{name} {low} to {high}" for name, (low, high) in zip(COUNTERS[:2], self._range, strict=True)
        )

    @abstractmethod
    def place(self, lines: NDArray[np.uint16]) -> tuple[Cells, NDArray[np.bool_] | None]:
        """Cells of readouts from their two phase-encoding counters, `(n, 2)`.

        Returns:
            Cells `(n,)`, and which of them are valid, or None when all are.
        """

    @abstractmethod
    def brought(self, run: Run, ledger: Ledger) -> Run:
        """The readouts with samples where rows have them; those that need nothing as they are."""

    @abstractmethod
    def column(self, run: Run, ledger: Ledger) -> int:
        """Where in its row the first kept sample belongs.

        Raises:
            AssemblyError: the samples do not fit into the row.
        """

    @abstractmethod
    def trajectory_of(self, run: Run, ledger: Ledger) -> NDArray[np.uint8] | None:
        """Where the kept samples of a run lie, `(n, samples, dimensions * 4)` bytes of float32; None on a grid.

        Raises:
            AssemblyError: it is missing, or not like those before.
        """

    @abstractmethod
    def check_length(self, run: Run, n_samples: int) -> None:
        """Refuse readouts that do not fit into a buffer with this many samples a row.

        Raises:
            AssemblyError: they do not.
        """

    @abstractmethod
    def buffer_shape(self, n_coils: int, n_samples: int, n_dimensions: int) -> BufferShape:
        """What a new group needs; of what the header does not tell, the least.

        Args:
            n_coils: of its readouts.
            n_samples: kept of each readout.
            n_dimensions: of the trajectory.
        """

    @abstractmethod
    def describe_size(self, shape: BufferShape) -> str:
        """The size of a frame in a buffer, for messages."""
