"""A group that is still being filled: its frames in one buffer, and how far it is from complete."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.arrival import Arrival, ArrivalFrame
from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.cartesian import CartesianFrame
from pipelines.assembly.companions import Companions
from pipelines.assembly.frame import Completion, Group, GroupKey
from pipelines.assembly.grid import Grid
from pipelines.assembly.group_buffer import BufferShape, GroupBuffer
from pipelines.assembly.layout import Cells, Key, Layout
from pipelines.assembly.open_frame import NEVER, OpenFrame, Part, Progress
from pipelines.scan_header import ScanHeader


class OpenGroup:
    """Frames of one group while readouts arrive.

    Attributes:
        key: what its frames have in common (`FrameAxis.group_key`).
        layout: of its encoding space.
        buffer: memory of its frames.
        visits: how often the stream came (back) to this group; 1 means that it has not been interleaved.
        readout_noise: `Group.readout_noise` of the last readout.
        is_ended: whether a LAST flag, of this group or of one that it ended with, came after all readouts so far.
        until_check: readouts until the group can be full, and is worth looking at.
    """

    def __init__(self, key: Key, layout: Layout, buffer: GroupBuffer) -> None:
        self.key = key
        self.layout = layout
        self.buffer = buffer
        self.visits = 1
        self.is_ended = False
        self.readout_noise = 1.0
        self._frames: dict[int, OpenFrame] = {}
        self.until_check = self._readouts_needed()

    # -- filling -----------------------------------------------------------------------------------------------------

    def frame(self, key: Key) -> OpenFrame | None:
        """The frame with these counters, if a readout of it has come."""
        return self._frames.get(self.layout.axis.value(key))

    def shape_for(self, key: Key, n: int) -> BufferShape:
        """What the buffer needs so that `n` more readouts of a frame have room."""
        frame, axis = self.frame(key), self.layout.axis
        n_frames = len(self._frames) + (frame is None) if axis.number is None else axis.number
        n_rows = 0
        if isinstance(self.layout, Arrival) and self.layout.n_rows is None:
            n_rows = n + (0 if frame is None else frame.placed)
        return self.buffer.shape.with_room(n_frames, n_rows)

    def move_to(self, buffer: GroupBuffer) -> None:
        """Go on in a larger buffer; the old one is the caller's to release."""
        buffer.copy_from(self.buffer)
        self.buffer = buffer
        for frame in self._frames.values():
            frame.attach(buffer)

    def open_frame(self, key: Key) -> OpenFrame:
        """A frame for these counters, in memory that nobody uses."""
        axis = self.layout.axis
        value = axis.value(key)
        place = len(self._frames) if axis.number is None else value - axis.first
        if isinstance(self.layout, Grid):
            frame: OpenFrame = CartesianFrame(key, place, self.layout)
        elif isinstance(self.layout, Arrival):
            frame = ArrivalFrame(key, place, self.layout)
        else:
            raise TypeError(f"no frames for {type(self.layout).__name__}")
        frame.attach(self.buffer)
        self._frames[value] = frame
        if self.until_check < NEVER // 2:
            self.until_check += frame.until_check - self.layout.fewest_readouts
        return frame

    def add(self, frame: OpenFrame, part: Part) -> Cells | None:
        """Place readouts in one of the frames; which of them are not finite, or None."""
        self.until_check -= len(part)
        self.is_ended = False
        return frame.add(part)

    # -- asking ------------------------------------------------------------------------------------------------------

    @property
    def placed(self) -> int:
        """Readouts used."""
        return sum(frame.placed for frame in self._frames.values())

    @property
    def n_flagged(self) -> int:
        """Frames on a readout of which a LAST flag came."""
        return sum(frame.flagged_average is not None for frame in self._frames.values())

    @property
    def n_frames(self) -> int:
        """Frames with at least one readout used."""
        return sum(frame.placed > 0 for frame in self._frames.values())

    @property
    def fewest_in_frame(self) -> int:
        """Readouts used in the frame that has the fewest."""
        return min((frame.placed for frame in self._frames.values()), default=0)

    def progress(self, *, believes_flags: bool = False) -> Progress:
        """How far the group is from what the header promises, frames that have not come included.

        Args:
            believes_flags: whether a LAST flag on a frame, or after all frames, says that nothing more was planned.
        """
        came = [frame for frame in self._frames.values() if frame.placed]
        parts = [
            frame.settled()
            if believes_flags and (self.is_ended or frame.flagged_average is not None)
            else frame.progress()
            for frame in came
        ]
        absent = max((self.layout.axis.number or 0) - len(came), 0) * self.layout.fewest
        promised = sum(part.promised for part in parts) + absent
        return Progress(promised, sum(part.missing for part in parts) + absent)

    def fraction_of_frames(self) -> float:
        """Part of the promised lines that is there, of the frames that came."""
        parts = [frame.progress() for frame in self._frames.values() if frame.placed]
        return Progress(sum(p.promised for p in parts), sum(p.missing for p in parts)).fraction

    def is_promised_throughout(self, fraction: float) -> bool:
        """Whether each frame that the header promises has all its promised lines, or this part of them and a flag."""
        if self.layout.fewest == 0 or not self._has_all_frames():
            return False
        return all(
            frame.progress().fraction >= (1.0 if frame.flagged_average is None else fraction)
            for frame in self._frames.values()
        )

    def is_complete(self) -> bool:
        """Whether all frames that the header promises have all that it promises, as far as the header tells."""
        return self._has_all_frames() and all(frame.is_complete() for frame in self._frames.values())

    def is_full(self) -> bool:
        """Whether nothing more can be expected; sets `until_check` to the readouts still needed at least."""
        for frame in self._frames.values():
            if frame.until_check <= 0:
                frame.is_full()
        self.until_check = self._readouts_needed()
        return self.until_check == 0

    def _has_all_frames(self) -> bool:
        return len(self._frames) == self.layout.axis.number

    def _readouts_needed(self) -> int:
        """Readouts without which the group cannot be full."""
        number = self.layout.axis.number
        if number is None or self.layout.fewest == 0:
            return NEVER
        absent = (number - len(self._frames)) * self.layout.fewest_readouts
        return absent + sum(max(frame.until_check, 0) for frame in self._frames.values())

    # -- handing on --------------------------------------------------------------------------------------------------

    def as_group(
        self, scan: ScanHeader, completion: Completion, progress: Progress, companions: Companions, slots: SlotSource
    ) -> Group:
        """The frames that have a readout, in the order of their counter, on the memory of the buffer.

        Args:
            scan: the scan header.
            completion: why the group is handed on.
            progress: how far it is from what was planned.
            companions: what goes with it.
            slots: where a copy of separate calibration lines goes.

        Raises:
            BudgetError: the source of slots has no room.
        """
        frames, buffer = self._used_frames(), self.buffer
        key = GroupKey(*frames[0].key)
        calibration, *calibration_slots = companions.calibration.best_for(key, slots) or (None,)
        place = buffer.bring_together([frame.place for frame in frames])
        n_rows = buffer.shape.n_rows
        if isinstance(self.layout, Grid):
            z_y = self.layout.shape[:2]
        else:
            n_rows = max(frame.placed for frame in frames)
            z_y = 1, n_rows
        rows = buffer.samples.view(np.complex64)[place, :n_rows]
        positions = None if buffer.trajectory is None else buffer.trajectory.view(np.float32)[place, :n_rows]
        counts = [frame.counts()[:n_rows] for frame in frames]
        dwell_us = None
        if not all(frame.dwells.are_alike for frame in frames):
            dwells = [frame.dwells.means(each) for frame, each in zip(frames, counts, strict=True)]
            dwell_us = _joined(dwells).reshape(len(frames), *z_y)
        reversed_counts = None
        if any(frame.reversed_counts() is not None for frame in frames):
            reversed_counts = _joined([_padded(f.reversed_counts(), n_rows) for f in frames]).reshape(len(frames), *z_y)
        spans = [frame.time_span for frame in frames]
        extents = [frame.extent() for frame in frames]
        return Group(
            key=key,
            kspace=rows.reshape(len(frames), *z_y, *rows.shape[2:]).transpose(0, 3, 1, 2, 4),
            counts=_joined(counts).reshape(len(frames), *z_y),
            calibration_lines=self._calibration_lines(frames)[:n_rows].reshape(z_y),
            readout_extent=(min(low for low, _ in extents), max(high for _, high in extents)),
            headers=_joined([frame.header() for frame in frames]),
            scan=scan,
            completion=completion,
            is_complete=progress.missing == 0,
            expected_lines=progress.promised,
            calibration=calibration,
            noise=companions.noise.final(buffer.shape.n_coils),
            waveforms=companions.waveforms.between((min(low for low, _ in spans), max(high for _, high in spans))),
            dwell_us=dwell_us,
            reversed_counts=reversed_counts,
            navigators=companions.navigators.take_for(key),
            readout_noise=self.readout_noise,
            trajectory=positions,
            slots=(buffer.slot, *calibration_slots),
        )

    def _used_frames(self) -> list[OpenFrame]:
        return [self._frames[value] for value in sorted(self._frames) if self._frames[value].placed]

    @staticmethod
    def _calibration_lines(frames: list[OpenFrame]) -> NDArray[np.bool_]:
        lines = frames[0].calibration_lines()
        for frame in frames[1:]:
            lines = lines | frame.calibration_lines()
        return lines


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Along the first axis; a single one is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(counts: NDArray[np.float32] | None, n_rows: int) -> NDArray[np.float32]:
    """Counts of the first rows, 0 where there are none."""
    out = np.zeros(n_rows, np.float32)
    if counts is not None:
        out[: len(counts)] = counts[:n_rows]
    return out
