"""Physiology waveforms: kept within bounds, and handed on with the groups of their time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.frame import Grouping
from pipelines.assembly.ledger import Ledger
from pipelines.assembly.limits import AssemblyLimits
from pipelines.assembly.waveforms import WaveformStore
from pipelines.mrd import TICK_S, WAVEFORM_HEADER, Waveform, seconds_of

if TYPE_CHECKING:
    Streams = Any
    Hearts = Any

START = 14_400_000
DAY = 34_560_000


def waveform(at: int, *, n: int = 4, channels: int = 2, number: int = 0, sample_time_us: float = 2500.0) -> Waveform:
    header = np.zeros((), WAVEFORM_HEADER)
    header["time_stamp"], header["number_of_samples"], header["channels"] = at, n, channels
    header["waveform_id"], header["sample_time_us"] = number, sample_time_us
    return Waveform(header, np.full((channels, n), at % 251, np.uint32))


def stamps(waveforms: tuple[Waveform, ...]) -> list[int]:
    return [int(each.header["time_stamp"]) for each in waveforms]


def test_a_group_has_the_waveforms_of_its_time_span(streams: Streams, hearts: Hearts) -> None:
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots())
    groups = []
    for tick in range(0, 32, 2):  # two frames of 8 lines; a waveform of 4 samples every 4 ticks, with the readouts
        if tick % 4 == 0:
            assembler.add_waveform(waveform(START + tick))
        groups += assembler.add(hearts.stamp(streams.readout(tick // 2 % 8, repetition=tick // 16), tick))
    assert [stamps(group.waveforms) for group in groups] == [
        [START, START + 4, START + 8, START + 12],
        [START + 16, START + 20, START + 24, START + 28],
    ]


def test_waveforms_may_all_come_before_the_readouts_and_in_any_order(streams: Streams, hearts: Hearts) -> None:
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots())
    for at in (40, 0, 12, 4, 100, 8):
        assembler.add_waveform(waveform(START + at))
    readouts = [hearts.stamp(streams.readout(line), 6 + line) for line in range(8)]
    (group,) = [group for readout in readouts for group in assembler.add(readout)]
    assert stamps(group.waveforms) == [START + 4, START + 8, START + 12]


def test_a_scan_without_waveforms_has_none(streams: Streams) -> None:
    (group,), assembler = streams.assemble(streams.scan(), [streams.readout(line) for line in range(8)])
    assert group.waveforms == ()
    assert assembler.take_warnings() == []


def test_the_oldest_are_dropped_when_there_is_no_room_with_one_warning() -> None:
    ledger = Ledger()
    store = WaveformStore(5000, ledger)
    for at in range(0, 400, 4):
        store.add(waveform(START + at))
    kept = stamps(store.between((START, START + 400)))
    assert kept == list(range(START + 400 - 4 * len(kept), START + 400, 4))
    assert 0 < len(kept) < 20
    assert store.n_dropped == 100 - len(kept)
    assert store.n_bytes <= 5000
    assert len(ledger.take_warnings()) == 1


def test_a_waveform_larger_than_the_limit_is_dropped_and_counted() -> None:
    store = WaveformStore(5000, Ledger())
    store.add(waveform(START))
    store.add(waveform(START + 4, n=2000))
    assert stamps(store.between((START, START + 4))) == [START]
    assert store.n_dropped == 1


def test_memory_counts_towards_what_assembly_holds_and_is_given_back(streams: Streams) -> None:
    assembler = Assembler(streams.scan(), Grouping.SLICE, streams.Slots(), AssemblyLimits())
    assembler.add_waveform(waveform(START, n=1000))
    assert assembler.bytes_held >= 8000
    assembler.abandon()
    assert assembler.bytes_held == 0


@pytest.mark.parametrize("sample_time_us", [0.0, -5.0, float("nan"), float("inf")])
def test_a_sample_time_that_makes_no_sense_is_an_instant(sample_time_us: float) -> None:
    store = WaveformStore(5000, Ledger())
    store.add(waveform(START + 4, sample_time_us=sample_time_us))
    assert stamps(store.between((START, START + 4))) == [START + 4]
    assert store.between((START + 5, START + 9)) == ()


def test_other_channels_of_one_id_are_kept_and_told() -> None:
    ledger = Ledger()
    store = WaveformStore(50_000, ledger)
    for number in (0, 1, 1024, 65_535):
        store.add(waveform(START, number=number, channels=5 if number == 0 else 2))
    assert ledger.take_warnings() == []
    store.add(waveform(START, channels=3))
    assert len(store.between((START, START))) == 5
    assert ledger.take_warnings() == ["waveform 0: 3 channels after 5; kept as it came"]


def test_a_scan_over_midnight_keeps_its_order() -> None:
    store = WaveformStore(50_000, Ledger())
    for at in (DAY - 8, DAY - 4, 0, 4):
        store.add(waveform(at))
    assert stamps(store.between((DAY - 6, 2))) == [DAY - 8, DAY - 4, 0]


def test_what_is_kept_is_a_copy() -> None:
    store, original = WaveformStore(50_000, Ledger()), waveform(START)
    expected = original.samples.copy()
    store.add(original)
    original.samples[:] = 0
    original.header["time_stamp"] = 0
    (kept,) = store.between((START, START))
    np.testing.assert_array_equal(kept.samples, expected)
    assert stamps((kept,)) == [START]


@given(at=st.integers(0, DAY - 1), later=st.integers(-DAY // 2, DAY // 2 - 1))
def test_time_goes_on_over_midnight(at: int, later: int) -> None:
    stamp = np.array([(at + later) % DAY], np.uint32)
    assert seconds_of(stamp, at)[0] == pytest.approx((at + later) * TICK_S, abs=1e-9)
