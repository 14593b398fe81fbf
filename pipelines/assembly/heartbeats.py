"""Where in its heartbeat each readout lies, and which heartbeats are used. Times in seconds; knows no readouts.

1. The cardiac phase is linear: the part of the RR interval that has passed since its first trigger. Other mappings (a
   systole of fixed length) are not offered.
2. A beat is used when its RR interval differs from the median by no more than the window. The median is over the first
   `LEARNED` intervals for those themselves, later over the last `REMEMBERED` before the beat, rejected ones included:
   single early or dropped beats do not move it, and a changed heart rate is followed.
3. Before the first trigger, and behind the last one of the whole scan, the heart is taken to have beaten with the
   median interval, once. Further away the phase is not known.
4. When a trigger is overdue (the median and the window have passed without one), the readouts since the last trigger
   are given up: either a trigger was missed, or the heart paused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.triggers import Triggers

LEARNED: Final = 5
REMEMBERED: Final = 15


class Verdict(IntEnum):
    """What is to become of a readout."""

    PENDING = 0
    """Its heartbeat is not known yet."""
    KEPT = 1
    ARRHYTHMIC = 2
    UNGATED = 3


class Heartbeats:
    """The heartbeats between triggers, as they become known."""

    def __init__(self, window: float) -> None:
        """No heartbeats yet; `window` is the part of the median by which an interval may differ from it."""
        self._window = window
        self._triggers = np.zeros(0)
        self._intervals: list[float] = []
        self._verdicts: list[Verdict] = []
        self._known_until_s = -np.inf
        self._is_overdue = False
        self._is_final = False

    @property
    def are_known(self) -> bool:
        """Whether there are enough to tell a usual one; at the end one is."""
        return len(self._verdicts) > 0

    def update(self, triggers: Triggers, *, is_final: bool) -> None:
        """Take the triggers known by now, of which those before are the first; at the end nothing stays pending."""
        if len(triggers.times_s) > len(self._triggers):
            self._triggers = np.array(triggers.times_s)
            self._intervals = np.diff(self._triggers).tolist()
        self._known_until_s, self._is_final = triggers.known_until_s, is_final
        if len(self._intervals) < (1 if is_final else LEARNED):
            return
        for beat in range(len(self._verdicts), len(self._intervals)):
            median_s = self.median_s(beat)
            is_usual = abs(self._intervals[beat] - median_s) <= self._window * median_s + 1e-9
            self._verdicts.append(Verdict.KEPT if is_usual else Verdict.ARRHYTHMIC)
        open_s = self._known_until_s - float(self._triggers[-1])
        self._is_overdue = open_s > (1 + self._window) * self.median_s(len(self._intervals)) + 1e-9

    def median_s(self, beat: int) -> float:
        """Median RR interval that a beat is held against; beat -1 is the one before the first trigger."""
        before = self._intervals[:LEARNED] if beat < LEARNED else self._intervals[max(beat - REMEMBERED, 0) : beat]
        return float(np.median(before))

    def count(self, last: int | None = None) -> tuple[int, int]:
        """RR intervals used and rejected, up to a beat or in all."""
        verdicts = self._verdicts if last is None else self._verdicts[: last + 1]
        n_used = verdicts.count(Verdict.KEPT)
        return n_used, len(verdicts) - n_used

    def place(self, times_s: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray[np.intp]]:
        """Where readouts lie.

        Args:
            times_s: `(n,)` when they were measured.

        Returns:
            The verdict on each (`Verdict`); the cardiac phase of those kept, in [0, 1); the beat, from -1.
        """
        verdicts = np.full(len(times_s), Verdict.PENDING, np.int8)
        phases = np.zeros(len(times_s))
        beats = np.searchsorted(self._triggers, times_s, side="right") - 1
        if not self.are_known:
            return verdicts, phases, beats
        decided, n = np.array(self._verdicts, np.int8), len(self._intervals)
        inside = (beats >= 0) & (beats < len(decided))
        starts, lengths = self._triggers[beats[inside]], np.array(self._intervals)[beats[inside]]
        verdicts[inside] = decided[beats[inside]]
        phases[inside] = (times_s[inside] - starts) / lengths
        before = beats < 0
        phases[before] = 1 - (self._triggers[0] - times_s[before]) / self.median_s(-1)
        verdicts[before] = np.where(phases[before] >= 0, Verdict.KEPT, Verdict.UNGATED)
        behind = beats == n
        if self._is_overdue:
            verdicts[behind & (times_s <= self._known_until_s)] = Verdict.ARRHYTHMIC
            if self._is_final:
                verdicts[behind & (times_s > self._known_until_s)] = Verdict.UNGATED
        elif self._is_final:
            phases[behind] = (times_s[behind] - self._triggers[-1]) / self.median_s(n)
            verdicts[behind] = np.where(phases[behind] < 1, Verdict.KEPT, Verdict.UNGATED)
        return verdicts, phases, beats
