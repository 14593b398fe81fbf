"""What holds for every stream: placement as plain code does it, whatever the order and whatever the batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.frame import Completion, Group
from pipelines.errors import AssemblyError
from pipelines.mrd import ACQUISITION_HEADER, AcquisitionFlag, Acquisitions
from pipelines.scan_header import CalibrationMode, parse_scan_header

if TYPE_CHECKING:
    Streams = Any

SIEMENS = Path("/work/shared/data/kspace/siemens_3t_phantom_14ch_r3_localonly.ismrmrd.h5")
F = AcquisitionFlag


def key_of(group: Group) -> tuple[int, ...]:
    key = group.key
    return (key.encoding, key.slice, key.contrast, key.phase, key.repetition, key.set)


def fingerprint(groups: list[Group]) -> list[tuple[object, ...]]:
    """Everything about groups that must not depend on batches."""
    return [
        (
            key_of(group),
            group.completion,
            group.is_complete,
            group.expected_lines,
            group.readout_extent,
            group.kspace.tobytes(),
            group.counts.tobytes(),
            group.calibration_lines.tobytes(),
            group.headers.tobytes(),
            None
            if group.noise is None
            else (group.noise.sums.tobytes(), group.noise.n_samples, group.noise.sample_time_us),
            None if group.calibration is None else group.calibration.kspace.tobytes(),
            None if group.calibration is None else group.calibration.counts.tobytes(),
        )
        for group in groups
    ]


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    """A regular scan, in an order that sequences use, with readouts that do not belong to the image."""
    y = draw(st.integers(4, 12))
    low = draw(st.integers(0, 3))
    high = draw(st.integers(low + 3, low + y))
    center = draw(st.integers(low, high))
    return {
        "y": y,
        "z": draw(st.integers(1, 2)),
        "limits": (low, high, center),
        "acceleration": draw(st.integers(1, 3)),
        "mode": draw(st.sampled_from([CalibrationMode.EMBEDDED, CalibrationMode.SEPARATE, CalibrationMode.OTHER])),
        "n_slices": draw(st.integers(1, 3)),
        "n_repetitions": draw(st.integers(1, 2)),
        "n_averages": draw(st.integers(1, 2)),
        "is_interleaved": draw(st.booleans()),
        "is_flagged": draw(st.booleans()),
        "is_reversed": draw(st.booleans()),
        "partial_echo": draw(st.booleans()),
        "extras": draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 5)), max_size=6)),
        "n_noise": draw(st.integers(0, 3)),
    }


def build(streams: Streams, plan: dict[str, Any]) -> tuple[Any, list[Acquisitions]]:
    low, high, center = plan["limits"]
    step = plan["acceleration"]
    scan = streams.scan(
        plan["y"],
        z=plan["z"],
        limits={"kspace_encode_step_1": plan["limits"], "average": (0, plan["n_averages"] - 1, 0)},
        acceleration=(step, 1),
        mode=plan["mode"],
    )
    shape = {"samples": 5, "center": 2} if plan["partial_echo"] else {"samples": 6, "center": 3}
    if plan["is_reversed"]:
        shape["center"] = shape["samples"] - 1 - shape["center"]
    always = [F.IS_REVERSE] if plan["is_reversed"] else []
    offset = plan["y"] // 2 - center
    counters = [line for line in range(low, high + 1) if 0 <= line + offset < plan["y"]]
    lattice = [line for line in counters if (line - low) % step == 0]
    readouts = [streams.readout(0, F.IS_NOISE_MEASUREMENT, seed=n, center=0) for n in range(plan["n_noise"])]
    for repetition in range(plan["n_repetitions"]):
        order = []
        for average in range(plan["n_averages"]):
            for partition in range(plan["z"]):
                for line in counters:
                    flags = list(always)
                    if line not in lattice:
                        if abs(line - center) > 1 or step == 1 or average:
                            continue
                        flags.append(F.IS_PARALLEL_CALIBRATION)
                    elif abs(line - center) <= 1 and step > 1:
                        flags.append(F.IS_PARALLEL_CALIBRATION_AND_IMAGING)
                    order.append((line, partition, average, flags))
        slices = range(plan["n_slices"])
        visits = [(at, n) for n in slices for at in range(len(order))]
        for at, n in sorted(visits) if plan["is_interleaved"] else visits:
            line, partition, average, flags = order[at]
            if plan["is_flagged"] and at == len(order) - 1:
                flags = [*flags, F.LAST_IN_SLICE]
            readouts.append(
                streams.readout(
                    line, *flags, partition=partition, slice=n, repetition=repetition, average=average, **shape
                )
            )
    kinds = [
        streams.readout(1, F.IS_NAVIGATION_DATA, F.LAST_IN_SLICE),
        streams.readout(1, F.IS_PHASECORR_DATA),
        streams.readout(high + 1, samples=6),
        streams.readout(lattice[0], value=complex(np.nan, 1)),
        streams.readout(lattice[-1], value=complex(np.inf, -np.inf), slice=plan["n_slices"] - 1),
        streams.readout(0, F.IS_NOISE_MEASUREMENT, F.LAST_IN_SLICE, center=0, seed=9),
    ]
    for at, kind in plan["extras"]:
        # before the last readout, so that no damaged line opens a group of its own after the end
        readouts.insert(at % len(readouts), kinds[kind])
    return scan, readouts


@settings(max_examples=120, deadline=None)
@given(plan=plans())
def test_placement_is_that_of_plain_code_on_ismrmrd_objects(streams: Streams, plan: dict[str, Any]):
    scan, readouts = build(streams, plan)
    groups, assembler = streams.assemble(scan, readouts)
    expected = streams.place_plainly([streams.as_ismrmrd(readout) for readout in readouts], scan)
    n_late = assembler.counts["late"]
    assert {key_of(group) for group in groups} == set(expected)
    for group in groups:
        kspace, counts = expected[key_of(group)]
        np.testing.assert_array_equal(group.kspace[0], kspace)
        np.testing.assert_array_equal(group.counts[0], counts)
    assert n_late <= sum(kind in {2, 3, 4} for _, kind in plan["extras"])  # only an extra one may come after its group


@settings(max_examples=80, deadline=None)
@given(plan=plans(), data=st.data())
def test_any_batching_gives_the_same_groups(streams: Streams, plan: dict[str, Any], data: st.DataObject):
    scan, readouts = build(streams, plan)
    cuts = data.draw(st.sets(st.integers(1, max(len(readouts) - 1, 1)), max_size=8))
    whole, first = streams.assemble(scan, readouts)
    cut, second = streams.assemble(scan, readouts, cuts=cuts)
    single, third = streams.assemble(scan, readouts, cuts=range(len(readouts)))
    assert fingerprint(whole) == fingerprint(cut) == fingerprint(single)
    assert first.counts == second.counts == third.counts
    warnings = [sorted(assembler.take_warnings()) for assembler in (first, second, third)]
    assert warnings[0] == warnings[1] == warnings[2]


@settings(max_examples=60, deadline=None)
@given(plan=plans(), seed=st.integers(0, 2**32 - 1))
def test_any_order_of_lines_gives_the_same_group(streams: Streams, plan: dict[str, Any], seed: int):
    plan |= {"n_slices": 1, "n_repetitions": 1, "is_flagged": False, "n_averages": 1, "extras": []}
    scan, readouts = build(streams, plan)
    shuffled = [readouts[at] for at in np.random.default_rng(seed).permutation(len(readouts))]
    (group,), _ = streams.assemble(scan, readouts)
    (other,), _ = streams.assemble(scan, shuffled)
    np.testing.assert_array_equal(group.kspace, other.kspace)
    np.testing.assert_array_equal(group.counts, other.counts)
    np.testing.assert_array_equal(group.calibration_lines, other.calibration_lines)
    assert group.headers.tobytes() == other.headers.tobytes()
    assert (group.is_complete, group.expected_lines) == (other.is_complete, other.expected_lines)


small = st.integers(0, 3)
any_flags = st.lists(
    st.sampled_from([flag for flag in AcquisitionFlag if not 53 <= flag <= 56]), max_size=3, unique=True
)


@settings(max_examples=120, deadline=None)
@given(
    mode=st.sampled_from(list(CalibrationMode)),
    acceleration=st.integers(1, 2),
    rows=st.lists(
        st.tuples(st.integers(0, 9), any_flags, small, small, small, st.sampled_from([None, np.nan])), max_size=40
    ),
    data=st.data(),
)
def test_every_readout_has_exactly_one_fate_and_no_slot_is_lost(
    streams: Streams, mode: CalibrationMode, acceleration: int, rows: list[Any], data: st.DataObject
):
    scan = streams.scan(8, limits={"slice": (0, 2, 0)}, acceleration=(acceleration, 1), mode=mode)
    readouts = [
        streams.readout(line, *flags, slice=slice_, repetition=repetition, average=average, value=value, center=3)
        for line, flags, slice_, repetition, average, value in rows
        if F.IS_REVERSE not in flags  # 6 samples about sample 3 do not fit when they are read from the far end
    ]
    cuts = data.draw(st.sets(st.integers(1, 40), max_size=5))
    slots = streams.Slots()
    whole, assembler = streams.assemble(scan, readouts, finish=False, slots=slots)
    cut, other = streams.assemble(scan, readouts, cuts=cuts, finish=False)
    try:
        whole += assembler.finish()
    except AssemblyError:
        assert assembler.counts["imaging"] == 0
        with pytest.raises(AssemblyError):
            other.finish()
    else:
        cut += other.finish()
    assert sum(assembler.counts.values()) == len(readouts)
    assert fingerprint(whole) == fingerprint(cut)
    assert assembler.counts == other.counts
    for group in whole:
        assert group.counts.sum() > 0
        assert np.isfinite(group.kspace).all()
        assert all(not slot.is_released for slot in group.slots)
        group.release()
    assembler.abandon()
    assert slots.n_out == 0
    assert assembler.bytes_held == 0


@pytest.mark.localdata
@pytest.mark.skipif(not SIEMENS.exists(), reason="the Siemens file without a stated licence is not on this machine")
@pytest.mark.parametrize("cuts", [(), range(70), (1, 11, 12, 43, 60)])
def test_real_siemens_scan_is_placed_as_plain_code_does(streams: Streams, cuts: Any):
    with h5py.File(SIEMENS, "r") as file:
        scan = parse_scan_header(bytes(file["dataset/xml"][0]))
        rows = file["dataset/data"][:]
    heads = rows["head"].astype(ACQUISITION_HEADER)
    readouts = [
        Acquisitions.from_arrays(
            heads[n : n + 1], rows["data"][n].view(np.complex64).reshape(1, int(heads[n]["active_channels"]), -1)
        )
        for n in range(len(rows))
    ]
    (group,), assembler = streams.assemble(scan, readouts, cuts=cuts)
    expected = streams.place_plainly([streams.as_ismrmrd(readout) for readout in readouts], scan)
    ((kspace, counts),) = expected.values()
    np.testing.assert_array_equal(group.kspace[0], kspace)
    np.testing.assert_array_equal(group.counts[0], counts)
    assert group.kspace.shape == (1, 14, 1, 144, 384)
    assert (group.completion, group.is_complete, group.expected_lines) == (Completion.FLAG, True, 36)
    assert np.flatnonzero(group.calibration_lines[0]).tolist() == list(range(48, 96))  # counters 30 to 77 at offset 18
    assert group.headers["idx"]["kspace_encode_step_1"].tolist() == [54]
    assert group.noise is not None
    noise = readouts[0].complex_samples()[0].astype(np.complex128)
    np.testing.assert_array_equal(group.noise.sums, noise @ noise.conj().T)
    assert (group.noise.n_coils, group.noise.n_samples) == (14, 384)
    assert group.noise.sample_time_us == 20.0
    assert (assembler.counts["imaging"], assembler.counts["noise"]) == (68, 1)
    assert assembler.take_warnings() == []
