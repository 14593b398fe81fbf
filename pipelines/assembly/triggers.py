"""When the heart beat: triggers of a scan as they become known, from the readouts' time stamps or from a waveform.

What real streams have (siemens_to_ismrmrd, MRD document "Physiological Waveforms"; ticks are 2.5 ms):

- `physiology_time_stamp[0]` of a readout counts ticks since the last trigger and falls back at every trigger.
- A waveform's samples are uint32. Siemens' ECG (id 0) has up to four leads, its pulse wave (id 1) one channel, and one
  channel more, the last, which is zero but where the scanner found a beat. The header names that channel too, but the
  converter writes 4 even for fewer leads, so the samples tell. Ids 5 to 9 are from the learning phase before the scan,
  ids from 1024 on are custom: no gating from those.

Each source tells what it will never change: triggers in their order, and until when there are no others.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.ledger import Ledger
from pipelines.assembly.waveforms import duration_s
from pipelines.mrd import TICK_S, Waveform
from pipelines.physiology import MAX_SAMPLE_TIME_S, BeatDetector, Kind

LEAST_INTERVAL_S: Final = 0.2
"""Triggers closer than this (300 beats a minute) are one."""
JOIN_S: Final = 0.02
"""Waveforms whose ends are this close are one signal; stamps are 2.5 ms, sample times are rounded."""
REORDER_S: Final = 5.0
"""How much of a waveform has to have come behind a gap before what is missing is given up."""
LEARN_S: Final = 4.0
"""Beginning of a waveform that tells whether its last channel holds triggers."""
_MOST_MARKED: Final = 0.5
"""Part of the samples of a trigger channel that are not zero, at most."""


class Source(StrEnum):
    """Where triggers come from."""

    TRIGGER = "trigger"
    ECG = "ecg"
    PULSE = "pulse"


class Triggers(Protocol):
    """Triggers as they become known.

    Attributes:
        times_s: triggers, rising.
        known_until_s: before this time there are no others; what comes next cannot overlap by more than `JOIN_S`.
    """

    times_s: list[float]
    known_until_s: float


class StampTriggers:
    """Triggers from the trigger time stamps of readouts in the order of the stream.

    Attributes:
        settled_s: time of the readout that showed the second trigger; None before.
    """

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.settled_s: float | None = None
        self.known_until_s = -np.inf
        self._last: tuple[float, int] | None = None

    def add(self, times_s: NDArray[np.float64], stamps: NDArray[np.uint32]) -> None:
        """Take the next readouts: when they were measured, and their ticks since the trigger."""
        for time_s, ticks in zip(times_s.tolist(), stamps.tolist(), strict=True):
            trigger_s = round(time_s - ticks * TICK_S, 6)
            if self._last is None or not self.times_s:
                is_new = ticks > 0  # counts at all, and so says when it began to
            else:
                # Time that passed without the stamp counting it: a beat that no readout saw the start of.
                skipped_s = (time_s - self._last[0]) - (ticks - self._last[1]) * TICK_S
                is_new = ticks < self._last[1] or (ticks > 0 and skipped_s > LEAST_INTERVAL_S)
            if is_new and (not self.times_s or trigger_s - self.times_s[-1] >= LEAST_INTERVAL_S):
                self.times_s.append(trigger_s)
                if len(self.times_s) == 2:
                    self.settled_s = time_s
            self._last = (time_s, ticks)
            self.known_until_s = max(self.known_until_s, time_s)


@dataclass(slots=True)
class _Signal:
    """A waveform without gaps, as it grows.

    Attributes:
        sample_time_s: of each sample.
        starts: first sample and time of each piece; each has its own time stamp, so that clocks cannot drift apart.
        n: samples so far.
    """

    sample_time_s: float
    starts: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    n: int = 0

    def time_s(self, sample: int) -> float:
        """When a sample was taken."""
        first, start_s = self.starts[0]
        for first, start_s in reversed(self.starts):  # noqa: B007 - the piece it ends at is used
            if first <= sample:
                break
        return start_s + (sample - first) * self.sample_time_s


class WaveformTriggers:
    """Triggers from the waveforms of one id: the scanner's own in the last channel, else beats found in the others.

    Which of the two is settled by the first `LEARN_S` of the scan and holds for all of it. A gap in the waveform starts
    the search anew; waveforms that come late by more than `REORDER_S` are left out.
    """

    def __init__(self, kind: Kind, ledger: Ledger) -> None:
        self.times_s: list[float] = []
        self.known_until_s = -np.inf
        self._kind = kind
        self._name = kind.name.lower()
        self._ledger = ledger
        self._format: tuple[int, float] | None = None
        self._waiting: list[tuple[float, int, Waveform]] = []
        self._n_added = 0
        self._signal: _Signal | None = None
        self._has_marks: bool | None = None
        self._learning: list[NDArray[np.uint32]] = []
        self._is_marked = False
        self._detector: BeatDetector | None = None
        self._n_taken = 0  # samples searched for marks, or beats of the detector

    def add(self, start_s: float, waveform: Waveform) -> None:
        """Take a waveform that starts at a time."""
        channels, n = waveform.samples.shape
        sample_time_s = float(waveform.header["sample_time_us"]) * 1e-6
        if not (0 < sample_time_s <= MAX_SAMPLE_TIME_S) or not channels:
            text = f"{self._name} waveforms with {channels} channels of {sample_time_s * 1e6:g} us cannot be gated with"
            self._ledger.warn(f"{self._name} sample time", text)
            return
        self._format = self._format or (channels, sample_time_s)
        if channels != self._format[0] or abs(sample_time_s / self._format[1] - 1) > 0.01:
            text = f"{self._name} waveforms changed to {channels} channels of {sample_time_s * 1e6:g} us; left out"
            self._ledger.warn(f"{self._name} format", text)
            return
        if not n:
            return
        self._n_added += 1
        insort(self._waiting, (start_s, self._n_added, waveform))
        self._take_waiting(REORDER_S)

    def finish(self) -> None:
        """Take note that no more waveforms come."""
        self._take_waiting(0.0)
        self._end_signal()

    def _take_waiting(self, reorder_s: float) -> None:
        """Take what continues the signal; over a gap, only when enough has come behind it."""
        while self._waiting:
            start_s, _, waveform = self._waiting[0]
            end_s = None if self._signal is None else self._signal.time_s(self._signal.n)
            if end_s is not None and start_s > end_s + JOIN_S:
                behind_s = self._waiting[-1][0] + duration_s(self._waiting[-1][2]) - start_s
                if behind_s < reorder_s:
                    return
                self._end_signal()
            elif end_s is not None and start_s < end_s - JOIN_S:
                self._waiting.pop(0)
                self._ledger.warn(f"{self._name} order", f"{self._name} waveforms that overlap others are left out")
                continue
            self._waiting.pop(0)
            self._take(start_s, waveform)

    def _take(self, start_s: float, waveform: Waveform) -> None:
        if self._signal is None:
            self._signal = _Signal(float(waveform.header["sample_time_us"]) * 1e-6)
            self._is_marked = False
        self._signal.starts.append((self._signal.n, start_s))
        self._signal.n += waveform.samples.shape[1]
        if self._has_marks is not None:
            self._search(waveform.samples)
            return
        self._learning.append(waveform.samples)
        if self._signal.n * self._signal.sample_time_s >= LEARN_S:
            self._learn()

    def _learn(self) -> None:
        """Settle whether the last channel holds triggers, from the beginning; then search what has waited for that."""
        if not self._learning or self._signal is None:
            return
        samples = np.concatenate(self._learning, axis=1)
        self._learning = []
        marks = samples[-1, : max(round(LEARN_S / self._signal.sample_time_s), 1)] != 0
        n_rising = int(np.count_nonzero(marks[1:] & ~marks[:-1])) + int(marks[0])
        most = len(marks) * self._signal.sample_time_s / LEAST_INTERVAL_S + 1
        self._has_marks = len(samples) > 1 and 1 <= n_rising <= most and bool(marks.mean() <= _MOST_MARKED)
        self._search(samples)

    def _search(self, samples: NDArray[np.uint32]) -> None:
        if self._signal is None:
            return
        if self._has_marks:
            marks = samples[-1] != 0
            before = np.concatenate([[self._is_marked], marks[:-1]])
            first = self._n_taken
            for at in np.flatnonzero(marks & ~before).tolist():
                self._found(first + at)
            self._is_marked = bool(marks[-1])
            self._n_taken += len(marks)
            self.known_until_s = max(self.known_until_s, self._signal.time_s(self._n_taken) - JOIN_S)
            return
        if self._detector is None:
            self._detector = BeatDetector(self._signal.sample_time_s, self._kind)
        # Leads that go below zero are written as they are, so large numbers are negative ones. A last channel that is
        # always zero is harmless.
        self._detector.add(np.ascontiguousarray(samples).view(np.int32).astype(np.float64))
        self._take_beats()

    def _take_beats(self) -> None:
        if self._detector is not None and self._signal is not None:
            for beat in self._detector.beats[self._n_taken :]:
                self._found(beat)
            self._n_taken = len(self._detector.beats)
            self.known_until_s = max(self.known_until_s, self._signal.time_s(self._detector.known) - JOIN_S)

    def _end_signal(self) -> None:
        self._learn()
        if self._detector is not None:
            self._detector.finish()
            self._take_beats()
        if self._signal is not None:
            self.known_until_s = max(self.known_until_s, self._signal.time_s(self._signal.n))
        self._signal, self._detector, self._n_taken = None, None, 0

    def _found(self, sample: int) -> None:
        if self._signal is None:
            return
        # whole microseconds, like the times of readouts: what is at the same time must compare as equal
        time_s = round(self._signal.time_s(sample), 6)
        if not self.times_s or time_s - self.times_s[-1] >= LEAST_INTERVAL_S:
            self.times_s.append(time_s)


FEWEST_ECG: Final = 4
"""Triggers with which the ECG is chosen."""
FEWEST_PULSE: Final = 12
"""Triggers with which the pulse wave is chosen, as long as the ECG does not have enough of them."""
STAMPS_S: Final = 5.0
"""Readouts in which the trigger time stamp has to fall back at least once to be used."""


class TriggerSources:
    """All sources of a scan, and the one that gating uses.

    With `auto`, trigger time stamps come first: they are what the scanner itself triggers by, and are known at once.
    Whether they work is settled by the first `STAMPS_S` of readouts alone, and which waveform is used by waveforms
    alone, so that the choice does not depend on how the two kinds came between each other.
    """

    def __init__(self, wanted: str, ledger: Ledger) -> None:
        """Sources without data; `wanted` is `auto` or the name of a source."""
        self.chosen: Source | None = None if wanted == "auto" else Source(wanted)
        self._is_auto = wanted == "auto"
        self._stamps = StampTriggers()
        self._waveforms = {0: WaveformTriggers(Kind.ECG, ledger), 1: WaveformTriggers(Kind.PULSE, ledger)}
        self._first_s: float | None = None
        self._without_stamps = False
        self._waveform: Source | None = None

    @property
    def triggers(self) -> Triggers | None:
        """Those of the chosen source; None while none is."""
        return None if self.chosen is None else self._of(self.chosen)

    def add_readouts(self, times_s: NDArray[np.float64], stamps: NDArray[np.uint32]) -> None:
        """Take the next readouts of the image, as `StampTriggers.add` does."""
        self._stamps.add(times_s, stamps)
        if not self._is_auto or self._without_stamps or self.chosen is not None or not len(times_s):
            return
        if self._first_s is None:
            self._first_s = float(times_s[0])
        settled_s = self._stamps.settled_s
        if (self._stamps.known_until_s if settled_s is None else settled_s) > self._first_s + STAMPS_S:
            self._without_stamps = True
            self.chosen = self._waveform
        elif settled_s is not None:
            self.chosen = Source.TRIGGER

    def add_waveform(self, start_s: float, waveform: Waveform) -> None:
        """Take a waveform; other ids than those of ECG and pulse are left alone."""
        source = self._waveforms.get(int(waveform.header["waveform_id"]))
        if source is not None:
            source.add(start_s, waveform)
            self._choose_waveform(FEWEST_ECG, FEWEST_PULSE)

    def finish(self) -> None:
        """Take note that nothing more comes."""
        for source in self._waveforms.values():
            source.finish()
        self._choose_waveform(2, 2)
        if self._is_auto and self.chosen is None:
            self.chosen = self._waveform

    def others(self) -> list[Source]:
        """Sources with heartbeats other than the chosen one."""
        return [source for source in Source if source is not self.chosen and len(self._of(source).times_s) > 1]

    def _of(self, source: Source) -> Triggers:
        if source is Source.TRIGGER:
            return self._stamps
        return self._waveforms[0 if source is Source.ECG else 1]

    def _choose_waveform(self, fewest_ecg: int, fewest_pulse: int) -> None:
        if self._waveform is None:
            if len(self._waveforms[0].times_s) >= fewest_ecg:
                self._waveform = Source.ECG
            elif len(self._waveforms[1].times_s) >= fewest_pulse:
                self._waveform = Source.PULSE
        if self._is_auto and self._without_stamps and self.chosen is None:
            self.chosen = self._waveform
