"""One frame of a group while its readouts arrive: what assembly asks of it, whatever the trajectory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.dwell import DwellTimes
from pipelines.assembly.group_buffer import GroupBuffer
from pipelines.assembly.layout import Cells, Key

NEVER = 1 << 62
"""Readouts until a frame can be full whose number the header does not tell."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a frame or a group is.

    Attributes:
        promised: lines (or readouts) that the header promises; 0 when it does not say.
        missing: those that have not been measured.
    """

    promised: int
    missing: int

    @property
    def fraction(self) -> float:
        """Part of the promised lines that is there; 1 when nothing is promised."""
        return 1.0 - self.missing / self.promised if self.promised else 1.0


@dataclass(slots=True)
class Part:
    """Readouts of one frame that can be placed; not frozen, which would take twice as long to make.

    Attributes:
        cells: `(n,)`.
        samples: `(n, coils, samples * 8)` bytes of complex64.
        column: where the first sample belongs.
        headers: `(n,)`.
        averages: `(n,)`.
        is_calibration: `(n,)`, or None when none is.
        trajectory: `(n, samples, dimensions * 4)` bytes of float32, or None.
        is_reversed: whether they were read from the far end.
    """

    cells: Cells
    samples: NDArray[np.uint8]
    column: int
    headers: NDArray[np.void]
    averages: NDArray[np.uint16]
    is_calibration: NDArray[np.bool_] | None
    trajectory: NDArray[np.uint8] | None
    is_reversed: bool = False

    def __len__(self) -> int:
        return len(self.cells)

    def select(self, at: slice | NDArray[np.bool_]) -> Part:
        """Some of the readouts."""
        return Part(
            self.cells[at],
            self.samples[at],
            self.column,
            self.headers[at],
            self.averages[at],
            None if self.is_calibration is None else self.is_calibration[at],
            None if self.trajectory is None else self.trajectory[at],
            self.is_reversed,
        )


class OpenFrame(ABC):
    """One frame that is being filled.

    Attributes:
        key: its counters.
        place: index on the axis of frames in the buffer.
        placed: readouts used.
        left_out: readouts that were not, because they are not finite.
        dwells: dwell times of its lines.
        time_span: least and greatest acquisition time stamp of the readouts.
        flagged_average: average counter of the readout that carried a LAST flag, or None.
        until_check: readouts until the frame can be full, and is worth looking at.
    """

    until_check: int

    def __init__(self, key: Key, place: int) -> None:
        self.key = key
        self.place = place
        self.placed = 0
        self.left_out = 0
        self.flagged_average: int | None = None
        self.dwells = DwellTimes()
        self.time_span = (0xFFFF_FFFF, 0)
        self._reversed: NDArray[np.float32] | None = None

    def flag(self, average: int) -> None:
        """Note that a readout with this average carried a LAST flag."""
        self.flagged_average = average if self.flagged_average is None else max(average, self.flagged_average)

    def reversed_counts(self) -> NDArray[np.float32] | None:
        """Reversed readouts in each row of the buffer, `(rows,)`; None when none was reversed."""
        return self._reversed

    def _note(self, part: Part, rows: Cells, headers: NDArray[np.void]) -> None:
        """Take note of readouts that were used, and which rows they went to; these may repeat."""
        times = headers["acquisition_time_stamp"]
        begin, end = int(times[0]), int(times[-1])
        self.time_span = (min(self.time_span[0], begin, end), max(self.time_span[1], begin, end))
        counts = self.counts()
        self.dwells.add(rows, headers["sample_time_us"], counts)
        if part.is_reversed:
            if self._reversed is None:
                self._reversed = np.zeros_like(counts)
            elif len(self._reversed) < len(counts):
                self._reversed = np.concatenate(
                    [self._reversed, np.zeros(len(counts) - len(self._reversed), np.float32)]
                )
            np.add.at(self._reversed, rows, 1.0)

    @abstractmethod
    def attach(self, buffer: GroupBuffer) -> None:
        """Use this memory, which holds what the memory before held."""

    @property
    def room(self) -> int:
        """Readouts for which there is room in the buffer."""
        return NEVER

    @abstractmethod
    def add(self, part: Part) -> Cells | None:
        """Place readouts.

        Returns:
            Which of them are not finite and were left out; None when all were used.
        """

    @abstractmethod
    def progress(self) -> Progress:
        """How far the frame is from what the header promises."""

    @abstractmethod
    def settled(self) -> Progress:
        """The same where a LAST flag that can be trusted says that nothing more was planned."""

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether the frame has all that the header promises, as far as the header tells."""

    @abstractmethod
    def is_full(self) -> bool:
        """Whether nothing more can be expected; sets `until_check` to the readouts still needed at least."""

    @abstractmethod
    def counts(self) -> NDArray[np.float32]:
        """Readouts in each row of the buffer, `(rows,)`."""

    @abstractmethod
    def calibration_lines(self) -> NDArray[np.bool_]:
        """Rows measured as calibration lines, `(rows,)`."""

    @abstractmethod
    def extent(self) -> tuple[int, int]:
        """Columns measured; only of a frame with at least one readout."""

    @abstractmethod
    def header(self) -> NDArray[np.void]:
        """`(1,)`: the readout that speaks for the frame; only of a frame with at least one readout."""
