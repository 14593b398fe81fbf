"""Readouts in, groups out: every readout is placed, kept aside or counted, exactly once.

The stream is followed readout by readout, however it was cut into batches. A group is open from its first readout until
it is handed on: by a LAST flag or a counter that moved on (`completion.py`), as FULL when every line that limits,
acceleration and averages promise is there, or at CLOSE when it has the least fraction of its lines; the rest is
reported by warning. Readouts for a group that was handed on are late: counted, not used.

What a group holds is the grouping's: one slice of one frame, which is a slab of partitions where the encoding has three
dimensions (`slice`, `volume`); all frames of a slice (`cine`, `layout.frame_axis`); a slice with its neighbours
(`stack`, `stacks.py`). Where readouts lie in it is the encoding space's: on a grid (`grid.py`) or, for non-Cartesian
trajectories, in the order of their arrival (`arrival.py`).

Lines flagged 20 alone join the image in embedded mode, where their contrast is the same (as in Gadgetron's
ReferencePrep), and go to a grid of their own in all other modes. Knows no sockets and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.companions import Companions
from pipelines.assembly.completion import FLAG_FRACTION, CompletionRules
from pipelines.assembly.encoding_spaces import EncodingSpaces
from pipelines.assembly.frame import Completion, Group, Grouping, NoiseCovariance
from pipelines.assembly.grid import Grid
from pipelines.assembly.layout import REPETITION, SLICE, Key, Layout
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.memory import check_header
from pipelines.assembly.open_frame import OpenFrame, Part
from pipelines.assembly.open_group import OpenGroup
from pipelines.assembly.open_groups import OpenGroups, describe
from pipelines.assembly.routing import Route, Run, runs, where
from pipelines.assembly.waveforms import WaveformStore
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import Acquisitions, Waveform
from pipelines.scan_header import ScanHeader

FEWEST_STRAYS = 100
"""Readouts out of range that are always forgiven, before `AssemblyLimits.max_out_of_range_fraction` counts."""

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
            AssemblyError: no encoding space can be assembled.
            BudgetError: one group needs more memory than the limits allow, by the header.
        """
        self.grouping = grouping
        self._limits = limits or AssemblyLimits()
        self._ledger = Ledger()
        self._spaces = EncodingSpaces(scan, grouping)
        check_header(scan, self._spaces, grouping, self._limits.max_group_bytes)
        self._rules = CompletionRules(self._limits.min_complete_fraction, self._ledger)
        self._companions = Companions(self._limits, self._ledger, noise, waveforms)
        self.waveforms = self._companions.waveforms
        self._groups = OpenGroups(scan, grouping, slots, self._limits, self._rules, self._companions, self._ledger)
        self._n_unfinished = 0
        self._n_coils: int | None = None

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
                    self._companions.navigators.add(run, self._spaces.grid(run.key[0]))
                else:
                    self._follow(run)
            self._check_strays()
        return self.take_ready()

    def add_waveform(self, waveform: Waveform) -> None:
        """Keep a physiology waveform for the groups of its time."""
        self.waveforms.add(waveform)

    def end(self, slice_: int, repetition: int) -> list[Group]:
        """Hand on the groups of a slice that the caller takes for over, if they have most of their lines together."""
        at = (slice_, repetition)
        over = [each for key, each in self._groups.by_key.items() if (key[SLICE], key[REPETITION]) == at]
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
        for group in list(self._groups.by_key.values()):
            if group.is_complete() or (is_whole and self._rules.is_worth(group)):
                self._groups.hand_on(group, Completion.TRIGGER)
        return self.take_ready()

    def finish(self) -> list[Group]:
        """Hand on what is left, at CLOSE.

        Raises:
            AssemblyError: imaging readouts came but every one of them lies outside the header's ranges.
        """
        self._hand_on_or_report(list(self._groups.by_key.values()), Completion.CLOSE)
        self._groups.finish()
        if self._n_unfinished > MAX_REPORTED:
            self._ledger.warn("unfinished", f"{self._n_unfinished} groups in all were too incomplete to reconstruct")
        if self._ledger.counts[Fate.OUT_OF_RANGE] and not self._ledger.counts[Fate.IMAGING]:
            raise AssemblyError(
                f"none of {self._ledger.counts[Fate.OUT_OF_RANGE]} readouts lies inside the header's encoding limits"
            )
        useless = sum(self._ledger.counts[fate] for fate in (Fate.KEPT_OUT, Fate.CALIBRATION, Fate.NAVIGATOR))
        if useless and not self._ledger.counts[Fate.IMAGING]:
            self._ledger.warn("no image", f"none of {useless} readouts was for an image, so there are no images")
        self._companions.forget_lines()
        return self.take_ready()

    def abandon(self) -> None:
        """Give back all memory; groups already returned are the caller's."""
        self._groups.abandon()
        self._companions.forget()

    def take_ready(self) -> list[Group]:
        """Groups that were complete before `add` or `finish` raised; both return them otherwise."""
        return self._groups.take_ready()

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
        return self._companions.noise.covariance()

    @property
    def bytes_held(self) -> int:
        """Memory of open groups, of slices that wait for their neighbours, and of what goes with groups."""
        return self._groups.n_bytes + self._companions.n_bytes

    # -- one run of readouts -----------------------------------------------------------------------------------------

    def _follow(self, run: Run) -> None:
        n_coils = run.n_coils
        if n_coils != (self._n_coils or n_coils):
            raise AssemblyError(f"{run.where}: expected {self._n_coils} channels as before, found {n_coils}")
        self._n_coils = n_coils
        if run.first > run.stop:
            n_samples = run.n_samples
            raise AssemblyError(f"{run.where}: discards {run.first + n_samples - run.stop} of only {n_samples} samples")
        if run.first == run.stop:
            self._ledger.count(Fate.EMPTY, len(run), "readouts whose samples are all to be discarded are left out")
        elif run.route is Route.NOISE:
            self._companions.noise.add(run)
        elif run.route is Route.CALIBRATION and not self._spaces.layout(run.key[0]).is_embedded:
            self._keep_calibration(run)
        else:
            self._place(run)

    def _keep_calibration(self, run: Run) -> None:
        layout = self._spaces.layout(run.key[0])
        if isinstance(layout, Grid):
            room = self._limits.max_open_bytes - self.bytes_held
            self._companions.calibration.add(layout.brought(run, self._ledger), layout, room)
            return
        self._ledger.count(Fate.KEPT_OUT, len(run))
        self._ledger.warn(
            "calibration", f"{where(run.key)}: separate calibration readouts that are on no grid are not used"
        )

    def _place(self, run: Run) -> None:
        layout = self._spaces.layout(run.key[0])
        run = layout.brought(run, self._ledger)
        key = layout.axis.group_key(run.key)
        group = self._groups.by_key.get(key)
        if group is None or group.frame(run.key) is None:
            stray = layout.stray_counter(run.key[1:])
            if stray is not None:
                self._ledger.count(Fate.OUT_OF_RANGE, len(run), f"readouts are left out: {stray}")
                return
        cells, inside = layout.place(run.lines)
        trajectory = layout.trajectory_of(run, self._ledger)
        n = len(cells) if inside is None else self._count_outside(run, layout, inside)
        if self._groups.is_closed(key):
            self._count_late(key, n)
            return
        if n:
            # A damaged readout says nothing about where the scan has got to: its counters may be damaged too.
            if key == self._rules.current or run.has_finite:
                for done in self._rules.arrive(key, self._groups.by_key):
                    self._groups.hand_on(done, Completion.COUNTER)
            column, samples = layout.column(run, self._ledger), run.kept_samples
            flags, is_reversed = run.is_calibration, run.is_reversed
            part = Part(cells, samples, column, run.headers, run.averages, flags, trajectory, is_reversed)
            self._fill(run, key, layout, part if inside is None else part.select(inside))
        if run.is_last:
            group = self._groups.by_key.get(key)
            frame = None if group is None else group.frame(run.key)
            for done in self._rules.end(key, frame, run.flags, int(run.averages[-1]), self._groups.by_key):
                self._groups.hand_on(done, Completion.FLAG)

    def _count_outside(self, run: Run, layout: Layout, inside: NDArray[np.bool_]) -> int:
        """Count the readouts of a run that have no place; how many have one."""
        n = int(np.count_nonzero(inside))
        first = run.lines[~inside][0].tolist()
        text = f"readouts are left out: expected {layout.describe_range()}, found {first[0]} and {first[1]}"
        self._ledger.count(Fate.OUT_OF_RANGE, len(run) - n, text)
        return n

    def _fill(self, run: Run, key: Key, layout: Layout, part: Part) -> None:
        """Put samples into the group, and hand it on at the readout that makes it full."""
        group = self._groups.by_key.get(key)
        frame = None if group is None else group.frame(run.key)
        if group is None or frame is None or layout.may_grow:
            group, frame = self._groups.frame_for(run, key, layout, part)
        layout.check_length(run, group.buffer.shape.n_samples)
        group.readout_noise = run.noise
        start, n = 0, len(part)
        while start < n and frame.room:
            until = min(max(group.until_check, 1), frame.room)
            now = part if start == 0 and until >= n else part.select(slice(start, start + until))
            start += len(now)
            self._add(run, group, frame, now)
            if group.until_check <= 0 and group.is_full():
                is_flagged = run.is_last and start == n
                self._groups.hand_on(group, Completion.FLAG if is_flagged else Completion.FULL)
                self._count_late(key, n - start)
                return
        if start < n:
            text = f"{where(run.key)}: more readouts than the header announces came; they are not used"
            self._ledger.count(Fate.LATE, n - start, text)

    def _add(self, run: Run, group: OpenGroup, frame: OpenFrame, part: Part) -> None:
        if frame.flagged_average is not None:
            self._rules.follow(frame, int(part.averages.min()))
        wrong = group.add(frame, part)
        n_wrong = 0 if wrong is None else len(wrong)
        self._ledger.count(Fate.IMAGING, len(part) - n_wrong)
        if wrong is not None:
            line = int(part.headers["idx"]["kspace_encode_step_1"][wrong[0]])
            text = f"{where(run.key)}, line {line}: lines with NaN or infinite values are left out"
            self._ledger.count(Fate.NOT_FINITE, n_wrong, text)

    def _hand_on_or_report(self, groups: list[OpenGroup], completion: Completion) -> None:
        for group in groups:
            if self._rules.is_worth(group):
                self._groups.hand_on(group, completion)
                continue
            self._n_unfinished += 1
            if self._n_unfinished <= MAX_REPORTED:
                text = f"{describe(group, group.progress())}; not reconstructed"
                self._ledger.warn(f"unfinished {self._n_unfinished}", text)
            self._groups.give_up(group)

    # -- checking and counting ---------------------------------------------------------------------------------------

    def _check_shape(self, batch: Acquisitions) -> None:
        if batch.n_coils > self._limits.max_channels:
            raise BudgetError(f"readout of {batch.n_coils} channels, the limit is {self._limits.max_channels}")
        if batch.n_samples > self._limits.max_samples:
            raise BudgetError(f"readout of {batch.n_samples} samples, the limit is {self._limits.max_samples}")

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
        if self._groups.was_flag_too_early(key):
            self._rules.distrust_flags()
