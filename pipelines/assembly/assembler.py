"""Readouts in, groups out: every readout is placed, kept aside or counted, exactly once.

The stream is followed readout by readout, however it was cut into batches. A group is open from its first readout until
it is handed on: by a LAST flag or a counter that moved on (`completion.py`), as FULL when every line that limits,
acceleration and averages promise is there, or at CLOSE when it has the least fraction of its lines; the rest is
reported by warning. Readouts for a group that was handed on are late: counted, not used. Where calibration lines share
the image grid their number is not in the header, so there only the last of all lines makes it full.

Lines flagged 20 alone join the image in embedded mode, where their contrast is the same (as in Gadgetron's
ReferencePrep), and go to a grid of their own in all other modes. Knows no sockets and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.calibration import CalibrationStore
from pipelines.assembly.completion import FLAG_FRACTION, CompletionRules, Key
from pipelines.assembly.frame import Completion, Group, Grouping, GroupKey, NoiseCovariance
from pipelines.assembly.grid import CARTESIAN, Cells, Grid
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.navigators import NavigatorStore
from pipelines.assembly.noise import NoiseCollector
from pipelines.assembly.open_group import OpenGroup
from pipelines.assembly.ramps import first_column, on_grid
from pipelines.assembly.routing import Route, Run, runs, where
from pipelines.assembly.waveforms import WaveformStore
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import Acquisitions, Waveform
from pipelines.scan_header import ScanHeader

FEWEST_STRAYS = 100
"""Readouts out of range that are always forgiven, before `AssemblyLimits.max_out_of_range_fraction` counts."""

MAX_CLOSED = 65_536
"""Groups handed on that are remembered to recognise late readouts."""

MAX_REPORTED = 20
"""Unfinished groups that get a warning of their own."""


class Assembler:
    """Assembles one scan.

    Attributes:
        grouping: what a group holds.
        waveforms: those of the scan.
    """

    def __init__(
        self,
        scan: ScanHeader,
        grouping: Grouping,
        slots: SlotSource,
        limits: AssemblyLimits | None = None,
        noise: NoiseCovariance | None = None,
        waveforms: WaveformStore | None = None,
    ) -> None:
        """An assembler without any readout; `noise` is for a scan that brings no noise readouts of its own.

        Raises:
            AssemblyError: no encoding space is Cartesian.
            BudgetError: the header announces more than the limits allow.
        """
        self.grouping = grouping
        self._scan = scan
        self._slots = slots
        self._limits = limits or AssemblyLimits()
        self._ledger = Ledger()
        self.waveforms = waveforms or WaveformStore(self._limits.max_waveform_bytes, self._ledger)
        self._rules = CompletionRules(self._limits.min_complete_fraction, self._ledger)
        self._grids: dict[int, Grid] = {}
        self._open: dict[Key, OpenGroup] = {}
        self._closed: dict[Key, bool] = {}
        self._ready: list[Group] = []
        self._noise = NoiseCollector(self._limits.max_noise_bytes, self._ledger, noise)
        self._calibration = CalibrationStore(self._limits, self._ledger)
        self._navigators = NavigatorStore(self._limits.max_navigator_bytes, self._ledger)
        self._open_bytes = 0
        self._n_unfinished = 0
        self._n_coils: int | None = None
        if all(encoding.trajectory not in CARTESIAN for encoding in scan.encodings):
            self._grid(0)
        for number, encoding in enumerate(scan.encodings):
            if encoding.trajectory in CARTESIAN:
                self._check_group_bytes(self._grid(number), scan.receiver_channels or 1)

    # -- what the session calls --------------------------------------------------------------------------------------

    def add(self, batch: Acquisitions) -> list[Group]:
        """Place readouts of one shape; nothing of the batch is kept.

        Returns:
            Groups that are complete now; the caller releases them.

        Raises:
            AssemblyError: a readout cannot be placed, or too many counters lie outside the header's ranges.
            BudgetError: the scan needs more memory than the limits allow. After either call `take_ready`, `abandon`.
        """
        if len(batch) and (batch.n_coils == 0 or batch.n_samples == 0):
            self._ledger.count(Fate.EMPTY, len(batch), "readouts without samples or channels are left out")
        elif len(batch):
            self._check_shape(batch)
            for run in runs(batch):
                if run.route is Route.KEPT_OUT:
                    self._ledger.count(Fate.KEPT_OUT, len(run))
                elif run.route is Route.NAVIGATOR:
                    self._navigators.add(run, self._grids.get(run.key[0]))
                else:
                    self._follow(run)
            self._check_strays()
        return self.take_ready()

    def add_waveform(self, waveform: Waveform) -> None:
        """Keep a physiology waveform for the groups of its time."""
        self.waveforms.add(waveform)

    def end(self, slice_: int, repetition: int) -> list[Group]:
        """Hand on the groups of a slice that the caller takes for over, if they have most of their lines together."""
        over = [each for each in self._open.values() if (each.key.slice, each.key.repetition) == (slice_, repetition)]
        progress = [group.progress() for group in over]
        missing, promised = sum(each.missing for each in progress), sum(each.promised for each in progress)
        if missing <= (1 - FLAG_FRACTION) * promised:
            self._hand_on_or_report(over, Completion.COUNTER)
        return self.take_ready()

    def end_unit(self, *, is_whole: bool) -> list[Group]:
        """Hand on what is complete at the end of a unit that the sender has closed (a bucket, recon data).

        Args:
            is_whole: whether the sender puts whole groups into a unit; then those with the least fraction are complete.
        """
        for group in list(self._open.values()):
            if group.is_complete() or (is_whole and self._rules.is_worth(group)):
                self._hand_on(group, Completion.TRIGGER)
        return self.take_ready()

    def finish(self) -> list[Group]:
        """Hand on what is left, at CLOSE.

        Raises:
            AssemblyError: imaging readouts came but every one of them lies outside the header's ranges.
        """
        self._hand_on_or_report(list(self._open.values()), Completion.CLOSE)
        if self._n_unfinished > MAX_REPORTED:
            self._ledger.warn("unfinished", f"{self._n_unfinished} groups in all were too incomplete to reconstruct")
        if self._ledger.counts[Fate.OUT_OF_RANGE] and not self._ledger.counts[Fate.IMAGING]:
            raise AssemblyError(
                f"none of {self._ledger.counts[Fate.OUT_OF_RANGE]} readouts lies inside the header's encoding limits"
            )
        useless = sum(self._ledger.counts[fate] for fate in (Fate.KEPT_OUT, Fate.CALIBRATION, Fate.NAVIGATOR))
        if useless and not self._ledger.counts[Fate.IMAGING]:
            self._ledger.warn("no image", f"none of {useless} readouts was for an image, so there are no images")
        self._calibration = CalibrationStore(self._limits, self._ledger)
        self._navigators = NavigatorStore(self._limits.max_navigator_bytes, self._ledger)
        return self.take_ready()

    def abandon(self) -> None:
        """Give back all memory; groups already returned are the caller's."""
        for group in self._open.values():
            group.slot.release()
        for ready in self.take_ready():
            ready.release()
        self._open.clear()
        self._noise = NoiseCollector(self._limits.max_noise_bytes, self._ledger)
        self._calibration = CalibrationStore(self._limits, self._ledger)
        self._navigators = NavigatorStore(self._limits.max_navigator_bytes, self._ledger)
        self._open_bytes = 0
        self.waveforms.clear()

    def take_ready(self) -> list[Group]:
        """Groups that were complete before `add` or `finish` raised; both return them otherwise."""
        ready, self._ready = self._ready, []
        return ready

    def take_warnings(self) -> list[str]:
        """Sentences for the scanner since the last call, each kind once a scan."""
        return self._ledger.take_warnings()

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them (`Fate`); their sum is the number of readouts that came."""
        return {fate.value: number for fate, number in self._ledger.counts.items()}

    @property
    def noise(self) -> NoiseCovariance | None:
        """What the scan's own noise readouts say so far."""
        return self._noise.covariance()

    @property
    def bytes_held(self) -> int:
        """Memory of open groups, calibration and phase-correction lines, noise and waveforms."""
        stores = (self._noise, self._calibration, self._navigators, self.waveforms)
        return self._open_bytes + sum(store.n_bytes for store in stores)

    # -- one run of readouts -----------------------------------------------------------------------------------------

    def _follow(self, run: Run) -> None:
        n_coils = run.n_coils
        if n_coils != (self._n_coils or n_coils):
            raise AssemblyError(f"{run.where}: expected {self._n_coils} channels as before, found {n_coils}")
        self._n_coils = n_coils
        if run.first > run.stop:
            discarded = run.first + run.n_samples - run.stop
            raise AssemblyError(f"{run.where}: discards {discarded} of only {run.n_samples} samples")
        if run.first == run.stop:
            self._ledger.count(Fate.EMPTY, len(run), "readouts whose samples are all to be discarded are left out")
        elif run.route is Route.NOISE:
            self._noise.add(run)
        elif run.route is Route.CALIBRATION and not self._grid(run.key[0]).is_embedded:
            grid = self._grid(run.key[0])
            self._calibration.add(on_grid(run, grid, self._ledger), grid, self._limits.max_open_bytes - self.bytes_held)
        else:
            self._place(on_grid(run, self._grid(run.key[0]), self._ledger))

    def _place(self, run: Run) -> None:
        grid, group = self._grid(run.key[0]), self._open.get(run.key)
        if group is None:
            stray = grid.stray_counter(run.key[1:])
            if stray is not None:
                self._ledger.count(Fate.OUT_OF_RANGE, len(run), f"readouts are left out: {stray}")
                return
        cells, inside = grid.place(run.lines)
        if inside is not None:
            first = run.lines[~inside][0].tolist()
            self._ledger.count(
                Fate.OUT_OF_RANGE,
                len(run) - int(np.count_nonzero(inside)),
                f"readouts are left out: expected {grid.describe_range()}, found {first[0]} and {first[1]}",
            )
            cells = cells[inside]
        if run.key in self._closed:
            self._count_late(run.key, len(cells))
            return
        if len(cells):
            self._arrive(run)
            group = group or self._open_group(run, grid)
            self._fill(group, run, cells, inside)
        if run.is_last:
            self._end(run)

    def _fill(self, group: OpenGroup, run: Run, cells: Cells, inside: NDArray[np.bool_] | None) -> None:
        """Put samples into the group, and hand it on at the readout that makes it full."""
        column = first_column(run, group.grid, self._ledger)
        samples, headers, averages, is_calibration = run.kept_samples, run.headers, run.averages, run.is_calibration
        if inside is not None:
            samples, headers, averages = samples[inside], headers[inside], averages[inside]
            is_calibration = None if is_calibration is None else is_calibration[inside]
        group.readout_noise = run.noise
        start = 0
        while start < len(cells):
            part = slice(start, min(start + max(group.until_check, 1), len(cells)))
            start = part.stop
            if group.flagged_average is not None:
                self._rules.follow(group, int(averages[part].min()))
            if is_calibration is not None:
                group.mark_calibration(cells[part][is_calibration[part]])
            wrong = group.add(cells[part], samples[part], column, headers[part])
            n_wrong = 0 if wrong is None else len(wrong)
            self._ledger.count(Fate.IMAGING, part.stop - part.start - n_wrong)
            if run.is_reversed:
                group.mark_reversed(cells[part] if wrong is None else np.delete(cells[part], wrong))
            if wrong is not None:
                line = int(headers["idx"]["kspace_encode_step_1"][part][wrong[0]])
                text = f"{where(run.key)}, line {line}: lines with NaN or infinite samples are left out"
                self._ledger.count(Fate.NOT_FINITE, n_wrong, text)
            if group.until_check <= 0 and group.is_full():
                is_flagged = run.is_last and start == len(cells)
                self._hand_on(group, Completion.FLAG if is_flagged else Completion.FULL)
                if start < len(cells):
                    self._count_late(run.key, len(cells) - start)
                return

    # -- opening and handing on --------------------------------------------------------------------------------------

    def _arrive(self, run: Run) -> None:
        for done in self._rules.arrive(run.key, self._open):
            self._hand_on(done, Completion.COUNTER)

    def _end(self, run: Run) -> None:
        for done in self._rules.end(run.key, run.flags, int(run.averages[-1]), self._open):
            self._hand_on(done, Completion.FLAG)

    def _open_group(self, run: Run, grid: Grid) -> OpenGroup:
        n_bytes = self._check_group_bytes(grid, run.n_coils)
        if len(self._open) >= self._limits.max_open_groups:
            raise BudgetError(f"{run.where}: more than {self._limits.max_open_groups} unfinished groups")
        if self.bytes_held + n_bytes > self._limits.max_open_bytes:
            raise BudgetError(
                f"{run.where}: {len(self._open)} unfinished groups and this one need more than "
                f"{self._limits.max_open_bytes} bytes"
            )
        first_column(run, grid, self._ledger)  # nothing is taken for a readout that cannot be placed
        group = OpenGroup(GroupKey(*run.key), grid, self._slots.take(n_bytes), run.n_coils)
        group.visits = 1
        self._open[run.key] = group
        self._open_bytes += n_bytes
        return group

    def _hand_on(self, group: OpenGroup, completion: Completion) -> None:
        if group.placed == 0:
            self._ledger.warn("nothing", "a group without one usable line is left out")
            self._drop(group)
            return
        progress = group.progress()
        if progress.missing:
            self._ledger.warn("incomplete", f"{group.describe()}; incomplete groups are marked in their images")
        calibration, *slots = self._calibration.best_for(group.key, self._slots) or (None,)
        self._ready.append(
            Group(
                key=group.key,
                kspace=group.kspace(),
                counts=group.counts(),
                calibration_lines=group.calibration_lines(),
                readout_extent=group.extent(),
                headers=group.headers(),
                scan=self._scan,
                completion=completion,
                is_complete=progress.missing == 0,
                expected_lines=progress.promised,
                calibration=calibration,
                noise=self._noise.final(group.n_coils),
                waveforms=self.waveforms.between(group.time_span),
                dwell_us=group.dwell_us(),
                reversed_counts=group.reversed_counts(),
                navigators=self._navigators.take_for(group.key),
                readout_noise=group.readout_noise,
                slots=(group.slot, *slots),
            )
        )
        self._forget(group, is_flag_too_early=completion is Completion.FLAG and progress.missing > 0)

    def _hand_on_or_report(self, groups: list[OpenGroup], completion: Completion) -> None:
        for group in groups:
            if self._rules.is_worth(group):
                self._hand_on(group, completion)
                continue
            self._n_unfinished += 1
            if self._n_unfinished <= MAX_REPORTED:
                self._ledger.warn(f"unfinished {self._n_unfinished}", f"{group.describe()}; not reconstructed")
            self._drop(group)

    def _drop(self, group: OpenGroup) -> None:
        self._forget(group, is_flag_too_early=False)
        group.slot.release()

    def _forget(self, group: OpenGroup, *, is_flag_too_early: bool) -> None:
        at = astuple(group.key)
        del self._open[at]
        self._open_bytes -= group.slot.data.nbytes
        self._closed[at] = is_flag_too_early
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    # -- checking and counting ---------------------------------------------------------------------------------------

    def _grid(self, number: int) -> Grid:
        grid = self._grids.get(number)
        if grid is None:
            if number >= len(self._scan.encodings):
                raise AssemblyError(
                    f"encoding_space_ref {number}: the header has {len(self._scan.encodings)} encoding spaces"
                )
            grid = self._grids[number] = Grid(self._scan.encodings[number], number)
        return grid

    def _check_shape(self, batch: Acquisitions) -> None:
        if batch.n_coils > self._limits.max_channels:
            raise BudgetError(f"readout of {batch.n_coils} channels, the limit is {self._limits.max_channels}")
        if batch.n_samples > self._limits.max_samples:
            raise BudgetError(f"readout of {batch.n_samples} samples, the limit is {self._limits.max_samples}")
        if batch.trajectory is not None:
            self._ledger.warn("trajectory", "readouts of a cartesian scan carry a trajectory; it is ignored")

    def _check_group_bytes(self, grid: Grid, n_coils: int) -> int:
        z, y, x = grid.shape
        if (n_bytes := z * y * x * n_coils * 8) > self._limits.max_group_bytes:
            raise BudgetError(
                f"encoding space {grid.number}: {x} x {y} x {z} with {n_coils} channels needs {n_bytes} bytes, "
                f"the limit is {self._limits.max_group_bytes}"
            )
        return n_bytes

    def _check_strays(self) -> None:
        strays = self._ledger.counts[Fate.OUT_OF_RANGE]
        if strays > FEWEST_STRAYS:
            imaging = sum(
                self._ledger.counts[fate] for fate in (Fate.IMAGING, Fate.CALIBRATION, Fate.NOT_FINITE, Fate.LATE)
            )
            if strays > self._limits.max_out_of_range_fraction * (strays + imaging):
                raise AssemblyError(
                    f"{strays} of {strays + imaging} readouts lie outside the header's encoding limits or matrix"
                )

    def _count_late(self, key: Key, number: int) -> None:
        if not number:
            return
        self._ledger.count(
            Fate.LATE, number, f"{where(key)}: readouts came after this group was handed on; they are not used"
        )
        if self._closed[key]:
            self._rules.distrust_flags()
