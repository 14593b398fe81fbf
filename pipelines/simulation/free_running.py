"""Simulate a free-running cine: lines measured on and on while the heart beats, with the ECG beside them.

Nothing in the encoding counters says which cardiac phase a line belongs to: that follows from the time stamps
(`acquisition_time_stamp` since midnight, `physiology_time_stamp[0]` since the last R peak, both in ticks of 2.5 ms) or
from the waveform. Waveforms as Siemens converters write them: leads first, the trigger in the last channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import WAVEFORM_HEADER, Waveform
from pipelines.phantom import beating_heart
from pipelines.simulate import simulate
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation.plan import Plan, choose_lines
from pipelines.simulation.readouts import MEASUREMENT_UID, START_TICK, TICK_MS
from pipelines.simulation.scan import SimulatedScan

ECG_SAMPLE_US: Final = 2500.0
SAMPLES_PER_WAVEFORM: Final = 40
TRIGGER: Final = 1 << 14
"""Value of the trigger channel at an R peak."""

_BASELINE: Final = 2048
_LEAD_IN_S: Final = 0.3
"""The ECG is recorded from before the first readout, so that the R peak before it is seen."""


@dataclass(frozen=True, slots=True)
class Heart:
    """How the heart beats while lines are measured.

    Attributes:
        n_phases: instants of the heart cycle that the object has; readouts see the nearest.
        n_beats: heartbeats measured, the incomplete first and last left out.
        mean_interval_s: between R peaks.
        interval_spread: standard deviation of the interval, relative.
        ectopic_beats: numbers of beats that come after half the interval.
        lines_per_beat: lines that one beat measures over and over before the next beat goes on to the next lines
            (segmented); 0 for all lines in turn, whatever the heart does (real time).
        sends_time_since_trigger: whether readouts carry `physiology_time_stamp[0]`.
    """

    n_phases: int = 60
    n_beats: int = 16
    mean_interval_s: float = 0.9
    interval_spread: float = 0.05
    ectopic_beats: tuple[int, ...] = ()
    lines_per_beat: int = 0
    sends_time_since_trigger: bool = True


@dataclass(frozen=True, slots=True)
class FreeRunningScan:
    """A free-running scan and the heart behind it.

    Attributes:
        scan: the stream; its truth has the instants of the heart cycle as frames.
        r_peaks_s: R peaks since the first readout of an image; the first is negative.
        times_s: of the image readouts.
        phases: part of the heart cycle that is over at each image readout, 0 to 1.
    """

    scan: SimulatedScan
    r_peaks_s: NDArray[np.float64]
    times_s: NDArray[np.float64]
    phases: NDArray[np.float64]


def simulate_free_running(
    protocol: Protocol | None = None,
    heart: Heart | None = None,
    *,
    anatomy: NDArray[np.inexact] | None = None,
    shape: tuple[int, int] = (96, 96),
) -> FreeRunningScan:
    """Simulate a free-running scan of one slice.

    Args:
        protocol: what is measured; repetitions, averages and frames do not apply.
        heart: how it beats.
        anatomy: `(phases, y, x)` or `(phases, slices, y, x)` of one heart cycle instead of `beating_heart`; slices are
            measured one after the other, each through all beats.
        shape: y, x of the chest that is simulated otherwise.
    """
    protocol, heart = protocol or Protocol(), heart or Heart()
    protocol = replace(protocol, frame_counter=FrameCounter.PHASE, frame_counters=(), repetitions=1, averages=1)
    frames = beating_heart(heart.n_phases, *shape) if anatomy is None else anatomy
    frames = frames[:, None] if frames.ndim == 3 else frames
    n_phases, n_slices, n_y, _ = frames.shape
    rng = np.random.default_rng([protocol.seed, 4])
    lines, calibration = choose_lines(protocol, 0, n_y)
    lines = np.union1d(lines, calibration) if protocol.is_accelerated else lines
    beats = _intervals(heart, n_slices, rng)
    r_peaks = np.concatenate([[0.0], np.cumsum(beats)]) - 0.4 * beats[0]
    interval_s = protocol.repetition_time_ms * 1e-3
    times = np.arange(int(np.floor(r_peaks[-1] / interval_s)), dtype=np.float64) * interval_s
    beat = np.searchsorted(r_peaks, times, side="right") - 1
    phases = (times - r_peaks[beat]) / beats[beat]
    slices = np.minimum(beat // heart.n_beats, n_slices - 1)
    rows = _rows(lines, beat % heart.n_beats, heart.lines_per_beat)

    def edit(plan: Plan) -> Plan:
        # Any row will do as a pattern; flags of loops make no sense here.
        plan = np.repeat(plan[~plan["is_separate"]][:1], len(times))
        plan["flags"] = 0
        plan["frame"], plan["slice"], plan["line"] = np.floor(phases * n_phases), slices, rows
        plan["segment"] = 0
        return plan

    scan = simulate(frames, protocol, edit=edit)
    since_ms = (times - r_peaks[beat]) * 1e3
    _keep_time(scan, protocol, since_ms if heart.sends_time_since_trigger else np.zeros_like(since_ms))
    content = scan.content
    if content is None:
        raise RuntimeError("a simulated scan has lost the content of its header")
    phase = content.encodings[0].limits["phase"]
    limits = {"phase": replace(phase, maximum=phase.minimum)}
    scan = scan.with_content(replace(content.with_limits(limits), waveforms=("ecg",)))
    start_s = protocol.noise_readouts * interval_s
    waveforms = ecg(r_peaks, -_LEAD_IN_S - max(0.0, -float(r_peaks[0])), float(times[-1]) + 0.1, start_s, rng)
    return FreeRunningScan(replace(scan, waveforms=waveforms), r_peaks, times, np.asarray(phases, np.float64))


def ecg(
    r_peaks_s: NDArray[np.float64], first_s: float, last_s: float, start_s: float, rng: np.random.Generator
) -> list[Waveform]:
    """An ECG of four leads with its triggers, in waveforms of 100 ms.

    Args:
        r_peaks_s: times of the R peaks.
        first_s: when the recording begins, on the same clock.
        last_s: when it ends.
        start_s: time 0 of that clock after `START_TICK`.
        rng: draws the noise.
    """
    step_s = ECG_SAMPLE_US * 1e-6
    first_tick = START_TICK + int(np.floor((start_s + first_s) / (TICK_MS * 1e-3)))
    origin_s = (first_tick - START_TICK) * TICK_MS * 1e-3 - start_s
    n_blocks = int(np.ceil((last_s - origin_s) / (step_s * SAMPLES_PER_WAVEFORM)))
    times = origin_s + step_s * np.arange(n_blocks * SAMPLES_PER_WAVEFORM)
    signal = np.zeros_like(times)
    for peak in r_peaks_s:
        for delay, width, height in ((-0.16, 0.025, 0.12), (-0.03, 0.01, -0.1), (0.0, 0.012, 1.0), (0.03, 0.012, -0.2),
                                     (0.28, 0.05, 0.25)):  # fmt: skip
            signal += height * np.exp(-0.5 * ((times - peak - delay) / width) ** 2)
    leads = _BASELINE + 800 * np.array([1.0, 0.6, -0.4, 0.8])[:, None] * signal
    leads += rng.normal(0, 10, leads.shape)
    trigger = np.zeros(len(times), np.uint32)
    at = np.floor((np.asarray(r_peaks_s) - origin_s) / step_s).astype(np.int64)
    trigger[at[(at >= 0) & (at < len(times))]] = TRIGGER
    samples = np.concatenate([np.clip(np.rint(leads), 0, 4095).astype(np.uint32), trigger[None]])
    return [
        _waveform(samples[:, n * SAMPLES_PER_WAVEFORM : (n + 1) * SAMPLES_PER_WAVEFORM], n, first_tick)
        for n in range(n_blocks)
    ]


def _waveform(samples: NDArray[np.uint32], number: int, first_tick: int) -> Waveform:
    header = np.zeros((), WAVEFORM_HEADER)
    header["version"], header["measurement_uid"], header["scan_counter"] = 1, MEASUREMENT_UID, number + 1
    ticks = round(number * SAMPLES_PER_WAVEFORM * ECG_SAMPLE_US / (TICK_MS * 1e3))
    header["time_stamp"] = first_tick + ticks
    header["channels"], header["number_of_samples"] = samples.shape
    header["sample_time_us"], header["waveform_id"] = ECG_SAMPLE_US, 0
    return Waveform(header, np.ascontiguousarray(samples))


def _intervals(heart: Heart, n_slices: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Durations of all beats in seconds; each at least 0.3 of the mean."""
    beats = heart.mean_interval_s * (1 + heart.interval_spread * rng.standard_normal(heart.n_beats * n_slices + 1))
    for number in heart.ectopic_beats:
        beats[number] *= 0.5
    return np.asarray(np.maximum(beats, 0.3 * heart.mean_interval_s))


def _rows(lines: NDArray[np.intp], beat: NDArray[np.intp], lines_per_beat: int) -> NDArray[np.intp]:
    """Row that each readout measures."""
    index = np.arange(len(beat))
    if lines_per_beat == 0:
        return np.asarray(lines[index % len(lines)])
    n_segments = -(-len(lines) // lines_per_beat)
    segment = beat % n_segments
    # Every n-th line in a segment, so that each spans k-space.
    members = [lines[number::n_segments] for number in range(n_segments)]
    sizes = np.array([len(member) for member in members])
    return np.array([members[s][i % sizes[s]] for s, i in zip(segment.tolist(), index.tolist(), strict=True)], np.intp)


def _keep_time(scan: SimulatedScan, protocol: Protocol, since_trigger_ms: NDArray[np.float64]) -> None:
    """No phase in the counters, time since the trigger in the headers; the scan is changed in place."""
    at = -protocol.noise_readouts
    for batch in scan.batches:
        if at >= 0:
            part = since_trigger_ms[at : at + len(batch)]
            batch.headers["idx"]["phase"] = protocol.first_counters.get("phase", 0)
            batch.headers["physiology_time_stamp"] = 0
            batch.headers["physiology_time_stamp"][:, 0] = np.floor(part / TICK_MS)
        at += len(batch)
