"""Buckets and recon data of Gadgetron's end as the same groups that the readouts themselves make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Group, Grouping
from pipelines.assembly.gadgetron import (
    bucket_readouts,
    fitted,
    is_oversampling_removed,
    recon_readouts,
    without_oversampling,
)
from pipelines.errors import AssemblyError
from pipelines.gadgetron import Bucket, ReconBit, ReconData
from pipelines.mrd import ACQUISITION_HEADER, Acquisitions
from pipelines.phantom import head_phantom
from pipelines.scan_header import CalibrationMode, ScanHeader, parse_scan_header
from pipelines.simulate import SimulatedScan, simulate
from pipelines.simulated_protocol import Protocol
from tests import gadgetron_chain as chain


def _groups(scan: ScanHeader, batches: Iterable[Acquisitions]) -> dict[object, Group]:
    assembler = Assembler(scan, Grouping.SLICE, HeapSlots())
    groups = [group for batch in batches for group in assembler.add(batch)]
    groups += assembler.end_unit(is_whole=True)
    groups += assembler.finish()
    assert assembler.take_warnings() == []
    return {group.key: group for group in groups}


def _agree(found: dict[object, Group], wanted: dict[object, Group]) -> None:
    assert set(found) == set(wanted)
    assert wanted
    for key, group in wanted.items():
        other = found[key]
        assert np.array_equal(other.kspace, group.kspace)
        assert np.array_equal(other.counts, group.counts)
        assert np.array_equal(other.calibration_lines, group.calibration_lines)
        assert other.readout_extent == group.readout_extent
        assert other.is_complete == group.is_complete
        assert (other.calibration is None) == (group.calibration is None)
        if group.calibration is not None and other.calibration is not None:
            assert np.array_equal(other.calibration.kspace, group.calibration.kspace)
            assert np.array_equal(other.calibration.counts, group.calibration.counts)
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "acquisition_time_stamp", "idx"):
            assert other.headers[name].tobytes() == group.headers[name].tobytes()


def _scan(**protocol: object) -> tuple[SimulatedScan, ScanHeader]:
    scan = simulate(head_phantom(2, 32, 32), Protocol(n_coils=3, noise_readouts=0, seed=5, **protocol))
    return scan, parse_scan_header(scan.header)


PROTOCOLS = {
    "full": {"calibration_lines": 0},
    "embedded": {"acceleration": 2, "calibration_lines": 12},
    "separate": {"acceleration": 2, "calibration_lines": 12, "calibration_mode": CalibrationMode.SEPARATE},
    "repetitions": {"calibration_lines": 0, "repetitions": 3},
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_a_bucket_makes_the_groups_of_its_readouts(protocol: dict[str, object]):
    scan, header = _scan(**protocol)
    batch = chain.joined(scan.batches)

    _agree(_groups(header, bucket_readouts(chain.bucket_of(batch))), _groups(header, [batch]))


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_recon_data_make_the_groups_of_their_readouts(protocol: dict[str, object]):
    scan, header = _scan(**protocol)
    batch = chain.joined(scan.batches)

    _agree(
        _groups(header, recon_readouts(chain.recon_data_of(batch, header, slices=2), header)), _groups(header, [batch])
    )


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_the_same_without_readout_oversampling(protocol: dict[str, object]):
    scan, header = _scan(**protocol)
    batch = chain.without_oversampling(chain.joined(scan.batches))
    assert is_oversampling_removed(header, 0, batch.n_samples)
    cropped = without_oversampling(header)
    wanted = _groups(cropped, [batch])

    _agree(_groups(cropped, bucket_readouts(chain.bucket_of(batch))), wanted)
    recon = chain.recon_data_of(batch, header, slices=2)
    _agree(_groups(cropped, recon_readouts(recon, cropped)), wanted)
    assert next(iter(wanted.values())).kspace.shape[-1] == 32


def test_an_asymmetric_echo_keeps_its_place_and_its_extent():
    scan, header = _scan(calibration_lines=0)
    batch = chain.joined(scan.batches)
    batch.headers["discard_pre"] = 12  # as AsymmetricEchoAdjustRO leaves it: a full row, part of it filled
    wanted = _groups(header, [batch])
    assert next(iter(wanted.values())).readout_extent == (12, 64)

    _agree(_groups(header, recon_readouts(chain.recon_data_of(batch, header, slices=2), header)), wanted)


# ---- every readout once


@given(st.lists(st.sampled_from([0, chain.CALIBRATION, chain.BOTH]), min_size=1, max_size=20), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_readout_that_is_image_and_calibration_comes_once(flags: list[int], seed: int):
    headers = np.zeros(len(flags), ACQUISITION_HEADER)
    headers["flags"], headers["scan_counter"] = flags, np.arange(len(flags))
    headers["number_of_samples"], headers["active_channels"] = 4, 2
    samples = np.random.default_rng(seed).integers(0, 256, (len(flags), 2, 32), np.uint8)

    found = list(bucket_readouts(chain.bucket_of(Acquisitions(headers, samples))))

    counters = np.concatenate([run.headers["scan_counter"] for run in found])
    assert sorted(counters) == list(range(len(flags)))
    values = np.concatenate([run.samples for run in found])
    assert np.array_equal(values[np.argsort(counters)], samples)


# ---- recon data that are not as usual


def _one_buffer() -> tuple[ScanHeader, Acquisitions, ReconData]:
    scan, header = _scan(calibration_lines=0)
    batch = chain.joined(scan.batches)
    batch = chain.taken(batch, batch.headers["idx"]["slice"] == 0)
    return header, batch, chain.recon_data_of(batch, header)


def test_lines_that_a_gadget_filled_in_without_headers_are_used():
    header, _, recon = _one_buffer()
    buffer = recon.bits[0].data
    wanted = _groups(header, recon_readouts(recon, header))
    buffer.headers[0, 0, 0, 0, 5:9]["number_of_samples"] = 0

    found = _groups(header, recon_readouts(recon, header))

    (key,) = wanted
    assert np.array_equal(found[key].kspace, wanted[key].kspace)
    assert found[key].is_complete


def test_lines_without_header_and_without_samples_were_not_measured():
    header, _, recon = _one_buffer()
    buffer = recon.bits[0].data
    buffer.headers[0, 0, 0, 0, 5:9]["number_of_samples"] = 0
    buffer.data[..., 5:9, :] = 0

    (batch,) = recon_readouts(recon, header)

    assert len(batch) == 28
    assert 5 not in batch.headers["idx"]["kspace_encode_step_1"]


def test_rows_outside_the_matrix_are_counted_and_left_out():
    header, _, recon = _one_buffer()
    buffer = recon.bits[0].data
    buffer.sampling["limits"]["center"][1] += 4  # four rows now lie before the first line
    assembler = Assembler(header, Grouping.SLICE, HeapSlots())

    for batch in recon_readouts(recon, header):
        assembler.add(batch)

    assert assembler.counts["out_of_range"] == 4
    assert "left out" in assembler.take_warnings()[0]


def test_arrays_that_contradict_each_other_are_refused():
    header, _, recon = _one_buffer()
    buffer = recon.bits[0].data
    for wrong in (
        replace(buffer, headers=buffer.headers[..., :-1]),
        replace(buffer, trajectory=np.zeros((1, 1, 1, 1, 3, 64, 2), np.float32)),
    ):
        with pytest.raises(AssemblyError, match="recon data"):
            list(recon_readouts(ReconData((ReconBit(wrong),)), header))
    buffer.headers["encoding_space_ref"] = 3
    with pytest.raises(AssemblyError, match="encoding_space_ref 3"):
        list(recon_readouts(recon, header))


def test_empty_buffers_are_no_readouts():
    header, _, recon = _one_buffer()
    empty = replace(
        recon.bits[0].data, data=np.zeros((0,) * 7, np.complex64), headers=np.zeros((0,) * 5, ACQUISITION_HEADER)
    )

    assert list(recon_readouts(ReconData((ReconBit(empty, empty),)), header)) == []
    assert list(bucket_readouts(Bucket())) == []


def test_one_slice_of_evenly_spaced_lines_is_viewed_and_not_copied():
    header, _, recon = _one_buffer()

    (batch,) = recon_readouts(recon, header)

    assert np.shares_memory(batch.samples, recon.bits[0].data.data)


# ---- trajectories that were not cropped with their readouts


@given(st.integers(1, 4), st.integers(2, 16), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_straight_trajectory_is_spread_over_the_samples_that_are_left(ratio: int, n: int, seed: int):
    direction = np.random.default_rng(seed).standard_normal((3, 1, 2)).astype(np.float32)
    whole = (np.arange(ratio * n) - (ratio * n) // 2)[None, :, None] / ratio * direction
    headers = np.zeros(3, ACQUISITION_HEADER)
    headers["number_of_samples"], headers["trajectory_dimensions"] = n, 2
    values = np.ascontiguousarray(whole, np.float32).view(np.uint8).reshape(3, -1)

    run = fitted(Acquisitions(headers, np.zeros((3, 1, 8 * n), np.uint8), values))

    found = run.trajectory.view(np.float32).reshape(3, n, 2)
    wanted = (np.arange(n) - n // 2)[None, :, None] * direction
    assert np.allclose(found, wanted, atol=1e-5)


# ---- telling that oversampling was removed


@pytest.mark.parametrize(("n_samples", "removed"), [(64, False), (52, False), (33, False), (32, True), (24, True)])
def test_the_length_of_a_readout_tells_whether_oversampling_was_removed(n_samples: int, removed: bool):
    _, header = _scan(calibration_lines=0)
    assert header.encodings[0].encoded.matrix[0] == 64

    assert is_oversampling_removed(header, 0, n_samples) is removed
    assert is_oversampling_removed(without_oversampling(header), 0, n_samples) is False
    assert is_oversampling_removed(header, 7, n_samples) is False


def test_the_header_without_oversampling_keeps_the_size_of_a_pixel():
    _, header = _scan(calibration_lines=0)

    space = without_oversampling(header).encodings[0].encoded

    before = header.encodings[0].encoded
    assert space.matrix[0] == 32
    assert space.field_of_view_mm[0] / space.matrix[0] == pytest.approx(before.field_of_view_mm[0] / before.matrix[0])
    assert (space.matrix[1:], space.field_of_view_mm[1:]) == (before.matrix[1:], before.field_of_view_mm[1:])
