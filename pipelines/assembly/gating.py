"""Retrospective gating: readouts of a free-running cine are sorted into cardiac phases on their way to the assembler.

Stands where the assembler stands and has its methods. Readouts wait here, in a copy, until their heartbeat is known;
then they go on in the order of the stream, those of the image with the counter `phase` rewritten to their bin: bin b of
N holds cardiac phases b/N to (b+1)/N of the RR interval. Noise, calibration and navigators go on unchanged at their
place between them. Nothing depends on how the stream was cut, or how waveforms came between readouts.

What else is rewritten, and why:

- LAST flags are cleared: they end what the scanner counted, not a bin.
- Where the header counts no phases, the counter `repetition` numbers the frames of a real-time scan; a bin has readouts
  of all of them, so it becomes 0.
- The header has phases 0 to N-1, and so many averages that no bin is full: every line that falls into a bin is summed.
  Groups are handed on when the stream has moved on to another slice or repetition, or at CLOSE.

Without heartbeats the scan is reconstructed by the scanner's own counters, with a warning and a note on every image:
a radiographer who sees a blurred heart beside that note can act; one who gets nothing has to repeat the breath-hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import SlotSource
from pipelines.assembly.frame import Group, Grouping, NoiseCovariance
from pipelines.assembly.heartbeats import Heartbeats, Verdict
from pipelines.assembly.ledger import Fate, Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.routing import LAST, joins_image
from pipelines.assembly.triggers import TriggerSources
from pipelines.assembly.view_sharing import share_views
from pipelines.assembly.waiting import Held, cut, equal_runs, n_bytes_of, places
from pipelines.assembly.waveforms import WaveformStore
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import TICK_S, Acquisitions, Waveform, seconds_of
from pipelines.scan_header import CalibrationMode, Limit, ScanHeader

_NOT_LAST: Final = np.uint64(~LAST & 0xFFFF_FFFF_FFFF_FFFF)
_ENDLESS: Final = Limit(0, 65_534, 0)

AT_ONCE_BYTES: Final = 8 << 20
"""Readouts that go on at one call, 20 to 50 ms of work: once a usual RR interval is known, seconds of readouts may."""

Place = tuple[int, int]
"""Slice and repetition: what a free-running scan measures in one go."""


@dataclass(frozen=True, slots=True)
class Gating:
    """What is wanted; the parameters of the same names in `pipelines.parameters.Parameters`."""

    cardiac_phases: int
    source: str = "auto"
    rr_window: float = 0.25
    view_sharing: int = 0


class GatedAssembly:
    """Assembles one scan into cardiac phases; the interface of `Assembler`."""

    def __init__(
        self,
        scan: ScanHeader,
        groupings: tuple[Grouping, Grouping],
        slots: SlotSource,
        limits: AssemblyLimits,
        gating: Gating,
        noise: NoiseCovariance | None = None,
    ) -> None:
        """An assembly without any readout; `noise` as for `Assembler`, groupings without gating and with it.

        Raises:
            AssemblyError, BudgetError: as `Assembler`; also when all phases of one slice are more than the limits
                allow.
        """
        self._scan = scan
        self._gating = gating
        self._slots = slots
        self._limits = limits
        self._given_noise = noise
        self._ledger = Ledger()
        self._waveforms = WaveformStore(limits.max_waveform_bytes, self._ledger)
        self._merges_repetitions = not any(_counts_phases(encoding.limits) for encoding in scan.encodings)
        self._groupings = groupings
        self._sources = TriggerSources(gating.source, self._ledger)
        self._heartbeats = Heartbeats(gating.rr_window)
        self._held: deque[Held] = deque()
        self._held_bytes = 0
        self._reference: int | None = None
        self._is_gating = True
        self._is_final = False
        self._beat = -1
        self._place: Place | None = None
        self._places: set[Place] = set()
        self._places_interleave = False
        self._ready: list[Group] = []
        for encoding in scan.encodings:
            x, y, z = encoding.encoded.matrix
            n_bytes = gating.cardiac_phases * x * y * z * (scan.receiver_channels or 1) * 8
            if n_bytes > limits.max_open_bytes:
                raise BudgetError(
                    f"{gating.cardiac_phases} cardiac phases of {x} x {y} x {z} with {scan.receiver_channels or 1} "
                    f"channels need {n_bytes} bytes, the limit is {limits.max_open_bytes}"
                )
        self._assembler = self._new_assembler()

    # -- what the session calls --------------------------------------------------------------------------------------

    def add(self, batch: Acquisitions) -> list[Group]:
        """Take readouts of one shape; those whose heartbeat is not known yet are copied.

        Returns:
            Groups that are complete now; the caller releases them.

        Raises:
            AssemblyError, BudgetError: as `Assembler.add`; also when too much waits for its heartbeat.
        """
        if len(batch):
            self._hold(batch)
            self._release()
        return self.take_ready()

    def add_waveform(self, waveform: Waveform) -> None:
        """Keep a waveform and look for heartbeats in it; what they complete comes with the next readout."""
        self._waveforms.add(waveform)
        stamp = np.asarray(waveform.header["time_stamp"])
        self._sources.add_waveform(float(seconds_of(stamp, self._reference_for(int(stamp)))), waveform)

    def finish(self) -> list[Group]:
        """Sort and hand on what is left, at CLOSE.

        Raises:
            AssemblyError: as `Assembler.finish`.
        """
        self._is_final = True
        self._sources.finish()
        self._release(inf)
        self._take(self._assembler.finish())
        self._report()
        return self.take_ready()

    def abandon(self) -> None:
        """Give back all memory; groups already returned are the caller's."""
        for group in self.take_ready():
            group.release()
        self._held.clear()
        self._held_bytes = 0
        self._assembler.abandon()

    def take_ready(self) -> list[Group]:
        """Groups that were complete before a method raised; otherwise it has returned them."""
        self._take(self._assembler.take_ready())
        ready, self._ready = self._ready, []
        return ready

    def take_warnings(self) -> list[str]:
        """Sentences for the scanner since the last call, each kind once a scan."""
        return self._ledger.take_warnings() + self._assembler.take_warnings()

    @property
    def counts(self) -> Mapping[str, int]:
        """Readouts by what became of them (`Fate`); after `finish` their sum is the number of readouts that came."""
        return {name: number + self._ledger.counts[Fate(name)] for name, number in self._assembler.counts.items()}

    @property
    def noise(self) -> NoiseCovariance | None:
        """What the scan's own noise readouts say so far."""
        return self._assembler.noise

    @property
    def bytes_held(self) -> int:
        """Memory of the assembler and of readouts that wait."""
        return self._held_bytes + self._assembler.bytes_held

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _hold(self, batch: Acquisitions) -> None:
        headers, trajectory, n_bytes = batch.headers, batch.trajectory, n_bytes_of(batch)
        if self._held_bytes + n_bytes + self._assembler.bytes_held > self._limits.max_open_bytes:
            self._make_room(n_bytes)
        is_gated = np.zeros(len(batch), np.bool_)
        if batch.n_coils and batch.n_samples:
            for number in np.unique(headers["encoding_space_ref"]).tolist():
                is_here = headers["encoding_space_ref"] == number
                is_gated[is_here] = joins_image(headers["flags"][is_here], is_embedded=self._is_embedded(number))
        stamps = headers["acquisition_time_stamp"]
        times_s = seconds_of(stamps, self._reference_for(int(stamps[0])))
        self._sources.add_readouts(times_s[is_gated], headers["physiology_time_stamp"][is_gated, 0])
        copy = Acquisitions(
            headers.copy(), np.array(batch.samples), None if trajectory is None else np.array(trajectory)
        )
        self._held.append(Held(copy, is_gated, times_s))
        self._held_bytes += n_bytes

    def _make_room(self, n_bytes: int) -> None:
        """Let readouts go on that need not wait, and all of them when no heartbeat can be hoped for.

        Raises:
            BudgetError: heartbeats are known, and still there is no room.
        """
        if self._is_gating and not self._heartbeats.are_known:
            self._give_up("memory for waiting readouts is used up")
        self._release(inf)
        if self._held_bytes + n_bytes + self._assembler.bytes_held > self._limits.max_open_bytes:
            raise BudgetError(
                f"{self._held_bytes + n_bytes} bytes of readouts that wait for their heartbeat and "
                f"{self._assembler.bytes_held} bytes of unfinished groups; the limit is {self._limits.max_open_bytes}"
            )

    def _reference_for(self, stamp: int) -> int:
        if self._reference is None:
            self._reference = stamp
        return self._reference

    def _is_embedded(self, number: int) -> bool:
        encodings = self._scan.encodings
        return number < len(encodings) and encodings[number].calibration_mode is CalibrationMode.EMBEDDED

    # -- going on ----------------------------------------------------------------------------------------------------

    def _release(self, most_bytes: float = AT_ONCE_BYTES) -> None:
        """Let readouts go on from the head of the queue, as far as their heartbeats are known."""
        if self._is_gating:
            triggers = self._sources.triggers
            if triggers is not None:
                self._heartbeats.update(triggers, is_final=self._is_final)
            if not self._heartbeats.are_known:
                if not self._is_final:
                    return
                if any(held.is_gated.any() for held in self._held):
                    self._give_up("at least two are needed")
        while self._held and most_bytes > 0 and self._release_from(self._held[0]):
            n_bytes = n_bytes_of(self._held.popleft().batch)
            self._held_bytes -= n_bytes
            most_bytes -= n_bytes

    def _release_from(self, held: Held) -> bool:
        """Let readouts of one batch go on; whether all of them have."""
        start = held.start
        headers, is_gated = held.batch.headers[start:], held.is_gated[start:]
        if not self._is_gating:
            headers["flags"][is_gated] &= np.uint64(~LAST & 0xFFFF_FFFF_FFFF_FFFF)
            held.start = len(held.batch)
            for part in equal_runs(places(headers), is_gated):
                place = places(headers[part])[0] if is_gated[part.start] else None
                self._hand_on(cut(held.batch, part, start), place)
            return True
        verdicts, phases, beats = self._heartbeats.place(held.times_s[start:])
        pending = np.flatnonzero((verdicts == Verdict.PENDING) & is_gated)
        stop = int(pending[0]) if len(pending) else len(headers)
        held.start = start + stop
        headers, is_gated, verdicts, beats = headers[:stop], is_gated[:stop], verdicts[:stop], beats[:stop]
        self._rewrite(headers, is_gated, phases[:stop])
        verdicts[~is_gated] = Verdict.KEPT
        for part in equal_runs(places(headers), beats, verdicts, is_gated):
            if verdicts[part.start] == Verdict.KEPT:
                place = places(headers[part])[0] if is_gated[part.start] else None
                self._hand_on(cut(held.batch, part, start), place)
                self._beat = int(beats[part.start]) if place is not None else self._beat
            else:
                self._leave_out(Verdict(int(verdicts[part.start])), part.stop - part.start)
        return held.start == len(held.batch)

    def _rewrite(self, headers: NDArray[np.void], is_gated: NDArray[np.bool_], phases: NDArray[np.float64]) -> None:
        n = self._gating.cardiac_phases
        counters = headers["idx"]
        counters["phase"][is_gated] = np.clip(np.floor(phases[is_gated] * n + 1e-9), 0, n - 1)
        if self._merges_repetitions:
            counters["repetition"][is_gated] = 0
        headers["flags"][is_gated] &= np.uint64(~LAST & 0xFFFF_FFFF_FFFF_FFFF)

    def _hand_on(self, batch: Acquisitions, place: NDArray[np.int64] | None) -> None:
        """Give readouts to the assembler, and end the slice before when they are of another."""
        if place is not None:
            at: Place = (int(place[0]), int(place[1]))
            if at != self._place:
                self._places_interleave |= at in self._places
                if self._place is not None and not self._places_interleave:
                    self._take(self._assembler.end(*self._place))
                self._place = at
                self._places.add(at)
        self._take(self._assembler.add(batch))

    def _leave_out(self, verdict: Verdict, number: int) -> None:
        if verdict is Verdict.ARRHYTHMIC:
            text = (
                f"heartbeats differ from the median RR interval by more than {self._gating.rr_window:.0%}; "
                "readouts of such beats are left out"
            )
            self._ledger.count(Fate.ARRHYTHMIC, number, text)
        else:
            text = "readouts more than one heartbeat before the first or after the last trigger are left out"
            self._ledger.count(Fate.UNGATED, number, text)

    def _give_up(self, why: str) -> None:
        """Go on without gating."""
        others = ", ".join(source.value for source in self._sources.others())
        wanted = "any source" if self._gating.source == "auto" else f"the source '{self._gating.source}'"
        self._ledger.warn(
            "gating",
            f"no heartbeats were found in {wanted} ({why}): images are NOT gated, phases are those that the scanner "
            f"counted{f'; heartbeats are in: {others}' if others else ''}",
        )
        self._is_gating = False
        self._assembler = self._new_assembler()

    def _new_assembler(self) -> Assembler:
        encodings = []
        for encoding in self._scan.encodings:
            limits = encoding.limits | {"average": _ENDLESS}
            if self._is_gating:
                limits["phase"] = Limit(0, self._gating.cardiac_phases - 1, 0)
                if self._merges_repetitions:
                    limits["repetition"] = Limit(0, 0, 0)
            encodings.append(replace(encoding, limits=limits))
        is_shared = self._is_gating and self._gating.view_sharing > 0
        allowed = replace(self._limits, min_complete_fraction=0.0) if is_shared else self._limits
        scan = replace(self._scan, encodings=tuple(encodings))
        grouping = self._groupings[self._is_gating]
        return Assembler(scan, grouping, self._slots, allowed, self._given_noise, self._waveforms)

    # -- coming back -------------------------------------------------------------------------------------------------

    def _take(self, groups: list[Group]) -> None:
        """Say in the groups how they were gated."""
        if not groups:
            return
        if not self._is_gating:
            notes = {"ReconGating": "none", "ReconDegraded": "true"}
            self._ready += [replace(group, notes={**group.notes, **notes}) for group in groups]
            return
        if self._gating.view_sharing:
            groups, n_left_out = share_views(
                groups, self._gating.cardiac_phases, self._gating.view_sharing, self._limits.min_complete_fraction
            )
            if n_left_out:
                self._ledger.warn("shared", f"{n_left_out} cardiac phases were too incomplete to reconstruct")
        self._check_phases(groups)
        # complete together, they are in the order in which their first readouts came: the first may be any phase
        self._ready += [self._noted(group) for group in sorted(groups, key=lambda group: group.key)]

    def _noted(self, group: Group) -> Group:
        """The group with the delay of each bin's centre in its headers, and what DICOM tells of gated images."""
        n, median_s = self._gating.cardiac_phases, self._heartbeats.median_s(self._beat)
        headers = group.headers.copy()
        delays_s = (headers["idx"]["phase"] + 0.5) / n * median_s
        headers["physiology_time_stamp"][:, 0] = np.rint(delays_s / TICK_S)
        n_used, n_rejected = self._heartbeats.count(self._beat)
        notes = {
            "ReconGating": "unknown" if self._sources.chosen is None else self._sources.chosen.value,
            "CardiacNumberOfImages": str(n),
            "NominalInterval": f"{median_s * 1e3:.0f}",
            "IntervalsAcquired": str(n_used + n_rejected),
            "IntervalsRejected": str(n_rejected),
        }
        return replace(group, headers=headers, notes={**group.notes, **notes})

    def _check_phases(self, groups: list[Group]) -> None:
        """Warn of phases without an image: their number is what the radiographer asked for."""
        came: dict[tuple[int, int, int, int, int], int] = {}
        for group in groups:
            key = (group.key.encoding, group.key.slice, group.key.contrast, group.key.repetition, group.key.set)
            came[key] = came.get(key, 0) + int((group.counts > 0).any(axis=(1, 2)).sum())
        for key, number in came.items():
            if number < self._gating.cardiac_phases:
                text = (
                    f"slice {key[1]}: only {number} of {self._gating.cardiac_phases} cardiac phases have enough lines; "
                    "fewer phases or a longer scan would fill all"
                )
                self._ledger.warn("phases", text)

    def _report(self) -> None:
        """Say how many heartbeats were used.

        Raises:
            AssemblyError: readouts for images came, but none lies in a heartbeat that can be used.
        """
        left_out = self._ledger.counts[Fate.ARRHYTHMIC] + self._ledger.counts[Fate.UNGATED]
        n_used, n_rejected = self._heartbeats.count()
        if n_rejected and self._is_gating:
            text = f"{n_rejected} of {n_used + n_rejected} heartbeats were left out"
            if n_rejected > n_used:
                text += "; check the electrodes, or use another source of triggers or a wider window"
            self._ledger.warn("heartbeats", text)
        if left_out and not self._assembler.counts[Fate.IMAGING]:
            raise AssemblyError(f"none of {left_out} readouts lies in a heartbeat that can be used")


def _counts_phases(limits: Mapping[str, Limit]) -> bool:
    return "phase" in limits and limits["phase"].maximum > limits["phase"].minimum
