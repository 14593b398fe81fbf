"""Non-Cartesian encoding spaces: readouts in the order of their arrival, with the place of each sample in k-space.

How many readouts a frame has is told by the header's limits of kspace_encode_step_1 and average; segments may multiply
it, or only number the shots that share the counters, so they give room but promise nothing. Without limits nothing is
promised, and memory grows as readouts come.

The trajectory comes with the readouts; for radial and golden-angle scans without one it is computed. A spoke's number
is then its counter kspace_encode_step_1, counted from its least value; where the header has no limits of it and the
counter of the second readout is 0 again, the running number among the readouts of its slice, contrast and set.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.group_buffer import BufferShape, GroupBuffer
from pipelines.assembly.layout import Cells, FrameAxis, Key, Layout
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.open_frame import NEVER, OpenFrame, Part, Progress
from pipelines.assembly.routing import Run
from pipelines.errors import AssemblyError
from pipelines.mrd import COUNTERS
from pipelines.scan_header import Encoding, TrajectoryType
from pipelines.trajectory import golden_angles, radial, uniform_angles

DIMENSIONS: Final = (2, 3)
"""Of a trajectory that a stream may have: x and y, and what comes third (z, or Gadgetron's density weights)."""

MAX_READOUTS: Final = 1 << 22
"""Of one frame; a header that announces more does not tell their number (nor does one without an end of averages)."""

_COMPUTED: Final = {TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE}


class Arrival(Layout):
    """Rows in order of arrival; the cell of a readout is its counter kspace_encode_step_1.

    Attributes:
        n_rows: readouts that a frame can have; None when the header does not tell.
    """

    def __init__(self, encoding: Encoding, number: int, axis: FrameAxis) -> None:
        """A layout without any readout.

        Raises:
            AssemblyError: several partitions.
        """
        super().__init__(encoding, number, axis)
        self._n_x, self._n_y, n_z = encoding.encoded.matrix
        limits = [encoding.limits.get(name) for name in (*COUNTERS[:2], "segment")]
        lines, partitions, segments = (limit.maximum - limit.minimum + 1 if limit else 0 for limit in limits)
        if n_z > 1 or partitions > 1:
            raise AssemblyError(
                f"encoding space {number}: expected two dimensions of a {encoding.trajectory.value} scan, "
                f"found {max(n_z, partitions)} partitions"
            )
        self._range = [(limit.minimum, limit.maximum) if limit else (0, 65_535) for limit in limits[:2]]
        if limits[1] is None:
            self._range[1] = (0, 0)
        n_rows = lines * self.averages * max(segments, 1)
        is_told = 0 < n_rows <= MAX_READOUTS
        self.n_rows = n_rows if is_told else None
        self.fewest = self.fewest_readouts = lines * self.averages if is_told else lines
        self.likely_rows = self.n_rows or self._n_y
        self.may_grow = axis.number is None or self.n_rows is None
        self._trajectory = encoding.trajectory
        self._n_spokes = lines or self._n_y
        self._has_limits = lines > 0
        self._is_counted: dict[tuple[int, ...], bool] = {}
        self._running: dict[tuple[int, ...], int] = {}
        self._n_dimensions: int | None = None

    def place(self, lines: NDArray[np.uint16]) -> tuple[Cells, NDArray[np.bool_] | None]:
        """The counter kspace_encode_step_1 of readouts, and which of them are within limits, or None when all are."""
        (low, high), (z_low, z_high) = self._range
        y, z = lines[:, 0], lines[:, 1]
        inside = (y >= low) & (y <= high) & (z >= z_low) & (z <= z_high)
        return y.astype(np.intp), None if inside.all() else inside

    def buffer_shape(self, n_coils: int, n_samples: int, n_dimensions: int) -> BufferShape:
        """Room for the readouts that the header announces; without announcement, for one."""
        return BufferShape(self.axis.number or 1, self.n_rows or 1, n_coils, n_samples, n_dimensions)

    def describe_size(self, shape: BufferShape) -> str:
        """Number and length of the readouts, for messages."""
        return f"{shape.n_rows} readouts of {shape.n_samples} samples"

    def brought(self, run: Run, ledger: Ledger) -> Run:
        """The readouts as they are: their trajectory tells where samples lie."""
        del ledger
        return run

    def column(self, run: Run, ledger: Ledger) -> int:
        """0: only the kept samples have a place."""
        del run, ledger
        return 0

    def check_length(self, run: Run, n_samples: int) -> None:
        """Refuse readouts that are not as long as those before them in the group."""
        if run.stop - run.first != n_samples:
            raise AssemblyError(
                f"{run.where}: expected readouts of {n_samples} samples as before in this group, "
                f"found {run.stop - run.first}"
            )

    def trajectory_of(self, run: Run, ledger: Ledger) -> NDArray[np.uint8]:
        """Where the kept samples of a run lie, `(n, samples, dimensions * 4)` bytes of float32.

        Raises:
            AssemblyError: no trajectory, one of an impossible number of dimensions, or of another number than before.
        """
        del ledger
        came = run.kept_trajectory
        n_dimensions = 0 if came is None else came.shape[2] // 4
        if came is not None and n_dimensions not in DIMENSIONS:
            raise AssemblyError(f"{run.where}: expected a trajectory of 2 or 3 dimensions, found {n_dimensions}")
        if n_dimensions != (n_dimensions if self._n_dimensions is None else self._n_dimensions):
            raise AssemblyError(
                f"{run.where}: expected a trajectory of {self._n_dimensions} dimensions as before, found {n_dimensions}"
            )
        if came is None and self._trajectory not in _COMPUTED:
            raise AssemblyError(
                f"{run.where}: expected a trajectory with the readouts of a {self._trajectory.value} scan, found none"
            )
        self._n_dimensions = n_dimensions
        if came is not None:
            return came
        numbers = self._number(run)
        golden = self._trajectory is TrajectoryType.GOLDENANGLE
        angles = golden_angles(numbers) if golden else uniform_angles(numbers, self._n_spokes)
        n_encoded = max(self._n_x, run.n_samples)
        positions = radial(angles, range(run.first, run.stop), run.center, n_encoded)
        return positions.view(np.uint8).reshape(len(run), run.stop - run.first, -1)

    def _number(self, run: Run) -> NDArray[np.intp]:
        """The numbers of spokes by which their angles are computed."""
        counters = run.lines[:, 0].astype(np.intp) - self._range[0][0]
        place = (run.key[1], run.key[2], run.key[5])
        first = self._running.get(place, 0)
        self._running[place] = first + len(run)
        if self._has_limits:
            return counters
        is_counted = self._is_counted.get(place)
        if is_counted is None and (first or len(run) > 1 or counters[0]):
            # the first readout is number 0 in both ways; the second one tells
            is_counted = self._is_counted[place] = bool(counters[: 2 - first].any())
        return counters if is_counted else np.arange(first, first + len(run))


class ArrivalFrame(OpenFrame):
    """One frame of readouts in the order of their arrival; the first of them speaks for it."""

    def __init__(self, key: Key, place: int, layout: Arrival) -> None:
        super().__init__(key, place)
        self._layout = layout
        self._is_calibration = np.zeros(0, np.bool_)
        self._first: NDArray[np.void] | None = None
        self.until_check = NEVER if layout.n_rows is None else layout.n_rows

    def attach(self, buffer: GroupBuffer) -> None:
        """Use the frame's rows of this buffer."""
        if buffer.trajectory is None:
            raise RuntimeError("a buffer without room for trajectories")
        self._rows: NDArray[np.uint8] = buffer.samples[self.place]
        self._positions: NDArray[np.uint8] = buffer.trajectory[self.place]
        grown = np.zeros(len(self._rows), np.bool_)
        grown[: len(self._is_calibration)] = self._is_calibration
        self._is_calibration = grown

    @property
    def room(self) -> int:
        """Readouts that may still come; all others are more than the header announces."""
        return len(self._rows) - self.placed

    def add(self, part: Part) -> Cells | None:
        """Append readouts.

        Returns:
            Which of them have samples or positions that are not finite, and were left out; None when all were used.
        """
        if part.trajectory is None:
            raise RuntimeError("readouts without trajectory")
        n = len(part)
        self.until_check -= n
        rows, positions = self._rows[self.placed : self.placed + n], self._positions[self.placed : self.placed + n]
        rows[:], positions[:] = part.samples, part.trajectory
        finite = np.asarray(np.isfinite(positions.view(np.float32)).all(axis=(1, 2)))
        # A sum keeps any NaN or infinity; what overflows although it is finite is looked at again.
        sums = np.einsum("ijk->i", rows.view(np.float32))
        for at in np.flatnonzero(finite & ~np.isfinite(sums)):
            finite[at] = bool(np.isfinite(rows[at].view(np.float32)).all())
        n_used = int(np.count_nonzero(finite))
        if n_used < n:
            rows[:n_used], positions[:n_used] = rows[finite], positions[finite]
            rows[n_used:], positions[n_used:] = 0, 0
        if part.is_calibration is not None:
            self._is_calibration[self.placed : self.placed + n_used] = part.is_calibration[finite]
        if n_used and self._first is None:
            first = int(np.argmax(finite))
            self._first = part.headers[first : first + 1].copy()
        first_row, self.placed = self.placed, self.placed + n_used
        if n_used:
            self._note(part, np.arange(first_row, self.placed), part.headers[finite])
        self.left_out += n - n_used
        return None if n_used == n else np.flatnonzero(~finite)

    def progress(self) -> Progress:
        """How far the frame is from what the header promises, by the number of readouts."""
        return Progress(self._layout.fewest, max(self._layout.fewest - self.placed, 0))

    def settled(self) -> Progress:
        """The same: the header tells the number of readouts, or promises nothing."""
        return self.progress()

    def is_complete(self) -> bool:
        """Whether as many readouts as the header promises are there; never when it promises nothing."""
        return 0 < self._layout.fewest <= self.placed

    def is_full(self) -> bool:
        """Whether no more readouts can be expected; sets `until_check` to those still expected."""
        self.until_check = NEVER if self._layout.n_rows is None else self._layout.n_rows - self.placed
        return self.until_check == 0

    def counts(self) -> NDArray[np.float32]:
        """1 for each readout, 0 for rows that were not needed."""
        return (np.arange(len(self._rows)) < self.placed).astype(np.float32)

    def calibration_lines(self) -> NDArray[np.bool_]:
        """Readouts that are for calibration as well."""
        return self._is_calibration

    def extent(self) -> tuple[int, int]:
        """All samples: what was to be discarded is not kept."""
        return 0, int(self._rows.shape[2]) // 8

    def header(self) -> NDArray[np.void]:
        """`(1,)`, the first readout."""
        if self._first is None:
            raise RuntimeError("no readout was placed in this frame")
        return self._first
