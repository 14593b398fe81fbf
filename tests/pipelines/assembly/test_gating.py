"""Readouts of a free-running cine in their cardiac phases, against a plain account of each readout."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.assembly import make_assembly
from pipelines.assembly.frame import Group, Grouping
from pipelines.assembly.gating import GatedAssembly, Gating
from pipelines.assembly.limits import AssemblyLimits
from pipelines.errors import AssemblyError, BudgetError
from pipelines.mrd import AcquisitionFlag, Acquisitions, Waveform
from pipelines.scan_header import CalibrationMode, ScanHeader

if TYPE_CHECKING:
    Hearts = Any
    Streams = Any

F = AcquisitionFlag
N_LINES = 8
START_TICK = 14_400_000
REGULAR = [0, 200, 402, 600, 798, 1000, 1204, 1400, 1600, 1802, 2000]
EARLY = [0, 200, 402, 600, 798, 1000, 1204, 1330, 1600, 1802, 2000, 2200, 2400]
"""An early beat at 1330 and the pause behind it."""


def numbers(phase: float) -> Any:
    """K-space in small whole numbers that depend on the cardiac phase, so that sums do not depend on their order."""
    rng = np.random.default_rng(int(phase * 1e6))
    return rng.integers(-99, 99, (2, N_LINES, 6)) + 1j * rng.integers(-99, 99, (2, N_LINES, 6))


def assemble(
    streams: Streams,
    events: list[Acquisitions | Waveform],
    *,
    cuts: list[int] | None = None,
    scan: ScanHeader | None = None,
    limits: AssemblyLimits | None = None,
    grouping: Grouping = Grouping.SLICE,
    **parameters: object,
) -> tuple[list[Group], Any]:
    """All groups of a stream; readouts that follow each other come in one batch, but for the cuts."""
    assembly = make_assembly(
        scan or streams.scan(N_LINES), grouping, streams.Slots(), limits, {"cardiac_phases": 4, **parameters}
    )
    groups: list[Group] = []
    waiting: list[Acquisitions] = []
    for at, event in enumerate([*events, None]):
        if waiting and (not isinstance(event, Acquisitions) or at in (cuts or [])):
            for batch in streams.batches(waiting):
                groups += assembly.add(batch)
            waiting = []
        if isinstance(event, Acquisitions):
            waiting.append(event)
        elif event is not None:
            assembly.add_waveform(event)
    return groups + assembly.finish(), assembly


def sort_plainly(
    readouts: list[Acquisitions], triggers: list[int], n: int, window: float = 0.25
) -> tuple[dict[int, tuple[Any, Any]], Counter[str]]:
    """K-space and counts by phase, and fates, in whole ticks; beats are held against the median of all of them."""
    median = np.median(np.diff(triggers))
    out = {phase: (np.zeros((2, N_LINES, 6), np.complex64), np.zeros(N_LINES)) for phase in range(n)}
    fates: Counter[str] = Counter()
    for readout in readouts:
        tick = int(readout.headers["acquisition_time_stamp"][0]) - START_TICK
        line = int(readout.headers["idx"]["kspace_encode_step_1"][0])
        for start, stop in pairwise([triggers[0] - median, *triggers, triggers[-1] + median]):
            if start <= tick < stop:
                if abs(stop - start - median) > window * median:
                    fates["arrhythmic"] += 1
                else:
                    kspace, counts = out[int(n * (tick - start) // (stop - start))]
                    kspace[:, line] += readout.complex_samples()[0]
                    counts[line] += 1
                    fates["imaging"] += 1
                break
        else:
            fates["ungated"] += 1
    return out, fates


def check(groups: list[Group], expected: dict[int, tuple[Any, Any]]) -> None:
    assert [group.key.phase for group in groups] == sorted(
        phase for phase, (_, counts) in expected.items() if any(counts)
    )
    for group in groups:
        kspace, counts = expected[group.key.phase]
        np.testing.assert_array_equal(group.kspace[0, :, 0], kspace)
        np.testing.assert_array_equal(group.counts[0, 0], counts)


def fates(assembly: Any) -> dict[str, int]:
    return {name: number for name, number in assembly.counts.items() if number}


@pytest.mark.parametrize("triggers", [REGULAR, EARLY], ids=["regular", "early beat"])
@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize("source", ["trigger", "ecg", "pulse", "auto"])
def test_every_readout_is_summed_into_the_phase_that_a_plain_account_gives(
    streams: Streams, hearts: Hearts, triggers: list[int], n: int, source: str
) -> None:
    readouts = hearts.free_running(numbers, N_LINES, triggers, segment=4)
    number = 1 if source == "pulse" else 0
    events = [*hearts.waveforms(hearts.marks(triggers, triggers[-1] + 1), number=number), *readouts]
    groups, assembly = assemble(streams, events, cardiac_phases=n, gating=source)
    # the time stamps of readouts do not tell a trigger that no readout comes after
    known = triggers[:-1] if source in ("trigger", "auto") else triggers
    expected, expected_fates = sort_plainly(readouts, known, n)
    check(groups, expected)
    assert fates(assembly) == expected_fates
    assert all(group.is_complete for group in groups)
    assert {group.notes["ReconGating"] for group in groups} == {"trigger" if source == "auto" else source}


@settings(max_examples=40, deadline=None)
@given(data=st.data(), source=st.sampled_from(["trigger", "ecg", "auto"]), has_stamps=st.booleans())
def test_nothing_depends_on_how_the_stream_was_cut_or_waveforms_came_between_readouts(
    streams: Streams, hearts: Hearts, data: st.DataObject, source: str, has_stamps: bool
) -> None:
    triggers = data.draw(st.sampled_from([REGULAR, EARLY]))
    slices = [
        hearts.free_running(numbers, N_LINES, triggers, segment=4, with_stamps=has_stamps or source == "trigger")
        for _ in range(2)
    ]
    for readout in slices[1]:  # the second breath-hold, ten seconds later
        readout.headers["idx"]["slice"] = 1
        readout.headers["acquisition_time_stamp"] += 6000
    readouts = slices[0] + slices[1]
    for at in data.draw(st.lists(st.integers(0, len(readouts) - 1), max_size=4)):
        kind = data.draw(st.sampled_from([F.IS_NOISE_MEASUREMENT, F.IS_NAVIGATION_DATA, F.IS_PARALLEL_CALIBRATION]))
        readouts.insert(at, streams.readout(at % N_LINES, kind, seed=at))
    scan = streams.scan(N_LINES, mode=CalibrationMode.SEPARATE)
    again = [*triggers, *(tick + 6000 for tick in triggers)]
    waveforms = hearts.waveforms(hearts.marks(again, 6000 + triggers[-1] + 1), packet=data.draw(st.integers(50, 900)))
    first, account = assemble(streams, [*readouts, *waveforms], scan=scan, gating=source)
    events: list[Any] = list(readouts)
    places = sorted(
        data.draw(st.lists(st.integers(0, len(readouts)), min_size=len(waveforms), max_size=len(waveforms)))
    )
    for place, waveform in zip(reversed(places), reversed(waveforms), strict=True):
        events.insert(place, waveform)
    cuts = data.draw(st.lists(st.integers(0, len(events)), max_size=20))
    second, other = assemble(streams, events, cuts=cuts, scan=scan, gating=source)
    assert [fingerprint(group) for group in first] == [fingerprint(group) for group in second]
    assert account.counts == other.counts
    assert sum(account.counts.values()) == len(readouts)


def fingerprint(group: Group) -> tuple[object, ...]:
    """Everything but the waveforms, of which a group has those that came in time."""
    return (
        group.key,
        group.completion,
        group.is_complete,
        group.kspace.tobytes(),
        group.counts.tobytes(),
        group.headers.tobytes(),
        dict(group.notes),
        None if group.noise is None else group.noise.sums.tobytes(),
        None if group.calibration is None else group.calibration.kspace.tobytes(),
    )


def test_trigger_stamps_and_an_ecg_without_trigger_channel_agree_within_one_phase(
    streams: Streams, hearts: Hearts, rng: np.random.Generator
) -> None:
    triggers = [100, *(np.cumsum(rng.integers(300, 400, 14)) + 100).tolist()]

    def circle(phase: float) -> Any:
        return np.full((1, N_LINES, 6), np.exp(2j * np.pi * phase))

    readouts = hearts.free_running(circle, N_LINES, triggers)
    lead = hearts.ecg([tick * 0.0025 for tick in triggers], 0.0025, rng)
    waveforms = hearts.waveforms(np.round(2048 + 600 * lead)[None])
    for source in ("trigger", "ecg"):
        groups, _ = assemble(streams, [*waveforms, *readouts], cardiac_phases=20, gating=source)
        assert [group.key.phase for group in groups] == list(range(20))
        for group in groups:  # each sample is the unit vector of the phase it was measured at
            measured = group.counts[0, 0] > 0
            mean = group.kspace[0, 0, 0, measured, 3] / group.counts[0, 0, measured]
            away = np.angle(mean * np.exp(-2j * np.pi * (group.key.phase + 0.5) / 20)) / (2 * np.pi)
            assert np.abs(away).max() < 1 / 20
            assert np.abs(mean).min() > np.cos(2 * np.pi / 20)


def test_other_readouts_keep_their_place_between_those_of_the_image(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4)
    noise = [streams.readout(0, F.IS_NOISE_MEASUREMENT, seed=seed) for seed in range(3)]
    events = [noise[0], *readouts[:50], noise[1], *readouts[50:], noise[2]]
    groups, assembly = assemble(streams, events)
    assert fates(assembly) == {"imaging": len(readouts), "noise": 3}
    assert groups[0].noise.n_samples == 3 * 6  # as without gating: at CLOSE all have come
    assert assembly.noise.n_samples == 3 * 6


def test_embedded_calibration_lines_are_sorted_too(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4)
    for readout in readouts:
        if readout.headers["idx"]["kspace_encode_step_1"][0] in (3, 4):
            readout.headers["flags"] |= np.uint64(F.IS_PARALLEL_CALIBRATION.mask)
    groups, _ = assemble(streams, readouts, scan=streams.scan(N_LINES, mode=CalibrationMode.EMBEDDED))
    check(groups, sort_plainly(readouts, REGULAR, 4)[0])
    assert groups[0].calibration_lines[0].tolist() == [line in (3, 4) for line in range(N_LINES)]


def test_a_slice_is_handed_on_when_the_next_begins_and_the_rest_at_the_end(streams: Streams, hearts: Hearts) -> None:
    assembly = make_assembly(streams.scan(N_LINES), Grouping.SLICE, streams.Slots(), None, {"cardiac_phases": 4})
    came = []
    for slice_ in range(3):
        readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4, slice_=slice_)
        for readout in readouts:
            readout.headers["acquisition_time_stamp"] += 6000 * slice_
        groups = [group for batch in streams.batches(readouts) for group in assembly.add(batch)]
        came.append([(group.key.slice, group.key.phase) for group in groups])
    came.append([(group.key.slice, group.key.phase) for group in assembly.finish()])
    assert came == [[], [(0, n) for n in range(4)], [(1, n) for n in range(4)], [(2, n) for n in range(4)]]


def test_interleaved_slices_are_not_cut_to_pieces(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, [*range(0, 4801, 200)], segment=2)
    for readout in readouts:  # two beats, and so half the lines, of each of three slices in turn
        readout.headers["idx"]["slice"] = (int(readout.headers["acquisition_time_stamp"][0]) - START_TICK) // 400 % 3
    groups, assembly = assemble(streams, readouts)
    assert fates(assembly) == {"imaging": len(readouts)}
    assert [group.is_complete for group in groups] == [True] * 12


@pytest.mark.parametrize("counts_phases", [False, True])
def test_repetitions_are_frames_of_a_real_time_scan_unless_the_scanner_counts_phases(
    streams: Streams, hearts: Hearts, counts_phases: bool
) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4)
    for number, readout in enumerate(readouts):
        readout.headers["idx"]["repetition"] = number // (len(readouts) // 2)
    limits = {"repetition": (0, 1, 0), **({"phase": (0, 11, 0)} if counts_phases else {})}
    groups, _ = assemble(streams, readouts, scan=streams.scan(N_LINES, limits=limits))
    expected = [(repetition, phase) for repetition in range(1 + counts_phases) for phase in range(4)]
    assert [(group.key.repetition, group.key.phase) for group in groups] == expected


def test_headers_tell_the_delay_of_the_phase_and_notes_what_dicom_tells(streams: Streams, hearts: Hearts) -> None:
    groups, _ = assemble(streams, hearts.free_running(numbers, N_LINES, EARLY, segment=4))
    assert [int(group.headers["physiology_time_stamp"][0, 0]) for group in groups] == [25, 75, 125, 175]
    assert groups[0].scan.encodings[0].limits["phase"].maximum == 3
    assert {name: groups[0].notes[name] for name in ("NominalInterval", "CardiacNumberOfImages")} == {
        "NominalInterval": "500",
        "CardiacNumberOfImages": "4",
    }
    assert (groups[0].notes["IntervalsAcquired"], groups[0].notes["IntervalsRejected"]) == ("11", "2")


def test_arrhythmia_is_told_once_with_the_number_of_beats(streams: Streams, hearts: Hearts) -> None:
    _, assembly = assemble(streams, hearts.free_running(numbers, N_LINES, EARLY, segment=4))
    warnings = assembly.take_warnings()
    assert len(warnings) == 2
    assert "2 of 11 heartbeats were left out" in warnings[1]


@pytest.mark.parametrize("source", ["auto", "ecg"])
def test_without_heartbeats_the_scan_is_reconstructed_ungated_with_a_warning(
    streams: Streams, hearts: Hearts, source: str
) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4, with_stamps=source == "ecg")
    (group,), assembly = assemble(streams, readouts, gating=source)
    assert group.counts.sum() == len(readouts)
    assert (group.notes["ReconGating"], group.notes["ReconDegraded"]) == ("none", "true")
    (warning,) = assembly.take_warnings()
    assert "NOT gated" in warning
    assert ("heartbeats are in: trigger" in warning) == (source == "ecg")


def test_phases_without_gating_are_those_that_the_scanner_counted(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4, with_stamps=False)
    for number, readout in enumerate(readouts):
        readout.headers["idx"]["phase"] = number // 4 % 3
    scan = streams.scan(N_LINES, limits={"phase": (0, 2, 0)})
    groups, _ = assemble(streams, readouts, scan=scan, gating="pulse")
    assert [group.key.phase for group in groups] == [0, 1, 2]
    assert sum(group.counts.sum() for group in groups) == len(readouts)


def test_memory_for_readouts_without_heartbeats_is_bounded_and_the_scan_not_lost(
    streams: Streams, hearts: Hearts
) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4, with_stamps=False)
    limits = AssemblyLimits(max_open_bytes=100_000)
    assembly = GatedAssembly(
        streams.scan(N_LINES), (Grouping.SLICE, Grouping.SLICE), streams.Slots(), limits, Gating(4)
    )
    for readout in readouts:
        assembly.add(readout)
        assert assembly.bytes_held <= 100_000
    (group,) = assembly.finish()
    assert group.counts.sum() == len(readouts)
    assert "memory" in assembly.take_warnings()[0]


def test_readouts_that_go_on_bit_by_bit_make_the_same_groups(
    streams: Streams, hearts: Hearts, monkeypatch: pytest.MonkeyPatch
) -> None:
    readouts = hearts.free_running(numbers, N_LINES, EARLY, segment=4)
    cuts = list(range(0, len(readouts), 40))
    whole, account = assemble(streams, readouts, cuts=cuts)
    monkeypatch.setattr(GatedAssembly._release, "__defaults__", (1,))
    parts, other = assemble(streams, readouts, cuts=cuts)
    assert [fingerprint(group) for group in parts] == [fingerprint(group) for group in whole]
    assert other.counts == account.counts


def test_waveforms_that_stop_leave_no_endless_queue(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, [*range(0, 6000, 200)], segment=4, with_stamps=False)
    waveforms = hearts.waveforms(hearts.marks([*range(0, 6000, 200)], 2000))
    with pytest.raises(BudgetError, match="wait for their heartbeat"):
        assemble(
            streams,
            [*waveforms, *readouts],
            cuts=list(range(0, 9000, 100)),
            limits=AssemblyLimits(max_open_bytes=300_000),
            gating="ecg",
        )


def test_all_phases_of_a_slice_are_checked_against_the_limit_before_anything_is_taken(streams: Streams) -> None:
    scan = streams.scan(256, 512)
    with pytest.raises(BudgetError, match="256 cardiac phases"):
        make_assembly(
            scan, Grouping.SLICE, streams.Slots(), AssemblyLimits(max_open_bytes=1 << 27), {"cardiac_phases": 256}
        )


def test_a_scan_without_one_usable_beat_is_an_error(streams: Streams, hearts: Hearts) -> None:
    triggers = [0, 200, 800]
    readouts = hearts.free_running(numbers, N_LINES, triggers, segment=4)
    with pytest.raises(AssemblyError, match="none of 400 readouts"):
        assemble(streams, [*hearts.waveforms(hearts.marks(triggers, 801)), *readouts], rr_window=0.1, gating="ecg")


def test_only_noise_is_no_matter_of_heartbeats(streams: Streams) -> None:
    groups, assembly = assemble(streams, [streams.readout(0, F.IS_NOISE_MEASUREMENT, seed=n) for n in range(3)])
    assert groups == []
    assert fates(assembly) == {"noise": 3}
    assert "gated" not in " ".join(assembly.take_warnings())


def test_phases_with_too_few_lines_are_told(streams: Streams, hearts: Hearts) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4)
    sparse = [each for each in readouts if (int(each.headers["acquisition_time_stamp"][0]) - START_TICK) % 200 < 130]
    groups, assembly = assemble(streams, sparse)
    assert [group.key.phase for group in groups] == [0, 1, 2]
    assert any("only 3 of 4 cardiac phases" in text for text in assembly.take_warnings())


def test_abandoning_gives_back_all_memory(streams: Streams, hearts: Hearts) -> None:
    slots = streams.Slots()
    assembly = make_assembly(streams.scan(N_LINES), Grouping.SLICE, slots, None, {"cardiac_phases": 4})
    for waveform in hearts.waveforms(hearts.marks(REGULAR, 500)):
        assembly.add_waveform(waveform)
    for batch in streams.batches(hearts.free_running(numbers, N_LINES, REGULAR, segment=4)):
        assembly.add(batch)
    assert assembly.bytes_held > 0
    assembly.abandon()
    assert (assembly.bytes_held, slots.n_out) == (0, 0)


@pytest.mark.parametrize("empty", [None, 2])
def test_gated_phases_of_a_slice_make_one_cine_group(streams: Streams, hearts: Hearts, empty: int | None) -> None:
    readouts = hearts.free_running(numbers, N_LINES, REGULAR, segment=4)
    expected, _ = sort_plainly(readouts, REGULAR[:-1], 4)
    if empty is not None:  # nothing was measured in this quarter of each heartbeat
        ticks = [int(readout.headers["acquisition_time_stamp"][0]) - START_TICK for readout in readouts]
        in_phase = [sum((a <= t < b) * int(4 * (t - a) // (b - a)) for a, b in pairwise(REGULAR)) for t in ticks]
        readouts = [readout for readout, phase in zip(readouts, in_phase, strict=True) if phase != empty]
    (group,), _ = assemble(streams, readouts, grouping=Grouping.CINE, gating="trigger", view_sharing=1)
    phases = [phase for phase in range(4) if phase != empty]
    assert group.headers["idx"]["phase"].tolist() == phases
    for frame, phase in enumerate(phases):
        kspace, counts = expected[phase]
        np.testing.assert_array_equal(group.kspace[frame, :, 0], kspace)
        np.testing.assert_array_equal(group.counts[frame, 0], counts)


def test_without_cardiac_phases_readouts_go_straight_into_groups(streams: Streams) -> None:
    assembly = make_assembly(streams.scan(N_LINES), Grouping.SLICE, streams.Slots(), None, {"cardiac_phases": 0})
    assert isinstance(assembly, Assembler)
