"""Simulate echo trains: multi-echo scans with bipolar readouts, and EPI-like scans with navigators.

Every second echo is read in the other direction. Its samples come in the order of time, from the far end of k-space,
and it carries IS_REVERSE. The converter opens as long before each echo, so that `center_sample` is the same in both
directions (as on Siemens); with an asymmetric echo the two directions lack opposite ends of k-space.

Gradients and receivers are never quite in time: readouts of the two directions differ by a phase that is linear along
the readout, a constant and a shift of k-space. It is split evenly: half of it, with opposite signs, on each direction.
Uncorrected, it makes the ghost of EPI and phase errors between bipolar echoes. Navigator lines (IS_PHASECORR_DATA)
before the image lines show it without phase encoding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.mrd import AcquisitionFlag
from pipelines.phantom import smooth_phase
from pipelines.scan_header import TrajectoryType
from pipelines.simulate import as_frames, simulate
from pipelines.simulated_header import TrajectoryDescription
from pipelines.simulated_protocol import FrameCounter, Protocol
from pipelines.simulation.plan import PLAN, Plan, PlanEdit, echoes_innermost
from pipelines.simulation.readouts import Distortion
from pipelines.simulation.scan import SimulatedScan


@dataclass(frozen=True, slots=True)
class EchoTrain:
    """A gradient-echo train; echo n comes at n times `Protocol.echo_time_ms`.

    Attributes:
        n_echoes: contrasts.
        is_bipolar: whether every second echo is read backwards.
        t2_star_ms: decay from echo to echo.
        off_resonance_hz: spread of a smooth map of field errors, whose phase grows with the echo time.
        phase_rad: constant phase between the two directions.
        shift_samples: shift of k-space between the two directions, in raw samples.
    """

    n_echoes: int = 3
    is_bipolar: bool = True
    t2_star_ms: float = 30.0
    off_resonance_hz: float = 10.0
    phase_rad: float = 0.0
    shift_samples: float = 0.0


@dataclass(frozen=True, slots=True)
class EchoPlanar:
    """An EPI readout: all lines of a slice after one excitation, every second one backwards.

    Attributes:
        navigators: lines without phase encoding before the image lines of each slice, alternating like those.
        phase_rad: constant phase between the two directions.
        shift_samples: shift of k-space between the two directions, in raw samples.
        trajectory: what the header calls it; `epi` on most scanners, `cartesian` where the converter regrids.
    """

    navigators: int = 3
    phase_rad: float = 0.6
    shift_samples: float = 0.4
    trajectory: TrajectoryType = TrajectoryType.EPI


def simulate_multi_echo(
    anatomy: NDArray[np.inexact], protocol: Protocol | None = None, train: EchoTrain | None = None
) -> SimulatedScan:
    """Simulate a multi-echo scan of slices; echoes are the contrasts, and come one after the other for each line.

    Args:
        anatomy: `(y, x)` or `(slices, y, x)`, magnitude.
        protocol: what is measured; `partial_echo` gives asymmetric echoes.
        train: the echoes.
    """
    protocol, train = protocol or Protocol(), train or EchoTrain()
    protocol = replace(protocol, frame_counter=FrameCounter.CONTRAST, frame_counters=(), repetitions=1)
    magnitude = as_frames(anatomy, protocol)
    n_y, n_x = magnitude.shape[2:]
    rng = np.random.default_rng([protocol.seed, 3])
    start = smooth_phase((n_y, n_x), rng, strength=protocol.phase_std_rad)
    field_hz = np.angle(smooth_phase((n_y, n_x), rng, strength=0.5)) / 0.5 * train.off_resonance_hz
    times_s = protocol.echo_time_ms * 1e-3 * np.arange(1, train.n_echoes + 1)[:, None, None, None]
    decay = np.exp(-times_s / (train.t2_star_ms * 1e-3) + 2j * np.pi * field_hz * times_s)
    echoes = magnitude * start * decay
    edit = bipolar(protocol, train.n_echoes) if train.is_bipolar else echoes_innermost
    return simulate(
        echoes.astype(np.complex64), protocol, edit=edit, distort=direction_error(train.phase_rad, train.shift_samples)
    )


def simulate_epi(
    anatomy: NDArray[np.inexact], protocol: Protocol | None = None, planar: EchoPlanar | None = None
) -> SimulatedScan:
    """Simulate an EPI-like scan: no ramps, no distortion, but the ghost of reversed lines.

    Args:
        anatomy: `(y, x)`, `(slices, y, x)` or `(frames, slices, y, x)`.
        protocol: what is measured.
        planar: the readout.
    """
    protocol, planar = protocol or Protocol(), planar or EchoPlanar()
    centre = protocol.encoded_lines(anatomy.shape[-2]) // 2
    scan = simulate(
        anatomy,
        protocol,
        edit=echo_planar(planar.navigators, centre),
        distort=direction_error(planar.phase_rad, planar.shift_samples),
    )
    content = scan.content
    if content is None:
        raise RuntimeError("a simulated scan has lost the content of its header")
    space = content.encodings[0]
    n_samples = space.encoded.matrix[0]
    length_us = n_samples * protocol.dwell_us
    longs = {
        "etl": int(scan.truth.counts[0, 0].sum()),
        "numberOfNavigators": planar.navigators,
        "rampUpTime": 0,
        "rampDownTime": 0,
        "flatTopTime": round(length_us),
        "echoSpacing": round(length_us),
        "acqDelayTime": 0,
        "numSamples": n_samples,
    }
    description = TrajectoryDescription("ConventionalEPI", longs, {"dwellTime": protocol.dwell_us})
    changed = replace(space, trajectory=planar.trajectory, description=description)
    return scan.with_content(content.with_encoding(changed, 0))


def bipolar(protocol: Protocol, n_frames: int) -> PlanEdit:
    """Read every second contrast backwards, and all contrasts of a line one after the other."""
    contrast = protocol.counters_of_frames(n_frames)[FrameCounter.CONTRAST]

    def edit(plan: Plan) -> Plan:
        plan = echoes_innermost(plan)
        plan["is_reversed"] = contrast[plan["frame"]] % 2 == 1
        return plan

    return edit


def echo_planar(n_navigators: int, centre: int) -> PlanEdit:
    """Read every second line backwards, after navigators at the row `centre`; the segment counts the direction."""

    def edit(plan: Plan) -> Plan:
        parts: list[Plan] = [plan[plan["is_separate"]]]
        plan = plan[~plan["is_separate"]]
        keys = np.stack([plan[name].astype(np.int64) for name in ("frame", "average", "slice")], axis=1)
        for at in np.sort(np.unique(keys, axis=0, return_index=True)[1]):
            lines = plan[(keys == keys[at]).all(axis=1)]
            lines["is_reversed"] = np.arange(len(lines)) % 2 == 1
            navigators = np.zeros(n_navigators, PLAN)
            for name in ("frame", "average", "slice"):
                navigators[name] = lines[name][:1]
            navigators["line"] = centre
            navigators["is_separate"] = True
            navigators["flags"] = AcquisitionFlag.IS_PHASECORR_DATA.mask
            # The last navigator and the first image line run in opposite directions, like any neighbours.
            navigators["is_reversed"] = (np.arange(n_navigators) - n_navigators) % 2 == 1
            parts += [navigators, lines]
        ordered = np.concatenate(parts)
        ordered["segment"] = ordered["is_reversed"]
        return ordered

    return edit


def direction_error(phase_rad: float, shift_samples: float) -> Distortion:
    """The phase between the two directions: `exp(+-i/2 (phase + 2 pi shift x / n))` of the hybrid data, x from n//2."""

    def distort(rows: NDArray[np.complex64], plan: Plan) -> NDArray[np.complex64]:
        n_x = rows.shape[-1]
        angle = phase_rad + 2 * np.pi * shift_samples * (np.arange(n_x) - n_x // 2) / n_x
        sign = np.where(plan["is_reversed"], 0.5, -0.5)[:, None, None]
        hybrid = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(rows, axes=-1), axis=-1), axes=-1)
        turned = np.fft.ifftshift(hybrid * np.exp(1j * sign * angle), axes=-1)
        return np.asarray(np.fft.fftshift(np.fft.fft(turned, axis=-1), axes=-1), np.complex64)

    return distort
