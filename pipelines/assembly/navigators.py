"""Phase-correction readouts (flag 24): kept on the heap until the groups of their slice have been handed on.

EPI sends a few of them before the lines of every slice and repetition, read in both directions without phase encoding.
A group gets those of its own repetition, or the latest before it; what is older is forgotten then, so that a long
series needs no more memory than a short one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.frame import GroupKey, Navigators
from pipelines.assembly.grid import Grid
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.ramps import on_grid
from pipelines.assembly.routing import Run, finite_readouts

Place = tuple[int, int, int, int]
"""Encoding space, slice, contrast, set."""


class NavigatorStore:
    """Phase-correction readouts, told apart by encoding space, slice, contrast, set and repetition.

    Attributes:
        n_bytes: memory held.
    """

    def __init__(self, max_bytes: int, ledger: Ledger) -> None:
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._readouts: dict[Place, dict[int, list[tuple[NDArray[np.complex64], bool, bool]]]] = {}
        self.n_bytes = 0

    def add(self, run: Run, grid: Grid | None) -> None:
        """Keep readouts as long as there is room; they are no part of the image, so that nothing here is an error.

        Args:
            run: of one geometry and group.
            grid: of their encoding space; None when it has none.
        """
        if grid is None or run.first >= run.stop:
            self._leave_out(run, len(run), "without samples, or of an encoding space without an image grid")
            return
        run = on_grid(run, grid, self._ledger)
        column, n_columns = grid.shape[2] // 2 - run.center, grid.shape[2]
        first, stop = max(column + run.first, 0), min(column + run.stop, n_columns)
        if first >= stop:
            self._leave_out(run, len(run), "beside the encoded matrix")
            return
        n_bytes = n_columns * run.n_coils * 8
        n_kept = min(len(run), max(self._max_bytes - self.n_bytes, 0) // n_bytes)
        if n_kept < len(run):
            self._leave_out(run, len(run) - n_kept, f"beyond {self._max_bytes} bytes")
        if n_kept == 0:
            return
        encoding, slice_, contrast, _, repetition, set_ = run.key
        kept = self._readouts.setdefault((encoding, slice_, contrast, set_), {}).setdefault(repetition, [])
        if kept and kept[0][0].shape[0] != run.n_coils:
            self._leave_out(run, n_kept, f"of {run.n_coils} channels instead of {kept[0][0].shape[0]}")
            return
        samples, is_finite = finite_readouts(run)
        for number in range(n_kept):
            if not is_finite[number]:
                text = f"{run.where}: phase-correction readouts with NaN or infinity are left out"
                self._ledger.count(Fate.NOT_FINITE, 1, text)
                continue
            row = np.zeros((run.n_coils, n_columns), np.complex64)
            row[:, first:stop] = samples[number, :, first - column - run.first :][:, : stop - first]
            is_calibration = run.is_calibration is not None and bool(run.is_calibration[number])
            kept.append((row, run.is_reversed, is_calibration))
            self.n_bytes += n_bytes
            self._ledger.count(Fate.NAVIGATOR, 1)

    def _leave_out(self, run: Run, number: int, why: str) -> None:
        self._ledger.count(Fate.KEPT_OUT, number)
        self._ledger.warn("phase correction", f"{run.where}: phase-correction readouts are not used: {why}")

    def take_for(self, key: GroupKey) -> Navigators | None:
        """The readouts of a group that is handed on; None without any of its slice.

        Those of its own contrast and set, else of another; of its own repetition, else the latest before it, else the
        first. Older ones of the same contrast and set are forgotten.
        """
        wanted = (key.contrast, key.set)
        places = [
            at for at, kept in self._readouts.items() if at[:2] == (key.encoding, key.slice) and any(kept.values())
        ]
        if not places:
            return None
        place = min(places, key=lambda at: ([a != b for a, b in zip(at[2:], wanted, strict=True)], at))
        by_repetition = {repetition: kept for repetition, kept in self._readouts[place].items() if kept}
        before = [repetition for repetition in by_repetition if repetition <= key.repetition]
        chosen = max(before) if before else min(by_repetition)
        if place[2:] == wanted:
            for repetition in [each for each in before if each < chosen]:
                self.n_bytes -= sum(row.nbytes for row, _, _ in self._readouts[place].pop(repetition))
        rows, is_reversed, is_calibration = zip(*by_repetition[chosen], strict=True)
        return Navigators(np.stack(rows), np.array(is_reversed, np.bool_), np.array(is_calibration, np.bool_))
