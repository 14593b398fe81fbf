"""Triggers as they become known, from time stamps and from waveforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.ledger import Ledger
from pipelines.assembly.triggers import JOIN_S, Source, StampTriggers, TriggerSources, WaveformTriggers
from pipelines.mrd import TICK_S, Waveform
from pipelines.physiology import Kind

if TYPE_CHECKING:
    Hearts = Any

START_S = 14_400_000 * TICK_S
TRIGGERS = [40, 400, 770, 1120, 1500, 1860, 2210, 2590, 2950, 3300, 3680, 4040]


def start_s(waveform: Waveform) -> float:
    return float(waveform.header["time_stamp"]) * TICK_S


def ticks(times_s: list[float]) -> list[int]:
    return [round((time_s - START_S) / TICK_S) for time_s in times_s]


def from_waveforms(waveforms: list[Waveform], kind: Kind = Kind.ECG) -> tuple[WaveformTriggers, Ledger]:
    ledger = Ledger()
    triggers = WaveformTriggers(kind, ledger)
    for waveform in waveforms:
        triggers.add(start_s(waveform), waveform)
    triggers.finish()
    return triggers, ledger


def stamps(triggers: list[int], stop: int, step: int = 2) -> tuple[Any, Any]:
    at = np.arange(0, stop, step)
    since = [tick - max((t for t in triggers if t <= tick), default=tick) for tick in at.tolist()]
    return START_S + at * TICK_S, np.array(since, np.uint32)


def test_time_stamps_that_fall_back_tell_the_triggers() -> None:
    source = StampTriggers()
    source.add(*stamps(TRIGGERS, 4200))
    assert ticks(source.times_s) == TRIGGERS


def test_a_trigger_in_a_pause_of_the_readouts_is_told_by_the_next_readout() -> None:
    source, (times_s, since) = StampTriggers(), stamps(TRIGGERS, 2000)
    measured = (times_s < START_S + 300 * TICK_S) | (times_s > START_S + 1300 * TICK_S)
    source.add(times_s[measured], since[measured])
    assert ticks(source.times_s) == [40, 1120, 1500, 1860]


@pytest.mark.parametrize("value", [0, 7])
def test_time_stamps_that_do_not_count_tell_no_beats(value: int) -> None:
    source = StampTriggers()
    source.add(START_S + np.arange(0, 4000, 2) * TICK_S, np.full(2000, value, np.uint32))
    assert len(source.times_s) <= 1


@settings(max_examples=30, deadline=None)
@given(data=st.data(), leads=st.integers(1, 4))
def test_a_trigger_channel_is_read_exactly_however_it_is_cut(hearts: Hearts, data: st.DataObject, leads: int) -> None:
    packet = data.draw(st.integers(3, 900))
    triggers, ledger = from_waveforms(hearts.waveforms(hearts.marks(TRIGGERS, 4200, leads=leads), packet=packet))
    assert ticks(triggers.times_s) == TRIGGERS
    assert triggers.known_until_s == pytest.approx(START_S + 4200 * TICK_S)
    assert ledger.take_warnings() == []


def test_waveforms_out_of_order_are_put_in_order(hearts: Hearts, rng: np.random.Generator) -> None:
    waveforms = hearts.waveforms(hearts.marks(TRIGGERS, 4200))
    for at in range(0, len(waveforms) - 8, 8):
        waveforms[at : at + 8] = [waveforms[at], *(waveforms[at + 1 + n] for n in rng.permutation(7))]
    assert ticks(from_waveforms(waveforms)[0].times_s) == TRIGGERS


def test_a_missing_waveform_costs_only_its_own_triggers(hearts: Hearts) -> None:
    waveforms = hearts.waveforms(hearts.marks(TRIGGERS, 4200))
    del waveforms[1500 // 80]
    assert ticks(from_waveforms(waveforms)[0].times_s) == [tick for tick in TRIGGERS if tick != 1500]


def test_leads_without_a_trigger_channel_are_searched(hearts: Hearts, rng: np.random.Generator) -> None:
    lead = hearts.ecg([tick * TICK_S for tick in TRIGGERS], TICK_S, rng)
    leads = np.round(2048 + 600 * np.stack([lead, -0.7 * lead]))
    triggers, _ = from_waveforms(hearts.waveforms(leads))
    found = ticks(triggers.times_s)
    assert len(found) == len(TRIGGERS)
    assert max(abs(a - b) for a, b in zip(found, TRIGGERS, strict=True)) <= 6


def test_leads_below_zero_are_searched_as_well(hearts: Hearts, rng: np.random.Generator) -> None:
    lead = hearts.ecg([tick * TICK_S for tick in TRIGGERS], TICK_S, rng)
    negative, _ = from_waveforms(hearts.waveforms(np.round(600 * lead)[None]))
    positive, _ = from_waveforms(hearts.waveforms(np.round(600 * lead)[None] + 5000))
    assert ticks(negative.times_s) == ticks(positive.times_s)
    assert len(negative.times_s) == len(TRIGGERS)


def test_a_trigger_channel_that_stays_empty_leaves_the_search_to_the_leads(
    hearts: Hearts, rng: np.random.Generator
) -> None:
    lead = hearts.ecg([tick * TICK_S for tick in TRIGGERS], TICK_S, rng)
    channels = np.stack([np.round(2048 + 600 * lead), np.zeros_like(lead)])
    assert len(from_waveforms(hearts.waveforms(channels))[0].times_s) == len(TRIGGERS)


@pytest.mark.parametrize("sample_time_us", [0.0, -1.0, float("nan"), float("inf"), 40_000.0])
def test_sample_times_without_heartbeats_are_told_once(hearts: Hearts, sample_time_us: float) -> None:
    waveforms = hearts.waveforms(hearts.marks(TRIGGERS, 800))
    for waveform in waveforms:
        waveform.header["sample_time_us"] = sample_time_us
    triggers, ledger = from_waveforms(waveforms)
    assert triggers.times_s == []
    assert len(ledger.take_warnings()) == 1


def test_waveforms_of_another_format_are_left_out_and_told_once(hearts: Hearts) -> None:
    waveforms = hearts.waveforms(hearts.marks(TRIGGERS, 2000))
    other = hearts.waveforms(hearts.marks(TRIGGERS, 4200, leads=2))[25:]
    triggers, ledger = from_waveforms(waveforms + other)
    assert ticks(triggers.times_s) == [tick for tick in TRIGGERS if tick < 2000]
    assert len(ledger.take_warnings()) == 1


def test_a_waveform_sent_twice_counts_once(hearts: Hearts) -> None:
    waveforms = hearts.waveforms(hearts.marks(TRIGGERS, 4200))
    triggers, ledger = from_waveforms([each for waveform in waveforms for each in (waveform, waveform)])
    assert ticks(triggers.times_s) == TRIGGERS
    assert len(ledger.take_warnings()) == 1


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_waveforms_without_channels_or_samples_do_no_harm(hearts: Hearts, shape: tuple[int, int]) -> None:
    (waveform,) = hearts.waveforms(np.zeros((3, 5)))
    triggers, _ = from_waveforms([Waveform(waveform.header, np.zeros(shape, np.uint32))])
    assert triggers.times_s == []


@settings(max_examples=20, deadline=None)
@given(packet=st.integers(20, 700), has_marks=st.booleans())
def test_what_is_said_to_be_known_never_changes(hearts: Hearts, packet: int, has_marks: bool) -> None:
    lead = hearts.ecg([tick * TICK_S for tick in TRIGGERS], TICK_S, np.random.default_rng(packet))
    channels = hearts.marks(TRIGGERS, 4200) if has_marks else np.round(2048 + 600 * lead)[None]
    waveforms = hearts.waveforms(channels, packet=packet)
    whole = from_waveforms(waveforms)[0].times_s
    triggers = WaveformTriggers(Kind.ECG, Ledger())
    for waveform in waveforms:
        triggers.add(start_s(waveform), waveform)
        assert triggers.times_s == whole[: len(triggers.times_s)]
        assert [time_s for time_s in whole if time_s < triggers.known_until_s] == [
            time_s for time_s in triggers.times_s if time_s < triggers.known_until_s
        ]
        assert triggers.known_until_s <= start_s(waveform) + packet * TICK_S + JOIN_S


@pytest.mark.parametrize(
    ("has_stamps", "numbers", "chosen"),
    [
        (True, (0, 1), Source.TRIGGER),
        (False, (0, 1), Source.ECG),
        (False, (1,), Source.PULSE),
        (False, (5, 6, 1024, 2), None),
        (False, (), None),
    ],
)
@pytest.mark.parametrize("order", ["readouts first", "waveforms first"])
def test_auto_takes_time_stamps_then_ecg_then_pulse(
    hearts: Hearts, has_stamps: bool, numbers: tuple[int, ...], chosen: Source | None, order: str
) -> None:
    sources = TriggerSources("auto", Ledger())
    packets = [hearts.waveforms(hearts.marks(TRIGGERS, 4200), number=number) for number in numbers]
    times_s, since = stamps(TRIGGERS, 4200)
    if order == "readouts first":
        sources.add_readouts(times_s, since if has_stamps else np.zeros_like(since))
    for of_one_time in zip(*packets, strict=True):
        for waveform in of_one_time:
            sources.add_waveform(start_s(waveform), waveform)
    if order == "waveforms first":
        sources.add_readouts(times_s, since if has_stamps else np.zeros_like(since))
    sources.finish()
    assert sources.chosen is chosen
