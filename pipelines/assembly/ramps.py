"""Which columns of the grid a readout lies on; reversed ones, and those sampled on gradient ramps, brought onto them.

Reversed: `routing.py` has turned them round about their centre sample. A full row with an even number of samples whose
centre sample is n//2 then reaches one sample beyond the grid (-n/2+1 to n/2 instead of -n/2 to n/2-1); that sample is
left out. On the grid n/2 and -n/2 are the same frequency, but in a patient they are not.

Ramps: EPI keeps sampling while the readout gradient rises and falls, so that samples are not equally far apart. With
G(t) the trapezoid and k(t) its integral, zero halfway, in steps of the grid (as Gadgetron's EPIReconX has it),

    k(t) = n_x * (integral of G from 0 to t - half of the whole integral) / (integral of G while samples are taken),

taken in the middle of each sample. A sample is `s_j = sum_q sinc(k_j - q) S_q` of the samples S wanted on the grid,
which is solved by least squares with small singular values cut off. Columns beyond the first and the last k_j stay
empty. The matrix is computed once for each kind of readout; reversed readouts have `k_j` mirrored.

Numpy only; knows nothing of groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import AssemblyError
from pipelines.readout_gradient import Trapezoid
from pipelines.scan_header import Encoding, TrajectoryType

if TYPE_CHECKING:
    from pipelines.assembly.grid import Grid
    from pipelines.assembly.ledger import Ledger
    from pipelines.assembly.routing import Run

MOST_SAMPLES = 1024
"""Samples and columns of a readout: the matrix takes about a second at this size, and EPI has at most half of it."""

MOST_KINDS = 8
"""Kinds of readouts (samples, discards, direction) in one encoding space: each costs a matrix."""

SMALLEST_SINGULAR_VALUE = 1e-2
"""Relative to the largest; smaller ones would amplify noise a hundred times."""

WIDEST_STEP = 1.1
"""Largest distance of samples in steps of the grid; wider ones leave aliases within the field of view."""


@dataclass(frozen=True, slots=True)
class Gridding:
    """From samples to columns.

    Attributes:
        matrix: `(columns, samples)`, real.
        first: column of the grid that the first row belongs to.
        noise: root mean square over columns of the noise of a column over that of a sample.
        widest_step: largest distance of samples, in steps of the grid.
    """

    matrix: NDArray[np.complex64]
    first: int
    noise: float
    widest_step: float


class RampSampling:
    """The matrices of one encoding space."""

    def __init__(self, gradient: Trapezoid, n_columns: int) -> None:
        self._gradient = gradient
        self._n_columns = n_columns
        self._griddings: dict[tuple[int, int, int, bool], Gridding] = {}

    def gridding(self, n_samples: int, first: int, stop: int, dwell_us: float, *, is_reversed: bool) -> Gridding | str:
        """The matrix for readouts of this kind, or why there is none; empty where samples are equally spaced.

        Args:
            n_samples: of the readout, discarded ones included.
            first: first sample that is kept, in the order of the grid.
            stop: one past the last that is kept.
            dwell_us: of the readout, where the header gives none.
            is_reversed: whether it was read from the far end.

        Raises:
            AssemblyError: more kinds of readouts than any scan has.
        """
        kind = (n_samples, first, stop, is_reversed)
        if kind in self._griddings:
            return self._griddings[kind]
        if max(n_samples, self._n_columns) > MOST_SAMPLES:
            return f"{max(n_samples, self._n_columns)} samples, the limit is {MOST_SAMPLES}"
        dwell_us = self._gradient.dwell or dwell_us
        if n_samples <= self._n_columns and _is_on_plateau(self._gradient, n_samples * dwell_us):
            return ""
        positions = sample_positions(self._gradient, n_samples, dwell_us, self._n_columns)
        if positions is None:
            return f"{n_samples} samples of {dwell_us:g} us do not fit under the gradient of the header"
        if len(self._griddings) >= MOST_KINDS:
            raise AssemblyError(f"more than {MOST_KINDS} kinds of readouts sampled on gradient ramps")
        if is_reversed:
            positions = -positions[::-1]
        self._griddings[kind] = solve_gridding(positions[first:stop], self._n_columns)
        return self._griddings[kind]


def ramp_sampling(encoding: Encoding) -> RampSampling | None:
    """What makes readouts of this encoding space uniform; None where they are."""
    gradient = encoding.readout_gradient
    if encoding.trajectory is not TrajectoryType.EPI or gradient is None or gradient.flat_top == 0:
        return None
    return None if gradient.ramp_up == gradient.ramp_down == 0 else RampSampling(gradient, encoding.encoded.matrix[0])


def sample_positions(
    gradient: Trapezoid, n_samples: int, dwell_us: float, n_columns: int
) -> NDArray[np.float64] | None:
    """Where samples lie, in steps of the grid from the centre of k-space; None when the gradient is too short."""
    start = gradient.delay
    stop = start + n_samples * dwell_us
    total = gradient.ramp_up + gradient.flat_top + gradient.ramp_down
    if not (dwell_us > 0 and stop <= total * (1 + 1e-6)):
        return None
    middle = np.asarray(start + (np.arange(n_samples, dtype=np.float64) + 0.5) * dwell_us, np.float64)
    whole, begun, ended = (float(_area(gradient, np.array([time]))[0]) for time in (total, start, min(stop, total)))
    return np.asarray((_area(gradient, middle) - whole / 2) * (n_columns / (ended - begun)))


def solve_gridding(positions: NDArray[np.float64], n_columns: int) -> Gridding:
    """Least squares from samples at rising positions to the columns of the grid within their range."""
    centre = n_columns // 2
    first = max(0, int(np.ceil(positions[0] - 0.5)) + centre)
    stop = min(n_columns, int(np.floor(positions[-1] + 0.5)) + centre + 1)
    columns = np.arange(first, max(stop, first + 1)) - centre
    matrix = np.linalg.pinv(np.sinc(positions[:, None] - columns), rcond=SMALLEST_SINGULAR_VALUE)
    step = float(np.diff(positions).max()) if len(positions) > 1 else 0.0
    return Gridding(matrix.astype(np.complex64), first, float(np.sqrt((matrix**2).sum(1).mean())), step)


def on_grid(run: Run, grid: Grid, ledger: Ledger) -> Run:
    """The same readouts on the columns of the grid; those that need nothing as they are."""
    if grid.ramps is None and not run.is_reversed:
        return run
    if grid.ramps is not None:
        dwell_us = float(run.headers["sample_time_us"][0])
        found = grid.ramps.gridding(run.n_samples, run.first, run.stop, dwell_us, is_reversed=run.is_reversed)
        if not isinstance(found, str):
            return _gridded(run, grid, found, ledger)
        if found:
            ledger.warn("ramps", f"{run.where}: samples on gradient ramps are taken as equally spaced: {found}")
    n_x = grid.shape[2]
    is_beyond = run.is_reversed and n_x // 2 - run.center + run.stop == n_x + 1 and run.stop - run.first > 1
    return replace(run, stop=run.stop - 1) if is_beyond else run


def first_column(run: Run, grid: Grid, ledger: Ledger) -> int:
    """Where the first kept sample belongs: the centre sample goes to index n//2 of x.

    Raises:
        AssemblyError: the samples do not fit into the matrix.
    """
    n_samples, n_x = run.n_samples, grid.shape[2]
    start = n_x // 2 - run.center
    if 0 <= run.center < n_samples and start + run.first >= 0 and start + run.stop <= n_x:
        return start + run.first
    if n_samples == n_x and 0 <= run.center < n_samples:
        # a row as long as the matrix can lie in one way only; writers leave center_sample at 0 (ismrmrd-python's
        # default)
        ledger.warn("center", f"{run.where}: centre sample {run.center} does not fit a full row; rows are placed whole")
        return run.first
    raise AssemblyError(
        f"{run.where}: {n_samples} samples with centre {run.center} do not fit into the encoded matrix of {n_x}"
    )


def _gridded(run: Run, grid: Grid, gridding: Gridding, ledger: Ledger) -> Run:
    if gridding.widest_step > WIDEST_STEP:
        ledger.warn(
            "ramp step",
            f"{run.where}: samples lie up to {gridding.widest_step:.2f} steps of the encoded matrix apart; "
            "aliases along the readout are likely",
        )
    samples = np.ascontiguousarray(run.kept_samples).view(np.complex64)
    columns = np.zeros((*samples.shape[:2], grid.shape[2]), np.complex64)
    stop = gridding.first + len(gridding.matrix)
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are found and counted later
        columns[:, :, gridding.first : stop] = samples @ gridding.matrix.T
    return replace(
        run,
        samples=columns.view(np.uint8),
        first=gridding.first,
        stop=stop,
        center=grid.shape[2] // 2,
        noise=gridding.noise,
    )


def _is_on_plateau(gradient: Trapezoid, duration_us: float) -> bool:
    """Whether samples of this duration are all taken while the gradient is constant."""
    end = gradient.ramp_up + gradient.flat_top
    return gradient.delay >= gradient.ramp_up and gradient.delay + duration_us <= end * (1 + 1e-6)


def _area(gradient: Trapezoid, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integral of the gradient from its start, the plateau being 1."""
    up, flat, down = gradient.ramp_up, gradient.flat_top, gradient.ramp_down
    rising = np.minimum(time, up)
    falling = np.clip(time - up - flat, 0, down)
    area = np.clip(time - up, 0, flat) + falling
    if up > 0:
        area = area + rising**2 / (2 * up)
    return area - falling**2 / (2 * down) if down > 0 else area
