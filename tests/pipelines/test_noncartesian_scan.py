"""Simulated radial, golden-angle and spiral scans through assembly and pipeline, beside the truth.

The simulation evaluates the transform directly; the product computes spokes itself where the stream has none, and
grids with a library. Nothing is shared but the counters and coordinates on the wire.
"""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.assembly.assembly import make_assembly
from pipelines.assembly.buffer import HeapSlots
from pipelines.assembly.frame import Grouping
from pipelines.phantom import head_phantom
from pipelines.pipeline import Pipeline
from pipelines.registry import find
from pipelines.scan_header import TrajectoryType, parse_scan_header
from pipelines.simulated_protocol import Protocol
from pipelines.simulation.noncartesian import Shots, simulate_noncartesian

N = 64
KINDS = (TrajectoryType.RADIAL, TrajectoryType.GOLDENANGLE, TrajectoryType.SPIRAL)


def reconstruct(scan, name, grouping=Grouping.SLICE, **parameters: object):
    entry = find(name)
    assembly = make_assembly(
        parse_scan_header(scan.header), grouping, HeapSlots(), None, entry.parse(parameters).model_dump()
    )
    groups = [group for batch in scan.batches for group in assembly.add(batch)] + assembly.finish()
    pipeline = Pipeline(name, parameters, "cpu")
    return groups, [pipeline(group, {}) for group in groups], assembly.take_warnings()


def nrmse(image, truth):
    scale = float((image * truth).sum() / (image * image).sum())
    return float(np.linalg.norm(scale * image - truth) / np.linalg.norm(truth))


def scan_of(kind, n_shots=96, *, sends_trajectory=True, noise_std=0.02, covariance=None, **changes: object):
    protocol = Protocol(n_coils=6, noise_std=noise_std, **changes)
    shots = Shots(kind, n_shots, n_full=32, sends_trajectory=sends_trajectory)
    return simulate_noncartesian(head_phantom(2, N, N), protocol, shots, covariance=covariance)


# Noise of 2 % and the corners of k-space, which no spoke or spiral reaches, are in the error of full sampling.
@pytest.mark.parametrize(
    ("kind", "n_shots", "limit"),
    [
        (TrajectoryType.RADIAL, 96, 0.045), (TrajectoryType.GOLDENANGLE, 96, 0.045), (TrajectoryType.SPIRAL, 32, 0.05),
        (TrajectoryType.RADIAL, 32, 0.08), (TrajectoryType.GOLDENANGLE, 32, 0.08), (TrajectoryType.SPIRAL, 16, 0.08),
    ],
)  # fmt: skip
def test_sense_shows_the_object_from_enough_and_from_too_few_shots(kind, n_shots, limit):
    scan = scan_of(kind, n_shots)

    groups, outputs, warnings = reconstruct(scan, "sense")

    assert len(groups) == 2
    assert warnings == []
    truth = scan.truth.whitened_magnitude()[0]
    for group, output in zip(groups, outputs, strict=True):
        magnitude, deviation = (image.pixels[0, 0] for image in output.images)
        assert magnitude.shape == deviation.shape == (N, N)
        assert output.warnings == ()
        assert nrmse(magnitude, truth[group.key.slice]) < limit
        inside = truth[group.key.slice] > 0.2 * truth.max()
        assert (deviation[inside] > 0).all()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_computed_spokes_are_those_that_the_stream_would_have_carried(kind):
    with_trajectory, without = (scan_of(kind, 48, sends_trajectory=sends) for sends in (True, False))

    sent, computed = (reconstruct(scan, "zero_filled")[1] for scan in (with_trajectory, without))

    for first, second in zip(sent, computed, strict=True):
        np.testing.assert_allclose(first.images[0].pixels, second.images[0].pixels, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("combine", ["rss", "sensitivity"])
def test_zero_filled_of_a_fully_sampled_scan_shows_the_object(combine):
    scan = scan_of(TrajectoryType.GOLDENANGLE, 160, noise_std=0.005)

    _, outputs, _ = reconstruct(scan, "zero_filled", combine=combine)

    truth = scan.truth.whitened_magnitude()[0]
    for number, output in enumerate(outputs):
        assert nrmse(output.images[0].pixels[0, 0], truth[number]) < 0.12


def test_golden_angle_frames_of_a_slice_make_a_cine_with_an_image_each():
    scan = scan_of(TrajectoryType.GOLDENANGLE, 48, repetitions=3)

    groups, outputs, _ = reconstruct(scan, "sense", Grouping.CINE)

    assert [group.kspace.shape[0] for group in groups] == [3, 3]
    truth = scan.truth.whitened_magnitude()
    for group, output in zip(groups, outputs, strict=True):
        magnitudes = [image for image in output.images if "ReconUncertaintyKind" not in image.meta]
        assert [int(image.header["repetition"]) for image in magnitudes] == [0, 1, 2]
        for frame, image in enumerate(magnitudes):
            assert nrmse(image.pixels[0, 0], truth[frame, group.key.slice]) < 0.15


def test_deviation_is_that_of_many_scans():
    images, deviations = [], []
    covariance = 4e-4 * (0.8 * np.eye(6) + 0.2)
    for seed in range(60):
        scan = scan_of(TrajectoryType.RADIAL, 40, seed=seed, phase_std_rad=0.0, covariance=covariance)
        output = reconstruct(scan, "sense")[1][0]
        images.append(output.images[0].pixels[0, 0])
        deviations.append(output.images[1].pixels[0, 0])
    truth = scan.truth.whitened_magnitude()[0, 0]
    inside = truth > 0.3 * truth.max()

    ratio = np.std(images, axis=0)[inside] / np.mean(deviations, axis=0)[inside]

    # 60 scans give the deviation of a pixel to 9 %, its median over the object far better.
    assert 0.95 < float(np.median(ratio)) < 1.05
