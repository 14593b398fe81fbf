"""Spokes and spirals that Gadgetron has gathered end as the groups that the readouts themselves make."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.assembly.assembler import Assembler
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Group, Grouping
from pipelines.assembly.gadgetron import bucket_readouts, recon_readouts
from pipelines.gadgetron import SAMPLING_DESCRIPTION, ReconBit, ReconBuffer, ReconData
from pipelines.mrd import Acquisitions
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.scan_header import ScanHeader, TrajectoryType, parse_scan_header
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.noncartesian import Shots, simulate_noncartesian
from tests import gadgetron_chain as chain

KINDS = (TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE, TrajectoryType.SPIRAL)


def make_scan(kind: TrajectoryType) -> tuple[ScanHeader, Acquisitions]:
    """One slice of 24 shots of four coils."""
    protocol = Protocol(n_coils=4, noise_readouts=0, seed=3)
    scan = simulate_noncartesian(head_phantom(1, 32, 32), protocol, Shots(kind, 24))
    return parse_scan_header(scan.header), chain.joined(scan.batches)


def only_group(scan: ScanHeader, batches: list[Acquisitions]) -> Group:
    assembler = Assembler(scan, Grouping.SLICE, HeapSlots())
    groups = [group for batch in batches for group in assembler.add(batch)]
    groups += [*assembler.end_unit(is_whole=True), *assembler.finish()]
    (group,) = groups
    return group


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_of_shots_makes_the_group_of_its_readouts(kind):
    scan, batch = make_scan(kind)

    found = only_group(scan, list(bucket_readouts(chain.bucket_of(batch))))

    wanted = only_group(scan, [batch])
    np.testing.assert_array_equal(found.kspace, wanted.kspace)
    np.testing.assert_array_equal(found.trajectory, wanted.trajectory)
    np.testing.assert_array_equal(found.counts, wanted.counts)


@pytest.mark.parametrize("kind", KINDS)
def test_recon_data_with_a_trajectory_make_the_group_of_their_readouts(kind):
    scan, batch = make_scan(kind)
    wanted = only_group(scan, [batch])
    n, coils, samples = len(batch), batch.n_coils, batch.n_samples
    data = batch.complex_samples().transpose(1, 0, 2).reshape(1, 1, 1, coils, 1, n, samples)
    track = np.ascontiguousarray(batch.trajectory).view(np.float32).reshape(1, 1, 1, 1, n, samples, 2)
    headers = batch.headers.reshape(1, 1, 1, 1, n)
    buffer = ReconBuffer(data, headers, np.zeros((), SAMPLING_DESCRIPTION), track)

    found = only_group(scan, list(recon_readouts(ReconData((ReconBit(buffer),)), scan)))

    np.testing.assert_array_equal(found.kspace, wanted.kspace)
    np.testing.assert_array_equal(found.trajectory, wanted.trajectory)


def test_spokes_whose_samples_gadgetron_cropped_without_their_trajectory_give_nearly_the_same_image():
    """RemoveROOversampling crops the samples and leaves the trajectory: protocol, bucket, "server bug"."""
    scan, batch = make_scan(TrajectoryType.RADIAL)
    cropped = chain.without_oversampling(batch)
    whole = only_group(scan, [batch])

    halved = only_group(scan, list(bucket_readouts(chain.bucket_of(cropped))))

    assert halved.kspace.shape[-1] == whole.kspace.shape[-1] // 2
    np.testing.assert_allclose(halved.trajectory, whole.trajectory[:, :, ::2], atol=1e-6)
    pipeline = Pipeline("sense", {"noise_level": 0.02}, "cpu")
    first, second = (pipeline(group, {}).images[0].pixels[0, 0] for group in (whole, halved))
    scale = float((first * second).sum() / (second * second).sum())
    assert np.linalg.norm(first - scale * second) < 0.05 * np.linalg.norm(first)
