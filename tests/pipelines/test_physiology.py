"""Heartbeats in synthetic signals whose beats are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.physiology import MAX_SAMPLE_TIME_S, REFRACTORY_S, BeatDetector, Kind

if TYPE_CHECKING:
    Hearts = Any


def find(
    signal: NDArray[np.float64], sample_time_s: float, kind: Kind = Kind.ECG, cuts: list[int] | None = None
) -> Any:
    detector = BeatDetector(sample_time_s, kind)
    for part in np.split(np.atleast_2d(signal), sorted(cuts or []), axis=1):
        detector.add(part)
    detector.finish()
    return np.array(detector.beats, float) * sample_time_s


def score(found_s: Any, triggers_s: Any, tolerance_s: float) -> tuple[float, float, NDArray[np.float64]]:
    """Sensitivity, precision, and the time error of each beat found."""
    distance = np.asarray(found_s)[:, None] - np.asarray(triggers_s)[None]
    near = np.abs(distance) < tolerance_s
    nearest = distance[np.arange(len(distance)), np.abs(distance).argmin(axis=1)]
    return near.any(axis=0).mean(), near.any(axis=1).mean(), nearest[near.any(axis=1)]


def intervals(rng: np.random.Generator, n: int = 120, mean_s: float = 0.85, spread_s: float = 0.12) -> Any:
    return 0.7 + np.cumsum(np.clip(mean_s + spread_s * rng.standard_normal(n), 0.4, 1.6))


@pytest.mark.parametrize("sample_time_s", [0.001, 0.0025, 0.005])
@pytest.mark.parametrize(("noise", "spread_ms"), [(0.02, 3.0), (0.05, 4.0), (0.1, 6.0), (0.15, 9.0)])
def test_every_beat_of_an_ecg_with_noise_drift_and_hum_is_found_and_nothing_else(
    hearts: Hearts, rng: np.random.Generator, sample_time_s: float, noise: float, spread_ms: float
) -> None:
    triggers_s = intervals(rng)
    signal = hearts.ecg(triggers_s, sample_time_s, rng, noise=noise, t_wave=0.6)
    sensitivity, precision, errors_s = score(find(signal, sample_time_s), triggers_s, 0.05)
    assert sensitivity >= 0.99
    assert precision >= 0.99
    assert errors_s.std() * 1e3 < spread_ms  # the offset is the same for all beats, so it moves no readout
    assert abs(errors_s.mean()) < 0.012


@pytest.mark.parametrize("rate", [30, 45, 60, 100, 150, 180])
def test_heart_rates_of_patients_are_covered(hearts: Hearts, rng: np.random.Generator, rate: int) -> None:
    triggers_s = 0.7 + np.cumsum(60 / rate * (1 + 0.03 * rng.standard_normal(60)))
    sensitivity, precision, _ = score(find(hearts.ecg(triggers_s, 0.0025, rng), 0.0025), triggers_s, 0.05)
    assert (sensitivity, precision) == (1, 1)


@pytest.mark.parametrize("sample_time_s", [0.0025, 0.005, 0.02])
def test_a_pulse_wave_has_its_beats_at_its_upstroke(rng: np.random.Generator, sample_time_s: float) -> None:
    triggers_s = intervals(rng, spread_s=0.08)
    time_s = np.arange(0, triggers_s[-1] + 1.5, sample_time_s)
    signal = 0.4 * np.sin(2 * np.pi * 0.25 * time_s) + 0.03 * rng.standard_normal(len(time_s))
    for at_s in triggers_s:  # systolic wave and dicrotic wave; the first is steepest one width before its top
        signal += np.exp(-(((time_s - at_s - 0.25) / 0.08) ** 2) / 2)
        signal += 0.35 * np.exp(-(((time_s - at_s - 0.5) / 0.1) ** 2) / 2)
    sensitivity, precision, errors_s = score(find(signal, sample_time_s, Kind.PULSE), triggers_s + 0.17, 0.08)
    assert sensitivity >= 0.99
    assert precision >= 0.99
    assert errors_s.std() < 0.01


def test_a_large_artefact_costs_no_beat_elsewhere(hearts: Hearts, rng: np.random.Generator) -> None:
    triggers_s = intervals(rng, 60)
    signal = hearts.ecg(triggers_s, 0.0025, rng)
    signal[8000:8020] += 50.0  # gradient switching
    found_s = find(signal, 0.0025)
    away = triggers_s[np.abs(triggers_s - 20) > 0.5]
    assert score(found_s, away, 0.05)[0] == 1
    assert len(found_s) <= len(triggers_s) + 2


def test_a_lead_without_signal_does_not_hide_the_others(hearts: Hearts, rng: np.random.Generator) -> None:
    triggers_s = intervals(rng, 40)
    lead = hearts.ecg(triggers_s, 0.0025, rng)
    leads = np.stack([np.zeros_like(lead), lead, -0.5 * lead, 0.03 * rng.standard_normal(len(lead))])
    assert score(find(leads, 0.0025), triggers_s, 0.05)[:2] == (1, 1)


@pytest.mark.parametrize(
    "signal",
    [
        np.zeros(20_000),
        np.full(20_000, 4095.0),
        np.random.default_rng(1).standard_normal(20_000),
        np.cumsum(np.random.default_rng(2).standard_normal(20_000)),
        100 * np.sin(2 * np.pi * 50 * 0.0025 * np.arange(20_000)),
    ],
    ids=["zero", "constant", "noise", "wandering", "hum"],
)
def test_electrodes_without_a_heart_have_no_beats(signal: NDArray[np.float64]) -> None:
    assert len(find(signal, 0.0025)) == 0


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n=st.integers(1, 4000))
def test_beats_do_not_depend_on_how_the_signal_came(hearts: Hearts, data: st.DataObject, n: int) -> None:
    rng = np.random.default_rng(n)
    signal = hearts.ecg(intervals(rng, 12), 0.0025, rng)[:n]
    cuts = data.draw(st.lists(st.integers(0, n), max_size=30))
    np.testing.assert_array_equal(find(signal, 0.0025, cuts=cuts), find(signal, 0.0025))


def test_what_is_said_to_be_known_never_changes(hearts: Hearts, rng: np.random.Generator) -> None:
    signal = hearts.ecg(intervals(rng, 30), 0.0025, rng, noise=0.15)
    whole = find(signal, 0.0025)
    detector = BeatDetector(0.0025, Kind.ECG)
    for start in range(0, len(signal), 100):
        detector.add(signal[None, start : start + 100])
        expected = whole[whole < detector.known * 0.0025]
        np.testing.assert_array_equal(np.array(detector.beats) * 0.0025, expected)
        assert detector.known <= start + 100
    assert (np.diff(whole) >= REFRACTORY_S - 0.0025).all()


@pytest.mark.parametrize("sample_time_s", [0.0, -1.0, float("nan"), MAX_SAMPLE_TIME_S * 1.01, float("inf")])
def test_sample_times_without_heartbeats_are_refused(sample_time_s: float) -> None:
    with pytest.raises(ValueError, match="sample time"):
        BeatDetector(sample_time_s, Kind.ECG)
