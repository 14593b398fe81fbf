"""When a group is complete: rules on flags and counters, kept apart from where the samples go.

1. LAST_IN_SLICE, LAST_IN_REPETITION or LAST_IN_MEASUREMENT on an imaging readout of the last average hands its group on
   when at least `FLAG_FRACTION` of the promised lines are there, and with it every other group that it ends (same slice
   and repetition; same repetition; all) and that is complete. Otherwise the group is remembered as flagged. A line of
   the same group and average after its flag shows that the flags of this scan cannot be trusted; they are ignored from
   then on.
2. A readout of the same slice with another repetition hands on the groups of that slice that are flagged or have the
   least fraction, unless repetitions were seen to interleave.
3. A readout of another group hands on the group before it if that has every promised line and all averages, calibration
   lines too where they share its grid, and was filled in one go: an interleaved scan is not cut to pieces.

Full patterns and CLOSE are the assembler's. Nothing here depends on how the stream was cut into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipelines.assembly.ledger import Ledger
from pipelines.assembly.open_group import OpenGroup
from pipelines.mrd import AcquisitionFlag

FLAG_FRACTION: Final = 0.75
"""Part of the promised lines with which a LAST flag is believed at once; flags at the end of a segment come earlier."""

Key = tuple[int, ...]
"""Encoding space, then `grid.GROUP_COUNTERS`: the fields of `GroupKey` in their order."""

_ENCODING, _SLICE, _REPETITION = 0, 1, 4


class CompletionRules:
    """Follows the stream of imaging readouts and says which open groups are complete."""

    def __init__(self, min_fraction: float, ledger: Ledger) -> None:
        self._min_fraction = min_fraction
        self._ledger = ledger
        self._current: Key | None = None
        self._repetitions: dict[tuple[int, int], int] = {}
        self._repetitions_interleave = False
        self._flags_are_trusted = True

    def arrive(self, key: Key, groups: Mapping[Key, OpenGroup]) -> list[OpenGroup]:
        """Take note that readouts for `key` come next.

        Args:
            key: their group, open or about to be opened.
            groups: the open groups.

        Returns:
            Groups that are complete because the counters moved on.
        """
        if key == self._current:
            return []
        group = groups.get(key)
        if group is not None:
            group.visits += 1
        done: list[OpenGroup] = []
        place = (key[_ENCODING], key[_SLICE])
        if self._repetitions.setdefault(place, key[_REPETITION]) != key[_REPETITION]:
            if group is not None:
                self._repetitions_interleave = True
            elif not self._repetitions_interleave:
                done = [
                    other
                    for at, other in groups.items()
                    if (at[_ENCODING], at[_SLICE]) == place
                    and at[_REPETITION] != key[_REPETITION]
                    and self.is_worth(other)
                ]
            self._repetitions[place] = key[_REPETITION]
        previous = groups.get(self._current) if self._current is not None else None
        if previous is not None and previous not in done and previous.visits == 1 and previous.is_complete():
            done.append(previous)
        self._current = key
        return done

    def end(self, key: Key, flags: int, average: int, groups: Mapping[Key, OpenGroup]) -> list[OpenGroup]:
        """Take note of LAST flags on a readout of `key`, whose group may be open or handed on already.

        Returns:
            Groups that are complete because the flags say so.
        """
        if not self._flags_are_trusted:
            return []
        done = [other for at, other in groups.items() if at != key and _ends(flags, key, at) and other.is_complete()]
        group = groups.get(key)
        if group is not None:
            group.flagged_average = average if group.flagged_average is None else max(average, group.flagged_average)
            progress = group.progress()
            if average >= group.grid.last_average and progress.fraction >= (
                FLAG_FRACTION if progress.promised > 1 else 1
            ):
                done.insert(0, group)
        return done

    def follow(self, group: OpenGroup, least_average: int) -> None:
        """Take note that lines with at least this average counter are placed in the group."""
        if group.flagged_average is not None and least_average <= group.flagged_average:
            self.distrust_flags()

    def distrust_flags(self) -> None:
        """Ignore LAST flags from now on: lines came after one."""
        self._flags_are_trusted = False
        self._ledger.warn("flags", "LAST flags are set on lines that are not the last; they are ignored from here on")

    def is_worth(self, group: OpenGroup) -> bool:
        """Whether an unfinished group is worth reconstructing: flagged as ended, or with the least fraction."""
        is_flagged = group.flagged_average is not None and self._flags_are_trusted
        return group.placed > 0 and (is_flagged or group.progress().fraction >= self._min_fraction)


def _ends(flags: int, key: Key, other: Key) -> bool:
    """Whether LAST flags on a readout of `key` end the group `other` as well."""
    if flags & AcquisitionFlag.LAST_IN_MEASUREMENT.mask:
        return True
    if key[_REPETITION] != other[_REPETITION]:
        return False
    return bool(flags & AcquisitionFlag.LAST_IN_REPETITION.mask) or key[: _SLICE + 1] == other[: _SLICE + 1]
