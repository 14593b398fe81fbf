"""The groups that are open: opened and grown within the limits, handed on with calibration and noise, or given up.

Knows memory and limits; what belongs where and when a group is complete are others' concern.
"""

from __future__ import annotations

from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.companions import Companions
from pipelines.assembly.completion import CompletionRules
from pipelines.assembly.frame import Completion, Group, Grouping
from pipelines.assembly.group_buffer import BufferShape, GroupBuffer
from pipelines.assembly.layout import Key, Layout
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.memory import checked_bytes
from pipelines.assembly.open_frame import OpenFrame, Part, Progress
from pipelines.assembly.open_group import OpenGroup
from pipelines.assembly.routing import Run, where
from pipelines.assembly.stacks import Stacks
from pipelines.errors import BudgetError
from pipelines.scan_header import ScanHeader

MAX_CLOSED = 65_536
"""Groups handed on that are remembered to recognise late readouts."""


class OpenGroups:
    """Open groups by their key.

    Attributes:
        by_key: the groups.
        n_bytes: memory of open groups, and of slices that wait for their neighbours.
    """

    def __init__(
        self,
        scan: ScanHeader,
        grouping: Grouping,
        slots: SlotSource,
        limits: AssemblyLimits,
        rules: CompletionRules,
        companions: Companions,
        ledger: Ledger,
    ) -> None:
        self.by_key: dict[Key, OpenGroup] = {}
        self._scan = scan
        self._slots = slots
        self._limits = limits
        self._rules = rules
        self._companions = companions
        self._ledger = ledger
        self._stacks = Stacks(scan, ledger) if grouping is Grouping.STACK else None
        self._closed: dict[Key, bool] = {}
        self._ready: list[Group] = []
        self._group_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Memory of open groups, and of slices that wait for their neighbours."""
        return self._group_bytes + (0 if self._stacks is None else self._stacks.n_bytes)

    def is_closed(self, key: Key) -> bool:
        """Whether the group was handed on or given up."""
        return key in self._closed

    def was_flag_too_early(self, key: Key) -> bool:
        """Whether a flag handed the group on before it had all that the header promises."""
        return self._closed[key]

    def take_ready(self) -> list[Group]:
        """Groups that were handed on since the last call."""
        ready, self._ready = self._ready, []
        return ready

    # -- opening -----------------------------------------------------------------------------------------------------

    def frame_for(self, run: Run, key: Key, layout: Layout, part: Part) -> tuple[OpenGroup, OpenFrame]:
        """The frame that readouts of a run belong to, opened where it is not, with room for them.

        Args:
            run: the readouts.
            key: of their group.
            layout: of their encoding space.
            part: what of the run is to be placed.

        Raises:
            BudgetError: more memory than the limits allow.
        """
        group = self.by_key.get(key)
        if group is None:
            group = self._open(run, key, layout, part)
        frame = group.frame(run.key)
        if layout.may_grow:
            shape = group.shape_for(run.key, len(part))
            if shape != group.buffer.shape:
                self._grow(run, group, shape)
        if frame is None:
            frame = group.open_frame(run.key)
            if self._stacks is not None:
                self._ready += self._stacks.see(run.key, part.headers[0])
        return group, frame

    def _open(self, run: Run, key: Key, layout: Layout, part: Part) -> OpenGroup:
        n_dimensions = 0 if part.trajectory is None else part.trajectory.shape[2] // 4
        shape = layout.buffer_shape(run.n_coils, run.stop - run.first, n_dimensions)
        checked_bytes(shape, layout, self._limits.max_group_bytes)
        if len(self.by_key) >= self._limits.max_open_groups:
            raise BudgetError(f"{run.where}: more than {self._limits.max_open_groups} unfinished groups")
        self._check_room(run, shape.n_bytes)
        group = OpenGroup(key, layout, GroupBuffer(self._slots.take(shape.n_bytes), shape))
        self.by_key[key] = group
        self._group_bytes += group.buffer.n_bytes
        return group

    def _grow(self, run: Run, group: OpenGroup, shape: BufferShape) -> None:
        old = group.buffer
        checked_bytes(shape, group.layout, self._limits.max_group_bytes)
        self._check_room(run, shape.n_bytes)
        group.move_to(GroupBuffer(self._slots.take(shape.n_bytes), shape))
        self._group_bytes += shape.n_bytes - old.n_bytes
        old.slot.release()

    def _check_room(self, run: Run, n_bytes: int) -> None:
        if self.n_bytes + self._companions.n_bytes + n_bytes > self._limits.max_open_bytes:
            raise BudgetError(
                f"{run.where}: {len(self.by_key)} unfinished groups and this one need more than "
                f"{self._limits.max_open_bytes} bytes"
            )

    # -- handing on --------------------------------------------------------------------------------------------------

    def hand_on(self, group: OpenGroup, completion: Completion) -> None:
        """Make the group ready; one without a usable line is given up.

        Raises:
            BudgetError: the source of slots has no room for the calibration lines.
        """
        if group.placed == 0:
            self._ledger.warn("nothing", "a group without one usable line is left out")
            self.give_up(group)
            return
        promised = group.progress()
        progress = self._rules.hand_on(group, completion, promised)
        if progress.missing:
            text = f"{describe(group, progress)}; incomplete groups are marked in their images"
            self._ledger.warn("incomplete", text)
        made = group.as_group(self._scan, completion, progress, self._companions, self._slots)
        is_certain = promised.promised > 0 and promised.missing == 0
        self._forget(group, is_flag_too_early=completion is Completion.FLAG and not is_certain)
        self._ready += [made] if self._stacks is None else self._stacks.add(made, self._may_come)

    def _may_come(self, key: Key) -> bool:
        """Whether a slice of an earlier repetition may still be assembled: only where repetitions interleave."""
        return key in self.by_key and self._rules.repetitions_interleave

    def give_up(self, group: OpenGroup) -> None:
        """Give the memory of a group back without handing it on."""
        self._forget(group, is_flag_too_early=False)
        group.buffer.slot.release()
        if self._stacks is not None:
            self._ready += self._stacks.give_up(group.key)

    def finish(self) -> None:
        """Hand on slices that still wait for neighbours, at CLOSE."""
        if self._stacks is not None:
            self._ready += self._stacks.finish()

    def abandon(self) -> None:
        """Give back all memory, that of ready groups included."""
        for group in self.by_key.values():
            group.buffer.slot.release()
        for ready in self.take_ready():
            ready.release()
        if self._stacks is not None:
            self._stacks.abandon()
        self.by_key.clear()
        self._group_bytes = 0

    def _forget(self, group: OpenGroup, *, is_flag_too_early: bool) -> None:
        del self.by_key[group.key]
        self._group_bytes -= group.buffer.n_bytes
        self._closed[group.key] = is_flag_too_early
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]


def describe(group: OpenGroup, progress: Progress) -> str:
    """Which group, and how much of it came."""
    came = progress.promised - progress.missing
    number = group.layout.axis.number
    frames = "" if number in {None, 1} else f" in {group.n_frames} of {number} frames"
    return f"{where(group.key)}: only {came} of {progress.promised} lines{frames} came"
