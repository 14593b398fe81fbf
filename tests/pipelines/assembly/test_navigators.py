"""Phase-correction readouts: kept apart, bounded, and never a reason to refuse a scan."""

from typing import Any

import numpy as np
import pytest

from pipelines.assembly.limits import AssemblyLimits
from pipelines.mrd import AcquisitionFlag as F

Streams = Any


def scan_of(streams: Streams, **limits: tuple[int, int, int]):
    return streams.scan(4, limits=limits)


def lines(streams: Streams, **counters: int):
    return [streams.readout(line, **counters) for line in range(4)]


def test_readouts_are_those_that_came_in_their_order_and_turned_round(streams: Streams):
    sent = [
        streams.readout(2, F.IS_PHASECORR_DATA, seed=1),
        streams.readout(2, F.IS_PHASECORR_DATA, F.IS_REVERSE, seed=2, center=2),
        streams.readout(2, F.IS_PHASECORR_DATA, F.IS_PARALLEL_CALIBRATION, seed=3),
    ]

    (group,), assembler = streams.assemble(scan_of(streams), [*sent, *lines(streams)])

    found = group.navigators
    np.testing.assert_array_equal(found.samples[0], sent[0].complex_samples()[0])
    np.testing.assert_array_equal(found.samples[1], sent[1].complex_samples()[0, :, ::-1])
    assert found.is_reversed.tolist() == [False, True, False]
    assert found.is_calibration.tolist() == [False, False, True]
    assert assembler.counts["navigator"] == 3
    assert not group.calibration_lines.any()
    assert group.calibration is None


def test_memory_is_bounded_and_what_is_beyond_it_is_counted(streams: Streams):
    limits = AssemblyLimits(max_navigator_bytes=3 * 2 * 6 * 8)
    sent = [streams.readout(2, F.IS_PHASECORR_DATA, seed=n) for n in range(5)]

    (group,), assembler = streams.assemble(scan_of(streams), [*sent, *lines(streams)], limits=limits)

    assert len(group.navigators.samples) == 3
    assert (assembler.counts["navigator"], assembler.counts["kept_out"]) == (3, 2)
    assert "beyond 288 bytes" in assembler.take_warnings()[0]


def test_a_long_series_holds_those_of_one_repetition(streams: Streams):
    scan = scan_of(streams, repetition=(0, 99, 0))
    limits = AssemblyLimits(max_navigator_bytes=2 * 2 * 6 * 8)
    readouts = []
    for repetition in range(100):
        readouts.append(streams.readout(2, F.IS_PHASECORR_DATA, repetition=repetition))
        readouts += lines(streams, repetition=repetition)

    groups, assembler = streams.assemble(scan, readouts, limits=limits)

    assert len(groups) == 100
    assert assembler.counts["navigator"] == 100
    for group in groups:
        expected = streams.readout(2, repetition=group.key.repetition).complex_samples()[0]
        np.testing.assert_array_equal(group.navigators.samples[0], expected)


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({"coils": 3}, "kept_out"),
        ({"samples": 4, "center": 200}, "kept_out"),
        ({"discard": (3, 3)}, "kept_out"),
        ({"encoding": 7}, "kept_out"),
        ({"value": complex(np.nan, 0)}, "not_finite"),
    ],
)
def test_unusable_readouts_are_counted_and_the_image_is_made(streams: Streams, changes: dict[str, Any], fate: str):
    good = streams.readout(2, F.IS_PHASECORR_DATA)

    (group,), assembler = streams.assemble(
        scan_of(streams), [good, streams.readout(2, F.IS_PHASECORR_DATA, **changes), *lines(streams)]
    )

    assert (group.counts == 1).all()
    assert len(group.navigators.samples) == 1
    assert assembler.counts[fate] == 1
    assert any("phase-correction" in text for text in assembler.take_warnings())


def test_readouts_longer_than_the_matrix_are_cut_to_it(streams: Streams):
    sent = streams.readout(2, F.IS_PHASECORR_DATA, samples=10, center=5)

    (group,), _ = streams.assemble(scan_of(streams), [sent, *lines(streams)])

    np.testing.assert_array_equal(group.navigators.samples[0], sent.complex_samples()[0, :, 2:8])


def test_those_of_the_same_contrast_and_set_come_first(streams: Streams):
    scan = scan_of(streams, contrast=(0, 1, 0), set=(0, 1, 0))
    sent = [streams.readout(2, F.IS_PHASECORR_DATA, contrast=contrast) for contrast in (0, 1)]

    groups, _ = streams.assemble(
        scan, [*sent, *lines(streams, contrast=1), *lines(streams, contrast=0), *lines(streams, contrast=1, set=1)]
    )

    expected = [sent[1], sent[0], sent[1]]
    for group, readout in zip(groups, expected, strict=True):
        np.testing.assert_array_equal(group.navigators.samples[0], readout.complex_samples()[0])
