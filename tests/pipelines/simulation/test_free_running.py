"""A simulated beating heart: times, triggers and lines agree."""

from __future__ import annotations

from collections.abc import Callable

import ismrmrd
import numpy as np
import pytest

from pipelines.mrd import AcquisitionFlag, flagged
from pipelines.phantom import beating_heart, heart_radius
from pipelines.simulate import centred_fft
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.free_running import FreeRunningScan, Heart, simulate_free_running

PROTOCOL = Protocol(n_coils=2, repetition_time_ms=7.0, noise_std=0.0, noise_readouts=4)


def run(heart: Heart | None = None, protocol: Protocol = PROTOCOL) -> FreeRunningScan:
    return simulate_free_running(protocol, heart or Heart(n_beats=6, ectopic_beats=(3,)), shape=(32, 32))


def image_headers(running: FreeRunningScan) -> np.ndarray:
    headers = np.concatenate([batch.headers for batch in running.scan.batches])
    return headers[~flagged(headers, AcquisitionFlag.IS_NOISE_MEASUREMENT)]


def test_time_stamps_agree_with_the_r_peaks() -> None:
    running = run()
    headers = image_headers(running)
    start = headers["acquisition_time_stamp"][0]
    ticks = headers["acquisition_time_stamp"].astype(np.int64) - int(start)
    np.testing.assert_allclose(ticks * 2.5e-3, running.times_s, atol=3e-3)
    since = headers["physiology_time_stamp"][:, 0] * 2.5e-3
    last_peak = running.r_peaks_s[np.searchsorted(running.r_peaks_s, running.times_s, side="right") - 1]
    np.testing.assert_allclose(running.times_s - last_peak, since, atol=2.6e-3)
    assert (running.phases >= 0).all()
    assert (running.phases < 1).all()


def test_ecg_triggers_at_the_r_peaks_on_the_clock_of_the_readouts() -> None:
    running = run()
    samples = np.concatenate([waveform.samples for waveform in running.scan.waveforms], axis=1)
    first = running.scan.waveforms[0].header
    assert (int(first["waveform_id"]), samples.shape[0]) == (0, 5)
    start = int(image_headers(running)["acquisition_time_stamp"][0])
    times = (int(first["time_stamp"]) - start) * 2.5e-3 + np.arange(samples.shape[1]) * 2.5e-3
    triggers = times[samples[-1] > 0]
    # acquisition ticks are rounded down, so the two clocks differ by up to one
    np.testing.assert_allclose(triggers, running.r_peaks_s[: len(triggers)], atol=5.1e-3)
    assert len(triggers) >= 6
    lead = samples[0].astype(float)
    for at in np.flatnonzero(samples[-1])[1:-1]:
        assert abs(int(np.argmax(lead[at - 40 : at + 40])) - 40) <= 2
    stamps = [int(waveform.header["time_stamp"]) for waveform in running.scan.waveforms]
    assert np.diff(stamps).tolist() == [40] * (len(stamps) - 1)


def test_intervals_vary_and_an_ectopic_beat_comes_early() -> None:
    beats = np.diff(run().r_peaks_s)
    assert beats.std() > 0
    assert beats[3] == beats.min()
    assert beats[3] < 0.7 * np.median(beats)


def test_each_line_is_that_of_the_heart_at_its_time() -> None:
    running = run()
    truth = running.scan.truth
    kspace = centred_fft(np.pad(truth.image[:, 0, None] * truth.maps[0], ((0, 0), (0, 0), (0, 0), (16, 16))))
    headers = image_headers(running)
    samples = np.concatenate([b.complex_samples() for b in running.scan.batches[1:]])
    for at in (0, 57, 200, len(samples) - 1):
        line = int(headers["idx"]["kspace_encode_step_1"][at])
        instant = int(running.phases[at] * len(truth.image))
        np.testing.assert_allclose(samples[at], kspace[instant, :, line], atol=1e-5)


def test_counters_say_nothing_about_the_phase(schema_errors: Callable[[bytes], int]) -> None:
    running = run()
    headers = image_headers(running)
    for name in ("phase", "repetition", "average", "set"):
        assert not headers["idx"][name].any()
    assert not headers["flags"].any()
    assert schema_errors(running.scan.header) == 0
    header = ismrmrd.xsd.CreateFromDocument(running.scan.header)
    assert header.encoding[0].encodingLimits.phase.maximum == 0
    assert header.waveformInformation[0].waveformType.value == "ecg"


def test_segmented_beats_measure_few_lines_each_and_all_in_the_end() -> None:
    running = run(Heart(n_beats=8, lines_per_beat=8))
    lines = image_headers(running)["idx"]["kspace_encode_step_1"].astype(int)
    beat = np.searchsorted(running.r_peaks_s, running.times_s, side="right") - 1
    for number in range(1, 5):
        assert set(lines[beat == number]) == set(range(number % 4, 32, 4))
    assert set(lines) == set(range(32))


def test_time_since_trigger_can_be_left_out() -> None:
    running = run(Heart(n_beats=2, sends_time_since_trigger=False))
    assert not image_headers(running)["physiology_time_stamp"].any()


def test_slices_are_measured_one_after_the_other() -> None:
    anatomy = np.stack([beating_heart(10, 24, 24), 0.5 * beating_heart(10, 24, 24)], axis=1)
    running = simulate_free_running(PROTOCOL, Heart(n_phases=10, n_beats=3), anatomy=anatomy)
    slices = image_headers(running)["idx"]["slice"].astype(int)
    assert (np.diff(slices) >= 0).all()
    assert set(slices) == {0, 1}


def test_heart_contracts_and_comes_back() -> None:
    assert heart_radius(0.0) == heart_radius(1.0) == heart_radius(0.9) == 1.0
    assert heart_radius(0.35) == pytest.approx(2 / 3)
    areas = (beating_heart(20, 64, 64) > 0.9).sum(axis=(1, 2))
    assert np.argmin(areas) == 7
    assert areas[7] == pytest.approx(areas[0] * 4 / 9, rel=0.15)
    np.testing.assert_array_equal(beating_heart(20, 64, 64)[0, :, :8], beating_heart(20, 64, 64)[7, :, :8])


def test_seed_decides_everything_random() -> None:
    first, again = run(), run()
    assert [b.samples.tobytes() for b in first.scan.batches] == [b.samples.tobytes() for b in again.scan.batches]
    assert all(
        np.array_equal(a.samples, b.samples) for a, b in zip(first.scan.waveforms, again.scan.waveforms, strict=True)
    )
