"""Where the readouts of a Cartesian encoding space belong, and which lines its header promises.

Placement: `line = counter + matrix // 2 - center`, so that k-space centre lies at index n//2 (MRD specification,
"EncodingLimits"; the same as Gadgetron's BucketToBuffer). A counter is accepted when it lies inside the header's limits
and its line inside the matrix.

What is promised, by the acceleration of the header (step_1 times step_2; none is 1 x 1):
1. Lines on a regular pattern, plain or shifted (CAIPI): all lines of the pattern inside the limits.
2. Lines on none (Poisson discs, variable density): as many as a regular pattern has at least.
3. A group that a trusted LAST flag ended, of which no readout was left out, has what it promises with fewer lines:
   - by elliptical scanning: no line outside the ellipse about the centre, and inside it every line of the pattern, or
     on no pattern as many as the ellipse's share;
   - by irregular undersampling where the header says nothing of acceleration (`is_scattered`).
   What a scan has lost is still seen: by a LAST flag that did not come, by readouts that were left out, by holes inside
   the ellipse or in a regular pattern, by fewer lines than announced, and by fewer than a quarter of all lines missing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.group_buffer import BufferShape
from pipelines.assembly.layout import Cells, FrameAxis, Layout
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.pattern import Ellipse, Lattice, is_scattered, recognise_lattice
from pipelines.assembly.ramps import first_column, on_grid, ramp_sampling
from pipelines.assembly.routing import Run
from pipelines.errors import BudgetError
from pipelines.mrd import COUNTERS
from pipelines.scan_header import CalibrationMode, Encoding, TrajectoryType

CARTESIAN = frozenset({TrajectoryType.CARTESIAN, TrajectoryType.EPI})
"""Trajectories whose readouts are lines of a grid; EPI adds reversed readouts and sampling on gradient ramps."""

MAX_LINES = 1 << 22

_SEPARATE_MODES = {CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL, CalibrationMode.INTERLEAVED}


class Grid(Layout):
    """The image grid of one encoding space; a cell is a line of it, numbered `z * y_lines + y`.

    Attributes:
        shape: z, y, x of the encoded matrix.
        n_cells: lines of the grid.
        center: cell of the k-space centre.
        is_lattice_all: whether no lines but those of the pattern are expected. Where calibration lines share the image
            grid their number is not in the header, so only the last of all lines tells.
        ramps: makes readouts of EPI uniform that were sampled on the ramps of their gradient; None where none were.
        may_shift: whether the pattern can be shifted, so that few lines do not tell it.
    """

    def __init__(self, encoding: Encoding, number: int, axis: FrameAxis) -> None:
        """A grid.

        Raises:
            BudgetError: more lines than any scan has.
        """
        super().__init__(encoding, number, axis)
        x, y, z = encoding.encoded.matrix
        if y * z > MAX_LINES:
            raise BudgetError(f"encoding space {number}: {y} x {z} lines, the limit is {MAX_LINES}")
        self.ramps = ramp_sampling(encoding)
        self.shape = (z, y, x)
        self.n_cells = z * y
        self.center = (z // 2) * y + y // 2
        self._offset = [0, 0]
        for at, length in enumerate((y, z)):
            limit = encoding.limits.get(COUNTERS[at])
            low, high, center = (limit.minimum, limit.maximum, limit.center) if limit else (0, length - 1, length // 2)
            offset = length // 2 - center
            self._offset[at] = offset
            self._range[at] = (max(low, -offset), min(high, length - 1 - offset))
        self._steps = encoding.acceleration
        self._lattices: dict[Lattice, Cells] = {}
        self._all_cells: Cells | None = None
        self._ellipse: Ellipse | None = None
        n_lines = [
            max(high - low + 1, 0) // step for (low, high), step in zip(self._range, encoding.acceleration, strict=True)
        ]
        self.fewest = max(n_lines[0], 1) * max(n_lines[1], 1)
        self.fewest_readouts = self.fewest * self.averages
        self.likely_rows = self.n_cells
        self.may_grow = axis.number is None
        self.is_accelerated = encoding.acceleration != (1, 1)
        self.is_lattice_all = not self.is_accelerated or encoding.calibration_mode in _SEPARATE_MODES
        self.may_shift = self.is_accelerated and z > 1

    def place(self, lines: NDArray[np.uint16]) -> tuple[Cells, NDArray[np.bool_] | None]:
        """Cells of readouts from their two phase-encoding counters, `(n, 2)`.

        Returns:
            Cells `(n,)`, and which of them are valid, or None when all are.
        """
        y, z = lines[:, 0].astype(np.intp), lines[:, 1]
        (y_low, y_high), (z_low, z_high) = self._range
        if y.min() >= y_low and y.max() <= y_high and z.min() >= z_low and z.max() <= z_high:
            if self.shape[0] == 1:
                return y + self._offset[0], None
            return self._cell(y, z.astype(np.intp)), None
        inside = (y >= y_low) & (y <= y_high) & (z >= z_low) & (z <= z_high)
        return self._cell(y, z.astype(np.intp)), inside

    def brought(self, run: Run, ledger: Ledger) -> Run:
        """The readouts on the columns of the grid."""
        return on_grid(run, self, ledger)

    def column(self, run: Run, ledger: Ledger) -> int:
        """Where the first kept sample belongs: the centre sample goes to index n//2 of x."""
        return first_column(run, self, ledger)

    def trajectory_of(self, run: Run, ledger: Ledger) -> None:
        """None: the counters tell."""
        if run.trajectory is not None:
            ledger.warn("trajectory", "readouts of a cartesian scan carry a trajectory; it is ignored")

    def check_length(self, run: Run, n_samples: int) -> None:
        """Nothing to check: `column` does it."""

    def buffer_shape(self, n_coils: int, n_samples: int, n_dimensions: int) -> BufferShape:
        """The grid once for every frame; one frame where the header does not tell their number."""
        del n_samples, n_dimensions
        return BufferShape(self.axis.number or 1, self.n_cells, n_coils, self.shape[2])

    def describe_size(self, shape: BufferShape) -> str:
        """The matrix, for messages."""
        del shape
        return " x ".join(str(length) for length in reversed(self.shape))

    def all_cells(self) -> Cells:
        """Every line that a counter can reach."""
        if self._all_cells is None:
            self._all_cells = self._cells_in(Lattice((1, 1), (0, 0)))
        return self._all_cells

    def lattice(self, plain: Cells) -> Cells | None:
        """Lines that an acceleration promises, given the measured ones that are no calibration lines.

        None when these lie on no regular pattern, or when there are none.
        """
        if plain.size == 0:
            return None
        z, y = np.divmod(plain, self.shape[1])
        pattern = recognise_lattice(y, z, self._steps)
        if pattern is None:
            return None
        found = self._lattices.get(pattern)
        if found is None:
            found = self._lattices[pattern] = self._cells_in(pattern)
        return found

    def lines_by_design(self, measured: NDArray[np.bool_], lattice: Cells | None) -> int | None:
        """How many lines a group promised that a LAST flag ended; None when it lacks lines that it should have.

        Args:
            measured: `(cells,)`.
            lattice: what the acceleration promises.
        """
        flat, n_measured = measured.reshape(self.shape[:2]), int(np.count_nonzero(measured))
        ellipse = self._find_ellipse()
        if ellipse is not None and (flat & ~ellipse.outer).any():
            ellipse = None
        if ellipse is not None:
            inside = ellipse.inner.reshape(-1)
            if lattice is not None and measured[lattice[inside[lattice]]].all():
                return int(np.count_nonzero(measured[lattice]))
            share = np.count_nonzero(inside) / self.all_cells().size
            if lattice is None and n_measured >= share * self.fewest:
                return n_measured
        if not self.is_accelerated and is_scattered(
            flat, divmod(self.center, self.shape[1]), None if ellipse is None else ellipse.inner
        ):
            return n_measured
        return None

    def _find_ellipse(self) -> Ellipse | None:
        if self._ellipse is None:
            y, z = ((low + at, high + at) for (low, high), at in zip(self._range, self._offset, strict=True))
            self._ellipse = Ellipse.of(self.shape[:2], y, z, (self.shape[1] // 2, self.shape[0] // 2))
        return self._ellipse

    def _cells_in(self, pattern: Lattice) -> Cells:
        """Cells of the pattern that a counter can reach."""
        (y_low, y_high), (z_low, z_high) = self._range
        y = np.arange(y_low, y_high + 1)[None, :] + self._offset[0]
        z = np.arange(z_low, z_high + 1)[:, None] + self._offset[1]
        return (z * self.shape[1] + y)[pattern.contains(*np.broadcast_arrays(y, z))]

    def _cell(self, y: Cells, z: Cells) -> Cells:
        return (z + self._offset[1]) * self.shape[1] + (y + self._offset[0])
