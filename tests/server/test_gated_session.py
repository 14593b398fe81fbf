"""A gated scan over a real socket: parameters choose it, waveforms come among the readouts, jobs are cardiac phases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.mrd import WAVEFORM_HEADER, Waveform
from pipelines.phantom import head_phantom
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from server.client import Client

RR_TICKS = 320
TICKS_A_READOUT = 4


@pytest.fixture(scope="module")
def real_time_scan() -> SimulatedScan:
    """Sixteen lines over and over for seven seconds, each frame a repetition."""
    protocol = Protocol(n_coils=2, calibration_lines=0, repetitions=40, noise_readouts=4, repetition_time_ms=10.0)
    return simulate(head_phantom(1, 16, 16), protocol)


def ecg(first_tick: int, n: int) -> list[Waveform]:
    """A lead and the scanner's trigger channel in packets of a fifth of a second."""
    out = []
    for start in range(0, n, 80):
        header = np.zeros((), WAVEFORM_HEADER)
        header["time_stamp"], header["sample_time_us"] = first_tick + start, 2500
        header["channels"], header["number_of_samples"] = 2, 80
        samples = np.full((2, 80), 2048, np.uint32)
        samples[1] = (start + np.arange(80)) % RR_TICKS == 0
        out.append(Waveform(header, samples))
    return out


async def test_readouts_of_all_repetitions_become_cardiac_phases_with_their_waveforms(
    serving: Any, executor: Any, real_time_scan: SimulatedScan
) -> None:
    server = await serving()
    first = int(real_time_scan.batches[0].headers["acquisition_time_stamp"][0])
    waveforms = ecg(first, real_time_scan.n_readouts * TICKS_A_READOUT)
    async with Client("127.0.0.1", server.port) as client:
        reply = await client.send_scan(
            "zero_filled",
            real_time_scan.header,
            real_time_scan.batches,
            {"cardiac_phases": "4", "gating": "ecg"},
            waveforms=waveforms,
        )
    (group,) = [job.group for job in executor.jobs]
    assert group.headers["idx"]["phase"].tolist() == [0, 1, 2, 3]
    assert group.counts.sum() == 40 * 16
    assert len(group.waveforms) >= len(waveforms) - 4
    assert len(reply.images) == 2
    assert reply.texts == []


async def test_a_scan_without_an_ecg_is_told_to_be_ungated(
    serving: Any, executor: Any, real_time_scan: SimulatedScan
) -> None:
    server = await serving()
    async with Client("127.0.0.1", server.port) as client:
        reply = await client.send_scan(
            "zero_filled", real_time_scan.header, real_time_scan.batches, {"cardiac_phases": 4}
        )
    assert [job.group.key.repetition for job in executor.jobs] == list(range(40))
    assert {job.group.notes["ReconGating"] for job in executor.jobs} == {"none"}
    assert len([text for text in reply.texts if "NOT gated" in text]) == 1


@pytest.mark.parametrize(("name", "value"), [("cardiac_phases", "1"), ("gating", "respiration"), ("rr_window", "0")])
async def test_impossible_parameters_are_refused_by_name(
    serving: Any, real_time_scan: SimulatedScan, name: str, value: str
) -> None:
    server = await serving()
    async with Client("127.0.0.1", server.port) as client:
        reply = await client.send_scan("zero_filled", real_time_scan.header, real_time_scan.batches, {name: value})
    assert any(f"parameter '{name}'" in text for text in reply.texts)
