"""When a group is complete: rules on flags and counters, kept apart from where the samples go.

1. LAST_IN_SLICE, LAST_IN_REPETITION or LAST_IN_MEASUREMENT on an imaging readout of the last average hands its group on
   when it is believed: when of each frame that the header promises all lines are there, or at least `FLAG_FRACTION` of
   them and the flag; or when there is as much as in a group before whose flags were proven (rule 4). With it goes every
   other group that it ends (same slice and repetition; same repetition; all) and that is complete. Otherwise the group
   is remembered as flagged. A line of the same frame and average after its flag shows that the flags of this scan are
   not to be trusted; they are ignored from then on.
2. A readout of the same slice with another repetition hands on the groups of that slice that are flagged or have the
   least fraction (more than one readout where the header promises nothing), unless repetitions were seen to interleave.
3. A readout of another group hands on the group before it if that has every promised line and all averages, calibration
   lines too where they share its grid, and was filled in one go: an interleaved scan is not cut to pieces.
4. A group that was flagged, waited, and was handed on without a line after its flag proves the flags: groups with as
   many flags and frames and nearly as many readouts are believed from then on, whatever the header promises. So only
   the first frame of an irregularly undersampled series waits for the next one.

Full patterns and CLOSE are the assembler's. Nothing here depends on how the stream was cut into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipelines.assembly.frame import Completion
from pipelines.assembly.layout import Key
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.open_frame import OpenFrame, Progress
from pipelines.assembly.open_group import OpenGroup
from pipelines.mrd import AcquisitionFlag

FLAG_FRACTION: Final = 0.75
"""Part of the promised lines with which a LAST flag is believed at once; flags at the end of a segment come earlier."""

_ENCODING, _SLICE, _REPETITION = 0, 1, 4


class CompletionRules:
    """Follows the stream of imaging readouts and says which open groups are complete.

    Attributes:
        current: group of the readouts that came last.
        repetitions_interleave: whether a readout came of an earlier repetition whose group was still open.
    """

    def __init__(self, min_fraction: float, ledger: Ledger) -> None:
        self._min_fraction = min_fraction
        self._ledger = ledger
        self.current: Key | None = None
        self._repetitions: dict[tuple[int, int], int] = {}
        self.repetitions_interleave = False
        self._flags_are_trusted = True
        self._proven: FlaggedFrames | None = None

    def arrive(self, key: Key, groups: Mapping[Key, OpenGroup]) -> list[OpenGroup]:
        """Take note that readouts for `key` come next.

        Args:
            key: of their group, open or about to be opened.
            groups: the open groups.

        Returns:
            Groups that are complete because the counters moved on.
        """
        if key == self.current:
            return []
        group = groups.get(key)
        if group is not None:
            group.visits += 1
        done: list[OpenGroup] = []
        place = (key[_ENCODING], key[_SLICE])
        if self._repetitions.setdefault(place, key[_REPETITION]) != key[_REPETITION]:
            if group is not None:
                self.repetitions_interleave = True
            elif not self.repetitions_interleave:
                done = [
                    other
                    for at, other in groups.items()
                    if (at[_ENCODING], at[_SLICE]) == place
                    and at[_REPETITION] != key[_REPETITION]
                    and self.is_worth(other)
                    and (other.layout.fewest or other.placed > 1 or other.n_flagged)
                ]
            self._repetitions[place] = key[_REPETITION]
        previous = groups.get(self.current) if self.current is not None else None
        if previous is not None and previous not in done and previous.visits == 1 and previous.is_complete():
            done.append(previous)
        self.current = key
        return done

    def end(
        self, key: Key, frame: OpenFrame | None, flags: int, average: int, groups: Mapping[Key, OpenGroup]
    ) -> list[OpenGroup]:
        """Take note of LAST flags on a readout.

        Args:
            key: its group, which may be open or handed on already.
            frame: its frame, when the group is open.
            flags: of the readout.
            average: its counter.
            groups: the open groups.

        Returns:
            Groups that are complete because the flags say so.
        """
        if not self._flags_are_trusted:
            return []
        ended = [other for at, other in groups.items() if at != key and _ends(flags, key, at)]
        done = [other for other in ended if other.is_complete()]
        for other in ended:
            other.is_ended = True
        group = groups.get(key)
        if group is not None and frame is not None:
            frame.flag(average)
            group.is_ended = True
            if average >= group.layout.last_average and self._is_believed(group):
                done.insert(0, group)
        return done

    def follow(self, frame: OpenFrame, least_average: int) -> None:
        """Take note that lines with at least this average counter are placed in the frame."""
        if frame.flagged_average is not None and least_average <= frame.flagged_average:
            self.distrust_flags()

    def hand_on(self, group: OpenGroup, completion: Completion, progress: Progress) -> Progress:
        """Take note that a group is handed on; how far it is from what was planned for it.

        Args:
            group: the group.
            completion: why.
            progress: how far it is from what the header promises.
        """
        if not self._flags_are_trusted:
            return progress
        if group.n_flagged and completion in {Completion.COUNTER, Completion.CLOSE}:
            self._proven = FlaggedFrames.of(group)
        return group.progress(believes_flags=True) if progress.missing else progress

    def distrust_flags(self) -> None:
        """Ignore LAST flags from now on: lines came after one."""
        self._flags_are_trusted = False
        self._ledger.warn("flags", "LAST flags are set on lines that are not the last; they are ignored from here on")

    def is_worth(self, group: OpenGroup) -> bool:
        """Whether an unfinished group is worth reconstructing: a flag ended it, or it has the least fraction.

        Of a group of several frames those count that came: a real-time scan may be stopped at any time.
        """
        if group.placed == 0:
            return False
        is_ended = self._flags_are_trusted and (group.is_ended or group.n_flagged > 0)
        return is_ended or group.fraction_of_frames() >= self._min_fraction

    def _is_believed(self, group: OpenGroup) -> bool:
        """Whether a LAST flag on the last of all averages says that nothing more comes."""
        least = FLAG_FRACTION if group.layout.fewest > 1 else 1.0
        if group.is_promised_throughout(least):
            return True
        return self._proven is not None and FlaggedFrames.of(group).reach(self._proven)


@dataclass(frozen=True, slots=True)
class FlaggedFrames:
    """How much of a group was there at a LAST flag: frames, those of them with a flag, readouts in the shortest."""

    n_frames: int
    n_flagged: int
    fewest: int

    @classmethod
    def of(cls, group: OpenGroup) -> FlaggedFrames:
        """Of a group as it is now."""
        return cls(group.n_frames, group.n_flagged, group.fewest_in_frame)

    def reach(self, proven: FlaggedFrames) -> bool:
        """Whether this is as much, but for some readouts: irregular patterns differ from frame to frame."""
        return (
            self.n_frames >= proven.n_frames
            and self.n_flagged >= proven.n_flagged
            and self.fewest >= FLAG_FRACTION * proven.fewest
        )


def _ends(flags: int, key: Key, other: Key) -> bool:
    """Whether LAST flags on a readout of `key` end the group `other` as well."""
    if flags & AcquisitionFlag.LAST_IN_MEASUREMENT.mask:
        return True
    if key[_REPETITION] != other[_REPETITION]:
        return False
    return bool(flags & AcquisitionFlag.LAST_IN_REPETITION.mask) or key[: _SLICE + 1] == other[: _SLICE + 1]
