"""Where the readouts of one encoding space belong, and which lines its header promises.

Placement: `line = counter + matrix // 2 - center`, so that k-space centre lies at index n//2 (MRD specification,
"EncodingLimits"; the same as Gadgetron's BucketToBuffer). A counter is accepted when it lies inside the header's limits
and its line inside the matrix. Knows headers and counters, never samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.ramps import ramp_sampling
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import COUNTERS
from pipelines.scan_header import CalibrationMode, Encoding, TrajectoryType

GROUP_COUNTERS = ("slice", "contrast", "phase", "repetition", "set")
"""Counters that tell groups of one encoding space apart, in the order of the wire."""

CARTESIAN = frozenset({TrajectoryType.CARTESIAN, TrajectoryType.EPI})
"""Trajectories whose readouts are lines of a grid; EPI adds reversed readouts and sampling on gradient ramps."""

MAX_LINES = 1 << 22

_SEPARATE_MODES = {CalibrationMode.SEPARATE, CalibrationMode.EXTERNAL, CalibrationMode.INTERLEAVED}
Cells = NDArray[np.intp]


class Grid:
    """The image grid of one encoding space; a cell is a line of it, numbered `z * y_lines + y`.

    Attributes:
        shape: z, y, x of the encoded matrix.
        n_cells: lines of the grid.
        center: cell of the k-space centre.
        averages: readouts promised for each line.
        is_embedded: whether calibration lines belong to the image as well.
        ramps: makes readouts of EPI uniform that were sampled on the ramps of their gradient; None where none were.
    """

    def __init__(self, encoding: Encoding, number: int) -> None:
        """A grid.

        Raises:
            AssemblyError: the trajectory is not Cartesian.
            BudgetError: more lines than any scan has.
        """
        if encoding.trajectory not in CARTESIAN:
            raise AssemblyError(
                f"encoding space {number}: expected a cartesian trajectory, found {encoding.trajectory.value}"
            )
        x, y, z = encoding.encoded.matrix
        if y * z > MAX_LINES:
            raise BudgetError(f"encoding space {number}: {y} x {z} lines, the limit is {MAX_LINES}")
        self.number = number
        self.ramps = ramp_sampling(encoding)
        self.shape = (z, y, x)
        self.n_cells = z * y
        self.center = (z // 2) * y + y // 2
        self.is_embedded = encoding.calibration_mode is CalibrationMode.EMBEDDED
        self._offset = [0, 0]
        self._range = [(0, 0), (0, 0)]
        for axis, length in enumerate((y, z)):
            limit = encoding.limits.get(COUNTERS[axis])
            low, high, center = (limit.minimum, limit.maximum, limit.center) if limit else (0, length - 1, length // 2)
            offset = length // 2 - center
            self._offset[axis] = offset
            self._range[axis] = (max(low, -offset), min(high, length - 1 - offset))
        average = encoding.limits.get("average")
        self.averages = average.maximum - average.minimum + 1 if average else 1
        self.last_average = average.maximum if average else 0
        self._bounds = [encoding.limits.get(name) for name in GROUP_COUNTERS]
        self._acceleration = encoding.acceleration
        self._lattices: dict[tuple[int, int], Cells] = {}
        self._all_cells: Cells | None = None
        n_lines = [
            max(high - low + 1, 0) // step for (low, high), step in zip(self._range, encoding.acceleration, strict=True)
        ]
        self.fewest_lines = max(n_lines[0], 1) * max(n_lines[1], 1)
        # Where calibration lines share the image grid their number is not in the header, so only the last of all lines
        # tells.
        self.is_lattice_all = encoding.acceleration == (1, 1) or encoding.calibration_mode in _SEPARATE_MODES

    def all_cells(self) -> Cells:
        """Every line that a counter can reach."""
        if self._all_cells is None:
            self._all_cells = self._cells_of(*(np.arange(low, high + 1) for low, high in self._range))
        return self._all_cells

    def stray_counter(self, counters: tuple[int, ...]) -> str | None:
        """The first of `GROUP_COUNTERS` outside its limits, in words; None when all are inside."""
        for name, value, limit in zip(GROUP_COUNTERS, counters, self._bounds, strict=True):
            if limit is not None and not limit.minimum <= value <= limit.maximum:
                return f"{name} {value} lies outside {limit.minimum} to {limit.maximum}"
        return None

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

    def describe_range(self) -> str:
        """Counters that are accepted, for messages."""
        return " and ".join(
            f"{name} {low} to {high}" for name, (low, high) in zip(COUNTERS[:2], self._range, strict=True)
        )

    def lattice(self, plain: Cells) -> Cells | None:
        """Lines that the acceleration promises, given the measured ones that are no calibration lines.

        The header says how many lines are skipped but not where counting starts; the measured lines tell. None when
        they lie on no regular lattice (random or variable-density sampling), or when there are none.
        """
        step_y, step_z = self._acceleration
        if plain.size == 0:
            return self._lattice(0, 0) if step_y == step_z == 1 else None
        z, y = np.divmod(plain, self.shape[1])
        y, z = (y - self._offset[0]) % step_y, (z - self._offset[1]) % step_z
        if (y != y[0]).any() or (z != z[0]).any():
            return None
        return self._lattice(int(y[0]), int(z[0]))

    def _lattice(self, y: int, z: int) -> Cells:
        found = self._lattices.get((y, z))
        if found is None:
            axes = [np.arange(low, high + 1) for low, high in self._range]
            kept = [a[a % step == r] for a, step, r in zip(axes, self._acceleration, (y, z), strict=True)]
            found = self._lattices[y, z] = self._cells_of(*kept)
        return found

    def _cells_of(self, y: Cells, z: Cells) -> Cells:
        return self._cell(y[None, :], z[:, None]).ravel()

    def _cell(self, y: Cells, z: Cells) -> Cells:
        return (z + self._offset[1]) * self.shape[1] + (y + self._offset[0])
